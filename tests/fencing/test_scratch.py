"""The scratch area of a real file, the process of one node, and its paths from a sysfs made for the test."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fencing import _nodefacts, _scratch
from fencing._scratch import ScratchDisk
from fencing.asking import NEVER_REFUSED
from fencing.label import encode
from fencing.model import cluster_tag
from fencing.stamp import BLOCK_BYTES, BLOCKS, counted, stamped
from fencing.trial import SCRATCH_BYTES, SCRATCH_END, SCRATCH_OFFSET
from tests.fencing.conftest import CLUSTER, label_for

SIZE = 8 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ScratchDisk, Path]]:
    """A file in the place of a disk: everything but reservations is as on a disk."""
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.truncate(SIZE)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    monkeypatch.setattr(_scratch, "path_names", lambda name: [str(path)])
    monkeypatch.setattr(_scratch, "head_of", lambda paths: paths[0])
    monkeypatch.setattr(_scratch, "size_bytes", lambda device: os.stat(device).st_size)
    monkeypatch.setattr(_scratch, "in_use", lambda device: "")
    monkeypatch.setattr(_scratch, "contents", lambda device: ["data"] if any(path.read_bytes()) else [])
    monkeypatch.setattr(_scratch, "wwid", lambda device: "naa.1")
    monkeypatch.setattr("fencing._disk.wwid", lambda device: "naa.1")
    made = ScratchDisk("naa.1", cluster_tag(CLUSTER))
    yield made, path
    made.close()


def outside(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data[:SCRATCH_OFFSET] + data[SCRATCH_END:]).hexdigest()


def test_all_that_is_written_lies_in_the_scratch_area(disk: tuple[ScratchDisk, Path]) -> None:
    made, path = disk
    before = outside(path)
    [name] = made.paths()
    assert made.write(name, BLOCKS - 1, stamped(node=1, round=2)) == ""
    assert counted(made.read_scratch(name)) == [(0, 0, 8 * BLOCKS - 8), (1, 2, 8)]
    assert made.write(name, 0, stamped(node=1, round=3) * BLOCKS) == ""
    assert counted(made.read_scratch(name)) == [(1, 3, 8 * BLOCKS)]
    made.flood(made.paths(), stamped(node=2, round=4))
    while made.flooded() < 64:
        time.sleep(0.001)
    assert made.flood_end(0) == {NEVER_REFUSED: _scratch.WRITERS}
    assert outside(path) == before and path.stat().st_size == SIZE
    assert counted(made.read_scratch(name)) == [(2, 4, 8 * BLOCKS)]


@pytest.mark.parametrize(("block", "blocks"), [(BLOCKS, 1), (1, BLOCKS), (0, BLOCKS + 1)])
def test_a_write_that_would_leave_the_area_is_refused(disk: tuple[ScratchDisk, Path], block: int, blocks: int) -> None:
    made, path = disk
    with pytest.raises(ValueError, match="scratch area"):
        made.write(made.paths()[0], block, bytes(BLOCK_BYTES) * blocks)
    assert not any(path.read_bytes())


def test_a_flood_ends_when_its_writers_are_refused(
    disk: tuple[ScratchDisk, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = disk
    real, refusing = os.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if refusing:
            raise OSError(52, "Invalid exchange")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    made.flood(made.paths(), stamped(node=2, round=4))
    refusing.append(True)
    assert made.flood_end(20) == {"reservation conflict": _scratch.WRITERS}


def test_a_long_read_reads_the_beginning_and_the_end(disk: tuple[ScratchDisk, Path]) -> None:
    made, path = disk
    count, seconds, error = made.read_long(str(path), 3)
    assert (count, error) == (3 << 20, "") and seconds > 0
    assert made.read_long(str(path), 64)[0] == SIZE


def test_a_device_that_is_shorter_than_it_says_is_found_by_reading_its_end(
    disk: tuple[ScratchDisk, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = disk
    monkeypatch.setattr(_scratch, "size_bytes", lambda device: SIZE + (1 << 20))
    assert "at byte" in made.read_long(str(path), 1)[2]


def test_an_empty_disk_is_free_and_one_with_data_is_not(disk: tuple[ScratchDisk, Path]) -> None:
    made, path = disk
    assert made.hindrance() == ""
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"x")
    assert made.hindrance() == "it is not empty: data"


def test_stamps_of_an_interrupted_preflight_are_no_data_and_anything_else_there_is(
    disk: tuple[ScratchDisk, Path],
) -> None:
    made, path = disk
    made.write(str(path), 3, stamped(node=1, round=9))
    assert made.hindrance() == ""
    made.write(str(path), 4, b"user data".ljust(BLOCK_BYTES, b"\0"))
    assert made.hindrance() == "it is not empty: data"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"wanted": "started"}, "volume v1 is to be served"),
        ({"cluster_uuid": "other"}, 'volume "v1" of cluster "demo"'),
    ],
)
def test_a_volume_is_free_only_if_it_is_ours_and_stopped(
    disk: tuple[ScratchDisk, Path], change: dict[str, str], says: str
) -> None:
    made, path = disk
    with open(path, "r+b") as file:
        for at in (1 << 20, (1 << 20) + (64 << 10)):
            file.seek(at)
            file.write(encode(replace(label_for("naa.1"), **change)))  # type: ignore[arg-type]
    assert made.hindrance() == says


def test_a_disk_in_use_or_too_small_is_not_free(
    disk: tuple[ScratchDisk, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = disk
    monkeypatch.setattr(_scratch, "in_use", lambda device: "mounted on /x")
    assert made.hindrance() == "mounted on /x"
    monkeypatch.setattr(_scratch, "size_bytes", lambda device: 4 << 20)
    assert "only 4 MiB" in made.hindrance()


def test_a_disk_that_became_another_one_is_not_written(
    disk: tuple[ScratchDisk, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = disk
    monkeypatch.setattr(_scratch, "wwid", lambda device: "naa.2")
    assert made.write(str(path), 0, bytes(BLOCK_BYTES)) == "ENODEV"
    assert SCRATCH_BYTES == BLOCKS * BLOCK_BYTES


# -- the process ------------------------------------------------------------------------------------------------


def session(*lines: object) -> list[dict[str, object]]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    argv = [sys.executable, "-m", "fencing._session", "--tag", "5", "--node", "1"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_process_answers_each_line_and_ends_with_its_input() -> None:
    asked = {"ident": "a", "act": "facts", "wwid": "", "args": {"wwids": "naa.none"}}
    unknown = {"ident": "b", "act": "state", "wwid": "naa.none", "args": {"path": "/dev/sda"}}
    facts, no_disk, garbage, short = session(asked, unknown, "garbage", {"ident": "c"})
    assert facts["ident"] == "a" and facts["ok"]["devices"] == {}  # type: ignore[index]
    assert facts["ok"]["names"]["host name"] == [os.uname().nodename]  # type: ignore[index]
    assert no_disk["ident"] == "b" and "no disk with the WWID naa.none" in str(no_disk["error"])
    assert "not understood" in str(garbage["error"])
    assert short["ident"] == "c" and "not understood" in str(short["error"])


# -- sysfs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """n2 with two iSCSI paths below one multipath device, and a disk of its own."""
    blocks = tmp_path / "class/block"
    for disk, session, wwid in (("sda", 1, "naa.1"), ("sdb", 2, "naa.1"), ("vda", 0, "t10.own")):
        device = tmp_path / f"devices/platform/host{session}/session{session}/target0:0:0/0:0:0:{session}"
        device.mkdir(parents=True)
        (blocks / disk / "queue").mkdir(parents=True)
        (blocks / disk / "device").symlink_to(device)
        (device / "wwid").write_text(f"{wwid}\n")
        (device / "state").write_text("running\n")
        (blocks / disk / "size").write_text("2048\n")
        (blocks / disk / "queue/logical_block_size").write_text("512\n")
    (blocks / "sda1/partition").mkdir(parents=True)
    (blocks / "dm-0/dm").mkdir(parents=True)
    (blocks / "dm-0/dm/uuid").write_text("mpath-3naa1\n")
    (blocks / "dm-0/size").write_text("2048\n")
    (blocks / "dm-0/queue").mkdir()
    (blocks / "dm-0/queue/logical_block_size").write_text("4096\n")
    for disk in ("sda", "sdb"):
        (blocks / disk / "holders").mkdir()
        (blocks / disk / "holders/dm-0").symlink_to(blocks / "dm-0")
        (blocks / "dm-0/slaves").mkdir(exist_ok=True)
        (blocks / "dm-0/slaves" / disk).symlink_to(blocks / disk)
    for number in (1, 2):
        for name, text in (("initiatorname", "iqn.n2"), ("targetname", f"iqn.t{number}")):
            path = tmp_path / f"class/iscsi_session/session{number}/{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        connection = tmp_path / f"class/iscsi_connection/connection{number}:0"
        connection.mkdir(parents=True)
        (connection / "persistent_address").write_text(f"192.0.2.{number}\n")
        (connection / "persistent_port").write_text("3260\n")
    monkeypatch.setattr(_nodefacts, "SYSFS", tmp_path)
    names = {"sda": "naa.1", "sdb": "naa.1", "vda": "t10.own"}
    monkeypatch.setattr(_nodefacts, "wwid", lambda device: names[os.path.basename(device)])
    monkeypatch.setattr(_nodefacts, "size_bytes", lambda device: 1 << 20)
    return tmp_path


def test_every_path_is_listed_with_what_it_goes_through(sysfs: Path) -> None:
    device = _nodefacts.node_facts(["naa.1", "naa.9"])["devices"]
    assert list(device) == ["naa.1"]
    assert device["naa.1"]["head"] == "/dev/dm-0" and device["naa.1"]["sector_bytes"] == 4096
    assert [(path["name"], path["via"]) for path in device["naa.1"]["paths"]] == [
        ("/dev/sda", "iSCSI iqn.t1 192.0.2.1:3260"),
        ("/dev/sdb", "iSCSI iqn.t2 192.0.2.2:3260"),
    ]


def test_of_a_natively_multipathed_namespace_every_controller_is_told(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, subsystem = sysfs / "class/block/nvme0n1", sysfs / "devices/virtual/nvme-subsystem/nvme-subsys0"
    (head / "queue").mkdir(parents=True)
    subsystem.mkdir(parents=True)
    (head / "device").symlink_to(subsystem)
    for number, name in enumerate(("nvme0", "nvme1"), start=1):
        controller = sysfs / "class/nvme" / name
        controller.mkdir(parents=True)
        (controller / "address").write_text(f"traddr=192.0.2.{number},trsvcid=4420\n")
        (controller / "transport").write_text("tcp\n")
        (subsystem / name).symlink_to(controller)
    monkeypatch.setattr(_nodefacts, "wwid", lambda device: "uuid.1" if device == "/dev/nvme0n1" else "none")
    [path] = _nodefacts.node_facts(["uuid.1"])["devices"]["uuid.1"]["paths"]
    assert path["via"] == "tcp traddr=192.0.2.1,trsvcid=4420; tcp traddr=192.0.2.2,trsvcid=4420"


def test_only_names_in_use_are_told(sysfs: Path) -> None:
    names = _nodefacts.node_facts([])["names"]
    assert names["iSCSI initiator name"] == ["iqn.n2"]
    assert names["NVMe host identifier"] == [] and names["FC port name"] == []
