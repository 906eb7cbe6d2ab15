"""What carries node watch's datagrams and says who is there: one interface, two engines.

builtin    UDP between the nodes (`_udp.py`, served by the loop itself); who is silent for `overdue_ms` is overdue
corosync   a closed process group of a running corosync: its messages come in one agreed order, and it says who is in
           the group; who leaves it is overdue at once

The rules that make serving safe (`lease.py`) rest on neither: an engine only moves datagrams and work. What an engine
says of membership is evidence, as silence is. Its quorum is asked in addition to node watch's own majority, never
instead of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nodewatch.config import ClusterConfig

BUILTIN = "builtin"
COROSYNC = "corosync"
ENGINES = (BUILTIN, COROSYNC)


class EngineRefused(Exception):
    """The engine runs, but not in a way that node watch could keep its promises on; the text says what to do."""


class EngineUnreachable(Exception):
    """The engine does not run here, or not yet; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A datagram came."""

    data: bytes
    source: str
    """The address of its sender, as far as the engine knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The engine's membership changed. Whoever is not `present` cannot be heard now."""

    present: frozenset[int]
    """Node numbers, this node's among them if it is in the group itself."""
    quorate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something for people to know. `serious`: somebody must mend it."""

    text: str
    serious: bool = False


Arrival = Packet | Members | Note


class Engine(Protocol):
    """An engine as node watch's loop sees it. Nothing here blocks."""

    send_errors: int
    """Datagrams not sent since the reader set this to 0."""
    last_error: str

    def fileno(self) -> int:
        """Readable when `receive` has something."""
        ...

    def send(self, to: tuple[int, ...], datagram: bytes) -> None:
        """To these nodes. One that cannot be sent now is lost, and counted."""
        ...

    def receive(self) -> Sequence[Arrival]:
        """What came, in order; each once."""
        ...

    def configure(self, config: ClusterConfig) -> None:
        """The configured nodes changed while the cluster runs."""
        ...

    def close(self) -> None: ...
