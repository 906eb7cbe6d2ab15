"""Where a lab keeps its files: caches, state, sockets. XDG variables decide; nothing else is hard-coded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hwlab.errors import LabError

PACKAGE_DIR = Path(__file__).resolve().parent
PROJECT_DIR = PACKAGE_DIR.parent

_LAB_NAME = re.compile(r"[a-z][a-z0-9-]{0,15}")


def cache_dir() -> Path:
    """Images, kernels and downloads: safe to delete while no lab is up."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hactl"


def state_root() -> Path:
    """One directory per lab below it."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hactl-lab"


def state_dir(lab: str) -> Path:
    """Disks, console logs and process records of one lab."""
    return state_root() / checked_lab_name(lab)


def runtime_dir(lab: str) -> Path:
    """Unix sockets of one lab. Short on purpose: a socket's path may have 108 bytes."""
    base = Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    return base / f"hwlab-{checked_lab_name(lab)}"


def checked_lab_name(lab: str) -> str:
    """The name itself, or LabError: it becomes part of paths and of a network namespace's name."""
    if not _LAB_NAME.fullmatch(lab):
        raise LabError(f"lab name {lab!r} is not usable: take 1 to 16 of a-z, 0-9 and '-', a letter first")
    return lab
