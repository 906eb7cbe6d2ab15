"""Bars: how a cluster makes sure that a silent node cannot begin a new lease. Rules R5 and R6 of `lease.py`.

The leader orders `BAR A`; every node that has A overdue (or every node at all, when the order is forced)
promises, puts the promise on stable storage, and says so in its heartbeats. A majority of promises that name
the present order's mark confirm the bar; then it is forced, so that the others promise too. Marks grow with
the leader's term and never repeat.

    none --BAR--> promised --LIFT (mark >= mine)--> none             by hactld's wish, after A shut its gates
                           for this bar --WITHDRAW (mark = my first)--> none      by the leader itself, while
                           it was never confirmed

A promise outlives its leader. A new leader that sees one orders the bar again under a mark of its own,
forced, because the old leader may have acted on it: only hactld may end such a bar. A promise under an older
mark is not counted: a recording of an earlier promise cannot confirm anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from nodewatch.heartbeat import Order, OrderKind
from nodewatch.quorum import kth_smallest

_COUNT_BITS = 16


def make_mark(term: int, count: int) -> int:
    return term << _COUNT_BITS | count


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """I acknowledge this node no more."""

    first: int
    """The mark under which I promised."""
    mark: int
    """The newest mark of the same bar."""
    ref_ms: int
    """My clock when I last received a heartbeat that I may have acknowledged."""
    free: bool
    """That heartbeat said `gave up`: no lease rests on me."""


class Promises:
    """What this node promised, and the lifts that it knows of."""

    __slots__ = ("held", "lifted")

    def __init__(self, restored: Iterable[tuple[int, int, int]], start_ms: int) -> None:
        """`restored`: (node, first, mark) from stable storage. What was acknowledged before is forgotten:
        R5."""
        self.held = {
            node: Promise(first=first, mark=mark, ref_ms=start_ms, free=False) for node, first, mark in restored
        }
        self.lifted: dict[int, int] = {}

    def obey(self, order: Order, *, overdue: bool, ref_ms: int, free: bool) -> bool:
        """Follow the present leader's order about another node. True if what I hold changed."""
        held = self.held.get(order.number)
        match order.kind:
            case OrderKind.BAR if held is not None:
                if order.mark <= held.mark:
                    return False
                self.held[order.number] = replace(held, mark=order.mark)
                return True
            case OrderKind.BAR if overdue or order.forced:
                self.held[order.number] = Promise(first=order.mark, mark=order.mark, ref_ms=ref_ms, free=free)
                return True
            case OrderKind.LIFT:
                self.learn_lift(order.number, order.mark)
                return self._drop_if(order.number, held is not None and held.mark <= order.mark)
            case OrderKind.WITHDRAW if held is not None and held.mark == order.mark:
                if held.first == order.mark:
                    return self._drop_if(order.number, True)
                self.held[order.number] = replace(held, mark=held.first)
                return True
        return False

    def learn_lift(self, node: int, mark: int) -> None:
        """Somebody knows that `mark` was lifted. Ends nothing by itself: only a leader's order does."""
        if mark > self.lifted.get(node, 0):
            self.lifted[node] = mark

    def _drop_if(self, node: int, condition: bool) -> bool:
        if condition:
            del self.held[node]
        return condition


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingOrder:
    order: Order
    inherited: bool
    """A leader before me may have acted on it: never withdrawn."""
    why: str


