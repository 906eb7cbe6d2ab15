"""What a volume relies on its storage for: one promise each, and how the preflight's findings become verdicts.

A promise is kept only when it was tried everywhere and nothing spoke against it; one bad sign breaks it; what was not
tried, or only on some nodes, is told as such, and never as a success.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum


class Verdict(StrEnum):
    KEPT = "kept"
    BROKEN = "broken"
    NOT_TESTED = "not tested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A promise in plain words: what it says, what it means if it is broken, and what to do then."""

    promise: str
    broken_means: str
    to_do: str


class Promise(Enum):
    """In the order in which they are told. `value` is the word that scripts and records know it by."""

    SAME = "same-device"
    NAMES = "unique-names"
    PATHS = "paths"
    CAPABILITIES = "capabilities"
    OPERATIONS = "operations"
    ROOM = "room"
    CONFLICT = "conflict"
    FENCE = "fence"
    LATE_WRITES = "late-writes"
    PERSISTENCE = "persistence"

    @property
    def words(self) -> Words:
        return _WORDS[self]


OPTIONAL = frozenset({Promise.PERSISTENCE})
"""Asked for separately: "not tested" alone does not make a preflight incomplete."""

_WORDS = {
    Promise.SAME: Words(
        promise="every node sees the same device: name (WWID), size and sector size",
        broken_means="nodes would write to different disks, or beyond the end of one",
        to_do="make the LUN visible to every node, mapped alike; rescan the nodes that see an old size",
    ),
    Promise.NAMES: Words(
        promise="host names, initiator names and NVMe host identifiers are each node's own",
        broken_means="the storage takes two nodes for one: fencing one of them fences neither, or both",
        to_do="give each node its own (/etc/iscsi/initiatorname.iscsi, /etc/nvme/hostid and hostnqn), then log in anew",
    ),
    Promise.PATHS: Words(
        promise="every path reads, at length",
        broken_means="a failover to that path would fail",
        to_do="mend or remove the path (cable, port, zoning, portal) before it is needed",
    ),
    Promise.CAPABILITIES: Words(
        promise="the device knows the kind of reservation that is needed (Write Exclusive - Registrants Only), and "
        "reservation commands reach it through every path",
        broken_means="it can fence nobody",
        to_do="turn persistent reservations on at the target (nvmet: resv_enable), or use another one",
    ),
    Promise.OPERATIONS: Words(
        promise="every reservation operation does what it says, through every path, and all nodes read the same of it",
        broken_means="a takeover could report success while the old owner still writes",
        to_do="do not use this storage for shared volumes; update or replace the target, and tell its maker",
    ),
    Promise.ROOM: Words(
        promise="every path of every node can be registered at the same time",
        broken_means="a node or a path that cannot register cannot take the volume over",
        to_do="raise the target's limit of registrants, or use fewer paths or nodes",
    ),
    Promise.CONFLICT: Words(
        promise="a node that is not registered cannot write, and every node can read",
        broken_means="two nodes can write the disk at the same time: data is lost sooner or later",
        to_do="do not use this storage for shared volumes",
    ),
    Promise.FENCE: Words(
        promise="a node that was preempted is out on all its paths, and the new owner writes on all of its own",
        broken_means="a fenced node goes on writing, or the new owner cannot",
        to_do="do not use this storage for shared volumes",
    ),
    Promise.LATE_WRITES: Words(
        promise="after a preempt-and-abort no write of the old owner lands that was under way",
        broken_means="a write that the old owner sent before a takeover can destroy what the new owner wrote after it",
        to_do="do not use this storage without power fencing of the old owner before a takeover",
    ),
    Promise.PERSISTENCE: Words(
        promise="registrations and reservation survive a restart and a power loss of the target",
        broken_means="after a power loss of the target every node can write, a fenced one too",
        to_do="turn persistence (APTPL) on at the target, on stable storage of its own; else keep fenced hosts off",
    ),
}


