"""The contract of fencing/contract.py over the fake; tests/lab/test_fencing_contract.py runs it over LIO."""

import pytest

from fencing.contract import CASES, Rig, outcome, random_operations
from fencing.fake import FakeLogicalUnit, WriteState
from fencing.port import ReservationPort

NEXUSES = (b"n1", b"n2", b"n3")


def fake_rig() -> Rig:
    unit = FakeLogicalUnit()

    def may_write(nexus: int) -> bool:
        write = unit.write(NEXUSES[nexus], nexus, b"x")
        write.arrive()
        write.finish()
        return write.state is WriteState.LANDED

    first, second, third = (unit.connect(nexus) for nexus in NEXUSES)
    ports: tuple[ReservationPort, ReservationPort, ReservationPort] = (first, second, third)
    return Rig(ports=ports, may_write=may_write)


@pytest.mark.parametrize("name", CASES)
def test_fake_keeps_the_contract(name: str) -> None:
    CASES[name](fake_rig())


def test_reset_frees_a_device_that_others_hold() -> None:
    rig = fake_rig()
    rig.ports[1].register(0, 7)
    rig.reset()
    assert rig.state().registrants == ()


def test_random_operations_are_the_same_for_a_seed() -> None:
    assert list(random_operations(5, 50)) == list(random_operations(5, 50))


def test_fake_survives_random_operations_with_one_holder_at_most() -> None:
    rig = fake_rig()
    for operation in random_operations(1, 3000):
        outcome(rig, operation)
        state = rig.state()
        if state.type is not None and not state.type.all_registrants:
            assert len([registrant for registrant in state.registrants if registrant.holder]) == 1
