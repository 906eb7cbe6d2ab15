"""The disk: never two holders, epochs that only grow, no write of an old owner after its fence. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from hwlab.history import (
    REGISTRANTS_MAY_WRITE,
    DiskWrite,
    Epoch,
    History,
    Reservation,
    StampSeen,
    key_epoch,
    key_node,
)
from hwlab.reason import Reason, invalid, unknown
from hwlab.stamps import BLOCK, STAMP_BASE

STAMP_READ_MS_MAX = 1000.0
LABEL_OFFSETS = (1 << 20, (1 << 20) + (64 << 10))
"""Of the two copies, as in witness.py."""
BLOCKS_PER_NODE = 16
"""As in latewriter.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """One time that a node's keys left a device: the change lies between `since_ms` and `at_ms`."""

    device: str
    node: int
    epoch: int
    """Of the key that left."""
    since_ms: float
    at_ms: float
    back_ms: float
    """When it registered again (infinity: never): from then on it may be a new, lawful owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    late: int
    refused: int
    blind_ms: float | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    holders_max: int
    registrants_max: int
    overlap_ms: float
    epochs: tuple[int, int] | None
    reasons: tuple[Reason, ...]


def by_device(reservations: Sequence[Reservation]) -> dict[str, list[Reservation]]:
    devices: dict[str, list[Reservation]] = {}
    for state in sorted(reservations, key=lambda state: state.at_ms):
        devices.setdefault(state.device, []).append(state)
    return devices


def judge_holders(history: History) -> Holders:
    """Never two holders, over all states that the target showed; epochs of holders and labels only grow."""
    holders_max = registrants_max = 0
    overlap_ms = 0.0
    reasons: list[Reason] = []
    epochs: list[int] = []
    for device, states in by_device(history.reservations).items():
        its_labels = [epoch for epoch in history.epochs if epoch.device == device]
        counts, doubtful = (count_holders(states, its_labels, doubtful=each) for each in (False, True))
        holders_max = max(holders_max, *counts)
        registrants_max = max(registrants_max, *(len(state.nodes()) for state in states))
        overlap_ms += sum(
            after.at_ms - before.since_ms for before, after in pairwise(states) if len(before.nodes()) > 1
        )
        if max(counts) > 1:
            reasons.append(invalid(f"{device} had {max(counts)} holders at a time"))
        elif max(doubtful) > 1:
            told = "a former holder may have been registered still when the new one wrote its label"
            reasons.append(unknown(f"{device}: {told}: between two looks of the witness, nobody knows"))
        held = [key_epoch(state.holder) for state in states if state.holder]
        epochs += held
        labels = [epoch.epoch for epoch in history.epochs if epoch.device == device]
        if not_growing(held):
            reasons.append(invalid(f"{device}: the holder's epoch went back"))
        if not_growing(labels):
            reasons.append(invalid(f"{device}: the label's epoch went back"))
    return Holders(
        holders_max=holders_max,
        registrants_max=registrants_max,
        overlap_ms=overlap_ms,
        epochs=(epochs[0], epochs[-1]) if epochs else None,
        reasons=tuple(reasons),
    )


def count_holders(states: Sequence[Reservation], labels: Sequence[Epoch] = (), *, doubtful: bool = False) -> list[int]:
    """Holders in each state of one device: who has the reservation, and who had it and may still write; `doubtful`:
    also who may have been able to.

    With a type that lets registrants write, a former holder whose key is still there after another node got
    the reservation is a holder in all but name, once that node writes: the label is its first write. nvmet changes
    holder and registrants one after the other, and shows the state between to whoever asks just then.
    """
    former: set[int] = set()
    counts = []
    for state, following in zip(states, [*states[1:], None], strict=True):
        former &= set(state.registrants)
        now = {state.holder} if state.holder else set()
        together = lasted_until_its_label(state, following, labels)
        if state.type in REGISTRANTS_MAY_WRITE and (doubtful if together is None else together):
            now |= former
        former |= {state.holder} if state.holder else set()
        counts.append(len({key_node(key) for key in now}))
    return counts


def lasted_until_its_label(state: Reservation, following: Reservation | None, labels: Sequence[Epoch]) -> bool | None:
    """Whether a state was still so when its holder's first label was on the disk. None: it ended, and the label came,
    between the same two looks of the witness. A state that did not end, or a holder without a label: it was."""
    if following is None or state.holder is None:
        return True
    first_ms = next((label.at_ms for label in labels if label.epoch >= key_epoch(state.holder)), None)
    if first_ms is None or first_ms <= following.since_ms:
        return True
    return False if following.at_ms < first_ms else None


def not_growing(numbers: Sequence[int]) -> bool:
    return any(after < before for before, after in pairwise(numbers))


def departures(reservations: Sequence[Reservation]) -> list[Fenced]:
    """Each time that a node which held a device ceased to be registered on it."""
    found = []
    for device, states in by_device(reservations).items():
        held: set[int] = set()
        for index, (before, after) in enumerate(pairwise(states), start=1):
            held |= {key_node(before.holder)} if before.holder else set()
            for node in sorted((before.nodes() - after.nodes()) & held):
                back = next((s.since_ms for s in states[index + 1 :] if node in s.nodes()), float("inf"))
                epoch = max(key_epoch(key) for key in before.registrants if key_node(key) == node)
                found.append(
                    Fenced(
                        device=device,
                        node=node,
                        epoch=epoch,
                        since_ms=after.since_ms,
                        at_ms=after.at_ms,
                        back_ms=back,
                    )
                )
    return found


def judge_late_writes(history: History) -> Late:
    """Writes of an old owner that landed after its key had left the disk.

    No clock decides here. The witness reads the stamps right after it saw the key gone, and again until the label
    names a newer epoch; the writer counts up, one write at a time. The key leaves the target's table at the start of
    PREEMPT AND ABORT; the command ends once the writes that were already under way are done, and the new owner's
    first own write, the label, comes after that. So the last reading that was followed by a label of the old epoch
    shows what landed in time, and a higher number, on the disk at any later moment or reported as written by the
    writer, is late. What landed between the fence itself and that reading cannot be told apart: `blind_ms` is the
    longest such interval. Nor can what landed between that reading and the next one, in which the label came, unless
    the target's kernel noted the order (writeorder.py): else that is unknown. A node with several blocks
    (latewriter.py) is judged block by block.
    """
    found = [
        judge_block(history, fenced, block)
        for fenced in departures(history.reservations)
        for block in blocks_of(history, fenced)
    ]
    late, refused = sum(each.late for each in found), sum(each.refused for each in found)
    reasons = [reason for each in found for reason in each.reasons]
    shown = {stamp.node for stamp in history.stamps_seen if stamp.n > 0}
    for block in sorted({write.node for write in history.stamp_writes} - shown):
        if owner_of(block) == block:
            reasons.append(unknown(f"the target's disk never showed a stamp of {history.nodes.get(block, block)}"))
    if history.wanted.old_owner_must_try and not late:
        if not refused:
            reasons.append(unknown("no write of the old owner was refused after the fence: lateness was not tested"))
        untried = {write.node for write in history.stamp_writes if owner_of(write.node) != write.node}
        untried -= {each.block for each in found if each.refused}
        if untried:
            blocks = ", ".join(map(str, sorted(untried)))
            reasons.append(
                unknown(f"no write to block {blocks} was refused after the fence: that stage was not tested")
            )
    blind = [each.blind_ms for each in found if each.blind_ms is not None]
    return Late(late=late, refused=refused, blind_ms=max(blind, default=None), reasons=tuple(reasons))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of the stamp area at one fence."""

    block: int
    late: int = 0
    refused: int = 0
    blind_ms: float | None = None
    reasons: tuple[Reason, ...] = ()


