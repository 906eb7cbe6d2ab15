"""Nodes come and go while volumes are served: the rules of `membership.py`, alone and under simulated misfortune.

NODEWATCH_SEEDS=N runs N seeds instead of the default; a failing seed replays exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest

from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.core import NodeWatch
from nodewatch.membership import NO_DIGEST, Change, ChangeRefused, Membership, change_from, next_keys
from nodewatch.stable import Stable, from_text, to_text

from . import broken_cores as broken
from .change_sim import ChangingSimulation, run_changing_seed
from .cluster_sim import Violation, cluster

SEEDS = int(os.environ.get("NODEWATCH_SEEDS", "10"))
N4 = NodeConfig(name="n4", number=4, address="10.0.0.4")
A, B, C = "a" * 16, "b" * 16, "c" * 16


def change(
    config: ClusterConfig, *, add: NodeConfig | None = None, remove: int = 0, keys: tuple[str, ...] = ()
) -> Change:
    return Change(version=config.version + 1, previous=config.digest().hex(), add=add, remove=remove, keys=keys)


# --- one change ---------------------------------------------------------------------------------------------------


def test_a_change_makes_the_next_version_and_names_the_one_before() -> None:
    config = cluster(3)
    following = change(config, add=N4).applied(config)
    assert [node.number for node in following.nodes] == [1, 2, 3, 4]
    assert (following.version, following.previous) == (2, config.digest().hex())
    assert [node.number for node in change(following, remove=2).applied(following).nodes] == [1, 3, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        Change(version=2, previous="0" * 16, remove=3),
        replace(change(cluster(3), remove=3), version=3),
        change(cluster(3), remove=9),
        change(cluster(3)),
        change(cluster(3), add=N4, remove=3),
        change(cluster(3), add=replace(N4, number=3)),
        change(cluster(3), add=replace(N4, name="n1")),
        change(cluster(3), keys=(A,)),
        change(cluster(3), keys=(A, A)),
    ],
)
def test_a_change_that_does_not_fit_is_refused(wrong: Change) -> None:
    with pytest.raises(ChangeRefused):
        wrong.applied(cluster(3))


def test_the_last_node_stays() -> None:
    alone = cluster(1)
    with pytest.raises(ChangeRefused, match="last node"):
        change(alone, remove=1).applied(alone)


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        ((), (A, B), True),
        ((A,), (A, B), True),
        ((A,), (B, A), False),
        ((A, B), (B, A), True),
        ((B, A), (B,), True),
        ((A, B), (A,), True),
        ((A, B), (B,), False),
        ((A, B), (A, C), False),
        ((A,), (B,), False),
    ],
)
def test_what_one_node_seals_its_neighbour_in_version_can_open(
    before: tuple[str, ...], after: tuple[str, ...], good: bool
) -> None:
    """The first key seals. Each step that is allowed keeps that true, and the others are refused."""
    config = replace(cluster(3), keys=before)
    if good:
        assert change(config, keys=after).applied(config).keys == after
        assert not before or (before[0] in after and after[0] in before)
    else:
        with pytest.raises(ChangeRefused):
            change(config, keys=after).applied(config)


def test_the_steps_of_a_new_key_lead_to_it() -> None:
    assert next_keys((A, B)) == [(B, A), (A,)]
    assert next_keys((B, A))[1] == (B,)
    assert next_keys((B,)) == []


@pytest.mark.parametrize(
    "one", [change(cluster(3), add=N4), change(cluster(3), remove=1), change(cluster(3), keys=(A, B))]
)
def test_a_change_survives_json_and_the_stable_file(one: Change) -> None:
    assert change_from(one.to_plain()) == one
    books = Membership(cluster(3), 1, None)
    books.accept(7, one, one.applied(cluster(3)).digest().hex())
    stable = Stable(generation=3, term=7, voted_for=2, promises=((2, 5, 6),), accepted=books.accepted)
    assert from_text(to_text(stable)) == stable


@pytest.mark.parametrize("garbage", [{}, {"version": 2}, {**change(cluster(3), remove=1).to_plain(), "version": "2"},
                                     {**change(cluster(3), remove=1).to_plain(), "add": {"colour": "red"}},
                                     {**change(cluster(3), remove=1).to_plain(), "add": 5}])  # fmt: skip
def test_what_is_no_change_is_refused(garbage: dict[str, object]) -> None:
    with pytest.raises(ChangeRefused):
        change_from(garbage)


# --- who counts ---------------------------------------------------------------------------------------------------


class Says(NamedTuple):
    """The part of a heartbeat that these rules read."""

    digest: bytes
    config_version: int
    previous: bytes
    term: int = 5
    durable_term: int = 5
    accepted_term: int = 0
    accepted: bytes = NO_DIGEST


def of(config: ClusterConfig, **rest: object) -> Says:
    return Says(config.digest(), config.version, bytes.fromhex(config.previous) or NO_DIGEST)._replace(**rest)


V1 = cluster(3)
V2 = change(V1, add=N4).applied(V1)
V3 = change(V2, remove=3).applied(V2)
OTHER_V2 = change(V1, remove=3).applied(V1)


def test_neighbours_in_version_count_for_each_other_and_nobody_else_does() -> None:
    for mine, other, counts in (
        (V1, V1, True), (V1, V2, True), (V2, V1, True), (V2, V3, True),
        (V1, V3, False), (V3, V1, False), (V2, OTHER_V2, False), (V3, OTHER_V2, False), (OTHER_V2, V1, True),
    ):  # fmt: skip
        assert Membership(mine, 1, None).counts(of(other)) is counts, (mine.version, other.version)


def test_a_first_version_has_nobody_before_it() -> None:
    stranger = replace(V1, name="other", version=1)
    assert not Membership(V1, 1, None).counts(Says(stranger.digest(), 0, NO_DIGEST))
    assert not Membership(V1, 1, None).counts(Says(NO_DIGEST, 0, NO_DIGEST))


def test_who_accepted_grants_nothing_to_those_behind_nor_to_who_leaves() -> None:
    books = Membership(V2, 1, None)
    assert books.grants(2, of(V1)) and books.grants(3, of(V2))
    books.accept(5, change(V2, remove=3), V3.digest().hex())
    assert not books.grants(2, of(V1)) and not books.grants(3, of(V2))
    assert books.grants(2, of(V2)) and books.grants(2, of(V3))
    assert books.counts(of(V1)) and not books.leaving


def test_who_accepted_its_own_removal_is_leaving_also_after_a_restart() -> None:
    books = Membership(V2, 3, None)
    books.accept(5, change(V2, remove=3), V3.digest().hex())
    assert Membership(V2, 3, books.accepted).leaving
    assert not Membership(V3, 1, books.accepted).leaving


def test_another_change_is_not_accepted_in_the_same_term_nor_an_older_one_after_it() -> None:
    books = Membership(V1, 1, None)
    books.accept(5, change(V1, add=N4), V2.digest().hex())
    books.accept(5, change(V1, add=N4), V2.digest().hex())
    for term in (4, 5):
        with pytest.raises(ChangeRefused):
            books.accept(term, change(V1, remove=3), OTHER_V2.digest().hex())
    books.accept(6, change(V1, remove=3), OTHER_V2.digest().hex())
    assert books.accepted is not None and books.accepted.digest == OTHER_V2.digest().hex()


def test_a_change_that_makes_something_else_here_is_not_accepted() -> None:
    with pytest.raises(ChangeRefused, match="was meant"):
        Membership(V1, 1, None).accept(5, change(V1, add=N4), OTHER_V2.digest().hex())


# --- the leader's books -------------------------------------------------------------------------------------------


def leads(
    books: Membership, heard: dict[int, Says], *, durable_term: int = 5, settled: bool = True, now: int = 0
) -> str:
    books.lead(now, 5, durable_term=durable_term, durable=books.accepted, heard=heard, needed=2, bars_settled=settled)
    return books.may_propose(V2.digest().hex())


def test_a_leader_proposes_only_with_a_majority_at_its_version_and_in_its_term() -> None:
    books = Membership(V1, 1, None)
    assert leads(books, {2: of(V1)}) == ""
    assert "needed nodes" in leads(books, {2: of(V1, durable_term=4)})
    assert "needed nodes" in leads(books, {2: of(V1, term=4, durable_term=4)})
    assert "needed nodes" in leads(books, {2: of(V1)}, durable_term=4)
    assert "chosen already" in leads(books, {2: of(V1), 3: of(OTHER_V2)})
    assert "barred" in leads(books, {2: of(V1)}, settled=False)


def test_what_an_earlier_leader_began_comes_first() -> None:
    books = Membership(V1, 1, None)
    begun = {2: of(V1, accepted_term=3, accepted=OTHER_V2.digest()), 3: of(V1, accepted_term=2, accepted=V2.digest())}
    assert "comes first" in leads(books, begun)
    assert books.must_take == (2, OTHER_V2.digest())
    assert books.may_propose(OTHER_V2.digest().hex()) == ""


def test_a_change_is_chosen_by_a_majority_of_the_old_configuration_and_made_guard_ms_later() -> None:
    books = Membership(V1, 1, None)
    assert leads(books, {2: of(V1)}) == ""
    books.accept(5, change(V1, add=N4), V2.digest().hex())
    assert "under way" in leads(books, {2: of(V1, accepted_term=4, accepted=V2.digest())}, now=10)
    assert books.safe_in_ms(10) is None
    leads(books, {2: of(V1, accepted_term=5, accepted=V2.digest())}, now=1000)
    assert books.accepted_by == (1, 2)
    assert books.safe_in_ms(1000) == V1.timing.guard_ms
    assert books.safe_in_ms(1000 + V1.timing.guard_ms) == 0


# --- under misfortune ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_promise_is_broken_while_nodes_come_and_go(seed: int) -> None:
    run_changing_seed(seed)


def scene(core: type[NodeWatch] = NodeWatch) -> ChangingSimulation:
    """n1 leads, n3 serves; the server's clock is slow, the others' are fast."""
    sim = ChangingSimulation(1, core=core, members=3)
    sim.owner = 3
    sim.daemon_notices = 0.0
    for number, node in sim.nodes.items():
        node.rate = 0.95 if number == 3 else 1.05
    sim.run_until(5000)
    assert sim.settled() is None, sim.settled()
    return sim


def test_six_changes_and_no_lease_lapses() -> None:
    sim = scene()
    for what in ({"add": 4}, {"remove": 2}, {"add": 5}, {"add": 6}, {"remove": 4}, {"remove": 5}):
        sim.wish(**what)
        until, goal = sim.now + 12_000, sim.newest.version + 1
        while sim.settled() is not None or sim.newest.version < goal:
            sim.run_until(sim.now + 100)
            assert sim.now < until, sim.settled()
            assert sim.nodes[3].gate_open()
    assert sim.changes == 6 and sim.newest.version == 7
    lost = [line for line in sim.transcript if line.endswith("n3 lease lost")]
    assert not lost and sim.takeovers == 0


def server_is_removed_and_does_not_hear_of_it(core: type[NodeWatch]) -> ChangingSimulation:
    """n2 goes on hearing it, and grants it acknowledgements for as long as the rules allow."""
    sim = scene(core)
    sim.network.cuts.update({(1, 3), (3, 1)})
    sim.wish(remove=3)
    sim.run_until(12_000)
    assert sim.newest.version == 2 and sim.takeovers == 1
    return sim


def leader_is_lost_when_it_alone_has_moved(core: type[NodeWatch]) -> ChangingSimulation:
    sim = scene(core)
    sim.wish(add=4)
    while sim.hosts[1].cluster.version == 1:
        sim.run_until(sim.now + 5)
        sim.letters_lost = any("version=2 chosen" in line for line in sim.transcript)
        assert sim.now < 12_000
    sim.hosts[1].power_off()
    sim.letters_lost = False
    sim.wish(add=5)
    sim.run_until(sim.now + 12_000)
    return sim


def offers_of_the_leader_are_lost(core: type[NodeWatch]) -> ChangingSimulation:
    sim = scene(core)
    sim.letters_lost = True
    sim.wish(add=4)
    sim.run_until(sim.now + 4000)
    sim.hosts[1].power_off()
    sim.letters_lost = False
    sim.wish(add=5)
    sim.run_until(sim.now + 12_000)
    return sim


Story = Callable[[type[NodeWatch]], ChangingSimulation]
STORIES: list[tuple[Story, type[NodeWatch]]] = [
    (server_is_removed_and_does_not_hear_of_it, broken.MovesAtOnce),
    (server_is_removed_and_does_not_hear_of_it, broken.Unsealed),
    (leader_is_lost_when_it_alone_has_moved, broken.ForgetsWhatWasAccepted),
    (offers_of_the_leader_are_lost, broken.ChosenByOne),
]


@pytest.mark.parametrize("story", sorted({story for story, _ in STORIES}, key=lambda story: story.__name__))
def test_the_shipped_core_keeps_its_promises_when(story: Story) -> None:
    sim = story(NodeWatch)
    sim.network.cuts.clear()
    sim.hosts[1].daemon_up = True
    sim.hosts[1].start()
    sim.run_until(sim.now + 10_000)
    assert sim.settled() is None, sim.settled()


@pytest.mark.parametrize(("story", "core"), STORIES, ids=[core.__name__ for _, core in STORIES])
def test_a_broken_rule_is_noticed_when(story: Story, core: type[NodeWatch]) -> None:
    with pytest.raises(Violation):
        story(core)
