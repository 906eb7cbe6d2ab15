from collections.abc import Callable

import pytest

from fencing import (
    DeviceBusy,
    ForeignOwner,
    Good,
    Key,
    LabelError,
    Lost,
    LostRace,
    NoEffect,
    NotDelivered,
    OutcomeUnknown,
    Refused,
    release,
    verify,
)
from fencing.fake import FakeLabels, FakeLogicalUnit, own, seed_label
from fencing.faulty import Crash, Fault

NewCluster = Callable[..., "object"]


def owner_key(unit: FakeLogicalUnit) -> Key:
    state = unit.state()
    assert len(state.holders) == 1
    assert state.exclusive_to(state.holders[0])
    return Key.parse(state.holders[0])


class FaultAt:
    """One fault at the n-th command, none before and after."""

    def __init__(self, position: int, fault: Fault) -> None:
        self.left = position
        self.fault = fault

    def __call__(self, operation: str, changes: bool) -> Fault:
        self.left -= 1
        return self.fault if self.left == -1 else Fault.NONE


class Failing:
    """Every command of one kind fails in the same way."""

    def __init__(self, operation: str, fault: Fault) -> None:
        self.operation = operation
        self.fault = fault

    def __call__(self, operation: str, changes: bool) -> Fault:
        return self.fault if operation == self.operation else Fault.NONE


def test_a_fresh_volume_is_owned_alone_with_the_next_epoch_on_key_label_and_record(cluster) -> None:
    handle = cluster.nodes[0].acquire()
    assert (handle.epoch, handle.label.epoch, handle.label.owner) == (1, 1, "n1")
    assert owner_key(cluster.units[0]) == handle.key
    assert cluster.nodes[0].intents == [1]
    assert isinstance(verify(handle), Good)


def test_a_takeover_fences_the_owner_and_makes_its_handle_bad_for_good(cluster) -> None:
    first = cluster.nodes[0].acquire()
    second = cluster.nodes[1].acquire()
    assert second.epoch == 2 and second.taken_from == (first.key.value,)
    assert verify(first) == Lost(rival=second.key.value, reason="my key is not registered any more", device="naa.0")
    cluster.units[0].registrations.clear()
    cluster.units[0].holder = cluster.units[0].type = None
    own(cluster.units[0], b"n1", first.key.value)
    assert isinstance(verify(first), Lost)


def test_both_copies_of_the_label_get_the_new_epoch(cluster) -> None:
    cluster.nodes[0].acquire()
    found = FakeLabels(cluster.units[0], b"n1").read()
    assert [copy.epoch for copy in found.copies] == [1, 1]


def test_the_epoch_is_recorded_before_the_first_change(cluster) -> None:
    node = cluster.nodes[0]
    with pytest.raises(Crash):
        node.acquire(lambda operation, changes: Fault.CRASH_BEFORE if changes else Fault.NONE)
    assert node.intents == [1]
    assert cluster.units[0].state().registrants == ()


def test_a_failed_record_changes_nothing(cluster) -> None:
    node = cluster.nodes[0]

    def disk_full(epoch: int) -> None:
        raise OSError("no space left")

    node.record = disk_full
    with pytest.raises(OSError, match="no space"):
        node.acquire()
    assert cluster.units[0].state().registrants == ()


def test_the_epoch_grows_past_records_labels_and_keys(cluster, label) -> None:
    node = cluster.nodes[1]
    node.floor = 20
    assert node.acquire().epoch == 21
    seed_label(cluster.units[0], label("naa.0", epoch=40))
    assert cluster.nodes[0].acquire().epoch == 41
    own(cluster.units[0], b"n3", cluster.nodes[2].identity.key(60).value)
    assert cluster.nodes[0].acquire().epoch == 61


def test_a_reboot_replaces_the_registration_that_the_device_kept(cluster) -> None:
    node = cluster.nodes[0]
    first = node.acquire()
    cluster.units[0].power_loss()
    second = node.acquire()
    assert second.epoch == first.epoch + 1
    assert owner_key(cluster.units[0]) == second.key
    assert not isinstance(verify(first), Good)


def test_a_reboot_with_another_initiator_session_drops_the_old_registration(cluster) -> None:
    node = cluster.nodes[0]
    node.nexus = b"n1,isid=1"
    node.acquire()
    node.nexus = b"n1,isid=2"
    again = node.acquire()
    assert owner_key(cluster.units[0]) == again.key
    assert set(cluster.units[0].registrations) == {b"n1,isid=2"}


