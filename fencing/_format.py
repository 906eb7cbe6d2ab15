"""Making a volume of a disk: partitions, file system, label. The administrator's path; tools are run here.

The labels are written last: until then no node sees a volume, so a format that was cut off is simply begun
again. They say that the volume is not wanted, until a last write to one of them does. The disk is fenced first and
stays owned by the key of this format, with no owner in its label: it refuses everybody else's writes from the first
moment on, and the node that starts the volume takes it with a higher epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fencing import _maps
from fencing._disk import LABEL_AREA_END, DiskLabels, open_lun, size_bytes
from fencing._threads import Threads
from fencing.acquisition import Intent, fence, offer, stamp
from fencing.claim import WITNESS_FS
from fencing.errors import FencingError, FormatFailed, FormatRefused, LabelError
from fencing.foreign import describe
from fencing.handle import Handle
from fencing.label import MEMBERS_MAX, Label
from fencing.model import Identity, Key, ReservationState
from fencing.ownership import foreign_keys
from fencing.port import Lun
from fencing.timing import Clock, Stopwatch

MIB = 1 << 20
SMALL_BYTES = 64 << 30
"""Up to here mkfs writes all metadata at once, rather than leave it to the first mount, which may be a
takeover.
"""

# `first-lba`: else sfdisk begins at the first multiple of the disk's optimal I/O size, where that is beyond 1 MiB
PARTITIONS = """\
label: gpt
first-lba: {first}
start=1MiB, size=3MiB, type=8DA63339-0007-60C0-C436-083AC8230908, name="hactl-label"
start=4MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="hactl-data"
"""
WITNESS_PARTITIONS = "".join(PARTITIONS.splitlines(keepends=True)[:3])
"""Only the label's, so that other tools see that the disk is not empty."""
_SFDISK = ["sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always"]
_PARTITION_DEADLINE_S = 20.0
_POLL_S = 0.02
_ERROR_BYTES_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """How one file system is made. `bytes_min` is what its mkfs wants, and room for a journal."""

    command: tuple[str, ...]
    small: tuple[str, ...]
    label_bytes_max: int
    bytes_min: int


