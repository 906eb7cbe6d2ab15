"""The volumes of a node as its disks come, get other names and vanish: fake units, real threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fencing._discover import Disk
from fencing.fake import FakeLogicalUnit, fake_lun
from fencing.model import Identity
from fencing.port import Lun
from hactl import volumes
from hactl.controller import Phase
from hactl.record import Records
from hactl.runtime import Clock
from hactl.volumes import VolumeSet
from tests.fencing.conftest import CLUSTER, label_for

WWIDS = ("naa.1", "naa.2")


class Disks:
    """What a scan sees: WWID -> device. Every open is noted with its thread; `while_opening` runs on that thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names = dict(zip(WWIDS, ("/dev/sda", "/dev/sdb"), strict=True))
        self.opened: list[tuple[str, int]] = []
        self.closed: list[str] = []
        self.fails: set[str] = set()
        self.while_opening: Callable[[], None] = lambda: None
        monkeypatch.setattr(volumes, "scan", self.scan)
        monkeypatch.setattr(volumes, "open_lun", self.open)
        monkeypatch.setattr(volumes, "partition", lambda device, number: f"{device}{number}")
        service = SimpleNamespace(close=lambda: None)
        monkeypatch.setattr(volumes, "VolumeService", lambda spec: service)
        monkeypatch.setattr(volumes, "ExportedVolume", lambda service, now: service)

    def scan(self) -> list[Disk]:
        label = replace(label_for(*WWIDS), stack="lvm")
        return [Disk(device=name, wwid=wwid, size_bytes=1 << 40, label=label) for wwid, name in self.names.items()]

    def open(self, device: str) -> Lun:
        self.opened.append((device, threading.get_ident()))
        self.while_opening()
        if device in self.fails:
            raise OSError(f"{device} does not answer")
        [wwid] = [wwid for wwid, name in self.names.items() if name == device]
        lun = fake_lun(FakeLogicalUnit(name=wwid), b"n1")
        lun.port.close = lambda: self.closed.append(device)  # type: ignore[method-assign]
        return lun


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(monkeypatch)


@pytest.fixture
def node(disks: Disks, tmp_path: Path) -> VolumeSet:
    identity = Identity(cluster_uuid=CLUSTER, node=1, node_name="n1")
    config = SimpleNamespace(
        cluster=SimpleNamespace(uuid=CLUSTER),
        identity=identity,
        me="n1",
        timing=SimpleNamespace(fence_early_ms=0, gate_lifetime_s=1),
    )
    return VolumeSet(
        config=config,  # type: ignore[arg-type]
        records=Records(tmp_path / "stable", tmp_path / "boot"),
        gate=SimpleNamespace(),  # type: ignore[arg-type]
        clock=Clock(monotonic_s=lambda: 0.0, unix_ms=lambda: 0.0, pause_s=lambda seconds: None),
        log=lambda line: None,
        changed=lambda: None,
        finished=lambda takeover: None,
    )


def test_disks_are_opened_off_the_event_loop(disks: Disks, node: VolumeSet) -> None:
    """Opening a hundred of them, or one whose path hangs, must not look like a daemon that hangs."""
    [runtime] = asyncio.run(node.scan())
    assert runtime is node.seen["v1"].runtime
    assert [name for name, _ in disks.opened] == ["/dev/sda", "/dev/sdb"]
    assert threading.get_ident() not in {thread for _, thread in disks.opened}


def test_a_disk_with_another_name_is_taken_into_use_and_told_as_new(disks: Disks, node: VolumeSet) -> None:
    """Its runtime is another one: it must hear of the lease and of the leader's order as the first one did."""
    [before] = asyncio.run(node.scan())
    assert asyncio.run(node.scan()) == []
    disks.names["naa.2"] = "/dev/sdq"
    [after] = asyncio.run(node.scan())
    assert after is node.seen["v1"].runtime and after is not before
    assert disks.closed == ["/dev/sda", "/dev/sdb"]
    assert tuple(node.seen["v1"].luns.devices.values()) == ("/dev/sda", "/dev/sdq")


def test_a_volume_that_is_taken_while_its_disks_are_opened_anew_keeps_those_it_has(
    disks: Disks, node: VolumeSet
) -> None:
    asyncio.run(node.scan())
    disks.names["naa.2"] = "/dev/sdq"
    taken = SimpleNamespace(holding=True, phase=Phase.SERVING)
    disks.while_opening = lambda: setattr(node.seen["v1"].runtime, "machine", taken)
    assert asyncio.run(node.scan()) == []
    assert tuple(node.seen["v1"].luns.devices.values()) == ("/dev/sda", "/dev/sdb")
    assert disks.closed == ["/dev/sda", "/dev/sdq"]


def test_a_disk_that_cannot_be_opened_is_named_and_the_others_are_let_go(disks: Disks, node: VolumeSet) -> None:
    disks.fails = {"/dev/sdb"}
    assert asyncio.run(node.scan()) == []
    assert node.seen == {} and disks.closed == ["/dev/sda"]
    assert "/dev/sdb does not answer" in str(node.strange)
    disks.fails = set()
    assert len(asyncio.run(node.scan())) == 1
