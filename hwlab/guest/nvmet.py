"""Build an NVMe target (nvmet over TCP) with one subsystem. Called by target.py, which says from what.

The order of steps matters: `resv_enable` is refused once a namespace is enabled, and the ports come last, so that no
host finds a target without its namespaces. nvmet keeps reservations in memory only: after its power loss there are
none, and everybody may write. That is a property of this target which drills are about.

The loop port is for an observer on this very host (hwlab/nvmet_table.py): it reads the reservations over a controller
of its own, with a host id that never registers.
"""

import subprocess
from pathlib import Path

CONFIG = Path("/sys/kernel/config")
NVMET = CONFIG / "nvmet"
# Name of a unit -> its namespace in configfs, for the observer.
LUNS = Path("/run/hwlab/nvmet")


def build(nqn: str, portals: "list[str]", luns: "list[tuple[str, str, str]]", hostid: str) -> None:
    """One namespace for each (name, UUID, device), in the order of namespace ids; `hostid` is this host's own."""
    subprocess.run(["modprobe", "-a", "nvmet", "nvmet-tcp", "nvme-loop"], check=True)
    if not NVMET.exists():
        subprocess.run(["mount", "-t", "configfs", "configfs", str(CONFIG)], check=True)
    # For the witness (hwlab/writeorder.py). These hosts do without systemd's unit for it.
    subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=True)
    subsystem = NVMET / "subsystems" / nqn
    # Made anew at each boot otherwise: the same namespace would have another name in /dev/disk/by-id.
    write(subsystem, attr_allow_any_host="1", attr_serial=hostid.replace("-", "")[:20])
    LUNS.mkdir(parents=True)
    for number, (name, uuid, device) in enumerate(luns, start=1):
        namespace = subsystem / "namespaces" / str(number)
        write(namespace, device_path=device, device_uuid=uuid, device_nguid=uuid, resv_enable="1", enable="1")
        (LUNS / name).symlink_to(namespace)
    offer(1, subsystem, addr_trtype="loop")
    for number, portal in enumerate(portals, start=2):
        offer(number, subsystem, addr_trtype="tcp", addr_adrfam="ipv4", addr_traddr=portal, addr_trsvcid="4420")
    observer = f"transport=loop,nqn={nqn},hostnqn=nqn.2014-08.org.nvmexpress:uuid:{hostid},hostid={hostid}"
    Path("/dev/nvme-fabrics").write_text(observer)


def write(directory: Path, **attributes: str) -> None:
    """Make a configfs directory and set attributes of it, in the given order."""
    directory.mkdir(exist_ok=True)
    for name, value in attributes.items():
        (directory / name).write_text(value)


def offer(number: int, subsystem: Path, **attributes: str) -> None:
    """Offer the subsystem at an address: a port."""
    directory = NVMET / "ports" / str(number)
    write(directory, **attributes)
    (directory / "subsystems" / subsystem.name).symlink_to(subsystem)
