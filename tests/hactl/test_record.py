"""What outlives the daemon: floors that only grow, handles of one boot, a history that a torn line does not spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.errors import HaError
from hactl.messages import Order
from hactl.record import Held, Records, Takeover, TimedStep


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "stable", tmp_path / "boot")


def test_an_epoch_is_intended_once_and_only_upwards(records: Records) -> None:
    assert records.floor("v1") == 0
    records.intend("v1", 4)
    assert records.floor("v1") == 4
    for used in (4, 3):
        with pytest.raises(HaError, match="used already"):
            records.intend("v1", used)
    assert records.floor("v1") == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": "4"}', '{"epoch": -1}', '{"epoch": true}', "{}"])
def test_a_garbled_floor_is_an_error_and_never_zero(records: Records, tmp_path: Path, text: str) -> None:
    records.intend("v1", 4)
    (tmp_path / "stable/record/v1.json").write_text(text)
    with pytest.raises(HaError):
        records.floor("v1")
    with pytest.raises(HaError):
        records.intend("v1", 5)


def test_a_handle_of_this_boot_is_found_again_until_it_is_forgotten(records: Records) -> None:
    held = Held(key=0x1234, epoch=4, order=Order(term=1, number=2), wwids=("w",), wait_until_ms=77)
    records.hold("v1", held)
    assert records.held() == {"v1": held}
    records.forget("v1")
    records.forget("v1")
    assert records.held() == {}


def test_a_garbled_handle_is_not_adopted(records: Records, tmp_path: Path) -> None:
    records.hold("v1", Held(key=1, epoch=4, order=Order(term=1, number=2), wwids=("w",)))
    (tmp_path / "boot/volumes/v1.json").write_text('{"key": 1}')
    assert records.held() == {}


def test_the_history_keeps_its_lines_and_leaves_a_torn_one_out(records: Records, tmp_path: Path) -> None:
    step = TimedStep(name="fence", node="n2", start_unix_ms=1.0, end_unix_ms=2.0)
    one = Takeover(
        volume="v1", source="n1", target="n2", epoch=5, key=0xAB, cause="c", verdict="serving", steps=(step,)
    )
    records.append(one)
    records.append_foreign({**one.as_json(), "epoch": 6})
    records.append_foreign({"epoch": 7})
    with open(tmp_path / "stable/history.jsonl", "a") as file:
        file.write('{"volume": "v1", "ep')
    read = records.history()
    assert [(each["from"], each["to"], each["epoch"], each["key"]) for each in read] == [
        ("n1", "n2", 5, "0x00000000000000ab"),
        ("n1", "n2", 6, "0x00000000000000ab"),
    ]
    assert read[0]["steps"][0]["name"] == "fence"
