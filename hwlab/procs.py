"""Processes of this machine: whose they are, stopping them, ending them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hwlab.errors import LabError

STOP = signal.SIGSTOP
CONTINUE = signal.SIGCONT

# Places in /proc/PID/stat, counted from the field after the command's closing parenthesis (field 3, state).
_STATE = 0
_SESSION = 3
_START_TICKS = 19


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, or None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid, it names a process for good.

    None for a process that does not exist or has ended (a zombie).
    """
    stat = _stat(pid)
    return None if stat is None or stat[_STATE] in "ZX" else int(stat[_START_TICKS])


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal."""
    stat = _stat(pid)
    return stat is not None and stat[_STATE] == "T"


def of_session(leader: int, ticks: int) -> list[int]:
    """Living processes of the session that `leader` began at `ticks`; the leader comes first.

    The leader itself may be gone. A younger process with its number leads another session.
    """
    stat = _stat(leader)
    if stat is not None and int(stat[_START_TICKS]) != ticks:
        return []
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat is not None and int(stat[_SESSION]) == leader and stat[_STATE] not in "ZX":
                members.append(int(entry.name))
    return sorted(members, key=lambda pid: pid != leader)


def signal_untraced(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to the processes that nobody traces."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
                os.kill(pid, number)


def kill_all(members: Callable[[], Sequence[int]], timeout_s: float, what: str) -> None:
    """SIGKILL everything that `members` returns until it returns nothing. LabError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while pids := members():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"{what}: processes {pids} do not end; look at them with ps")
        time.sleep(0.01)
