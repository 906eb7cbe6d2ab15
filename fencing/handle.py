"""The right to write a volume over all its devices: what it is, whether it is still good, how it ends.

A handle is one key, registered for one acquisition (acquisition.py) and never again. Echo's rule: at most one
is good, and a bad one never becomes good again. The devices keep the first half; the second half is the
epoch, new each time.

All functions block, and belong on the volume's worker thread. Ports and label stores come in with the LUNs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fencing.errors import (
    InvariantBroken,
    LostRace,
    NoEffect,
    NotDelivered,
    OutcomeUnknown,
    PortError,
    Refused,
)
from fencing.label import FoundLabel, Label, common_label
from fencing.model import OUR_TYPE, Identity, Key, ReservationState
from fencing.ownership import Lost
from fencing.port import Lun
from fencing.spread import Spread, in_turn
from fencing.timing import Timing

REPEATS_MAX = 3
"""So often is one step tried on a device; a step that is still wanted then cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """Every device of the set says that this handle's key holds it.

    `strangers` are other keys found registered: they may write, too, and the next acquisition drops them.
    """

    generations: tuple[int, ...]
    strangers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """No device has this handle's key any more."""


class Handle:
    """The right to write a volume, from one acquisition. Good once: one that was found lost stays lost.

    `timings` is how long each step of the acquisition took; `taken_from` are the keys that it found and
    dropped; `doubts` are commands whose outcome the device did not tell (reading back did). `spread` runs what is
    done to all devices.
    """

    __slots__ = ("doubts", "key", "label", "lost", "luns", "spread", "taken_from", "timings")

    def __init__(self, *, key: Key, luns: tuple[Lun, ...], label: Label | None, spread: Spread = in_turn) -> None:
        self.key = key
        self.luns = luns
        self.label = label
        self.spread = spread
        self.lost: Lost | None = None
        self.timings: list[Timing] = []
        self.taken_from: tuple[int, ...] = ()
        self.doubts: tuple[str, ...] = ()

    @property
    def epoch(self) -> int:
        return self.key.epoch

    def __repr__(self) -> str:
        return f"Handle({self.key} on {', '.join(lun.wwid for lun in self.luns)}{', lost' if self.lost else ''})"


def verify(handle: Handle) -> Good | Lost:
    """One cheap read per device. PortError: a device was silent, and none said that the handle is lost."""
    if handle.lost:
        return handle.lost
    silent: list[PortError] = []
    generations: dict[str, int] = {}
    strangers: set[int] = set()
    losses: dict[str, Lost] = {}

    def look(lun: Lun) -> None:
        try:
            state = lun.port.read()
        except PortError as error:
            silent.append(error)
            return
        generations[lun.wwid] = state.generation
        strangers.update(key for key in state.keys if key != handle.key.value)
        loss = _loss(lun, state, handle.key)
        if loss is not None:
            losses[lun.wwid] = loss

    handle.spread([partial(look, lun) for lun in handle.luns])
    if losses:
        handle.lost = losses[min(losses)]
        return handle.lost
    if silent:
        raise silent[0]
    return Good(generations=tuple(generations[lun.wwid] for lun in handle.luns), strangers=tuple(sorted(strangers)))


def must_be_good(handle: Handle) -> None:
    """`verify` for those who cannot go on without: LostRace instead of Lost."""
    verdict = verify(handle)
    if isinstance(verdict, Lost):
        raise LostRace(verdict.reason, device=verdict.device, rival=verdict.rival)


def adopt(luns: Sequence[Lun], identity: Identity, key: Key, spread: Spread = in_turn) -> Handle:
    """The handle that this node already holds, from its record of this boot (a restarted daemon). Changes
    nothing.

    LostRace if a device or a label says otherwise.
    """
    if not key.belongs_to(identity.tag) or key.node != identity.node:
        raise ValueError(f"{key} is not a key of this node")
    ordered = in_order(luns)
    found: dict[str, FoundLabel | None] = {}
    spread([partial(_read_label, lun, found) for lun in ordered])
    label = common_label({lun.wwid: found[lun.wwid] for lun in ordered}, identity)
    if label.epoch != key.epoch or label.owner != identity.node_name:
        raise LostRace(
            f'the label names "{label.owner}" with epoch {label.epoch} as owner',
            device=ordered[0].wwid,
            rival=None,
        )
    handle = Handle(key=key, luns=ordered, label=label, spread=spread)
    must_be_good(handle)
    return handle


