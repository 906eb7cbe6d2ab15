"""The state machine of one volume on one node: take it, serve it, give it back. Pure.

Theory. Right to *write* is the handle on the disk, right to *serve* is the lease. The leader's assignment is
neither: it is only the word to try. So the machine holds these rules, and `check` states them as code:

1. The file system is mounted only after a handle was acquired and read back in this boot (`Step.ACQUIRE`, or
   `Step.VERIFY` of the recorded one after a restart of the daemon).
2. The address is opened only after: own lease held, the old primary's lease over (`wait_until_ms`), and the
   handle verified *after* both became true.
3. A lost lease suspends at once; it resumes only through a new verification of the handle. If the address was shut for
   so long that clients' own NFS leases may have run out meanwhile, the export is started anew: in a new grace they
   reclaim what they held, where otherwise another client could take their locks.
4. A lost handle, or a word that the volume is another's, leads to `LEAVING`: address first, then the export,
   the tracking, the file system. Nothing is taken again before every step of that is seen done.
5. While an old primary's lease may still run, the disk is fenced only once nobody answers under the volume's address
   any more (`LISTENING`). A hung primary's kernel goes on serving until its address expires: fenced before that, it
   would answer its clients with I/O errors. Where the network between the nodes is split, the question does not arrive:
   so the disk is never fenced earlier than `fence_early_ms` before that lease ends, when a primary that runs has shut
   its address by itself (R9 of nodewatch/lease.py). This is for the clients' sake only; safety does not rest on it.
6. A disk that does not answer is doubt: the address is shut (`Step.DOUBT`) until the handle is verified again. A
   doubt that lasts is reported as a failure, so that the leader has another node take the volume.
7. A file system that shut itself down after an error is left, and the leader told: its next mount replays the journal.
8. One step runs at a time. Each is idempotent: after a crash the same sequence is run from its start, and
   what already stands is found standing.

Calypso's three phases of recovery are `ACQUIRING..OPENING` (stop and take over), `RECLAIMING` (clients present
their opens and locks) and `SERVING` (resume).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from hactl.messages import ORDER_NONE, Order

STUCK_RETRY_MS = 2000
VERIFY_EVERY_MS = 1000
GRACE_POLL_MS = 200
OPEN_TRIES = 3
LISTEN_EVERY_MS = 50
LISTEN_MS = 80
"""How long one round of listening takes when nobody answers (fs/_address.py)."""
DOUBT_MS = 3000
GIVE_UP_MS = 4000


class Phase(StrEnum):
    STANDBY = "standby"
    LISTENING = "listening"
    ADOPTING = "adopting"
    ACQUIRING = "acquiring"
    MOUNTING = "mounting"
    EXPORTING = "exporting"
    WAITING = "waiting"
    VERIFYING = "verifying"
    OPENING = "opening"
    RECLAIMING = "reclaiming"
    SERVING = "serving"
    SUSPENDED = "suspended"
    LEAVING = "leaving"
    STUCK = "stuck"


class Step(StrEnum):
    """What an effect asks of the kernel, the disk or nodewatch; each may be run again at any time.

    ACQUIRE: make a new handle; its epoch is on stable storage BEFORE the disk hears of it, and recorded for this
    boot BEFORE the next step. TRACK and EXPORT bring nfsd up without an address. OPEN hands the gate to
    nodewatch, then wakes the clients. RELEASE writes `wanted=stopped` into the label BEFORE it gives up the
    handle. LISTEN asks whether another node still answers under the address (settled: nobody does). DOUBT shuts the
    gate without being waited for. FORGET removes this boot's record of the handle AFTER the file system is gone.
    """

    LISTEN = "listen"
    DOUBT = "doubt"
    ACQUIRE = "acquire"
    VERIFY = "verify"
    MOUNT = "mount"
    TRACK = "track"
    EXPORT = "export"
    OPEN = "open"
    WATCH_GRACE = "watch-grace"
    SHUT = "shut"
    UNEXPORT = "unexport"
    UNTRACK = "untrack"
    UNMOUNT = "unmount"
    RELEASE = "release"
    FORGET = "forget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The leader's word for this volume. `wait_until_ms` is on this node's monotonic clock."""

    order: Order
    mine: bool
    stop: bool = False
    wait_until_ms: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    step: Step
    settled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """`lost` says that the disk itself told that the handle is gone (not merely that nothing was learned); `damaged`
    that the file system shut itself down."""

    step: Step
    text: str
    lost: bool = False
    damaged: bool = False

    @property
    def silent(self) -> bool:
        """Nothing was learned."""
        return not (self.lost or self.damaged)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseChanged:
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed: `now_ms` on this node's monotonic clock."""

    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """Something may have happened to the disk's registrations: a reason to verify the handle now, and no more. Brings
    the time, as `Tick` does: a tick before it could find the usual check due, and begin that one instead."""

    now_ms: int


