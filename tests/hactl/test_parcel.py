"""Long messages travel in parts; whatever else comes is refused, and changes nothing."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from hactl import parcel
from hactl.messages import MessageError
from hactl.parcel import PARTS_MAX, Parcels, pack
from nodewatch._client import MAX_BODY_BYTES

SHORT = {"kind": "report", "volumes": {}}


def long(seed: int = 1, volumes: int = 6000) -> dict[str, Any]:
    dice = random.Random(seed)
    return {"kind": "report", "volumes": {f"v{n}": f"{dice.getrandbits(128):032x}" for n in range(volumes)}}


def joined(parcels: Parcels, parts: list[dict[str, Any]]) -> list[object]:
    return [body for part in parts if (body := parcels.take("n1", part)) is not None]


def test_a_short_message_is_sent_as_it_is() -> None:
    assert pack(SHORT, ident=1) == [SHORT]
    assert Parcels().take("n1", SHORT) == SHORT


def test_a_long_message_comes_together_again_and_every_part_fits_a_letter() -> None:
    parts = pack(long(), ident=1)
    assert len(parts) > 1
    assert all(len(json.dumps(part)) < MAX_BODY_BYTES for part in parts)
    assert joined(Parcels(), parts) == [long()]


def test_parts_of_two_senders_do_not_mix() -> None:
    parcels, one, two = Parcels(), pack(long(1), ident=1), pack(long(2), ident=1)
    for first, second in zip(one[:-1], two[:-1], strict=True):
        assert parcels.take("n1", first) is None
        assert parcels.take("n2", second) is None
    assert parcels.take("n2", two[-1]) == long(2)
    assert parcels.take("n1", one[-1]) == long(1)


@pytest.mark.parametrize("lost", [0, 1])
def test_after_a_lost_part_the_next_message_counts_again(lost: int) -> None:
    parcels, parts = Parcels(), pack(long(), ident=1)
    for part in parts[:lost]:
        parcels.take("n1", part)
    with pytest.raises(MessageError):
        parcels.take("n1", parts[lost + 1])
    assert joined(parcels, pack(long(2), ident=2)) == [long(2)]


def test_a_part_of_another_message_does_not_continue_the_one_begun() -> None:
    parcels, one, two = Parcels(), pack(long(1), ident=1), pack(long(2), ident=2)
    parcels.take("n1", one[0])
    with pytest.raises(MessageError):
        parcels.take("n1", two[1])


@pytest.mark.parametrize(
    "change",
    [
        {"of": PARTS_MAX + 1},
        {"number": -1},
        {"number": 9, "of": 9},
        {"ident": "1"},
        {"text": 5},
        {"text": "x" * (parcel.PART_CHARS + 1)},
        {"more": 1},
        {"of": 1, "text": "not base64!"},
        {"of": 1, "text": "AAAA"},
    ],
)
def test_a_part_that_is_none_is_refused(change: dict[str, Any]) -> None:
    part = {"kind": "part", "ident": 1, "number": 0, "of": 2, "text": "AAAA", **change}
    with pytest.raises(MessageError):
        Parcels().take("n1", part)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = pack({"kind": "report", "text": "0" * 3_000_000}, ident=1)
    monkeypatch.setattr(parcel, "BODY_BYTES_MAX", 2_000_000)
    with pytest.raises(MessageError):
        joined(Parcels(), parts)


def test_what_is_too_long_is_said_and_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "PARTS_MAX", 1)
    with pytest.raises(MessageError, match="too many volumes"):
        pack(long(), ident=1)
