"""Claiming a witness LUN: an acquisition that is a compare-and-swap.

Theory. `acquire` takes a volume from whoever owns it: the higher epoch wins. A claim may not: it succeeds only on a
device whose epoch is not beyond the one expected, and of two claims that start from the same epoch one succeeds. What
is compared and swapped is the holder of the reservation: PREEMPT names the key that it replaces, RESERVE succeeds only
while there is none, and the holder's own REGISTER keeps the reservation; so between a claim's look at the device and
its step there is no room for another claim. The label follows, so that a device that lost its reservations (a target
without APTPL) still shows the newest claim.

1. `survey` every LUN: the newest claim on it (label, holder), whose it is.
2. One new epoch for all, beyond every epoch seen, durable in this node's record before a device hears of it.
3. `take` one after the other. A claim has won with more than half of them (`tally`).

A claim that was beaten on a device holds nothing there. One that was beaten on most and won some leaves those as they
are: their new epoch names its owner, whose word the others need before they expect it.

The functions block, each on one device; `hactl/witness.py` puts them on threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fencing.acquisition import Contest, survey_state
from fencing.errors import LabelError, LostRace
from fencing.handle import Handle, write_copy
from fencing.label import BLANK, WRONG_CLUSTER, WRONG_SET, Label
from fencing.model import OUR_TYPE, Identity, Key, ReservationState
from fencing.port import Lun
from fencing.timing import Clock, Stopwatch

WITNESS_FS = "witness"
"""What the label of a witness LUN says instead of a file system."""
NOBODY = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The newest claim on one LUN: its epoch, and the number of the node that owns it, NOBODY after formatting."""

    epoch: int
    owner: int
    highest: int
    """The highest epoch of any key or label there: a new one must be beyond it."""
    label: Label


Outcome = Literal["won", "lost", "unknown"]


def is_witness(label: Label) -> bool:
    """Is this the label of a witness LUN, and not of a volume?"""
    return label.fstype == WITNESS_FS


def survey(lun: Lun, identity: Identity, numbers: Mapping[str, int]) -> Standing:
    """Who claimed this LUN last. `numbers`: node name -> number. Changes nothing.

    LabelError if it is no witness of this cluster; DeviceBusy, ForeignOwner, PortError as `acquire`."""
    found = lun.labels.read()
    state = survey_state(lun, identity)
    label = None if found is None else found.label
    if label is None or not is_witness(label):
        what = "there is no label on it" if label is None else f"it is volume {label.volume}"
        raise LabelError(what, device=lun.wwid, kind=BLANK, next_action="make it one: hactl witness add")
    if label.cluster_uuid != identity.cluster_uuid:
        raise LabelError(
            f'it belongs to cluster "{label.cluster_name}"',
            device=lun.wwid,
            kind=WRONG_CLUSTER,
            next_action="check that this node should see that disk",
        )
    return _standing(lun, state, label, identity, numbers)


def _standing(
    lun: Lun, state: ReservationState, label: Label, identity: Identity, numbers: Mapping[str, int]
) -> Standing:
    ours = [key for key in map(Key.parse, state.keys) if key.belongs_to(identity.tag)]
    highest = max([label.epoch, *(key.epoch for key in ours)])
    holders = [key for key in ours if key.value in state.holders]
    if holders and holders[0].epoch > label.epoch:
        return Standing(epoch=holders[0].epoch, owner=holders[0].node, highest=highest, label=label)
    if not label.owner:
        return Standing(epoch=label.epoch, owner=NOBODY, highest=highest, label=label)
    if label.owner not in numbers:
        raise LabelError(
            f"node {label.owner}, which is not configured, claimed it last",
            device=lun.wwid,
            kind=WRONG_SET,
            next_action="when that node is surely off: hactl witness add --force",
        )
    return Standing(epoch=label.epoch, owner=numbers[label.owner], highest=highest, label=label)


def may_take(standing: Standing, expected: int | None, me: int, *, forced: bool) -> bool:
    """The comparison. None: nothing is expected of this LUN."""
    return forced or standing.owner == me or (expected is not None and standing.epoch <= expected)


def take(lun: Lun, standing: Standing, identity: Identity, epoch: int, clock: Clock) -> None:
    """Swap: from `standing`, which `may_take` allowed, to the key of `epoch`, which is durable in this node's record.

    LostRace: another claim was first. PortError: what became of it is read back as far as the device answers, and it
    is not this node's. Afterwards it can be called again with what `survey` says then."""
    stopwatch = Stopwatch(clock)
    handle = Handle(key=identity.key(epoch), luns=(lun,), label=None)
    Contest(lun, handle, stopwatch, force=False, limit=standing.epoch).run()
    label = replace(standing.label, epoch=epoch, owner=identity.node_name, seq=standing.label.seq + 1)
    found = lun.labels.read()
    if found is not None and found.label.epoch > standing.epoch:
        raise LostRace(
            f"its label has epoch {found.label.epoch} already, expected was {standing.epoch}",
            device=lun.wwid,
            rival=None,
        )
    first = found.next_slot if found else 0
    for slot in (first, 1 - first):
        write_copy(lun, label, slot)
    if not holds(lun.port.read(), handle.key):
        raise LostRace("taken away while it was claimed", device=lun.wwid, rival=None)


def holds(state: ReservationState, key: Key) -> bool:
    """Does a claim of that key stand on this device? It never comes back once it does not."""
    return state.type is OUR_TYPE and key.value in state.keys and state.holders == (key.value,)


def tally(luns: int, *, taken: int, beaten: int) -> Outcome:
    """What a claim on `luns` LUNs came to."""
    if 2 * taken > luns:
        return "won"
    return "lost" if 2 * beaten > luns else "unknown"
