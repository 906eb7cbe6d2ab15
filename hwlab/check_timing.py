"""What was seen against what `hactl timing` promises. Pure.

The table counts from the fault, of a primary that falls silent at one moment. So only drills that begin with such a
fault are compared, and only their first recovery. A fault takes effect at some moment between the drill's call and its
return: what is seen is therefore an interval, and the error beside it is what the lab itself may have added: the error
of the clocks, the longest time for which an observer did not run, the slack of the records' own stamps, and clocks that
a drill set wrong.

A new server that the asker saw before the old lease could have ended, beyond that error, breaks a promise that safety
rests on: invalid. Anything else outside is unknown: the table or the records are wrong or the lab was too slow, and
nobody can say which.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from hwlab.history import History, Recovery
from hwlab.phases import SLACK_MS
from hwlab.reason import Reason, invalid, unknown

SILENT_FAULTS = ("kill", "pause", "cut", "cut-out", "cut-from-nodes", "hang-daemon")
"""After these nobody hears the primary any more."""
DETECT, BAR, LEASE = "detect", "bar confirmed", "its lease must have ended"
POWER, RESET = "its power is read back as off", "node without contact has reset itself"
PROOFS = {"power": POWER, "watchdog": RESET}
"""Levels of fencing, and the row that says how long each may take."""
BACK = "is back without it"
"""The end of a cause (hactl/placement.py): nothing of the table says when a node that was reset is up again."""
GATES = {
    "cut-from-nodes": "gate of a cut-off node closes",
    "hang-daemon": "gate of a stopped node watch closes",
    "hang-controller": "gate of a hung daemon closes",
}
"""After these the asker still reaches the primary's kernel. (The fault hang-daemon stops the node watch too.)"""
SILENCE_MS = 500.0
"""Several questions in a row without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One row of the table and what was seen of it, in ms after the fault, between `low_ms` and `high_ms`."""

    phase: str
    best_ms: float
    worst_ms: float
    low_ms: float
    """Minus infinity: it may have come at any time before."""
    high_ms: float
    error_ms: float

    @property
    def outside(self) -> str:
        """`early`, `late`, or "" for within the table, give or take the error."""
        if self.high_ms + self.error_ms < self.best_ms:
            return "early"
        return "late" if self.low_ms - self.error_ms > self.worst_ms else ""


def compare(history: History) -> tuple[Compared, ...]:
    """All rows of which something was seen, in the table's order."""
    began = fault_interval(history)
    if began is None or history.timing is None:
        return ()
    kind, first_ms, last_ms = began
    seen = dict(seen_phases(history, kind))
    error_ms = error_of(history)
    return tuple(
        Compared(
            phase=row.phase,
            best_ms=row.best_ms,
            worst_ms=row.worst_ms,
            low_ms=seen[row.phase][0] - last_ms,
            high_ms=seen[row.phase][1] - first_ms,
            error_ms=error_ms + history.rate_error * row.worst_ms,
        )
        for row in history.timing
        if row.phase in seen
    )


def judge_timing(history: History, compared: tuple[Compared, ...]) -> tuple[Reason, ...]:
    reasons = []
    if fault_interval(history) is not None and history.timing is None:
        reasons.append(unknown("the cluster did not tell its timing table"))
    for row in compared:
        if not row.outside:
            continue
        table = f"the table says {row.best_ms:.0f} to {row.worst_ms:.0f} ms"
        what = f"{row.phase}: seen {row.low_ms:.0f} to {row.high_ms:.0f} ms (error {row.error_ms:.0f}), {table}"
        broken = row.phase == LEASE and row.outside == "early" and opened_before(history, row.best_ms - row.error_ms)
        reasons.append(invalid(what) if broken else unknown(what))
    return tuple(reasons)


def opened_before(history: History, after_ms: float) -> bool:
    """Did another kernel than the primary's answer for the address so soon after the fault?"""
    began, seen = fault_interval(history), history.answers
    if began is None or seen is None:
        return False
    old = {answer.mac for answer in seen.answers if answer.at_ms < history.fault_ms}
    return any(answer.mac not in old and answer.at_ms - began[1] < after_ms for answer in seen.answers)