class BarTable:
    """The leader's orders of its present term, and who promised. A new term starts with an empty one."""

    __slots__ = ("_accepted", "_count", "_ends", "_lifts", "_needed", "_orders", "term")

    def __init__(self, term: int, needed: int) -> None:
        self.term = term
        self._needed = needed
        self._count = 0
        self._orders: dict[int, StandingOrder] = {}
        """BAR or WITHDRAW."""
        self._lifts: dict[int, int] = {}
        """Node -> mark; they stand beside a later bar for those who missed them."""
        self._ends: dict[int, dict[int, int]] = {}
        self._accepted: dict[int, int] = {}
        """Node -> my clock when it had accepted the bar itself (R8)."""

    def configure(self, needed: int, members: Collection[int]) -> None:
        """The configured nodes changed: bars that were confirmed may lack a promise now; they stay forced."""
        self._needed = needed
        self._orders = {node: order for node, order in self._orders.items() if node in members}
        self._lifts = {node: mark for node, mark in self._lifts.items() if node in members}
        self._ends = {
            node: {by: end_ms for by, end_ms in ends.items() if by in members}
            for node, ends in self._ends.items()
            if node in members
        }

    def settled(self) -> bool:
        """Is every bar that stands confirmed?"""
        return all(self.barred(node) is None or self.confirmed(node) for node in self._orders)

    def orders(self) -> tuple[Order, ...]:
        """What the heartbeats carry. Lifts come first: a bar that stands beside one is newer."""
        lifts = tuple(Order(node, OrderKind.LIFT, 0, mark) for node, mark in self._lifts.items())
        return lifts + tuple(standing.order for standing in self._orders.values())

    def barred(self, node: int) -> StandingOrder | None:
        standing = self._orders.get(node)
        return standing if standing is not None and standing.order.kind == OrderKind.BAR else None

    def bar(self, node: int, *, forced: bool, inherited: bool, why: str) -> None:
        """Order the bar; when it stands already, only make it stronger."""
        standing = self.barred(node)
        if standing is None:
            self._count += 1
            order = Order(node, OrderKind.BAR, int(forced), make_mark(self.term, self._count))
            self._orders[node] = StandingOrder(order=order, inherited=inherited, why=why)
            self._ends[node] = {}
            self._accepted.pop(node, None)
        elif forced and not standing.order.forced:
            self._orders[node] = replace(standing, order=standing.order._replace(forced=1), why=why)

    def lift(self, node: int) -> None:
        """End the bar. The caller made sure that the node shut its gates for it (R6)."""
        standing = self.barred(node)
        if standing is not None:
            self._lifts[node] = standing.order.mark
            del self._orders[node]

    def withdraw(self, node: int) -> bool:
        """End a bar of this term that was never confirmed nor forced. False if it may not be withdrawn."""
        standing = self.barred(node)
        if standing is None or standing.inherited or standing.order.forced or self.confirmed(node):
            return False
        order = standing.order._replace(kind=OrderKind.WITHDRAW)
        self._orders[node] = StandingOrder(order=order, inherited=False, why="")
        return True

    def promised(self, node: int, by: int, mark: int, end_ms: int) -> bool:
        """`by` promised under `mark`: no lease rests on it after `end_ms` of my clock. True if that confirmed the
        bar."""
        standing = self.barred(node)
        if standing is None or standing.order.mark != mark:
            return False
        before = self.confirmed(node)
        ends = self._ends[node]
        ends[by] = min(end_ms, ends.get(by, end_ms))
        if before or not self.confirmed(node):
            return False
        self._orders[node] = replace(standing, order=standing.order._replace(forced=1))
        return True

    def accepted(self, node: int, mark: int, now_ms: int) -> bool:
        """The node itself says that it keeps its gates shut for the bar `mark`. True if that confirmed the bar."""
        standing = self.barred(node)
        if standing is None or mark < standing.order.mark or node in self._accepted:
            return False
        before = self.confirmed(node)
        self._accepted[node] = now_ms
        return not before

    def confirmed(self, node: int) -> bool:
        if self.barred(node) is None:
            return False
        return node in self._accepted or len(self._ends[node]) >= self._needed

    def safe_at_ms(self, node: int) -> int | None:
        """My clock when the node's last lease must have ended: the node's own word, or the majority that gives the
        earliest proof."""
        if not self.confirmed(node):
            return None
        promised = kth_smallest(self._ends[node].values(), self._needed)
        return min(at_ms for at_ms in (promised, self._accepted.get(node)) if at_ms is not None)

    def promisers(self, node: int) -> list[int]:
        """Who confirmed the bar, or will: the node itself among them, if it accepted it."""
        return sorted({*self._ends.get(node, {}), *({node} & self._accepted.keys())})

    def inherit(self, node: int, mark: int, lifted: int) -> bool:
        """Somebody holds a promise under `mark`; `lifted` = the highest lift of that node that is known here.

        True if it must be barred by me: no order speaks of that promise, so an earlier leader's bar still stands. One
        that was lifted is lifted again, for those who missed it."""
        if mark <= lifted:
            if mark > self._lifts.get(node, 0):
                self._lifts[node] = lifted
            return False
        standing = self._orders.get(node)
        if standing is None:
            return mark > self._lifts.get(node, 0)
        return standing.order.kind == OrderKind.WITHDRAW and mark < standing.order.mark
