"""What was seen against `hactl timing`: what is compared, and what being outside means."""

from dataclasses import replace

import pytest

from hwlab.check_timing import BAR, POWER, RESET, Compared, compare
from hwlab.checker import judge
from hwlab.history import History, Mark, Phase, TimingRow, Verdict
from tests.hwlab.drills.conftest import FAULT_MS, Histories, answers, recovery


def rows(history: History) -> dict[str, Compared]:
    return {row.phase: row for row in compare(history)}


def with_fault(history: Histories, kind: str, until_ms: float | None = None, **changes: object) -> History:
    mark = Mark(at_ms=FAULT_MS, what=f"{kind} n1", kind="fault", node="n1", until_ms=until_ms)
    return history(marks=(mark,), **changes)


def changed(history: Histories, name: str, end_ms: float) -> History:
    told = recovery()
    steps = tuple(step for step in told.steps if step.name != name)
    return history(recoveries=(replace(told, steps=(*steps, Phase(name=name, start_ms=10_000, end_ms=end_ms))),))


def test_phases_of_a_silent_primary_are_compared_with_the_table(history: Histories) -> None:
    seen = rows(history())
    assert seen["detect"].high_ms == 750 and seen["bar confirmed"].high_ms == 960
    assert all(row.outside == "" for row in seen.values())
    assert "gate of a stopped node watch closes" not in seen, "a paused kernel answers nobody"


def test_a_gate_is_timed_between_the_last_answer_and_the_first_question_without_one(history: Histories) -> None:
    gate = rows(with_fault(history, "hang-daemon"))["gate of a stopped node watch closes"]
    assert (gate.low_ms, gate.high_ms, gate.outside) == (pytest.approx(800.4), 900, "")
    late = with_fault(history, "hang-daemon", answers=answers(old_until=FAULT_MS + 2000, new_from=FAULT_MS + 2200))
    assert rows(late)["gate of a stopped node watch closes"].outside == "late"


def test_a_primary_that_serves_again_later_has_shut_its_gate_all_the_same(history: Histories) -> None:
    seen = answers(new_from=1e9)
    back = tuple(replace(seen.answers[0], ask=n, at_ms=15_000.0 + n) for n in range(250, 260))
    gate = rows(with_fault(history, "hang-daemon", answers=replace(seen, answers=(*seen.answers, *back))))
    assert gate["gate of a stopped node watch closes"].high_ms == 900
    lost = replace(seen, answers=tuple(answer for answer in seen.answers if answer.ask != 195))
    assert rows(with_fault(history, "hang-daemon", answers=lost))["gate of a stopped node watch closes"].high_ms == 900


def test_a_recovery_that_waited_for_the_nodes_power_is_not_compared(history: Histories) -> None:
    dark = tuple(Mark(at_ms=FAULT_MS + n, what=f"kill n{n}", kind="fault", node=f"n{n}") for n in (1, 2, 3))
    assert "detect" in rows(history(marks=dark[:1]))
    assert "detect" not in rows(history(marks=dark))


def test_how_long_the_fault_took_widens_what_was_seen(history: Histories) -> None:
    seen = rows(with_fault(history, "cut", until_ms=FAULT_MS + 300))["detect"]
    assert (seen.low_ms, seen.high_ms) == (450, 750)


def test_an_old_lease_that_ended_too_early_is_invalid(history: Histories) -> None:
    early = changed(history, "old-lease", FAULT_MS + 1200)
    assert judge(early).verdict is Verdict.UNKNOWN, "only the nodes say so"
    judgement = judge(replace(early, answers=answers(new_from=FAULT_MS + 1300)))
    assert judgement.verdict is Verdict.INVALID
    assert "its lease must have ended: seen 1200" in judgement.reasons[0].what


