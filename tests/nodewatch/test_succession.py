"""When a leader falls silent its successor is elected at once: the vote that made it delays nobody."""

from __future__ import annotations

from dataclasses import replace

from nodewatch.election import Claim, Election, Observed
from nodewatch.heartbeat import Role


def claim(role: Role = Role.FOLLOWER, **more: object) -> Claim:
    plain = Claim(term=4, role=role, voted_for=0, supports=0, able=True, hears_me=True)
    return replace(plain, **more)  # type: ignore[arg-type]


def seen(now_ms: int, **claims: Claim) -> Observed:
    return Observed(
        now_ms=now_ms,
        claims={int(name[1:]): each for name, each in claims.items()},
        quorum=True,
        able=True,
        durable_term=4,
        durable_vote=1,
    )


def voter() -> Election:
    """Node 3, which gave its vote of term 4 to node 1."""
    return Election(me=3, needed=2, retry_ms=800, term=4, voted_for=1, wait_from_ms=0)


def test_a_vote_whose_leader_was_heard_does_not_delay_the_next_election() -> None:
    following = voter().step(seen(100, n1=claim(Role.LEADER), n2=claim()))
    assert (following.leader, following.concluded) == (1, True)
    orphaned = following.step(seen(5000, n2=claim(Role.ASPIRANT)))
    assert orphaned.supports == 2


def test_a_vote_that_made_no_leader_yet_is_waited_for() -> None:
    waiting = voter().step(seen(100, n2=claim(Role.ASPIRANT)))
    assert waiting.supports == 0
    assert waiting.step(seen(800, n2=claim(Role.ASPIRANT))).supports == 2


def test_a_new_vote_is_pending_again() -> None:
    following = voter().step(seen(100, n1=claim(Role.LEADER), n2=claim()))
    newer = following.step(seen(200, n2=claim(Role.CANDIDATE, term=5)))
    assert (newer.term, newer.voted_for, newer.concluded) == (5, 2, False)
