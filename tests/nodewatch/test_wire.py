from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodewatch import wire
from nodewatch.heartbeat import (
    HEARTBEAT,
    LETTER,
    Entry,
    Letter,
    Malformed,
    Order,
    Pulse,
    Said,
    decode_letter,
    decode_said,
    encode_heartbeat,
    encode_letter,
    encode_said,
    kind_of,
    pulse_at,
    split_heartbeat,
)

from .cluster_sim import KEY, UUID

SAID = Said(
    flags=3,
    role=2,
    daemon=1,
    digest=b"12345678",
    config_version=7,
    previous=b"abcdefgh",
    durable_term=9,
    accepted_term=8,
    accepted=b"ABCDEFGH",
    term=1 << 40,
    leader=4095,
    voted_for=1,
    supports=0,
    barred_mark=77,
    entries=(Entry(1, 7, 1 << 50, 9, 8, 2, 3, 1), Entry(2, 0, 0, 0, 0, 0, 0)),
    orders=(Order(3, 1, 1, 99),),
)
PULSES = [Pulse(5, 65535, 1 << 31), Pulse(0, 0, 0)]


def test_a_frame_opens_with_its_own_key_only() -> None:
    cipher = wire.Cipher(KEY, UUID, 1, 10)
    datagram = cipher.seal(3, b"body")
    assert wire.parse_header(datagram) == wire.Header(1, 10, 3)
    assert cipher.open(datagram, 3) == b"body"
    for other in (
        wire.Cipher(bytes(32), UUID, 1, 10),
        wire.Cipher(KEY, UUID.replace("5", "6"), 1, 10),
        wire.Cipher(KEY, UUID, 2, 10),
        wire.Cipher(KEY, UUID, 1, 11),
    ):
        assert other.open(datagram, 3) is None


def test_no_bit_of_a_frame_can_be_changed() -> None:
    cipher = wire.Cipher(KEY, UUID, 1, 10)
    datagram = cipher.seal(3, b"body")
    for place in range(len(datagram) * 8):
        changed = bytearray(datagram)
        changed[place // 8] ^= 1 << place % 8
        header = wire.parse_header(bytes(changed))
        assert isinstance(header, str) or cipher.open(bytes(changed), header.seq) is None


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", wire.TOO_SHORT),
        (b"hN\x01", wire.TOO_SHORT),
        (b"GET / HTTP/1.0", wire.NOT_OURS),
        (bytes(100), wire.NOT_OURS),
        (b"hN\x02" + bytes(97), wire.OTHER_VERSION),
        (b"hN\x01\x00" + bytes(2000), wire.TOO_LONG),
    ],
)
def test_each_bad_header_has_its_reason(datagram: bytes, reason: str) -> None:
    assert wire.parse_header(datagram) == reason


@given(st.lists(st.integers(1, 700), max_size=300))
def test_the_replay_window_accepts_nothing_twice_and_everything_recent_once(seqs: list[int]) -> None:
    window, seen = wire.ReplayWindow(), set[int]()
    for seq in seqs:
        newest = max(seen, default=0)
        expected = seq not in seen and seq > newest - wire.WINDOW
        assert window.accept(seq) == expected
        if expected:
            seen.add(seq)


def test_a_heartbeat_survives_the_wire() -> None:
    body = encode_heartbeat(encode_said(SAID), PULSES)
    said, pulses = split_heartbeat(body)
    assert kind_of(body) == HEARTBEAT
    assert decode_said(said, pulses) == SAID
    assert [pulse_at(pulses, place) for place in range(2)] == PULSES


def test_a_letter_survives_the_wire() -> None:
    letter = Letter(1 << 60, 3, 4, 1, b"content")
    assert kind_of(encode_letter(letter)) == LETTER
    assert decode_letter(encode_letter(letter)) == letter


@given(st.binary(max_size=400))
def test_any_body_is_understood_or_malformed(body: bytes) -> None:
    whole = encode_heartbeat(encode_said(SAID), PULSES)
    for candidate in (body, b"\x01" + body, b"\x02" + body, whole[: len(body)], whole + body, body[:40] + whole[40:]):
        try:
            if kind_of(candidate) == LETTER:
                decode_letter(candidate)
            else:
                decode_said(*split_heartbeat(candidate))
        except Malformed as error:
            assert str(error)
