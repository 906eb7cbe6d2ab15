"""What a lab has on disk about itself, written before anything is started, so that `down` can always undo it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from hwlab.errors import LabError
from hwlab.paths import state_dir, state_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`topology`: its text. `image`: key of the image its disks lie above, empty for hosts that exist already.

    `kernel`: version of the Debian kernel that its QEMU hosts boot, empty where there are none.
    """

    topology: str
    image: str
    kernel: str = ""


def recorded_labs() -> list[str]:
    """Names of the labs with a record."""
    return sorted(path.parent.name for path in state_root().glob("*/lab.json"))


def read(lab: str) -> Record | None:
    """The record of a lab, or None."""
    try:
        values = json.loads((state_dir(lab) / "lab.json").read_text())
        return Record(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LabError(f"the record of lab {lab} is damaged ({error}): run `hwlab --lab {lab} down`") from error


def write(lab: str, record: Record) -> None:
    """Replace the record: a reader sees the old one or the new one."""
    directory = state_dir(lab)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".lab.json.{os.getpid()}"
    partial.write_text(json.dumps(asdict(record)))
    partial.replace(directory / "lab.json")


@contextlib.contextmanager
def locked(lab: str) -> Iterator[None]:
    """One `up` or `down` of a lab at a time. The lock file stays: removing it would let two holders in."""
    directory = state_root() / ".locks"
    state_dir(lab)
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory / lab, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def forget(lab: str) -> None:
    """Remove all files of a lab."""
    shutil.rmtree(state_dir(lab), ignore_errors=True)
