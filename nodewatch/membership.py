"""Which configuration counts, and how it changes while volumes are served: one node, or one step of a key, at a time.

Words. A configuration has a version and names the digest of the one before it, so a digest stands for a whole history.
C(v) is the configuration of version v. A node is *at* v when C(v) is the newest that it made durable; it counts
majorities of C(v). A node *counts* what another says (its acknowledgements, votes, promises) when both are at the
same configuration, or one is at the direct successor of the other's. It *grants* it something (acknowledges it, votes
for it, obeys it as leader) when it counts it and is not sealed against it (M4).

Rules
  M1  C(v+1) adds one node to C(v), or removes one, or changes none. So a majority of C(v) and one of C(v+1) meet.
  M2  Only the leader of a term proposes, one change per term, and only when, in that term,
        - a majority of C(v), itself included, is at v and has the term on stable storage;
        - it knows of no node at v+1, and proposes the change that was accepted in the highest term among those that
          it hears, if there is one;
        - every bar that stands is confirmed.
  M3  A node accepts a change of its own configuration from the leader of its present term, on stable storage before
      it says so. With that it spends its vote of the term, if it still has it.
  M4  From then on it is *sealed*: it grants nothing to a node at v-1, nor to one that is not in C(v+1). If it is not
      in C(v+1) itself, it gives its lease up.
  M5  A change is *chosen* once a majority of C(v) accepted it in the leader's term. A node moves to C(v+1) only when
      the leader knows that it was chosen guard_ms ago (or when somebody is there already), and makes it durable first.
  M6  A node never goes back to an older version.

Claims
  One successor. C(v) has one chosen successor at most: M2, M3 and E1 are Paxos with the term as ballot; who has a term
    on stable storage accepts nothing from an older one. The new leader need not wait to take up what was accepted.
  Leases. When any node is at v+1, no lease runs that rests on a majority of C(v-1) or older, and none of a node
    that is not in C(v+1). For a majority Q of C(v) was sealed at least guard_ms ago. A lease of a node at v-1 rests
    on a majority of C(v-1), which meets Q in some B; B's acknowledgement came before B was sealed, so by `lease.py`
    that lease ended (if B is the node itself, it moved on to v first, with the lease that it had). A lease of the
    removed node under C(v) meets Q in a node that was sealed against it, or only in itself: M4. So leases that run
    at the same time rest on majorities of configurations at most one apart, and those meet.
  Votes. Two leaders of one term would have been elected by majorities at least two versions apart, W by one of C(v-1)
    or older and Z by one of C(v+1) or newer. Q, a majority of C(v), accepted v+1 in a term t. It meets W's voters in a
    node that was not sealed when it voted, so W's term is at most t. It meets Z's voters in a node that was at t
    already when Z, a candidate of its own version only (a change makes candidates begin anew), asked: so Z's term is at
    least t. Both are t: Z's voter had spent its vote of t on the proposer, or earlier (M3).
  Bars. One that was acted upon is held by a majority of C(v) when v+1 is proposed (M2), because a new leader hears of
    it: its promisers meet the majority of M2. So it is held by at least one of any majority of C(v+1), and before v+2
    is proposed by a majority of C(v+1). A leader that was left behind at v-1 gets no majority of promises once v+1 was
    chosen: those who accepted it do not obey who is at v-1.

Why one at a time: n1 n2 n3, and a leader that puts n4 and n5 in at once. n3 does not hear of it; n2 and n3 are a
majority of the old three, n1 n4 n5 one of the new five. They do not meet: two leaders, two leases. The same happens
without M5's wait: n4 added on n1 n2 n4, n5 at once after that on n1 n4 n5; n3 still counts n2, for the one change that
it missed, and a lease that n2 granted to n3 a moment ago outlives n3's last chance to be heard of.
Why M2 asks what was accepted: two leaders that add n4 and n5, each to the same three, make two successors of one
configuration, whose majorities need not meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from nodewatch.config import ClusterConfig, NodeConfig

DIGEST_BYTES = 8
NO_DIGEST = bytes(DIGEST_BYTES)


class ChangeRefused(Exception):
    """A change that does not fit the configuration it is for. Nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step from a configuration to the next: exactly one of `add`, `remove`, `keys`."""

    version: int
    """Of the configuration that it leads to."""
    previous: str
    """Digest, in hex, of the one that it starts from."""
    add: NodeConfig | None = None
    remove: int = 0
    """Node number."""
    keys: tuple[str, ...] = ()

    def applied(self, config: ClusterConfig) -> ClusterConfig:
        """The configuration that follows. Raises ChangeRefused."""
        if self.version != config.version + 1 or self.previous != config.digest().hex():
            raise ChangeRefused(
                f"it leads from {self.previous} to version {self.version}, "
                f"and here is version {config.version}, {config.digest().hex()}"
            )
        if sum((self.add is not None, bool(self.remove), bool(self.keys))) != 1:
            raise ChangeRefused("it must add a node, remove one, or change the keys, and one of these only")
        following = replace(config, version=self.version, previous=self.previous)
        if self.add is not None:
            return replace(following, nodes=_with(config.nodes, self.add))
        if self.remove:
            nodes = _without(config.nodes, self.remove)
            if config.witness and len(nodes) < 2:
                raise ChangeRefused("with a witness, two nodes are the fewest: it would decide alone")
            return replace(following, nodes=nodes)
        _check_keys(config.keys, self.keys)
        return replace(following, keys=self.keys)

    def to_plain(self) -> dict[str, Any]:
        """As JSON; `change_from` gives it back."""
        add = None if self.add is None else {f.name: _plain(getattr(self.add, f.name)) for f in fields(self.add)}
        return {
            "version": self.version,
            "previous": self.previous,
            "add": add,
            "remove": self.remove,
            "keys": list(self.keys),
        }


def change_from(plain: Mapping[str, Any]) -> Change:
    """Raises ChangeRefused for anything else than what `to_plain` gives. Values are checked by `applied` and, in
    the end, by the parser of the configuration that they make."""
    try:
        add = plain["add"]
        change = Change(
            version=plain["version"],
            previous=plain["previous"],
            add=None if add is None else NodeConfig(**{key: _tuple(value) for key, value in add.items()}),
            remove=plain["remove"],
            keys=tuple(plain["keys"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ChangeRefused(f"not a change: {error!r}") from error
    words = (change.previous, *change.keys)
    if type(change.version) is not int or type(change.remove) is not int or not all(isinstance(w, str) for w in words):
        raise ChangeRefused("not a change: wrong types")
    return change


def next_keys(present: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Where the keys of two ids can go from here, a new key aside: [send by the other one, drop the other one]."""
    if len(present) != 2:
        return []
    return [(present[1], present[0]), (present[0],)]


