"""The side-by-side benchmark's arithmetic, its patterns on real lines, and what it makes of a guest that answers."""

import json
import re
import statistics
import time

import pytest

from hwlab import enginebench
from hwlab.enginebench import BUILTIN, COROSYNC, Cost, as_dict, as_text, bracketed, next_token
from hwlab.errors import LabError


def seen(detect_ms: float, token_ms: int = 0) -> Cost:
    return Cost(engine="corosync" if token_ms else "builtin", token_ms=token_ms, detect_ms=[detect_ms])


@pytest.mark.parametrize(("detect_ms", "token_ms"), [(700, 300), (2240, 1000), (100, 130)])
def test_the_first_token_is_guessed_from_the_time_to_detect_in(detect_ms: float, token_ms: int) -> None:
    assert next_token(seen(detect_ms), []) == token_ms


def test_a_second_guess_uses_what_the_first_one_took() -> None:
    first = next_token(seen(720), [])
    tried = [seen(2.2 * first + 90, first)]  # this machine's corosync needs longer than thought
    assert abs(2.2 * next_token(seen(720), tried) + 90 - 720) < 8


@pytest.mark.parametrize(
    ("others", "enough"),
    [([], False), ([1400], False), ([1400, 1300], False), ([800], False), ([1400, 800], True), ([1049], True)],
)
def test_the_search_ends_with_an_equal_time_or_one_on_each_side(others: list[float], enough: bool) -> None:
    assert bracketed(seen(1000), [seen(ms, 300) for ms in others]) is enough


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (BUILTIN.lost % 3, "nodewatch: node=n3 alive->overdue cause=silence of 809 ms"),
        (BUILTIN.whole % 3, "nodewatch: node=n3 overdue->alive"),
        (BUILTIN.whole % 3, "nodewatch: node=n3 unheard->alive"),
        (COROSYNC.lost % 3, "  [QUORUM] Sync left[1]: 3"),
        (COROSYNC.lost % 3, "  [QUORUM] Sync left[2]: 1 3"),
        (COROSYNC.whole, "  [QUORUM] Members[3]: 1 2 3"),
    ],
)
def test_the_lines_that_tell_of_a_change_are_known(pattern: str, line: str) -> None:
    assert re.search(pattern, line)


def test_other_lines_tell_of_nothing() -> None:
    assert not re.search(BUILTIN.lost % 3, "nodewatch: node=n2 alive->overdue cause=silence of 809 ms")
    assert not re.search(COROSYNC.lost % 3, "  [QUORUM] Sync left[1]: 2")
    assert not re.search(COROSYNC.lost % 3, "  [QUORUM] Sync members[2]: 1 3")


def costs() -> list[Cost]:
    return [
        Cost(engine="neither", packets_per_s=[0.0], process_percent=[0.0], guest_percent=[1.0, 1.2, 1.1]),
        Cost(engine="builtin", detect_ms=[700.0, 720.0], packets_per_s=[10.0], process_percent=[0.5],
             guest_percent=[2.1, 2.2, 2.0]),
        Cost(engine="corosync", token_ms=300, detect_ms=[710.0], packets_per_s=[80.5], process_percent=[1.5],
             guest_percent=[]),
    ]  # fmt: skip


def test_the_table_shows_medians_and_what_the_guest_used_more_than_with_neither_engine() -> None:
    shown = as_text(costs()).splitlines()
    assert re.search(r"^builtin +710 \(700 to 720\) +10.00 .* 1.00 \(0.90 to 1.10\)$", shown[2])
    assert re.search(r"^corosync \(token 300\) +710 .* 80.50 .* -$", shown[3])


def test_the_file_has_every_value_and_the_medians() -> None:
    table = json.loads(json.dumps(as_dict(costs())))
    own = table["engines"][1]
    assert own["detect_ms"] == [700.0, 720.0] and own["detect_ms_median"] == 710.0
    assert table["engines"][2]["guest_percent_median"] is None
    assert statistics.median(own["packets_per_s"]) == own["packets_per_s_median"]


class Journal:
    """A host whose journal says what the test wants, as a child process would."""

    def __init__(self, script: str) -> None:
        self.command = self
        self._script = script

    def start(self, argv: list[str], **pipes: int) -> object:
        import subprocess

        assert argv[0] == "journalctl"
        return subprocess.Popen(["sh", "-c", self._script], **pipes)


def test_a_follower_finds_the_first_line_after_a_moment() -> None:
    follower = enginebench.Follower(Journal("echo node=n3 early; sleep 0.3; echo node=n3 late; sleep 60"), "unit")  # type: ignore[arg-type]
    try:
        early = follower.seen("node=n3", 0.0)
        late = follower.seen("node=n3", early + 0.001)
        assert late > early
    finally:
        follower.end()


def test_a_line_that_never_comes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enginebench, "PATIENCE_S", 0.2)
    follower = enginebench.Follower(Journal("sleep 60"), "unit")  # type: ignore[arg-type]
    began = time.monotonic()
    try:
        with pytest.raises(LabError, match="no line like"):
            follower.seen("node=n3", 0.0)
        assert time.monotonic() - began >= 0.2
    finally:
        follower.end()
