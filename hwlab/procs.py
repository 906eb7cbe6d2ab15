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


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, or None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal."""
    stat = _stat(pid)
    return stat is not None and stat[_STATE] == "T"


def is_session_leader(pid: int) -> bool:
    """Whether the process began its session and still lives."""
    stat = _stat(pid)
    return stat is not None and int(stat[_SESSION]) == pid and stat[_STATE] not in "ZX"


def started_by(program: Path) -> list[int]:
    """Living processes that run `program`, or are about to (through nsenter or an interpreter); leaders first.

    A process that only forked has its parent's words, so this finds whatever a program's process became, with
    no record of its number that could be missing or name a younger process.
    """
    wanted = str(program).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "cmdline").read_bytes().split(b"\0", 4)[:4]:
                    found.append(int(entry.name))
    return sorted(found, key=lambda pid: not is_session_leader(pid))


def signal_untraced(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to the processes that nobody traces."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
                os.kill(pid, number)


def stop_untraced(members: Callable[[], Sequence[int]], timeout_s: float, what: str) -> None:
    """SIGSTOP to the processes that nobody traces; returns when the first one, their leader, has stopped. LabError
    after `timeout_s`. On a busy machine a process obeys only when it next gets a processor."""
    pids = members()
    signal_untraced(pids, STOP)
    deadline = time.monotonic() + timeout_s
    while pids and _stat(pids[0]) is not None and not is_stopped(pids[0]):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: process {pids[0]} does not stop; look at it with ps")
        time.sleep(0.001)


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
