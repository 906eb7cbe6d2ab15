"""What the core is told, and what it wants done. Every event carries this node's clock in ms, read after it
happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nodewatch.arbitration import RaceCall, Word
from nodewatch.config import ClusterConfig
from nodewatch.membership import Change
from nodewatch.stable import Stable


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Nothing happened until `NodeWatch.deadline_ms`."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagram:
    now_ms: int
    source: str
    """The sender's IP address."""
    data: bytes
    link: int = 0
    """The heartbeat link on which it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChanged:
    """An engine that knows says who is there. Never comes with the builtin one."""

    now_ms: int
    present: frozenset[int]
    quorate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChanged:
    """This host's kernel says of a heartbeat link what keeps it from working; "" = nothing (any more)."""

    now_ms: int
    link: int
    trouble: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted:
    """`stable` is on the disk, fsync done."""

    now_ms: int
    stable: Stable


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonBeat:
    """hactld said hello or beat."""

    now_ms: int
    held: int | None = None
    """Volumes that it has in hand and whose disk is its own; None = it did not say."""
    lost: int | None = None
    """Volumes that it lost and could not let go yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonGone:
    """hactld's connection ended."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GateGiven:
    now_ms: int
    volume: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTaken:
    """hactld wanted the gate closed and forgotten; the edge did both. `closed`: the kernel said so."""

    now_ms: int
    volume: str
    closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatesRenewed:
    """`now_ms` was read after the kernel answered. False: not done, or the clock had passed
    `not_after_ms`."""

    now_ms: int
    results: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatesClosed:
    """True: surely closed."""

    now_ms: int
    results: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarWanted:
    now_ms: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LiftWanted:
    now_ms: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldWanted:
    now_ms: int
    yielded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessRead:
    """hactld read the witness's LUNs: by WWID the newest claim on each that answered. `problem`: "" = all did."""

    now_ms: int
    luns: Mapping[str, Word]
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Raced:
    """What came of a `Race`. `won`: the LUNs `claimed` have `epoch`, read back. `lost`: others did. `unknown`: read
    back as far as they answered, neither is sure."""

    now_ms: int
    ident: int
    outcome: Literal["won", "lost", "unknown"]
    epoch: int
    claimed: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessChecked:
    """A check of the claim of `epoch`. `began_ms`: this node's clock, read BEFORE the first command of the check."""

    now_ms: int
    epoch: int
    began_ms: int
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessForced:
    """The operator says that the nodes that are not heard are off: take the witness over, whoever used it."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWanted:
    now_ms: int
    to: str
    """A node's name, or "*" for all others."""
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeProposed:
    """hactld of the leader wants the configuration to change (rules of `membership.py`). `digest`: of what it
    leads to, in hex, as hactld made it."""

    now_ms: int
    change: Change
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOffered:
    """The leader of `term` proposes it, and hactld found that it can be made here."""

    now_ms: int
    term: int
    change: Change
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMade:
    """It was chosen, and is durable here. `keys`: those that count from now on, the one to seal under first."""

    now_ms: int
    change: Change
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The process was asked to end: shut the gates. `Farewell` follows when that was tried."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """Send the last words. Nothing follows."""

    now_ms: int


Event = (
    Tick
    | Datagram
    | GroupChanged
    | LinkChanged
    | Persisted
    | DaemonBeat
    | DaemonGone
    | GateGiven
    | GateTaken
    | GatesRenewed
    | GatesClosed
    | BarWanted
    | LiftWanted
    | YieldWanted
    | WitnessRead
    | Raced
    | WitnessChecked
    | WitnessForced
    | MessageWanted
    | ChangeProposed
    | ChangeOffered
    | ChangeMade
    | Stop
    | Farewell
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transmit:
    """Send one datagram to each of these node numbers."""

    to: tuple[int, ...]
    datagram: bytes
    link: int | None = None
    """On this heartbeat link only; None = on every one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Put it on the disk, then answer `Persisted`. Votes and promises are told to nobody BEFORE that. Of
    several that wait, only the newest need be written."""

    stable: Stable


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewGates:
    """Read the clock again just before: not one renewal at a later time than `not_after_ms`. Answer
    `GatesRenewed`."""

    volumes: tuple[str, ...]
    not_after_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseGates:
    """Now. Answer `GatesClosed`."""

    volumes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """A peer's hactld sent this to ours."""

    sender: str
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """From now on this is the configuration: send to the addresses of its nodes."""

    config: ClusterConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Claim the witness, over LUNs that are not beyond the `expected` epochs. hactld does it and answers `Raced`."""

    call: RaceCall


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchWitness:
    """Check the claim of this epoch several times a second from now on, and answer `WitnessChecked`; 0 = no more."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Show `NodeWatch.view` to whoever listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pat:
    """Pat the watchdog, if the clock has not reached `not_after_ms` (None: whenever; W5 of `watchdog.py`)."""

    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarm:
    """The watchdog is needed no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One line for people. `serious`: something is wrong that somebody must mend."""

    text: str
    serious: bool = False


Effect = (
    Transmit
    | Persist
    | RenewGates
    | CloseGates
    | Deliver
    | Configured
    | Race
    | WatchWitness
    | Publish
    | Pat
    | Disarm
    | Log
)
