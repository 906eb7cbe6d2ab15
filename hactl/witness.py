"""The witness's LUNs on this node: claims, checks and reads, for node watch, which knows no disks.

`nodewatch/arbitration.py` decides when; `fencing/claim.py` knows how; here is who waits. Each LUN has a thread of its
own, so that one that hangs keeps no other waiting, and none the event loop. What is not answered in time is told to
nobody: an acknowledgement that does not come ends a lease by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from fencing._disk import open_lun
from fencing.claim import NOBODY, Standing, holds, may_take, survey, take, tally
from fencing.errors import LostRace
from fencing.model import Identity, Key, ReservationState
from fencing.port import Lun
from hactl.config import Config
from hactl.record import Records

T = TypeVar("T")
READ_S = 5.0
CHECK_S = 0.15
ANSWER_S = 1.0
"""So long is a LUN waited for in a claim; node watch asks again, so a slow disk costs time and nothing else."""
AHEAD = 16
"""So many epochs are reserved ahead."""
RECORD = "witness.luns"
"""The name of the durable floor of epochs; no volume can be called so."""


def boottime_ms() -> int:
    """Node watch's clock: milliseconds since boot, rounded down."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass(slots=True)
class WitnessLun:
    """One LUN: opened when it is first needed, and anew when it has another device name."""

    wwid: str
    device: str = ""
    lun: Lun | None = None
    busy: bool = False
    why: str = "not read yet"
    standing: Standing | None = None
    state: ReservationState | None = None
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "witness"))

    def open(self, device: str) -> Lun:
        """On its thread. OSError if it cannot be."""
        if self.lun is None or self.device != device:
            self.close()
            lun = open_lun(device)
            if lun.wwid != self.wwid:
                lun.close()
                raise OSError(f"{device} is {lun.wwid} now")
            self.lun, self.device = lun, device
        return self.lun

    def close(self) -> None:
        if self.lun is not None:
            self.lun.close()
            self.lun = None


def _take(standing: Standing, identity: Identity, epoch: int, lun: Lun) -> None:
    take(lun, standing, identity, epoch, time.monotonic)


