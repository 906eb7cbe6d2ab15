"""Acquiring a volume: fence its owner on every device, then write the new epoch into the labels.

Theory. The key of an acquisition is new: its epoch is higher than every epoch known, and is durable in this
node's record before the key first reaches a device. Devices are taken in the order of their WWIDs, so that
contenders meet on the first one, and only its winner touches the next. Whoever finds itself beaten leaves the
devices that it holds as they are: reserved against every older owner, until the winner comes to them.

The labels follow after the fence, and only then. Devices refuse the label writes of everybody but the owner;
an owner that finds its own epoch or a later one there was too slow, and lost.

Nothing here remembers an earlier attempt but the epoch: an attempt that ended anywhere is taken up by simply
acquiring again, on any node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import assert_never

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
from fencing.label import Label, common_label
from fencing.model import OUR_TYPE, Identity, ReservationState
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
from fencing.timing import Clock, Stopwatch

Intent = Callable[[int], None]


def acquire(
    luns: Sequence[Lun], identity: Identity, *, floor: int, intent: Intent, clock: Clock, force: bool = False
) -> Handle:
    """Take a volume that has a label, over all its devices or not at all.

    `floor` is the highest epoch in this node's durable record. `intent(epoch)` makes the new one durable
    there, and is called before any device is changed. Raises LabelError, DeviceBusy, ForeignOwner (unless
    `force`) before anything is changed; LostRace, PortError, InvariantBroken also later. After any of them it
    can be called again.
    """
    ordered, stopwatch = in_order(luns), Stopwatch(clock)
    found = {lun.wwid: stopwatch.time(lun.wwid, "label read", lun.labels.read) for lun in ordered}
    label = common_label(found, identity)
    handle = _fence(ordered, identity, max(floor, label.epoch), intent, stopwatch, force)
    stamp(
        handle,
        replace(label, epoch=handle.epoch, owner=identity.node_name, seq=label.seq + 1),
        stopwatch=stopwatch,
    )
    must_be_good(handle)
    return handle


def fence(
    luns: Sequence[Lun], identity: Identity, *, floor: int, intent: Intent, clock: Clock, force: bool = False
) -> Handle:
    """As `acquire`, for devices whose labels do not count (yet): only the fence."""
    return _fence(in_order(luns), identity, floor, intent, Stopwatch(clock), force)


def stamp(handle: Handle, label: Label, *, stopwatch: Stopwatch) -> None:
    """Write a label with the handle's epoch to both copies on every device, and read each back.

    LostRace if a label there is as new as the handle, or if the device refuses the write.
    """
    if label.epoch != handle.epoch:
        raise ValueError(f"a label of epoch {label.epoch} under a handle of epoch {handle.epoch}")
    for lun in handle.luns:
        found = stopwatch.time(lun.wwid, "label read", lun.labels.read)
        if found is not None and found.label.epoch >= handle.epoch:
            raise LostRace(
                f"the label has epoch {found.label.epoch} already, mine is {handle.epoch}",
                device=lun.wwid,
                rival=None,
            )
        first = found.next_slot if found else 0
        for slot in (first, 1 - first):
            stopwatch.time(lun.wwid, "label write", partial(write_copy, lun, label, slot))
    handle.label = label


def _fence(
    luns: tuple[Lun, ...], identity: Identity, floor: int, intent: Intent, stopwatch: Stopwatch, force: bool
) -> Handle:
    states = [_survey(lun, identity, stopwatch, force) for lun in luns]
    seen = {key for state in states for key in state.keys}
    try:
        epoch = next_epoch(seen, cluster_tag=identity.tag, floor=floor)
    except ValueError as error:
        raise InvariantBroken(f"no epoch is left: {error}", device=luns[0].wwid) from error
    intent(epoch)
    handle = Handle(key=identity.key(epoch), luns=luns, label=None)
    handle.timings = stopwatch.timings
    for lun in luns:
        Contest(lun, handle, stopwatch, force).run()
    return handle


def _survey(lun: Lun, identity: Identity, stopwatch: Stopwatch, force: bool) -> ReservationState:
    """Look at everything before anything is changed anywhere: a set that cannot be had whole is not begun."""
    return stopwatch.time(lun.wwid, "read", lambda: survey_state(lun, identity, force=force))


def survey_state(lun: Lun, identity: Identity, *, force: bool = False) -> ReservationState:
    """Who is registered on a device that may be taken. DeviceBusy, ForeignOwner (unless `force`), PortError."""
    busy = lun.in_use()
    if busy:
        raise DeviceBusy(f"still in use on this node: {busy}", device=lun.wwid)
    state = lun.port.read()
    foreign = foreign_keys(state.keys, identity.tag)
    if foreign and not force:
        raise ForeignOwner(foreign, device=lun.wwid)
    return state


class Contest:
    """One device: observe, decide (ownership.plan), act, until there is a verdict."""

    def __init__(self, lun: Lun, handle: Handle, stopwatch: Stopwatch, force: bool, limit: int | None = None) -> None:
        """`limit`: the highest epoch that a holder may have who is to be replaced; None = any lower than mine."""
        self._limit = limit
        self._lun = lun
        self._handle = handle
        self._stopwatch = stopwatch
        self._force = force
        self._entered = False
        self._tried: Counter[Action] = Counter()
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
        self._entered = self._entered or mine in state.keys
        others = set(state.keys) - {mine}
        self._handle.taken_from = tuple(sorted(others.union(self._handle.taken_from)))
        return state

    def _try(self, step: Action, state: ReservationState) -> None:
        """Carry out one step. Its failure is not raised: what the device says next decides."""
        self._tried[step] += 1
        if self._tried[step] > REPEATS_MAX:
            raise self._failure or self._no_effect(step, state)
        self._failure = None
        try:
            self._stopwatch.time(self._lun.wwid, type(step).__name__.lower(), lambda: self._act(step))
        except (NotDelivered, Refused) as error:
            self._failure = error
            return
        except OutcomeUnknown as error:
            self._failure = error
            self._handle.doubts += (str(error),)
            if isinstance(step, Register):
                self._unsure_of_entry = error
        # also after an unknown outcome: a key that may have been registered must not be brought back
        self._entered = self._entered or isinstance(step, Register)

    def _act(self, step: Action) -> None:
        port, key = self._lun.port, self._handle.key.value
        match step:
            case Register():
                # whatever this nexus registered in an earlier life is replaced in one command, and if it held
                # the reservation it goes on holding it: the disk is never open in between
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
