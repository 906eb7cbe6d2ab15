"""`hactl keys` of a device: every registration read here and explained, whoever made it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from fencing.errors import NotDelivered
from fencing.fake import FakeLogicalUnit, fake_lun, own, seed_label
from fencing.model import Identity, Key, cluster_tag
from hactl.cli import keyscmd
from hactl.cli.main import main
from hactl.explain import explain_key, other_clusters
from tests.fencing.conftest import CLUSTER, label_for

OURS = Identity(cluster_uuid=CLUSTER, node=1, node_name="n1")
THEIRS = "11111111-0000-4000-8000-000000000009"


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> FakeLogicalUnit:
    made = FakeLogicalUnit(name="naa.1")
    config = SimpleNamespace(identity=OURS, numbers={"n1": 1, "n2": 2})
    monkeypatch.setattr(keyscmd, "read_config", lambda path: config)
    monkeypatch.setattr(keyscmd, "open_lun", lambda device: fake_lun(made, b"reader"))
    monkeypatch.setattr(keyscmd, "scan", lambda: [SimpleNamespace(wwid="naa.1", device="/dev/sdq")])
    return made


def keys(*arguments: str) -> Any:
    done = CliRunner().invoke(main, ["keys", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_the_owner_of_a_device_is_explained_without_the_daemon(unit: FakeLogicalUnit) -> None:
    seed_label(unit, label_for("naa.1", epoch=4))
    own(unit, b"n2", OURS.key(4).value | 1 << 32)
    unit.registrations[b"x"] = 0xABCD0001
    before = unit.fingerprint()
    first, second = sorted(keys("/dev/sdq"), key=lambda row: not row["holder"])
    assert unit.fingerprint() == before
    assert first["volume"] == "v1" and first["wwid"] == "naa.1" and first["device"] == "/dev/sdq"
    assert "this cluster" in first["meaning"]
    assert second["key"] == "0x00000000abcd0001" and "fence_scsi" in second["meaning"]


def test_a_device_is_found_by_its_wwid(unit: FakeLogicalUnit) -> None:
    own(unit, b"n1", OURS.key(4).value)
    assert keys("naa.1")[0]["device"] == "/dev/sdq"
    gone = CliRunner().invoke(main, ["keys", "naa.2"])
    assert gone.exit_code == 2 and "no disk with the WWID naa.2" in gone.output


def test_keys_of_another_cluster_are_named_by_the_label(unit: FakeLogicalUnit) -> None:
    seed_label(unit, replace(label_for("naa.1", cluster=THEIRS), cluster_name="archive"))
    own(unit, b"z", Key(cluster_tag=cluster_tag(THEIRS), node=3, epoch=9).value)
    [row] = keys("/dev/sdq")
    assert 'not this cluster\'s: hactl, cluster "archive", node number 3, epoch 9' in row["meaning"]


def test_a_damaged_label_hides_no_key(unit: FakeLogicalUnit) -> None:
    for block in (2048, 2049):
        unit.blocks[block] = b"HACTL-LABEL" + bytes(4085)
    own(unit, b"n1", OURS.key(4).value)
    [row] = keys("/dev/sdq")
    assert row["volume"] == "(no volume)" and "no label of this cluster" in row["meaning"]


def test_a_device_that_does_not_answer_is_an_error(unit: FakeLogicalUnit, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(device: str) -> Any:
        raise OSError(6, "No such device or address", device)

    monkeypatch.setattr(keyscmd, "open_lun", silent)
    done = CliRunner().invoke(main, ["keys", "/dev/sdq"])
    assert done.exit_code == 2 and "No such device" in done.output
    lun = fake_lun(unit, b"reader")
    lun.port.close()
    monkeypatch.setattr(keyscmd, "open_lun", lambda device: lun)
    with pytest.raises(NotDelivered):
        lun.port.read()
    done = CliRunner().invoke(main, ["keys", "/dev/sdq"])
    assert done.exit_code == 1 and "closed" in done.output


@pytest.mark.parametrize(
    ("key", "epoch", "words"),
    [
        (OURS.key(4).value, 4, "n1, epoch 4: the present handle"),
        (OURS.key(3).value, 4, "should be gone"),
        (OURS.key(5).value, 4, "acquisition under way"),
        (OURS.key(0).value, 4, "scratch key"),
        (OURS.key(4).value, None, "no label of this cluster"),
        (Key(cluster_tag=OURS.tag, node=9, epoch=4).value, 4, "node number 9, which is not configured any more"),
        (0x1000000000030002, 4, "LVM, host 2"),
        (0x77, 4, "another cluster or an unknown tool"),
    ],
)
def test_every_key_is_explained(key: int, epoch: int | None, words: str) -> None:
    assert words in explain_key(key, OURS.tag, {1: "n1"}, epoch)


def test_our_own_label_names_no_other_cluster() -> None:
    assert other_clusters(label_for("naa.1"), OURS.tag) == {} == other_clusters(None, OURS.tag)


def test_the_configuration_is_read_from_where_it_is_said_to_be(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["keys", "/dev/null", "--config", str(tmp_path / "none.toml")])
    assert done.exit_code == 2 and "none.toml" in done.output
