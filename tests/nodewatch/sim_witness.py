"""The witness's LUNs in the simulated cluster, and what hactld does with them: claims, checks, reads.

A LUN is what the real one is after `fencing/claim.py`: an epoch, an owner, and compare-and-swap of both in one moment.
Everything around that moment takes time, may go unanswered, and may be cut off by a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodewatch import events as ev
from nodewatch.arbitration import RaceCall, Word

if TYPE_CHECKING:
    from .cluster_sim import SimNode

CHECK_MS = 150
READ_MS = 2000


@dataclass
class SimLun:
    wwid: str
    epoch: int = 1
    owner: int = 0

    def swap(self, expected: int, epoch: int, node: int, *, forced: bool, compare: bool) -> bool:
        """The one moment that decides."""
        if compare and not forced and self.epoch > expected and self.owner != node:
            return False
        if self.epoch >= epoch:
            return False
        self.epoch, self.owner = epoch, node
        return True


class WitnessAgent:
    """The part of one node's hactld that works for the witness."""

    compare = True

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.watched = 0
        self.cut = False
        """This node's commands get no answer."""
        self._checking = False
        self._read_at = 0.0
        self._checked_at = 0.0

    @property
    def luns(self) -> list[SimLun]:
        return self.node.sim.luns

    def forget(self) -> None:
        """hactld or its node watch ended."""
        self.watched = 0
        self._read_at = 0.0

    def tick(self) -> None:
        """A hundred times a second or so, while hactld runs."""
        sim = self.node.sim
        if sim.now >= self._read_at and not self.cut:
            self._read_at = sim.now + READ_MS
            found = {lun.wwid: Word(lun.epoch, lun.owner) for lun in self.luns}
            self._answer(lambda now_ms: ev.WitnessRead(now_ms=now_ms, luns=found, problem=""))
        if self.watched and not self._checking and sim.now - self._checked_at >= CHECK_MS:
            self._checked_at = sim.now
            self._check()

    def race(self, call: RaceCall) -> None:
        """Look at every LUN, then take one after the other."""
        seen: list[int] = []
        took: list[str] = []
        lost: list[str] = []

        def look() -> None:
            if not self.cut:
                seen.extend(lun.epoch for lun in self.luns)
                take(0)
            else:
                tell("unknown", 0)

        def take(place: int) -> None:
            if place == len(self.luns):
                won, beaten = 2 * len(took) > len(self.luns), 2 * len(lost) > len(self.luns)
                tell("won" if won else "lost" if beaten else "unknown", max(seen) + 1)
                return
            lun = self.luns[place]
            if not self.cut:
                good = lun.swap(
                    call.expected.get(lun.wwid, -1),
                    max(seen) + 1,
                    self.node.number,
                    forced=call.forced,
                    compare=self.compare,
                )
                (took if good else lost).append(lun.wwid)
            self._later(lambda: take(place + 1))

        def tell(outcome: str, epoch: int) -> None:
            self._answer(
                lambda now_ms: ev.Raced(
                    now_ms=now_ms,
                    ident=call.ident,
                    outcome=outcome,  # type: ignore[arg-type]
                    epoch=epoch,
                    claimed=tuple(took),
                    why="",
                )
            )

        self._later(look)

    def _check(self) -> None:
        """Read every LUN; count from before the first command."""
        self._checking = True
        epoch, began_ms = self.watched, self.node.clock()

        def read() -> None:
            self._checking = False
            if self.cut:
                return
            mine = [lun for lun in self.luns if (lun.epoch, lun.owner) == (epoch, self.node.number)]
            good = 2 * len(mine) > len(self.luns)
            self._answer(
                lambda now_ms: ev.WitnessChecked(now_ms=now_ms, epoch=epoch, began_ms=began_ms, good=good),
            )

        self._later(read)

    def _later(self, action) -> None:  # type: ignore[no-untyped-def]
        """A command's way to the disk: what was sent before a crash is carried out all the same."""
        draw = self.node.sim.random
        self.node.sim.after(draw.uniform(50, 500) if draw.random() < 0.05 else draw.uniform(0.5, 15), action)

    def _answer(self, make) -> None:  # type: ignore[no-untyped-def]
        """The answer's way back: lost with the process that asked."""
        node, life = self.node, self.node.life

        def arrive() -> None:
            if life == node.life and node.daemon_runs():
                node.when_running(lambda: node.feed(make(node.clock())))

        self._later(arrive)
