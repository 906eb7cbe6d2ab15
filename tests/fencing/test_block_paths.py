"""What sysfs says of paths, and what is made of it: on a folder that looks like sysfs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fencing import _maps, _pathgate, _paths
from fencing._paths import BlockPath, BlockPaths, bring_back, note_key, noted_key, path_names, retire
from fencing.errors import Garbled, NotDelivered, OutcomeUnknown
from fencing.fake import FakeLogicalUnit, FakePort

WWID, KEY = "naa.6001405000000000000000000000001", 0x3A79000100000001


class Sysfs:
    """/sys/class/block with SCSI disks and dm devices."""

    def __init__(self, root: Path) -> None:
        self.block = root / "class/block"
        self.devices = root / "devices"
        self.block.mkdir(parents=True)
        self._sequence = 0

    def disk(self, name: str, address: str, wwid: str = WWID, state: str = "running") -> Path:
        self._sequence += 1
        device = self.devices / address
        device.mkdir(parents=True, exist_ok=True)
        (device / "wwid").write_text(f"{wwid}\n")
        (device / "state").write_text(f"{state}\n")
        (device / "delete").touch()
        entry = self.block / name
        entry.mkdir()
        (entry / "diskseq").write_text(f"{self._sequence}\n")
        (entry / "device").symlink_to(device)
        return device

    def dm(self, name: str, uuid: str, label: str, slaves: tuple[str, ...] = ()) -> None:
        (self.block / name / "dm").mkdir(parents=True)
        (self.block / name / "dm/uuid").write_text(f"{uuid}\n")
        (self.block / name / "dm/name").write_text(f"{label}\n")
        for slave in slaves:
            for folder, link in ((self.block / name / "slaves", slave), (self.block / slave / "holders", name)):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / link).mkdir()

    def remove(self, name: str) -> None:
        for path in sorted((self.block / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.block / name).rmdir()


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    made = Sysfs(tmp_path / "sys")
    for module in (_paths, _maps, _pathgate):
        monkeypatch.setattr(module, "SYS_BLOCK", made.block)
    return made


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLogicalUnit]:
    """What every path leads to; a path's nexus is its device name."""
    made = FakeLogicalUnit()
    monkeypatch.setattr(_paths, "SgPort", lambda device: made.connect(device.encode()))
    yield made