def test_an_address_that_opened_late_says_nothing_of_the_lease_but_an_early_one_does(history: Histories) -> None:
    assert rows(changed(history, "export", FAULT_MS + 1))["its lease must have ended"].outside == ""
    told = recovery()
    early = Phase(name="address", start_ms=FAULT_MS + 900, end_ms=FAULT_MS + 950)
    steps = (*(step for step in told.steps if step.name != "address"), early)
    early_answers = answers(new_from=FAULT_MS + 950)
    judgement = judge(history(recoveries=(replace(told, steps=steps),), answers=early_answers))
    assert judgement.verdict is Verdict.INVALID


@pytest.mark.parametrize("end_ms", [400, 1400])
def test_a_detection_outside_the_table_is_unknown(history: Histories, end_ms: int) -> None:
    judgement = judge(changed(history, "detect", FAULT_MS + end_ms))
    assert judgement.verdict is Verdict.UNKNOWN
    assert f"detect: seen {end_ms}" in judgement.reasons[0].what


def test_an_observer_that_did_not_run_is_part_of_the_error(history: Histories) -> None:
    watched = history().witness
    slow = changed(history, "detect", FAULT_MS + 1400)
    assert rows(slow)["detect"].outside == "late"
    assert rows(replace(slow, witness=replace(watched, gap_ms_max=800.0)))["detect"].outside == ""  # type: ignore[type-var]


def test_clocks_that_the_drill_set_wrong_are_part_of_the_error(history: Histories) -> None:
    assert rows(history(rate_error=0.05))["detect"].error_ms - rows(history())["detect"].error_ms == 40


def test_faults_of_which_the_table_does_not_speak_are_not_compared(history: Histories) -> None:
    for kind in ("stop-node", "cut-storage", "cut-in"):
        assert compare(with_fault(history, kind)) == ()


def test_a_recovery_that_failed_or_answers_something_else_is_not_compared(history: Histories) -> None:
    for other in (replace(recovery(), verdict="failed"), replace(recovery(), from_node="n2")):
        assert rows(history(recoveries=(other, replace(recovery(), from_node="n2", epoch=6)))) == {}


def test_without_the_table_nothing_is_known(history: Histories) -> None:
    assert judge(history(timing=None)).verdict is Verdict.UNKNOWN
    assert compare(history(timing=(TimingRow(phase="elect, if it led", best_ms=0, worst_ms=1),))) == ()


PROOFS = [("power", POWER, ""), ("watchdog", RESET, ""), ("reservation", BAR, "late")]


@pytest.mark.parametrize(("fenced", "row", "outside"), PROOFS)
def test_a_decision_that_waited_for_a_proof_is_compared_with_the_row_of_the_proof(
    history: Histories, fenced: str, row: str, outside: str
) -> None:
    told = recovery()
    steps = [step for step in told.steps if step.name != "decide"]
    waited = Phase(name="decide", start_ms=10_750, end_ms=FAULT_MS + 5_000)
    more = (TimingRow(phase=each, best_ms=600, worst_ms=61_000) for each in (POWER, RESET))
    timing = (*(history().timing or ()), *more)
    seen = rows(history(recoveries=(replace(told, steps=(*steps, waited), fenced=fenced),), timing=timing))
    assert seen[row].outside == outside
    assert {POWER, RESET, BAR} & seen.keys() == {row}
    back = replace(told, steps=(*steps, waited), fenced=fenced, cause="n1 was overdue, and is back without it")
    assert not {POWER, RESET, BAR} & rows(history(recoveries=(back,), timing=timing)).keys()


def test_power_that_was_off_later_than_its_agent_may_take_is_unknown(history: Histories) -> None:
    told = recovery()
    steps = [step for step in told.steps if step.name != "decide"]
    late = Phase(name="decide", start_ms=10_750, end_ms=FAULT_MS + 62_000)
    timing = (*(history().timing or ()), TimingRow(phase=POWER, best_ms=600, worst_ms=61_000))
    judgement = judge(history(recoveries=(replace(told, steps=(*steps, late), fenced="power"),), timing=timing))
    assert judgement.verdict is Verdict.UNKNOWN
    assert any(reason.what.startswith(POWER) for reason in judgement.reasons)
