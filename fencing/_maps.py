"""dm-multipath devices: which paths a map has, and its partitions, which are dm devices of their own (kpartx)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

SYS_BLOCK = Path("/sys/class/block")
_MULTIPATH = "mpath-"
_PARTITION = re.compile(r"part(\d+)-mpath-")
_KPARTX = ("kpartx", "-u", "-p", "-part")
"""The delimiter that the distributions' udev rules give, so that both make the same names."""


def is_multipath(name: str) -> bool:
    """Is this kernel name ("dm-3") the device above the paths of one disk?"""
    return _uuid(name).startswith(_MULTIPATH)


def uuid_wwid(name: str) -> str:
    """The WWID that a map was made for, "" if it is no multipath map."""
    return _uuid(name).removeprefix(_MULTIPATH) if is_multipath(name) else ""


def paths_of(name: str) -> list[str]:
    """Kernel names of the paths in a map, also of failed ones."""
    return _names(SYS_BLOCK / name / "slaves")


def holders_of(name: str) -> list[str]:
    """Kernel names of the devices that are made of this one."""
    return _names(SYS_BLOCK / name / "holders")


def partitions_of(name: str) -> dict[int, str]:
    """Number -> kernel name of the partitions of a map that there are now."""
    found = {}
    for holder in holders_of(name):
        match = _PARTITION.match(_uuid(holder))
        if match:
            found[int(match[1])] = holder
    return found


def partition_path(name: str, number: int) -> str:
    """Where a partition of a map is, or will be: by its dm name, for minor numbers change."""
    made = partitions_of(name).get(number)
    return f"/dev/mapper/{_dm_name(made) if made else f'{_dm_name(name)}-part{number}'}"


def read_partitions(name: str) -> None:
    """Let dm have the partitions that the disk's table names. OSError with the tool's words."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    done = subprocess.run(
        [*_KPARTX, f"/dev/mapper/{_dm_name(name)}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "LC_ALL": "C"},
    )
    if done.returncode:
        raise OSError(f"kpartx failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-300:]}")


def _dm_name(name: str) -> str:
    return (SYS_BLOCK / name / "dm/name").read_text().strip()


def _uuid(name: str) -> str:
    try:
        return (SYS_BLOCK / name / "dm/uuid").read_text().strip()
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
