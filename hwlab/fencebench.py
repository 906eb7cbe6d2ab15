"""How long it takes to fence: two nodes take a set of LUNs from each other in turn, each time with the shipped code.

The figures are the taker's own, by its clock (`fencing/_trial.py` says what each covers). The LUNs are files of the
lab's one target; nobody writes to them meanwhile, so PREEMPT AND ABORT has nothing to wait for.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from hwlab import strategy
from hwlab.lunrace import Racer, must, place
from hwlab.protocols import Host, Lab, Progress
from hwlab.topology import Role

ROUNDS = 20
SIZES = (1, 8, 100)
SIZE_MB = 8
SERIAL = "bea7"
PREEMPT_MS_MAX = 10.0
"""One LUN, from PREEMPT AND ABORT to the read that proves it, median."""
SET_MS_MAX = 1000.0
"""A hundred LUNs, from the first command that changes one to the proof of the last, median."""
FENCE_SCSI_MS = (1500.0, 2500.0)
"""What fence_scsi's `off` takes for one LUN in such a lab."""


@dataclass(slots=True, kw_only=True)
class Result:
    """Milliseconds of each takeover of a set of `luns` LUNs; `preempt_ms` has one of each LUN."""

    luns: int
    preempt_ms: list[float] = field(default_factory=list)
    fence_ms: list[float] = field(default_factory=list)
    acquire_ms: list[float] = field(default_factory=list)
    verify_ms: list[float] = field(default_factory=list)


def run(lab: Lab, say: Progress, *, rounds: int = ROUNDS, sizes: Sequence[int] = SIZES) -> list[Result]:
    """Measure; LabError where the lab broke."""
    lab.up(say)
    nodes = strategy.with_role(lab, Role.NODE)[:2]
    strategy.install(nodes, say)
    results = []
    with place(lab, max(sizes), SIZE_MB, SERIAL, say) as where:
        for luns in sizes:
            say(f"{luns} LUNs: {rounds} takeovers")
            takers = [(host, named[:luns]) for host, named in where.nodes[:2]]
            results.append(_measured(takers, luns, rounds))
    return results


def _measured(nodes: Sequence[tuple[Host, Sequence[str]]], luns: int, rounds: int) -> Result:
    result = Result(luns=luns)
    with ExitStack() as stack:
        takers = [Racer(host, number, named) for number, (host, named) in enumerate(nodes, start=1)]
        for taker in takers:
            stack.callback(taker.end)
        must(takers[0].ask(do="make"))
        must(takers[1].ask(do="acquire"))  # the first one starts threads, opens descriptors, gets UNIT ATTENTIONs
        for number in range(rounds):
            taker = takers[number % 2]
            took = must(taker.ask(do="acquire"))
            result.preempt_ms += took["preempt_ms"]
            result.fence_ms.append(took["fence_ms"])
            result.acquire_ms.append(took["acquire_ms"])
            result.verify_ms.append(must(taker.ask(do="verify"))["took_ms"])
    return result


def kept(results: Sequence[Result]) -> bool:
    """Are the promised times kept?"""
    for result in results:
        if result.luns == 1 and statistics.median(result.preempt_ms) > PREEMPT_MS_MAX:
            return False
        if result.luns == 100 and statistics.median(result.fence_ms) > SET_MS_MAX:
            return False
    return True


NAMES = ("preempt_ms", "fence_ms", "acquire_ms", "verify_ms")


def as_dict(results: Sequence[Result]) -> dict[str, Any]:
    return {
        "schema": 1,
        "promised": {"preempt_ms": PREEMPT_MS_MAX, "hundred_luns_fence_ms": SET_MS_MAX},
        "kept": kept(results),
        "sets": [
            {"luns": result.luns, "takeovers": len(result.fence_ms)}
            | {name: spread_of(getattr(result, name)) for name in NAMES}
            for result in results
        ],
    }


def spread_of(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": min(values), "max": max(values)}


def as_text(results: Sequence[Result]) -> str:
    """A table for people."""
    head = ("preempt + proof", "fence all", "acquire all", "verify all")
    lines = [f"{'LUNs':>5} {'runs':>5} " + " ".join(f"{each:>24}" for each in head)]
    for result in results:
        shown = []
        for name in NAMES:
            values = spread_of(getattr(result, name))
            shown.append(f"{values['median']:.1f} ({values['min']:.1f} to {values['max']:.1f})")
        lines.append(f"{result.luns:>5} {len(result.fence_ms):>5} " + " ".join(f"{each:>24}" for each in shown))
    low, high = FENCE_SCSI_MS
    lines += [
        "ms, median (min to max). preempt + proof: one LUN, PREEMPT AND ABORT to read back. fence all: from the first",
        "command that changes a LUN to the last proof. acquire all: with surveys, durable epoch, labels, last look.",
        f"promised: preempt + proof {PREEMPT_MS_MAX:.0f} ms; fence 100 LUNs {SET_MS_MAX:.0f} ms. "
        f"fence_scsi off: {low:.0f} to {high:.0f} ms for one LUN",
    ]
    return "\n".join(lines)
