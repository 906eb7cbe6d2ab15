"""What was observed during one run of a drill: plain data for the checker and the report.

All times are milliseconds of the drill's clock (CLOCK_MONOTONIC of the machine that runs the drill); times of
other machines were mapped to it, `uncertainty_ms` says how well. `None` always means "not observed", never
"nothing happened": the checker treats it as a hole in the evidence.
"""

from dataclasses import dataclass
from enum import StrEnum

REGISTRANTS_MAY_WRITE = (5, 6, 7, 8)


class Verdict(StrEnum):
    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


class Lock(StrEnum):
    KEPT = "kept"
    LOST = "lost"
    STOLEN = "stolen"
    UNKNOWN = "unknown"


def key_node(key: int) -> int:
    """Node number within a registration key: bits 32 to 43."""
    return key >> 32 & 0xFFF


def key_epoch(key: int) -> int:
    """Epoch within a registration key: the low 32 bits."""
    return key & 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One record of the load. `error` "" means acknowledged; anything else: the outcome is unknown."""

    seq: int
    submit_ms: float
    done_ms: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a second client read back at the end: runs of consecutive record numbers, in file order."""

    runs: tuple[tuple[int, int], ...]
    garbled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of the second client on the lock: `refused`, `took` or `error:...`."""

    submit_ms: float
    done_ms: float
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read of the reader: the highest record number that it showed. `done_ms` None: it never ended."""

    submit_ms: float
    done_ms: float | None
    value: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A kernel said that the served address is its own: which MAC, and the number of the newest question then."""

    ask: int
    at_ms: float
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Who had the served address, as asked from the client's side. `asked_ms`: when each question left."""

    asked_ms: tuple[float, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The lock owner's own end: `trouble` is the first error of a write through the locked descriptor."""

    releasing_ms: float
    touches: int
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The target's view of one device after a change that happened between `since_ms` and `at_ms`.

    `registrants` holds one key per registered nexus, so a node with two paths shows its key twice.
    """

    device: str
    since_ms: float
    at_ms: float
    generation: int
    type: int
    holder: int | None
    registrants: tuple[int, ...]

    def nodes(self) -> frozenset[int]:
        """Numbers of the nodes that have a key registered."""
        return frozenset(key_node(key) for key in self.registrants)


@dataclass(frozen=True, slots=True, kw_only=True)
class StampSeen:
    """The highest stamp of this run that the target's disk showed for a node at one moment (0: none).

    `epoch_after`: the highest epoch that the label showed right after that reading; None where it was not read."""

    device: str
    at_ms: float
    node: int
    n: int
    epoch_after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskWrite:
    """A write to a device as the target's kernel noted it: issued at that moment, or done. In the kernel's order."""

    device: str
    at_ms: float
    done: bool
    offset: int
    length: int

    def touches(self, offset: int, length: int) -> bool:
        return self.offset < offset + length and offset < self.offset + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class StampWrite:
    """One stamp as its writer saw it. `error` "" means that the disk said it is written."""

    node: int
    n: int
    submit_ms: float
    done_ms: float
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What hactld of the primary wrote: a notice of the kernel (`text` says which), or the loss of its handle.

    `at_ms`: when the journal had it. `prompted`: a notice led to the check that found the loss."""

    at_ms: float
    text: str
    lost: bool = False
    prompted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The newest epoch that the label on the disk showed at one moment."""

    device: str
    at_ms: float
    epoch: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """How well the target was watched. `ended_ms` None: the witness died before it was told to stop."""

    started_ms: float
    ended_ms: float | None
    gap_ms_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that the drill did or saw, for the timeline: a fault, a command, a condition reached."""

    at_ms: float
    what: str
    kind: str = "step"
    node: str = ""
    until_ms: float | None = None
    """When it was done, if doing it took time; `at_ms` is its beginning."""
    stall_ms_max: float | None = None
    """How long the client may stand still for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One expectation of the drill: met after `took_ms`, or not within its deadline."""

    what: str
    met: bool
    took_ms: float
    deadline_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One takeover or move as the nodes recorded it (`hactl history`), mapped to the drill's clock."""

    from_node: str
    to_node: str
    epoch: int
    cause: str
    verdict: str
    steps: tuple["Phase", ...]
    fenced: str = ""
    """The level of fencing that let it go on; "" = none was needed, or not told."""

    @property
    def failed(self) -> bool:
        """An attempt that did not end with somebody serving."""
        return self.verdict.startswith("failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    name: str
    start_ms: float
    end_ms: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRow:
    """One phase as `hactl timing` promises it, in ms after the fault."""

    phase: str
    best_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The cluster at the end, as `hactl status` showed it: who serves, who could take over."""

    server: str
    ready: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the drill's data asks for at the end."""

    server: tuple[str, ...]
    """Names of the nodes of which one must serve at the end."""
    ready: tuple[str, ...] = ()
    old_owner_must_try: bool = False
    """The old owner lives on: the drill proves nothing unless one of its late writes was refused."""
    recoveries_min: int = 1
    moves_max: int | None = None
    """How often the volume may have gone to another holder."""
    lease_lapse_ms: float | None = None
    """A lock may go to another client when its owner was silent for so long: its NFS lease."""
    told_by: str = ""
    """The notice by which a primary that lives must learn that it was fenced; "" = no matter how."""
    told_ms_max: float | None = None
    reads: bool = False
    """A reader was there: without its reads nothing is proven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that is known of one run."""

    drill: str
    nodes: dict[int, str]
    primary: str
    fault_ms: float
    ended_ms: float
    uncertainty_ms: float
    wanted: Wanted
    writes: tuple[Write, ...] | None
    found: Found | None
    attempts: tuple[Attempt, ...] | None
    distinct_clients: bool | None
    owner: Owner | None
    kernel_complaints: tuple[str, ...] | None
    reservations: tuple[Reservation, ...]
    stamps_seen: tuple[StampSeen, ...]
    stamp_writes: tuple[StampWrite, ...]
    epochs: tuple[Epoch, ...]
    witness: Witness | None
    conditions: tuple[Condition, ...]
    recoveries: tuple[Recovery, ...] | None
    end: End | None
    marks: tuple[Mark, ...] = ()
    answers: Answers | None = None
    reads: tuple[Read, ...] | None = None
    timing: tuple[TimingRow, ...] | None = None
    notices: tuple[Notice, ...] | None = None
    disk_writes: tuple[DiskWrite, ...] = ()
    """After each fence until the new label, where the target's kernel notes them."""
    rate_error: float = 0.0
    """By how much the fastest or slowest of the nodes' clocks is off true time (0.05 = 5 %)."""
    lost: tuple[str, ...] = ()
    """What broke in the lab itself (not in the cluster): makes the verdict unknown."""
