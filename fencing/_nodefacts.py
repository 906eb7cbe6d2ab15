"""What this node is to its storage, and which paths it has to a device: read from sysfs, in the form of
`nodefacts.py`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fencing._disk import size_bytes, wwid

SYSFS = Path("/sys")
# What each kind of initiator is known by at a target, as it is in use: a name that only stands in a file harms nobody.
_NAMES = {
    "iSCSI initiator name": "class/iscsi_session/*/initiatorname",
    "FC port name": "class/fc_host/*/port_name",
    "NVMe host identifier": "class/nvme/*/hostid",
    "NVMe host name (NQN)": "class/nvme/*/hostnqn",
}


def node_facts(wwids: Iterable[str]) -> dict[str, Any]:
    """This node's names, and each of the devices that it sees."""
    names = {kind: sorted({_text(path) for path in SYSFS.glob(where)} - {""}) for kind, where in _NAMES.items()}
    names["host name"] = [os.uname().nodename]
    wanted = list(wwids)
    seen = _disks(wanted)
    return {"names": names, "devices": {each: _device(seen[each]) for each in wanted if each in seen}}


def path_names(name: str) -> list[str]:
    """The paths of one WWID as this node sees it now ("/dev/sda"); the head of a natively multipathed NVMe
    namespace."""
    return [f"/dev/{disk}" for disk in _disks([name]).get(name, [])]


def head_of(paths: list[str]) -> str:
    """The disk that is used: the multipath device over these paths, or the only path."""
    for path in paths:
        for holder in sorted((SYSFS / "class/block" / os.path.basename(path) / "holders").glob("dm-*")):
            if _text(holder / "dm/uuid").startswith("mpath-"):
                return f"/dev/{holder.name}"
    return paths[0]


def _disks(wanted: Iterable[str]) -> dict[str, list[str]]:
    """Kernel names of whole disks by WWID, without the devices that the kernel made of others."""
    found: dict[str, list[str]] = {}
    names = set(wanted)
    for entry in sorted((SYSFS / "class/block").iterdir()):
        if (entry / "partition").exists() or not (entry / "device").exists():
            continue
        try:
            name = wwid(f"/dev/{entry.name}")
        except OSError:
            continue
        if name in names:
            found.setdefault(name, []).append(entry.name)
    return found


def _device(disks: list[str]) -> dict[str, Any]:
    head = head_of([f"/dev/{disk}" for disk in disks])
    sector = SYSFS / "class/block" / os.path.basename(head) / "queue/logical_block_size"
    return {
        "head": head,
        "size_bytes": size_bytes(head),
        "sector_bytes": int(_text(sector) or 0),
        "paths": [
            {
                "name": f"/dev/{disk}",
                "via": _via(disk),
                "state": _text(SYSFS / "class/block" / disk / "device/state"),
                "size_bytes": size_bytes(f"/dev/{disk}"),
            }
            for disk in disks
        ],
    }


def _via(disk: str) -> str:
    """What a path goes through: session and portal, ports, or the controller."""
    device = (SYSFS / "class/block" / disk / "device").resolve()
    for part in device.parts:
        if part.startswith("session"):
            target = _text(SYSFS / "class/iscsi_session" / part / "targetname")
            connection = SYSFS / "class/iscsi_connection" / part.replace("session", "connection")
            found = sorted(connection.parent.glob(f"{connection.name}:*"))
            portal = f"{_text(found[0] / 'persistent_address')}:{_text(found[0] / 'persistent_port')}" if found else ""
            return f"iSCSI {target} {portal}".strip()
        if part.startswith("rport-"):
            return f"FC {_text(SYSFS / 'class/fc_remote_ports' / part / 'port_name')}"
    # with native multipath the disk is a head, and has a controller for each path
    controllers = [device] if (device / "address").exists() else sorted(device.glob("nvme*/"))
    told = [f"{_text(each / 'transport')} {_text(each / 'address')}" for each in controllers if _text(each / "address")]
    if told:
        return "; ".join(told)
    hosts = [part for part in device.parts if part.startswith("host") and part[4:].isdigit()]
    return _text(SYSFS / "class/scsi_host" / hosts[-1] / "proc_name") if hosts else ""


def _text(path: Path) -> str:
    """The contents of an attribute; "" if there is none."""
    try:
        return path.read_text(errors="backslashreplace").strip()
    except OSError:
        return ""
