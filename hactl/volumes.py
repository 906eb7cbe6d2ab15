"""The volumes that this node sees on its disks, each with its machine and its ports.

Nothing is configured here: a volume is what a readable label of our cluster says it is. Two disks that claim one
name, a label that cannot be read, a disk that vanished: each becomes a reason why the node is not ready.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fencing._discover import Disk, scan
from fencing._disk import open_lun
from fencing._format import partition
from fencing.claim import is_witness
from fencing.errors import FencingError
from fencing.label import Label
from fs._service import VolumeService
from fs.model import VolumeSpec
from hactl import controller
from hactl.config import Config
from hactl.controller import Phase
from hactl.interpret import Gate, Interpreter
from hactl.messages import Order, VolumeReport
from hactl.ports import ExportedVolume, FencedDisk
from hactl.record import Held, Records, Takeover
from hactl.runtime import Clock, VolumeRuntime

TEND_EVERY_S = 2.0


@dataclass(slots=True)
class Seen:
    """One volume: what its label said last, and what stands in the way of taking it ("" = nothing)."""

    label: Label
    device: str
    runtime: VolumeRuntime
    disk: FencedDisk
    export: ExportedVolume
    why: str = "not checked yet"
    missing: bool = False
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
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def running(self) -> list[VolumeRuntime]:
        return [each.runtime for each in self.seen.values()]

    async def scan(self) -> list[VolumeRuntime]:
        """Look at every disk. Returns the volumes that are new here."""
        found = await asyncio.get_running_loop().run_in_executor(None, lambda: list(scan()))
        self.devices = {disk.wwid: disk.device for disk in found if disk.wwid}
        ours = self._ours(found)
        new = []
        for name, (device, label) in ours.items():
            if name in self.seen:
                self._again(self.seen[name], device, label)
            else:
                runtime = self._add(device, label)
                if runtime is not None:
                    new.append(runtime)
        for name, each in self.seen.items():
            each.missing = name not in ours
        return new

    def _ours(self, disks: Iterable[Disk]) -> dict[str, tuple[Disk, Label]]:
        """Readable labels of this cluster by volume; what cannot be used is noted in `strange`, by device."""
        ours: dict[str, tuple[Disk, Label]] = {}
        strange: dict[str, str] = {}
        for disk in disks:
            if disk.problem or isinstance(disk.label, FencingError):
                strange[disk.device] = disk.problem or str(disk.label)
            label = disk.label
            if not isinstance(label, Label) or label.cluster_uuid != self.config.cluster.uuid or is_witness(label):
                continue
            twin = ours.get(label.volume)
            if twin is not None:
                strange[disk.device] = f"{disk.device} and {twin[0].device} both claim volume {label.volume}"
                continue
            if disk.wwid not in label.wwids:
                strange[disk.device] = (
                    f"{disk.device} has the label of volume {label.volume}, written for {', '.join(label.wwids)}, "
                    f"but is {disk.wwid}: a copy? It is not used"
                )
                continue
            ours[label.volume] = (disk, label)
        self._say_strange(strange)
        return ours

    def _say_strange(self, strange: dict[str, str]) -> None:
        for device, why in strange.items():
            if self.strange.get(device) != why:
                self.log(f"device={device}: {why}")
        self.strange = strange

    def _again(self, each: Seen, found: Disk, label: Label) -> None:
        """A known volume, looked at again: its label may be newer, its device may have another name."""
        if label.epoch >= each.label.epoch and label != each.label:
            each.label = label
            self.changed()
        if found.device != each.device and not each.runtime.machine.holding:
            self.log(f"volume={label.volume} is now {found.device}, was {each.device}")
            self._drop(each)
            self._add(found, label)

    def _drop(self, each: Seen) -> None:
        del self.seen[each.label.volume]
        each.disk.close()
        each.export.close()

    def _add(self, found: Disk, label: Label) -> VolumeRuntime | None:
        held = self.records.held().get(label.volume)
        try:
            each = self._make(found, label, held)
        except Exception as wrong:
            self.log(f"volume={label.volume} device={found.device} cannot be used: {wrong}")
            self.strange[found.device] = str(wrong)
            return None
        self.seen[label.volume] = each
        self.log(f"volume={label.volume} found on {found.device} ({found.wwid}), epoch={label.epoch}")
        if held is not None:
            each.runtime.machine, runs = controller.adopting(
                each.runtime.machine, held.order, wait_until_ms=held.wait_until_ms
            )
            for run in runs:
                each.runtime.launch(run)
        return each.runtime

    def _make(self, found: Disk, label: Label, held: Held | None) -> Seen:
        name = label.volume
        runtime: VolumeRuntime | None = None

        def word() -> tuple[Order, int]:
            assert runtime is not None
            return runtime.machine.order, runtime.machine.wait_until_ms

        def handle() -> tuple[int, int]:
            return (disk.handle.key.value, disk.handle.epoch) if disk.handle else (0, self._epoch(name))

        disk = FencedDisk(
            volume=name,
            luns=(open_lun(found.device),),
            identity=self.config.identity,
            records=self.records,
            word=word,
            monotonic_s=self.clock.monotonic_s,
        )
        export = ExportedVolume(VolumeService(self._spec(found, label)), self.clock.monotonic_s)
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
        return Seen(label=label, device=found.device, runtime=runtime, disk=disk, export=export)

    def _epoch(self, name: str) -> int:
        return self.seen[name].label.epoch if name in self.seen else 0

    def _spec(self, found: Disk, label: Label) -> VolumeSpec:
        return VolumeSpec(
            name=label.volume,
            device=partition(found.device, 2),
            fstype=label.fstype,
            address_cidr=label.address,
            clients=label.clients,
            lease_s=label.lease_s,
            grace_s=label.grace_s,
            gate_lifetime_s=self.config.timing.gate_lifetime_s,
        )

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
        why = "its disk is not seen on this node" if each.missing else each.why
        return VolumeReport(
            phase=str(machine.phase),
            holding=machine.holding or machine.phase is Phase.LISTENING,
            ready=machine.holding or (machine.phase is Phase.STANDBY and not why),
            why=machine.failure if machine.phase in (Phase.STUCK, Phase.SUSPENDED) else why,
            order=machine.order,
            failed=machine.failed,
            epoch=max(label.epoch, handle.epoch if handle else 0),
            owner=self.config.me if handle else label.owner,
            wanted=label.wanted,
            nodes=label.nodes,
            key=handle.key.value if handle else 0,
            address=label.address,
            device=each.device,
        )

    async def tend(self) -> None:
        """Once a second: what keeps a backup ready to take over and a primary's clients findable."""
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
