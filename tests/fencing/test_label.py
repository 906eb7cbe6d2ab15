import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from fencing import Identity, Label, LabelError
from fencing.label import (
    BLANK,
    BLOCK_BYTES,
    COPIED,
    DAMAGED,
    MEMBERS_MAX,
    NEWER_FORMAT,
    SHRANK,
    TOO_LONG,
    TWO_OWNERS,
    UNREADABLE,
    WRONG_CLUSTER,
    WRONG_SET,
    FoundLabel,
    bytes_needed,
    check_member,
    common_label,
    decode,
    encode,
    newest,
)

MakeLabel = Callable[..., Label]


def sealed(payload: bytes, version: int = 1) -> bytes:
    header = struct.pack("<16sIIQ", b"HACTL-LABEL\r\n\x1a\n\x00", version, len(payload), 0)
    return (header + hashlib.sha256(header + payload).digest() + payload).ljust(BLOCK_BYTES, b"\0")


def kind_of(block: bytes | None) -> str:
    with pytest.raises(LabelError) as caught:
        newest([block, bytes(BLOCK_BYTES)])
    assert caught.value.next_action
    return caught.value.kind


def test_a_label_reads_back_as_written(label: MakeLabel) -> None:
    written = label("naa.1", "naa.2", epoch=9)
    block = encode(written)
    assert len(block) == BLOCK_BYTES
    assert decode(block) == written


def test_the_format_on_disk_is_the_documented_one(label: MakeLabel) -> None:
    block = encode(label("naa.1"))
    assert block[:16] == b"HACTL-LABEL\r\n\x1a\n\x00"
    assert struct.unpack_from("<II", block, 16)[0] == 1
    length = struct.unpack_from("<I", block, 20)[0]
    assert block[32:64] == hashlib.sha256(block[:32] + block[64 : 64 + length]).digest()
    assert json.loads(block[64 : 64 + length])["volume"] == "v1"
    assert not any(block[64 + length :])


def test_blank_copies_are_no_label() -> None:
    assert newest([bytes(BLOCK_BYTES), bytes(BLOCK_BYTES)]) is None


def test_the_newest_valid_copy_wins(label: MakeLabel) -> None:
    older, newer = label("naa.1", epoch=8, seq=30), label("naa.1", epoch=9, seq=31)
    found = newest([encode(newer), encode(older)])
    assert found == FoundLabel(label=newer, slot=0, copies=(newer, older))
    assert found.next_slot == 1


def test_a_torn_copy_leaves_the_other(label: MakeLabel) -> None:
    older, newer = encode(label("naa.1", epoch=8)), encode(label("naa.1", epoch=9, seq=2))
    for cut in range(1, 200, 7):
        found = newest([older, newer[:cut] + older[cut:]])
        assert found is not None and found.label.epoch == 8
        assert found.damage or cut < 80  # a cut before the first difference is no damage


def test_an_unreadable_copy_leaves_the_other_and_alone_is_an_error(label: MakeLabel) -> None:
    found = newest([None, encode(label("naa.1"))])
    assert found is not None and found.slot == 1 and "cannot be read" in found.damage
    assert kind_of(None) == UNREADABLE


def test_two_bad_copies_are_an_error_and_not_a_blank_disk(label: MakeLabel) -> None:
    block = bytearray(encode(label("naa.1")))
    block[100] ^= 1
    assert kind_of(bytes(block)) == DAMAGED


def test_a_newer_format_is_an_error_even_beside_a_copy_that_can_be_read(label: MakeLabel) -> None:
    assert kind_of(sealed(b"whatever", version=3)) == NEWER_FORMAT
    with pytest.raises(LabelError, match="format 3"):
        newest([sealed(b"whatever", version=3), encode(label("naa.1"))])


@pytest.mark.parametrize(
    "block",
    [
        b"HACTL-LABEL\r\n\x1a\n\x00",
        b"\x89PNG" + bytes(BLOCK_BYTES),
        sealed(b"[]"),
        sealed(b"{}"),
        sealed(b"\xff\xfe"),
        sealed(b"[" * 4000),
        sealed(b"NaN"),
    ],
)
def test_content_that_makes_no_sense_is_damage(block: bytes) -> None:
    assert kind_of(block) == DAMAGED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "9"),
        ("epoch", True),
        ("epoch", -1),
        ("epoch", 1 << 32),
        ("wanted", "running"),
        ("wwids", []),
        ("wwids", [1]),
        ("clients", "10.0.0.0/8"),
        ("volume", ""),
        ("lease_s", 0),
        ("colour", "blue"),
    ],
)
def test_a_sealed_label_with_a_wrong_field_is_damage(label: MakeLabel, field: str, value: object) -> None:
    block = encode(label("naa.1"))
    members = json.loads(block[64 : 64 + struct.unpack_from("<I", block, 20)[0]])
    assert kind_of(sealed(json.dumps(members | {field: value}).encode())) == DAMAGED


