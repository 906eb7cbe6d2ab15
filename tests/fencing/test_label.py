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
    DAMAGED,
    NEWER_FORMAT,
    TOO_LONG,
    UNREADABLE,
    WRONG_CLUSTER,
    WRONG_SET,
    FoundLabel,
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
    assert kind_of(sealed(b"whatever", version=2)) == NEWER_FORMAT
    with pytest.raises(LabelError, match="format 2"):
        newest([sealed(b"whatever", version=2), encode(label("naa.1"))])


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