def deleting(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel that obeys: the state changes with the write."""
    deleted: list[str] = []

    def delete(name: str) -> None:
        deleted.append(name)
        (sysfs.block / name / "device/state").write_text("cancel\n")

    monkeypatch.setattr(_paths, "_delete", delete)
    return deleted


def test_paths_are_the_scsi_disks_of_one_wwid_and_nothing_else(sysfs: Sysfs) -> None:
    sysfs.disk("sda", "0:0:0:0")
    sysfs.disk("sdb", "1:0:0:0")
    sysfs.disk("sdc", "2:0:0:0", wwid="naa.2")
    sysfs.dm("dm-0", "mpath-3600", "mpatha", ("sda", "sdb"))
    assert path_names(WWID) == ["sda", "sdb"]


def test_a_name_in_its_second_life_is_another_path(sysfs: Sysfs, unit: FakeLogicalUnit) -> None:
    sysfs.disk("sda", "0:0:0:0")
    group = BlockPaths(WWID, head=True)
    [first] = group.paths()
    assert group.paths() == [first]
    sysfs.remove("sda")
    sysfs.disk("sda", "0:0:0:0")
    [second] = group.paths()
    assert second is not first
    with pytest.raises(NotDelivered, match="gone"):
        first.read()
    second.read()


@pytest.mark.parametrize("state", ["blocked", "offline", "transport-offline", "cancel"])
def test_a_path_that_is_not_running_is_not_asked(sysfs: Sysfs, unit: FakeLogicalUnit, state: str) -> None:
    sysfs.disk("sda", "0:0:0:0", state=state)
    with pytest.raises(NotDelivered, match=state):
        BlockPath("sda", WWID, carries_io=True).read()


def test_a_silent_path_is_passed_over_and_not_asked_again_before_it_answers(
    sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs.disk("sda", "0:0:0:0")
    answers = threading.Event()
    unit = FakeLogicalUnit()

    class Silent(FakePort):
        def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
            answers.wait(30)
            super().register(old, new, ignore_existing)

    monkeypatch.setattr(_paths, "SgPort", lambda device: Silent(unit, b"a"))
    monkeypatch.setattr(_paths, "ANSWER_S", 0.01)
    path = BlockPath("sda", WWID, carries_io=True)
    with pytest.raises(OutcomeUnknown, match="no answer"):
        path.register(0, KEY)
    with pytest.raises(NotDelivered, match="still waits"):
        path.read()
    answers.set()
    path._worker.submit(lambda: None).result(30)
    assert path.read().keys == (KEY,)
    path.close()


def test_a_read_that_is_not_answered_was_not_delivered(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs.disk("sda", "0:0:0:0")
    answers = threading.Event()

    class Silent(FakePort):
        def read(self) -> object:  # type: ignore[override]
            return answers.wait(30)

    monkeypatch.setattr(_paths, "SgPort", lambda device: Silent(FakeLogicalUnit(), b"a"))
    monkeypatch.setattr(_paths, "ANSWER_S", 0.01)
    path = BlockPath("sda", WWID, carries_io=True)
    with pytest.raises(NotDelivered, match="no answer"):
        path.read()
    answers.set()
    path.close()


def test_a_path_that_cannot_be_opened_was_not_reached(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs.disk("sda", "0:0:0:0")

    def refuse(device: str) -> FakePort:
        raise OSError(6, "No such device or address", device)

    monkeypatch.setattr(_paths, "SgPort", refuse)
    with pytest.raises(NotDelivered, match="no such device"):
        BlockPath("sda", WWID, carries_io=True).read()


# -- the note ------------------------------------------------------------------------------------------------


def test_the_note_of_the_key_reads_back_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    odd = "t10.ATA     A/B disk"
    assert noted_key(odd, tmp_path) is None
    note_key(odd, KEY, tmp_path)
    assert noted_key(odd, tmp_path) == KEY
    [path] = (tmp_path / "keys").iterdir()
    for text in ("", "{}", '{"wwid": "naa.2", "key": "0x1"}', "[]"):
        path.write_text(text)
        with pytest.raises(ValueError):
            noted_key(odd, tmp_path)


# -- retiring ------------------------------------------------------------------------------------------------


def test_a_retired_path_is_deleted_and_remembered(
    sysfs: Sysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs.disk("sda", "3:0:0:7")
    deleted = deleting(sysfs, monkeypatch)
    retire("sda", WWID, tmp_path)
    assert deleted == ["sda"]
    assert [note.name for note in (tmp_path / "retired").iterdir()] == ["3:0:0:7"]


def test_a_path_that_the_kernel_keeps_is_not_retired(
    sysfs: Sysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs.disk("sda", "3:0:0:7")
    monkeypatch.setattr(_paths, "_delete", lambda name: None)
    monkeypatch.setattr(_paths, "RETIRE_S", 0.01)
    with pytest.raises(NotDelivered, match="cannot be taken out of use"):
        retire("sda", WWID, tmp_path)


def test_a_path_that_is_gone_needs_no_retiring(sysfs: Sysfs, tmp_path: Path) -> None:
    retire("sda", WWID, tmp_path)
    assert not (tmp_path / "retired").exists()


def test_only_paths_that_carry_io_are_deleted(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs.disk("sda", "0:0:0:0")
    sysfs.disk("sdb", "1:0:0:0")
    taken: list[str] = []
    monkeypatch.setattr(_paths, "retire", lambda name, wwid: taken.append(name))
    for path in BlockPaths(WWID, head=False, data="sda").paths():
        path.retire()
    assert taken == ["sda"]


def test_a_note_of_a_host_that_is_gone_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "retired").mkdir()
    (tmp_path / "retired/99999:0:0:0").write_text(WWID)
    (tmp_path / "retired/strange").write_text(WWID)
    assert bring_back(tmp_path) == []
    assert [note.name for note in (tmp_path / "retired").iterdir()] == ["strange"]


# -- the gate ------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/run/hactl of the gate."""
    monkeypatch.setattr(_pathgate, "noted_key", lambda wwid: noted_key(wwid, tmp_path))
    monkeypatch.setattr(_pathgate, "retire", lambda name, wwid: retire(name, wwid, tmp_path))
    return tmp_path


def test_the_gate_registers_a_path_of_a_disk_that_this_node_owns(
    sysfs: Sysfs, unit: FakeLogicalUnit, run: Path
) -> None:
    unit.registrations[b"/dev/sda"] = KEY
    sysfs.disk("sdb", "1:0:0:0")
    note_key(WWID, KEY, run)
    assert _pathgate.main(["sdb"]) == 0
    assert unit.registrations[b"/dev/sdb"] == KEY


def test_the_gate_leaves_other_disks_alone(sysfs: Sysfs, unit: FakeLogicalUnit, run: Path) -> None:
    sysfs.disk("sdb", "1:0:0:0")
    assert _pathgate.main(["sdb"]) == 0
    assert _pathgate.main(["sdz"]) == 0
    assert unit.registrations == {}


def test_the_gate_keeps_a_path_out_that_cannot_be_registered(
    sysfs: Sysfs, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(FakePort):
        def read(self) -> object:  # type: ignore[override]
            raise Garbled("noise", device="sdb", operation="read")

    monkeypatch.setattr(_paths, "SgPort", lambda device: Broken(FakeLogicalUnit(), b"b"))
    deleted = deleting(sysfs, monkeypatch)
    sysfs.disk("sdb", "1:0:0:0")
    note_key(WWID, KEY, run)
    assert _pathgate.main(["sdb"]) == 1
    assert deleted == ["sdb"]
    assert "kept out" in capsys.readouterr().err


def test_the_gate_keeps_a_path_out_when_the_note_is_damaged(
    sysfs: Sysfs, unit: FakeLogicalUnit, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = deleting(sysfs, monkeypatch)
    sysfs.disk("sdb", "1:0:0:0")
    note_key(WWID, KEY, run)
    next((run / "keys").iterdir()).write_text("{")
    assert _pathgate.main(["sdb"]) == 1
    assert deleted == ["sdb"]


# -- dm devices ----------------------------------------------------------------------------------------------


def test_a_map_is_told_from_its_partitions_and_from_other_dm_devices(sysfs: Sysfs) -> None:
    sysfs.disk("sda", "0:0:0:0")
    sysfs.dm("dm-0", "mpath-36001405", "36001405", ("sda",))
    sysfs.dm("dm-1", "part2-mpath-36001405", "36001405-part2", ("dm-0",))
    sysfs.dm("dm-2", "LVM-abc", "vg-lv", ("dm-0",))
    assert [_maps.is_multipath(name) for name in ("dm-0", "dm-1", "dm-2", "sda")] == [True, False, False, False]
    assert _maps.paths_of("dm-0") == ["sda"]
    assert _maps.partitions_of("dm-0") == {2: "dm-1"}
    assert _maps.partition_path("dm-0", 2) == "/dev/mapper/36001405-part2"
    assert _maps.partition_path("dm-0", 1) == "/dev/mapper/36001405-part1"
    assert _maps.uuid_wwid("dm-0") == "36001405" and _maps.uuid_wwid("dm-2") == ""
