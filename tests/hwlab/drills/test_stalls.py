"""Stalls by what they answer to, and a drill whose fault moved nothing."""

from dataclasses import replace
from typing import Any

import pytest

from hwlab.check_lock import last_return
from hwlab.check_stalls import stalls_of
from hwlab.checker import judge
from hwlab.history import History, Mark, Phase, Verdict, Wanted, Write
from tests.hwlab.drills.conftest import FAULT_MS, Histories, recovery

LOST_MS = 2_000.0
"""In this history a path is lost here; nothing moves for it. The move is that of the good history."""


def writes(gaps: tuple[tuple[float, float], ...]) -> tuple[Write, ...]:
    times = [ms for ms in range(0, 20_000, 20) if not any(low < ms < high for low, high in gaps)]
    return tuple(Write(seq=seq, submit_ms=ms - 5, done_ms=ms) for seq, ms in enumerate(times, start=1))


def path_lost(history: Histories, until_ms: float = 8_000.0, allowed_ms: float | None = 7_000.0) -> History:
    written = writes(((LOST_MS, until_ms), (9_980, 12_000)))
    marks = (
        Mark(at_ms=LOST_MS + 5, what="cut-path n1", kind="fault", node="n1", stall_ms_max=allowed_ms),
        Mark(at_ms=9_000, what="heal-storage n1", kind="fault", node="n1"),
        Mark(at_ms=FAULT_MS, what="hactl volume move v1 n2", kind="command", node="n1"),
    )
    base = history()
    return history(
        fault_ms=LOST_MS + 5,
        writes=written,
        found=replace(base.found, runs=((1, len(written)),)),  # type: ignore[type-var]
        marks=marks,
        timing=None,
        wanted=Wanted(server=("n2",), ready=("n1",), moves_max=1),
    )


def test_a_fault_that_moved_nothing_has_its_stall_and_the_move_has_its_own(history: Histories) -> None:
    judgement = judge(path_lost(history))
    assert judgement.reasons == () and judgement.verdict is Verdict.VALID
    assert [(stall.cause, stall.ms) for stall in judgement.stalls] == [
        ("cut-path n1", 6_000),
        ("heal-storage n1", 20),
        ("hactl volume move v1 n2", 2_020),
    ]
    [client] = [phase for phase in judgement.phases if phase.name == "client"]
    assert client.end_ms == 12_000, "not the end of the longer stall before"


def test_a_stall_beyond_what_the_step_allows_is_invalid(history: Histories) -> None:
    late = judge(path_lost(history, until_ms=9_500))
    assert late.verdict is Verdict.INVALID
    assert "cut-path n1: the client stood still for 7500 ms" in late.reasons[0].what
    assert judge(path_lost(history, until_ms=9_500, allowed_ms=None)).verdict is Verdict.VALID


def test_a_step_after_which_nothing_was_acknowledged_is_unknown(history: Histories) -> None:
    told = path_lost(history)
    last = Mark(at_ms=25_000, what="cut-path n2", kind="fault", node="n2", stall_ms_max=7_000)
    assert judge(replace(told, marks=(*told.marks, last))).verdict is Verdict.UNKNOWN


def test_a_gap_in_which_two_things_were_done_belongs_to_the_first(history: Histories) -> None:
    marks = tuple(Mark(at_ms=ms, what=what, kind="fault") for ms, what in ((10_500, "pause n1"), (11_000, "heal n1")))
    found = [(stall.cause, stall.ms) for stall in stalls_of(history(marks=marks))]
    assert found == [("pause n1", 2_020), ("heal n1", 20)]
    assert stalls_of(history(marks=())) == ()


@pytest.mark.parametrize(("at_ms", "verdict"), [(11_240, Verdict.VALID), (11_400, Verdict.UNKNOWN)])
def test_nothing_is_acknowledged_between_the_fence_and_the_address(
    history: Histories, at_ms: float, verdict: Verdict
) -> None:
    """The target saw the disk taken at 11,200 ms; the address came at 11,700."""
    more = Write(seq=len(history().writes) + 1, submit_ms=at_ms - 5, done_ms=at_ms)  # type: ignore[arg-type]
    changed = history(writes=(*history().writes, more), found=replace(history().found, runs=((1, more.seq),)))  # type: ignore[misc, type-var]
    judgement = judge(changed)
    assert judgement.verdict is verdict
    assert any("before the address of epoch 5" in reason.what for reason in judgement.reasons) is (
        verdict is Verdict.UNKNOWN
    )


def test_an_address_recorded_after_the_client_was_back_is_doubted(history: Histories) -> None:
    told = recovery()
    late = Phase(name="address", start_ms=12_500, end_ms=12_550)
    steps = (*(step for step in told.steps if step.name != "address"), late)
    changed: Any = history(recoveries=(replace(told, steps=steps),))
    assert judge(changed).verdict is Verdict.UNKNOWN


def test_the_lock_must_be_refused_after_the_last_recovery_too(history: Histories) -> None:
    told = path_lost(history)
    assert last_return(told) == 12_000
    early = tuple(each for each in told.attempts or () if each.done_ms < 10_000 or each.outcome == "took")
    assert judge(replace(told, attempts=early)).verdict is Verdict.UNKNOWN