_OF_CHECKS = {
    "unique name": Promise.SAME,
    "capabilities can be read": Promise.CAPABILITIES,
    "registrations can be read": Promise.CAPABILITIES,
    "type Write Exclusive - Registrants Only": Promise.CAPABILITIES,
    "PR OUT reaches the device": Promise.CAPABILITIES,
    "persistence through power loss": Promise.PERSISTENCE,
    "persistence through power loss is active": Promise.PERSISTENCE,
}
TRY_AGAIN = "remove what stood in the way, and run the preflight again"


def promise_of(check: str) -> Promise:
    """The promise that a failed check of `verdict.check_device` breaks, by the check's name: an operation's, if none
    other."""
    return _OF_CHECKS.get(check, Promise.OPERATIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One promise, judged. `means` and `to_do` are empty where it is kept."""

    promise: Promise
    verdict: Verdict
    found: tuple[str, ...]
    means: str = ""
    to_do: str = ""


@dataclass(slots=True)
class Evidence:
    """What was seen, as it comes. `findings` judges it: nothing seen means not tested."""

    _good: dict[Promise, list[str]] = field(default_factory=dict)
    _bad: dict[Promise, list[str]] = field(default_factory=dict)
    _skipped: dict[Promise, list[str]] = field(default_factory=dict)
    _then: dict[Promise, list[str]] = field(default_factory=dict)

    def good(self, promise: Promise, what: str) -> None:
        _add(self._good, promise, what)

    def bad(self, promise: Promise, what: str) -> None:
        _add(self._bad, promise, what)

    def skipped(self, promise: Promise, why: str, to_do: str = TRY_AGAIN) -> None:
        """Not tried, or not everywhere. `to_do`: what it takes to try it."""
        _add(self._skipped, promise, why)
        _add(self._then, promise, to_do)

    def note(self, promise: Promise, ok: bool, what: str) -> bool:
        (self.good if ok else self.bad)(promise, what)
        return ok

    def touched(self, promise: Promise) -> bool:
        return any(promise in each for each in (self._good, self._bad, self._skipped))

    def broken(self, promise: Promise) -> bool:
        return promise in self._bad

    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._judge(promise) for promise in Promise)

    def _judge(self, promise: Promise) -> Finding:
        words = promise.words
        good, bad, skipped = (each.get(promise, []) for each in (self._good, self._bad, self._skipped))
        if bad:
            return Finding(
                promise=promise,
                verdict=Verdict.BROKEN,
                found=tuple(bad),
                means=words.broken_means,
                to_do=words.to_do,
            )
        if skipped or not good:
            return Finding(
                promise=promise,
                verdict=Verdict.NOT_TESTED,
                found=(*skipped, *good) or ("not reached",),
                means=f"unknown; if it is broken: {words.broken_means}",
                to_do="; ".join(self._then.get(promise, [TRY_AGAIN])),
            )
        return Finding(promise=promise, verdict=Verdict.KEPT, found=tuple(good))


def worst(findings: Iterable[Finding]) -> Verdict:
    """Of a whole device: broken if a promise is, not tested if one that is not optional was not."""
    judged = list(findings)
    if any(each.verdict is Verdict.BROKEN for each in judged):
        return Verdict.BROKEN
    missing = [each for each in judged if each.verdict is Verdict.NOT_TESTED and each.promise not in OPTIONAL]
    return Verdict.NOT_TESTED if missing else Verdict.KEPT


def risk(findings: Iterable[Finding]) -> str:
    """What somebody accepts who uses the device all the same: the broken promises, in one line; "" for none."""
    return ", ".join(each.promise.value for each in findings if each.verdict is Verdict.BROKEN)


def untested(findings: Iterable[Finding]) -> str:
    """The promises of which this preflight says nothing, in one line; "" for none."""
    return ", ".join(each.promise.value for each in findings if each.verdict is Verdict.NOT_TESTED)


def _add(where: dict[Promise, list[str]], promise: Promise, what: str) -> None:
    known = where.setdefault(promise, [])
    if what not in known:
        known.append(what)
