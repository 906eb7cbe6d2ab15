"""What happened here, one line each: to the log, and kept in memory for `hactl events` and `watch`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    number: int
    unix_ms: int
    text: str


class Journal:
    """`say` is cheap and never blocks; a reader that is slower than `KEPT` lines misses the oldest."""

    def __init__(self, log: Callable[[str], None], unix_ms: Callable[[], float]) -> None:
        self._log = log
        self._unix_ms = unix_ms
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self._number = 0
        self._wake = asyncio.Event()

    def say(self, text: str) -> None:
        self._number += 1
        self._entries.append(Entry(number=self._number, unix_ms=int(self._unix_ms()), text=text))
        self._log(text)
        wake, self._wake = self._wake, asyncio.Event()
        wake.set()

    def since(self, number: int) -> list[Entry]:
        """The kept entries after that number, oldest first."""
        return [entry for entry in self._entries if entry.number > number]

    async def changed(self, within_s: float) -> None:
        """Return when something was said, or after that time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), within_s)

    async def follow(self, number: int) -> AsyncIterator[Entry]:
        """All entries after that number, and then each new one as it comes."""
        while True:
            wake = self._wake
            for entry in self.since(number):
                number = entry.number
                yield entry
            await wake.wait()
