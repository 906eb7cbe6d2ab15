"""Which LUNs form which volume, from the labels that a node sees. Pure.

A label names all LUNs of its volume. A volume may be used where every one of them is seen, is the one that its label
was written for, is as large as it was, and says the same of the volume as the others. All else is told and left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from fencing.claim import is_witness
from fencing.errors import FencingError
from fencing.label import Label, check_member


class SeenDisk(Protocol):
    """What is read of one disk: `fencing._discover.Disk`."""

    @property
    def device(self) -> str: ...
    @property
    def wwid(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def label(self) -> Label | FencingError | None: ...
    @property
    def problem(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LunSet:
    """The LUNs of one volume that are seen here: its newest label, and WWID -> device in WWID order."""

    label: Label
    devices: Mapping[str, str]

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(wwid for wwid in sorted(self.label.wwids) if wwid not in self.devices)

    @property
    def gone(self) -> str:
        """What is not there, in words; "" when the set is whole."""
        missing, all_luns = self.missing, len(self.label.wwids)
        if not missing:
            return ""
        if all_luns == 1:
            return "its disk is not seen on this node"
        return f"{len(missing)} of its {all_luns} disks are not seen on this node, or cannot be used: {some(missing)}"

    def describe(self) -> str:
        """The devices for people, shortened."""
        return some(tuple(self.devices.values()))


NAMES_MAX = 4


def some(names: tuple[str, ...]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - NAMES_MAX
    return ", ".join(names[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


def gather(disks: Iterable[SeenDisk], cluster_uuid: str) -> tuple[dict[str, LunSet], dict[str, str]]:
    """(volume -> its LUNs, device -> why it is not used). Of two volumes of one name, the one seen first is taken."""
    sets: dict[str, LunSet] = {}
    strange: dict[str, str] = {}
    for disk in disks:
        if disk.problem or isinstance(disk.label, FencingError):
            strange[disk.device] = disk.problem or str(disk.label)
        label = disk.label
        if not isinstance(label, Label) or label.cluster_uuid != cluster_uuid or is_witness(label):
            continue
        have = sets.get(label.volume)
        why = _unfit(disk, label, have)
        if why:
            strange[disk.device] = why
        else:
            sets[label.volume] = _joined(have, disk, label)
    return sets, strange


def _unfit(disk: SeenDisk, label: Label, have: LunSet | None) -> str:
    """Why a disk cannot be a member of its volume, "" if it can."""
    try:
        check_member(label, disk.wwid, disk.size_bytes)
    except FencingError as wrong:
        return f"{disk.device}: {wrong}"
    if have is None:
        return ""
    if disk.wwid in have.devices:
        return f"{disk.device} and {have.devices[disk.wwid]} are the same LUN ({disk.wwid}): two paths, not one device"
    first = next(iter(have.devices.values()))
    if label.volume_uuid != have.label.volume_uuid:
        return f"{disk.device} and {first} both claim volume {label.volume}"
    if (label.wwids, label.stack) != (have.label.wwids, have.label.stack):
        return f"{disk.device} tells of volume {label.volume} otherwise than {first}: a disk of another time?"
    return ""


def _joined(have: LunSet | None, disk: SeenDisk, label: Label) -> LunSet:
    if have is None:
        return LunSet(label=label, devices={disk.wwid: disk.device})
    newest = max(have.label, label, key=lambda each: (each.epoch, each.seq))
    devices = {**have.devices, disk.wwid: disk.device}
    return replace(have, label=newest, devices=dict(sorted(devices.items())))
