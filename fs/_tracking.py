"""nfsdcld: the daemon that records on the volume which clients may reclaim.

It survives restarts of the controller, so it is found by what it was told (`-s DATABASE`), not by a
remembered pid. Starting a process is slow where it matters, so a helper is started on the standby: a tiny
shell that waits on a pipe and then becomes nfsdcld; by then the binary is in the page cache and only one
exec is left to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

from fs.clients import Recorded
from fs.errors import FsError, NotPossible, OutcomeUnknown
from fs.model import Tracking

_NAME = "nfsdcld"
_PATHS = ("/usr/sbin/nfsdcld", "/sbin/nfsdcld", "/usr/local/sbin/nfsdcld")
_POLL_S = 0.004
_READY_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0
_DATABASE_WITHIN_S = 0.05


class Tracker:
    """The nfsdcld of one volume. Called by the worker thread, so that children get its namespaces."""

    def __init__(self, volume: str, pipefs: Path, database: Path, log: Path) -> None:
        self.volume = volume
        self.pipefs = pipefs
        self.database = database
        self.log = log
        self._helper: subprocess.Popen[bytes] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._adopted: int | None = None
        self._searched = False
        self._warm = False

    # -- looking -------------------------------------------------------------------------------------------

    def state(self) -> Tracking:
        pid = self.pid()
        if pid is None:
            return Tracking.ABSENT
        if _holds(pid, str(self.pipefs / "nfsd/cld")):
            return Tracking.ATTACHED
        return Tracking.READY if _watches(pid) else Tracking.STARTING

    def pid(self) -> int | None:
        """Of the running nfsdcld on our database, whoever started it (our own child: even before its exec).

        /proc is searched once: afterwards nobody but us starts one.
        """
        if self._child is not None and self._child.poll() is None:
            return self._child.pid
        self._child = None
        if not self._searched:
            self._adopted = next((pid for pid in _processes() if self._is_ours(pid)), None)
            self._searched = True
        if self._adopted is not None and not self._is_ours(self._adopted):
            self._adopted = None
        return self._adopted

    def _is_ours(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return words[0].endswith(_NAME.encode()) and str(self.database).encode() in words

    # -- starting ------------------------------------------------------------------------------------------

    def prepare(self) -> bool:
        """The helper waits. Returns whether it had to be started."""
        if self._helper is not None and self._helper.poll() is None:
            return False
        if self.pid() is not None:
            return False
        self._helper = self._spawn(["/bin/sh", "-c", f'read -r _ && exec "$0" {_OPTIONS}', *self._arguments()])
        return True

    def _arguments(self) -> list[str]:
        binary = next((path for path in _PATHS if os.access(path, os.X_OK)), None)
        if binary is None:
            raise NotPossible(self.volume, "nfsdcld is not installed", "apt-get install nfs-kernel-server")
        if not self._warm:
            # Once: brings the binary and its libraries into the page cache.
            subprocess.run([binary, "-h"], capture_output=True, check=False)
            self._warm = True
        return [binary, str(self.pipefs), str(self.database)]

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                # Not ours to be stopped with: it serves on while the controller is restarted.
                start_new_session=True,
            )

    def start(self) -> bool:
        """Whether it had to be started. Does not wait: see `wait_ready` and Server's start."""
        if self.pid() is not None:
            return False
        self.prepare()
        self._release_helper()
        # Its reads from the disk are done here while it is still being loaded.
        with contextlib.suppress(OSError):
            (self.database / "main.sqlite").read_bytes()
        return True

    def wait_ready(self) -> None:
        """Returns when nfsdcld watches for the kernel's pipe (or holds it already)."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while self.state() not in (Tracking.READY, Tracking.ATTACHED):
            if self.pid() is None:
                raise FsError(self.volume, "nfsdcld ended at once", f"see {self.log} and {self.database}")
            if time.monotonic() > deadline:
                raise OutcomeUnknown(self.volume, "nfsdcld does not get ready", f"see {self.log}")
            time.sleep(_POLL_S)

    def _release_helper(self) -> None:
        helper, self._helper = self._helper, None
        assert helper is not None and helper.stdin is not None
        with helper.stdin as pipe, contextlib.suppress(BrokenPipeError):
            pipe.write(b"go\n")
        self._child = helper

    # -- stopping ------------------------------------------------------------------------------------------

    def stop(self) -> bool:
        """Ends it and waits: while it lives it holds its database, and so the mount."""
        pid = self.pid()
        if pid is None:
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            if _end(pid, number, _STOP_WITHIN_S):
                self.pid()  # reaps
                return True
        raise OutcomeUnknown(
            self.volume,
            f"nfsdcld (pid {pid}) does not end: it waits for the disk",
            "the volume cannot be unmounted before it ends; if the disk does not come back, reboot this node",
        )

    def dismiss_helper(self) -> None:
        """Ends the helper that waits (end of file on its pipe)."""
        helper, self._helper = self._helper, None
        if helper is not None and helper.stdin is not None:
            helper.stdin.close()
            helper.wait()


_OPTIONS = '-F -p "$1" -s "$2"'


def read_recorded(database: Path) -> Recorded | None:
    """None: the database could not be read now, which says nothing about the clients.

    Layout: utils/nfsdcld/sqlite.c of nfs-utils 2.6. `recovery` is 0 outside grace.
    """
    try:
        with contextlib.closing(_open_read_only(database)) as base:
            base.execute("BEGIN")  # one state of the database for all three reads
            current, recovery = base.execute("SELECT current, recovery FROM grace").fetchone()
            done = _names(base, current)
            return Recorded(may_reclaim=_names(base, recovery) if recovery else done, done=done)
    except (sqlite3.Error, TypeError):
        return None


def _names(base: sqlite3.Connection, epoch: int) -> frozenset[bytes]:
    return frozenset(bytes(row[0]) for row in base.execute(f'SELECT id FROM "rec-{epoch:016x}"'))


def _open_read_only(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_DATABASE_WITHIN_S)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _named(name)]


def _named(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == _NAME
    except OSError:
        return False


def _holds(pid: int, path: str) -> bool:
    try:
        return any(_link(f"/proc/{pid}/fd/{fd}") == path for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _watches(pid: int) -> bool:
    """Whether it has an inotify watch: only then does it notice the pipe that the kernel makes."""
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            if _link(f"/proc/{pid}/fd/{fd}") == "anon_inode:inotify":
                return "inotify wd:" in Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    except OSError:
        return False
    return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _end(pid: int, number: signal.Signals, within_s: float) -> bool:
    """Sends the signal and waits for the end by pidfd: it may be a child or an orphan of an earlier us."""
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        return error.errno == errno.ESRCH
    try:
        signal.pidfd_send_signal(fd, number)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)
