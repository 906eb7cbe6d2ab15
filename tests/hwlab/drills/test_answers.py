"""Who had the served address: the rules of check_answers, broken one at a time."""

import socket
from dataclasses import replace

import pytest

from hwlab import asker
from hwlab.checker import judge
from hwlab.gather import answers as parse
from hwlab.history import Answer, Verdict
from tests.hwlab.drills.conftest import BACK_MS, Histories, answers

OLD, NEW = "02:00:00:00:00:01", "02:00:00:00:00:02"


def with_answer(ask: int, at_ms: float, mac: str) -> object:
    seen = answers()
    return replace(seen, answers=(*seen.answers, Answer(ask=ask, at_ms=at_ms, mac=mac)))


def whats(history: object) -> str:
    return " | ".join(reason.what for reason in judge(history).reasons)  # type: ignore[arg-type]


def test_a_handover_is_told_with_names_and_times(history: Histories) -> None:
    judgement = judge(history())
    assert judgement.verdict is Verdict.VALID, judgement.reasons
    assert [(each.node, each.mac) for each in judgement.served] == [("n1", OLD), ("n2", NEW)]
    assert judgement.served[0].last_ms < BACK_MS - 100 <= judgement.served[1].first_ms


def test_one_question_that_two_kernels_answer_is_invalid(history: Histories) -> None:
    last = answers().answers[-1]
    seen = with_answer(last.ask, last.at_ms + 0.2, OLD)
    assert "two kernels had the served address" in whats(history(answers=seen))


def test_a_thawed_server_that_answers_once_more_is_invalid(history: Histories) -> None:
    seen = with_answer(10_000, 16_000.7, OLD)
    judgement = judge(history(answers=seen))
    assert judgement.verdict is Verdict.INVALID
    assert "changed hands 3 times in 1 takeovers" in whats(history(answers=seen))


def test_an_address_that_moved_without_any_takeover_is_invalid(history: Histories) -> None:
    held = history().reservations[:1]
    assert "changed hands 1 times in 0 takeovers" in whats(history(reservations=held))


@pytest.mark.parametrize(
    ("seen", "doubt"),
    [
        (None, "nobody asked"),
        (replace(answers(), asked_ms=(-9000.0, 0.0, 20_000.0)), "nobody asked for the served address for 20000 ms"),
        (answers(old_until=-1e9), "nobody answered for the served address before the fault"),
    ],
)
def test_without_a_steady_asker_nothing_is_known(history: Histories, seen: object, doubt: str) -> None:
    judgement = judge(history(answers=seen))
    assert judgement.verdict is Verdict.UNKNOWN
    assert doubt in " | ".join(reason.what for reason in judgement.reasons)


def test_more_moves_than_the_drill_allows_are_invalid(history: Histories) -> None:
    good = history()
    assert judge(replace(good, wanted=replace(good.wanted, moves_max=1))).verdict is Verdict.VALID
    assert "moved 1 times, 0 allowed" in whats(replace(good, wanted=replace(good.wanted, moves_max=0)))


def test_the_asker_s_log_is_read_as_it_is_written(history: Histories) -> None:
    from hwlab.clocks import Clock

    clock = Clock(host="c1", boot="b", mono_offset_ms=1000, wall_offset_ms=0, uncertainty_ms=1)
    seen = parse(f"ask 1 2000000000\nanswer 1 2000500000 {OLD}\nask 2 2100000000\nansw", clock)
    assert seen.asked_ms == (1000.0, 1100.0)
    assert seen.answers == (Answer(ask=1, at_ms=1000.5, mac=OLD),)


def test_the_asker_believes_answers_to_itself_about_the_served_address_only() -> None:
    mac, own, served = bytes.fromhex("020000000009"), socket.inet_aton("10.77.1.24"), socket.inet_aton("10.77.1.50")
    question = asker.request(mac, own, served)
    assert asker.answered_by(question, mac, served) == ""
    head = mac + bytes.fromhex("020000000002") + b"\x08\x06" + asker.HEAD
    said = bytes.fromhex("020000000002") + served + mac + own
    answer = head + b"\0\2" + said
    assert asker.answered_by(answer, mac, served) == NEW
    gratuitous = b"\xff" * 6 + answer[6:]
    for other in (gratuitous, answer[:30], answer.replace(served, own), head + b"\0\1" + said):
        assert asker.answered_by(other, mac, served) == ""
