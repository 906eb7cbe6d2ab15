"""`python -m tests.sim`: seeds, a replay, a shrunken schedule, hours of seeds.

--seeds 1000            the first thousand; --first N begins elsewhere
--seed N [--trace]      one, exactly as it always is; --trace prints everything
--seed N --shrink       the smallest part of its faults that still breaks the promise
--soak HOURS            new seeds until the time is over; goes on after a failure
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from .faults import draw_faults
from .run import Outcome, draw_setup, run_many, run_seed
from .shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulation of the shipped code.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--soak", type=float, metavar="HOURS")
    parser.add_argument("--storms", type=int, help="storms of faults in each seed (default 3, in a soak 8)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    storms = options.storms or (8 if options.soak else 3)
    if options.seed is not None:
        return replay(options.seed, storms, trace=options.trace, smaller=options.shrink)
    seeds: Iterable[int] = range(options.first, options.first + options.seeds)
    deadline = None
    if options.soak:
        seeds, deadline = itertools.count(options.first or int(time.time())), time.monotonic() + options.soak * 3600
    return campaign(seeds, storms, options.jobs, deadline)


def replay(seed: int, storms: int, *, trace: bool, smaller: bool) -> int:
    if smaller:
        return print_smallest(seed, storms)
    outcome = run_seed(seed, storms=storms, trace=trace)
    print("\n".join(outcome.story))
    print(f"seed {seed}: {outcome.violation or 'every promise kept'}")
    print(f"{outcome.virtual_ms / 1000:.1f} s virtual, {outcome.real_s:.2f} s of CPU, {outcome.events} events")
    return 1 if outcome.violation else 0


def print_smallest(seed: int, storms: int) -> int:
    whole = run_seed(seed, storms=storms)
    if not whole.violation:
        print(f"seed {seed} keeps every promise")
        return 0
    print(f"seed {seed}: {whole.violation}")
    schedule, _ = draw_faults(seed, draw_setup(seed).nodes, storms)
    smallest = shrink(schedule, lambda part: bool(run_seed(seed, storms=storms, schedule=part).violation))
    print(f"{len(smallest)} of {len(schedule)} faults are enough:")
    for fault in smallest:
        print(f"  {fault}")
    last = run_seed(seed, storms=storms, schedule=smallest)
    print(f"with them: {last.violation}")
    print("\n".join(last.story[-40:]))
    return 1


@dataclass(slots=True)
class Summary:
    runs: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    takeovers: int = 0
    acks: int = 0
    reads: int = 0
    recoveries: list[float] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.virtual_s += outcome.virtual_ms / 1000
        self.cpu_s += outcome.real_s
        self.takeovers += outcome.takeovers
        self.acks += outcome.acks
        self.reads += outcome.reads
        if outcome.violation:
            self.failed.append(outcome)
        else:
            self.recoveries.append(outcome.recovery_ms)

    def text(self, wall_s: float) -> str:
        ordered = sorted(self.recoveries) or [0.0]
        return (
            f"simulation: {self.runs} seeds, {len(self.failed)} failed; {self.takeovers} acquisitions, {self.acks} "
            f"acknowledged writes, {self.reads} reads; recovery median {ordered[len(ordered) // 2]:.0f} ms, worst "
            f"{ordered[-1]:.0f} ms\n"
            f"{self.virtual_s:.0f} s virtual in {self.cpu_s:.0f} s of CPU: "
            f"{self.virtual_s / max(self.cpu_s, 0.001):.0f} : 1 on one core; {wall_s:.0f} s on the clock"
        )


def campaign(seeds: Iterable[int], storms: int, jobs: int, deadline: float | None) -> int:
    summary, began = Summary(), time.monotonic()
    for outcome in run_many(seeds, storms=storms, processes=jobs):
        summary.add(outcome)
        if outcome.violation:
            print(failure_text(outcome, storms), flush=True)
        if deadline is not None and summary.runs % 500 == 0:
            print(summary.text(time.monotonic() - began), flush=True)
        if deadline is not None and time.monotonic() >= deadline:
            break
    print(summary.text(time.monotonic() - began))
    return 1 if summary.failed else 0


def failure_text(outcome: Outcome, storms: int) -> str:
    """What one needs to see it again: seed, commit, command."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    commit = found.stdout.strip() or "unknown commit"
    again = f"python -m tests.sim --seed {outcome.seed} --storms {storms}"
    return f"FAILED seed {outcome.seed} at {commit}: {outcome.violation}\n  again: {again} --trace   or   --shrink"


if __name__ == "__main__":
    sys.exit(main())
