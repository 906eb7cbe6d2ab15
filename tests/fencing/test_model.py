import pytest

from fencing import Key, Registrant, ReservationState, cluster_tag, show_key
from fencing.model import OUR_TYPE, PrType


def test_a_key_packs_tag_node_and_epoch_from_the_top() -> None:
    key = Key(cluster_tag=0xABCDE, node=0x123, epoch=0x89ABCDEF)
    assert key.value == 0xABCDE12389ABCDEF
    assert Key.parse(key.value) == key


def test_keys_are_printed_with_sixteen_digits() -> None:
    assert show_key(0x1A) == "0x000000000000001a"
    assert str(Key(cluster_tag=1, node=1, epoch=1)) == "0x0000100100000001"


@pytest.mark.parametrize("fields", [(1 << 20, 1, 1), (1, 1 << 12, 1), (1, 1, 1 << 32), (1, 1, -1)])
def test_a_key_out_of_range_is_refused(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        Key(cluster_tag=fields[0], node=fields[1], epoch=fields[2])


def test_keys_of_other_tools_belong_to_no_cluster() -> None:
    tag = cluster_tag("5d0c9a52-0000-4000-8000-000000000001")
    assert tag != 0
    assert not Key.parse(0x1).belongs_to(tag)
    assert not Key.parse(tag << 44).belongs_to(tag)
    assert Key(cluster_tag=tag, node=1, epoch=0).belongs_to(tag)


def test_the_tag_does_not_depend_on_how_the_uuid_is_written() -> None:
    assert cluster_tag("ABCD") == cluster_tag(" abcd\n")


def test_exclusive_means_one_key_that_holds_with_our_type() -> None:
    def state(*registrants: tuple[int, bool], type: PrType | None = OUR_TYPE) -> ReservationState:
        return ReservationState(
            generation=1,
            registrants=tuple(Registrant(key=key, holder=holds, nexus=b"") for key, holds in registrants),
            type=type,
        )

    assert state((1, True)).exclusive_to(1)
    assert state((1, True), (1, False)).exclusive_to(1)  # two paths of one node
    assert not state((1, True), (2, False)).exclusive_to(1)
    assert not state((1, False), (2, True)).exclusive_to(1)
    assert not state((1, False), type=None).exclusive_to(1)
    assert not state((1, True), type=PrType.WRITE_EXCLUSIVE).exclusive_to(1)


def test_a_holder_without_a_reservation_is_no_state() -> None:
    with pytest.raises(ValueError, match="without a reservation"):
        ReservationState(generation=1, registrants=(Registrant(key=1, holder=True, nexus=b""),), type=None)
