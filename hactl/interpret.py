"""The one place where a volume's effects meet its ports.

`Interpreter.run` performs one `Run` and answers with one event. Whatever a port raises becomes a `StepFailed` whose
text says what to do next; nothing else in hactl catches a port's error. Two threads per volume, since a blocked
ioctl cannot be cancelled: one for its disk, one for its file system and export. A verification is never queued
behind an unmount that hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from hactl.controller import Run, Step, StepDone, StepFailed

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One timed piece of a step: monotonic seconds of this node."""

    name: str
    start_s: float
    end_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """How far the clients' recovery is. `settled` when the server is out of grace (or may leave it now)."""

    settled: bool
    known: int = 0
    reclaimed: int = 0


class HandleLost(Exception):
    """The disk itself said that the handle is not good any more."""


class FileSystemDamaged(Exception):
    """The mounted file system shut itself down after an error: it serves nobody any more, whatever the disk says."""


class Disk(Protocol):
    """The LUNs of one volume and the handle on them. Blocking; raises what `fencing.errors` lists, or HandleLost."""

    def acquire(self) -> list[Span]: ...
    def verify(self) -> None: ...
    def release(self) -> None: ...
    def forget(self) -> None: ...


class Service(Protocol):
    """The file system and export of one volume. Blocking; raises what `fs.errors` lists."""

    def mount(self) -> list[Span]: ...
    def damaged(self) -> bool: ...
    def start_tracking(self) -> None: ...
    def start_export(self) -> None: ...
    def answered_elsewhere(self) -> bool: ...
    def gate(self) -> tuple[int, bytes, bytes]: ...
    def wake_clients(self) -> None: ...
    def grace(self) -> Grace: ...
    def remove_address(self) -> None: ...
    def stop_export(self) -> None: ...
    def stop_tracking(self) -> None: ...
    def unmount(self, forced: bool) -> None: ...


class Gate(Protocol):
    """The address's gate, kept by nodewatch. `open` returns once the address is up, or raises; `doubt` only tells
    nodewatch to shut it, and waits for nothing."""

    async def open(self, volume: str, gate: tuple[int, bytes, bytes]) -> None: ...
    async def shut(self, volume: str) -> None: ...
    def doubt(self, volume: str) -> None: ...


@dataclass(slots=True)
class Timeline:
    """The spans of the takeover under way, in order of their start."""

    spans: list[Span] = field(default_factory=list)

    def add(self, name: str, start_s: float, end_s: float, detail: str = "") -> None:
        self.spans.append(Span(name=name, start_s=start_s, end_s=end_s, detail=detail))


class Interpreter:
    """Runs the steps of one volume, one at a time, and times them."""

    def __init__(
        self, *, volume: str, disk: Disk, service: Service, gate: Gate, monotonic_s: Callable[[], float]
    ) -> None:
        self.volume = volume
        self.timeline = Timeline()
        self.grace = Grace(settled=True)
        self.disk_thread = ThreadPoolExecutor(1, thread_name_prefix=f"disk-{volume}")
        self.service_thread = ThreadPoolExecutor(1, thread_name_prefix=f"fs-{volume}")
        self.look_thread = ThreadPoolExecutor(1, thread_name_prefix=f"look-{volume}")
        """For looks at the mount that touch no disk: a write to the volume (the list of peers) may wait for a path on
        the service's thread, and a check of the handle must not wait for that."""
        self._disk = disk
        self._service = service
        self._gate = gate
        self._now = monotonic_s

    async def run(self, run: Run) -> StepDone | StepFailed:
        """Perform one step. Every error that a port may raise comes back as a value."""
        try:
            settled = await self._steps[run.step](self, run)
        except HandleLost as lost:
            return StepFailed(step=run.step, text=str(lost), lost=True)
        except FileSystemDamaged as damaged:
            return StepFailed(step=run.step, text=str(damaged), damaged=True)
        except Exception as failed:
            return StepFailed(step=run.step, text=f"{type(failed).__name__}: {failed}")
        return StepDone(step=run.step, settled=settled)

    async def on_disk(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.disk_thread, call)

    async def on_service(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.service_thread, call)

    async def _timed(self, name: str, work: Awaitable[Any]) -> None:
        start = self._now()
        await work
        self.timeline.add(name, start, self._now())

    async def _listen(self, run: Run) -> bool:
        start = self._now()
        answered = await self.on_service(self._service.answered_elsewhere)
        self.timeline.add("listen", start, self._now(), "still answered" if answered else "nobody answers")
        return not answered

    async def _doubt(self, run: Run) -> bool:
        self._gate.doubt(self.volume)
        return True

    async def wake(self) -> None:
        """The address came back without us: say so to the neighbours and the clients."""
        await self.on_service(self._service.wake_clients)

    async def _acquire(self, run: Run) -> bool:
        self.timeline.spans.extend(await self.on_disk(self._disk.acquire))
        return True

    async def _verify(self, run: Run) -> bool:
        await self._check()
        return True

    async def _check(self) -> None:
        """Is the handle good, and is the file system on it, if there is one?"""
        await self.on_disk(self._disk.verify)
        if await asyncio.get_running_loop().run_in_executor(self.look_thread, self._service.damaged):
            raise FileSystemDamaged(f"volume {self.volume}: its file system shut itself down after an error")

    async def _mount(self, run: Run) -> bool:
        self.timeline.spans.extend(await self.on_service(self._service.mount))
        return True

    async def _track(self, run: Run) -> bool:
        await self._timed("track", self.on_service(self._service.start_tracking))
        return True

    async def _export(self, run: Run) -> bool:
        await self._timed("export", self.on_service(self._service.start_export))
        return True

    async def _open(self, run: Run) -> bool:
        await self._timed("address", self._open_gate())
        await self._timed("wake", self.on_service(self._service.wake_clients))
        return True

    async def _open_gate(self) -> None:
        await self._gate.open(self.volume, await self.on_service(self._service.gate))

    async def _watch_grace(self, run: Run) -> bool:
        await self._check()
        self.grace = await self.on_service(self._service.grace)
        return self.grace.settled

    async def _shut(self, run: Run) -> bool:
        await self._timed("shut", self._shut_gate())
        return True

    async def _shut_gate(self) -> None:
        await self._gate.shut(self.volume)
        await self.on_service(self._service.remove_address)

    async def _unexport(self, run: Run) -> bool:
        await self._timed("unexport", self.on_service(self._service.stop_export))
        return True

    async def _untrack(self, run: Run) -> bool:
        await self._timed("untrack", self.on_service(self._service.stop_tracking))
        return True

    async def _unmount(self, run: Run) -> bool:
        await self._timed("unmount", self.on_service(lambda: self._service.unmount(run.forced)))
        return True

    async def _release(self, run: Run) -> bool:
        await self.on_disk(self._disk.release)
        return True

    async def _forget(self, run: Run) -> bool:
        await self.on_disk(self._disk.forget)
        return True

    _steps: ClassVar[dict[Step, Callable[[Interpreter, Run], Awaitable[bool]]]] = {
        Step.LISTEN: _listen,
        Step.DOUBT: _doubt,
        Step.ACQUIRE: _acquire,
        Step.VERIFY: _verify,
        Step.MOUNT: _mount,
        Step.TRACK: _track,
        Step.EXPORT: _export,
        Step.OPEN: _open,
        Step.WATCH_GRACE: _watch_grace,
        Step.SHUT: _shut,
        Step.UNEXPORT: _unexport,
        Step.UNTRACK: _untrack,
        Step.UNMOUNT: _unmount,
        Step.RELEASE: _release,
        Step.FORGET: _forget,
    }
