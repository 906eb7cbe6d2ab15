"""A history in which everything went well; tests break one thing at a time."""

from dataclasses import replace
from typing import Any, Protocol

import pytest

from hwlab.history import (
    Answer,
    Answers,
    Attempt,
    Condition,
    End,
    Epoch,
    Found,
    History,
    Mark,
    Owner,
    Phase,
    Recovery,
    Reservation,
    StampSeen,
    StampWrite,
    TimingRow,
    Wanted,
    Witness,
    Write,
)

NODES = {1: "n1", 2: "n2", 3: "n3"}
LUN = "iblock_0/lun0"
FAULT_MS = 10_000.0
FENCED_MS = 11_200.0
BACK_MS = 12_000.0


class Histories(Protocol):
    """Builds the good history with some fields replaced."""

    def __call__(self, **changes: Any) -> History: ...


def key(node: int, epoch: int) -> int:
    return 0xABCDE << 44 | node << 32 | epoch


def writes() -> tuple[Write, ...]:
    """One record each 20 ms for 20 s, none between the fault and the client's return."""
    times = [ms for ms in range(0, 20_000, 20) if not FAULT_MS <= ms < BACK_MS]
    return tuple(Write(seq=seq, submit_ms=ms - 5, done_ms=ms) for seq, ms in enumerate(times, start=1))


def attempts() -> tuple[Attempt, ...]:
    refused = tuple(Attempt(submit_ms=ms, done_ms=ms + 2, outcome="refused") for ms in range(0, 19_900, 100))
    return (*refused, Attempt(submit_ms=20_100, done_ms=20_102, outcome="took"))


def reservations() -> tuple[Reservation, ...]:
    old, new = key(1, 4), key(2, 5)
    return (
        Reservation(device=LUN, since_ms=-9000, at_ms=-8990, generation=7, type=5, holder=old, registrants=(old,)),
        Reservation(
            device=LUN,
            since_ms=FENCED_MS - 32,
            at_ms=FENCED_MS - 20,
            generation=8,
            type=5,
            holder=old,
            registrants=(old, new),
        ),
        Reservation(
            device=LUN,
            since_ms=FENCED_MS - 12,
            at_ms=FENCED_MS,
            generation=9,
            type=5,
            holder=new,
            registrants=(new,),
        ),
    )


def stamps(last_landed: int) -> tuple[StampSeen, ...]:
    def seen(at_ms: float, n: int) -> StampSeen:
        return StampSeen(device=LUN, at_ms=at_ms, node=1, n=n)

    return (seen(-8980, 0), seen(9000, 400), seen(FENCED_MS + 3, 500), seen(20_000, last_landed))


def stamp_writes() -> tuple[StampWrite, ...]:
    """500 that landed, then one that was on its way when the primary was fenced, refused after the thaw."""
    landed = tuple(StampWrite(node=1, n=n, submit_ms=n * 20 - 2, done_ms=n * 20) for n in range(1, 501))
    return (
        *landed,
        StampWrite(node=1, n=501, submit_ms=9_999, done_ms=16_000, error="Invalid exchange"),
    )


def answers(old_until: float = FAULT_MS + 900, new_from: float = BACK_MS - 100) -> Answers:
    """A question each 100 ms; the old primary's kernel answers until its gate is shut, then the new one's."""
    asked = tuple(float(ms) for ms in range(-9000, 20_400, 100))
    told = [
        Answer(ask=n, at_ms=ms + 0.4, mac="02:00:00:00:00:01" if ms < old_until else "02:00:00:00:00:02")
        for n, ms in enumerate(asked, start=1)
        if ms < old_until or ms >= new_from
    ]
    return Answers(asked_ms=asked, answers=tuple(told))


def recovery() -> Recovery:
    steps = (
        Phase(name="detect", start_ms=9_950, end_ms=10_750),
        Phase(name="decide", start_ms=10_750, end_ms=10_960),
        Phase(name="fence", start_ms=11_150, end_ms=11_230, detail=LUN),
        Phase(name="replay", start_ms=11_230, end_ms=11_300),
        Phase(name="mount", start_ms=11_300, end_ms=11_420),
        Phase(name="export", start_ms=11_420, end_ms=11_700),
        Phase(name="address", start_ms=11_700, end_ms=11_850),
    )
    return Recovery(from_node="n1", to_node="n2", epoch=5, cause="n1 overdue", verdict="recovered", steps=steps)


def good() -> History:
    return History(
        drill="pause-primary",
        nodes=NODES,
        primary="n1",
        fault_ms=FAULT_MS,
        ended_ms=20_000.0,
        uncertainty_ms=1.5,
        wanted=Wanted(server=("n2", "n3"), ready=("n1",), old_owner_must_try=True),
        writes=writes(),
        found=Found(runs=((1, len(writes())),)),
        attempts=attempts(),
        distinct_clients=True,
        owner=Owner(releasing_ms=20_050, touches=30),
        kernel_complaints=(),
        reservations=reservations(),
        answers=answers(),
        timing=(
            TimingRow(phase="detect", best_ms=600, worst_ms=800),
            TimingRow(phase="bar confirmed", best_ms=600, worst_ms=1000),
            TimingRow(phase="its lease must have ended", best_ms=1739, worst_ms=1939),
            TimingRow(phase="gate of a stopped node watch closes", best_ms=800, worst_ms=1750),
        ),
        stamps_seen=stamps(500),
        stamp_writes=stamp_writes(),
        epochs=(
            Epoch(device=LUN, at_ms=-8000, epoch=4, owner="n1"),
            Epoch(device=LUN, at_ms=11_260, epoch=5, owner="n2"),
        ),
        witness=Witness(started_ms=-9000, ended_ms=20_500, gap_ms_max=24.0),
        conditions=(Condition(what="the client writes again", met=True, took_ms=2000, deadline_ms=30_000),),
        recoveries=(recovery(),),
        end=End(server="n2", ready=("n1", "n3")),
        marks=(
            Mark(at_ms=FAULT_MS, what="pause n1", kind="fault", node="n1"),
            Mark(at_ms=15_900, what="resume n1", kind="fault", node="n1"),
        ),
    )


@pytest.fixture
def history() -> Histories:
    def build(**changes: Any) -> History:
        return replace(good(), **changes)

    return build
