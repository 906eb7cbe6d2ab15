"""From a schedule that breaks a promise to a smallest one that still does: delta debugging over its faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .faults import Fault

Breaks = Callable[[list[Fault]], bool]


def shrink(schedule: Sequence[Fault], breaks: Breaks) -> list[Fault]:
    """Faults of which none can be left out, each as short as halving makes it. `breaks` runs the seed with a schedule;
    every run is exact, so asking twice is never needed."""
    left = _fewer(list(schedule), breaks)
    return _shorter(left, breaks)


def _fewer(left: list[Fault], breaks: Breaks) -> list[Fault]:
    """Zeller's ddmin, complements only: drop ever smaller parts while it still breaks."""
    parts = 2
    while len(left) > 1:
        size = max(1, len(left) // parts)
        for start in range(0, len(left), size):
            without = left[:start] + left[start + size :]
            if breaks(without):
                left, parts = without, max(2, parts - 1)
                break
        else:
            if size == 1:
                break
            parts = min(len(left), parts * 2)
    return [] if len(left) == 1 and breaks([]) else left


def _shorter(left: list[Fault], breaks: Breaks) -> list[Fault]:
    for place, fault in enumerate(left):
        while fault.lasts > 50:
            halved = replace(fault, lasts=fault.lasts / 2)
            if not breaks([*left[:place], halved, *left[place + 1 :]]):
                break
            fault = halved
            left = [*left[:place], halved, *left[place + 1 :]]
    return left
