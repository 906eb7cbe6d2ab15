"""What fencing asks of one device on one path: the reservation calls, and the label's two blocks.

Every implementation passes tests/contract/test_reservation_port.py. Calls block; whoever calls keeps one
worker per device, because a command in the kernel cannot be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fencing.label import FoundLabel, Label
from fencing.model import Capabilities, PrType, ReservationState


class ReservationPort(Protocol):
    """One I_T nexus to one logical unit. Keys are 64-bit ints; key 0 means "none".

    All calls raise NotDelivered, Refused or OutcomeUnknown (`errors`). Returning says that the device
    reported success, which proves nothing: read() does. A UNIT ATTENTION is not an error; the call repeats
    itself.
    """

    @property
    def device(self) -> str:
        """Name for messages."""
        ...

    def read(self) -> ReservationState:
        """Registrants, holder, type and generation, of one moment. Garbled if the answer cannot be parsed."""
        ...

    def capabilities(self) -> Capabilities: ...

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        """Register this nexus (old 0), change its key, or drop it (new 0); persistent through power loss
        (APTPL).

        Refused (conflict) unless `old` is what this nexus has registered; `ignore_existing` replaces whatever
        it has. The holder's reservation goes with its registration, and stays when only the key changes.
        """
        ...

    def reserve(self, key: int, type: PrType) -> None:
        """Take the reservation if nobody has it. By the holder: no change. By others: Refused
        (conflict).
        """
        ...

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        """Drop every registration of `victim`; take over the reservation if the victim held it.

        With `abort` the victim's commands in flight end before this returns, or are never carried out. Victim
        0 means all others, and only while the reservation is of an all-registrants type. Refused (conflict)
        if this nexus is not registered with `key`, or if nobody is with `victim`.
        """
        ...

    def release(self, key: int, type: PrType) -> None:
        """Give up the reservation, keep the registration. By another registrant: no change."""
        ...

    def clear(self, key: int) -> None:
        """Drop the reservation and every registration, whoever's."""
        ...

    def close(self) -> None: ...


class LabelStore(Protocol):
    """The two copies of the label on one device."""

    def read(self) -> FoundLabel | None:
        """Newest valid copy; None if neither copy was ever written. LabelError, or NotDelivered if
        unreadable.
        """
        ...

    def write(self, label: Label, slot: int) -> None:
        """Write one of the copies (slot 0 or 1), through to the medium. Refused if the device refuses this
        node's writes, else OutcomeUnknown.
        """
        ...

    def close(self) -> None: ...


def _not_known() -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lun:
    """One logical unit as this node reaches it. `in_use` says what on this node still has it open ("" =
    nothing), `size_bytes` how large it is now (0: not known).

    `nexus` is what `read` calls this node's own registration (NVMe: its host identifier), b"" where that is not known.
    """

    wwid: str
    port: ReservationPort
    labels: LabelStore
    in_use: Callable[[], str]
    size_bytes: Callable[[], int] = _not_known
    nexus: bytes = b""

    def close(self) -> None:
        self.port.close()
        self.labels.close()
