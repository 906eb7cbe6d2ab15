"""Acquiring a volume: fence its owner on every device, then write the new epoch into the labels.

Theory. The key of an acquisition is new: its epoch is higher than every epoch known, and is durable in this
node's record before the key first reaches a device. Contenders meet on the first device in the order of WWIDs, and only
its winner touches the next. Whoever finds itself beaten leaves the devices that it holds as they are: reserved against
every older owner, until the winner comes to them.

The winner of the first device takes the others all at once (`spread`). Why that is as good as one after the other:

1. The winners of the first device have epochs that only grow. `ownership.plan` ends with `Lost` where the holder has
   an equal epoch or anybody a higher one, and PREEMPT names the lower key that it replaces; of two contenders with
   equal epochs the device lets one be first, and the other one never leaves the first device.
2. So those who meet on any other device were winners of the first one before: their epochs differ, and the one with the
   higher epoch won it later. Each of them decides each step on each device from what that device says (rules 1 and 2
   of `ownership.py`), and nothing there depends on what another device said. The lower one never touches the higher
   one's registration and gives up when it sees it, on whichever device that is; the higher one drops it everywhere.
   Nobody waits for anybody: each device ends with the highest epoch that came to it, in any order of all commands.
3. If a higher epoch wins the first device while the winner before is still at the others, that one can end as owner of
   none: its last look at ALL devices, after its last step on any, includes the first one. And if that look finds the
   first one its own, no higher epoch had begun elsewhere at that moment, and no lower one can take a device back (a
   key that was dropped is never registered again): all of them were its own then.
4. A winner that ends anywhere leaves a mixture: its key here, the old owner's there, perhaps both. Each device is held
   by one of them, closed to all who are older, and the next acquisition begins with a higher epoch at the first device.

What is left to the last look, and not to order, is a command of a beaten contender that was under way: it can put its
registration beside the owner's (`Good.strangers`) until it reads and takes it back; it can replace nobody's, since
PREEMPT needs a registration that the owner has just dropped. The node of such a contender has nothing of the disk in
use (`DeviceBusy` otherwise), so it writes nothing.

The labels follow after the fence on all devices, and only when nothing of the owner before can be in flight any more
(`ending.py`). Devices refuse the label writes of everybody but the owner; an owner that finds its own epoch or a later
one there was too slow, and lost.

Nothing here remembers an earlier attempt but the epoch: an attempt that ended anywhere is taken up by simply
acquiring again, on any node. When a call returns or raises, no command of it is under way any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import assert_never

from fencing.ending import Ending
from fencing.errors import (
    DeviceBusy,
    ForeignOwner,
    InvariantBroken,
    LostRace,
    NoEffect,
    NotDelivered,
    OutcomeUnknown,
    PortError,
    Refused,
)
from fencing.handle import REPEATS_MAX, Handle, in_order, must_be_good, write_copy
from fencing.label import FoundLabel, Label, common_label
from fencing.model import OUR_TYPE, PROBE_EPOCH, Identity, ReservationState
from fencing.nexus import own_key, refuse_shared
from fencing.ownership import (
    Action,
    Done,
    Foreign,
    Lost,
    Preempt,
    Register,
    Reserve,
    Unregister,
    foreign_keys,
    next_epoch,
    plan,
)
from fencing.port import Lun
from fencing.spread import Spread, in_turn
from fencing.timing import Clock, Stopwatch

Intent = Callable[[int], None]
Settle = Callable[[], None]


def acquire(
    luns: Sequence[Lun],
    identity: Identity,
    *,
    floor: int,
    intent: Intent,
    clock: Clock,
    settle: Settle | None = None,
    force: bool = False,
    spread: Spread = in_turn,
) -> Handle:
    """Take a volume that has a label, over all its devices or not at all.

    `floor` is the highest epoch in this node's durable record. `intent(epoch)` makes the new one durable
    there, and is called before any device is changed. `settle()` returns when a device must have finished or failed
    whatever it had begun before; it is called only when nothing else tells (`ending.py`), without it OutcomeUnknown is
    raised then. `spread` does what may be done at once. Raises LabelError,
    DeviceBusy, ForeignOwner (unless `force`) before anything is changed; LostRace, PortError, InvariantBroken also
    later. After any of them it can be called again.
    """
    ordered, stopwatch = in_order(luns), Stopwatch(clock)
    label = survey_labels(ordered, identity, spread, stopwatch)
    handle = _fence(ordered, identity, max(floor, label.epoch), intent, stopwatch, force, spread, settle, label.epoch)
    stamp(
        handle,
        replace(label, epoch=handle.epoch, owner=identity.node_name, seq=label.seq + 1),
        stopwatch=stopwatch,
    )
    must_be_good(handle)
    return handle


def survey_labels(
    luns: Sequence[Lun], identity: Identity, spread: Spread = in_turn, stopwatch: Stopwatch | None = None
) -> Label:
    """The newest label of a set that is one volume of ours and all of it. Reads only; LabelError otherwise."""
    watch = stopwatch or Stopwatch(lambda: 0.0)
    found: dict[str, FoundLabel | None] = {}
    sizes: dict[str, int] = {}

    def look(lun: Lun) -> None:
        sizes[lun.wwid] = lun.size_bytes()
        found[lun.wwid] = watch.time(lun.wwid, "label read", lun.labels.read)

    spread([partial(look, lun) for lun in luns])
    return common_label({lun.wwid: found[lun.wwid] for lun in luns}, identity, sizes)


def fence(
    luns: Sequence[Lun],
    identity: Identity,
    *,
    floor: int,
    intent: Intent,
    clock: Clock,
    force: bool = False,
    spread: Spread = in_turn,
) -> Handle:
    """As `acquire`, for devices whose labels do not count (yet): only the fence."""
    return _fence(in_order(luns), identity, floor, intent, Stopwatch(clock), force, spread)


def stamp(handle: Handle, label: Label, *, stopwatch: Stopwatch) -> None:
    """Write a label with the handle's epoch to both copies on every device, and read each back.

    LostRace if a label there is as new as the handle, or if the device refuses the write.
    """
    if label.epoch != handle.epoch:
        raise ValueError(f"a label of epoch {label.epoch} under a handle of epoch {handle.epoch}")
    handle.spread([partial(_stamp_one, lun, handle.epoch, label, stopwatch) for lun in handle.luns])
    handle.label = label


def _stamp_one(lun: Lun, epoch: int, label: Label, stopwatch: Stopwatch) -> None:
    found = stopwatch.time(lun.wwid, "label read", lun.labels.read)
    if found is not None and found.label.epoch >= epoch:
        raise LostRace(
            f"the label has epoch {found.label.epoch} already, mine is {epoch}",
            device=lun.wwid,
            rival=None,
        )
    first = found.next_slot if found else 0
    for slot in (first, 1 - first):
        stopwatch.time(lun.wwid, "label write", partial(write_copy, lun, label, slot))


def offer(handle: Handle, wanted: str) -> None:
    """The last thing that the maker of a volume writes: what is wanted of it, in one copy on one device.

    Whoever reads it may take the volume at once, this node too, whose writes no fence would refuse: so it is written
    once, never again, and a newer label of the same volume means that it was taken. Else the failure is raised.
    """
    if handle.label is None:
        raise ValueError("the handle has no label yet")
    lun = handle.luns[-1]
    label = replace(handle.label.on(lun.wwid), wanted=wanted, seq=handle.label.seq + 1)
    failure: PortError | None = None
    found = lun.labels.read()
    try:
        lun.labels.write(label, found.next_slot if found else 0)
    except (NotDelivered, OutcomeUnknown, Refused) as error:
        failure = error
    found = lun.labels.read()
    if found is None or not _follows(found.label, label):
        raise failure or InvariantBroken("the label does not read back as it was written", device=lun.wwid)
    handle.label = label


def _follows(found: Label, label: Label) -> bool:
    """Whether a label is that one, or one that its volume got later."""
    newer = (found.epoch, found.seq) >= (label.epoch, label.seq)
    return found.volume_uuid == label.volume_uuid and newer


def _fence(
    luns: tuple[Lun, ...],
    identity: Identity,
    floor: int,
    intent: Intent,
    stopwatch: Stopwatch,
    force: bool,
    spread: Spread,
    settle: Settle | None = None,
    served: int | None = None,
) -> Handle:
    seen = _survey(luns, identity, stopwatch, force, spread)
    try:
        epoch = next_epoch(seen, cluster_tag=identity.tag, floor=floor)
    except ValueError as error:
        raise InvariantBroken(f"no epoch is left: {error}", device=luns[0].wwid) from error
    intent(epoch)
    handle = Handle(key=identity.key(epoch), luns=luns, label=None, spread=spread)
    handle.timings = stopwatch.timings
    first, *others = [Contest(lun, handle, stopwatch, force, served=served) for lun in luns]
    first.run()
    spread([contest.run for contest in others])
    for contest in (first, *others):
        handle.taken_from = tuple(sorted(contest.taken_from.union(handle.taken_from)))
        handle.doubts += tuple(contest.doubts)
    unsettled = [contest.wwid for contest in (first, *others) if not contest.ending.known]
    if unsettled:
        stopwatch.time(unsettled[0], "settle", settle or partial(_unsettled, unsettled[0]))
    return handle


def _unsettled(wwid: str) -> None:
    what = "nothing tells whether the writes of the owner before are over"
    raise OutcomeUnknown(what, device=wwid, operation="preempt")


def _survey(
    luns: Sequence[Lun], identity: Identity, stopwatch: Stopwatch, force: bool, spread: Spread
) -> frozenset[int]:
    """Look at everything before anything is changed anywhere: a set that cannot be had whole is not begun. Returns
    every key seen."""
    seen: list[int] = []

    def look(lun: Lun) -> None:
        state = stopwatch.time(lun.wwid, "read", lambda: survey_state(lun, identity, force=force))
        seen.extend(state.keys)

    spread([partial(look, lun) for lun in luns])
    return frozenset(seen)


def survey_state(lun: Lun, identity: Identity, *, force: bool = False) -> ReservationState:
    """Who is registered on a device that may be taken. DeviceBusy, SharedNexus, ForeignOwner (unless `force`),
    PortError.
    """
    busy = lun.in_use()
    if busy:
        raise DeviceBusy(f"still in use on this node: {busy}", device=lun.wwid)
    state = lun.port.read()
    refuse_shared(lun, state, identity.key(PROBE_EPOCH))
    foreign = foreign_keys(state.keys, identity.tag)
    if foreign and not force:
        raise ForeignOwner(foreign, device=lun.wwid)
    return state


class Contest:
    """One device: observe, decide (ownership.plan), act, until there is a verdict."""

    def __init__(
        self,
        lun: Lun,
        handle: Handle,
        stopwatch: Stopwatch,
        force: bool,
        limit: int | None = None,
        served: int | None = None,
    ) -> None:
        """`limit`: the highest epoch that a holder may have who is to be replaced; None = any lower than mine.
        `served`: as for `Ending`.
        """
        self.wwid = lun.wwid
        self._limit = limit
        self._lun = lun
        self._handle = handle
        self._stopwatch = stopwatch
        self._force = force
        self._entered = False
        self._tried: Counter[Action] = Counter()
        self.ending = Ending(handle.key, served)
        self.taken_from: set[int] = set()
        self.doubts: list[str] = []
        self._failure: PortError | None = None
        self._unsure_of_entry: OutcomeUnknown | None = None

    def run(self) -> None:
        while True:
            state = self._observe()
            step = plan(state, self._handle.key, entered=self._entered, force=self._force, limit=self._limit)
            match step:
                case Done():
                    return
                case Lost():
                    if step.rival is None and self._unsure_of_entry:
                        raise self._unsure_of_entry
                    raise LostRace(step.reason, device=self._lun.wwid, rival=step.rival)
                case Foreign():
                    raise ForeignOwner(step.keys, device=self._lun.wwid, detail=step.reason)
                case Register() | Reserve() | Preempt() | Unregister():
                    self._try(step, state)
                case _ as unreachable:
                    assert_never(unreachable)

    def _observe(self) -> ReservationState:
        for attempt in range(1, REPEATS_MAX + 1):
            try:
                state = self._stopwatch.time(self._lun.wwid, "read", self._lun.port.read)
            except NotDelivered:
                if attempt == REPEATS_MAX:
                    raise
            else:
                break
        mine = self._handle.key.value
        self.ending.saw(state)
        self._entered = self._entered or mine in state.keys
        self.taken_from |= set(state.keys) - {mine}
        return state

    def _try(self, step: Action, state: ReservationState) -> None:
        """Carry out one step. Its failure is not raised: what the device says next decides."""
        self._tried[step] += 1
        if self._tried[step] > REPEATS_MAX:
            raise self._failure or self._no_effect(step, state)
        self._failure = None
        try:
            self._stopwatch.time(self._lun.wwid, type(step).__name__.lower(), lambda: self._act(step, state))
        except (NotDelivered, Refused) as error:
            self._failure = error
            return
        except OutcomeUnknown as error:
            self._failure = error
            self.doubts.append(str(error))
            if isinstance(step, Register):
                self._unsure_of_entry = error
            if isinstance(step, Preempt):
                self.ending.preempted(answered=False)
        # also after an unknown outcome: a key that may have been registered must not be brought back
        self._entered = self._entered or isinstance(step, Register)

    def _act(self, step: Action, state: ReservationState) -> None:
        port, key = self._lun.port, self._handle.key.value
        match step:
            case Register():
                # whatever this nexus registered in an earlier life is replaced in one command, and if it held
                # the reservation it goes on holding it: the disk is never open in between
                if self._lun.nexus:
                    # the device compares, so that a twin of this node (nexus.py) is not replaced unseen
                    refuse_shared(self._lun, state, self._handle.key)
                    port.register(own_key(state, self._lun.nexus), key)
                else:
                    port.register(0, key, ignore_existing=True)
            case Reserve():
                port.reserve(key, OUR_TYPE)
            case Preempt():
                port.preempt(key, step.victim, OUR_TYPE, abort=True)
            case Unregister():
                port.register(key, 0)
            case _ as unreachable:
                assert_never(unreachable)

    def _no_effect(self, step: Action, state: ReservationState) -> NoEffect:
        return NoEffect(
            f"reported success {REPEATS_MAX} times and did nothing: {state.describe()}",
            device=self._lun.port.device,
            operation=type(step).__name__.lower(),
            own_key=self._handle.key.value,
            generation=state.generation,
        )
