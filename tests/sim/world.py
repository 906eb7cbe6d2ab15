"""Virtual time, the queue of what will happen, the dice, and the transcript. Everything else of a run hangs on a World.

True time is a float of milliseconds and is known to the simulation alone. Whoever is simulated reads a clock of its
own host (`host.py`).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

Action = Callable[[], None]


class Violation(AssertionError):
    """The code under test broke a promise. `what` is the sentence, `story` the end of the transcript."""

    def __init__(self, what: str, story: list[str]) -> None:
        super().__init__("\n".join([what, *story]))
        self.what = what
        self.story = story


class World:
    """`trace` keeps the whole transcript, not only its end."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.current: Any = None
        """The process whose code runs now (`process.Process`)."""
        self.graveyard: list[object] = []
        """What belonged to dead processes: kept, so that the garbage collector runs none of their code during a run."""
        self.over = False
        self.transcript: deque[tuple[float, str, str]] = deque(maxlen=None if trace else 150)
        self._queue: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, when: float, action: Action) -> None:
        """Equal times happen in the order in which they were asked for."""
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action))

    def after(self, delay_ms: float, action: Action) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._count, action))

    def run_until(self, when: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= when:
            self.now, _, action = heapq.heappop(queue)
            self.events += 1
            action()
        self.now = when

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def note(self, who: str, text: str) -> None:
        self.transcript.append((self.now, who, text))

    def story(self) -> list[str]:
        return [f"{when:10.2f} {who:<4} {text}" for when, who, text in self.transcript]

    def fail(self, what: str) -> None:
        raise Violation(f"at {self.now:.2f} ms: {what}", self.story())
