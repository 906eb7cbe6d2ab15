from __future__ import annotations

from nodewatch.bars import BarTable, Promises, make_mark
from nodewatch.heartbeat import Order, OrderKind

BAR, LIFT, WITHDRAW = OrderKind.BAR, OrderKind.LIFT, OrderKind.WITHDRAW
OTHER = 3


def promises() -> Promises:
    return Promises((), 1000)


def obey(mine: Promises, kind: OrderKind, mark: int, *, forced: bool = False, overdue: bool = True) -> bool:
    return mine.obey(Order(OTHER, kind, int(forced), mark), overdue=overdue, ref_ms=50, free=False)


def test_a_node_promises_who_is_overdue_or_forced() -> None:
    mine = promises()
    assert not obey(mine, BAR, 10, overdue=False)
    assert obey(mine, BAR, 10)
    assert obey(promises(), BAR, 10, forced=True, overdue=False)


def test_a_promise_survives_until_a_lift_of_its_mark() -> None:
    mine = promises()
    obey(mine, BAR, 10)
    assert obey(mine, BAR, 20)  # another leader's mark for the same bar
    assert not obey(mine, LIFT, 15)
    assert mine.held[OTHER].first == 10
    assert obey(mine, LIFT, 20)
    assert not mine.held


def test_a_withdrawn_bar_ends_only_promises_made_for_it() -> None:
    mine = promises()
    obey(mine, BAR, 10)
    assert obey(mine, WITHDRAW, 10)
    assert not mine.held
    obey(mine, BAR, 20)
    obey(mine, BAR, 30)
    assert obey(mine, WITHDRAW, 30)
    assert mine.held[OTHER].mark == 20, "an earlier leader may have acted on it"


def test_a_promise_keeps_the_reference_of_when_it_was_made() -> None:
    mine = promises()
    obey(mine, BAR, 10)
    mine.obey(Order(OTHER, BAR, 0, 20), overdue=True, ref_ms=9999, free=True)
    assert (mine.held[OTHER].ref_ms, mine.held[OTHER].free) == (50, False)


def test_a_restored_promise_counts_from_the_start_of_the_process() -> None:
    assert Promises([(OTHER, 5, 6)], 1000).held[OTHER].ref_ms == 1000


def barred(needed: int = 2) -> BarTable:
    table = BarTable(4, needed)
    table.bar(OTHER, forced=False, inherited=False, why="overdue")
    return table


def mark(table: BarTable) -> int:
    standing = table.barred(OTHER)
    assert standing is not None
    return standing.order.mark


def test_a_majority_confirms_and_the_earliest_majority_tells_when_it_is_safe() -> None:
    table = barred()
    assert not table.promised(OTHER, 1, mark(table), 900)
    assert table.safe_at_ms(OTHER) is None
    assert table.promised(OTHER, 2, mark(table), 500)
    assert table.safe_at_ms(OTHER) == 900
    table.promised(OTHER, 4, mark(table), 600)
    assert table.safe_at_ms(OTHER) == 600
    table.promised(OTHER, 1, mark(table), 100)
    assert table.safe_at_ms(OTHER) == 500


def test_a_promise_under_another_mark_is_not_counted() -> None:
    table = barred(needed=1)
    assert not table.promised(OTHER, 1, make_mark(3, 1), 0)
    assert not table.confirmed(OTHER)


def test_a_confirmed_bar_is_forced_and_cannot_be_withdrawn() -> None:
    table = barred(needed=1)
    table.promised(OTHER, 1, mark(table), 0)
    [order] = table.orders()
    assert order.forced
    assert not table.withdraw(OTHER)


def test_an_unconfirmed_bar_can_be_withdrawn_unless_it_was_inherited_or_forced() -> None:
    assert barred().withdraw(OTHER)
    for forced, inherited in ((True, False), (False, True)):
        table = BarTable(4, 2)
        table.bar(OTHER, forced=forced, inherited=inherited, why="")
        assert not table.withdraw(OTHER)


def test_a_lift_stands_beside_a_newer_bar() -> None:
    table = barred()
    table.lift(OTHER)
    lifted = table.orders()
    assert [order.kind for order in lifted] == [LIFT]
    table.bar(OTHER, forced=False, inherited=False, why="overdue")
    assert [order.kind for order in table.orders()] == [LIFT, BAR]
    assert table.orders()[1].mark > lifted[0].mark


def test_a_leader_inherits_what_nobody_lifted() -> None:
    table = BarTable(4, 2)
    assert table.inherit(OTHER, make_mark(3, 1), lifted=0)
    assert not table.inherit(OTHER, make_mark(3, 1), lifted=make_mark(3, 1))
    assert [order.kind for order in table.orders()] == [LIFT], "told again to those who missed it"


def test_a_leader_does_not_inherit_its_own_withdrawn_bar() -> None:
    table = barred()
    table.withdraw(OTHER)
    [order] = table.orders()
    assert not table.inherit(OTHER, order.mark, lifted=0)
    assert table.inherit(OTHER, make_mark(2, 9), lifted=0)


def test_marks_grow_with_the_term_and_within_it() -> None:
    assert make_mark(1, 1) < make_mark(1, 2) < make_mark(2, 1)
