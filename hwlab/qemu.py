"""Driver `qemu`: a host is a QEMU that emulates its processor, for what User-Mode Linux lacks: NVMe, newer kernels.

It boots a kernel of Debian (`hwlab.debkernel`) from the same disk image as driver `uml`. An emulated processor does a
tenth to a hundredth of the real one's work, so a topology has only those hosts here that need it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from hwlab import netns
from hwlab.counter import counter_khz
from hwlab.debkernel import DebianKernel, cached_debian_kernel
from hwlab.errors import LabError
from hwlab.guests import Guest, common_words, host_dir, image_below, lun_file, mac_address, recorded
from hwlab.topology import Role

DRIVER = "qemu"
PROGRAM = "qemu-system-x86_64"

# The image is read by User-Mode Linux guests as well, whose locks QEMU would take for a writer's.
_NO_LOCKS = "file.locking=off,backing.file.locking=off"

# What a guest flushes is then in this machine's page cache, which outlives the emulator. That it goes on to this
# machine's disk is not waited for: beside other work that takes up to a second, and no lab outlives this machine.
_NO_SYNC = "cache=unsafe"

# Places on the PCI bus decide the order in which the guest's kernel finds devices, and so their names.
_FIRST_NIC = 0x04
_FIRST_DISK = 0x08

_QUICK_BOOT = (
    "quiet",
    # No processor is emulated that could leak anything.
    "mitigations=off",
    "nokaslr",
    "audit=0",
    "apparmor=0",
    "selinux=0",
    # Certificates of modules, and devices that a host of a lab does not have: a tenth of the boot's work.
    "initcall_blacklist=load_system_certificate_list,hid_bpf_struct_ops_init,cec_init",
    # The counter is this machine's own: it goes on while a guest is frozen and never wraps, which QEMU's other
    # clocks do after 5 or 43 s. The kernel's watchdog would take a busy machine for a broken counter.
    # How fast it goes is told (tsc_early_khz): a guest that measures it on a busy machine may be wrong by a factor.
    "tsc=reliable",
    "clocksource=tsc",
    # Nor would it tell a busy machine from a hung processor.
    "nowatchdog",
    "net.ifnames=0",
    # Four guests that boot at once on a busy machine need minutes.
    "systemd.default_timeout_start_sec=300",
    "udev.event_timeout=300",
)


def command(guest: Guest) -> tuple[Path, list[str]]:
    """The emulator and its words; makes the host's disk if it has none yet."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise LabError("no emulator: apt-get install qemu-system-x86")
    version = recorded(guest.lab).kernel
    kernel = cached_debian_kernel(version)
    if kernel is None:
        raise LabError(f"kernel {version} of lab {guest.lab} is gone: run `hwlab --lab {guest.lab} down`, then up")
    ensure_disk(root_disk(guest), image_below(guest.lab).root)
    return Path(found), words(guest, kernel)


def root_disk(guest: Guest) -> Path:
    """The host's own disk: what it wrote, above the common image."""
    return host_dir(guest.lab, guest.spec.name) / "root.qcow2"


def ensure_disk(disk: Path, image: Path) -> None:
    """Make a copy-on-write disk above `image`, whole or not at all."""
    if disk.exists():
        return
    partial = disk.with_name(f".{disk.name}.{os.getpid()}")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "raw", str(partial)]
    made = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode != 0:
        raise LabError(f"cannot make a disk above {image}: {made.stderr.strip()}")
    partial.replace(disk)


def words(guest: Guest, kernel: DebianKernel) -> list[str]:
    """QEMU's command line for a host."""
    spec = guest.spec
    result = [
        "-name", spec.name,
        "-nodefaults", "-no-user-config",
        "-machine", "pc",
        "-accel", "tcg,tb-size=256",
        # Of newer processors programs use wider registers, which cost more to emulate than they save.
        "-cpu", "Nehalem",
        "-m", str(spec.memory_mb),
        "-display", "none",
        "-chardev", "stdio,id=console,signal=off",
        "-serial", "chardev:console",
        "-kernel", str(kernel.vmlinuz),
        "-initrd", str(kernel.initrd),
        "-append", " ".join(kernel_words(guest)),
    ]  # fmt: skip
    for index, network in enumerate(spec.addresses):
        tap = f"tap,id={network},ifname={netns.tap_name(spec.name, network)},script=no,downscript=no"
        nic = f"virtio-net-pci,netdev={network},mac={mac_address(spec.name, network)},romfile="
        result += ["-netdev", tap, "-device", f"{nic},addr={_FIRST_NIC + index:#x}"]
    disks = [f"file={root_disk(guest)},format=qcow2,{_NO_SYNC},{_NO_LOCKS}"]
    disks += [f"file={kernel.modules},format=raw,readonly=on"]
    if spec.role is Role.TARGET:
        # Every write goes to this machine's page cache before the guest hears that it is done.
        files = [lun_file(guest.lab, lun.name) for lun in guest.topology.luns]
        disks += [f"file={file},format=raw,{_NO_SYNC}" for file in files]
    for index, disk in enumerate(disks):
        result += ["-drive", f"if=none,id=disk{index},{disk}"]
        result += ["-device", f"virtio-blk-pci,drive=disk{index},addr={_FIRST_DISK + index:#x}"]
    return result


def kernel_words(guest: Guest) -> list[str]:
    """The kernel command line: /dev/vda is the root, /dev/vdb the kernel's modules, then come logical units."""
    luns = guest.topology.luns if guest.spec.role is Role.TARGET else ()
    devices = [f"/dev/vd{chr(ord('c') + number)}" for number in range(len(luns))]
    speed = f"tsc_early_khz={counter_khz()}"
    # The kernel's own choice leaves all but one of several paths idle: a drill that cuts another one cuts nothing.
    paths = "nvme_core.iopolicy=round-robin"
    return ["console=ttyS0", *_QUICK_BOOT, speed, paths, *common_words(guest, nic="eth", lun_devices=devices)]
