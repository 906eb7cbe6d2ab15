"""Who had the served address: never two kernels, and none again that had lost it. Pure.

A kernel answers the asker's questions for as long as the address is its own, whatever its daemons do: this is the
gate seen from the client's side. An old server that wakes up and still answers shows here, though the disk would refuse
its writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hwlab.check_disk import by_device
from hwlab.history import Answer, History
from hwlab.reason import Reason, invalid, unknown

ASK_GAP_MS_MAX = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Answers of one kernel in a row. `node`: its name where it can be told, else ""."""

    mac: str
    node: str
    first_ms: float
    last_ms: float
    answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    served: tuple[Served, ...]
    reasons: tuple[Reason, ...]


def judge_answers(history: History) -> Judged:
    """Unknown without a steady asker whom the primary answered before the fault."""
    seen = history.answers
    if seen is None:
        return Judged(served=(), reasons=(unknown("nobody asked who has the served address"),))
    served = spells(history, seen.answers)
    reasons: list[Reason] = []
    gap_ms = max((after - before for before, after in pairwise(seen.asked_ms)), default=0.0)
    if gap_ms > ASK_GAP_MS_MAX:
        reasons.append(unknown(f"nobody asked for the served address for {gap_ms:.0f} ms"))
    if not any(spell.first_ms < history.fault_ms for spell in served):
        reasons.append(unknown("nobody answered for the served address before the fault"))
    reasons += both_at_once(history, seen.answers)
    takeovers, changes = epochs_begun(history), len(served) - 1
    if changes > takeovers:
        who = ", ".join(f"{spell.node or spell.mac} {spell.first_ms - history.fault_ms:+.0f} ms" for spell in served)
        reasons.append(invalid(f"the served address changed hands {changes} times in {takeovers} takeovers: {who}"))
    return Judged(served=tuple(served), reasons=tuple(reasons))


def both_at_once(history: History, answers: Sequence[Answer]) -> list[Reason]:
    """A question that two kernels answered: each said that the address is its own, at the same time."""
    first: dict[int, str] = {}
    for answer in answers:
        if first.setdefault(answer.ask, answer.mac) != answer.mac:
            at_ms = answer.at_ms - history.fault_ms
            macs = f"{first[answer.ask]} and {answer.mac}"
            return [invalid(f"two kernels had the served address {at_ms:+.0f} ms from the fault: {macs}")]
    return []


def epochs_begun(history: History) -> int:
    """How many epochs after the first one held a device, as the target saw it."""
    return max(
        (
            len({state.holder for state in states if state.holder is not None}) - 1
            for states in by_device(history.reservations).values()
        ),
        default=0,
    )


def spells(history: History, answers: Sequence[Answer]) -> list[Served]:
    """The answers in order of arrival, those of one kernel in a row taken together."""
    names = named(history, answers)
    found: list[Served] = []
    for answer in sorted(answers, key=lambda answer: answer.at_ms):
        last = found[-1] if found and found[-1].mac == answer.mac else None
        spell = Served(
            mac=answer.mac,
            node=names.get(answer.mac, ""),
            first_ms=last.first_ms if last else answer.at_ms,
            last_ms=answer.at_ms,
            answers=last.answers + 1 if last else 1,
        )
        found[-1 if last else len(found) :] = [spell]
    return found


def named(history: History, answers: Sequence[Answer]) -> dict[str, str]:
    """MAC to node: who answered before the fault was the primary, who answers last is who serves at the end."""
    names = {answer.mac: history.primary for answer in answers if answer.at_ms < history.fault_ms}
    if answers and history.end is not None:
        names.setdefault(max(answers, key=lambda answer: answer.at_ms).mac, history.end.server)
    return names
