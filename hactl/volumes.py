"""The volumes that this node sees on its disks, each with its machine and its ports.

Nothing is configured here: a volume is what readable labels of our cluster say it is (`sets.py`). Two disks that claim
one name, a label that cannot be read, a disk that vanished: each becomes a reason why the node is not ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from fencing._discover import scan
from fencing._disk import open_lun
from fencing._format import partition
from fencing._paths import bring_back
from fencing.label import Label
from fencing.port import Lun
from fs._service import VolumeService
from fs.model import VolumeSpec
from fs.stack import Stack
from hactl import controller, sets
from hactl.config import Config
from hactl.controller import Phase
from hactl.interpret import Gate, Interpreter
from hactl.messages import ORDER_NONE, Order, VolumeReport
from hactl.ports import ExportedVolume, FencedDisk
from hactl.record import Records, Takeover
from hactl.runtime import Clock, VolumeRuntime
from hactl.sets import LunSet

TEND_EVERY_S = 2.0
Opened = tuple[Lun, ...] | Exception
"""All LUNs of a volume, or why one of them could not be opened."""


@dataclass(slots=True)
class Seen:
    """One volume: what its label said last, and what stands in the way of taking it ("" = nothing)."""

    label: Label
    luns: LunSet
    runtime: VolumeRuntime
    disk: FencedDisk
    export: ExportedVolume
    why: str = "not checked yet"
    gone: str = ""
    """Which of its disks are not seen; "" = none."""
    checked_s: float = 0.0
    checking: bool = False


@dataclass(slots=True)
class VolumeSet:
    """All volumes of this cluster on this node. Runs on the event loop; its blocking work runs on threads."""

    config: Config
    records: Records
    gate: Gate
    clock: Clock
    log: Callable[[str], None]
    changed: Callable[[], None]
    finished: Callable[[Takeover], None]
    seen: dict[str, Seen] = field(default_factory=dict)
    strange: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """WWID -> device, of every disk that was seen."""
    _scanning: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def running(self) -> list[VolumeRuntime]:
        return [each.runtime for each in self.seen.values()]

    async def scan(self) -> list[VolumeRuntime]:
        """Look at every disk. Returns the volumes that are new here, or on other devices than before."""
        found = await asyncio.get_running_loop().run_in_executor(None, lambda: list(scan()))
        self.devices = {disk.wwid: disk.device for disk in found if disk.wwid}
        ours, strange = sets.gather(found, self.config.cluster.uuid)
        unknown = {name: each for name, each in ours.items() if name not in self.seen and each.gone}
        self._say_strange(strange | {f"volume {name}": each.gone for name, each in unknown.items()})
        new = await self._use(ours)
        for name, each in self.seen.items():
            each.gone = ours[name].gone if name in ours else LunSet(label=each.label, devices={}).gone
        return new

    async def _use(self, ours: dict[str, LunSet]) -> list[VolumeRuntime]:
        """All new sets are opened before the first of them runs, off the event loop: an open may wait for a path."""
        wanted = [luns for luns in ours.values() if self._to_open(luns)]
        opening = asyncio.get_running_loop().run_in_executor(None, lambda: [_try_open(luns) for luns in wanted])
        opened = {luns.label.volume: found for luns, found in zip(wanted, await opening, strict=True)}
        new = []
        for name, luns in ours.items():
            known = self.seen.get(name)
            if known is not None:
                self._refresh_label(known, luns.label)
            if name not in opened:
                continue
            if not self._to_open(luns):  # taken into use while the others were opened
                _close(opened[name])
                continue
            if known is not None:
                self.log(f"volume={name} is now {luns.describe()}, was {known.luns.describe()}")
                self._drop(known)
            runtime = self._add(luns, opened[name])
            if runtime is not None:
                new.append(runtime)
        return new

    def _to_open(self, luns: LunSet) -> bool:
        """A whole set, not known yet, or known by other devices and not in use."""
        known = self.seen.get(luns.label.volume)
        if luns.gone or known is None:
            return not luns.gone
        return luns.devices != known.luns.devices and not known.runtime.machine.holding

    def _say_strange(self, strange: dict[str, str]) -> None:
        for device, why in strange.items():
            if self.strange.get(device) != why:
                self.log(f"device={device}: {why}")
        self.strange = strange

    def _refresh_label(self, each: Seen, label: Label) -> None:
        if label.epoch >= each.label.epoch and label != each.label:
            each.label = label
            self.changed()

    def _drop(self, each: Seen) -> None:
        del self.seen[each.label.volume]
        each.disk.close()
        each.export.close()

    def _add(self, luns: LunSet, opened: Opened) -> VolumeRuntime | None:
        label = luns.label
        held = self.records.held().get(label.volume)
        try:
            if isinstance(opened, Exception):
                raise opened
            each = self._make(luns, opened)
        except Exception as wrong:
            _close(opened)
            self.log(f"volume={label.volume} device={luns.describe()} cannot be used: {wrong}")
            self.strange[luns.describe()] = str(wrong)
            return None
        self.seen[label.volume] = each
        found = sets.some(tuple(luns.devices))
        self.log(f"volume={label.volume} found on {luns.describe()} ({found}), epoch={label.epoch}")
        if held is not None:
            each.runtime.machine, runs = controller.adopting(
                each.runtime.machine, held.order, wait_until_ms=held.wait_until_ms
            )
            for run in runs:
                each.runtime.launch(run)
        return each.runtime

    def _make(self, luns: LunSet, opened: tuple[Lun, ...]) -> Seen:
        label = luns.label
        name = label.volume
        runtime: VolumeRuntime | None = None

        def word() -> tuple[Order, int]:
            assert runtime is not None
            return runtime.machine.order, runtime.machine.wait_until_ms

        def handle() -> tuple[int, int]:
            return (disk.handle.key.value, disk.handle.epoch) if disk.handle else (0, self._epoch(name))

        disk = FencedDisk(
            volume=name,
            luns=opened,
            identity=self.config.identity,
            records=self.records,
            word=word,
            monotonic_s=self.clock.monotonic_s,
            pause_s=self.clock.pause_s,
        )
        export = ExportedVolume(VolumeService(self._spec(luns)), self.clock.monotonic_s)
        runtime = VolumeRuntime(
            node=self.config.me,
            machine=controller.standby(
                name, regrace_ms=label.lease_s * 1000 // 4, fence_early_ms=self.config.timing.fence_early_ms
            ),
            interpreter=Interpreter(
                volume=name, disk=disk, service=export, gate=self.gate, monotonic_s=self.clock.monotonic_s
            ),
            clock=self.clock,
            log=self.log,
            changed=self.changed,
            finished=self.finished,
            handle=handle,
        )
        return Seen(label=label, luns=luns, runtime=runtime, disk=disk, export=export)

    def _epoch(self, name: str) -> int:
        return self.seen[name].label.epoch if name in self.seen else 0

    def _spec(self, luns: LunSet) -> VolumeSpec:
        label = luns.label
        parts = tuple(partition(device, 2) for device in luns.devices.values())
        stack = Stack.of(label.stack, label.volume, label.volume_uuid, parts)
        return VolumeSpec(
            name=label.volume,
            device=stack.device,
            fstype=label.fstype,
            address_cidr=label.address,
            clients=label.clients,
            lease_s=label.lease_s,
            grace_s=label.grace_s,
            gate_lifetime_s=self.config.timing.gate_lifetime_s,
            stack=stack,
        )

    def standing_by(self) -> dict[str, tuple[str, ...]]:
        """The volumes that another node serves, or nobody: their devices here."""
        idle = (each for each in self.seen.values() if each.runtime.machine.phase is Phase.STANDBY and not each.gone)
        return {each.label.volume: tuple(each.luns.devices.values()) for each in idle}

    def in_hand(self) -> tuple[int, int]:
        """(held, lost): volumes that this node has in hand and whose disk is its own; and those that it lost and has
        not let go yet. For node watch's watchdog."""
        busy = [each.runtime.machine for each in self.seen.values() if each.runtime.machine.phase in controller.HOLDING]
        lost = sum(machine.lost for machine in busy)
        return len(busy) - lost, lost

    def reports(self) -> dict[str, VolumeReport]:
        return {name: self._report(each) for name, each in sorted(self.seen.items())}

    def _report(self, each: Seen) -> VolumeReport:
        machine, label, handle = each.runtime.machine, each.label, each.disk.handle
        why = each.gone or each.why
        if machine.phase in (Phase.STUCK, Phase.SUSPENDED) or (not why and machine.failed != ORDER_NONE):
            why = machine.failure
        return VolumeReport(
            phase=str(machine.phase),
            holding=machine.holding or machine.phase is Phase.LISTENING,
            ready=machine.holding or (machine.phase is Phase.STANDBY and not (each.gone or each.why)),
            why=why,
            order=machine.order,
            failed=machine.failed,
            epoch=max(label.epoch, handle.epoch if handle else 0),
            owner=self.config.me if handle else label.owner,
            wanted=label.wanted,
            nodes=label.nodes,
            key=handle.key.value if handle else 0,
            address=label.address,
            device=each.luns.describe(),
            risk=label.risk,
        )

    async def tend(self) -> None:
        """Once a second: what keeps a backup ready to take over and a primary's clients findable."""
        if not self._scanning:
            self._spawn(self._bring_paths_back())
        for each in self.seen.values():
            due = self.clock.monotonic_s() - each.checked_s >= TEND_EVERY_S
            if each.checking or not due:
                continue
            if each.runtime.machine.phase is Phase.STANDBY:
                self._spawn(self._check(each))
            elif each.runtime.machine.phase in (Phase.SERVING, Phase.RECLAIMING):
                each.why = ""
                self._spawn(self._save_peers(each))

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring_paths_back(self) -> None:
        """Paths that an acquisition took out of use, once their transport is up again. A scan may block."""
        self._scanning = True
        try:
            back = await asyncio.get_running_loop().run_in_executor(None, bring_back)
        finally:
            self._scanning = False
        for address in back:
            self.log(f"path={address}: its transport is up again, scanned for it")

    async def _check(self, each: Seen) -> None:
        """Could this node take the volume now? Asked of the disk and of the kernel, not remembered."""
        each.checking = True
        try:
            why = await each.runtime.interpreter.on_disk(each.disk.unready)
            if not why:
                await each.runtime.interpreter.on_service(each.export.prepare)
            label = None if why else await each.runtime.interpreter.on_disk(each.disk.read_label)
        except Exception as wrong:
            why, label = f"{wrong}", None
        finally:
            each.checking = False
        each.checked_s = self.clock.monotonic_s()
        if each.runtime.machine.holding:
            return
        if (label is not None and label != each.label) or why != each.why:
            each.label = label or each.label
            each.why = why
            self.changed()

    async def _save_peers(self, each: Seen) -> None:
        each.checking = True
        try:
            with contextlib.suppress(Exception):
                await each.runtime.interpreter.on_service(each.export.save_peers)
        finally:
            each.checking = False
        each.checked_s = self.clock.monotonic_s()

    def close(self) -> None:
        """Let go of descriptors; everything that serves goes on serving."""
        for each in self.seen.values():
            each.export.close()


def _opened(luns: LunSet) -> tuple[Lun, ...]:
    """All of them, each still the one that was seen; or none. OSError if one cannot be opened."""
    opened: list[Lun] = []
    try:
        for wwid, device in luns.devices.items():
            lun = open_lun(device)
            opened.append(lun)
            if lun.wwid != wwid:
                raise OSError(f"{device} was {wwid}, and is {lun.wwid} now")
    except OSError:
        _close(tuple(opened))
        raise
    return tuple(opened)


def _try_open(luns: LunSet) -> Opened:
    try:
        return _opened(luns)
    except Exception as wrong:
        return wrong


def _close(opened: Opened) -> None:
    if not isinstance(opened, Exception):
        for lun in opened:
            lun.close()
