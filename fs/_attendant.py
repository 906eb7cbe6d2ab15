"""A thread per volume that answers descriptors and does small things later, while everything else blocks."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

Action = Callable[[], None]


class Attendant:
    """`watch` a descriptor, or do something `later`. Actions must be short; what they raise is logged."""

    def __init__(self, volume: str, now_s: Callable[[], float] = time.monotonic) -> None:
        self._volume = volume
        self._now_s = now_s
        self._lock = threading.Lock()
        self._watched: dict[int, Action] = {}
        self._due: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._poll = select.poll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake, select.POLLIN)
        self._ends = False
        self._thread: threading.Thread | None = None

    def watch(self, fd: int, readable: Action) -> None:
        with self._lock:
            self._watched[fd] = readable
            self._poll.register(fd, select.POLLIN)
        self._start()

    def unwatch(self, fd: int) -> None:
        """Afterwards no new call is made for it; the caller may close it."""
        with self._lock:
            if self._watched.pop(fd, None):
                self._poll.unregister(fd)
        os.eventfd_write(self._wake, 1)

    def later(self, delay_ms: float, action: Action) -> None:
        with self._lock:
            heapq.heappush(self._due, (self._now_s() + delay_ms / 1000, next(self._order), action))
        self._start()

    def forget(self) -> None:
        """Drops everything that was to be done later."""
        with self._lock:
            self._due.clear()

    def close(self) -> None:
        self._ends = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        os.close(self._wake)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"fs-{self._volume}", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._ends:
            ready = self._poll.poll(self._timeout_ms())
            for fd, _ in ready:
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                with self._lock:
                    action = self._watched.get(fd)
                if action is not None:
                    self._do(action)
            for action in self._take_due():
                self._do(action)

    def _timeout_ms(self) -> float | None:
        with self._lock:
            return max(0.0, (self._due[0][0] - self._now_s()) * 1000 + 1) if self._due else None

    def _take_due(self) -> list[Action]:
        now, actions = self._now_s(), []
        with self._lock:
            while self._due and self._due[0][0] <= now:
                actions.append(heapq.heappop(self._due)[2])
        return actions

    def _do(self, action: Action) -> None:
        try:
            action()
        except Exception:
            _log.exception("volume=%s background action failed", self._volume)