def _check_keys(present: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    fresh = len(wanted) == 2 and wanted[0] != wanted[1] and present in ((), wanted[:1])
    if not fresh and wanted not in next_keys(present):
        raise ChangeRefused(f"keys {list(wanted)} are not one step from {list(present)}")


def _with(nodes: tuple[NodeConfig, ...], new: NodeConfig) -> tuple[NodeConfig, ...]:
    for node in nodes:
        for name in ("number", "name"):
            if getattr(node, name) == getattr(new, name):
                raise ChangeRefused(f"there is a node of {name} {getattr(new, name)} already")
    return (*nodes, new)


def _without(nodes: tuple[NodeConfig, ...], number: int) -> tuple[NodeConfig, ...]:
    left = tuple(node for node in nodes if node.number != number)
    if len(left) == len(nodes):
        raise ChangeRefused(f"there is no node of number {number}")
    if not left:
        raise ChangeRefused("the last node cannot be removed")
    return left


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """M3; part of what is on stable storage."""

    term: int
    change: Change
    digest: str
    """Of the configuration that the change leads to, in hex."""


class Told(Protocol):
    """What a peer's heartbeat says of its configuration (`heartbeat.Said`)."""

    @property
    def digest(self) -> bytes: ...
    @property
    def term(self) -> int: ...
    @property
    def config_version(self) -> int: ...
    @property
    def previous(self) -> bytes: ...
    @property
    def durable_term(self) -> int: ...
    @property
    def accepted_term(self) -> int: ...
    @property
    def accepted(self) -> bytes: ...


class Membership:
    """One node's configuration, and what it knows of the next one. Changed in place.

    The leader's books (`accepted_by`, `chosen_ms`, `blocked`, `must_take`) are of its present term, made by `lead`."""

    __slots__ = (
        "_guard_ms",
        "_me",
        "_members_next",
        "accepted",
        "accepted_by",
        "blocked",
        "chosen_ms",
        "config",
        "digest",
        "must_take",
        "previous",
        "term",
    )

    def __init__(self, config: ClusterConfig, me: int, restored: Accepted | None) -> None:
        self._me = me
        self._guard_ms = config.timing.guard_ms
        self.term = 0
        self._take(config)
        if restored is not None and restored.change.previous == self.digest.hex():
            self._accept(restored)

    def _take(self, config: ClusterConfig) -> None:
        self.config = config
        self.digest = config.digest()
        self.previous = bytes.fromhex(config.previous) or NO_DIGEST
        self.accepted: Accepted | None = None
        self._members_next: frozenset[int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.accepted_by: tuple[int, ...] = ()
        self.chosen_ms: int | None = None
        """My clock when I knew that the change which I accepted, and proposed, was chosen."""
        self.blocked = "this node does not lead"
        """Why nothing can be proposed; "" = it can."""
        self.must_take: tuple[int, bytes] | None = None
        """(node, digest): a change that was accepted under an earlier leader and has to be proposed again (M2)."""

    def counts(self, told: Told) -> bool:
        """Does it matter here what that node says?"""
        if told.digest == self.digest:
            return True
        if told.config_version == self.config.version + 1:
            return told.previous == self.digest
        return self._older(told)

    def grants(self, number: int, told: Told) -> bool:
        """M4: may that node get an acknowledgement, a vote, obedience?"""
        if not self.counts(told):
            return False
        return self._members_next is None or (number in self._members_next and not self._older(told))

    @property
    def leaving(self) -> bool:
        """This node accepted a configuration without itself."""
        return self._members_next is not None and self._me not in self._members_next

    def _older(self, told: Told) -> bool:
        has_one = bool(self.config.previous)
        return has_one and told.config_version == self.config.version - 1 and told.digest == self.previous

    def accept(self, term: int, change: Change, digest: str) -> None:
        """M3, for both the leader and its followers; the caller looked at the term. Raises ChangeRefused."""
        following = change.applied(self.config)
        if following.digest().hex() != digest:
            raise ChangeRefused(f"it makes {following.digest().hex()} of this configuration, {digest} was meant")
        if self.accepted is not None:
            if self.accepted.term > term:
                raise ChangeRefused(f"one of the later term {self.accepted.term} was accepted")
            if self.accepted.term == term and self.accepted.digest != digest:
                raise ChangeRefused(f"another one was accepted in term {term}")
        self._accept(Accepted(term=term, change=change, digest=digest))

    def _accept(self, accepted: Accepted) -> None:
        self.accepted = accepted
        self._members_next = frozenset(node.number for node in accepted.change.applied(self.config).nodes)

    def move(self, change: Change) -> ClusterConfig:
        """M5; the caller made the next configuration durable. Raises ChangeRefused."""
        following = change.applied(self.config)
        if all(node.number != self._me for node in following.nodes):
            raise ChangeRefused("this node is not in it")
        self._take(following)
        return following

    # --- leading --------------------------------------------------------------------------------------------------

    def lead(
        self,
        now_ms: int,
        term: int,
        *,
        durable_term: int,
        durable: Accepted | None,
        heard: Mapping[int, Told],
        needed: int,
        bars_settled: bool,
    ) -> None:
        """M2 and the first half of M5, from the newest heartbeats of the alive nodes that count (`heard`)."""
        if term != self.term:
            self.term = term
            self._forget()
        at_mine = {number: told for number, told in heard.items() if told.digest == self.digest}
        ahead = [number for number, told in heard.items() if told.config_version > self.config.version]
        self.must_take = self._to_be_taken_up(at_mine)
        own = self.accepted
        if own is not None and own.term == term:
            self.blocked = "a change is under way"
            self._count(now_ms, own, durable, at_mine, ahead, needed)
            return
        ready = sum(told.term == told.durable_term == term for told in at_mine.values()) + (durable_term == term)
        if ahead:
            self.blocked = "a change was chosen already, which this node has not taken yet"
        elif ready < needed:
            self.blocked = f"{ready} of {needed} needed nodes are ready: they must be at this version and in this term"
        else:
            self.blocked = "" if bars_settled else "a node is being barred, which is not confirmed yet"

    def follow(self) -> None:
        self.term = 0
        self._forget()

    def safe_in_ms(self, now_ms: int) -> int | None:
        """Until the chosen change may be made: 0 = now. None while it is not chosen."""
        return None if self.chosen_ms is None else max(0, self.chosen_ms + self._guard_ms - now_ms)

    def may_propose(self, digest: str) -> str:
        """ "" or the reason why not."""
        if self.blocked:
            return self.blocked
        if self.must_take is not None and self.must_take[1].hex() != digest:
            return f"the change to {self.must_take[1].hex()} was begun under an earlier leader and comes first"
        return ""

    def _to_be_taken_up(self, at_mine: Mapping[int, Told]) -> tuple[int, bytes] | None:
        found = [(told.accepted_term, number, told.accepted) for number, told in at_mine.items() if told.accepted_term]
        if self.accepted is not None:
            found.append((self.accepted.term, self._me, bytes.fromhex(self.accepted.digest)))
        if not found:
            return None
        _, number, digest = max(found)
        return number, digest

    def _count(
        self,
        now_ms: int,
        own: Accepted,
        durable: Accepted | None,
        at_mine: Mapping[int, Told],
        ahead: list[int],
        needed: int,
    ) -> None:
        wanted = (own.term, bytes.fromhex(own.digest))
        by = {number for number, told in at_mine.items() if (told.accepted_term, told.accepted) == wanted}
        by.update(ahead)
        if durable == own:
            by.add(self._me)
        by.update(self.accepted_by)
        self.accepted_by = tuple(sorted(by))
        if self.chosen_ms is None and len(by) >= needed:
            self.chosen_ms = now_ms