def test_a_device_that_forgot_its_reservations_is_fenced_anew(new_cluster) -> None:
    cluster = new_cluster(can_persist=False)
    first = cluster.nodes[0].acquire()
    cluster.units[0].power_loss()
    verdict = verify(first)
    assert isinstance(verdict, Lost) and "my key is not registered any more" in verdict.reason
    assert "forgot everything" in verdict.reason
    assert cluster.nodes[1].acquire().epoch == 2


def test_a_set_is_owned_whole(new_cluster) -> None:
    cluster = new_cluster(units=4)
    cluster.nodes[0].acquire()
    handle = cluster.nodes[1].acquire()
    assert [owner_key(unit) for unit in cluster.units] == [handle.key] * 4
    assert {timing.lun for timing in handle.timings} == {unit.name for unit in cluster.units}


def test_losing_one_device_loses_the_set(new_cluster) -> None:
    cluster = new_cluster(units=3)
    handle = cluster.nodes[0].acquire()
    own(cluster.units[2], b"n2", cluster.nodes[1].identity.key(9).value)
    assert isinstance(verify(handle), Lost)


def test_timings_cover_every_step_in_order(cluster) -> None:
    cluster.nodes[0].acquire()
    handle = cluster.nodes[1].acquire()
    steps = [timing.step for timing in handle.timings]
    assert steps == [
        "label read", "read", "read", "register", "read", "preempt", "read",
        "label read", "label write", "label write",
    ]  # fmt: skip
    assert all(timing.end > timing.start for timing in handle.timings)
    assert handle.timings[3].name == "register naa.0"


def test_a_foreign_key_is_refused_before_anything_changes_and_dropped_by_force(new_cluster) -> None:
    cluster = new_cluster(units=2)
    own(cluster.units[1], b"elsewhere", 0xF00D)
    before = [unit.fingerprint() for unit in cluster.units]
    with pytest.raises(ForeignOwner, match="0x000000000000f00d"):
        cluster.nodes[0].acquire()
    assert [unit.fingerprint() for unit in cluster.units] == before
    assert cluster.nodes[0].intents == []
    handle = cluster.nodes[0].acquire(force=True)
    assert owner_key(cluster.units[1]) == handle.key


def test_a_device_that_this_node_still_uses_is_refused_before_anything_changes(cluster) -> None:
    cluster.nodes[0].busy = "mounted on /srv/v1"
    with pytest.raises(DeviceBusy, match=r"mounted on /srv/v1.*unmount"):
        cluster.nodes[0].acquire()
    assert cluster.units[0].state().registrants == ()


def test_a_bad_label_is_refused_before_anything_changes(cluster) -> None:
    cluster.units[0].blocks[FakeLabels.FIRST_BLOCK] = b"x" * 4096
    cluster.units[0].blocks[FakeLabels.FIRST_BLOCK + 1] = b"x" * 4096
    with pytest.raises(LabelError):
        cluster.nodes[0].acquire()
    assert cluster.units[0].state().registrants == ()


def test_one_damaged_copy_of_the_label_is_mended_by_the_next_owner(cluster) -> None:
    cluster.nodes[0].acquire()
    cluster.units[0].blocks[FakeLabels.FIRST_BLOCK] = b"x" * 4096
    handle = cluster.nodes[1].acquire()
    assert handle.epoch == 2
    assert FakeLabels(cluster.units[0], b"n2").read().damage == ""


def test_an_owner_that_came_too_late_finds_it_in_the_label(cluster, label) -> None:
    """Frozen between survey and fence, while another node acquired and released with the same epoch."""
    node = cluster.nodes[0]

    def meanwhile(operation: str, changes: bool) -> Fault:
        if operation == "register":
            seed_label(cluster.units[0], label("naa.0", epoch=1))
        return Fault.NONE

    with pytest.raises(LostRace, match="label has epoch 1 already"):
        node.acquire(meanwhile)


def test_a_device_that_ignores_preempt_is_found_out(new_cluster) -> None:
    cluster = new_cluster()
    first = cluster.nodes[0].acquire()
    cluster.units[0].ignores_preempt = True
    with pytest.raises(NoEffect, match="reported success 3 times") as caught:
        cluster.nodes[1].acquire()
    assert caught.value.operation == "preempt"
    assert isinstance(verify(first), Good)


