"""One seed from start to recovery, and many of them."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from nodewatch.lease import Timing

from .cluster import Cluster, seams
from .faults import Fault, Misfortune, draw_faults
from .world import Violation, World

RECOVERY_MS = 30_000.0
TIMINGS = (
    Timing(),
    Timing(),
    Timing(),
    Timing(heartbeat_ms=100, overdue_ms=400, lease_ms=1600),
    Timing(heartbeat_ms=300, overdue_ms=1000, lease_ms=2500, gate_slack_ms=600, drift_percent=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a seed says of the cluster, apart from the faults."""

    nodes: int
    links: int
    volumes: int
    persists: bool
    timing: Timing


def draw_setup(seed: int) -> Setup:
    dice = random.Random(f"setup {seed}")
    return Setup(
        nodes=dice.choice((3, 3, 3, 3, 3, 3, 4, 5)),
        links=dice.choice((1, 1, 2)),
        volumes=dice.choice((1, 1, 1, 2)),
        persists=dice.random() < 0.85,
        timing=dice.choice(TIMINGS),
    )


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a seed ended. `violation` is empty if every promise was kept."""

    seed: int
    violation: str = ""
    story: list[str] = field(default_factory=list)
    virtual_ms: float = 0.0
    real_s: float = 0.0
    recovery_ms: float = 0.0
    takeovers: int = 0
    acks: int = 0
    reads: int = 0
    events: int = 0


def run_seed(
    seed: int, *, storms: int = 3, schedule: list[Fault] | None = None, trace: bool = False, **changes: Any
) -> Outcome:
    """Run one seed. `schedule` replaces the faults that the seed draws; `changes` go to the Cluster."""
    setup = draw_setup(seed)
    drawn, whole = draw_faults(seed, setup.nodes, storms)
    world = World(seed, trace=trace)
    outcome = Outcome(seed=seed)
    began = time.process_time()
    with seams(world):
        cluster = Cluster(world, **{**asdict(setup), "timing": setup.timing, **changes})
        try:
            _live(world, cluster, drawn if schedule is None else schedule, whole, outcome)
        except Violation as violation:
            outcome.violation = violation.what
        if trace or outcome.violation:
            outcome.story = world.story()
        outcome.real_s = time.process_time() - began
        outcome.virtual_ms = world.now
        outcome.events = world.events
        checker = cluster.checker
        outcome.takeovers, outcome.acks, outcome.reads = checker.takeovers, checker.acks, checker.reads
        cluster.bury()
    return outcome


def _live(world: World, cluster: Cluster, schedule: list[Fault], whole: float, outcome: Outcome) -> None:
    misfortune = Misfortune(cluster, schedule)
    cluster.start()
    world.run_until(whole)
    cluster.checker.nothing_unhandled()
    misfortune.heal()
    while (missing := cluster.unsettled(whole)) is not None:
        if world.now > whole + RECOVERY_MS:
            world.fail(f"no recovery within {RECOVERY_MS / 1000:.0f} s: {missing}")
        world.run_until(world.now + 100)
        cluster.checker.nothing_unhandled()
    outcome.recovery_ms = world.now - whole
    cluster.checker.at_the_end()


def run_many(seeds: Iterable[int], *, storms: int = 3, processes: int = 1) -> Iterable[Outcome]:
    """Outcomes in the order in which they are done."""
    work = [(seed, storms) for seed in seeds]
    if processes <= 1:
        yield from map(_run_one, work)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(_run_one, work, chunksize=4)


def _run_one(work: tuple[int, int]) -> Outcome:
    seed, storms = work
    return run_seed(seed, storms=storms)
