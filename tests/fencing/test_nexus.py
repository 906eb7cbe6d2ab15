"""Two nodes with one NVMe host identifier, and namespaces that forget."""

from collections.abc import Callable

import pytest

from fencing import Handle, Identity, Label, Lost, Lun, SharedNexus, acquire, verify
from fencing.fake import seed_label
from fencing.fakenvme import FakeNamespace, FakeNvmePort, namespace_lun
from tests.fencing.conftest import at_once

CLUSTER = "5d0c9a52-0000-4000-8000-000000000001"
TWIN = bytes(range(16))
OTHER = bytes(16 * [9])


@pytest.fixture
def unit(label: Callable[..., Label]) -> FakeNamespace:
    made = FakeNamespace(name="uuid.1")
    seed_label(made, label("uuid.1"))
    return made


def identity(node: int) -> Identity:
    return Identity(cluster_uuid=CLUSTER, node=node, node_name=f"n{node}")


def take(lun: Lun, node: int, floor: int = 0, intents: list[int] | None = None) -> Handle:
    intent = (intents if intents is not None else []).append
    return acquire([lun], identity(node), floor=floor, intent=intent, clock=lambda: 0.0, settle=at_once)


def test_nodes_with_hosts_of_their_own_take_over_from_each_other(unit: FakeNamespace) -> None:
    first = take(namespace_lun(unit, TWIN), 1)
    second = take(namespace_lun(unit, OTHER), 2)
    third = take(namespace_lun(unit, TWIN), 1)
    assert [first.epoch, second.epoch, third.epoch] == [1, 2, 3]
    assert isinstance(verify(first), Lost) and isinstance(verify(second), Lost)
    assert unit.state().exclusive_to(third.key.value)


def test_a_restarted_node_replaces_its_own_key_without_opening_the_device(unit: FakeNamespace) -> None:
    first = take(namespace_lun(unit, TWIN), 1)
    types = []

    class Watched(FakeNvmePort):
        def read(self):  # type: ignore[no-untyped-def]
            types.append(self.unit.type)
            return super().read()

    lun = namespace_lun(unit, TWIN)
    again = take(Lun(**{**{n: getattr(lun, n) for n in Lun.__slots__}, "port": Watched(unit, TWIN)}), 1)
    assert again.epoch == first.epoch + 1 and None not in types


def test_a_twin_of_the_owner_is_refused_with_both_named_and_changes_nothing(unit: FakeNamespace) -> None:
    owner = take(namespace_lun(unit, TWIN), 1)
    before, intents = unit.fingerprint(), list[int]()
    with pytest.raises(SharedNexus, match=f"node 1 .*{TWIN.hex()}.*hostid") as caught:
        take(namespace_lun(unit, TWIN), 2, intents=intents)
    assert caught.value.node == 1 and unit.fingerprint() == before and intents == []
    assert not isinstance(verify(owner), Lost)


def test_force_does_not_help_a_twin(unit: FakeNamespace) -> None:
    take(namespace_lun(unit, TWIN), 1)
    with pytest.raises(SharedNexus):
        acquire(
            [namespace_lun(unit, TWIN)], identity(2), floor=0, intent=lambda epoch: None, clock=lambda: 0.0, force=True
        )


def test_a_twin_that_registers_between_a_look_and_a_step_is_not_replaced(unit: FakeNamespace) -> None:
    """Both looked when nobody was registered. The device compares, so the second one's REGISTER is refused."""

    class Late(FakeNvmePort):
        reads = 0

        def read(self):  # type: ignore[no-untyped-def]
            state = super().read()
            self.reads += 1
            if self.reads == 2:  # after the survey: what the first step is decided from
                take(namespace_lun(self.unit, TWIN), 1)
            return state

    lun = namespace_lun(unit, TWIN)
    late = Lun(**{**{n: getattr(lun, n) for n in Lun.__slots__}, "port": Late(unit, TWIN)})
    with pytest.raises(SharedNexus, match="node 1"):
        take(late, 2, floor=5)
    assert [key >> 32 & 0xFFF for key in unit.state().keys] == [1]


def test_a_device_that_forgot_everything_is_a_loss_and_is_fenced_with_a_new_epoch(unit: FakeNamespace) -> None:
    owner = take(namespace_lun(unit, TWIN), 1)
    unit.power_loss()
    verdict = verify(owner)
    assert isinstance(verdict, Lost) and "forgot" in verdict.reason
    write = unit.write(OTHER, 9, b"late")
    write.arrive()
    assert unit.in_flight == [write], "until somebody fences it anew, the device is open"
    again = take(namespace_lun(unit, TWIN), 1, floor=owner.epoch)
    assert again.epoch == owner.epoch + 1
    assert isinstance(verify(owner), Lost) and unit.state().exclusive_to(again.key.value)
    late = unit.write(OTHER, 9, b"later")
    late.arrive()
    assert late.state.value == "refused"