def fault_interval(history: History) -> tuple[str, float, float] | None:
    """(kind, earliest, latest moment) of the fault that the drill counts from, if the table speaks of it."""
    for mark in history.marks:
        kind, _, host = mark.what.partition(" ")
        if mark.kind != "fault" or mark.at_ms < history.fault_ms - 1 or host != history.primary:
            continue
        if kind in (*SILENT_FAULTS, "hang-controller"):
            return kind, mark.at_ms, mark.at_ms if mark.until_ms is None else mark.until_ms
        return None
    return None


def silenced(recovery: Recovery, history: History) -> set[str]:
    """Hosts that had fallen silent when the recovery took the disk."""
    until_ms = min((step.start_ms for step in recovery.steps if step.name == "fence"), default=float("inf"))
    return {
        mark.node
        for mark in history.marks
        if mark.kind == "fault" and mark.at_ms < until_ms and mark.what.partition(" ")[0] in SILENT_FAULTS
    }


def error_of(history: History) -> float:
    asked = history.answers.asked_ms if history.answers else ()
    gaps = sorted(after - before for before, after in pairwise(asked))
    stalled_ms = gaps[-1] - gaps[len(gaps) // 2] if gaps else 0.0
    watched_ms = history.witness.gap_ms_max if history.witness else 0.0
    return history.uncertainty_ms + SLACK_MS + max(stalled_ms, watched_ms)


def seen_phases(history: History, kind: str) -> Iterator[tuple[str, tuple[float, float]]]:
    """(row, (earliest, latest moment)): phases that the nodes recorded, gates that the asker saw shut."""
    # Where the drill wants the primary to serve on, a silence is no end of its gate.
    goes_on = history.wanted.server == (history.primary,)
    if kind in GATES and not goes_on and (shut := gate_shut(history)):
        yield GATES[kind], shut
    recovery = first_recovery(history)
    # A majority must be left to notice: with all nodes dark, recovery waits for their power.
    if kind not in SILENT_FAULTS or recovery is None or 2 * len(silenced(recovery, history)) > len(history.nodes):
        return
    ends = {step.name: step.end_ms for step in reversed(recovery.steps)}
    starts = {step.name: step.start_ms for step in reversed(recovery.steps)}
    if "detect" in ends:
        yield DETECT, (ends["detect"], ends["detect"])
    # Where nobody may take over before the lost node is known to have stopped, the decision waits for that besides: for
    # its power, for its watchdog, or for itself.
    if "decide" in ends and not recovery.cause.endswith(BACK):
        yield PROOFS.get(recovery.fenced, BAR), (ends["decide"], ends["decide"])
    if "old-lease" in ends:
        yield LEASE, (ends["old-lease"], ends["old-lease"])
    elif "address" in starts:
        # A taker that was not ready before shows only that the lease was over then.
        yield LEASE, (float("-inf"), starts["address"])


def first_recovery(history: History) -> Recovery | None:
    """The recovery that answered the fault, if it was the first that came to its end."""
    done = [recovery for recovery in history.recoveries or () if recovery.from_node == history.primary]
    first = min(done, key=lambda recovery: recovery.epoch, default=None)
    return None if first is None or first.failed else first


def gate_shut(history: History) -> tuple[float, float] | None:
    """Between the last question that the primary's kernel answered and the first one that it did not.

    A single answer may get lost; and the primary may be served again later, after a silence.
    """
    seen = history.answers
    if seen is None:
        return None
    told = sorted(seen.answers, key=lambda answer: answer.at_ms)
    old = {answer.mac for answer in told if answer.at_ms < history.fault_ms}
    for answer, following in zip(told, [*told[1:], None], strict=True):
        goes_on = following is not None and following.mac in old and following.at_ms - answer.at_ms < SILENCE_MS
        if answer.at_ms >= history.fault_ms and not goes_on:
            later = seen.asked_ms[answer.ask :] if answer.mac in old else ()
            return (answer.at_ms, later[0]) if later else None
    return None
