"""Stamps on the disk below a volume: their form, and where they are. Shared by the scripts that write them."""

import os
import zlib

STAMP_BASE = 3 << 20
BLOCK = 4096


def stamp(run: str, number: int, n: int, real_ns: int) -> bytes:
    """The text of one stamp: run, node number, count, wall clock, checksum."""
    text = f"hactl-stamp 1 {run} {number} {n} {real_ns}"
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def whole_disk(mount_point: str, mountinfo: str = "/proc/self/mountinfo", sysfs: str = "/sys/dev/block") -> str:
    """The disk below the file system at `mount_point`: the parent of a partition, else the device itself; of a device
    that joins several disks, the first of them; of several paths to a disk, the device above them."""
    with open(mountinfo) as file:
        devices = [line.split()[2] for line in file if line.split()[4] == mount_point]
    if not devices:
        raise SystemExit(f"nothing is mounted at {mount_point}")
    folder = os.path.realpath(os.path.join(sysfs, devices[-1]))
    while os.path.isdir(slaves := os.path.join(folder, "slaves")) and os.listdir(slaves) and not is_multipath(folder):
        folder = os.path.realpath(os.path.join(slaves, min(os.listdir(slaves))))
    if os.path.exists(os.path.join(folder, "partition")):
        folder = os.path.dirname(folder)
    return "/dev/" + os.path.basename(folder)


def is_multipath(folder: str) -> bool:
    """Whether a dm device unites the paths to one disk."""
    try:
        with open(os.path.join(folder, "dm/uuid")) as file:
            return file.read().startswith("mpath-")
    except OSError:
        return False
