from fencing.fake import FakeLogicalUnit, WriteState, own
from fencing.model import OUR_TYPE


def test_a_login_and_a_preempt_are_told_once_each() -> None:
    unit = FakeLogicalUnit()
    first, second = unit.connect(b"n1"), unit.connect(b"n2")
    first.register(0, 1)
    assert first.seen == ["power on or reset"]
    second.register(0, 2)
    second.preempt(2, 1, OUR_TYPE)
    first.read()
    first.read()
    assert first.seen == ["power on or reset", "registrations preempted"]


def test_power_loss_keeps_what_was_persistent_and_begins_the_counter_anew() -> None:
    for can_persist, keys in ((True, (7,)), (False, ())):
        unit = FakeLogicalUnit(can_persist=can_persist)
        own(unit, b"n1", 7)
        unit.power_loss()
        assert unit.state().keys == unit.state().holders == keys
        assert unit.generation == 0


def test_power_loss_ends_what_is_in_flight() -> None:
    unit = FakeLogicalUnit()
    write = unit.write(b"n1", 1, b"x")
    write.arrive()
    unit.power_loss()
    write.finish()
    assert write.state is WriteState.ABORTED and not unit.blocks


def test_a_plain_preempt_does_not_end_what_is_in_flight() -> None:
    unit = FakeLogicalUnit()
    own(unit, b"n1", 1)
    write = unit.write(b"n1", 1, b"x")
    write.arrive()
    other = unit.connect(b"n2")
    other.register(0, 2)
    other.preempt(2, 1, OUR_TYPE, abort=False)
    write.finish()
    assert write.state is WriteState.LANDED


def test_strangers_read_under_our_type() -> None:
    unit = FakeLogicalUnit()
    own(unit, b"n1", 1)
    assert unit.may_read(b"n2") and not unit.may_write(b"n2")
