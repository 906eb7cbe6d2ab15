"""Which disks this node sees, and which volumes are on them. Reads only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyudev

from fencing import _maps
from fencing._disk import DiskLabels, size_bytes, wwid
from fencing.errors import FencingError
from fencing.label import Label

_WHOLE_DISKS = re.compile(r"sd[a-z]+|dm-\d+|nvme\d+n\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk. `wwid` is "" if it gives none (`problem` says so). `label` is None on a disk without a
    volume,
    an error where there is a label that cannot be used, or where the disk could not be read."""

    device: str
    wwid: str
    size_bytes: int
    label: Label | FencingError | None
    problem: str = ""


def scan() -> list[Disk]:
    """Every whole disk that could carry a volume, by device name; paths of a multipath device only as that
    device, also before it is there; of other paths to one disk the first that can be read.
    """
    devices = pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk")
    claimed = {each.sys_name for each in devices if each.properties.get("DM_MULTIPATH_DEVICE_PATH") == "1"}
    names = sorted(set(_candidates(device.sys_name for device in devices)) - claimed)
    return _one_of_each([look_at(f"/dev/{name}") for name in names])


def _one_of_each(disks: list[Disk]) -> list[Disk]:
    """Several paths that no multipath device unites are one disk."""
    best: dict[str, Disk] = {}
    for disk in disks:
        known = best.setdefault(disk.wwid or disk.device, disk)
        if isinstance(known.label, FencingError) and not isinstance(disk.label, FencingError):
            best[disk.wwid] = disk
    return list(best.values())


def look_at(device: str) -> Disk:
    """One disk, whatever state it is in. OSError only if it is gone or no whole disk."""
    size = size_bytes(device)
    try:
        name = wwid(device)
    except OSError as error:
        return Disk(device=device, wwid="", size_bytes=size, label=None, problem=error.strerror or str(error))
    labels = DiskLabels(device, name)
    try:
        found = labels.read()
    except FencingError as error:
        return Disk(device=device, wwid=name, size_bytes=size, label=error)
    finally:
        labels.close()
    label = found.label if found else None
    return Disk(device=device, wwid=name, size_bytes=size, label=label, problem=found.damage if found else "")


class DiskEvents:
    """Disks that came, went or changed, from udev. `fileno` becomes readable; `drain` never blocks."""

    def __init__(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context())
        self._monitor.filter_by("block", device_type="disk")
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def drain(self) -> list[tuple[str, str]]:
        """(action, device) of every event since the last call: "add", "remove", "change"."""
        events: list[tuple[str, str]] = []
        while (event := self._monitor.poll(timeout=0)) is not None:
            if _WHOLE_DISKS.fullmatch(event.sys_name):
                events.append((event.action or "", f"/dev/{event.sys_name}"))
        return events


def _candidates(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        sysfs = Path("/sys/class/block") / name
        if not _WHOLE_DISKS.fullmatch(name) or (sysfs / "size").read_text().strip() == "0":
            continue
        if name.startswith("dm-") and not _maps.is_multipath(name):
            continue
        if not any(_maps.is_multipath(holder) for holder in _maps.holders_of(name)):
            yield name