FILE_SYSTEMS = {
    "ext4": FileSystem(
        command=("mkfs.ext4", "-q", "-F", "-E"),
        small=("nodiscard,lazy_itable_init=0,lazy_journal_init=0", "nodiscard"),
        label_bytes_max=16,
        bytes_min=16 * MIB,
    ),
    "xfs": FileSystem(command=("mkfs.xfs", "-q", "-f", "-K"), small=(), label_bytes_max=12, bytes_min=300 * MIB),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVolume:
    """What the label of the new volume is to say. `address` is CIDR, empty `nodes` means all nodes."""

    name: str
    cluster_name: str
    fstype: str
    address: str
    clients: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    lease_s: int
    grace_s: int
    wanted: str = "stopped"
    stack: str = ""
    risk: str = ""


class Join(Protocol):
    """Makes one device of the data partitions of several LUNs (`fs/_assemble.py`), and lets go of them again."""

    def create(self) -> str: ...

    def disassemble(self) -> bool: ...


Joined = Callable[[str, tuple[str, ...]], Join]
"""(uuid of the volume, data partitions in WWID order) -> what joins them."""


def format_volume(
    device: str,
    new: NewVolume,
    identity: Identity,
    *,
    floor: int,
    intent: Intent,
    clock: Clock,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Label:
    """As `format_set`, for a volume on one LUN."""
    return format_set([device], new, identity, floor=floor, intent=intent, clock=clock, force=force, say=say)


def format_set(
    devices: Sequence[str],
    new: NewVolume,
    identity: Identity,
    *,
    floor: int,
    intent: Intent,
    clock: Clock,
    join: Joined | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Label:
    """Destroy what is on whole disks and make them one volume; returns its label. `join`: for `new.stack`.

    FormatRefused, DeviceBusy, ForeignOwner: nothing was changed on any of them. A disk that is not empty, or that
    somebody outside this cluster has reserved, needs `force`; one that a node serves is refused in any case. `floor`
    and `intent` as in `acquire`.
    """
    spread = Threads()
    disks = _opened(devices, new)
    try:
        luns = [lun for _, lun in disks]
        olds = [_check(device, lun, new, identity, force) for device, lun in disks]
        highest = max([floor, *(old.epoch for old in olds if old)])
        _name_foreign(luns, identity, force, say)
        handle = fence(luns, identity, floor=highest, intent=intent, clock=clock, spread=spread, force=force)
        say(f"fenced {_told([lun.wwid for lun in luns])} with key {handle.key}")
        label = _first_label(new, identity, luns, handle.epoch)
        try:
            _make(disks, new, label, join, say)
            # nobody takes a volume that is not wanted: not while the labels are half written
            stamp(handle, replace(label, wanted="stopped"), stopwatch=Stopwatch(clock))
            if label.wanted != "stopped":
                _offer(handle, label)
        except FencingError:
            raise
        except Exception as error:
            raise FormatFailed(
                f"formatting ended half way: {error}",
                device=_told(list(devices)),
                next_action="mend the cause and format again with force",
            ) from error
        say(f"volume {new.name} is on {_told([lun.wwid for lun in luns])}, epoch {label.epoch}")
        return label
    finally:
        spread.close()
        for _, lun in disks:
            lun.close()


def _offer(handle: Handle, label: Label) -> None:
    try:
        offer(handle, label.wanted)
    except FencingError as error:
        raise FormatFailed(
            f"volume {label.volume} is made, but stays stopped: {error}",
            device=_told(label.wwids),
            next_action=f"start it: hactl volume start {label.volume}",
        ) from error


def _opened(devices: Sequence[str], new: NewVolume) -> list[tuple[str, Lun]]:
    """In WWID order. FormatRefused unless each is another LUN."""
    if len(devices) > MEMBERS_MAX:
        raise _refused(devices[0], f"{len(devices)} disks, a volume has at most {MEMBERS_MAX}", "use fewer disks")
    if len(devices) > 1 and not new.stack:
        raise _refused(devices[0], f"{len(devices)} disks and nothing that joins them", "say how: --stack")
    disks: list[tuple[str, Lun]] = []
    try:
        for device in devices:
            disks.append((device, open_lun(device)))
        disks.sort(key=lambda each: each[1].wwid)
        for (device, lun), (other, twin) in zip(disks[1:], disks, strict=False):
            if lun.wwid == twin.wwid:
                raise _refused(device, f"it is the same disk as {other} ({lun.wwid})", "name each disk once")
    except Exception:
        for _, lun in disks:
            lun.close()
        raise
    return disks


def _told(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def format_witness(
    device: str,
    cluster_name: str,
    identity: Identity,
    *,
    floor: int,
    intent: Intent,
    clock: Clock,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Label:
    """Make a whole disk a LUN of the witness (`claim.py`); returns its label, which nobody has claimed yet.

    FormatRefused, DeviceBusy, ForeignOwner: nothing was changed. As `format_volume` otherwise."""
    lun = open_lun(device)
    try:
        if size_bytes(device) < LABEL_AREA_END + MIB:
            raise _refused(device, f"it has only {size_bytes(device) // MIB} MiB", "use a disk of 8 MiB or more")
        old = _check_empty(device, lun, identity, force)
        _name_foreign([lun], identity, force, say)
        handle = fence(
            [lun], identity, floor=max(floor, old.epoch if old else 0), intent=intent, clock=clock, force=force
        )
        say(f"fenced {lun.wwid} with key {handle.key}")
        label = Label(
            cluster_uuid=identity.cluster_uuid,
            cluster_name=cluster_name,
            volume="witness",
            volume_uuid=str(uuid.uuid4()),
            epoch=handle.epoch,
            wwids=(lun.wwid,),
            fstype=WITNESS_FS,
            lease_s=1,
            grace_s=1,
            seq=1,
        )
        path = os.path.realpath(device)
        assert isinstance(lun.labels, DiskLabels)
        try:
            lun.labels.erase()
            _run(["wipefs", "--quiet", "--all", "--force", path])
            _partition(path, _partitions(path, WITNESS_PARTITIONS))
            stamp(handle, label, stopwatch=Stopwatch(clock))
        except (OSError, subprocess.SubprocessError) as error:
            raise FormatFailed(
                f"making the witness ended half way: {error}", device=device, next_action="try again with force"
            ) from error
        return label
    finally:
        lun.close()


def relabel_volume(
    device: str, new: NewVolume, identity: Identity, *, floor: int, intent: Intent, clock: Clock
) -> Label:
    """Give a disk whose label is lost or damaged a new one; its file system stays as it is.

    For a volume on one LUN. `new` says what the old label said. FormatRefused if a label can still be read, or if
    there is no data partition.
    """
    lun = open_lun(device)
    try:
        assert isinstance(lun.labels, DiskLabels)
        old, _ = _old_label(lun)
        if old is not None:
            raise _refused(device, f"the label of volume {old.volume} can be read", "use the volume as it is")
        if not os.path.exists(partition(device, 2)):
            raise _refused(device, "it has no second partition", "format it, if nothing on it is needed")
        handle = fence([lun], identity, floor=floor, intent=intent, clock=clock)
        label = _first_label(new, identity, [lun], handle.epoch)
        lun.labels.erase()
        stamp(handle, label, stopwatch=Stopwatch(clock))
        return label
    finally:
        lun.close()


def contents(device: str) -> list[str]:
    """What is on a disk, in words; empty if nothing is: signatures that wipefs knows, or other data."""
    disk = os.path.realpath(device)
    found = _signatures(disk)
    parts = [part.parent.name for part in Path("/sys/class/block").glob(f"{os.path.basename(disk)}/*/partition")]
    for name in sorted([*parts, *_maps.partitions_of(os.path.basename(disk)).values()]):
        found += [f"{kind} on {name}" for kind in _signatures(f"/dev/{name}")]
    beginning = _first_data(disk)
    if not found and beginning is not None:
        found.append(f"data at byte {beginning}, of no known kind")
    return found


def partition(device: str, number: int) -> str:
    """The kernel's path of a partition. Of a multipath device it is made if there is none yet."""
    name = os.path.realpath(device)
    mapped = os.path.basename(name)
    if _maps.is_multipath(mapped):
        if number not in _maps.partitions_of(mapped):
            with contextlib.suppress(OSError):  # no such partition: what opens it will say so
                _maps.read_partitions(mapped)
        return _maps.partition_path(mapped, number)
    return f"{name}p{number}" if name[-1].isdigit() else f"{name}{number}"


def _check(device: str, lun: Lun, new: NewVolume, identity: Identity, force: bool) -> Label | None:
    """Everything that speaks against it, before anything is changed. Returns the label that is there now."""
    kind = FILE_SYSTEMS.get(new.fstype)
    if kind is None:
        raise _refused(device, f"unknown file system {new.fstype}", f"use one of {', '.join(FILE_SYSTEMS)}")
    for tool in ("sfdisk", "wipefs", kind.command[0]):
        if shutil.which(tool, path=_path()) is None:
            raise _refused(device, f"{tool} is not installed", "install fdisk, util-linux, e2fsprogs and xfsprogs")
    size = size_bytes(device)
    if size < LABEL_AREA_END + kind.bytes_min + MIB:
        raise _refused(device, f"it has only {size // MIB} MiB", f"use a larger disk for {new.fstype}")
    return _check_empty(device, lun, identity, force)


def _check_empty(device: str, lun: Lun, identity: Identity, force: bool) -> Label | None:
    found = contents(device)
    old, about_label = _old_label(lun)
    if (found or about_label) and not force:
        what = ", ".join([about_label, *found] if about_label else found)
        raise _refused(device, f"it is not empty: {what}", "choose another disk, or destroy that with force")
    if old is not None:
        _check_owner(device, lun.port.read(), old, identity)
    return old


def _name_foreign(luns: Sequence[Lun], identity: Identity, force: bool, say: Callable[[str], None]) -> None:
    """What is about to be preempted is said first. Without force the fence refuses it."""
    for lun in luns if force else ():
        for key in foreign_keys(lun.port.read().keys, identity.tag):
            say(f"preempts a key on {lun.wwid} that this cluster did not make, by force: {describe(key)}")


def _check_owner(device: str, state: ReservationState, old: Label, identity: Identity) -> None:
    others = [Key.parse(key) for key in state.holders if Key.parse(key).node != identity.node]
    if others and old.wanted == "started" and old.cluster_uuid == identity.cluster_uuid:
        raise _refused(
            device,
            f"volume {old.volume} is served by node {others[0].node} ({old.owner or 'unnamed'})",
            f"stop it first: hactl volume stop {old.volume}",
        )


def _old_label(lun: Lun) -> tuple[Label | None, str]:
    try:
        found = lun.labels.read()
    except LabelError as error:
        return None, f"a label that cannot be used ({error.what})"
    if found is None:
        return None, ""
    return found.label, f'volume "{found.label.volume}" of cluster "{found.label.cluster_name}"'


def _first_label(new: NewVolume, identity: Identity, luns: Sequence[Lun], epoch: int) -> Label:
    """`luns` in WWID order."""
    return Label(
        cluster_uuid=identity.cluster_uuid,
        cluster_name=new.cluster_name,
        volume=new.name,
        volume_uuid=str(uuid.uuid4()),
        epoch=epoch,
        wanted=new.wanted,
        wwids=tuple(lun.wwid for lun in luns),
        fstype=new.fstype,
        address=new.address,
        clients=new.clients,
        nodes=new.nodes,
        lease_s=new.lease_s,
        grace_s=new.grace_s,
        seq=1,
        member=0,
        sizes=tuple(lun.size_bytes() for lun in luns),
        stack=new.stack,
        risk=new.risk,
    )


def _make(
    disks: Sequence[tuple[str, Lun]], new: NewVolume, label: Label, join: Joined | None, say: Callable[[str], None]
) -> None:
    parts = tuple(_part(os.path.realpath(device), lun) for device, lun in disks)
    say(f"made the partitions hactl-label and hactl-data on {_told([device for device, _ in disks])}")
    if join is None:
        _run(_mkfs(new, parts[0]))
        say(f"made the {new.fstype} file system on {parts[0]}")
        return
    joined = join(label.volume_uuid, parts)
    try:
        data = joined.create()
        say(f"joined {len(parts)} disks as {new.stack}: {data}")
        _run(_mkfs(new, data))
        say(f"made the {new.fstype} file system on {data}")
    finally:
        # whoever starts the volume assembles it, once it owns the disks
        joined.disassemble()


def _part(path: str, lun: Lun) -> str:
    """Labels gone, two partitions made; returns the second one."""
    assert isinstance(lun.labels, DiskLabels)
    lun.labels.erase()
    _run(["wipefs", "--quiet", "--all", "--force", path])
    _partition(path, _partitions(path, PARTITIONS))
    data = partition(path, 2)
    _wait_for(data)
    # what an earlier volume left there would be found again, at the same place
    _run(["wipefs", "--quiet", "--all", "--force", data])
    return data


def _partition(path: str, table: str) -> None:
    """Write a partition table, and let the kernel have it. dm devices learn of theirs from kpartx."""
    mapped = _maps.is_multipath(os.path.basename(path))
    quiet = ["--no-reread", "--no-tell-kernel"] if mapped else []
    _run([*_SFDISK, *quiet, path], text=table)
    if mapped:
        _maps.read_partitions(os.path.basename(path))


def _mkfs(new: NewVolume, data: str) -> list[str]:
    kind = FILE_SYSTEMS[new.fstype]
    command = [*kind.command]
    if kind.small:
        command.append(kind.small[0] if size_bytes(os.path.realpath(data)) <= SMALL_BYTES else kind.small[1])
    return [*command, "-L", new.name[: kind.label_bytes_max], data]


def _partitions(path: str, table: str) -> str:
    sector = int((Path("/sys/class/block") / os.path.basename(path) / "queue/logical_block_size").read_text())
    return table.format(first=MIB // sector)


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + _PARTITION_DEADLINE_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise OSError(f"{path} did not appear within {_PARTITION_DEADLINE_S:.0f} s of partitioning")
        time.sleep(_POLL_S)


def _signatures(path: str) -> list[str]:
    text = _run(["wipefs", "--no-act", "--json", path])
    kinds: dict[str, None] = {}
    for each in json.loads(text)["signatures"] if text.strip() else []:
        label = f' "{each["label"]}"' if each.get("label") else ""
        kinds[f"{each['type']}{label}"] = None
    return list(kinds)


def _first_data(path: str) -> int | None:
    """The first byte that is not zero, where partition tables, labels and file systems begin."""
    with open(path, "rb", buffering=0) as disk:
        for offset in range(0, LABEL_AREA_END + MIB, MIB):
            block = disk.read(MIB)
            if any(block):
                return offset + next(index for index, byte in enumerate(block) if byte)
    return None


def _run(command: Sequence[str], text: str = "") -> str:
    """OSError with the tool's own words if it fails."""
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C"},
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-_ERROR_BYTES_MAX:]
        raise OSError(f"{command[0]} failed ({done.returncode}): {words}")
    return done.stdout


def _path() -> str:
    """Administrators' tools are not in everybody's PATH."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _refused(device: str, what: str, next_action: str) -> FormatRefused:
    return FormatRefused(what, device=device, next_action=next_action)
