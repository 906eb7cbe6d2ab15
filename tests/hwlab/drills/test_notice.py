"""How a fenced node that lives learned it: from hactld's own journal, against what the target saw."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from hwlab import gather
from hwlab.check_notice import judge_notice
from hwlab.checker import judge
from hwlab.clocks import Clock
from hwlab.drillfile import load_drill, names
from hwlab.history import History, Mark, Notice, Verdict
from hwlab.topology import NVME
from hwlab.topology import load as load_topology
from tests.hwlab.drills.conftest import FENCED_MS, Histories

NOTICE = "reservation notice"
CLOCK = Clock(host="n1", boot="b", mono_offset_ms=1000, wall_offset_ms=5000, uncertainty_ms=1)
JOURNAL = """\
[    2.000000] n1 python3[183]: verifying now: nvme0: reservation notice
[    2.010000] n1 python3[183]: nvme=nvme0 nsid=1 reservation preempted (notice 1, 0 more)
[    2.110000] n1 python3[183]: volume=v1 epoch=4 key=0x01 suspended->leaving cause='verify: after a notice: it is n2's'
[    2.200000] n1 python3[183]: volume=v1 epoch=4 key=0x01 leaving->standby cause='StepDone(forget)'
"""


def told(history: Histories, *notices: Notice, most_ms: float | None = 900.0, by: str = NOTICE) -> History:
    good = history()
    wanted = replace(good.wanted, told_by=by, told_ms_max=most_ms)
    return history(wanted=wanted, notices=notices)


def notice(after_ms: float, text: str = NOTICE) -> Notice:
    return Notice(at_ms=FENCED_MS + after_ms, text=text)


def loss(after_ms: float, *, prompted: bool = True) -> Notice:
    return Notice(at_ms=FENCED_MS + after_ms, text="preempted", lost=True, prompted=prompted)


def test_hactlds_journal_tells_notices_and_what_led_to_the_loss() -> None:
    first, last = gather.notices(JOURNAL, CLOCK)
    assert (first.at_ms, first.text, first.lost) == (1000, NOTICE, False)
    assert (last.at_ms, last.lost, last.prompted, last.text) == (1110, True, True, "it is n2's")
    [by_clock] = gather.notices(JOURNAL.replace("after a notice: ", "").splitlines()[2], CLOCK)
    assert by_clock.lost and not by_clock.prompted


def test_a_loss_found_after_the_notice_in_time_is_valid(history: Histories) -> None:
    result = judge(told(history, notice(20), loss(130)))
    assert result.verdict is Verdict.VALID
    assert (result.told.low_ms, result.told.high_ms) == pytest.approx((130, 142))


@pytest.mark.parametrize(
    ("make", "verdict", "what"),
    [
        (lambda: (notice(-5000), loss(600)), Verdict.INVALID, "no `reservation notice` reached"),
        (lambda: (notice(20, "connected"), loss(600)), Verdict.INVALID, "no `reservation notice` reached"),
        (lambda: (notice(20),), Verdict.INVALID, "did not notice that it was fenced"),
        (lambda: (notice(20), loss(30, prompted=False)), Verdict.UNKNOWN, "found its loss by the clock"),
        (lambda: (notice(20), loss(950)), Verdict.INVALID, "knew of its loss after 950 ms, 900 ms allowed"),
        (lambda: (loss(30), notice(40)), Verdict.INVALID, "told by something else"),
    ],
)
def test_what_is_no_proof_of_the_notice_is_not_valid(
    history: Histories, make: Callable[[], tuple[Notice, ...]], verdict: Verdict, what: str
) -> None:
    result = judge(told(history, *make()))
    assert result.verdict is verdict
    assert what in result.reasons[0].what


def test_a_journal_that_was_not_read_is_a_hole_in_the_evidence(history: Histories) -> None:
    wanted = replace(history().wanted, told_by=NOTICE)
    assert judge(history(wanted=wanted)).verdict is Verdict.UNKNOWN
    assert judge_notice(history()).reasons == ()


def test_a_node_that_was_never_fenced_cannot_have_learned_it(history: Histories) -> None:
    seen = told(history, notice(20), loss(130))
    assert "never fenced" in judge_notice(replace(seen, reservations=seen.reservations[:1])).reasons[0].what


def test_after_a_cut_of_the_storage_its_return_counts(history: Histories) -> None:
    back = Mark(at_ms=FENCED_MS + 4000, until_ms=FENCED_MS + 4010, what="heal-storage n1", kind="fault", node="n1")
    seen = told(history, notice(4700, "connected"), loss(4800), by="connected")
    seen = replace(seen, marks=(*seen.marks, back))
    result = judge_notice(seen)
    assert result.reasons == () and (result.low_ms, result.high_ms) == pytest.approx((790, 800))


def test_drills_that_ask_for_a_notice_are_played_where_there_is_one() -> None:
    asking = [drill for drill in map(load_drill, names()) if drill.end.told_by]
    assert {drill.name for drill in asking} == {"nvme-fenced-event", "nvme-fenced-unplugged"}
    assert all(load_topology(drill.topology)[0].transport == NVME for drill in asking)
