"""How long each step on each device took: for the timeline of a takeover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One step on one device; `start` and `end` are readings of the caller's clock."""

    lun: str
    step: str
    start: float
    end: float

    @property
    def name(self) -> str:
        return f"{self.step} {self.lun}"


class Stopwatch:
    """Runs calls and notes their times, those of calls that raised as well."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.timings: list[Timing] = []

    def time(self, lun: str, step: str, call: Callable[[], T]) -> T:
        start = self._clock()
        try:
            return call()
        finally:
            self.timings.append(Timing(lun=lun, step=step, start=start, end=self._clock()))
