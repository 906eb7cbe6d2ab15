"""Carries out what `exercise.py` decides: the reads on every node, the swaps on the leader, and the record of both."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from hactl import exercise
from hactl.errors import RequestRefused
from hactl.exercise import GOOD, Book, Result, Swap
from hactl.placement import Facts, Plan
from hactl.record import write_atomic
from nodewatch.sections import Exercise

CAUSE = "exercise"


class PathRead(Protocol):
    """What came of reading one path: `_reads.Read`."""

    @property
    def trouble(self) -> str: ...
    @property
    def read_mb(self) -> int: ...
    @property
    def slowest_ms(self) -> int: ...
    @property
    def next_mb(self) -> int: ...


class Reader(Protocol):
    def __call__(self, path: str, *, from_mb: int, count_mb: int, slow_ms: int) -> Awaitable[PathRead]: ...


@dataclass(slots=True)
class Exerciser:
    """`local` is the time in the configured zone; `move` begins a move and raises RequestRefused; `history` are the
    takeovers on record here. `paths` of a device."""

    config: Exercise
    path: Path
    local: Callable[[], datetime]
    unix_ms: Callable[[], float]
    read: Reader
    paths: Callable[[str], Sequence[str]]
    move: Callable[[str, str], str]
    history: Callable[[], list[dict[str, Any]]]
    log: Callable[[str], None]
    book: Book = field(default_factory=Book)
    swap: Swap | None = None
    standing_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Volume -> its devices, of each volume that stands by on this node."""
    waits: str = ""
    """Why no swap begins though the window is open."""

    def load(self) -> None:
        """The record of earlier occasions. One that is garbled is said, and begun anew: only its news are lost."""
        try:
            self.book = exercise.book_from(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as wrong:
            self.log(f"{self.path}: {wrong}; begun anew")

    def _keep(self, book: Book) -> None:
        self.book = book
        write_atomic(self.path, json.dumps(book.to_plain()), stable=True)

    @property
    def now(self) -> str:
        return exercise.occasion(self.config.window, self.local())

    def _due(self, now: str) -> list[str]:
        return exercise.due_reads(self.book, now, self.standing_by) if now and self.config.read_mb else []

    async def read_due(self) -> None:
        """Read each volume that stands by here, if the window is open and it was not read in it yet."""
        now, standing_by = self.now, dict(self.standing_by)
        for volume in self._due(now):
            begin = self.book.next_mb.get(volume, 0)
            reads = [
                await self.read(path, from_mb=begin, count_mb=self.config.read_mb, slow_ms=self.config.slow_ms)
                for device in standing_by[volume]
                for path in self.paths(device)
            ]
            trouble = "; ".join(read.trouble for read in reads if read.trouble)
            slowest = max((read.slowest_ms for read in reads), default=0)
            detail = f"{sum(read.read_mb for read in reads)} MiB on {len(reads)} paths, slowest MiB {slowest} ms"
            self.log(f"exercise: volume={volume} reads {trouble or GOOD}: {detail}")
            result = Result(occasion=now, text=trouble or GOOD, unix_ms=int(self.unix_ms()), detail=detail)
            next_mb = {**self.book.next_mb, volume: max((read.next_mb for read in reads), default=0)}
            self._keep(replace(self.book, reads={**self.book.reads, volume: result}, next_mb=next_mb))

    def lead(self, facts: Facts, plan: Plan | None) -> None:
        """On the leader, now and then: end or begin a swap."""
        if plan is None or not self.config.swap:
            return
        if self.swap is not None:
            self._look_after(self.swap, facts, plan)
            return
        now = self.now
        if not now:
            self.waits = ""
            return
        if self._due(now):
            return
        cause = f"{CAUSE} {now}"
        swapped = [each["volume"] for each in self.history() if each["cause"] == cause]
        volume, why = exercise.next_swap(self.book, now, facts, plan, swapped)
        if why and why != self.waits:
            self.log(f"exercise: no swap begins: {why}")
        self.waits = why
        if volume:
            self._begin(volume, cause, now, facts, plan)

    def _begin(self, volume: str, cause: str, now: str, facts: Facts, plan: Plan) -> None:
        word = plan.table[volume]
        try:
            target = self.move(volume, cause)
        except RequestRefused as refused:
            self.waits = str(refused)
            return
        self.log(f"exercise: volume={volume} swaps from {word.node} to {target}")
        self.swap = Swap(
            volume=volume,
            source=word.node,
            target=target,
            order=word.order,
            begun_ms=facts.now_ms,
            occasion=now,
        )

    def _look_after(self, swap: Swap, facts: Facts, plan: Plan) -> None:
        text = exercise.outcome(swap, facts, plan)
        if text is None:
            return
        self.swap = None
        detail = f"{swap.source} -> {swap.target} in {(facts.now_ms - swap.begun_ms) / 1000:.1f} s"
        self.log(f"exercise: volume={swap.volume} swap {text}: {detail}")
        result = Result(occasion=swap.occasion, text=text, unix_ms=int(self.unix_ms()), detail=detail)
        self._keep(replace(self.book, swaps={**self.book.swaps, swap.volume: result}))

    def step_down(self) -> None:
        """Another node leads: it sees in the history what became of the swap."""
        self.swap = None

    def show(self) -> dict[str, Any]:
        """For `hactl status --json`."""
        book = self.book.to_plain()
        shown = {"window": self.config.window.text, "zone": self.config.zone, "open": bool(self.now)}
        return {**shown, "waits": self.waits, "reads": book["reads"], "swaps": book["swaps"]}

    def problems(self) -> list[str]:
        return exercise.problems(self.book)