def test_a_sealed_label_without_a_field_is_damage(label: MakeLabel) -> None:
    block = encode(label("naa.1"))
    members = json.loads(block[64 : 64 + struct.unpack_from("<I", block, 20)[0]])
    del members["epoch"]
    assert kind_of(sealed(json.dumps(members).encode())) == DAMAGED


def test_a_label_that_does_not_fit_is_refused_before_it_is_written(label: MakeLabel) -> None:
    many = tuple(f"10.0.{high}.{low}/32" for high in range(2) for low in range(256))
    with pytest.raises(LabelError, match="at most") as caught:
        encode(replace(label("naa.1"), clients=many))
    assert caught.value.kind == TOO_LONG


def test_no_bytes_crash_the_decoder(label: MakeLabel) -> None:
    dice = random.Random(1)
    good = encode(label("naa.1"))
    for _ in range(3000):
        damaged = bytearray(good[: dice.randrange(len(good) + 1)])
        for _ in range(dice.randrange(4)):
            if damaged:
                damaged[dice.randrange(min(len(damaged), 600))] = dice.randrange(256)
        try:
            newest([bytes(damaged), dice.randbytes(BLOCK_BYTES)])
        except LabelError:
            pass


def found(label: Label) -> FoundLabel:
    return FoundLabel(label=label, slot=0, copies=(label, None))


def identity(cluster_uuid: str) -> Identity:
    return Identity(cluster_uuid=cluster_uuid, node=1, node_name="n1")


def test_the_label_of_a_set_is_its_newest(label: MakeLabel) -> None:
    old, new = label("naa.1", "naa.2", seq=4), label("naa.1", "naa.2", seq=5)
    assert common_label({"naa.1": found(old), "naa.2": found(new)}, identity(old.cluster_uuid)) == new


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (lambda label: None, BLANK),
        (lambda label: found(replace(label, cluster_uuid="another")), WRONG_CLUSTER),
        (lambda label: found(replace(label, wwids=("naa.1", "naa.2", "naa.3"))), WRONG_SET),
        (lambda label: found(replace(label, volume_uuid="another")), WRONG_SET),
    ],
)
def test_a_set_that_is_not_one_volume_of_ours_is_refused(
    label: MakeLabel, second: Callable[[Label], FoundLabel | None], kind: str
) -> None:
    first = label("naa.1", "naa.2")
    with pytest.raises(LabelError) as caught:
        common_label({"naa.1": found(first), "naa.2": second(first)}, identity(first.cluster_uuid))
    assert caught.value.kind == kind
    assert caught.value.device == "naa.2"


# -- labels of several LUNs ------------------------------------------------------------------------------------


def set_label(label: MakeLabel, *wwids: str, **changes: object) -> Label:
    whole = replace(label(*wwids), member=0, sizes=tuple(1 << 30 for _ in wwids), stack="lvm")
    return replace(whole, **changes)  # type: ignore[arg-type]


def found_of(each: Label, wwid: str) -> FoundLabel:
    return FoundLabel(label=each.on(wwid), slot=0, copies=(each.on(wwid), None))


def kind_raised(call: Callable[[], object]) -> str:
    with pytest.raises(LabelError) as caught:
        call()
    assert caught.value.next_action
    return caught.value.kind


def test_a_label_without_sizes_is_written_so_that_an_older_hactl_reads_it(label: MakeLabel) -> None:
    assert struct.unpack_from("<I", encode(label("naa.1")), 16)[0] == 1
    assert struct.unpack_from("<I", encode(set_label(label, "naa.1", "naa.2")), 16)[0] == 2


def test_each_lun_of_a_set_carries_its_own_place_in_it(label: MakeLabel) -> None:
    written = set_label(label, "naa.1", "naa.2")
    assert [decode(encode(written.on(wwid))).member for wwid in ("naa.1", "naa.2")] == [0, 1]  # type: ignore[union-attr]
    with pytest.raises(ValueError):
        written.on("naa.3")


