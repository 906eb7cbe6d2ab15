"""Reads: none shows less than what was acknowledged before it began. Pure.

Writer and reader run on one host, so their times compare exactly. A read that overlaps a write may show it or not; a
read that never ended proves nothing, and breaks nothing as long as it was free to end.
"""

from bisect import bisect_left
from dataclasses import dataclass

from hwlab.history import History, Read, Write
from hwlab.reason import Reason, invalid, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    answered: int
    stale: int
    unanswered: int
    reasons: tuple[Reason, ...]


def judge_reads(history: History) -> Judged:
    if not history.wanted.reads:
        return Judged(answered=0, stale=0, unanswered=0, reasons=())
    if history.reads is None or history.writes is None:
        return Judged(answered=0, stale=0, unanswered=0, reasons=(unknown("what the reader read is not known"),))
    answered = [read for read in history.reads if read.done_ms is not None]
    stale = stale_reads(answered, history.writes)
    reasons = []
    if stale:
        read, promised = stale[0]
        at_ms = read.submit_ms - history.fault_ms
        what = f"one begun {at_ms:+.0f} ms showed {read.value}, {promised} was acknowledged"
        reasons.append(invalid(f"{len(stale)} stale reads: {what}"))
    if errors := [read for read in answered if read.error]:
        reasons.append(invalid(f"the reading application saw an error: {errors[0].error}"))
    reasons += doubts(history, answered)
    return Judged(
        answered=len(answered),
        stale=len(stale),
        unanswered=len(history.reads) - len(answered),
        reasons=tuple(reasons),
    )


def stale_reads(answered: list[Read], writes: tuple[Write, ...]) -> list[tuple[Read, int]]:
    """Reads that showed less than was acknowledged when they began, each with what was."""
    acked = sorted((write.done_ms, write.seq) for write in writes if not write.error)
    times = [done_ms for done_ms, _ in acked]
    highest: list[int] = []
    for _, seq in acked:
        highest.append(max(seq, highest[-1] if highest else 0))
    found = []
    for read in answered:
        before = bisect_left(times, read.submit_ms)
        promised = highest[before - 1] if before else 0
        if not read.error and read.value < promised:
            found.append((read, promised))
    return found


def doubts(history: History, answered: list[Read]) -> list[Reason]:
    """The reader proves something only if it tried while a new server acknowledged writes, and read in the end."""
    acks = [write.done_ms for write in history.writes or () if not write.error and write.done_ms > history.fault_ms]
    good = [read for read in answered if not read.error]
    if not any(read.submit_ms < history.fault_ms for read in good):
        return [unknown("the reader read nothing before the fault")]
    if not acks or not any(read.submit_ms > min(acks) for read in history.reads or ()):
        return [unknown("the reader tried nothing while records were acknowledged after the fault")]
    if not any(read.submit_ms > history.fault_ms for read in good):
        return [unknown("the reader read nothing after the fault")]
    return []
