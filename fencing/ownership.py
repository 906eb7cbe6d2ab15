"""Who may own one device, and what to do next to own it: decided from what the device says now, one step at a
time.

Theory. The device arbitrates: PREEMPT of the old holder and RESERVE each succeed for one contender only.
Epochs give the order: a right with a higher epoch beats a lower one, whoever was first. So two rules suffice
for "at most one":

1. A step never touches a registration of a higher epoch, nor the holder of an equal one.
2. `Done` only if the device itself says: one key registered, mine, holding, with the one type that we use.

A plan has no memory but `entered` (this attempt registered its key before). It is computed anew after every
step, so that a step that was lost, doubled or carried out unnoticed changes nothing: what is observed
decides.

A loser unregisters, but never while it holds the reservation: that would open the disk to the writes of every
owner before it. It stays, unserved, until the winner preempts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fencing.model import OUR_TYPE, Key, ReservationState

ALL_OTHERS = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Put the wanted key on this nexus, over whatever key it has from before. `intent` must be durable
    BEFORE.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Take the reservation that nobody holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """Drop the victim and what it has in flight; with it the reservation, if it was the holder."""

    victim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unregister:
    """Take the wanted key back: this attempt lost, and holds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The device is written by nobody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Another right is newer or was first; `rival` is its key, None if it is not to be seen any more."""

    rival: int | None
    reason: str
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """Keys or a kind of reservation that this cluster does not make."""

    keys: tuple[int, ...]
    reason: str


Action = Register | Reserve | Preempt | Unregister
Verdict = Done | Lost | Foreign
Step = Action | Verdict


def plan(
    observed: ReservationState, wanted: Key, *, entered: bool, force: bool = False, limit: int | None = None
) -> Step:
    """The next step towards owning the device with the key `wanted`, whose epoch this node never used before.

    `entered`: this attempt already registered `wanted`; if it is gone then, somebody removed it, and it must
    not come back. `force` treats foreign registrations like old ones. `limit` is the highest epoch that a holder
    may have who is to be replaced (`claim.py`); None = any lower than the wanted one.
    """
    registered = wanted.value in observed.keys
    holding = wanted.value in observed.holders
    strange = _headless(observed) or (None if force else _foreign(observed, wanted))
    verdict = strange or _outranked(observed, wanted, limit)
    if verdict is not None:
        return Unregister() if registered and not holding else verdict
    if not registered:
        return Lost(rival=None, reason="my registration was removed") if entered else Register()
    if observed.type is None:
        return Reserve()
    if observed.type.all_registrants:
        return Preempt(victim=ALL_OTHERS)
    others = [key for key in observed.keys if key != wanted.value]
    if not holding:
        return Preempt(victim=observed.holders[0])
    if others:
        return Preempt(victim=others[0])
    if not observed.exclusive_to(wanted.value):
        return Lost(rival=None, reason=f"I hold a reservation of type {observed.type.name}")
    return Done()


def foreign_keys(keys: Iterable[int], cluster_tag: int) -> tuple[int, ...]:
    """Those keys that no node of this cluster made."""
    return tuple(key for key in keys if not Key.parse(key).belongs_to(cluster_tag))


def next_epoch(seen: Iterable[int], *, cluster_tag: int, floor: int) -> int:
    """One more than every epoch known: `floor` (labels, this node's record), and our keys on the devices.

    ValueError when the 32 bits are used up.
    """
    ours = (key for key in map(Key.parse, seen) if key.belongs_to(cluster_tag))
    epoch = max([floor, *(key.epoch for key in ours)]) + 1
    Key(cluster_tag=cluster_tag, node=1, epoch=epoch)
    return epoch


def _foreign(observed: ReservationState, wanted: Key) -> Foreign | None:
    keys = foreign_keys(observed.keys, wanted.cluster_tag)
    if keys:
        return Foreign(keys=keys, reason="keys that this cluster did not make")
    if observed.type is not None and observed.type is not OUR_TYPE:
        return Foreign(keys=observed.holders, reason=f"a reservation of type {observed.type.name}")
    return None


def _headless(observed: ReservationState) -> Foreign | None:
    if observed.type is not None and not observed.holders:
        return Foreign(keys=(), reason="a reservation without a registered holder, which no command can take over")
    return None


def _outranked(observed: ReservationState, wanted: Key, limit: int | None) -> Lost | None:
    for value in observed.keys:
        key = Key.parse(value)
        if value == wanted.value or not key.belongs_to(wanted.cluster_tag):
            continue
        if limit is not None:
            # among claims the holder was first, and one that is only registered is nothing yet
            if key.epoch > limit and value in observed.holders:
                return Lost(rival=value, reason=f"node {key.node} claimed it with epoch {key.epoch}, beyond {limit}")
            continue
        if key.epoch > wanted.epoch:
            return Lost(rival=value, reason=f"epoch {key.epoch} of node {key.node} is newer")
        if key.epoch == wanted.epoch and value in observed.holders:
            return Lost(rival=value, reason=f"node {key.node} was first with the same epoch")
    return None
