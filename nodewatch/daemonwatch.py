"""Is hactld there, and does it make progress? A crashed daemon is told apart from a hung one and from a
crashed host.

    ABSENT --hello--> OK --no beat for daemon_hang_ms--> HUNG --beat--> OK
    OK, HUNG --socket closed--> GONE --daemon_restart_ms--> ABSENT
OK and GONE may serve: the kernel's NFS server goes on while hactld restarts. HUNG and ABSENT may not.
"""

from __future__ import annotations

from nodewatch.heartbeat import Daemon
from nodewatch.lease import Timing


class DaemonWatch:
    __slots__ = ("_beat_ms", "_gone_ms", "_timing")

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._beat_ms: int | None = None
        self._gone_ms: int | None = None

    def beat(self, now_ms: int) -> None:
        self._beat_ms = now_ms
        self._gone_ms = None

    def gone(self, now_ms: int) -> None:
        if self._beat_ms is not None:
            self._beat_ms = None
            self._gone_ms = now_ms

    def excuse(self, stall_ms: int) -> None:
        """We did not run ourselves: beats may be waiting for us."""
        if self._beat_ms is not None:
            self._beat_ms += stall_ms

    def state(self, now_ms: int) -> Daemon:
        if self._beat_ms is not None:
            return Daemon.OK if now_ms - self._beat_ms < self._timing.daemon_hang_ms else Daemon.HUNG
        if self._gone_ms is not None and now_ms - self._gone_ms < self._timing.daemon_restart_ms:
            return Daemon.GONE
        return Daemon.ABSENT

    def deadline_ms(self, now_ms: int) -> int | None:
        """When the state will change by itself."""
        match self.state(now_ms):
            case Daemon.OK if self._beat_ms is not None:
                return self._beat_ms + self._timing.daemon_hang_ms
            case Daemon.GONE if self._gone_ms is not None:
                return self._gone_ms + self._timing.daemon_restart_ms
        return None