Event = Assigned | StepDone | StepFailed | LeaseChanged | Tick | Noticed


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The only effect: run one step. `forced` (UNMOUNT) says that the disk is lost, so nothing can be flushed."""

    step: Step
    forced: bool = False


_LEAVE = (Step.SHUT, Step.UNEXPORT, Step.UNTRACK, Step.UNMOUNT)
_NEXT_TAKE = {
    Phase.ACQUIRING: (Phase.MOUNTING, Step.MOUNT),
    Phase.MOUNTING: (Phase.EXPORTING, Step.TRACK),
}
HOLDING = frozenset(Phase) - {Phase.STANDBY, Phase.LISTENING}
CHECKED_PHASES = frozenset({Phase.RECLAIMING, Phase.SERVING, Phase.SUSPENDED})
OPEN_PHASES = frozenset({Phase.OPENING, Phase.RECLAIMING, Phase.SERVING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What the machine knows of one volume. Start with `standby(name)` or `adopting(name, order)`.

    `began`: the word with which this take began; only that one knows its `wait_until_ms`. `regrace_ms`: the address
    may be shut for so long before clients must reclaim (a quarter of their NFS lease: they renew after two thirds
    of it). `asked_ms`: when the running step began. `doubt_ms`: since when the disk has not said that the handle is
    good, though asked. `stale`: the lease was lost since the running step began, so a verification may have looked
    too early. `shut`: the address is surely away (while leaving). `fence_early_ms`: so long before the end of the
    old lease a primary that runs has shut its address (`Timing.fence_early_ms`). `noticed`: a notice came since the
    last check began; `prompted`: the check that runs began after one, so what it finds was not found by the clock.
    """

    name: str
    phase: Phase = Phase.STANDBY
    order: Order = ORDER_NONE
    mine: bool = False
    stop: bool = False
    began: Order = ORDER_NONE
    wait_until_ms: int = 0
    cause: str = ""
    lease: bool = False
    stale: bool = False
    running: Step | None = None
    lost: bool = False
    shut: bool = False
    leaving_for: str = ""
    open_failures: int = 0
    regrace_ms: int = 2500
    fence_early_ms: int = 0
    suspended_ms: int = 0
    asked_ms: int = 0
    doubt_ms: int | None = None
    failed: Order = ORDER_NONE
    failure: str = ""
    now_ms: int = 0
    next_check_ms: int = 0
    noticed: bool = False
    prompted: bool = False

    @property
    def holding(self) -> bool:
        """True while this node may write or serve: nobody else is sent in by a planned move.

        A node whose handle is lost and whose address is shut holds nothing, even when its dead file system
        cannot be unmounted yet: it must not keep the volume from the next taker.
        """
        return self.phase in HOLDING and not (self.lost and self.shut)

    def step(self, event: Event) -> tuple[Volume, tuple[Run, ...]]:
        """One event in, the new state and what to run. Never raises for an event that comes too late."""
        match event:
            case Tick():
                return replace(self, now_ms=event.now_ms)._watch_the_disk()
            case LeaseChanged():
                changed = replace(self, lease=event.held, stale=self.stale or not event.held)
                if self.phase in (Phase.RECLAIMING, Phase.SERVING) and not event.held:
                    return changed._suspended(self.now_ms), ()  # also while a check runs: it may come too late to tell
                return changed._proceed()
            case Assigned():
                return self._assigned(event)._proceed()
            case Noticed():
                now = replace(self, now_ms=event.now_ms)
                return (replace(now._again(0), noticed=True) if now.phase in CHECKED_PHASES else now)._proceed()
            case StepDone() | StepFailed() if event.step is not self.running:
                return self, ()  # the answer to a step that this life did not ask for
            case StepDone():
                return replace(self, running=None)._done(event)
            case StepFailed():
                return replace(self, running=None)._failed(event)
            case _ as unreachable:
                assert_never(unreachable)

    def _assigned(self, event: Assigned) -> Volume:
        if event.order < self.order:
            return self  # an older leader's word
        wait = event.wait_until_ms
        if event.mine and self.mine and self.phase is not Phase.STANDBY:
            # Told again: each telling is safe, so the earliest counts. Another word ("you have it already") does not
            # know what this take waits for.
            wait = min(wait, self.wait_until_ms) if event.order == self.began else self.wait_until_ms
        return replace(
            self,
            order=event.order,
            mine=event.mine,
            stop=event.stop and not event.mine,
            wait_until_ms=wait,
            cause=event.cause or self.cause,
        )

    def _run(self, phase: Phase, step: Step, *, forced: bool = False) -> tuple[Volume, tuple[Run, ...]]:
        asked = replace(self, phase=phase, running=step, stale=False, asked_ms=self.now_ms)
        return replace(asked, noticed=False, prompted=self.noticed), (Run(step=step, forced=forced),)

    def _watch_the_disk(self) -> tuple[Volume, tuple[Run, ...]]:
        """Time passed: has a check of the handle gone unanswered for too long?"""
        if self.phase not in CHECKED_PHASES or self.running is None:
            return self._proceed()
        if self.doubt_ms is None and self.now_ms - self.asked_ms >= DOUBT_MS:
            return self._doubt("the disk does not answer")
        return self._give_up_late(), ()

    def _doubt(self, why: str) -> tuple[Volume, tuple[Run, ...]]:
        since = self.asked_ms if self.doubt_ms is None else self.doubt_ms
        doubting = replace(self, doubt_ms=since, failure=why)
        if self.phase is not Phase.SUSPENDED:
            doubting = doubting._suspended(self.now_ms + VERIFY_EVERY_MS)
        return doubting._give_up_late(), (Run(step=Step.DOUBT),)

    def _give_up_late(self) -> Volume:
        """A doubt that lasts: let the leader know that this node cannot serve under this word."""
        late = self.doubt_ms is not None and self.now_ms - self.doubt_ms >= GIVE_UP_MS
        return replace(self, failed=self.order) if late else self

    def _proceed(self) -> tuple[Volume, tuple[Run, ...]]:
        """What can start now, with no step running."""
        if self.running is not None:
            return self, ()
        match self.phase:
            case Phase.STANDBY:
                if self.mine and self.failed != self.order:
                    return replace(self, failure="", lost=False, began=self.order)._begin()
                return self, ()
            case Phase.LISTENING if not self.mine:
                return replace(self, phase=Phase.STANDBY), ()
            case Phase.LISTENING:
                return self._begin() if self.now_ms >= min(self.next_check_ms, self.wait_until_ms) else (self, ())
            case Phase.STUCK:
                return self._leave("trying again") if self.now_ms >= self.next_check_ms else (self, ())
            case Phase.LEAVING:
                return self, ()
            case _ if not self.mine:
                return self._leave("the leader gave it to another" if not self.stop else "stopped")
            case Phase.WAITING:
                if not self.lease or self.now_ms < self.wait_until_ms:
                    return self, ()
                if self._shut_too_long():
                    return self._run(Phase.EXPORTING, Step.UNEXPORT)
                return self._run(Phase.VERIFYING, Step.VERIFY)
            case Phase.RECLAIMING | Phase.SERVING if not self.lease:
                return self._suspended(self.now_ms), ()
            case Phase.RECLAIMING if self.now_ms >= self.next_check_ms:
                return self._again(GRACE_POLL_MS)._run(Phase.RECLAIMING, Step.WATCH_GRACE)
            case Phase.SERVING | Phase.SUSPENDED if self.now_ms >= self.next_check_ms:
                return self._again(VERIFY_EVERY_MS)._run(self.phase, Step.VERIFY)
            case _:
                return self, ()

    def _begin(self) -> tuple[Volume, tuple[Run, ...]]:
        if self.now_ms < self.wait_until_ms:
            return self._run(Phase.LISTENING, Step.LISTEN)
        return self._run(Phase.ACQUIRING, Step.ACQUIRE)

    def _suspended(self, check_ms: int) -> Volume:
        """The address is shut (nodewatch did it, or never opened it); look at the disk at `check_ms`."""
        since = self.suspended_ms if self.open_failures else self.now_ms
        return replace(self, phase=Phase.SUSPENDED, suspended_ms=since, next_check_ms=check_ms)

    def _shut_too_long(self) -> bool:
        """Grace began, or clients were last served, so long ago that their leases or the grace may be over."""
        return self.now_ms - self.suspended_ms >= self.regrace_ms

    def _again(self, after_ms: int) -> Volume:
        return replace(self, next_check_ms=self.now_ms + after_ms)

    def _leave(self, why: str, *, lost: bool = False) -> tuple[Volume, tuple[Run, ...]]:
        leaving = replace(self, leaving_for=self.leaving_for or why, lost=self.lost or lost, shut=False)
        return leaving._run(Phase.LEAVING, _LEAVE[0])

    def _done(self, event: StepDone) -> tuple[Volume, tuple[Run, ...]]:
        if self.phase is Phase.LEAVING:
            return self._left(event.step)
        if self.phase in CHECKED_PHASES and self.doubt_ms is not None:
            return replace(self, doubt_ms=None, failure="", failed=ORDER_NONE)._done(
                event
            )  # the disk answered: the handle is good
        if not self.mine:
            return self._proceed()
        match self.phase, event.step:
            case (Phase.LISTENING, _) if event.settled and self.now_ms >= self.wait_until_ms - self.fence_early_ms:
                return self._run(Phase.ACQUIRING, Step.ACQUIRE)
            case (Phase.LISTENING, _) if event.settled:
                again_ms = self.wait_until_ms - self.fence_early_ms - LISTEN_MS
                return replace(self, next_check_ms=max(self.now_ms, again_ms)), ()
            case (Phase.LISTENING, _):
                return self._again(LISTEN_EVERY_MS), ()
            case (Phase.ADOPTING, _):
                return self._run(Phase.MOUNTING, Step.MOUNT)
            case (Phase.ACQUIRING | Phase.MOUNTING, _):
                return self._run(*_NEXT_TAKE[self.phase])
            case (Phase.EXPORTING, Step.UNEXPORT):
                return self._run(Phase.EXPORTING, Step.TRACK)
            case (Phase.EXPORTING, Step.TRACK):
                return self._run(Phase.EXPORTING, Step.EXPORT)
            case (Phase.EXPORTING, _):
                return replace(self, phase=Phase.WAITING, suspended_ms=self.now_ms)._proceed()
            case (Phase.VERIFYING, _):
                if not self.lease or self.stale:
                    return replace(self, phase=Phase.WAITING)._proceed()
                return self._run(Phase.OPENING, Step.OPEN)
            case (Phase.OPENING, _) if self.stale:
                return self._suspended(0)._proceed()
            case (Phase.OPENING, _):
                return replace(self, phase=Phase.RECLAIMING, open_failures=0, next_check_ms=0)._proceed()
            case (Phase.RECLAIMING, Step.WATCH_GRACE) if event.settled:
                return replace(self, phase=Phase.SERVING)._proceed()
            case (Phase.SUSPENDED, _) if self.lease and not self.stale:
                if self._shut_too_long():
                    return self._run(Phase.EXPORTING, Step.UNEXPORT)
                return self._run(Phase.OPENING, Step.OPEN)
            case _:
                return self._proceed()

    def _left(self, step: Step) -> tuple[Volume, tuple[Run, ...]]:
        if step in _LEAVE[:-1]:
            following = _LEAVE[_LEAVE.index(step) + 1]
            return replace(self, shut=True)._run(
                Phase.LEAVING, following, forced=self.lost and following is Step.UNMOUNT
            )
        if step is Step.UNMOUNT and self.stop and not self.lost:
            return self._run(Phase.LEAVING, Step.RELEASE)
        if step is not Step.FORGET:
            return self._run(Phase.LEAVING, Step.FORGET)
        return replace(self, phase=Phase.STANDBY, stop=False, lost=False, shut=False, leaving_for="")._proceed()

    def _try_opening_again(self) -> bool:
        """An address that stayed shut because the lease was short comes up later; one that never does is a fault."""
        return self.stale or not self.lease or self.open_failures + 1 < OPEN_TRIES

    def _failed(self, event: StepFailed) -> tuple[Volume, tuple[Run, ...]]:
        why = "after a notice: " if self.prompted else ""
        failed = replace(self, failure=f"{event.step}: {why}{event.text}")
        match self.phase:
            case Phase.LEAVING:
                return replace(failed, phase=Phase.STUCK, next_check_ms=self.now_ms + STUCK_RETRY_MS), ()
            case Phase.ACQUIRING:
                # Nothing is mounted, and the acquisition cleaned up behind itself: no handle is held.
                return replace(failed, phase=Phase.STANDBY, failed=self.order), ()
            case Phase.OPENING if self._try_opening_again():
                again = replace(failed, open_failures=self.open_failures + 1)
                return again._suspended(self.now_ms + VERIFY_EVERY_MS), ()
            case Phase.RECLAIMING if event.silent:
                return failed._doubt(failed.failure)
            case Phase.SERVING | Phase.SUSPENDED if event.silent:
                return failed._doubt(failed.failure)  # nothing learned: shut the address, ask again
            case Phase.LISTENING:
                return failed._again(LISTEN_EVERY_MS), ()
            case _:
                return replace(failed, failed=self.order)._leave(failed.failure, lost=event.lost)


def standby(name: str, *, regrace_ms: int = 2500, fence_early_ms: int = 0) -> Volume:
    """The state of a volume that this node has nothing of."""
    return Volume(name=name, regrace_ms=regrace_ms, fence_early_ms=fence_early_ms)


def adopting(fresh: Volume, order: Order, *, wait_until_ms: int) -> tuple[Volume, tuple[Run, ...]]:
    """After a restart of the daemon, with a handle recorded in this boot: verify it before anything else.

    The daemon before may have been killed in the midst of a takeover: what it had to wait for counts on."""
    return replace(fresh, order=order, mine=True, wait_until_ms=wait_until_ms)._run(Phase.ADOPTING, Step.VERIFY)


def check(volume: Volume) -> list[str]:
    """The invariants that a state must keep, each as a sentence when broken. Empty is well."""
    broken = []
    if volume.phase in OPEN_PHASES and volume.lost:
        broken.append("the address is open though the handle is lost")
    if volume.phase is Phase.STANDBY and volume.running is not None:
        broken.append(f"standby, yet {volume.running} runs")
    if volume.phase is Phase.LEAVING and volume.running is None:
        broken.append("leaving, yet nothing runs: it would never end")
    return broken
