"""The contract of fencing/contract.py over the fakes of both kinds, and over paths to one.

tests/lab runs the same cases over libsgutils2 and PR ioctls on LIO, and over passthrough and PR ioctls on nvmet.
"""

import pytest

from fencing._nvmepaths import NvmePaths
from fencing.contract import CASES, PROFILES, Rig, explanation, outcome, random_operations
from fencing.fake import FakeLogicalUnit, FakePort, WriteState
from fencing.fakenvme import FakeNamespace
from fencing.model import Registrant, ReservationState
from fencing.paths import MultipathPort
from fencing.port import ReservationPort

NEXUSES = (b"n1", b"n2", b"n3")
UNITS: dict[str, type[FakeLogicalUnit]] = {"scsi": FakeLogicalUnit, "nvme": FakeNamespace}


def fake_rig(kind: str = "scsi") -> Rig:
    unit = UNITS[kind]()

    def may_write(nexus: int) -> bool:
        write = unit.write(NEXUSES[nexus], nexus, b"x")
        write.arrive()
        write.finish()
        return write.state is WriteState.LANDED

    first, second, third = (unit.connect(nexus) for nexus in NEXUSES)
    ports: tuple[ReservationPort, ReservationPort, ReservationPort] = (first, second, third)
    return Rig(ports=ports, may_write=may_write, traits=PROFILES[kind])


@pytest.mark.parametrize("kind", UNITS)
@pytest.mark.parametrize("name", CASES)
def test_fake_keeps_the_contract(name: str, kind: str) -> None:
    CASES[name](fake_rig(kind))


COUNTED = ("a_registration_raises_the_generation_by_one",)
"""What is one registration through one path is one for each of several."""


class Paths:
    """The paths of one node to a fake unit."""

    def __init__(self, unit: FakeLogicalUnit, node: bytes, count: int) -> None:
        self._paths = [SomePath(unit, node + b"/%d" % number) for number in range(count)]

    def expect(self, key: int) -> None:
        pass

    def paths(self) -> "list[SomePath]":
        return self._paths

    def close(self) -> None:
        pass


class SomePath(FakePort):
    @property
    def device(self) -> str:
        return self.nexus.decode()

    def retire(self) -> None:
        raise AssertionError("no path fails here")


class NodesNotPaths(MultipathPort):
    """Reads as a device with one path for each node would: registrants of one node with one key are one."""

    def read(self) -> ReservationState:
        state = super().read()
        nodes: dict[tuple[bytes, int], bool] = {}
        for each in state.registrants:
            node = each.nexus.partition(b"/")[0], each.key
            nodes[node] = nodes.get(node, False) or each.holder
        found = tuple(Registrant(key=key, holder=held, nexus=node) for (node, key), held in nodes.items())
        return ReservationState(generation=state.generation, registrants=found, type=state.type)


def multipath_rig(paths: int) -> Rig:
    unit = FakeLogicalUnit()

    def may_write(nexus: int) -> bool:
        """Down whichever path: dm chooses."""
        allowed = {unit.may_write(NEXUSES[nexus] + b"/%d" % number) for number in range(paths)}
        assert len(allowed) == 1, "some paths of a node write, and some do not"
        return allowed.pop()

    first, second, third = (NodesNotPaths("fake", Paths(unit, nexus, paths)) for nexus in NEXUSES)
    ports: tuple[ReservationPort, ReservationPort, ReservationPort] = (first, second, third)
    return Rig(ports=ports, may_write=may_write)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("paths", [1, 2, 3])
def test_several_paths_keep_the_contract_as_one_does(name: str, paths: int) -> None:
    if paths > 1 and name in COUNTED:
        pytest.skip("counts registrations, and each path has one")
    CASES[name](multipath_rig(paths))


def over_two_paths(port: ReservationPort) -> NvmePaths:
    return NvmePaths(port.device, lambda device: port, lambda device: 2, answer_s=60.0)


@pytest.mark.parametrize("name", CASES)
def test_several_paths_to_a_namespace_keep_the_contract_as_one_does(name: str) -> None:
    rig = fake_rig("nvme")
    first, second, third = map(over_two_paths, rig.ports)
    CASES[name](Rig(ports=(first, second, third), may_write=rig.may_write, traits=rig.traits))
    for port in (first, second, third):
        port.close()


def test_reset_frees_a_device_that_others_hold() -> None:
    rig = fake_rig()
    rig.ports[1].register(0, 7)
    rig.reset()
    assert rig.state().registrants == ()


def test_random_operations_are_the_same_for_a_seed() -> None:
    assert list(random_operations(5, 50)) == list(random_operations(5, 50))


@pytest.mark.parametrize("kind", UNITS)
def test_fake_survives_random_operations_with_one_holder_at_most(kind: str) -> None:
    rig = fake_rig(kind)
    for operation in random_operations(1, 3000):
        outcome(rig, operation)
        state = rig.state()
        if state.type is not None and not state.type.all_registrants:
            assert len([registrant for registrant in state.registrants if registrant.holder]) == 1


def test_the_kinds_differ_where_the_documentation_says_so_and_the_comparison_finds_it() -> None:
    """The same commands to both fakes: if the comparison could not tell them apart, it could find no fault either."""
    scsi, nvme = fake_rig("scsi"), fake_rig("nvme")
    told = set()
    for operation in random_operations(3, 3000):
        there, here = outcome(nvme, operation), outcome(scsi, operation)
        if there != here and not explanation(operation, there, here, nvme.traits):
            told.add(operation.what)
            scsi.reset()
            nvme.reset()
    assert told == {"register", "reserve", "preempt", "release"}
