"""Exercise of what is not in use: long reads through a backup's paths, and a planned swap of roles. Pure.

Theory. A path or a node that is never used fails when it is needed. So in a window that the administrator sets, each
backup reads a part of every LUN through every path, and the leader moves each volume to another node, once. A fault
found this way is an alert while the old server still serves, or serves again; it is no outage.

Rules
  E1  An *occasion* is one opening of the window, named by the local date on which it began. Everything is done at
      most once per occasion, whoever leads. A window that the clock jumps over (summer time) is left out; one that it
      passes twice is one occasion.
  E2  A swap begins only if every node is ready, nothing else is under way, and the leader's own reads of the occasion
      are done without a fault. One volume at a time.
  E3  A swap has failed if the target does not serve within `SWAP_MS`: the placement then gives the volume back, as
      after any failed move. A failed swap is not tried again in the same occasion, and no other one begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from hactl import placement
from hactl.messages import Order
from hactl.placement import Facts, Plan
from hactl.status import node_reasons
from nodewatch.sections import Window

SWAP_MS = 180_000
GOOD = "good"


def occasion(window: Window, local: datetime) -> str:
    """The date on which the window that is open at this local time began; "" = it is not open."""
    minute = local.hour * 60 + local.minute
    crosses = window.end < window.begin
    if minute >= window.begin and (crosses or minute < window.end):
        day = local
    elif crosses and minute < window.end:
        day = local - timedelta(days=1)
    else:
        return ""
    return day.date().isoformat() if day.weekday() in window.days else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one exercise. `text` is GOOD, or what is wrong. `unix_ms`: when it ended."""

    occasion: str
    text: str
    unix_ms: int
    detail: str = ""

    @property
    def good(self) -> bool:
        return self.text == GOOD


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """This node's record: the last result per volume, of reads and of swaps; `next_mb`: where the next read begins."""

    reads: Mapping[str, Result] = field(default_factory=dict)
    swaps: Mapping[str, Result] = field(default_factory=dict)
    next_mb: Mapping[str, int] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def book_from(plain: object) -> Book:
    """The inverse of `Book.to_plain`. ValueError for anything else."""
    try:
        assert isinstance(plain, dict)
        results = {
            kind: {str(name): Result(**each) for name, each in plain[kind].items()} for kind in ("reads", "swaps")
        }
        return Book(**results, next_mb={str(name): int(at) for name, at in plain["next_mb"].items()})
    except (AssertionError, KeyError, TypeError, AttributeError) as wrong:
        raise ValueError(f"not a record of exercises: {wrong!r}") from wrong


def due_reads(book: Book, now: str, standing_by: Iterable[str]) -> list[str]:
    """Volumes that are not served here and were not read in this occasion."""
    return [name for name in sorted(standing_by) if name not in book.reads or book.reads[name].occasion != now]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """A swap that is under way; `order` was the volume's word when it began."""

    volume: str
    source: str
    target: str
    order: Order
    begun_ms: int
    occasion: str


def next_swap(book: Book, now: str, facts: Facts, plan: Plan, swapped: Iterable[str]) -> tuple[str, str]:
    """(volume to move now or "", why none may be moved or ""). `swapped`: volumes whose move of this occasion is in the
    history, whoever led then."""
    failed = [name for name, result in book.swaps.items() if result.occasion == now and not result.good]
    bad_reads = [name for name, result in book.reads.items() if result.occasion == now and not result.good]
    if failed or bad_reads:
        return "", f"a fault was found with {', '.join(sorted({*failed, *bad_reads}))}"
    done = {name for name, result in book.swaps.items() if result.occasion == now} | set(swapped)
    left = [name for name in placement.volumes(facts) if name not in done and _serves(name, facts, plan)]
    if not left:
        return "", ""
    for name, node in sorted(facts.nodes.items()):
        reasons = node_reasons(node)
        if reasons:
            return "", f"{name} is not ready: {reasons[0]}"
    unsettled = [name for name in placement.volumes(facts) if _wanted(name, facts) and not _serves(name, facts, plan)]
    if unsettled:
        return "", f"{unsettled[0]} is not served in peace"
    return left[0], ""


def _wanted(volume: str, facts: Facts) -> bool:
    return placement.latest(volume, facts).wanted == "started"


def _serves(volume: str, facts: Facts, plan: Plan) -> bool:
    """Is it served by the node that has the word, by that word, with its clients back?"""
    word = plan.table.get(volume)
    if word is None or not word.node or plan.prefer.get(volume):
        return False
    report = placement.reports_of(volume, facts).get(word.node)
    return report is not None and report.phase == "serving" and report.order == word.order


def outcome(swap: Swap, facts: Facts, plan: Plan) -> str | None:
    """None = not yet; GOOD; or what went wrong."""
    word = plan.table.get(swap.volume)
    if word is not None and word.order > swap.order and _serves(swap.volume, facts, plan):
        return GOOD if word.node == swap.target else f"{swap.target} could not take it; {word.node} serves it"
    late = facts.now_ms - swap.begun_ms >= SWAP_MS
    return f"{swap.target} does not serve it after {SWAP_MS // 1000} s; see `hactl status`" if late else None


def problems(book: Book) -> list[str]:
    """What the last exercises found, until a later one finds it mended."""
    return [
        f"exercise of {what} of {volume} on {result.occasion}: {result.text}"
        for what, results in (("the paths", book.reads), ("the roles", book.swaps))
        for volume, result in sorted(results.items())
        if not result.good
    ]
