"""The stable file: /var/lib/hactl/nodewatch.json, replaced as a whole, and the thread that waits for the disk.

A disk that is slow must not silence the heartbeats, so the loop hands every new state to this thread and hears of it
through an eventfd when fsync is done. Of several that wait only the newest is written.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable

from nodewatch.stable import Stable, StableCorrupt, from_text, to_text

FILE = "nodewatch.json"
_RETRY_S = 1.0
_STACK_BYTES = 256 * 1024


class StableUnusable(Exception):
    """The stable file can not be used; the text says what to do."""


class StableFile:
    """Owned by one process at a time: the lock is held until the process ends, so a new one starts after the old
    ended."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = os.path.join(directory, FILE)
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StableUnusable(f"{directory} is in use: another node watch runs here; stop it first") from None
        except OSError as error:
            raise StableUnusable(f"{directory}: {error.strerror}; node watch needs it to remember its vote") from error

    def load(self) -> Stable:
        """What was written last; nothing at all on the first start."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return from_text(file.read())
        except FileNotFoundError:
            return Stable()
        except (StableCorrupt, UnicodeDecodeError, OSError) as error:
            raise StableUnusable(
                f"{self._path}: {error}; this node's vote and promises are lost. If no other node was restarted in the "
                "last minute, move the file away and start again"
            ) from error

    def save(self, stable: Stable) -> None:
        """Returns when it is on the disk. Raises OSError."""
        temporary = self._path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, to_text(stable).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, self._path)
        os.fsync(self._fd)


class StableWriter:
    """Writes in a thread; adds 1 to `wake_fd` when `take` has something."""

    def __init__(self, file: StableFile, wake_fd: int, complain: Callable[[str], None]) -> None:
        self._file = file
        self._wake_fd = wake_fd
        self._complain = complain
        self._changed = threading.Condition()
        self._wanted: Stable | None = None
        self._written: Stable | None = None
        previous = threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._run, name="stable", daemon=True).start()
        threading.stack_size(previous)

    def submit(self, stable: Stable) -> None:
        with self._changed:
            self._wanted = stable
            self._changed.notify()

    def take(self) -> Stable | None:
        """The newest state that is on the disk and was not taken yet."""
        with self._changed:
            written, self._written = self._written, None
            return written

    def _run(self) -> None:
        failed = False
        while True:
            with self._changed:
                while self._wanted is None:
                    self._changed.wait()
                stable, self._wanted = self._wanted, None
            try:
                self._file.save(stable)
            except OSError as error:
                if not failed:
                    self._complain(f"stable storage cannot be written: {error}; this node gives no votes and promises")
                failed = True
                self._again(stable)
                continue
            failed = False
            with self._changed:
                self._written = stable
            os.eventfd_write(self._wake_fd, 1)

    def _again(self, stable: Stable) -> None:
        with self._changed:
            self._changed.wait(_RETRY_S)
            if self._wanted is None:
                self._wanted = stable