class Witness:
    """`tell` sends a message to node watch; `devices` gives the device of each WWID that this node sees."""

    def __init__(
        self,
        *,
        config: Config,
        records: Records,
        tell: Callable[[dict[str, Any]], None],
        devices: Callable[[], dict[str, str]],
        log: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._records = records
        self._tell = tell
        self._devices = devices
        self._log = log
        self._changed = changed
        self.luns = [WitnessLun(wwid) for wwid in config.cluster.witness]
        self._watched = 0
        self._reserved = records.floor(RECORD) if self.luns else 0
        self._next = self._reserved + 1
        """Epochs up to the floor may have been used by an earlier hactld."""
        self._race: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    # --- from node watch ------------------------------------------------------------------------------------------

    def on_order(self, message: dict[str, Any]) -> None:
        """`race` or `watch`. A race replaces one that is still under way: node watch has given that up."""
        if message["t"] == "watch":
            self._watched = int(message["epoch"])
            self._wake.set()
            return
        if self._race is not None:
            self._race.cancel()
        expected = {str(wwid): int(epoch) for wwid, epoch in message["expected"].items()}
        work = self._claim(int(message["id"]), expected, forced=bool(message["forced"]))
        self._race = asyncio.get_running_loop().create_task(work)

    # --- claims ---------------------------------------------------------------------------------------------------

    async def _claim(self, ident: int, expected: dict[str, int], *, forced: bool) -> None:
        """Look at all LUNs at once, take those that may be taken one after the other."""
        identity, me = self.config.identity, self.config.number
        standings = await asyncio.gather(*(self._survey(each) for each in self.luns))
        seen = [standing.highest for standing in standings if standing is not None]
        epoch, taken, beaten, why = 0, [], 0, []
        if seen:
            epoch = max(max(seen) + 1, self._next)
            await self._reserve(epoch)
            self._next = epoch + 1
        for each, standing in zip(self.luns, standings, strict=True):
            if standing is None:
                why.append(f"{each.wwid}: {each.why}")
                continue
            try:
                if not may_take(standing, expected.get(each.wwid), me, forced=forced):
                    wanted = expected.get(each.wwid, "nothing")
                    what = f"epoch {standing.epoch} of node {standing.owner}, expected {wanted}"
                    raise LostRace(what, device=each.wwid, rival=None)
                await self._on(each, partial(_take, standing, identity, epoch))
                taken.append(each.wwid)
            except LostRace as lost:
                beaten += 1
                why.append(str(lost))
            except Exception as wrong:
                why.append(f"{each.wwid}: {wrong or type(wrong).__name__}")
        outcome = tally(len(self.luns), taken=len(taken), beaten=beaten)
        text = "; ".join(why)
        self._log(f"witness: claim of epoch {epoch} {outcome}{': ' + text if text else ''}")
        answer = {"t": "raced", "id": ident, "outcome": outcome, "epoch": epoch, "claimed": taken, "why": text}
        self._tell(answer)
        self._changed()

    async def _reserve(self, epoch: int, more: int = 0) -> None:
        """Epochs are durable here before a device hears of them. Some are reserved ahead: a claim need not wait for
        this node's own disk, which is busy just when the cluster is in trouble."""
        if epoch > self._reserved:
            intend = partial(self._records.intend, RECORD, epoch + more)
            await asyncio.get_running_loop().run_in_executor(None, intend)
            self._reserved = epoch + more

    async def _survey(self, each: WitnessLun) -> Standing | None:
        try:
            each.state, each.standing = await self._on(each, self._look_at)
            each.why = ""
        except Exception as wrong:
            each.standing, each.why = None, str(wrong) or "it does not answer"
        return each.standing

    def _look_at(self, lun: Lun) -> tuple[ReservationState, Standing]:
        return lun.port.read(), survey(lun, self.config.identity, self.config.numbers)

    # --- checks and reads -----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """For ever: check the claim in use several times a second; read all LUNs now and then."""
        read_at = 0.0
        while True:
            if self._watched:
                await self._check(self._watched)
            if time.monotonic() >= read_at:
                await self._read()
                read_at = time.monotonic() + READ_S
            self._wake.clear()
            pause = CHECK_S if self._watched else max(0.0, read_at - time.monotonic())
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                continue

    async def _check(self, epoch: int) -> None:
        """The clock is read BEFORE the first command: W3 of `nodewatch/arbitration.py`."""
        key, began_ms = self.config.identity.key(epoch), boottime_ms()
        verdicts = await asyncio.gather(*(self._stands(each, key) for each in self.luns))
        good, bad = verdicts.count(True), verdicts.count(False)
        if epoch == self._watched and 2 * max(good, bad) > len(self.luns):
            self._tell({"t": "held", "epoch": epoch, "at_ms": began_ms, "good": good > bad})

    async def _stands(self, each: WitnessLun, key: Key) -> bool | None:
        """None: no answer."""
        try:
            each.state = await self._on(each, lambda lun: lun.port.read())
        except Exception as wrong:
            each.why = str(wrong) or "it does not answer"
            return None
        each.why = ""
        return holds(each.state, key)

    async def _read(self) -> None:
        before = self.problems()
        await asyncio.gather(*(self._survey(each) for each in self.luns))
        found = {
            each.wwid: [each.standing.epoch, each.standing.owner] for each in self.luns if each.standing is not None
        }
        highest = max([self._next, *(each.standing.highest + 1 for each in self.luns if each.standing is not None)])
        await self._reserve(highest + AHEAD // 2, more=AHEAD // 2)
        problems = self.problems()
        self._tell({"t": "witness", "luns": found, "problem": "; ".join(problems)})
        if problems != before:
            for problem in problems:
                self._log(problem)
            self._changed()

    async def _on(self, each: WitnessLun, work: Callable[[Lun], T]) -> T:
        """Run on the LUN's thread. TimeoutError when it takes too long; until it is done others fail at once."""
        device = self._devices().get(each.wwid)
        if device is None:
            raise OSError("this node does not see it")
        if each.busy:
            raise TimeoutError("its last command is not answered yet")
        each.busy = True

        def run() -> T:
            try:
                return work(each.open(device))
            except OSError:
                each.close()
                raise
            finally:
                each.busy = False

        future = asyncio.get_running_loop().run_in_executor(each.thread, run)
        return await asyncio.wait_for(asyncio.shield(future), ANSWER_S)

    # --- for people -----------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        return [f"witness LUN {each.wwid}: {each.why}" for each in self.luns if each.why and each.why != "not read yet"]

    def show(self, view: dict[str, Any]) -> dict[str, Any]:
        """`view` is what node watch says (`View.witness`); with it, what this node sees of each LUN."""
        names = {number: name for name, number in self.config.numbers.items()} | {NOBODY: ""}
        luns = [
            {
                "wwid": each.wwid,
                "device": self._devices().get(each.wwid, ""),
                "reachable": not each.why,
                "epoch": each.standing.epoch if each.standing is not None else None,
                "claimed_by": names.get(each.standing.owner, "?") if each.standing is not None else None,
                "why": each.why,
            }
            for each in self.luns
        ]
        return {**view, "luns": luns}

    def close(self) -> None:
        for each in self.luns:
            each.thread.shutdown(wait=False, cancel_futures=True)
