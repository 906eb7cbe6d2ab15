"""Lets the kernel's word about NVMe reservations wake the check of every handle at once, instead of within a second.

A notice is a hint: what it leads to is the ordinary verification, and nothing else. Without notices (SCSI, an event
that was lost while the host was disconnected) that verification comes by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from fencing._events import FenceEvents
from fencing._nvmehost import read_notifications
from fencing.errors import FencingError
from hactl import controller
from hactl.runtime import VolumeRuntime


class FenceWatch:
    """Listens on the event loop; what may block runs on a thread."""

    def __init__(self, runtimes: Callable[[], Iterable[VolumeRuntime]], log: Callable[[str], None]) -> None:
        self._runtimes = runtimes
        self._log = log
        self._events: FenceEvents | None = None
        self._reading: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Start to listen. A kernel that does not let us costs time, never safety: it is told, and that is all."""
        try:
            self._events = FenceEvents()
        except OSError as wrong:
            self._log(f"no notices of NVMe reservations: {wrong}")
            return
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._ready)

    def close(self) -> None:
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events = None

    def _ready(self) -> None:
        assert self._events is not None
        found = {event.controller: event.why for event in self._events.drain()}
        if not found:
            return
        self._log("verifying now: " + ", ".join(f"{name}: {why}" for name, why in sorted(found.items())))
        for runtime in self._runtimes():
            runtime.feed(controller.Noticed(now_ms=runtime.clock.now_ms()))
        for name in found.keys() - self._reading:
            self._reading.add(name)
            task = asyncio.get_running_loop().create_task(self._read(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read(self, name: str) -> None:
        """Take the notices off the controller's list: until then it need not send another event. For the log, too."""
        try:
            for notice in await asyncio.to_thread(lambda: list(read_notifications(name))):
                self._log(f"nvme={name} nsid={notice.nsid} {notice.what} (notice {notice.count}, {notice.more} more)")
        except (FencingError, OSError) as wrong:
            self._log(f"nvme={name} its reservation notices cannot be read: {wrong}")
        finally:
            self._reading.discard(name)
