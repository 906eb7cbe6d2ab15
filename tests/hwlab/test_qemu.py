"""The words that QEMU and its guests' kernels are started with, and the disk of a host."""

import itertools
import subprocess
from pathlib import Path

import pytest

from hwlab import qemu, uml
from hwlab.debkernel import DebianKernel
from hwlab.errors import LabError
from hwlab.guests import Guest, host_uuid
from hwlab.image import Image
from hwlab.topology import load

KERNEL = DebianKernel(version="7.3.4", vmlinuz=Path("/k/vmlinuz"), initrd=Path("/k/initrd"), modules=Path("/k/modules"))


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def guest(host: str, topology: str = "nvme") -> Guest:
    parsed, _ = load(topology)
    return Guest(lab="l1", spec=next(spec for spec in parsed.hosts if spec.name == host), topology=parsed)


def values(words: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


def test_interfaces_and_disks_have_fixed_places_since_their_order_gives_their_names() -> None:
    words = qemu.words(guest("n1"), KERNEL)
    devices = values(words, "-device")
    nics = [device for device in devices if device.startswith("virtio-net")]
    assert [device.split(",")[1] for device in nics] == ["netdev=mgmt", "netdev=lan", "netdev=san"]
    assert [device.rpartition("addr=")[2] for device in nics] == ["0x4", "0x5", "0x6"]
    disks = [device for device in devices if device.startswith("virtio-blk")]
    assert [device.rpartition("addr=")[2] for device in disks] == ["0x8", "0x9"]
    assert [value.split(",")[2] for value in values(words, "-netdev")] == [
        "ifname=n1-mgmt", "ifname=n1-lan", "ifname=n1-san"
    ]  # fmt: skip


def test_only_the_target_has_the_logical_units_and_says_where_they_are(state: Path) -> None:
    on_target = qemu.words(guest("san1"), KERNEL)
    file = f"{state}/hactl-lab/l1/luns/v1.img"
    assert values(on_target, "-drive")[2] == f"if=none,id=disk2,file={file},format=raw,cache=unsafe"
    assert "hwlab.lun=v1,5fa1c0de-0000-4000-8000-000000000001,/dev/vdc" in qemu.kernel_words(guest("san1"))
    assert len(values(qemu.words(guest("n1"), KERNEL), "-drive")) == 2


def test_a_node_reaches_the_target_with_a_host_id_that_no_other_host_has() -> None:
    words = [qemu.kernel_words(guest(name)) for name in ("n1", "n2", "san1")]
    ids = [word for line in words for word in line if word.startswith("hwlab.hostid=")]
    assert len(set(ids)) == 3
    assert ids[0] == f"hwlab.hostid={host_uuid('l1', 'n1')}"
    assert "hwlab.target=nqn.2026-11.org.hactl:san1,10.77.2.10" in words[0]
    assert "hwlab.transport=nvme" in words[0]
    assert not any(word.startswith("hwlab.initiator=") for word in words[0])


def test_the_same_host_in_another_lab_has_another_host_id() -> None:
    assert host_uuid("l1", "n1") != host_uuid("l2", "n1")


def test_a_client_in_user_mode_linux_belongs_to_the_same_lab() -> None:
    client = guest("c1")
    assert client.spec.driver == uml.DRIVER
    image = Image(key="k", root=Path("/i/root.img"), key_file=Path("/i/key"))
    words = uml.kernel_words(client, image)
    assert "hwlab.nic=vec" in words and "root=/dev/ubda" in words
    assert "hwlab.net=mgmt,10.77.0.21/24;lan,10.77.1.21/24" in words


def test_the_target_of_user_mode_linux_still_gets_its_units_by_serial() -> None:
    image = Image(key="k", root=Path("/i/root.img"), key_file=Path("/i/key"))
    words = uml.kernel_words(guest("san1", "default"), image)
    assert "hwlab.lun=v1,5fa1c0de0000000000000000000000001,/dev/ubdb" in words
    assert "hwlab.target=iqn.2026-11.org.hactl:san1,10.77.2.10" in words
    assert "hwlab.initiators=" + ",".join(f"iqn.2026-11.org.hactl:n{n}" for n in (1, 2, 3)) in words


def test_a_disk_that_exists_is_never_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "root.qcow2"
    disk.write_bytes(b"what the host wrote")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a disk was made"))
    qemu.ensure_disk(disk, Path("/i/root.img"))
    assert disk.read_bytes() == b"what the host wrote"


def test_a_disk_that_cannot_be_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(argv, 1, "", "no space")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(LabError, match="no space"):
        qemu.ensure_disk(tmp_path / "root.qcow2", Path("/i/root.img"))
    assert list(tmp_path.iterdir()) == []


def test_a_lab_without_a_record_is_refused() -> None:
    with pytest.raises(LabError, match="no record"):
        qemu.command(guest("n1"))
