from collections.abc import Callable

import pytest

from fencing import CheckResult, Key, check_device, probe_pr_out
from fencing.fake import FakeLogicalUnit, FakePort, own
from fencing.faulty import Fault, FaultyPort

KEY = Key(cluster_tag=0xABCDE, node=1, epoch=0)


def failed(results: list[CheckResult]) -> list[str]:
    return [result.name for result in results if not result.ok]


def test_a_good_device_passes_and_is_left_as_it_was() -> None:
    unit = FakeLogicalUnit()
    results = check_device(unit.connect(b"n1"), KEY)
    assert failed(results) == []
    assert unit.state().registrants == () and unit.type is None
    assert [result.name for result in results][-3:] == ["change of the key", "release", "unregister"]


def test_a_device_in_use_is_only_read_and_probed() -> None:
    unit = FakeLogicalUnit()
    own(unit, b"n2", 0x1234)
    before = unit.fingerprint()
    results = check_device(unit.connect(b"n1"), KEY)
    assert failed(results) == []
    assert results[-1].detail == "not tried: the device is in use"
    assert unit.fingerprint() == before


def test_a_device_that_does_not_persist_fails_by_what_it_says_and_by_what_it_does() -> None:
    unit = FakeLogicalUnit(can_persist=False)
    assert failed(check_device(unit.connect(b"n1"), KEY)) == [
        "persistence through power loss",
        "persistence through power loss is active",
    ]
    assert unit.state().registrants == ()


@pytest.mark.parametrize("operation", ["register", "reserve", "release"])
def test_an_operation_that_is_lost_fails_and_the_scratch_key_does_not_stay(operation: str) -> None:
    unit = FakeLogicalUnit()
    lost = [True]

    def choose(asked: str, changes: bool) -> Fault:
        probing = asked == "register" and not unit.registrations and not probed
        if probing:
            probed.append(True)
            return Fault.NONE
        return Fault.LOST if asked == operation and lost and lost.pop() else Fault.NONE

    probed: list[bool] = []
    results = check_device(FaultyPort(unit.connect(b"n1"), choose), KEY)
    assert operation in failed(results)
    assert unit.state().registrants == ()


class Pretender(FakePort):
    """Reports success and does nothing."""

    def reserve(self, key, type) -> None:
        pass


def test_success_that_does_not_read_back_fails() -> None:
    unit = FakeLogicalUnit()
    results = check_device(Pretender(unit, b"n1"), KEY)
    assert failed(results) == ["reserve"]
    assert unit.state().registrants == ()


@pytest.mark.parametrize(
    "prepare", [lambda unit: None, lambda unit: own(unit, b"n1", 5), lambda unit: own(unit, b"n2", 5)]
)
def test_the_probe_is_a_conflict_for_everybody_and_changes_nothing(prepare: Callable[..., None]) -> None:
    unit = FakeLogicalUnit()
    prepare(unit)
    before = unit.fingerprint()
    result = probe_pr_out(unit.connect(b"n1"), KEY)
    assert result.ok and result.detail == "answered: reservation conflict"
    assert unit.fingerprint() == before


def test_a_probe_that_does_not_arrive_fails() -> None:
    port = FaultyPort(FakeLogicalUnit().connect(b"n1"), lambda operation, changes: Fault.LOST)
    assert not probe_pr_out(port, KEY).ok


def test_a_probe_that_is_accepted_fails() -> None:
    class Careless(FakePort):
        def register(self, old, new, ignore_existing=False) -> None:
            pass

    result = probe_pr_out(Careless(FakeLogicalUnit(), b"n1"), KEY)
    assert not result.ok and "accepted" in result.detail
