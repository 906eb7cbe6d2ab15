"""A host: its clock, its power, and what survives what. Processes and the kernel hang on it.

`freeze` stops everything at once (a virtual machine that is not scheduled); `crash` loses the kernel, all processes,
what is in memory and what was not yet flushed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .files import Files
from .world import Action, World

if TYPE_CHECKING:
    from .cluster import Cluster
    from .disk import Path
    from .kernel import Kernel
    from .process import DaemonProcess, WatchProcess

INPUTS_MAX = 5000


class Host:
    """`rate` is how fast its clock runs; `wall_ms` is its wall clock, for people only."""

    kernel: Kernel
    paths: dict[str, Path]
    watch: WatchProcess
    daemon: DaemonProcess
    cluster: Cluster

    def __init__(self, world: World, number: int, drift: float) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        draw = world.random
        self.rate = draw.choice((1 - drift, 1 + drift, 1.0, draw.uniform(1 - drift, 1 + drift)))
        self.offset = draw.uniform(0, 1_000_000)
        self.up = True
        self.frozen = False
        self.boots = 0
        self.files = Files(world)
        self._waiting: list[Action] = []

    def clock(self) -> float:
        return self.offset + self.rate * self.world.now

    def clock_ms(self) -> int:
        return int(self.offset + self.rate * self.world.now)

    def true_time(self, local_ms: float) -> float:
        return (local_ms - self.offset) / self.rate

    def wall_ms(self) -> float:
        return 1_700_000_000_000 + self.world.now

    def when_unfrozen(self, action: Action) -> None:
        """Now, or when the host goes on; never, if it crashes before."""
        if not self.up:
            return
        if self.frozen:
            if len(self._waiting) < INPUTS_MAX:
                self._waiting.append(action)
        else:
            action()

    def freeze(self) -> None:
        self.frozen = self.up

    def thaw(self) -> None:
        if not self.frozen:
            return
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        self.kernel.thawed()
        for action in waiting:
            self.when_unfrozen(action)
        self.watch.wake()

    def crash(self) -> None:
        if not self.up:
            return
        self.up = self.frozen = False
        self._waiting.clear()
        self.watch.kill()
        self.daemon.kill()
        self.kernel.crash()
        self.cluster.checker.rebooted(self)
        for path in self.paths.values():
            path.crash()
        self.files.crash()

    def boot(self) -> None:
        if self.up:
            return
        self.up = True
        self.boots += 1
        for path in self.paths.values():
            path.log_in(new_nexus=self.world.chance(0.2))
        draw = self.world.random
        self.world.after(draw.uniform(1, 300), self.watch.start)
        self.world.after(draw.uniform(1, 600), self.daemon.start)