def test_the_names_of_as_many_luns_as_a_volume_may_have_fit_whatever_they_are(label: MakeLabel) -> None:
    dice = random.Random(3)
    wwids = sorted(f"eui.{dice.getrandbits(320):080x}" for _ in range(MEMBERS_MAX))
    written = set_label(label, *wwids)
    copy = encode(written)
    assert len(copy) > BLOCK_BYTES and len(copy) % BLOCK_BYTES == 0
    assert bytes_needed(copy[:BLOCK_BYTES]) == len(copy)
    assert decode(copy) == written
    assert kind_of(copy[:BLOCK_BYTES]) == DAMAGED
    with pytest.raises(ValueError, match="1 to 128"):
        set_label(label, *wwids, "eui.one-more")


@pytest.mark.parametrize("head", [bytes(BLOCK_BYTES), b"garbage", b"HACTL-LABEL\r\n\x1a\n\x00" + b"\xff" * 4000])
def test_no_head_asks_for_more_than_a_copy_can_have(head: bytes) -> None:
    assert bytes_needed(head) == BLOCK_BYTES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("member", 2),
        ("member", -2),
        ("member", "0"),
        ("sizes", [1]),
        ("sizes", [1, 0]),
        ("sizes", [1, "2"]),
        ("wwids", ["naa.1", "naa.1"]),
        ("stack", 1),
        ("format", 1),
        ("format", 3),
    ],
)
def test_a_sealed_set_label_with_a_wrong_field_is_damage(label: MakeLabel, field: str, value: object) -> None:
    copy = encode(set_label(label, "naa.1", "naa.2"))
    members = json.loads(copy[64 : 64 + struct.unpack_from("<I", copy, 20)[0]])
    assert kind_of(sealed(json.dumps(members | {field: value}).encode(), version=2)) == DAMAGED


def test_a_lun_that_shrank_is_refused_and_one_that_grew_is_not(label: MakeLabel) -> None:
    whole = set_label(label, "naa.1", "naa.2")
    assert kind_raised(lambda: check_member(whole.on("naa.2"), "naa.2", (1 << 30) - 512)) == SHRANK
    check_member(whole.on("naa.2"), "naa.2", 1 << 31)
    check_member(whole.on("naa.2"), "naa.2", 0)  # not known


def test_a_label_on_a_lun_for_which_it_was_not_written_is_a_copy(label: MakeLabel) -> None:
    whole = set_label(label, "naa.1", "naa.2")
    assert kind_raised(lambda: check_member(whole, "naa.9")) == COPIED
    # the two LUNs of the set were exchanged, or one was copied over the other
    assert kind_raised(lambda: check_member(whole.on("naa.1"), "naa.2")) == COPIED


def test_copies_of_two_clusters_on_one_lun_are_refused(label: MakeLabel) -> None:
    mine, other = label("naa.1", epoch=9), label("naa.1", epoch=3, cluster="another")
    assert kind_raised(lambda: newest([encode(mine), encode(other)])) == TWO_OWNERS
    renewed = replace(label("naa.1"), volume_uuid="another")
    assert kind_raised(lambda: newest([encode(mine), encode(renewed)])) == TWO_OWNERS


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"wwids": ("naa.1", "naa.2", "naa.3"), "sizes": (1 << 30,) * 3}, WRONG_SET),
        ({"volume_uuid": "another"}, WRONG_SET),
        ({"stack": "md"}, WRONG_SET),
        ({"cluster_uuid": "another"}, WRONG_CLUSTER),
        ({"member": 0}, COPIED),
    ],
)
def test_luns_that_do_not_agree_are_no_set(label: MakeLabel, change: dict[str, object], kind: str) -> None:
    whole = set_label(label, "naa.1", "naa.2")
    odd = replace(whole.on("naa.2"), **change)  # type: ignore[arg-type]
    found = {"naa.1": found_of(whole, "naa.1"), "naa.2": FoundLabel(label=odd, slot=0, copies=(odd, None))}
    identity = Identity(cluster_uuid=whole.cluster_uuid, node=1, node_name="n1")
    assert kind_raised(lambda: common_label(found, identity)) == kind
    assert kind_raised(lambda: common_label(dict(reversed(found.items())), identity)) == kind


def test_missing_luns_are_named(label: MakeLabel) -> None:
    whole = set_label(label, "naa.1", "naa.2", "naa.3")
    identity = Identity(cluster_uuid=whole.cluster_uuid, node=1, node_name="n1")
    with pytest.raises(LabelError, match=r"1 of its 3 LUNs are missing: naa\.3"):
        common_label({wwid: found_of(whole, wwid) for wwid in ("naa.1", "naa.2")}, identity)
