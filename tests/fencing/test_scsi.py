import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencing import scsi
from fencing.model import OUR_TYPE, Capabilities, PrType, Registrant, ReservationState

TRANSPORT_ID = b"\x45\x00\x00\x14iqn.2026-11.x:n1,i,0x1"[:24]


def descriptor(key: int, *, holder: bool = False, type: int = 5, scope: int = 0) -> bytes:
    scope_type = scope << 4 | type if holder else 0
    head = struct.pack(">Q4xBB4xHI", key, int(holder), scope_type, 1, len(TRANSPORT_ID))
    return head + TRANSPORT_ID


def answer(*bodies: bytes, generation: int = 7) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">II", generation, len(body)) + body


def test_full_status_gives_registrants_with_nexus_holder_and_type() -> None:
    state = scsi.parse_full_status(answer(descriptor(1, holder=True), descriptor(2)) + bytes(100))
    nexus = b"\0\1" + TRANSPORT_ID
    assert state == ReservationState(
        generation=7,
        registrants=(
            Registrant(key=1, holder=True, nexus=nexus),
            Registrant(key=2, holder=False, nexus=nexus),
        ),
        type=OUR_TYPE,
    )


def test_full_status_of_an_unused_device_is_empty() -> None:
    assert scsi.parse_full_status(answer()) == ReservationState(generation=7, registrants=(), type=None)


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        (b"", "an answer of 0 bytes"),
        (bytes(7), "an answer of 7 bytes"),
        (struct.pack(">II", 1, 48), "48 more than its header"),
        (struct.pack(">II", 1, 0xFFFFFFFF) + bytes(64), "4294967295 more"),
        (answer(descriptor(1)[:20]), "left for a descriptor"),
        (answer(descriptor(1) + b"\0"), "left for a descriptor"),
        (answer(descriptor(1)[:-1]), "a TransportID of 24 bytes where 23 are left"),
        (answer(descriptor(0)), "key 0"),
        (answer(descriptor(1, holder=True, type=9)), "type 9"),
        (answer(descriptor(1, holder=True, scope=2)), "scope 2"),
        (answer(descriptor(1, holder=True), descriptor(2, holder=True, type=7)), "different types"),
    ],
)
def test_a_full_status_that_makes_no_sense_is_named(bytes_: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        scsi.parse_full_status(bytes_)


def test_keys_and_reservation_combine_to_the_same_model() -> None:
    generation, keys = scsi.parse_keys(answer(struct.pack(">QQ", 1, 2)))
    later, reservation = scsi.parse_reservation(answer(struct.pack(">Q4xxB2x", 2, 5)))
    assert (generation, later) == (7, 7)
    state = scsi.combine(generation, keys, reservation)
    assert (state.keys, state.holders, state.type) == ((1, 2), (2,), OUR_TYPE)


def test_keys_without_a_reservation_have_no_holder() -> None:
    assert scsi.parse_reservation(answer()) == (7, None)
    assert scsi.combine(7, (1,), None).holders == ()


def test_all_registrants_hold_where_the_type_says_so() -> None:
    _, reservation = scsi.parse_reservation(answer(struct.pack(">Q4xxB2x", 0, 7)))
    assert scsi.combine(7, (1, 2), reservation).holders == (1, 2)


def test_a_holder_that_is_not_registered_is_named() -> None:
    with pytest.raises(ValueError, match="not among the registered"):
        scsi.combine(7, (1,), (2, OUR_TYPE))


@pytest.mark.parametrize("body", [bytes(7), bytes(9), bytes(8)])
def test_a_list_of_keys_that_makes_no_sense_is_named(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"list of keys|key 0"):
        scsi.parse_keys(answer(body))


@pytest.mark.parametrize("body", [bytes(15), bytes(24), struct.pack(">Q4xxB2x", 1, 0)])
def test_a_reservation_that_makes_no_sense_is_named(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"reservation of"):
        scsi.parse_reservation(answer(body))


def test_needed_is_the_length_of_the_whole_answer() -> None:
    assert scsi.needed(answer(bytes(40))) == 48


def test_capabilities_tell_persistence_and_types() -> None:
    # as LIO of 6.1 answers with a registration that persists
    assert scsi.parse_capabilities(bytes.fromhex("0008 1d b1 ea01 0000")) == Capabilities(
        persists=True, persistence_active=True, types=frozenset(PrType)
    )


def test_capabilities_without_a_valid_mask_say_nothing_of_types() -> None:
    assert scsi.parse_capabilities(bytes.fromhex("0008 00 00 ea01 0000")) == Capabilities(
        persists=False, persistence_active=False, types=frozenset()
    )


@pytest.mark.parametrize("bytes_", [b"", bytes(7), bytes(8)])
def test_capabilities_that_make_no_sense_are_named(bytes_: bytes) -> None:
    with pytest.raises(ValueError, match="capabilities"):
        scsi.parse_capabilities(bytes_)


def test_parameters_are_24_bytes_with_both_keys_and_aptpl() -> None:
    assert scsi.out_parameters(1, 2, aptpl=True).hex(" ", 8) == ("0000000000000001 0000000000000002 0000000001000000")
    assert scsi.out_parameters(1, 2)[20] == 0


@pytest.mark.parametrize("key", [-1, 1 << 64])
def test_keys_beyond_64_bits_do_not_reach_a_device(key: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        scsi.out_parameters(key, 1)


PARSERS = (
    scsi.parse_full_status,
    scsi.parse_keys,
    scsi.parse_reservation,
    scsi.parse_capabilities,
    scsi.needed,
)


@given(st.binary(max_size=400))
def test_no_bytes_crash_a_parser(bytes_: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(bytes_)
        except ValueError:
            pass


def test_no_damage_to_a_good_answer_crashes_a_parser() -> None:
    dice = random.Random(1)
    good = answer(descriptor(1, holder=True), descriptor(2))
    for _ in range(5000):
        damaged = bytearray(good[: dice.randrange(len(good) + 1)])
        for _ in range(dice.randrange(4)):
            if damaged:
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        for parse in PARSERS:
            try:
                parse(bytes(damaged))
            except ValueError:
                pass


def test_commands_are_as_spc_draws_them() -> None:
    assert scsi.in_cdb(scsi.IN_READ_FULL_STATUS, 0x1234).hex() == "5e030000000000123400"
    assert scsi.out_cdb(scsi.OUT_PREEMPT_AND_ABORT, OUR_TYPE, 24).hex() == "5f050500000000001800"
