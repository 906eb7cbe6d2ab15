"""The shipped cores under simulated misfortune; and proof that the simulation would notice if a rule were broken.

NODEWATCH_SEEDS=N runs N seeds instead of the default; a failing seed replays exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from nodewatch import events as ev
from nodewatch.core import NodeWatch

from . import broken_cores as broken
from .cluster_sim import Simulation, Violation, run_links_seed, run_seed

SEEDS = int(os.environ.get("NODEWATCH_SEEDS", "24"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_is_broken_and_the_cluster_recovers(seed: int) -> None:
    run_seed(seed)


@pytest.mark.parametrize("seed", range(SEEDS // 2))
def test_no_promise_is_broken_with_several_links_that_fail(seed: int) -> None:
    run_links_seed(seed)


def test_a_seed_replays_exactly() -> None:
    assert run_seed(7, storms=2).transcript == run_seed(7, storms=2).transcript


def test_the_simulation_does_take_volumes_over() -> None:
    assert sum(run_seed(seed, storms=3).takeovers for seed in range(4)) > 0


# Each scene is a short story that only the broken rule makes end badly. n3 serves, n1 leads.


def scene(core: type[NodeWatch]) -> Simulation:
    sim = Simulation(1, core=core)
    sim.owner = 3
    sim.daemon_notices = 0.0
    for number, node in sim.nodes.items():
        node.rate = 0.95 if number == 3 else 1.05  # the worst: the server's clock is slow, the judges' are fast
    sim.run_until(5000)
    assert sim.settled() is None, sim.settled()
    return sim


def cut(sim: Simulation, *links: tuple[int, int]) -> None:
    sim.network.cuts.update(links)


def heal(sim: Simulation, *links: tuple[int, int]) -> None:
    sim.network.cuts.difference_update(links)


def server_falls_mute(core: type[NodeWatch]) -> Simulation:
    """It goes on hearing acknowledgements of its last heartbeat, and so renews its gate as late as it may."""
    sim = scene(core)
    cut(sim, (3, 1), (3, 2))
    sim.run_until(12_000)
    assert sim.takeovers == 1
    return sim


def server_falls_mute_on_a_slow_network(core: type[NodeWatch]) -> Simulation:
    sim = scene(core)
    sim.network.delay_ms = (300, 300)
    sim.run_until(8000)
    cut(sim, (3, 1), (3, 2))
    sim.run_until(14_000)
    return sim


def server_is_fenced_while_only_the_other_node_hears_it(core: type[NodeWatch]) -> Simulation:
    sim = scene(core)
    cut(sim, (3, 1), (1, 3))
    leader = sim.nodes[1]
    leader.feed(ev.BarWanted(now_ms=leader.clock(), node="n3"))
    sim.run_until(12_000)
    assert sim.takeovers == 1
    return sim


def node_watch_of_the_server_restarts_without_its_daemon(core: type[NodeWatch]) -> Simulation:
    sim = scene(core)
    server = sim.nodes[3]
    server.kill()
    server.daemon_away_until = sim.now + 4000
    sim.after(50, server.start)
    sim.run_until(12_000)
    assert sim.takeovers == 1
    return sim


def server_is_fenced_and_does_not_hear_the_leader(core: type[NodeWatch]) -> Simulation:
    sim = scene(core)
    cut(sim, (1, 3))
    leader = sim.nodes[1]
    leader.feed(ev.BarWanted(now_ms=leader.clock(), node="n3"))
    sim.run_until(12_000)
    assert sim.takeovers == 1
    return sim


def promiser_restarts_and_hears_only_the_old_server(core: type[NodeWatch]) -> Simulation:
    sim = scene(core)
    cut(sim, (3, 1), (1, 3), (3, 2), (2, 3))
    sim.run_until(8000)
    assert sim.takeovers == 1
    sim.nodes[2].kill()
    cut(sim, (1, 2))
    heal(sim, (3, 2), (2, 3))
    sim.after(100, sim.nodes[2].start)
    sim.run_until(9500)
    heal(sim, (1, 2), (3, 1), (1, 3))
    sim.run_until(12_000)
    return sim


def acknowledger_restarts_after_the_leader_lost_the_server(core: type[NodeWatch]) -> Simulation:
    """The server's lease rests on acknowledgements that their giver has forgotten."""
    sim = scene(core)
    cut(sim, (3, 1))
    sim.run_until(5600)
    cut(sim, (3, 2))
    sim.nodes[2].kill()
    sim.after(60, sim.nodes[2].start)
    sim.run_until(12_000)
    assert sim.takeovers == 1
    return sim


def voter_crashes_before_its_vote_is_on_the_disk(core: type[NodeWatch]) -> Simulation:
    sim = Simulation(1, core=core)
    cut(sim, (1, 3), (3, 1), (2, 3), (3, 2))
    voter = sim.nodes[2]
    while not any(line.endswith("leader=n1") for line in sim.transcript):
        sim.run_until(sim.now + 0.25)
        if sim.now > 5000:
            raise AssertionError("n1 never won")
    voter.kill()
    cut(sim, (1, 2), (2, 1))
    heal(sim, (2, 3), (3, 2))
    sim.after(100, voter.start)
    sim.run_until(sim.now + 4000)
    heal(sim, (1, 2), (2, 1), (1, 3), (3, 1))
    sim.run_until(sim.now + 4000)
    return sim


Scene = Callable[[type[NodeWatch]], Simulation]
SCENES: list[tuple[Scene, type[NodeWatch]]] = [
    (server_falls_mute, broken.NoGuardForDrift),
    (server_falls_mute, broken.RenewsToTheLastMoment),
    (server_falls_mute_on_a_slow_network, broken.LeaseFromTheAnswer),
    (server_is_fenced_while_only_the_other_node_hears_it, broken.AcknowledgesTheBarred),
    (node_watch_of_the_server_restarts_without_its_daemon, broken.GivesUpAtBirth),
    (server_is_fenced_and_does_not_hear_the_leader, broken.LiftsOnDemand),
    (promiser_restarts_and_hears_only_the_old_server, broken.ForgetsAndSpeaksAtOnce),
    (acknowledger_restarts_after_the_leader_lost_the_server, broken.AgesOfAnotherLife),
    (voter_crashes_before_its_vote_is_on_the_disk, broken.VotesBeforeTheDisk),
]


@pytest.mark.parametrize("story", sorted({story for story, _ in SCENES}, key=lambda story: story.__name__))
def test_the_shipped_core_keeps_its_promises_when(story: Scene) -> None:
    sim = story(NodeWatch)
    sim.network.cuts.clear()
    sim.network.delay_ms = (0.2, 2.0)
    sim.run_until(sim.now + 6000)
    assert sim.settled() is None, sim.settled()


@pytest.mark.parametrize(("story", "core"), SCENES, ids=[core.__name__ for _, core in SCENES])
def test_a_broken_rule_is_noticed_when(story: Scene, core: type[NodeWatch]) -> None:
    with pytest.raises(Violation):
        story(core)
