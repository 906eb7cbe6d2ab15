"""What every emulated host of a lab is told and made of, whatever emulates it."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

from hwlab import record
from hwlab.errors import LabError
from hwlab.image import Image, cached_image
from hwlab.paths import state_dir
from hwlab.topology import NVME, HostSpec, Role, Topology

IQN_PREFIX = "iqn.2026-11.org.hactl"
NQN_PREFIX = "nqn.2026-11.org.hactl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One host of one lab."""

    lab: str
    spec: HostSpec
    topology: Topology


def host_dir(lab: str, host: str) -> Path:
    """What this machine keeps of a host: its disk and its console."""
    return state_dir(lab) / "hosts" / host


def key_file(lab: str) -> Path:
    """The private key that the lab's hosts accept."""
    return state_dir(lab) / "id_ed25519"


def lun_file(lab: str, lun: str) -> Path:
    """What the target's logical unit is made of. A write that the guest saw completed is in this machine's
    page cache, so killing the guest loses none."""
    return state_dir(lab) / "luns" / f"{lun}.img"


def recorded(lab: str) -> record.Record:
    """The record of a lab that was started, or LabError."""
    found = record.read(lab)
    if found is None:
        raise LabError(f"lab {lab} has no record: run `hwlab --lab {lab} down`, then up")
    return found


def image_below(lab: str) -> Image:
    """The image that the lab's disks lie above, or LabError."""
    image = cached_image(recorded(lab).image)
    if image is None:
        raise LabError(f"the image below lab {lab}'s disks is gone: run `hwlab --lab {lab} down`, then up")
    return image


def initiator_name(host: str) -> str:
    """iSCSI name of a node."""
    return f"{IQN_PREFIX}:{host}"


def host_uuid(lab: str, host: str) -> uuid.UUID:
    """Who a host is, to systemd and to an NVMe target: the same at each boot, and no other host's.

    Two hosts with one NVMe host id share a registration, so that neither can fence the other.
    """
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{host}.{lab}.hwlab")


def mac_address(host: str, network: str) -> str:
    """A host keeps its hardware addresses over reboots, as a real one does: ARP caches elsewhere rely on it."""
    digest = hashlib.sha256(f"{host}.{network}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def common_words(guest: Guest, *, nic: str, lun_devices: list[str]) -> list[str]:
    """Words of the kernel command line that do not depend on the emulator; hwlab/guest reads those with `hwlab.`

    `nic`: how this emulator's kernel names its network interfaces. `lun_devices`: where the target finds what its
    logical units are made of, in the topology's order.
    """
    spec, topology = guest.spec, guest.topology
    identity = host_uuid(guest.lab, spec.name)
    words = [
        "rw",
        "panic=1",
        f"systemd.hostname={spec.name}",
        f"systemd.machine_id={identity.hex}",
        f"hwlab.role={spec.role}",
        f"hwlab.transport={topology.transport}",
        f"hwlab.nic={nic}",
        "hwlab.net=" + ";".join(f"{network},{topology.interface(spec.name, network)}" for network in spec.addresses),
    ]
    # "nompath" is the word of multipath-tools' udev rules for leaving every disk alone.
    words.append("hwlab.multipath" if topology.multipath and spec.role is Role.NODE else "nompath")
    target = next(iter(topology.with_role(Role.TARGET)), None)
    prefix = NQN_PREFIX if topology.transport == NVME else IQN_PREFIX
    if target is not None:
        words.append(f"hwlab.target={','.join([f'{prefix}:{target.name}', *topology.portals()])}")
    if topology.transport == NVME:
        words.append(f"hwlab.hostid={identity}")
        words.append(f"hwlab.keepalive={topology.keep_alive_s}")
    else:
        words.append(f"hwlab.initiator={initiator_name(spec.name)}")
    if spec.role is Role.TARGET:
        # A target whose kernel failed half way answers no reservation command any more, for ever: let it boot.
        words.append("oops=panic")
        initiators = [initiator_name(node.name) for node in topology.with_role(Role.NODE)]
        words.append(f"hwlab.initiators={','.join(initiators)}")
        words.append(f"hwlab.slow={topology.slow_stamps_ms}")
        for lun, device in zip(topology.luns, lun_devices, strict=True):
            identifier = lun.uuid if topology.transport == NVME else lun.serial
            words.append(f"hwlab.lun={lun.name},{identifier},{device}")
    return words
