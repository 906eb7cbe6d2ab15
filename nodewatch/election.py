"""Who leads? Raft's election, on heartbeats that carry the sender's whole state.

    FOLLOWER --no leader for a while--> ASPIRANT --a majority would--> CANDIDATE --a majority did--> LEADER
        ^------- a leader or a higher term is heard, or no majority is heard any more ------------------'

Rules
  E1  One vote per term, on stable storage before anybody hears of it. So: at most one leader per term.
  E2  An aspirant only asks. Who hears a leader supports nobody, so a node that comes back from isolation
      disturbs nothing; its term has not grown meanwhile.
  E3  A node supports only aspirants that hear it, the best ranked: able ones first (their hactld beats, they
      are not barred), then the lowest number. Each waits for its rank before it asks, so that normally one
      asks, and wins.
  E4  A leader that does not hear a majority stops at once. One that became unable stops if it hears an able
  node.
  E5  Who gave its vote away supports nobody else for a while: two candidates that do not hear each other would
      otherwise outbid each other's terms for ever, before either's votes are on the disk. Once a leader of that
      term was heard the vote has done its work: when that leader falls silent nobody waits on its account.

`Election.step` is pure: it takes what is observed and returns what follows, as often as one likes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from nodewatch.arbitration import WITNESS
from nodewatch.heartbeat import Role
from nodewatch.lease import STAGGER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an alive peer said about itself in its newest heartbeat."""

    term: int
    role: int
    voted_for: int
    supports: int
    able: bool
    hears_me: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    now_ms: int
    claims: Mapping[int, Claim]
    """By node number; alive peers of the same configuration only."""
    quorum: bool
    able: bool
    durable_term: int
    durable_vote: int
    """The newest term and vote on stable storage."""
    witness_after: int | None = None
    """The witness votes for this node, in terms beyond this one (W5 of `arbitration.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Election:
    me: int
    needed: int
    """Votes that make a majority."""
    retry_ms: int
    term: int
    voted_for: int = 0
    role: Role = Role.FOLLOWER
    leader: int = 0
    supports: int = 0
    wait_from_ms: int
    """Since when I have been waiting for a leader to appear."""
    votes: frozenset[int] = frozenset()
    concluded: bool = False
    """A leader of this term was heard."""
    rivals: frozenset[int] = frozenset()
    """Other nodes that claim to lead in my own term: never, unless E1 was broken."""

    def step(self, seen: Observed) -> Election:
        """What follows from what is observed. Repeated calls with the same observation change nothing
        more."""
        state = self
        for _ in range(4):
            following = state._once(seen)
            if following == state:
                break
            state = following
        return state

    def spend_vote(self) -> Election:
        """M3 of `membership.py`: this term's leader gets the vote, if nobody had it."""
        return self if self.voted_for else replace(self, voted_for=self.leader)

    def configure(self, needed: int, members: Collection[int], now_ms: int) -> Election:
        """The configured nodes changed. Who leads goes on; who wants to begins anew: votes of two configurations
        are not added up."""
        state = replace(self, needed=needed, leader=self.leader if self.leader in members else 0)
        if self.role in (Role.LEADER, Role.FOLLOWER):
            return state
        return replace(state, role=Role.FOLLOWER, supports=0, votes=frozenset(), wait_from_ms=now_ms)

    def deadline_ms(self, seen: Observed) -> int | None:
        """When `step` may want to be called although nothing changed."""
        if self.leader or not seen.quorum:
            return None
        if self.role == Role.CANDIDATE:
            return self.wait_from_ms + self.retry_ms
        return None if self.role == Role.ASPIRANT else self.wait_from_ms + self._patience_ms(seen)

    def _once(self, seen: Observed) -> Election:
        newest = self._newest_term(seen)
        if newest > self.term:
            return self._follow(seen, term=newest, voted_for=0, leader=0)
        if self.role == Role.LEADER:
            return self._lead(seen)
        leaders = [number for number, claim in seen.claims.items() if self._leads(claim)]
        if leaders:
            return self._follow(seen, leader=min(leaders)) if self.leader not in leaders else self
        if self.leader:
            return self._follow(seen, leader=0)
        if not seen.quorum:
            return self._follow(seen) if self.role != Role.FOLLOWER or self.supports else self
        if self.role == Role.CANDIDATE:
            return self._stand(seen)
        return self._seek(seen)

    def _newest_term(self, seen: Observed) -> int:
        hears_leader = any(self._leads(claim) for claim in seen.claims.values())
        return max(
            (
                claim.term
                for claim in seen.claims.values()
                if not (claim.role == Role.CANDIDATE and (hears_leader or self.role == Role.LEADER))
            ),
            default=0,
        )

    def _leads(self, claim: Claim) -> bool:
        return claim.role == Role.LEADER and claim.term == self.term

    def _lead(self, seen: Observed) -> Election:
        rivals = frozenset(number for number, claim in seen.claims.items() if self._leads(claim))
        if not seen.quorum or rivals:
            return replace(self._follow(seen, leader=0), rivals=rivals)
        if not seen.able and any(claim.able and claim.hears_me for claim in seen.claims.values()):
            return self._follow(seen, leader=0)
        return self

    def _seek(self, seen: Observed) -> Election:
        """No leader, a majority is heard: vote for a candidate, support an aspirant, or become one."""
        candidates = [n for n, claim in seen.claims.items() if claim.role == Role.CANDIDATE and claim.term == self.term]
        if candidates and not self.voted_for:
            return self._follow(seen, voted_for=min(candidates), leader=0)
        aspirants = [
            number
            for number, claim in seen.claims.items()
            if claim.role == Role.ASPIRANT and claim.term == self.term and claim.hears_me
        ]
        if self.role == Role.ASPIRANT:
            aspirants.append(self.me)
        best = 0 if self._vote_pends(seen) else min(aspirants, key=lambda number: self._rank(number, seen), default=0)
        if best != self.supports:
            return replace(self, supports=best)
        if self.role == Role.FOLLOWER:
            if seen.now_ms - self.wait_from_ms < self._patience_ms(seen):
                return self
            return replace(self, role=Role.ASPIRANT)
        supporters = {n for n, claim in seen.claims.items() if claim.supports == self.me and claim.term == self.term}
        if best == self.me:
            supporters.add(self.me)
            if seen.witness_after is not None:
                supporters.add(WITNESS)
        if len(supporters) < self.needed:
            return self
        return replace(
            self,
            term=max(self.term, seen.witness_after or 0) + 1,
            voted_for=self.me,
            role=Role.CANDIDATE,
            supports=0,
            wait_from_ms=seen.now_ms,
            votes=frozenset(),
            concluded=False,
        )

    def _stand(self, seen: Observed) -> Election:
        votes = {n for n, claim in seen.claims.items() if claim.voted_for == self.me and claim.term == self.term}
        if (seen.durable_term, seen.durable_vote) == (self.term, self.me):
            votes.add(self.me)
            if seen.witness_after is not None and self.term > seen.witness_after:
                votes.add(WITNESS)
        votes |= self.votes
        if len(votes) >= self.needed:
            return replace(self, role=Role.LEADER, leader=self.me, votes=frozenset())
        if seen.now_ms - self.wait_from_ms >= self.retry_ms:
            return self._follow(seen)
        return replace(self, votes=frozenset(votes))

    def _follow(
        self, seen: Observed, *, term: int | None = None, voted_for: int | None = None, leader: int | None = None
    ) -> Election:
        return replace(
            self,
            term=self.term if term is None else term,
            voted_for=self.voted_for if voted_for is None else voted_for,
            role=Role.FOLLOWER,
            leader=self.leader if leader is None else leader,
            supports=0,
            wait_from_ms=seen.now_ms,
            votes=frozenset(),
            concluded=bool(leader) or (self.concluded and term is None and voted_for is None),
        )

    def _vote_pends(self, seen: Observed) -> bool:
        """E5."""
        return self._gave_vote() and seen.now_ms - self.wait_from_ms < self.retry_ms

    def _gave_vote(self) -> bool:
        return self.voted_for not in (0, self.me) and not self.concluded

    def _patience_ms(self, seen: Observed) -> int:
        """How long to wait for others before asking oneself: one's place in the ranking; longer after a vote
        given away."""
        mine = self._rank(self.me, seen)
        better = sum(self._rank(number, seen) < mine for number in seen.claims)
        given = self.retry_ms if self._gave_vote() else 0
        waiting = self.retry_ms if self.supports else 0
        return better * STAGGER_MS + max(given, waiting)

    def _rank(self, number: int, seen: Observed) -> tuple[bool, int]:
        able = seen.able if number == self.me else number in seen.claims and seen.claims[number].able
        return (not able, number)
