"""Can this machine run a lab? Answered before anything is changed.

Runs with nothing but the standard library, because set-up asks it before there is a virtual environment:

    python3 -m hwlab.preconditions              exit 0, or one line and exit 2
    python3 -m hwlab.preconditions --packages   the Debian packages that a lab needs on this machine
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hwlab.errors import PreconditionError
from hwlab.paths import cache_dir, state_root

# What `make` installs on the machine that runs the lab.
HOST_PACKAGES = (
    "busybox-static",
    "corosync",  # for tests/contract/test_engine_port.py, which runs it in network namespaces; a lab has its own
    "e2fsprogs",
    "iproute2",
    "kmod",
    "mmdebstrap",
    "openipmi",  # ipmi_sim: the management controllers of topology `power`
    "openssh-client",
    "python3-venv",
    "qemu-system-x86",
    "qemu-utils",
    "user-mode-linux",
    "util-linux",
)

# Programs of those packages, looked for before the first use.
TOOLS = {
    "busybox": "busybox-static",
    "depmod": "kmod",
    "ip": "iproute2",
    "linux.uml": "user-mode-linux",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}

# Image, its base tree and the disks of one lab, with room for a second image while it is built.
DISK_NEEDED_MB = 3000

# What five hosts touch of their 256 MB each, and some room.
MEMORY_NEEDED_MB = 1500

TUN = Path("/dev/net/tun")


def machine_problem(disk_needed_mb: int = DISK_NEEDED_MB) -> str | None:
    """Why this machine cannot run a lab at all (one line), or None. Changes nothing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"a lab needs Linux on x86_64, this is {platform.system()} on {platform.machine()}"
    if os.geteuid() != 0:
        return "a lab needs root (network namespaces, tap devices, chroot): run the same command with sudo"
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        return "a lab needs apt (its hosts are built from Debian packages): use a Debian machine"
    if not TUN.exists():
        return f"a lab needs {TUN}: load the module (modprobe tun) or allow the device in this container"
    if (memory := _free_mb("/dev/shm")) < MEMORY_NEEDED_MB:
        return f"a lab needs {MEMORY_NEEDED_MB} MB in /dev/shm for its hosts' memory, there are {memory}: enlarge it"
    for directory in (cache_dir(), state_root()):
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        if (free_mb := _free_mb(existing)) < disk_needed_mb:
            return f"a lab needs {disk_needed_mb} MB of free disk at {existing}, there are {free_mb}: free some"
    return None


def _free_mb(path: Path | str) -> int:
    return shutil.disk_usage(path).free // 1_000_000


def missing_tools() -> list[str]:
    """Debian packages to install before a lab can start."""
    return sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})


def preconditions(disk_needed_mb: int = DISK_NEEDED_MB) -> None:
    """Raise PreconditionError with one clear line if a lab cannot be started here."""
    problem = machine_problem(disk_needed_mb)
    if problem is None and (packages := missing_tools()):
        problem = f"a lab needs Debian packages that are not installed: apt-get install {' '.join(packages)}"
    if problem is not None:
        raise PreconditionError(problem)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 if the machine will do, 2 with one line on stderr if not."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--packages"]:
        print(" ".join(HOST_PACKAGES))
        return 0
    problem = machine_problem()
    if problem is not None:
        print(f"hwlab: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
