"""Offsets between clocks, and how well they are known."""

import json

import pytest

from hwlab.clocks import Clock, Exchange, ask, combine, now_ms, settle


def exchange(sent: float, received: float, offset: float) -> Exchange:
    middle = (sent + received) / 2 + offset
    return Exchange(sent_ms=sent, received_ms=received, mono_ms=middle, wall_ms=middle + 1e6)


def test_the_exchange_with_the_shortest_round_trip_decides() -> None:
    clock = settle("n1", "b", [exchange(0, 40, 300), exchange(50, 52, 310), exchange(60, 90, 305)])
    assert clock.mono_offset_ms == pytest.approx(310)
    assert clock.uncertainty_ms == pytest.approx(1)
    assert clock.from_mono_ns(1_310_000_000) == pytest.approx(1000)
    assert clock.from_wall_ms(1_001_310) == pytest.approx(1000)


def test_the_error_of_a_combined_clock_covers_its_drift() -> None:
    before = Clock(host="n1", boot="b", mono_offset_ms=300, wall_offset_ms=0, uncertainty_ms=1)
    after = Clock(host="n1", boot="b", mono_offset_ms=304, wall_offset_ms=1, uncertainty_ms=2)
    both = combine(before, after)
    assert both.mono_offset_ms == 302
    assert both.uncertainty_ms == 4


def test_a_clock_with_a_rate_of_its_own_is_followed_along_its_line() -> None:
    before = Clock(host="n1", boot="b", mono_offset_ms=300, wall_offset_ms=9000, uncertainty_ms=1, at_ms=1000)
    after = Clock(host="n1", boot="b", mono_offset_ms=2800, wall_offset_ms=11_500, uncertainty_ms=2, at_ms=51_000)
    both = combine(before, after)
    assert both.rate == pytest.approx(1.05)
    # Half way: 25 s of the drill's clock are 26.25 s of the host's.
    assert both.from_mono_ns(round((1300 + 26_250) * 1e6)) == pytest.approx(26_000)
    assert both.from_wall_ms(10_000 + 26_250) == pytest.approx(26_000)
    assert both.uncertainty_ms == 2


def test_clocks_of_two_boots_are_never_combined() -> None:
    before = Clock(host="n1", boot="b1", mono_offset_ms=0, wall_offset_ms=0, uncertainty_ms=1)
    with pytest.raises(ValueError, match="rebooted"):
        combine(before, Clock(host="n1", boot="b2", mono_offset_ms=0, wall_offset_ms=0, uncertainty_ms=1))


def test_a_host_is_asked_over_its_connection() -> None:
    answers = [json.dumps("boot-1")]

    def send(_: str) -> None:
        ns = round((now_ms() + 5000) * 1e6)
        answers.append(json.dumps([ns, ns * 2]))

    clock = ask("n1", send, lambda: answers.pop(0) if answers else "", exchanges=4)
    assert clock.boot == "boot-1"
    assert clock.mono_offset_ms == pytest.approx(5000, abs=5)
    with pytest.raises(OSError, match="n1 ended the clock probe early"):
        ask("n1", lambda _: None, lambda: "", exchanges=1)
