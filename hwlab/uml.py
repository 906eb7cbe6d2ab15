"""Driver `uml`: a host is a User-Mode Linux kernel, an ordinary process of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from hwlab import netns
from hwlab.guests import Guest, common_words, host_dir, image_below, lun_file, mac_address
from hwlab.image import Image
from hwlab.paths import cache_dir, runtime_dir
from hwlab.topology import Role
from hwlab.umlkernel import ensure_kernel

DRIVER = "uml"


def command(guest: Guest) -> tuple[Path, list[str]]:
    """The kernel to run and its command line; what a former boot left of its sockets is removed."""
    uml_dir = runtime_dir(guest.lab) / "uml"
    shutil.rmtree(uml_dir / guest.spec.name, ignore_errors=True)
    uml_dir.mkdir(parents=True, exist_ok=True)
    if guest.spec.role is Role.TARGET:
        saved_reservations(guest).mkdir(parents=True, exist_ok=True)
    return ensure_kernel(cache_dir()), kernel_words(guest, image_below(guest.lab))


def saved_reservations(guest: Guest) -> Path:
    """Where a target keeps its persistent reservations: a directory of this machine, so a write is there at once."""
    return host_dir(guest.lab, guest.spec.name) / "reservations"


def kernel_words(guest: Guest, image: Image) -> list[str]:
    """The kernel command line of a host: a kernel that is a process takes its devices from there too."""
    lab, spec = guest.lab, guest.spec
    luns = guest.topology.luns if spec.role is Role.TARGET else ()
    words = [
        f"mem={spec.memory_mb}M",
        f"ubd0={host_dir(lab, spec.name) / 'root.cow'},{image.root}",
        "root=/dev/ubda",
        # Nearly a second of each boot goes into finding the fastest RAID-6 code, which nothing here uses.
        "initcall_blacklist=raid6_select_algo",
        "con=null",
        "con0=null,fd:1",
        f"uml_dir={runtime_dir(lab) / 'uml'}",
        f"umid={spec.name}",
    ]
    words += [
        f"vec{index}:transport=tap,ifname={netns.tap_name(spec.name, network)},depth=64,gro=1"
        f",mac={mac_address(spec.name, network)}"
        for index, network in enumerate(spec.addresses)
    ]
    words += [f"ubd{number}={lun_file(lab, lun.name)}" for number, lun in enumerate(luns, start=1)]
    if spec.role is Role.TARGET:
        words.append(f"hwlab.saved={saved_reservations(guest)}")
    devices = [f"/dev/ubd{chr(ord('a') + number)}" for number in range(1, len(luns) + 1)]
    return words + common_words(guest, nic="vec", lun_devices=devices)
