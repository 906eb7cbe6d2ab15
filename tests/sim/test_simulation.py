"""The shipped code under simulated misfortune. `make sim` runs a thousand seeds, `make soak` runs for hours.

SIM_SEEDS=N runs N seeds here. A failing seed prints itself; see docs/simulation.md.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .faults import draw_faults
from .run import draw_setup, run_seed
from .shrink import shrink

SEEDS = int(os.environ.get("SIM_SEEDS", "8"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_is_broken_and_every_client_is_served_again(seed: int) -> None:
    outcome = run_seed(seed)
    assert not outcome.violation, "\n".join([f"seed {seed}: {outcome.violation}", *outcome.story[-60:]])
    assert outcome.acks > 10 and outcome.reads > 10, "the clients got nothing done"


def test_the_simulation_does_take_volumes_over() -> None:
    assert sum(run_seed(seed).takeovers - draw_setup(seed).volumes for seed in range(4)) > 4


def test_a_seed_replays_exactly_also_in_another_process_with_other_hashes() -> None:
    again = "from tests.sim.run import run_seed; print('\\n'.join(run_seed(5, trace=True).story))"
    stories = [
        subprocess.run(
            [sys.executable, "-c", again],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert stories[0] == stories[1]
    assert "".join(stories[0].split()) == "".join("".join(run_seed(5, trace=True).story).split())


def test_a_schedule_shrinks_to_the_faults_that_matter() -> None:
    schedule, _ = draw_faults(3, 3, 4)
    culprits = {schedule[1], schedule[-2]}

    def breaks(part: list[object]) -> bool:
        kinds = [(fault.at, fault.kind) for fault in part]  # type: ignore[attr-defined]
        return all((culprit.at, culprit.kind) in kinds for culprit in culprits)

    smallest = shrink(schedule, breaks)  # type: ignore[arg-type]
    assert [(fault.at, fault.kind) for fault in smallest] == sorted((f.at, f.kind) for f in culprits)
    assert all(fault.lasts <= 50 for fault in smallest)