def owner_of(block: int) -> int:
    """The node that writes a block: blocks below 16 are the nodes' own, then each has 16 more (latewriter.py)."""
    return block if block < BLOCKS_PER_NODE else block // BLOCKS_PER_NODE


def blocks_of(history: History, fenced: Fenced) -> list[int]:
    """The blocks of a node that it wrote to on this device: with several, its stamper writes to one."""
    seen = {stamp.node for stamp in history.stamps_seen if stamp.device == fenced.device and stamp.n > 0}
    written = {write.node for write in history.stamp_writes if owner_of(write.node) != write.node}
    here = {stamp.node for stamp in history.stamps_seen if stamp.device == fenced.device}
    return sorted(block for block in seen | (written & here) if owner_of(block) == fenced.node)


def judge_block(history: History, fenced: Fenced, block: int) -> Block:
    name = history.nodes.get(fenced.node, str(fenced.node))
    seen = sorted(stamps_of(history.stamps_seen, fenced, block), key=lambda stamp: stamp.at_ms)
    if not seen or seen[0].at_ms - fenced.at_ms > STAMP_READ_MS_MAX:
        what = f"{name}'s stamps were not read when its key had left {fenced.device}"
        return Block(block=block, reasons=(unknown(what),))
    base = last_in_time(history, fenced, seen)
    told = first_after_label(fenced, seen, base)
    landed = landed_after(history, fenced, block, seen, told.n)
    order = order_of(history, fenced, block) if told.n > base.n else Order.UNTOLD
    reasons = []
    told_late = f"{len(landed)} writes of {name} landed on {fenced.device} after its key had left it"
    if landed and not somebody_went_on(history, fenced):
        reasons.append(unknown(f"{told_late}, but nobody went on: PREEMPT AND ABORT may have been waiting for them"))
        landed = set()
    if landed:
        reasons.append(invalid(told_late))
    if order is Order.LATE:
        reasons.append(invalid(f"a write of {name} to block {block} of {fenced.device} was done after the new label"))
        landed.add(told.n)
    if told.n > base.n and order is Order.UNTOLD:
        where = f"block {block} of {fenced.device} within the {told.at_ms - base.at_ms:.0f} ms in which the label came"
        reasons.append(unknown(f"a write of {name} landed on {where}: in time or late, nobody knows"))
    return Block(
        block=block,
        late=len(landed),
        refused=refused_after(history, fenced, block, told.n),
        blind_ms=told.at_ms - fenced.since_ms,
        reasons=tuple(reasons),
    )


