from __future__ import annotations

from dataclasses import replace

from nodewatch.election import Claim, Election, Observed
from nodewatch.heartbeat import Role
from nodewatch.lease import STAGGER_MS

RETRY_MS = 800


def claim(**change: object) -> Claim:
    base = Claim(term=5, role=Role.FOLLOWER, voted_for=0, supports=0, able=True, hears_me=True)
    return replace(base, **change)  # type: ignore[arg-type]


def seen(claims: dict[int, Claim] | None = None, **change: object) -> Observed:
    chosen = {1: claim(), 3: claim()} if claims is None else claims
    base = Observed(
        now_ms=10_000, claims=chosen, quorum=len(chosen) + 1 >= 2, able=True, durable_term=5, durable_vote=0
    )
    return replace(base, **change)  # type: ignore[arg-type]


def node(**change: object) -> Election:
    base = Election(me=2, needed=2, retry_ms=RETRY_MS, term=5, wait_from_ms=0)
    return replace(base, **change)  # type: ignore[arg-type]


def test_without_a_leader_a_node_asks_when_its_turn_has_come() -> None:
    waiting = node(wait_from_ms=10_000)
    assert waiting.step(seen()).role == Role.FOLLOWER, "node 1 has a better rank"
    assert waiting.step(seen(now_ms=10_000 + STAGGER_MS)).role == Role.ASPIRANT


def test_the_best_rank_asks_at_once() -> None:
    assert node(me=1, wait_from_ms=10_000).step(seen({2: claim(), 3: claim()})).role == Role.ASPIRANT


def test_without_a_majority_nobody_asks() -> None:
    assert node().step(seen({})).role == Role.FOLLOWER


def test_supporters_make_a_candidate_and_only_a_durable_vote_counts() -> None:
    supported = seen({1: claim(supports=2), 3: claim()})
    candidate = node(role=Role.ASPIRANT, supports=2).step(supported)
    assert (candidate.role, candidate.term, candidate.voted_for) == (Role.CANDIDATE, 6, 2)
    voted = seen({1: claim(term=6, voted_for=2), 3: claim(term=6)})
    assert candidate.step(voted).role == Role.CANDIDATE, "its own vote is not on the disk yet"
    assert candidate.step(replace(voted, durable_term=6, durable_vote=2)).role == Role.LEADER


def test_votes_once_heard_are_not_forgotten() -> None:
    needed_three = node(needed=3, role=Role.CANDIDATE, term=6, voted_for=2, wait_from_ms=10_000)
    first = needed_three.step(seen({1: claim(term=6, voted_for=2), 3: claim(term=6)}, quorum=True))
    second = first.step(seen({3: claim(term=6, voted_for=2)}, quorum=True, durable_term=6, durable_vote=2))
    assert second.role == Role.LEADER


def test_a_node_votes_once_per_term() -> None:
    voter = node(wait_from_ms=10_000).step(seen({1: claim(term=6, role=Role.CANDIDATE), 3: claim()}))
    assert (voter.term, voter.voted_for) == (6, 1)
    both = seen({1: claim(term=6), 3: claim(term=6, role=Role.CANDIDATE)})
    assert voter.step(both).voted_for == 1


def test_who_hears_a_leader_supports_nobody_and_ignores_candidates() -> None:
    follower = node(leader=1)
    claims = {1: claim(role=Role.LEADER), 3: claim(role=Role.ASPIRANT)}
    assert follower.step(seen(claims)).supports == 0
    claims[3] = claim(role=Role.CANDIDATE, term=9)
    assert follower.step(seen(claims)).term == 5


def test_who_gave_its_vote_away_supports_nobody_for_a_while() -> None:
    voter = node(term=6, voted_for=1, wait_from_ms=10_000)
    claims = {1: claim(term=6), 3: claim(term=6, role=Role.ASPIRANT)}
    assert voter.step(seen(claims)).supports == 0
    assert voter.step(seen(claims, now_ms=10_000 + RETRY_MS)).supports == 3


def test_only_an_aspirant_that_hears_us_is_supported() -> None:
    claims = {1: claim(role=Role.ASPIRANT, hears_me=False), 3: claim(role=Role.ASPIRANT)}
    assert node(wait_from_ms=10_000).step(seen(claims)).supports == 3


def test_an_able_node_is_preferred_to_a_lower_number() -> None:
    claims = {1: claim(role=Role.ASPIRANT, able=False), 3: claim(role=Role.ASPIRANT)}
    assert node(wait_from_ms=10_000).step(seen(claims)).supports == 3


def test_a_leader_without_a_majority_stops_at_once() -> None:
    leader = node(role=Role.LEADER, leader=2)
    assert leader.step(seen({1: claim()})).role == Role.LEADER
    stopped = leader.step(seen({}))
    assert (stopped.role, stopped.leader) == (Role.FOLLOWER, 0)


def test_a_leader_that_hears_a_higher_term_follows() -> None:
    leader = node(role=Role.LEADER, leader=2)
    deposed = leader.step(seen({1: claim(term=7, role=Role.LEADER), 3: claim()}))
    assert (deposed.role, deposed.leader, deposed.term) == (Role.FOLLOWER, 1, 7)


def test_an_unable_leader_gives_way_to_an_able_node_only() -> None:
    leader = node(role=Role.LEADER, leader=2)
    assert leader.step(seen(able=False)).role == Role.FOLLOWER
    assert leader.step(seen({1: claim(able=False), 3: claim(able=False)}, able=False)).role == Role.LEADER


def test_a_candidacy_that_leads_nowhere_is_given_up() -> None:
    candidate = node(role=Role.CANDIDATE, term=6, voted_for=2, wait_from_ms=10_000)
    claims = {1: claim(term=6), 3: claim(term=6)}
    assert candidate.step(seen(claims)).role == Role.CANDIDATE
    assert candidate.step(seen(claims, now_ms=10_000 + RETRY_MS)).role == Role.FOLLOWER


def test_two_leaders_of_one_term_are_noticed() -> None:
    leader = node(role=Role.LEADER, leader=2)
    assert leader.step(seen({1: claim(role=Role.LEADER), 3: claim()})).rivals == {1}


def test_a_second_look_at_the_same_changes_nothing() -> None:
    for observed in (seen(), seen({1: claim(role=Role.LEADER), 3: claim()}), seen({1: claim(supports=2), 3: claim()})):
        once = node().step(observed)
        assert once.step(observed) == once
