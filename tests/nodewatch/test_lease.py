from __future__ import annotations

from dataclasses import replace

import pytest

from nodewatch.lease import ROUNDING_MS, OwnLease, Timing
from nodewatch.quorum import kth_largest, kth_smallest, majority


def test_default_timing_breaks_no_promise() -> None:
    assert Timing().violations() == []


@pytest.mark.parametrize(
    ("change", "arithmetic"),
    [
        ({"overdue_ms": 599}, "overdue_ms = 599 < 3 * heartbeat_ms = 600"),
        (
            {"lease_ms": 1500, "gate_slack_ms": 300},
            "lease_ms = 1500 < gate_lifetime_s * 1000 + gate_slack_ms + 1.5 * heartbeat_ms = 1000 + 300 + 300 = 1600",
        ),
        ({"heartbeat_ms": 400, "overdue_ms": 1200, "lease_ms": 9000}, "1000 < 3 * heartbeat_ms = 1200"),
        ({"drift_percent": 21}, "drift_percent = 21 must lie between 0 and 20"),
        ({"heartbeat_ms": 0}, "heartbeat_ms = 0 must lie between 20 and 5000"),
    ],
)
def test_a_broken_promise_is_named_with_its_arithmetic(change: dict[str, int], arithmetic: str) -> None:
    violations = replace(Timing(), **change).violations()
    assert any(arithmetic in violation for violation in violations), violations


def test_the_guard_covers_a_slow_server_and_a_fast_judge() -> None:
    timing = Timing(lease_ms=1900, drift_percent=5)
    slow_server_true_ms = 1900 / 0.95
    assert timing.guard_ms >= slow_server_true_ms * 1.05 + ROUNDING_MS
    assert replace(timing, drift_percent=0).guard_ms == 1900 + ROUNDING_MS


def test_the_table_never_promises_a_worst_case_before_the_best() -> None:
    for row in Timing().table():
        assert 0 <= row.best_ms <= row.worst_ms, row
        assert row.because


def test_the_table_follows_the_values() -> None:
    worst = {row.phase: row.worst_ms for row in Timing(overdue_ms=1000).table()}
    assert worst["detect"] == 1000
    assert worst["its lease must have ended"] == Timing().guard_ms


def lease(nodes: int = 3) -> OwnLease:
    fresh = OwnLease(nodes=nodes, lease_ms=1000)
    for seq, at_ms in ((1, 100), (2, 300), (3, 500)):
        fresh.sent(seq, at_ms)
    return fresh


def test_a_lease_counts_from_when_the_acknowledged_heartbeat_left() -> None:
    mine = lease()
    assert mine.acked(2, 2)
    assert mine.end_ms == 300 + 1000
    assert mine.left_ms(1200) == 100
    assert mine.left_ms(1300) == 0


def test_a_lease_needs_a_majority_and_counts_what_all_of_it_acknowledged() -> None:
    mine = lease(nodes=5)
    assert not mine.acked(2, 3)
    assert mine.acked(3, 1)
    assert mine.end_ms == 100 + 1000
    assert mine.acked(4, 2)
    assert mine.end_ms == 300 + 1000


def test_late_and_repeated_acknowledgements_change_nothing() -> None:
    mine = lease()
    mine.acked(2, 3)
    assert not mine.acked(2, 1)
    assert not mine.acked(3, 3)
    assert not mine.acked(3, 99)  # never sent
    assert mine.end_ms == 500 + 1000


def test_a_lease_given_up_rests_on_no_heartbeat_before() -> None:
    mine = lease()
    mine.acked(2, 3)
    mine.give_up(3)
    assert mine.end_ms == 0
    assert not mine.acked(3, 3)
    mine.sent(4, 700)
    assert mine.acked(3, 4)
    assert mine.end_ms == 700 + 1000


def test_a_node_alone_in_its_cluster_holds_the_lease_by_itself() -> None:
    assert lease(nodes=1).end_ms == 500 + 1000


def test_two_majorities_always_meet() -> None:
    for nodes in range(1, 40):
        assert 2 * majority(nodes) > nodes
        assert majority(nodes) <= nodes


def test_kth_values() -> None:
    assert [kth_largest([5, 1, 9], k) for k in (0, 1, 2, 3, 4)] == [None, 9, 5, 1, None]
    assert [kth_smallest([5, 1, 9], k) for k in (0, 1, 2, 3, 4)] == [None, 1, 5, 9, None]
