"""Sets of LUNs that are not what their labels say: a clear error, and nothing written to any of them."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fencing import FencingError, ForeignOwner, Garbled, LabelError
from fencing.fake import FakeLabels, FakeLogicalUnit, fake_lun, seed_label
from fencing.label import BLOCK_BYTES, encode
from fencing.spread import in_turn, worst

SIZE = 1 << 30


@pytest.fixture
def trio(new_cluster):
    """Three LUNs of one volume, each with its size in the label, owned by the first node."""
    made = new_cluster(units=3)
    for unit in made.units:
        unit.size_bytes = SIZE
    wwids = tuple(unit.name for unit in made.units)
    plain = FakeLabels(made.units[0], b"x").read().label
    for unit in made.units:
        seed_label(unit, replace(plain, wwids=wwids, member=0, sizes=(SIZE,) * 3, stack="lvm"))
    made.nodes[0].acquire()
    return made


def rewrite(unit: FakeLogicalUnit, **changes: object) -> None:
    label = replace(FakeLabels(unit, b"x").read().label, **changes)
    for slot in range(2):
        unit.blocks[FakeLabels.FIRST_BLOCK + slot] = encode(label)


def blocks(unit: FakeLogicalUnit, block: bytes) -> None:
    for slot in range(2):
        unit.blocks[FakeLabels.FIRST_BLOCK + slot] = block


def newer(unit: FakeLogicalUnit) -> None:
    block = bytearray(unit.blocks[FakeLabels.FIRST_BLOCK])
    block[16] = 9
    blocks(unit, bytes(block))


def shrink(unit: FakeLogicalUnit) -> None:
    unit.size_bytes = SIZE - 4096


def two_clusters(unit: FakeLogicalUnit) -> None:
    label = FakeLabels(unit, b"x").read().label
    unit.blocks[FakeLabels.FIRST_BLOCK] = encode(replace(label, cluster_uuid="another", cluster_name="theirs"))


WRONG: dict[str, tuple[Callable[[FakeLogicalUnit], object], str]] = {
    "a newer format": (newer, "format 9"),
    "it shrank": (shrink, "shrank"),
    "another cluster's": (lambda unit: rewrite(unit, cluster_uuid="another", cluster_name="theirs"), "theirs"),
    "two clusters": (two_clusters, "two claim it"),
    "of another set": (lambda unit: rewrite(unit, volume_uuid="another", volume="v9"), "volume v9"),
    "of a larger set": (
        lambda unit: rewrite(unit, wwids=("naa.0", "naa.1", "naa.2", "naa.3"), sizes=(SIZE,) * 4),
        "1 of its 4 LUNs are missing: naa.3",
    ),
    "a copy of another member": (lambda unit: rewrite(unit, member=0), "a copy"),
    "another identity": (
        lambda unit: rewrite(unit, wwids=("naa.0", "naa.1", "naa.7"), member=2),
        "written for naa.7, but is naa.2",
    ),
    "blank": (lambda unit: blocks(unit, bytes(BLOCK_BYTES)), "no label"),
    "garbage": (lambda unit: blocks(unit, bytes(range(256)) * 16), "damaged"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_set_with_one_wrong_lun_is_refused_and_nothing_is_written(trio, wrong: str) -> None:
    spoil, words = WRONG[wrong]
    spoil(trio.units[2])
    before = [unit.fingerprint() for unit in trio.units]
    with pytest.raises(LabelError, match=words) as caught:
        trio.nodes[1].acquire()
    assert caught.value.device and caught.value.next_action
    assert [unit.fingerprint() for unit in trio.units] == before
    assert trio.nodes[1].intents == []


@pytest.mark.parametrize("absent", range(3))
def test_a_set_without_one_of_its_luns_is_refused_and_nothing_is_written(trio, absent: int) -> None:
    node = trio.nodes[1]
    node.units = tuple(unit for index, unit in enumerate(trio.units) if index != absent)
    before = [unit.fingerprint() for unit in trio.units]
    with pytest.raises(LabelError, match=f"missing: naa.{absent}"):
        node.acquire()
    assert [unit.fingerprint() for unit in trio.units] == before


def test_a_set_with_a_lun_twice_is_refused(trio) -> None:
    node = trio.nodes[1]
    node.units = (*trio.units, trio.units[0])
    with pytest.raises(ValueError, match="only once"):
        node.acquire()


def test_a_set_of_which_one_lun_is_used_by_another_cluster_is_refused_whole(trio) -> None:
    trio.units[1].connect(b"theirs").register(0, 0xBAD0_0001_0000_0007)
    before = [unit.fingerprint() for unit in trio.units]
    with pytest.raises(ForeignOwner, match="0xbad0000100000007"):
        trio.nodes[1].acquire()
    assert [unit.fingerprint() for unit in trio.units] == before


def test_a_lun_that_answers_garbage_stops_it_before_anything_is_changed(trio) -> None:
    class Babbling(type(fake_lun(trio.units[0], b"n2").port)):  # type: ignore[misc]
        def read(self):
            raise Garbled("a list of 7 bytes", device="naa.1", operation="read")

    node = trio.nodes[1]
    luns = node.luns()
    luns[1] = replace(luns[1], port=Babbling(trio.units[1], b"n2"))
    node.luns = lambda choose=None: luns  # type: ignore[method-assign]
    before = [unit.fingerprint() for unit in trio.units]
    with pytest.raises(Garbled):
        node.acquire()
    assert [unit.fingerprint() for unit in trio.units] == before
    assert node.intents == []


def test_what_decides_is_the_worst_of_many_errors(trio) -> None:
    from fencing import LostRace, NotDelivered

    silent = NotDelivered("no path", device="naa.0", operation="read")
    lost = LostRace("beaten", device="naa.1", rival=None)
    label = LabelError("no", device="naa.2", kind="blank", next_action="look")
    assert worst([silent, label, lost]) is lost
    assert worst([silent, label]) is label
    bug = RuntimeError()
    assert worst([lost, bug]) is bug


def test_one_after_the_other_ends_at_the_first_error() -> None:
    done: list[int] = []

    def fail() -> None:
        raise FencingError("x", device="d", next_action="n")

    with pytest.raises(FencingError):
        in_turn([lambda: done.append(1), fail, lambda: done.append(3)])
    assert done == [1]
