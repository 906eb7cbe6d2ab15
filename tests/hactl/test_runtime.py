"""Machine, interpreter and story together, over ports that fail on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hactl import controller
from hactl.controller import LeaseChanged, Phase, Run, Step, StepDone, StepFailed
from hactl.daemon import shut_orphans
from hactl.interpret import Grace, HandleLost, Interpreter, Span
from hactl.messages import Assignment, Order
from hactl.record import Takeover
from hactl.runtime import Clock, VolumeRuntime


class Ports:
    """Disk, service and gate in one: notes every call, and raises what it was told to raise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.raises: dict[str, Exception] = {}
        self.reclaimed = 0
        self.ruined = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.raises:
            raise self.raises[name]

    def acquire(self) -> list[Span]:
        self._call("acquire")
        now = time.monotonic()
        return [Span(name="fence", start_s=now, end_s=now, detail="lun1")]

    def verify(self) -> None:
        self._call("verify")

    def release(self) -> None:
        self._call("release")

    def forget(self) -> None:
        self._call("forget")

    def mount(self) -> list[Span]:
        self._call("mount")
        now = time.monotonic()
        return [Span(name="replay", start_s=now, end_s=now)]

    def damaged(self) -> bool:
        return self.ruined

    def start_tracking(self) -> None:
        self._call("track")

    def start_export(self) -> None:
        self._call("export")

    def answered_elsewhere(self) -> bool:
        self._call("listen")
        return False

    def gate(self) -> tuple[int, bytes, bytes]:
        return 0, b"r", b"c"

    def wake_clients(self) -> None:
        self._call("wake")

    def grace(self) -> Grace:
        self._call("grace")
        self.reclaimed += 1
        return Grace(settled=self.reclaimed == 2, known=2, reclaimed=self.reclaimed)

    def remove_address(self) -> None:
        self._call("remove-address")

    def stop_export(self) -> None:
        self._call("stop-export")

    def stop_tracking(self) -> None:
        self._call("stop-tracking")

    def unmount(self, forced: bool) -> None:
        self._call("force-unmount" if forced else "unmount")


class GateOf:
    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def open(self, volume: str, gate: tuple[int, bytes, bytes]) -> None:
        self._ports._call("gate-open")

    async def shut(self, volume: str) -> None:
        self._ports._call("gate-shut")

    def doubt(self, volume: str) -> None:
        self._ports._call("gate-doubt")


class Rig:
    """One runtime over one set of ports, driven on a real event loop."""

    def __init__(self) -> None:
        self.ports = Ports()
        self.log: list[str] = []
        self.stories: list[Takeover] = []
        clock = Clock(monotonic_s=time.monotonic, unix_ms=lambda: time.time() * 1000, pause_s=time.sleep)
        self.runtime = VolumeRuntime(
            node="n2",
            machine=controller.standby("v1"),
            interpreter=Interpreter(
                volume="v1",
                disk=self.ports,
                service=self.ports,
                gate=GateOf(self.ports),
                monotonic_s=time.monotonic,
            ),
            clock=clock,
            log=self.log.append,
            changed=lambda: None,
            finished=self.stories.append,
            handle=lambda: (0xAB, 5),
        )

    def word(self, number: int, *, mine: bool = True, stop: bool = False) -> None:
        self.runtime.told(
            Assignment(
                order=Order(term=1, number=number),
                node="n2",
                stop=stop,
                cause="n1 is overdue and barred",
                source="n1",
                leader="n3",
                heard_unix_ms=1000,
                overdue_unix_ms=1800,
                decided_unix_ms=1850,
            ),
            mine,
        )

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0.005)


def test_a_takeover_runs_in_order_and_its_story_has_every_step() -> None:
    async def go() -> None:
        rig = Rig()
        rig.runtime.feed(LeaseChanged(held=True))
        rig.word(1)
        await rig.until(lambda: rig.runtime.machine.phase is Phase.SERVING)
        assert rig.ports.calls[:7] == ["acquire", "mount", "track", "export", "verify", "gate-open", "wake"]
        (story,) = rig.stories
        names = [step.name for step in story.steps]
        assert names[:2] == ["detect", "decide"]
        assert {"fence", "replay", "export", "address", "reclaim"} <= set(names)
        assert (story.source, story.target, story.epoch, story.verdict) == ("n1", "n2", 5, "serving")
        assert (story.steps[0].node, story.steps[0].start_unix_ms) == ("n3", 1000)

    asyncio.run(go())


def test_a_handle_lost_while_serving_unmounts_by_force_and_says_so() -> None:
    async def go() -> None:
        rig = Rig()
        rig.runtime.feed(LeaseChanged(held=True))
        rig.word(1)
        await rig.until(lambda: rig.runtime.machine.phase is Phase.SERVING)
        rig.ports.raises["verify"] = HandleLost("my key is not registered any more")
        rig.ports.calls.clear()
        await rig.until(lambda: rig.runtime.machine.phase is Phase.STANDBY)
        calls = [call for call in rig.ports.calls if call != "verify"]
        assert calls[:6] == [
            "gate-shut",
            "remove-address",
            "stop-export",
            "stop-tracking",
            "force-unmount",
            "forget",
        ]
        assert any("my key is not registered any more" in line for line in rig.log)

    asyncio.run(go())


def test_a_take_that_fails_is_told_as_failed_with_its_reason() -> None:
    async def go() -> None:
        rig = Rig()
        rig.ports.raises["mount"] = OSError("bad superblock")
        rig.runtime.feed(LeaseChanged(held=True))
        rig.word(1)
        await rig.until(lambda: bool(rig.stories) and rig.runtime.machine.phase is Phase.STANDBY)
        assert rig.stories[0].verdict == "failed"
        assert "bad superblock" in rig.stories[0].cause
        assert rig.runtime.machine.failed == Order(term=1, number=1)

    asyncio.run(go())


def test_every_step_has_a_way_to_be_run_and_answers_with_a_value() -> None:
    async def go() -> None:
        rig = Rig()
        for step in Step:
            answer = await rig.runtime.interpreter.run(Run(step=step))
            assert isinstance(answer, StepDone)
        rig.ports.raises = dict.fromkeys(set(rig.ports.calls), OSError("broken"))
        for step in Step:
            failed = await rig.runtime.interpreter.run(Run(step=step))
            assert isinstance(failed, StepFailed)
            assert "broken" in failed.text
            assert not failed.lost

    asyncio.run(go())


def test_a_gate_left_for_a_volume_whose_disk_is_not_seen_is_shut_and_no_other() -> None:
    ports, shut = Ports(), []

    class Noting(GateOf):
        async def shut(self, volume: str) -> None:
            shut.append(volume)

    asyncio.run(shut_orphans(Noting(ports), ["v1", "v2"], {"v2": None}))
    assert shut == ["v1"]


def test_a_file_system_that_shut_itself_down_is_left_and_reported_as_failed() -> None:
    """Found by the simulation: the disk said that the handle was good, and every client got I/O errors for ever."""

    async def go() -> None:
        rig = Rig()
        rig.runtime.feed(LeaseChanged(held=True))
        rig.word(1)
        await rig.until(lambda: rig.runtime.machine.phase is Phase.SERVING)
        rig.ports.ruined = True
        rig.ports.calls.clear()
        await rig.until(lambda: rig.runtime.machine.phase is Phase.STANDBY)
        assert "unmount" in rig.ports.calls
        assert rig.runtime.machine.failed == Order(term=1, number=1)
        assert "shut itself down" in rig.runtime.machine.failure

    asyncio.run(go())
