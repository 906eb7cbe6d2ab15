"""This node's part in barring others: what it orders as leader, what it obeys, and what it knows of a bar against
itself.

`bars.py` has the rules and the books; here they meet what is observed: silence, heartbeats, the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nodewatch.arbitration import WITNESS
from nodewatch.bars import BarTable, Promises
from nodewatch.detector import Detector
from nodewatch.heartbeat import EntryFlag, Order, OrderKind, Role, pulse_at
from nodewatch.peers import Peer
from nodewatch.stable import Stable

UNHEARD_PATIENCE_MS = 10_000
"""A leader bars a node that it never heard only after so long a life of its own: at a cold start nodes come one by
one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessPromise:
    """W4 of `arbitration.py`: what this node, leading and using the witness, promises bars for the witness, too."""

    clear_ms: int
    alone: bool
    """There is only one other node: who gave up before its silence got nothing from the witness since."""


class Barring:
    __slots__ = (
        "_detector",
        "_guard_ms",
        "_me",
        "_names",
        "_needed",
        "_note",
        "_peers",
        "_start_ms",
        "barred_mark",
        "heard_leader",
        "postponed",
        "promises",
        "table",
    )

    def __init__(
        self,
        *,
        me: int,
        peers: Mapping[int, Peer],
        detector: Detector,
        needed: int,
        guard_ms: int,
        restored: Stable,
        now_ms: int,
        names: Mapping[int, str],
        note: Callable[[str], None],
    ) -> None:
        """`note` is called whenever something changed that peers or hactld wait for, with a line for the log or
        none."""
        self._me = me
        self._peers = peers
        self._detector = detector
        self._needed = needed
        self._guard_ms = guard_ms
        self._start_ms = now_ms
        self._names = names
        self._note = note
        self.promises = Promises(restored.promises, now_ms)
        self.table = BarTable(0, needed)
        self.barred_mark = restored.barred
        """The newest bar against this node that it knows of; 0 = none. Its gates are latched for it."""
        self.heard_leader = False
        """Since its start this process heard what a leader orders."""
        self.postponed = False
        """Somebody is silent, and is not barred yet: it may be this node that hears nobody."""

    def configure(self, needed: int, names: Mapping[int, str]) -> None:
        """The configured nodes changed; the peers that this was given are up to date."""
        self._needed = needed
        self._names = names
        self.table.configure(needed, names)
        for number in [number for number in self.promises.held if number not in names]:
            del self.promises.held[number]

    def promised_mark(self, number: int, durable: Stable) -> int:
        """The mark of a promise that may be told: it is on the disk. 0 = none."""
        promise = self.promises.held.get(number)
        if promise is None or (number, promise.first, promise.mark) not in durable.promises:
            return 0
        return promise.mark

    # --- leading --------------------------------------------------------------------------------------------------

    def lead(self, now: int, term: int, durable: Stable, witness: WitnessPromise | None = None) -> None:
        """The leader's standing duties, from what is known now: inherit, bar who is silent, withdraw, count."""
        if self.table.term != term:
            self.table = BarTable(term, self._needed)
        self.heard_leader = True
        self._inherit()
        self._bar_silent(now)
        for order in self.table.orders():
            self._carry_out(order)
        for number, promise in self.promises.held.items():
            if self.promised_mark(number, durable):
                end_ms = now if promise.free else promise.ref_ms + self._guard_ms
                self._count(number, self._me, promise.mark, end_ms)
                if witness is not None:
                    free = promise.free and witness.alone
                    self._count(number, WITNESS, promise.mark, now if free else witness.clear_ms + self._guard_ms)

    def unknown_bars(self) -> list[int]:
        """Nodes against which somebody holds a promise that this node neither holds nor knows to be lifted."""
        found = [self._me] if self.barred_mark else []
        for peer in self._peers.values():
            for entry in peer.said.entries if peer.said is not None else ():
                held = entry.number != self._me and entry.number in self.promises.held
                lifted = self.promises.lifted.get(entry.number, 0)
                if entry.flags & EntryFlag.PROMISE and entry.mark > lifted and not held:
                    found.append(entry.number)
        return found

    def obeys(self, leader: int, term: int) -> bool:
        """Does this node know every bar that the leader of this term orders?"""
        if leader == self._me:
            return self.table.term == term
        said = self._peers[leader].said if leader in self._peers else None
        return said is not None and said.role == Role.LEADER and said.term == term

    def count_promises(self, peer: Peer, pulses: bytes, now: int) -> None:
        """The leader reads what a peer promised in a heartbeat received at `now`."""
        assert peer.said is not None
        number = peer.config.number
        if peer.gave_up and self.table.accepted(number, peer.said.barred_mark, now):
            self._say(number, "bar confirmed by=itself")
        for place, entry in enumerate(peer.said.entries):
            if entry.flags & EntryFlag.PROMISE:
                free = entry.flags & EntryFlag.FREE
                end_ms = now if free else now + self._guard_ms - pulse_at(pulses, place).age_ms
                self._count(entry.number, peer.config.number, entry.mark, end_ms)

    def bar(self, number: int) -> None:
        """hactld asks for it; this node leads."""
        self.table.bar(number, forced=True, inherited=False, why="hactld asked for it")
        self._say(number, "barred cause=asked by hactld")

    def lift(self, number: int, *, i_gave_up: bool) -> bool:
        """R6: only after the node said, of this very bar, that it knows it and has shut its gates. False if it may not
        be."""
        standing = self.table.barred(number)
        if standing is None:
            return False
        if number == self._me:
            knows, shut = self.barred_mark, i_gave_up
        else:
            peer = self._peers[number]
            heard = peer.said is not None and self._detector.alive(number)
            knows, shut = (peer.said.barred_mark if peer.said is not None and heard else 0), peer.gave_up
        if knows < standing.order.mark or not shut:
            return False
        self.table.lift(number)
        self._say(number, "bar lifted")
        return True

    def _inherit(self) -> None:
        """A promise or a bar that nobody lifted, and that I did not order: an earlier leader may have acted on it."""
        for number, promise in list(self.promises.held.items()):
            self._inherit_one(number, promise.mark)
        for peer in self._peers.values():
            if peer.said is None or peer.mismatch:
                continue
            if peer.said.barred_mark:
                self._inherit_one(peer.config.number, peer.said.barred_mark)
            for entry in peer.said.entries:
                if entry.flags & EntryFlag.PROMISE:
                    self._inherit_one(entry.number, entry.mark)
        if self.barred_mark:
            self._inherit_one(self._me, self.barred_mark)

    def _inherit_one(self, number: int, mark: int) -> None:
        if number != self._me and number not in self._peers:
            return
        if self.table.inherit(number, mark, self.promises.lifted.get(number, 0)):
            self.table.bar(number, forced=True, inherited=True, why="barred under an earlier leader")
            self._say(number, "barred cause=inherited")

    def _bar_silent(self, now: int) -> None:
        """A leader that is cut off finds the others overdue one after the other. A promise that it gave meanwhile,
        against a node that the others hear, would outlive its cut: the next leader inherits it and moves that node's
        volumes. So who falls silent is barred once a majority was heard well after it."""
        self.postponed = False
        doubtful = self._hears_few(now)
        for number, peer in self._peers.items():
            patient = now - peer.since_ms < UNHEARD_PATIENCE_MS
            standing = self.table.barred(number)
            state = self._detector.state(number)
            if state == "alive":
                if standing is not None and self.table.withdraw(number):
                    self._say(number, "bar withdrawn cause=heard again, never confirmed")
            elif standing is None and doubtful and not self._told_gone(number):
                self.postponed = True
            elif standing is None and not (state == "unheard" and patient):
                cause = "goodbye" if self._detector.gone(number) else state
                self.table.bar(number, forced=False, inherited=False, why=cause)
                self._say(number, f"barred cause={cause}")

    def _hears_few(self, now: int) -> bool:
        """A majority counts as alive, but was not heard for half the time that makes a node overdue."""
        alive = [number for number in self._peers if self._detector.alive(number)]
        fresh = [number for number in alive if self._detector.fresh(number, now)]
        return len(alive) + 1 >= self._needed > len(fresh) + 1

    def _told_gone(self, number: int) -> bool:
        """It, or the engine, said so: no matter of silence."""
        return self._detector.gone(number) or self._detector.absent(number)

    def _count(self, number: int, by: int, mark: int, end_ms: int) -> None:
        if number != by and self.table.promised(number, by, mark, end_ms):
            names = ",".join(self._names[promiser] for promiser in self.table.promisers(number))
            self._say(number, f"bar confirmed by={names}")

    # --- following ------------------------------------------------------------------------------------------------

    def follow(self, leader: int, term: int) -> None:
        """Carry out what the present leader orders, as far as it concerns me now."""
        peer = self._peers.get(leader)
        if peer is None or peer.said is None or peer.said.role != Role.LEADER or peer.said.term != term:
            return
        self.heard_leader = True
        for order in peer.said.orders:
            self._carry_out(order)

    def _carry_out(self, order: Order) -> None:
        peer = self._peers.get(order.number)
        if order.number == self._me:
            self._suffer(order)
        elif peer is not None:
            overdue = not self._detector.alive(order.number)
            if self.promises.obey(order, overdue=overdue, ref_ms=peer.ref_ms, free=peer.gave_up):
                self._note("")

    def _suffer(self, order: Order) -> None:
        """An order about this very node."""
        if order.kind == OrderKind.BAR and order.forced and order.mark > self.barred_mark:
            if not self.barred_mark:
                self._note("this node is barred: its gates stay shut until the leader lifts that")
            self.barred_mark = order.mark
        elif order.kind == OrderKind.LIFT:
            self.promises.learn_lift(self._me, order.mark)
            if 0 < self.barred_mark <= order.mark:
                self.barred_mark = 0
                self._note("this node is barred no more")

    def _say(self, number: int, what: str) -> None:
        self._note(f"node={self._names[number]} {what} term={self.table.term}")
