"""One disk as this node reaches it: its WWID, whether it is in use here, and the label's two blocks on it.

Labels are read and written with O_DIRECT: what counts is what the device has, not what this node's cache has.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from functools import partial
from pathlib import Path

from fencing import _maps
from fencing._nvme import NvmePort
from fencing._nvmehost import host_id
from fencing._nvmepaths import NvmePaths
from fencing._paths import BlockPaths, path_names
from fencing._sgutils import SgPort
from fencing.errors import CONFLICT, NotDelivered, OutcomeUnknown, Refused
from fencing.label import (
    BLOCK_BYTES,
    COPIES,
    LABEL_BYTES_MAX,
    FoundLabel,
    Label,
    bytes_needed,
    encode,
    newest,
)
from fencing.paths import MultipathPort
from fencing.port import Lun, ReservationPort

LABEL_OFFSETS = (1 << 20, (1 << 20) + (64 << 10))
LABEL_AREA_END = 4 << 20
SECTOR_BYTES = 512
"""The unit of sizes in sysfs, whatever the disk's own sectors have."""

assert len(LABEL_OFFSETS) == COPIES
assert LABEL_OFFSETS[0] + LABEL_BYTES_MAX <= LABEL_OFFSETS[1]


class DiskLabels:
    """The LabelStore of a whole disk, with sectors of up to 4096 bytes.

    The descriptor for writing is opened once and stays: closing it makes udev read the partition table again,
    which takes the partitions away for a moment, perhaps just when one is to be mounted. A shared lock says
    the same.
    """

    def __init__(self, device: str, wwid: str) -> None:
        """Nothing is opened before it is needed; then `wwid` must still be what the disk says."""
        self._device = device
        self._wwid = wwid
        self._reader = -1
        self._writer = -1

    def read(self) -> FoundLabel | None:
        blocks = [self._read_block(offset) for offset in LABEL_OFFSETS]
        if not any(blocks):
            raise NotDelivered(
                "input/output error on both copies", device=self._device, operation="read label", sense="EIO"
            )
        return newest(blocks, device=self._device)

    def write(self, label: Label, slot: int) -> None:
        self._write_block(encode(label), slot)

    def erase(self) -> None:
        """Blank both copies: for a disk that is about to become something else."""
        for slot in range(COPIES):
            self._write_block(bytes(LABEL_BYTES_MAX), slot)

    def close(self) -> None:
        for descriptor in (self._reader, self._writer):
            if descriptor >= 0:
                os.close(descriptor)
        self._reader = self._writer = -1

    def _write_block(self, block: bytes, slot: int) -> None:
        try:
            if self._writer < 0:
                self._writer = self._open(os.O_WRONLY | os.O_DSYNC)
                _ask_not_to_rescan(self._writer)
            with mmap.mmap(-1, len(block)) as buffer:
                buffer[:] = block
                written = os.pwrite(self._writer, buffer, LABEL_OFFSETS[slot])
        except OSError as error:
            raise _write_error(self._device, error) from error
        if written != len(block):
            raise OutcomeUnknown(
                f"{written} of {len(block)} bytes written", device=self._device, operation="write label"
            )

    def _open(self, flags: int) -> int:
        descriptor = os.open(self._device, flags | os.O_DIRECT | os.O_CLOEXEC)
        try:
            now = wwid(self._device)
            if now != self._wwid:
                raise OSError(errno.ENODEV, f"the disk of this name is {now} now, was {self._wwid}")
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _read_block(self, offset: int) -> bytes | None:
        """None: the medium cannot give this block. NotDelivered: the device cannot be asked."""
        try:
            if self._reader < 0:
                self._reader = self._open(os.O_RDONLY)
            head = self._pread(offset, BLOCK_BYTES)
            needed = bytes_needed(head)
            return head if needed <= BLOCK_BYTES else self._pread(offset, needed)
        except OSError as error:
            if error.errno in (errno.EIO, errno.EILSEQ, errno.ENODATA):
                return None
            raise NotDelivered(
                (error.strerror or str(error)).lower(),
                device=self._device,
                operation="read label",
                sense=errno.errorcode.get(error.errno or 0, ""),
            ) from error

    def _pread(self, offset: int, length: int) -> bytes:
        # an anonymous mapping begins at a page, which O_DIRECT wants for 4096-byte sectors
        with mmap.mmap(-1, length) as buffer:
            got = os.preadv(self._reader, [buffer], offset)
            return bytes(buffer[:got])


