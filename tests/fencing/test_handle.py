from dataclasses import replace

import pytest

from fencing import Good, Lost, LostRace, NotDelivered, Released, acquire, adopt, release, update_label, verify
from fencing.fake import FakeLabels, WriteState, own
from fencing.faulty import Crash, Fault
from tests.fencing.conftest import at_once


def read_label(cluster, unit: int = 0):
    return FakeLabels(cluster.units[unit], b"x").read()


def test_verify_names_strangers_that_registered_beside_the_owner(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    cluster.units[0].connect(b"n3").register(0, 0xF00D)
    assert verify(handle) == Good(generations=(2,), strangers=(0xF00D,))


def test_verify_sees_a_reservation_that_is_gone(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    cluster.units[0].holder = cluster.units[0].type = None
    verdict = verify(handle)
    assert isinstance(verdict, Lost) and "does not hold" in verdict.reason


def test_a_silent_device_is_neither_good_nor_lost(new_cluster) -> None:
    cluster = new_cluster(units=2)
    node = cluster.nodes[0]
    silent = [False]

    def choose(operation: str, changes: bool) -> Fault:
        return Fault.LOST if silent[0] and operation == "read" else Fault.NONE

    handle = node.acquire(choose)
    silent[0] = True
    with pytest.raises(NotDelivered):
        verify(handle)
    silent[0] = False
    assert isinstance(verify(handle), Good)


def test_a_lost_device_counts_more_than_a_silent_one(new_cluster) -> None:
    cluster = new_cluster(units=2)
    silent = []

    def choose(operation: str, changes: bool) -> Fault:
        return Fault.LOST if silent and silent.pop() else Fault.NONE

    handle = cluster.nodes[0].acquire(choose)
    own(cluster.units[1], b"n2", 0xBEEF)
    silent.append(True)  # the first device, only once
    verdict = verify(handle)
    assert isinstance(verdict, Lost) and verdict.device == "naa.1"


def test_the_owner_changes_its_label_one_copy_at_a_time(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    update_label(handle, lambda label: replace(label, wanted="started", epoch=99, owner="me"))
    found = read_label(cluster)
    assert (found.label.wanted, found.label.epoch, found.label.owner, found.label.seq) == (
        "started",
        1,
        "n1",
        handle.label.seq,
    )
    assert sorted(copy.wanted for copy in found.copies) == ["started", "stopped"]


def test_a_lost_owner_writes_no_label(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    cluster.nodes[1].acquire()
    before = read_label(cluster)
    with pytest.raises(LostRace):
        update_label(handle, lambda label: replace(label, wanted="started"))
    assert read_label(cluster) == before


def test_a_restarted_daemon_adopts_what_it_holds_and_changes_nothing(cluster) -> None:
    node = cluster.nodes[0]
    handle = node.acquire()
    before = cluster.units[0].fingerprint()
    adopted = adopt(node.luns(), node.identity, handle.key)
    assert adopted.key == handle.key and adopted.label == handle.label
    assert isinstance(verify(adopted), Good)
    assert cluster.units[0].fingerprint() == before


def test_what_another_node_took_is_not_adopted(cluster) -> None:
    node = cluster.nodes[0]
    handle = node.acquire()
    cluster.nodes[1].acquire()
    with pytest.raises(LostRace):
        adopt(node.luns(), node.identity, handle.key)


def test_a_key_of_another_node_is_not_adopted(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    with pytest.raises(ValueError, match="not a key of this node"):
        adopt(cluster.nodes[1].luns(), cluster.nodes[1].identity, handle.key)


def test_release_leaves_no_key_and_no_owner(new_cluster) -> None:
    cluster = new_cluster(units=2)
    handle = cluster.nodes[0].acquire()
    assert release(handle) == Released()
    for unit in (0, 1):
        assert cluster.units[unit].state().registrants == ()
        assert read_label(cluster, unit).label.owner == ""
    assert isinstance(verify(handle), Lost)
    assert cluster.nodes[1].acquire().epoch == 2


def test_releasing_what_was_lost_changes_nothing(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    cluster.nodes[1].acquire()
    before = cluster.units[0].fingerprint()
    assert isinstance(release(handle), Lost)
    assert cluster.units[0].fingerprint() == before


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.UNANSWERED, Fault.LOST])
def test_a_release_cut_anywhere_is_finished_or_taken_over(new_cluster, fault) -> None:
    for position in range(100):
        cluster = new_cluster(units=2)
        left = [None]

        def choose(operation: str, changes: bool, left=left) -> Fault:
            if left[0] is None:
                return Fault.NONE
            left[0] -= 1
            return fault if left[0] == -1 else Fault.NONE

        handle = cluster.nodes[0].acquire(choose)
        left[0] = position
        try:
            assert release(handle) == Released()
        except (Crash, NotDelivered):
            pass
        again = cluster.nodes[1].acquire()
        assert isinstance(verify(again), Good)
        if left[0] >= 0:
            return


def test_a_frozen_owners_writes_are_refused_after_the_takeover(cluster) -> None:
    unit = cluster.units[0]
    cluster.nodes[0].acquire()
    queued, in_flight = unit.write(b"n1", 9, b"late"), unit.write(b"n1", 9, b"later")
    in_flight.arrive()
    cluster.nodes[1].acquire()
    queued.arrive()
    in_flight.finish()
    assert (queued.state, in_flight.state) == (WriteState.REFUSED, WriteState.ABORTED)
    assert 9 not in unit.blocks


def test_a_device_that_does_not_drain_lets_a_late_write_land(new_cluster) -> None:
    """Why a preflight must try it: nothing in the answers tells such a device from a good one."""
    cluster = new_cluster(drains=False)
    cluster.nodes[0].acquire()
    late = cluster.units[0].write(b"n1", 9, b"late")
    late.arrive()
    cluster.nodes[1].acquire()
    late.finish()
    assert late.state is WriteState.LANDED


def test_a_set_has_each_device_once_and_one_at_least(cluster) -> None:
    node = cluster.nodes[0]
    for luns in ([], node.luns() * 2):
        with pytest.raises(ValueError, match="one LUN"):
            acquire(luns, node.identity, floor=0, intent=node.record, clock=lambda: 0.0, settle=at_once)
