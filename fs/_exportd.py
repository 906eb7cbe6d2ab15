"""Answers the kernel's export questions of one volume, in place of rpc.mountd.

The channels are opened by the worker thread inside the volume's namespace (a descriptor stays with the
namespace it was opened in) and served by the volume's attendant thread, whatever the daemon's loop does.
Entries never expire, so that a restart of the daemon only delays clients that are new at that moment: the
kernel repeats their questions to whoever opens the channel next.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

from fs import export
from fs._attendant import Attendant
from fs.export import Export

_log = logging.getLogger(__name__)

# Not /proc/net: that is the namespace of the process's *main* thread.
_RPC = "/proc/thread-self/net/rpc"
_LINE_BYTES = 8192


class ExportResponder:
    def __init__(self, volume: str, attendant: Attendant) -> None:
        self._volume = volume
        self._attendant = attendant
        self._channels: dict[str, int] = {}

    @property
    def running(self) -> bool:
        return bool(self._channels)

    def start(self, exported: Export, peers: Iterable[str]) -> bool:
        """Opens the channels and writes the answers that can be foreseen. False: it was running."""
        if self._channels:
            return False
        for cache in export.CACHES:
            self._channels[cache] = os.open(f"{_RPC}/{cache}/channel", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        for cache, line in export.opening_lines(exported, peers):
            os.write(self._channels[cache], line)
        for cache, fd in self._channels.items():
            self._attendant.watch(fd, lambda cache=cache, fd=fd: self._serve(cache, fd, exported))  # type: ignore[misc]
        return True

    def _serve(self, cache: str, fd: int, exported: Export) -> None:
        try:
            question = os.read(fd, _LINE_BYTES)
        except (BlockingIOError, OSError):
            return
        if not question:
            return
        reply = export.answer(cache, question, exported)
        _log.info("volume=%s export question %s %r -> %r", self._volume, cache, question, reply)
        try:
            os.write(fd, reply)
        except OSError as error:
            # ENOENT: the question was withdrawn (its cache entry is gone); nobody waits for the answer.
            if error.errno != errno.ENOENT:
                raise

    def close(self) -> None:
        """This process answers no more; what was answered stays in force."""
        channels, self._channels = self._channels, {}
        for fd in channels.values():
            self._attendant.unwatch(fd)
            os.close(fd)


def flush() -> None:
    """Forgets all answers. Each export entry holds the mount, so this comes before umount."""
    for cache in reversed(export.CACHES):
        try:
            with open(f"{_RPC}/{cache}/flush", "w") as file:
                # Seconds of the epoch: everything written before is void. Far ahead, or entries made
                # within the current second would stay.
                file.write(f"{export.NEVER}\n")
        except FileNotFoundError:
            continue  # nfsd is not loaded
