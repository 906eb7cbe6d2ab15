"""Judges races of nodes for a set of LUNs, by what the target believes. Pure.

After each race every LUN must be held by the same node, with the same key, and nobody else be registered that is still
alive; the node that calls its handle good must be that one. Over all of them, on each LUN: epochs only grow, a key that
was dropped never comes back, and once reserved it never is without a reservation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EPOCH_MASK = 0xFFFFFFFF
NODE_SHIFT = 32
NODE_MASK = 0xFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """One LUN as the target has it: the holder's key ("" for nobody), and every key registered."""

    holder: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raced:
    """One race: what was done to whom, LUN -> who has it after all ended, node -> key of the handle that it calls good.

    `ends` tells how each racer ended, for people. `again`: nobody won (the winner died), so one node acquired anew.
    """

    number: int
    kind: str
    owned: Mapping[str, Owned]
    good: Mapping[str, str]
    ends: Mapping[str, str]
    again: bool = False


def node_of(key: str) -> int:
    return int(key, 16) >> NODE_SHIFT & NODE_MASK


def judge_race(race: Raced, luns: int) -> list[str]:
    """What is wrong with one race; empty if nothing is."""
    wrong = []
    if len(race.owned) != luns:
        wrong.append(f"race {race.number}: {len(race.owned)} of {luns} LUNs were seen on the target")
    holders = {owned.holder for owned in race.owned.values()}
    if len(holders) > 1 or "" in holders:
        count = {holder or "nobody": sum(o.holder == holder for o in race.owned.values()) for holder in sorted(holders)}
        shares = ", ".join(f"{number} by {key}" for key, number in count.items())
        return [*wrong, f"race {race.number} ({race.kind}) SPLIT: {shares}"]
    (holder,) = holders or {""}
    beside = sorted({key for owned in race.owned.values() for key in owned.keys} - {holder})
    # a racer that ended for good may have left a registration: it holds nothing, and the next owner drops it
    if beside and race.kind != "ended":
        wrong.append(f"race {race.number} ({race.kind}): {', '.join(beside)} registered beside the owner {holder}")
    if list(race.good.values()) != [holder]:
        wrong.append(f"race {race.number} ({race.kind}): {dict(race.good)} call their handle good, {holder} holds all")
    return wrong


def judge_changes(changes: Sequence[tuple[str, Owned]]) -> list[str]:
    """What is wrong with the order in which LUNs changed, (LUN, its new state) in the order of time."""
    wrong: list[str] = []
    last: dict[str, Owned] = {}
    gone: dict[str, set[str]] = {}
    for lun, now in changes:
        before = last.get(lun)
        last[lun] = now
        if before is None:
            continue
        dropped = gone.setdefault(lun, set())
        dropped |= set(before.keys) - set(now.keys)
        if before.holder and not now.holder:
            wrong.append(f"{lun} was open to everybody after {before.holder} held it")
        elif before.holder and epoch_of(now.holder) < epoch_of(before.holder):
            wrong.append(f"{lun} went from {before.holder} back to {now.holder}")
        back = sorted(dropped & set(now.keys))
        if back:
            wrong.append(f"{lun}: {', '.join(back)} was dropped and came back")
    return wrong


def epoch_of(key: str) -> int:
    return int(key, 16) & EPOCH_MASK
