"""One volume as the daemon runs it: the machine, its interpreter, and the story told of each takeover."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from hactl import controller
from hactl.controller import Event, Phase, Run, Step, StepFailed, Volume
from hactl.interpret import Interpreter, Span
from hactl.messages import Assignment
from hactl.record import Takeover, TimedStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Monotonic seconds decide; wall-clock milliseconds are for people and timelines only."""

    monotonic_s: Callable[[], float]
    unix_ms: Callable[[], float]
    pause_s: Callable[[float], None]
    """Blocks a worker thread for so many seconds."""

    def now_ms(self) -> int:
        return int(self.monotonic_s() * 1000)

    def unix_offset_ms(self) -> float:
        """What to add to monotonic milliseconds for wall-clock ones: read once for all times of one story."""
        return self.unix_ms() - self.monotonic_s() * 1000


@dataclass(slots=True)
class Story:
    """What is gathered for one takeover's line in the history."""

    word: Assignment
    began_s: float
    waited_s: float | None = None
    opened_s: float | None = None


@dataclass(slots=True)
class VolumeRuntime:
    """Feeds events to the machine and runs what it asks for; `changed` is called after every transition."""

    node: str
    machine: Volume
    interpreter: Interpreter
    clock: Clock
    log: Callable[[str], None]
    changed: Callable[[], None]
    finished: Callable[[Takeover], None]
    handle: Callable[[], tuple[int, int]]
    forbid: Callable[[str, Step], str] = lambda volume, step: ""
    """Asked just before each step: why it must not be done now ("" = it may)."""
    story: Story | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None
    _left_from: int = 0

    @property
    def name(self) -> str:
        return self.machine.name

    def feed(self, event: Event) -> None:
        """One event; runs on the event loop's thread only."""
        before = self.machine
        self.machine, runs = before.step(event)
        self._note(before, event)
        for run in runs:
            self.launch(run)
        self._arm()

    def told(self, word: Assignment, mine: bool) -> None:
        """The leader's word, new or again."""
        now = self.clock.now_ms()
        if word.order > self.machine.order and mine and not self.machine.holding:
            self.story = Story(word=word, began_s=self.clock.monotonic_s())
            self.interpreter.timeline.spans.clear()
        self.feed(controller.Tick(now_ms=now))
        self.feed(
            controller.Assigned(
                order=word.order, mine=mine, stop=word.stop, wait_until_ms=now + word.wait_ms, cause=word.cause
            )
        )

    def tick(self) -> None:
        self.feed(controller.Tick(now_ms=self.clock.now_ms()))

    def launch(self, run: Run) -> None:
        task = asyncio.get_running_loop().create_task(self._perform(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wake(self) -> None:
        """The address came back by itself: tell the neighbours, in the background."""
        task = asyncio.get_running_loop().create_task(self._wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self) -> None:
        try:
            await self.interpreter.wake()
        except Exception as failed:
            self.log(f"volume={self.name} the address is back, but nobody was told: {failed}")

    async def _perform(self, run: Run) -> None:
        why = self.forbid(self.name, run.step)
        outcome: Event = StepFailed(step=run.step, text=why) if why else await self.interpreter.run(run)
        self.feed(controller.Tick(now_ms=self.clock.now_ms()))
        self.feed(outcome)

    def _arm(self) -> None:
        """Wake up when the next check or the end of a wait is due."""
        machine = self.machine
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = {
            Phase.WAITING: machine.wait_until_ms,
            Phase.STANDBY: None,
        }.get(machine.phase, machine.next_check_ms)
        if due is None or machine.running is not None:
            return
        left_s = (due - self.clock.now_ms()) / 1000
        if left_s > 0 or machine.phase is not Phase.WAITING:
            self._timer = asyncio.get_running_loop().call_later(max(left_s, 0.01), self.tick)

    def _note(self, before: Volume, event: Event) -> None:
        after = self.machine
        broken = controller.check(after)
        if broken:
            self.log(f"volume={after.name} INVARIANT BROKEN: {'; '.join(broken)}")
        if after.phase is before.phase and after.failure == before.failure and after.order == before.order:
            return
        self._mark(before.phase, after.phase)
        self._tell_leaving(before.phase, after.phase)
        key, epoch = self.handle()
        cause = after.failure if after.failure != before.failure else _name_of(event)
        self.log(f"volume={after.name} epoch={epoch} key=0x{key:016x} {before.phase}->{after.phase} cause={cause!r}")
        self._tell(before, after)
        self.changed()

    def _mark(self, before: Phase, after: Phase) -> None:
        """Time what is no step: how long a ready taker waited for the old lease to end."""
        if self.story is None or before is after:
            return
        now = self.clock.monotonic_s()
        if after is Phase.WAITING and self.story.waited_s is None:
            self.story.waited_s = now
        if after is Phase.VERIFYING and self.story.waited_s is not None:
            self.interpreter.timeline.add("old-lease", self.story.waited_s, now)
        if after is Phase.RECLAIMING and before is Phase.OPENING:
            self.story.opened_s = now
        if after is Phase.SERVING and self.story.opened_s is not None:
            grace = self.interpreter.grace
            detail = f"{grace.reclaimed} of {grace.known} clients"
            self.interpreter.timeline.add("reclaim", self.story.opened_s, now, detail)

    def _tell_leaving(self, before: Phase, after: Phase) -> None:
        """Giving a volume up is half of a planned move: say how long each step of it took."""
        timeline = self.interpreter.timeline
        if after is Phase.LEAVING and before not in (Phase.LEAVING, Phase.STUCK):
            self._left_from = len(timeline.spans)
        if before is Phase.LEAVING and after is Phase.STANDBY:
            took = [f"{span.name} {(span.end_s - span.start_s) * 1000:.0f} ms" for span in timeline.spans]
            self.log(f"volume={self.name} left: {', '.join(took[self._left_from :])}")

    def _tell(self, before: Volume, after: Volume) -> None:
        """Close the story once it has an end, good or bad."""
        if self.story is None:
            return
        if after.phase is Phase.SERVING:
            verdict, cause = "serving", self.story.word.cause
        elif after.failed == self.story.word.order or after.phase is Phase.LEAVING:
            verdict, cause = "failed", after.failure or after.leaving_for
        else:
            return
        key, epoch = self.handle()
        self.finished(_takeover(self, self.story, key, epoch, verdict, cause))
        self.story = None


def _name_of(event: Event) -> str:
    step = getattr(event, "step", None)
    return type(event).__name__ if step is None else f"{type(event).__name__}({step})"


def _takeover(runtime: VolumeRuntime, story: Story, key: int, epoch: int, verdict: str, cause: str) -> Takeover:
    word, offset_ms = story.word, runtime.clock.unix_offset_ms()
    steps = list(_leader_steps(word))
    told = Span(name="told", start_s=story.began_s, end_s=story.began_s)
    for span in sorted([told, *runtime.interpreter.timeline.spans], key=lambda span: span.start_s):
        steps.append(
            TimedStep(
                name=span.name,
                node=runtime.node,
                start_unix_ms=round(offset_ms + span.start_s * 1000, 1),
                end_unix_ms=round(offset_ms + span.end_s * 1000, 1),
                detail=span.detail,
            )
        )
    return Takeover(
        volume=runtime.name,
        source=word.source,
        target=runtime.node,
        epoch=epoch,
        key=key,
        cause=cause,
        verdict=verdict,
        leader=word.leader,
        fenced=word.fenced,
        steps=tuple(steps),
    )


def _leader_steps(word: Assignment) -> list[TimedStep]:
    """What the leader told of how it came to this: by the leader's clock."""
    if not word.decided_unix_ms:
        return []
    overdue = word.overdue_unix_ms or word.decided_unix_ms
    heard = word.heard_unix_ms or overdue
    steps = [("detect", heard, overdue)] if word.heard_unix_ms else []
    steps.append(("decide", overdue, word.decided_unix_ms))
    return [TimedStep(name=name, node=word.leader, start_unix_ms=start, end_unix_ms=end) for name, start, end in steps]
