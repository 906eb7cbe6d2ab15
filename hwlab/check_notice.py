"""Did a fenced host learn it from its kernel, and when? Pure.

What hactld of the old primary wrote decides: it says of each notice that it came, and of the loss of its handle whether
a notice led to the check that found it, or the clock. That it was fenced, and when, only the target says.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwlab.check_disk import Fenced, departures
from hwlab.history import History, Notice
from hwlab.reason import Reason, invalid, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """`low_ms` to `high_ms`: from the moment that counts until hactld knew of its loss; None: it never did."""

    low_ms: float | None = None
    high_ms: float | None = None
    reasons: tuple[Reason, ...] = ()


def judge_notice(history: History) -> Told:
    """Counted from the fence, or from the return of the storage network after it: no notice can come before that."""
    why, name = history.wanted.told_by, history.primary
    if not why:
        return Told()
    if history.notices is None:
        return Told(reasons=(unknown(f"the journal of hactld on {name} was not read"),))
    number = next(node for node, each in history.nodes.items() if each == name)
    fence = next((each for each in departures(history.reservations) if each.node == number), None)
    if fence is None:
        return Told(reasons=(invalid(f"{name} was never fenced"),))
    since_ms, at_ms = zero(history, fence)
    after = [each for each in history.notices if each.at_ms >= since_ms - history.uncertainty_ms]
    loss = next((each for each in after if each.lost), None)
    if loss is None:
        return Told(reasons=(invalid(f"{name} did not notice that it was fenced"),))
    told = Told(low_ms=max(0.0, loss.at_ms - at_ms), high_ms=loss.at_ms - since_ms)
    return Told(low_ms=told.low_ms, high_ms=told.high_ms, reasons=wrong(history, after, loss, told))


def wrong(history: History, after: list[Notice], loss: Notice, told: Told) -> tuple[Reason, ...]:
    why, most_ms, name = history.wanted.told_by, history.wanted.told_ms_max, history.primary
    assert told.low_ms is not None
    heard = [each for each in after if each.text == why]
    if not heard:
        return (invalid(f"no `{why}` reached hactld of {name}"),)
    if not loss.prompted:
        return (unknown(f"{name} found its loss by the clock, before the notice could lead to a check"),)
    if heard[0].at_ms > loss.at_ms:
        return (invalid(f"{name} was told by something else than `{why}`, which came later"),)
    if most_ms is not None and told.low_ms - history.uncertainty_ms > most_ms:
        return (invalid(f"{name} knew of its loss after {told.low_ms:.0f} ms, {most_ms:.0f} ms allowed"),)
    return ()


def zero(history: History, fence: Fenced) -> tuple[float, float]:
    """(earliest, latest): the fence itself, or what brought the storage network back after it."""
    back = [
        (mark.at_ms, mark.until_ms or mark.at_ms)
        for mark in history.marks
        if mark.what == f"heal-storage {history.primary}" and mark.at_ms > fence.at_ms
    ]
    return back[0] if back else (fence.since_ms, fence.at_ms)
