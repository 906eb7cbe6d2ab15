"""The client's stalls, each with what it answers to: a drill does several things, each with a price of its own. Pure.

A gap between two acknowledgements belongs to what the drill did in it (the first thing, if it did several); without
any, to the last thing that it did before. What a drill allows for a step, it derives from what is configured; beside it
stands the error that the lab may have added, as with the timing table.
"""

from dataclasses import dataclass
from itertools import pairwise

from hwlab.check_timing import error_of
from hwlab.history import History, Mark
from hwlab.reason import Reason, invalid, unknown

DOINGS = ("fault", "command")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """The longest gap that one step of the drill caused."""

    cause: str
    start_ms: float
    end_ms: float
    allowed_ms: float | None = None

    @property
    def ms(self) -> float:
        return self.end_ms - self.start_ms


def stalls_of(history: History) -> tuple[Stall, ...]:
    """One for each thing that the drill did, in order; a thing with no acknowledgement after it has none."""
    doings = sorted((mark for mark in history.marks if mark.kind in DOINGS), key=lambda mark: mark.at_ms)
    acks = sorted(write.done_ms for write in history.writes or () if not write.error)
    worst: dict[int, tuple[float, float]] = {}
    for before, after in pairwise(acks):
        place = caused_by(doings, before, after)
        if place is None:
            continue
        known = worst.get(place)
        if known is None or after - before > known[1] - known[0]:
            worst[place] = before, after
    return tuple(
        Stall(cause=mark.what, start_ms=worst[n][0], end_ms=worst[n][1], allowed_ms=mark.stall_ms_max)
        for n, mark in enumerate(doings)
        if n in worst
    )


def caused_by(doings: list[Mark], before_ms: float, after_ms: float) -> int | None:
    """Which of them a gap belongs to; None: nothing was done yet."""
    inside = [n for n, mark in enumerate(doings) if before_ms < mark.at_ms < after_ms]
    if inside:
        return inside[0]
    earlier = [n for n, mark in enumerate(doings) if mark.at_ms <= before_ms]
    return earlier[-1] if earlier else None


def judge_stalls(history: History, stalls: tuple[Stall, ...]) -> tuple[Reason, ...]:
    """Each step within what the drill allows for it. A step whose price was not seen proves nothing."""
    reasons = []
    error_ms = error_of(history)
    for stall in stalls:
        if stall.allowed_ms is not None and stall.ms - error_ms > stall.allowed_ms:
            what = f"{stall.cause}: the client stood still for {stall.ms:.0f} ms"
            reasons.append(invalid(f"{what} (error {error_ms:.0f}), {stall.allowed_ms:.0f} ms allowed"))
    seen = {stall.cause for stall in stalls}
    for mark in history.marks:
        if mark.stall_ms_max is not None and mark.what not in seen:
            reasons.append(unknown(f"{mark.what}: no record was acknowledged after it"))
    return tuple(reasons)