def update_label(handle: Handle, change: Callable[[Label], Label]) -> Label:
    """Change what the volume knows of itself, as its owner. Epoch, owner and seq are not the caller's to
    change.

    LostRace if the handle is lost; nothing is written then.
    """
    label = _label_of(handle)
    changed = replace(change(label), epoch=label.epoch, owner=label.owner, seq=label.seq + 1)
    _rewrite(handle, changed)
    return changed


def release(handle: Handle) -> Released | Lost:
    """Give the volume up without a successor. The caller has unmounted it and will not write again.

    After this the devices accept writes from anybody, also those that a host frozen long ago still has
    queued: fit for a volume that is being removed. A volume that is only stopped is safer left owned.
    """
    verdict = verify(handle)
    if isinstance(verdict, Lost):
        return verdict
    if handle.label is not None:
        _rewrite(handle, replace(handle.label, owner="", seq=handle.label.seq + 1))
    # the first device last: until then no node that comes meanwhile goes on to one that is still being given up
    handle.spread([partial(_give_up, lun, handle.key) for lun in reversed(handle.luns[1:])])
    _give_up(handle.luns[0], handle.key)
    handle.lost = Lost(rival=None, reason="released")
    return Released()


def in_order(luns: Sequence[Lun]) -> tuple[Lun, ...]:
    """By WWID: the same order on every node, so that contenders meet on the first device."""
    ordered = tuple(sorted(luns, key=lambda lun: lun.wwid))
    if not ordered or len({lun.wwid for lun in ordered}) < len(ordered):
        raise ValueError("a volume has one LUN at least, and each only once")
    return ordered


def write_copy(lun: Lun, label: Label, slot: int) -> None:
    """Write one copy until reading back shows it. Again is harmless: only the owner can write there."""
    label = label.on(lun.wwid)
    failure: PortError | None = None
    for _ in range(REPEATS_MAX):
        try:
            lun.labels.write(label, slot)
        except Refused as error:
            raise LostRace(f"it refuses my label: {error.what}", device=lun.wwid, rival=None) from error
        except (NotDelivered, OutcomeUnknown) as error:
            failure = error
        found = lun.labels.read()
        if found is not None and found.copies[slot] == label:
            return
    raise failure or InvariantBroken("the label does not read back as it was written", device=lun.wwid)


def _loss(lun: Lun, state: ReservationState, key: Key) -> Lost | None:
    rival = next((holder for holder in state.holders if holder != key.value), None)
    if not state.registrants:
        forgot = "nor is anybody's: the device forgot everything (a power loss?), or it was cleared"
        return Lost(rival=None, reason=f"my key is not registered any more, {forgot}", device=lun.wwid)
    if key.value not in state.keys:
        return Lost(rival=rival, reason="my key is not registered any more", device=lun.wwid)
    if key.value not in state.holders:
        return Lost(rival=rival, reason="my key does not hold the reservation any more", device=lun.wwid)
    if state.type is not OUR_TYPE:
        return Lost(rival=None, reason=f"the reservation became {state.describe()}", device=lun.wwid)
    return None


def _label_of(handle: Handle) -> Label:
    if handle.label is None:
        raise ValueError("the handle has no label yet")
    return handle.label


def _rewrite(handle: Handle, label: Label) -> None:
    """One copy on each device: the other keeps what was before, of the same epoch."""
    must_be_good(handle)
    handle.spread([partial(_rewrite_one, lun, handle, label) for lun in handle.luns])
    handle.label = label


def _rewrite_one(lun: Lun, handle: Handle, label: Label) -> None:
    write_copy(lun, label, _own_label(lun, handle).next_slot)


def _read_label(lun: Lun, found: dict[str, FoundLabel | None]) -> None:
    found[lun.wwid] = lun.labels.read()


def _own_label(lun: Lun, handle: Handle) -> FoundLabel:
    found = lun.labels.read()
    if found is None or found.label.epoch != handle.epoch:
        raise InvariantBroken("the label changed under its owner", device=lun.wwid)
    return found


def _give_up(lun: Lun, key: Key) -> None:
    """Release and unregister, until the key is gone. Reading back decides, so an unknown outcome is no
    matter.
    """
    failure: PortError | None = None
    for _ in range(REPEATS_MAX):
        if key.value not in lun.port.read().keys:
            return
        try:
            lun.port.release(key.value, OUR_TYPE)
            lun.port.register(key.value, 0)
        except (NotDelivered, Refused, OutcomeUnknown) as error:
            failure = error
    if key.value in lun.port.read().keys:
        raise failure or NoEffect(
            "reported success and kept the registration",
            device=lun.port.device,
            operation="unregister",
            own_key=key.value,
        )
