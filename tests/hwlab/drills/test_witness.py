"""The target's witness and the stamper, on LIO's own words and on an ordinary file as the disk."""

import ctypes
import json
import struct
from pathlib import Path

import pytest

from hwlab import latewriter, nvmet_table, stamper, stamps, witness
from hwlab.feed import program

NONE = "No SPC-3 Reservation holder\n"
NEXUS = "iqn.2026-11.org.hactl:n1,i,0x00023d000001"
HELD = f"SPC-3 Reservation: iSCSI Initiator: {NEXUS}\n"
REGISTERED = (
    "SPC-3 PR Registrations:\n"
    f"iSCSI Node: {NEXUS} Key: 0xabcde00100000004 PRgen: 0x00000003\n"
    "iSCSI Node: iqn.2026-11.org.hactl:n2,i,0x00023d000002 Key: 0xabcde00200000005 PRgen: 0x00000004\n"
)


def target(folder: Path, disk: Path, registered: str = "None\n", held: str = NONE, kind: str = "No SPC") -> Path:
    device = folder / "iblock_0" / "lun0"
    (device / "pr").mkdir(parents=True, exist_ok=True)
    (device / "udev_path").write_text(f"{disk}\n")
    show(device, registered, held, kind)
    return device


def show(device: Path, registered: str, held: str, kind: str) -> None:
    (device / "pr" / "res_pr_registered_i_pts").write_text(registered)
    (device / "pr" / "res_holder").write_text(held)
    (device / "pr" / "res_pr_generation").write_text("0x00000004\n")
    (device / "pr" / "res_pr_type").write_text(f"SPC-3 Reservation Type: {kind}\n")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"\0" * (4 << 20))
    return path


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_registrations_and_holder_are_read_from_the_targets_words(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = target(tmp_path, disk, REGISTERED, HELD, "Write Exclusive Access, Registrants Only")
    witness.Lun(witness.LioTable(str(device)), [1, 2]).sample()
    state = events(capsys)[0]
    assert state["holder"] == "0xabcde00100000004"
    assert [entry["key"] for entry in state["registrants"]] == ["0xabcde00100000004", "0xabcde00200000005"]  # type: ignore[attr-defined]
    assert (state["type"], state["generation"]) == (5, "0x00000004")


def test_a_change_lies_between_two_samples_and_the_stamps_are_read_after_it(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = target(tmp_path, disk, REGISTERED, HELD, "Write Exclusive Access, Registrants Only")
    lun = witness.Lun(witness.LioTable(str(device)), [1, 2])
    lun.sample()
    lun.sample()
    writer = stamper.Stamper(str(disk), "r1", 1, direct=False)
    for _ in range(3):
        assert writer.write()
    show(device, "None\n", NONE, "No SPC")
    lun.sample()
    pr = [event for event in events(capsys) if event["t"] in ("pr", "stamps") and "device" in event]
    assert [event["t"] for event in pr] == ["pr", "stamps", "pr", "stamps"]
    assert pr[2]["since"] < pr[2]["at"] < pr[3]["at"]  # type: ignore[operator]
    assert pr[2]["registrants"] == [] and pr[2]["holder"] == ""
    assert pr[3]["rows"] == [{"node": 1, "run": "r1", "n": 3}, {"node": 2, "run": "", "n": 0}]


def write_label(disk: Path, epoch: int) -> None:
    with disk.open("r+b") as file:
        file.seek(witness.LABEL_OFFSETS[0])
        file.write(json.dumps({"epoch": epoch}).encode().ljust(witness.BLOCK, b"\0"))


def test_after_a_change_the_stamps_are_followed_until_the_label_names_a_new_epoch(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = target(tmp_path, disk, REGISTERED, HELD, "Write Exclusive Access, Registrants Only")
    write_label(disk, 4)
    lun = witness.Lun(witness.LioTable(str(device)), [1])
    lun.sample()
    show(device, "None\n", NONE, "No SPC")
    lun.sample()
    writer = stamper.Stamper(str(disk), "r1", 1, direct=False)
    for epoch in (4, 5, 5):
        assert writer.write()
        write_label(disk, epoch)
        lun.sample()
    seen = [event for event in events(capsys) if event["t"] == "stamps" and "device" in event][3:]
    rows = [(event["rows"][0]["n"], event["epoch_after"]) for event in seen]  # type: ignore[index]
    assert rows == [(1, 4), (2, 5), (2, 5)], "the new label may be newer than the stamps read before it: read again"


def test_without_a_change_the_witness_is_silent(tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lun = witness.Lun(witness.LioTable(str(target(tmp_path, disk))), [1])
    lun.sample()
    events(capsys)
    lun.sample()
    assert events(capsys) == []


def test_the_labels_epoch_is_found_whatever_surrounds_it(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = b"HACTLLBL\x01\x00" + b"\xff" * 40 + json.dumps({"epoch": 7, "owner": "n2", "x": 1}).encode()
    with disk.open("r+b") as file:
        file.seek(1 << 20)
        file.write(label)
    witness.Lun(witness.LioTable(str(target(tmp_path, disk))), [1]).sample()
    copies = next(event["copies"] for event in events(capsys) if event["t"] == "label")
    assert copies == [{"epoch": 7, "owner": "n2"}, {}]


def test_stamps_count_up_in_the_nodes_own_block(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (stamper.Stamper(str(disk), "r1", number, direct=False) for number in (1, 2))
    first.write()
    first.write()
    second.write()
    data = disk.read_bytes()[stamps.STAMP_BASE :]
    assert witness.parse_stamp(data[4096:8192]) == ("r1", 2)
    assert witness.parse_stamp(data[8192:12288]) == ("r1", 1)
    assert witness.parse_stamp(data[:4096]) == ("", 0)


def test_a_refused_stamp_is_reported_at_once_with_its_reason(
    disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = stamper.Stamper(str(disk), "r1", 1, direct=False)
    writer.write()

    def refuse(*_: object) -> int:
        raise OSError(52, "Invalid exchange")

    monkeypatch.setattr("os.pwritev", refuse)
    assert not writer.write()
    rows = [row for event in events(capsys) for row in event["rows"]]  # type: ignore[attr-defined]
    assert [(row[0], row[3]) for row in rows] == [(1, "ok"), (2, "Invalid exchange")]


def test_the_whole_disk_is_found_below_a_mounted_partition(tmp_path: Path) -> None:
    sysfs = tmp_path / "dev"
    sysfs.mkdir()
    part = tmp_path / "devices" / "sda" / "sda2"
    part.mkdir(parents=True)
    (part / "partition").write_text("2\n")
    (sysfs / "8:2").symlink_to(part)
    mounts = tmp_path / "mountinfo"
    mounts.write_text("36 25 8:2 / /srv/v1 rw shared:1 - ext4 /dev/sda2 rw\n")
    assert stamps.whole_disk("/srv/v1", str(mounts), str(sysfs)) == "/dev/sda"
    with pytest.raises(SystemExit, match="nothing is mounted at /srv/v2"):
        stamps.whole_disk("/srv/v2", str(mounts), str(sysfs))


def test_the_disk_below_a_partition_of_a_multipath_device_is_that_device(tmp_path: Path) -> None:
    """Its stamps would else go to the middle of the file system."""
    sysfs = tmp_path / "dev"
    sysfs.mkdir()
    head, part = tmp_path / "devices/dm-0", tmp_path / "devices/dm-2"
    for folder, uuid in ((head, "mpath-36001405"), (part, "part2-mpath-36001405")):
        (folder / "dm").mkdir(parents=True)
        (folder / "dm/uuid").write_text(uuid + "\n")
    (part / "slaves").mkdir()
    (part / "slaves/dm-0").symlink_to(head)
    (sysfs / "254:2").symlink_to(part)
    mounts = tmp_path / "mountinfo"
    mounts.write_text("36 25 254:2 / /srv/v1 rw shared:1 - ext4 /dev/mapper/36001405-part2 rw\n")
    assert stamps.whole_disk("/srv/v1", str(mounts), str(sysfs)) == "/dev/dm-0"


def test_writes_through_the_cache_are_synced_only_after_a_freeze(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4 << 20))
    slot = latewriter.Slot(str(disk), "r1", 16, 0)
    clock = iter([0, 10**7, 2 * 10**7, 5 * 10**9, 5 * 10**9 + 1])
    waits = iter([False, False, False, False, True])
    monkeypatch.setattr(latewriter.STOP, "wait", lambda timeout: next(waits))
    monkeypatch.setattr(latewriter.time, "monotonic_ns", lambda: next(clock, 6 * 10**9))
    monkeypatch.setattr(slot, "write", lambda: (setattr(slot, "n", slot.n + 1), (7, "ok"))[1])
    monkeypatch.setattr(slot, "sync", lambda: "Input/output error")
    latewriter.cached(slot)
    told = [event for event in events(capsys) if event["t"] == "stamps"]
    assert len(told) == 1, "nothing is told, or synced, before the freeze"
    assert [(row[0], row[3]) for row in told[0]["rows"]] == [(1, "Input/output error"), (2, "Input/output error")]  # type: ignore[attr-defined]


def test_the_queue_of_an_nvme_disk_is_that_of_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"/sys/class/block/nvme1c*n2": ["/sys/class/block/nvme1c3n2"]}
    monkeypatch.setattr(latewriter.glob, "glob", lambda pattern: paths.get(pattern, []))
    assert latewriter.places("/dev/nvme1n2") == (
        "/sys/class/block/nvme1c3n2/inflight",
        "/sys/class/block/nvme1c3n2/queue/nr_requests",
    )
    assert latewriter.places("/dev/nvme0n1")[0] == "/sys/class/block/nvme0n1/inflight", "without multipath"
    assert latewriter.places("/dev/sda")[1] == "/sys/class/block/sda/device/queue_depth"


def test_what_an_iscsi_socket_has_not_sent_is_counted() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    lines = (
        "   0: 0B024D0A:A1B2 0A024D0A:0CBC 01 00001000:00000000 01:00000014 00000000     0        0 1 1\n"
        "   1: 0B024D0A:A1B4 0A024D0A:0CBC 01 00000010:00000000 01:00000014 00000000     0        0 1 1\n"
        "   2: 0B024D0A:0016 0A024D0A:9999 01 00005000:00000000 01:00000014 00000000     0        0 1 1\n"
    )
    assert latewriter.unsent(head + lines) == 0x1010
    assert latewriter.unsent(head + lines.replace(":0CBC", ":1144")) == 0x1010, "NVMe over TCP, port 4420"


HOST_1, HOST_2 = "c689cb56615351c6b1d1b2c3fb0080da", "4639a38964e95c4db9cd6767c3bf1003"


def report(generation: int, kind: int, *entries: tuple[str, int, bool]) -> bytes:
    """An extended reservation report as nvmet makes it (controller id 0xffff); entries: host id, key, holder."""
    header = struct.pack("<IBHxxB", generation, kind, len(entries), 0).ljust(64, b"\0")
    packed = (
        struct.pack("<HB5xQ", 0xFFFF, int(holder), key) + bytes.fromhex(host).ljust(48, b"\0")
        for host, key, holder in entries
    )
    return (header + b"".join(packed)).ljust(4096, b"\0")


def test_an_nvme_report_is_told_in_the_words_of_scsi() -> None:
    data = report(7, 3, (HOST_1, 0xABCDE00100000001, True), (HOST_2, 0xABCDE00200000001, False))
    assert nvmet_table.parse_report(data) == {
        "generation": "7",
        "type": 5,
        "holder": "0xabcde00100000001",
        "holder_nexus": HOST_1,
        "registrants": [
            {"nexus": HOST_1, "key": "0xabcde00100000001"},
            {"nexus": HOST_2, "key": "0xabcde00200000001"},
        ],
    }


def test_a_report_without_registrations_has_no_holder() -> None:
    told = nvmet_table.parse_report(report(0, 0))
    assert (told["type"], told["holder"], told["registrants"]) == (0, "", [])


def test_a_report_that_counts_more_than_it_holds_gives_what_it_holds() -> None:
    cut = report(1, 3, (HOST_1, 1, True), (HOST_2, 2, False))[:128]
    assert [entry["nexus"] for entry in nvmet_table.parse_report(cut)["registrants"]] == [HOST_1]  # type: ignore[attr-defined]


def test_a_generation_alone_is_no_change() -> None:
    before, after = report(1, 3, (HOST_1, 1, True)), report(2, 3, (HOST_1, 1, True))
    assert nvmet_table.same(before) == nvmet_table.same(after)
    assert nvmet_table.same(before) != nvmet_table.same(report(2, 3, (HOST_1, 1, False)))
    assert nvmet_table.same(before) != nvmet_table.same(report(2, 1, (HOST_1, 1, True)))


def test_a_passthrough_command_has_the_kernels_size() -> None:
    assert ctypes.sizeof(nvmet_table.Passthrough) == 72


def test_the_witness_is_sent_with_all_that_it_needs() -> None:
    text = program(Path(witness.__file__))
    compile(text, "witness", "exec")
    assert "from hwlab" not in text and "class NvmetTable" in text
