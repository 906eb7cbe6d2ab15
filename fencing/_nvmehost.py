"""What this node is to an NVMe subsystem: its host identifier and controllers (sysfs), and what it is told."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from fencing import nvme
from fencing._nvme import Passthrough

SYSFS = Path("/sys")
ALL_NAMESPACES = 0xFFFFFFFF
NOTIFICATIONS_MAX = 1024


def host_id(device: str, sysfs: Path = SYSFS) -> bytes:
    """The 16 bytes under which this host registers at a namespace; b"" where sysfs does not tell (PCIe).

    OSError (ENODEV) if its paths have different ones: what is registered would depend on the path.
    """
    found = {_host_id_of(controller, sysfs) for controller in controllers(device, sysfs)}
    if len(found) > 1:
        names = ", ".join(sorted(str(uuid.UUID(bytes=each)) if each else "none" for each in found))
        raise OSError(errno.ENODEV, f"its paths have different NVMe host identifiers ({names})", device)
    return found.pop() if found else b""


def controllers(device: str, sysfs: Path = SYSFS) -> list[str]:
    """Kernel names of the controllers ("nvme0") through which a namespace is reached; with multipath one per path."""
    above = (sysfs / "class/block" / os.path.basename(os.path.realpath(device)) / "device").resolve()
    if (above / "cntlid").exists():
        return [above.name]
    return sorted(entry.name for entry in above.glob("nvme[0-9]*") if (entry / "cntlid").exists())


def read_notifications(controller: str) -> Iterator[nvme.Notification]:
    """What a controller noted of reservations, oldest first, taken off its list. PortError, or OSError.

    Until its list was read, a controller need not send another event.
    """
    device = f"/dev/{controller}"
    if not stat.S_ISCHR(os.stat(device).st_mode):
        raise OSError(errno.EINVAL, "not an NVMe controller", device)
    commands = Passthrough(device)
    try:
        for _ in range(NOTIFICATIONS_MAX):
            answer = commands.read(nvme.notification_log(), ALL_NAMESPACES, admin=True)
            found = commands.parse(nvme.parse_notification, answer)
            if found is None:
                return
            yield found
    finally:
        commands.close()


def _host_id_of(controller: str, sysfs: Path) -> bytes:
    try:
        return uuid.UUID((sysfs / "class/nvme" / controller / "hostid").read_text().strip()).bytes
    except (OSError, ValueError):
        return b""
