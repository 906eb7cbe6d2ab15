"""The shipped cores on the corosync engine under simulated misfortune, with all the checks of `cluster_sim.py`."""

from __future__ import annotations

import os

import pytest

from nodewatch import events as ev

from .cluster_sim import misfortune
from .ring_sim import RingSimulation

SEEDS = int(os.environ.get("NODEWATCH_SEEDS", "12"))


def run_seed(seed: int, *, storms: int = 5) -> RingSimulation:
    sim = RingSimulation(seed, nodes=3 if seed % 3 else 5)
    whole = misfortune(sim, storms=storms)
    sim.run_until(whole)
    while (missing := sim.settled()) is not None:
        if sim.now > whole + 20_000:
            sim.fail(f"no recovery within 20 s: {missing}")
        sim.run_until(sim.now + 100)
    return sim


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_is_broken_and_the_cluster_recovers(seed: int) -> None:
    run_seed(seed)


def test_the_simulation_does_take_volumes_over() -> None:
    assert sum(run_seed(seed, storms=3).takeovers for seed in range(4)) > 0


def test_a_lost_node_costs_the_others_no_lease_while_corosync_forms_its_ring() -> None:
    for seed in range(20):
        sim = RingSimulation(seed)
        sim.owner = 3
        sim.run_until(6000 + 37 * seed)
        assert sim.settled() is None, sim.settled()
        told = len(sim.transcript)
        sim.nodes[1 + seed % 2].power_off()
        while sim.now < 9000 + 37 * seed:
            sim.run_until(sim.now + 5)
            assert sim.nodes[3].gate_open(), "\n".join(sim.transcript[told:])
        assert sim.takeovers == 0
        assert any("left corosync's group" in line for line in sim.transcript[told:])


def test_silence_shorter_than_a_lease_makes_no_member_overdue() -> None:
    sim = RingSimulation(1)
    sim.owner = 3
    sim.run_until(6000)
    told = len(sim.transcript)
    sim.nodes[3].paused = True
    sim.run_until(7400)
    sim.nodes[3].resume()
    sim.run_until(9000)
    assert not any("overdue" in line for line in sim.transcript[told:]), "\n".join(sim.transcript[told:])
    assert sim.takeovers == 0


def test_a_member_that_hangs_for_a_whole_lease_is_overdue() -> None:
    sim = RingSimulation(1)
    sim.owner = 3
    sim.run_until(6000)
    sim.nodes[3].paused = True
    sim.run_until(9000)
    assert any("cause=silence" in line for line in sim.transcript)
    assert sim.takeovers == 1


def test_after_a_change_of_the_group_a_node_beats_at_once_and_once_more_before_its_pace() -> None:
    sim = RingSimulation(1)
    sim.run_until(6000)
    watch, now = sim.nodes[2].watch, sim.nodes[2].clock()
    assert watch is not None

    def beats(event: ev.Event) -> bool:
        return any(isinstance(effect, ev.Transmit) and len(effect.to) == 2 for effect in watch.step(event))

    pace_ms = sim.config.timing.heartbeat_ms
    assert beats(ev.GroupChanged(now_ms=now, present=frozenset({1, 2, 3}), quorate=True))
    assert watch.deadline_ms() <= now + pace_ms // 4
    assert beats(ev.Tick(now_ms=now + pace_ms // 4))
    assert not beats(ev.Tick(now_ms=now + pace_ms // 2))
