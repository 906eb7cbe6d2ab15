"""Works at once: all that began have ended when the call returns, whatever some of them raised."""

import threading

import pytest

from fencing import Good, LostRace, NotDelivered, verify
from fencing._threads import Threads
from fencing.acquisition import acquire
from fencing.faulty import Fault
from tests.fencing.conftest import at_once


def test_works_run_at_the_same_time() -> None:
    threads = Threads(4)
    meeting = threading.Barrier(4, timeout=20)
    threads([meeting.wait for _ in range(4)])  # each waits for the three others
    threads.close()


def test_nothing_is_under_way_when_an_error_is_raised() -> None:
    threads = Threads(2)
    failed, ended = threading.Event(), []

    def fail() -> None:
        failed.set()
        raise NotDelivered("no path", device="d", operation="read")

    def slow() -> None:
        assert failed.wait(20)
        ended.append("slow")

    with pytest.raises(NotDelivered):
        threads([slow, fail, lambda: ended.append("too late"), lambda: ended.append("too late")])
    assert "slow" in ended
    threads.close()


def test_a_lost_race_counts_more_than_a_silent_device() -> None:
    threads = Threads(2)
    both = threading.Barrier(2, timeout=20)

    def lose() -> None:
        both.wait()
        raise LostRace("beaten", device="d", rival=None)

    def silent() -> None:
        both.wait()
        raise NotDelivered("no path", device="e", operation="read")

    for works in ([lose, silent], [silent, lose]):
        with pytest.raises(LostRace):
            threads(works)
    threads.close()


def test_a_hundred_luns_are_taken_at_once_and_told_good(new_cluster) -> None:
    cluster = new_cluster(units=100)
    first, second = cluster.nodes[:2]
    first.acquire()
    threads = Threads()
    handle = acquire(
        second.luns(),
        second.identity,
        floor=0,
        intent=second.record,
        clock=lambda: 0.0,
        settle=at_once,
        spread=threads,
    )
    assert isinstance(verify(handle), Good)
    assert all(unit.state().exclusive_to(handle.key.value) for unit in cluster.units)
    assert handle.taken_from == (first.identity.key(1).value,)
    assert {len([each for each in handle.timings if each.lun == unit.name]) for unit in cluster.units} == {10}
    threads.close()


def test_a_lun_that_fails_among_a_hundred_is_the_error_and_the_next_attempt_has_all(new_cluster) -> None:
    cluster = new_cluster(units=100)
    cluster.nodes[0].acquire()
    node, lock, calls = cluster.nodes[1], threading.Lock(), [0]

    def choose(operation: str, changes: bool) -> Fault:
        with lock:
            calls[0] += 1
            return Fault.LOST if calls[0] > 450 else Fault.NONE

    threads = Threads()
    with pytest.raises(NotDelivered):
        acquire(
            node.luns(choose),
            node.identity,
            floor=0,
            intent=node.record,
            clock=lambda: 0.0,
            settle=at_once,
            spread=threads,
        )
    handle = acquire(
        node.luns(),
        node.identity,
        floor=node.floor,
        intent=node.record,
        clock=lambda: 0.0,
        settle=at_once,
        spread=threads,
    )
    assert isinstance(verify(handle), Good)
    threads.close()