@pytest.mark.parametrize("operation", ["register", "preempt", "write label"])
def test_a_command_whose_answer_is_always_lost_is_read_back(cluster, operation: str) -> None:
    cluster.nodes[0].acquire()
    handle = cluster.nodes[1].acquire(Failing(operation, Fault.UNANSWERED))
    assert owner_key(cluster.units[0]) == handle.key
    assert len(handle.doubts) == (0 if operation == "write label" else 1)


def test_a_command_that_never_arrives_is_an_error_after_a_few_attempts(cluster) -> None:
    first = cluster.nodes[0].acquire()
    with pytest.raises(NotDelivered):
        cluster.nodes[1].acquire(Failing("preempt", Fault.LOST))
    assert isinstance(verify(first), Good)


def test_a_registration_that_may_have_happened_is_not_repeated_with_the_same_key(cluster) -> None:
    """A REGISTER without answer, and no registration to be seen: it may have been removed meanwhile."""
    node = cluster.nodes[1]
    unit = cluster.units[0]

    registers = []

    def vanishing(operation: str, changes: bool) -> Fault:
        if operation == "read" and b"n2" in unit.registrations:
            unit.drop(b"n2")
        if operation != "register":
            return Fault.NONE
        registers.append(operation)
        return Fault.UNANSWERED

    with pytest.raises(OutcomeUnknown):
        node.acquire(vanishing)
    assert len(registers) == 1
    assert node.acquire().epoch == 2


def test_a_registration_that_somebody_removed_does_not_come_back(cluster) -> None:
    """Another node got and gave the volume while this one stood between its register and its preempt."""
    node, unit = cluster.nodes[1], cluster.units[0]
    cluster.nodes[0].acquire()
    registers = []

    def meanwhile(operation: str, changes: bool) -> Fault:
        registers.extend([operation] if operation == "register" else [])
        if operation == "preempt":
            release(cluster.nodes[2].acquire())
        return Fault.NONE

    with pytest.raises(LostRace, match="my registration was removed"):
        node.acquire(meanwhile)
    assert len(registers) == 1
    assert unit.state().registrants == ()


def test_an_owner_that_is_preempted_before_it_is_done_has_no_handle(cluster) -> None:
    writes = []

    def meanwhile(operation: str, changes: bool) -> Fault:
        writes.extend([operation] if operation == "write label" else [])
        if operation == "read" and len(writes) == 2:
            cluster.nodes[2].acquire()
        return Fault.NONE

    with pytest.raises(LostRace, match="not registered any more"):
        cluster.nodes[1].acquire(meanwhile)


def test_an_error_names_device_key_and_what_to_do(cluster) -> None:
    port = cluster.nodes[0].luns()[0].port
    with pytest.raises(Refused) as caught:
        port.preempt(0x1234, 0x5678, 5)
    assert caught.value.own_key == 0x1234
    assert "naa.0: preempt with key 0x0000000000001234: reservation conflict" in str(caught.value)
    assert "next: read the reservation again" in str(caught.value)


FAULTS_THAT_END = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("second", [1, 2])
@pytest.mark.parametrize("fault", FAULTS_THAT_END)
def test_an_acquisition_cut_anywhere_is_taken_up_by_any_node(new_cluster, fault, second, units) -> None:
    """`second` 1: the same node after its reboot; 2: another node."""
    for position in range(1000):
        cluster = new_cluster(units=units)
        first = cluster.nodes[0].acquire()
        try:
            cluster.nodes[1].acquire(FaultAt(position, fault))
        except Crash:
            pass
        else:
            assert position > 10 * units  # every command was cut once
            return
        assert all(unit.type is not None for unit in cluster.units), "a disk was open to everybody"
        handle = cluster.nodes[second].acquire()
        assert [owner_key(unit) for unit in cluster.units] == [handle.key] * units
        assert isinstance(verify(handle), Good) and isinstance(verify(first), Lost)
        assert handle.epoch > first.epoch


@pytest.mark.parametrize("second", [1, 2])
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.UNANSWERED, Fault.TWICE])
def test_one_command_that_goes_wrong_anywhere_stops_nobody(new_cluster, fault, second) -> None:
    for position in range(1000):
        cluster = new_cluster(units=2)
        cluster.nodes[0].acquire()
        faults = FaultAt(position, fault)
        try:
            handle = cluster.nodes[1].acquire(faults)
        except (NotDelivered, OutcomeUnknown):
            handle = cluster.nodes[second].acquire()
        assert [owner_key(unit) for unit in cluster.units] == [handle.key] * 2
        if faults.left >= 0:
            return
