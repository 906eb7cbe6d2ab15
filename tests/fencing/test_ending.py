"""What the owner before had in flight is over before anything is written: decided, and then done on fake units."""

from __future__ import annotations

import pytest

from fencing.ending import Ending
from fencing.errors import OutcomeUnknown
from fencing.fake import FakeLogicalUnit, FakeWrite, WriteState
from fencing.faulty import Crash, Fault
from fencing.model import OUR_TYPE, Key, Registrant, ReservationState

MINE, OLD = Key(cluster_tag=1, node=1, epoch=8), Key(cluster_tag=1, node=2, epoch=7)
FOREIGN = Key(cluster_tag=2, node=2, epoch=7)


def held_by(*holders: Key) -> ReservationState:
    registrants = tuple(Registrant(key=key.value, holder=True, nexus=b"") for key in holders)
    return ReservationState(generation=1, registrants=registrants, type=OUR_TYPE if holders else None)


def after(*states: ReservationState, served: int | None = 7) -> Ending:
    ending = Ending(MINE, served)
    for state in (*states, held_by(MINE)):
        ending.saw(state)
    return ending


def test_the_end_of_the_one_whom_the_label_names_is_known_from_the_answer() -> None:
    ending = after(held_by(OLD))
    ending.preempted(answered=True)
    assert ending.known


@pytest.mark.parametrize("state", [held_by(Key(cluster_tag=1, node=3, epoch=6)), held_by(FOREIGN)])
def test_the_end_is_not_known_where_another_one_was_in_the_place_of_the_last_server(state: ReservationState) -> None:
    """Whoever took its place may have died under its own PREEMPT AND ABORT."""
    assert not after(state).known


def test_of_all_who_were_seen_the_one_that_was_replaced_counts() -> None:
    assert not after(held_by(OLD), held_by(Key(cluster_tag=1, node=3, epoch=9))).known


def test_an_answer_that_was_lost_is_not_made_good_by_one_that_came() -> None:
    ending = after(held_by(OLD))
    ending.preempted(answered=False)
    ending.preempted(answered=True)
    assert not ending.known


def test_a_device_without_any_registration_was_open_to_all_and_there_is_nothing_to_be_known() -> None:
    assert after(held_by()).known


def test_a_device_that_was_open_only_after_another_had_been_seen_is_not() -> None:
    assert not after(held_by(FOREIGN), held_by()).known


def test_where_no_label_counts_only_answers_do() -> None:
    ending = after(held_by(FOREIGN), served=None)
    assert ending.known
    ending.preempted(answered=False)
    assert not ending.known


@pytest.fixture
def unit(cluster) -> FakeLogicalUnit:
    """Owned by the first node, which has a write in flight: see `late`."""
    cluster.nodes[0].acquire()
    return cluster.units[0]


@pytest.fixture
def late(unit: FakeLogicalUnit) -> FakeWrite:
    write = unit.write(b"n1", 5000, b"late")
    write.arrive()
    assert write.state is WriteState.IN_FLIGHT
    return write


class RemovesTheKeyFirst:
    """A device that drops the key, and is busy with the victim's writes when the answer is lost, or the taker."""

    def __init__(self, unit: FakeLogicalUnit, late: FakeWrite, fault: Fault) -> None:
        self._unit, self._late, self._fault = unit, late, fault
        self.settled = 0
        self.late_at_label: list[WriteState] = []

    def __call__(self, operation: str, changes: bool) -> Fault:
        self._unit.drains = operation != "preempt"
        if operation == "write label":
            self.late_at_label.append(self._late.state)
        return self._fault if operation == "preempt" else Fault.NONE

    def settle(self) -> None:
        """In this time the device is done with what it had begun."""
        self.settled += 1
        self._late.finish()


def test_an_answer_that_was_lost_is_followed_by_a_wait_and_then_by_the_label(cluster, unit, late) -> None:
    device = RemovesTheKeyFirst(unit, late, Fault.UNANSWERED)
    handle = cluster.nodes[1].acquire(device, settle=device.settle)
    assert device.settled == 1 and set(device.late_at_label) == {WriteState.LANDED}
    assert len(handle.doubts) == 1


def test_the_next_taker_waits_for_what_one_that_died_left_behind(cluster, unit, late) -> None:
    device = RemovesTheKeyFirst(unit, late, Fault.CRASH_AFTER)
    with pytest.raises(Crash):
        cluster.nodes[1].acquire(device)
    assert late.state is WriteState.IN_FLIGHT
    cluster.nodes[2].acquire(settle=device.settle)
    assert device.settled == 1


def test_a_set_waits_once_whatever_the_number_of_its_devices(new_cluster) -> None:
    cluster = new_cluster(units=3)
    cluster.nodes[0].acquire()
    settled: list[None] = []

    def choose(operation: str, changes: bool) -> Fault:
        return Fault.UNANSWERED if operation == "preempt" else Fault.NONE

    cluster.nodes[1].acquire(choose, settle=lambda: settled.append(None))
    assert len(settled) == 1


def test_without_a_wait_nothing_is_written_and_the_next_taker_has_the_same_duty(cluster, unit, late) -> None:
    blocks = dict(unit.blocks)
    device = RemovesTheKeyFirst(unit, late, Fault.UNANSWERED)
    with pytest.raises(OutcomeUnknown, match="nothing tells"):
        cluster.nodes[1].acquire(device, settle=None)
    assert unit.blocks == blocks
    cluster.nodes[1].acquire(settle=device.settle)
    assert device.settled == 1


@pytest.mark.parametrize("node", [0, 1])
def test_a_takeover_in_which_every_answer_came_waits_for_nothing(cluster, unit, node: int) -> None:
    handle = cluster.nodes[node].acquire()
    assert "settle" not in {timing.step for timing in handle.timings}