class Order(Enum):
    """Of an old owner's write and the new owner's label, by the target's kernel."""

    IN_TIME = "done before the label was begun"
    LATE = "done after it was begun"
    UNTOLD = "not noted"


def order_of(history: History, fenced: Fenced, block: int) -> Order:
    """Since its key left the device: the command that took it ends before the new owner begins to write its label, and
    not before the device has done what it had of the old one."""
    noted = [each for each in history.disk_writes if each.device == fenced.device and each.at_ms > fenced.since_ms]
    begun = [n for n, each in enumerate(noted) if not each.done and touches_label(each)]
    done = [n for n, each in enumerate(noted) if each.done and each.touches(STAMP_BASE + block * BLOCK, BLOCK)]
    if not begun or not done:
        return Order.UNTOLD
    return Order.LATE if done[-1] > begun[0] else Order.IN_TIME


def touches_label(write: DiskWrite) -> bool:
    return any(write.touches(offset, BLOCK) for offset in LABEL_OFFSETS)


def somebody_went_on(history: History, fenced: Fenced) -> bool:
    """A fence that never ended hurts nobody: no new label, nothing that a client asked for after it and was given."""
    given = (write.submit_ms > fenced.at_ms and not write.error for write in history.writes or ())
    return labelled_anew(history, fenced) or any(given)


def labelled_anew(history: History, fenced: Fenced) -> bool:
    return any(label.device == fenced.device and label.epoch > fenced.epoch for label in history.epochs)


def stamps_of(stamps: Sequence[StampSeen], fenced: Fenced, block: int) -> list[StampSeen]:
    """What the disk showed of a block while its node was not registered."""
    return [
        stamp
        for stamp in stamps
        if stamp.node == block and stamp.device == fenced.device and fenced.at_ms <= stamp.at_ms < fenced.back_ms
    ]


def last_in_time(history: History, fenced: Fenced, seen: Sequence[StampSeen]) -> StampSeen:
    """The last reading after which the label was still the old owner's; the first of all if no newer label came."""
    last = seen[0]
    if not labelled_anew(history, fenced):
        return last
    for stamp in seen:
        if stamp.epoch_after is None or stamp.epoch_after > fenced.epoch:
            break
        last = stamp
    return last


def first_after_label(fenced: Fenced, seen: Sequence[StampSeen], base: StampSeen) -> StampSeen:
    """The first reading that surely began after the new label came, if a write landed between `base` and that one:
    which of the two was first, reading does not tell. Else `base`.

    The one after `base` found the new label when its stamps were read already, so it may be older than that label.
    """
    later = [stamp for stamp in seen if stamp.at_ms > base.at_ms][:2]
    if not later or base.epoch_after is None or base.epoch_after > fenced.epoch:
        return base
    if later[0].epoch_after is None or later[0].epoch_after <= fenced.epoch:
        return base
    return later[-1] if later[-1].n > base.n else base


def landed_after(history: History, fenced: Fenced, block: int, seen: Sequence[StampSeen], base: int) -> set[int]:
    """Stamp numbers beyond `base` that are on the disk, or that the disk acknowledged."""
    landed = {stamp.n for stamp in seen if stamp.n > base}
    # A lawful new ownership begins at back_ms: by then the clock has to decide, so leave room for its error.
    until = fenced.back_ms - history.uncertainty_ms
    mine = [write for write in history.stamp_writes if write.node == block and write.n > base]
    return landed | {write.n for write in mine if not write.error and write.done_ms < until}


def refused_after(history: History, fenced: Fenced, block: int, base: int) -> int:
    mine = [write for write in history.stamp_writes if write.node == block and write.n > base]
    return sum(1 for write in mine if write.error and write.done_ms < fenced.back_ms)