def _ask_not_to_rescan(descriptor: int) -> None:
    """udev rescans only disks that it can lock for itself (systemd, "Locking Block Device Access")."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # udev or a partitioning tool is at it just now; the lock is a courtesy


def _write_error(device: str, error: OSError) -> NotDelivered | Refused | OutcomeUnknown:
    # EBADE is how the block layer says "reservation conflict" (blk_status BLK_STS_RESV_CONFLICT; was NEXUS)
    if error.errno == errno.EBADE:
        return Refused(CONFLICT, device=device, operation="write label", sense=CONFLICT)
    kind = NotDelivered if error.errno in (errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.EROFS) else OutcomeUnknown
    sense = errno.errorcode.get(error.errno or 0, "")
    return kind((error.strerror or str(error)).lower(), device=device, operation="write label", sense=sense)


def open_lun(device: str) -> Lun:
    """A disk with its reservation port and its labels. OSError if it cannot be opened or has no WWID."""
    path = f"/dev/{block_name(device)}"
    name = wwid(path)
    nexus = host_id(path) if is_nvme(path) else b""
    port = _open_paths(path, name)
    if wwid(path) != name:
        port.close()
        raise OSError(errno.ENODEV, "became another disk while it was opened", path)
    return Lun(
        wwid=name,
        port=port,
        labels=DiskLabels(path, name),
        in_use=partial(in_use, path),
        size_bytes=partial(size_bytes, path),
        nexus=nexus,
    )


def _open_paths(path: str, wwid: str) -> ReservationPort:
    """Commands go down each path by itself: the kernel would send one for a dm device down any of them. An NVMe
    namespace is registered for the host, whatever its paths: its head is the one to ask (`_nvmepaths.py`)."""
    name = os.path.basename(path)
    if is_nvme(path):
        return NvmePaths(path)
    if _maps.is_multipath(name):
        return MultipathPort(path, BlockPaths(wwid, head=True))
    if len(path_names(wwid)) > 1:
        return MultipathPort(path, BlockPaths(wwid, head=False, data=name))
    return open_port(path)


def open_port(device: str) -> ReservationPort:
    """The way to a whole disk's reservations: NVMe passthrough or SG_IO. OSError if it cannot be opened."""
    return NvmePort(device) if is_nvme(device) else SgPort(device)


def is_nvme(device: str) -> bool:
    return block_name(device).startswith("nvme")


def block_name(device: str) -> str:
    """The kernel's name of a whole disk ("sda", "dm-3") from a path or link. OSError if it is none."""
    path = os.path.realpath(device)
    mode = os.stat(path)
    name = os.path.basename(path)
    if not stat.S_ISBLK(mode.st_mode):
        raise OSError(errno.ENOTBLK, "not a block device", device)
    if os.path.exists(f"/sys/class/block/{name}/partition"):
        raise OSError(errno.EINVAL, "a partition; reservations are of whole disks", device)
    return name


def wwid(device: str) -> str:
    """The name that the disk itself has, the same on every node and path. OSError if it has none.

    A multipath device has that of its paths; without any path left, the NAA identifier that its map was made for.
    """
    name = block_name(device)
    for path in (name, *_maps.paths_of(name)) if _maps.is_multipath(name) else (name,):
        for attribute in ("device/wwid", "wwid"):
            try:
                # a device may answer with any bytes
                text = " ".join(
                    (Path("/sys/class/block") / path / attribute).read_text(errors="backslashreplace").split()
                )
            except OSError:
                continue
            if text:
                return text
    mapped = _maps.uuid_wwid(name)
    if mapped.startswith("3"):  # how scsi_id writes an identifier of type NAA
        return f"naa.{mapped[1:]}"
    raise OSError(errno.ENODATA, "the disk gives no unique name (VPD page 83), so nodes could mistake it", device)


def size_bytes(device: str) -> int:
    """Bytes of a disk or partition."""
    name = os.path.basename(os.path.realpath(device))
    return int((Path("/sys/class/block") / name / "size").read_text()) * SECTOR_BYTES


def in_use(device: str) -> str:
    """What this node does with the disk, "" for nothing: a mount of it or of a partition, md, dm, swap.

    Of a multipath device the partitions are dm devices above it; they alone are no use of it.
    """
    name = os.path.basename(os.path.realpath(device))
    partitions = _maps.partitions_of(name)
    others = sorted(set(_maps.holders_of(name)) - set(partitions.values()))
    if not partitions:
        return _exclusively_open(name)
    return ", ".join(
        [f"used by {other}" for other in others] + list(filter(None, map(_exclusively_open, partitions.values())))
    )


def _exclusively_open(name: str) -> str:
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            return ""  # not to be opened at all: the first command will say why
        return _users(name) or "opened exclusively"
    return ""


def _users(name: str) -> str:
    found = [f"mounted on {where}" for where in _mount_points(name)]
    for holders in Path(f"/sys/class/block/{name}").glob("**/holders"):
        found += [f"used by {holder.name}" for holder in holders.iterdir()]
    return ", ".join(sorted(set(found)))


def _mount_points(name: str) -> list[str]:
    numbers = {
        path.read_text().strip()
        for path in Path(f"/sys/class/block/{name}").glob("**/dev")
        if path.parent.name.startswith(name)
    }
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [fields[4] for fields in map(str.split, lines) if fields[2] in numbers]
