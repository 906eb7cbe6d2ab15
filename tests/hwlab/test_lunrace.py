"""What the races of nodes for a set of LUNs are judged by, and how their figures are told."""

import random
import statistics
from dataclasses import replace

import pytest

from hwlab import fencebench, lunrace
from hwlab.check_races import Owned, Raced, judge_changes, judge_race
from hwlab.fencebench import Result
from hwlab.history import Verdict
from hwlab.lunrace import Outcome
from hwlab.protocols import Completed


def key(node: int, epoch: int) -> str:
    return f"0x7a1a1{node:03x}{epoch:08x}"


OURS, THEIRS = key(1, 5), key(2, 6)
WELL = Raced(
    number=1,
    kind="plain",
    owned={f"farm{n}": Owned(holder=THEIRS, keys=(THEIRS,)) for n in range(3)},
    good={"n2": THEIRS},
    ends={"n1": "LostRace", "n2": f"won {THEIRS}"},
)


def test_a_set_that_one_node_has_is_well() -> None:
    assert judge_race(WELL, 3) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owned": {**WELL.owned, "farm1": Owned(holder=OURS, keys=(OURS,))}}, "SPLIT"),
        ({"owned": {**WELL.owned, "farm1": Owned(holder="", keys=())}}, "SPLIT: 1 by nobody"),
        ({"owned": {**WELL.owned, "farm1": Owned(holder=THEIRS, keys=(OURS, THEIRS))}}, "registered beside"),
        ({"owned": {"farm0": WELL.owned["farm0"]}}, "1 of 3 LUNs"),
        ({"owned": {}}, "0 of 3 LUNs"),
        ({"good": {}}, "call their handle good"),
        ({"good": {"n1": OURS, "n2": THEIRS}}, "call their handle good"),
        ({"good": {"n1": OURS}}, "call their handle good"),
    ],
)
def test_anything_else_is_told(changes: dict[str, object], words: str) -> None:
    assert words in "\n".join(judge_race(replace(WELL, **changes), 3))  # type: ignore[arg-type]


def test_what_a_dead_racer_left_beside_the_owner_is_no_split() -> None:
    left = {**WELL.owned, "farm1": Owned(holder=THEIRS, keys=(OURS, THEIRS))}
    assert judge_race(replace(WELL, kind="ended", owned=left), 3) == []


def own(epoch: int, *beside: str) -> Owned:
    return Owned(holder=key(1, epoch), keys=(key(1, epoch), *beside))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([own(1), own(2), own(3)], ""),
        ([own(1), own(1, key(2, 2)), own(3)], ""),
        ([own(2), own(1)], "back to"),
        ([own(2), Owned(holder="", keys=())], "open to everybody"),
        ([own(1, key(2, 2)), own(1), own(3, key(2, 2))], "came back"),
    ],
)
def test_the_order_of_changes_is_judged(changes: list[Owned], words: str) -> None:
    wrong = "\n".join(judge_changes([("farm0", each) for each in changes]))
    assert (words in wrong) if words else not wrong


def test_each_lun_has_a_history_of_its_own() -> None:
    assert judge_changes([("farm0", own(9)), ("farm1", own(2)), ("farm1", own(3))]) == []


def test_races_that_could_not_have_gone_wrong_prove_nothing() -> None:
    outcome = Outcome(races=[replace(WELL, ends={"n2": f"won {THEIRS}"})], changes=0)
    outcome.holes = lunrace.holes(outcome, nodes=2)
    assert len(outcome.holes) == 3 and outcome.verdict is Verdict.UNKNOWN
    assert replace(WELL).ends["n1"] == "LostRace"
    other = replace(WELL, good={"n1": OURS})
    fine = Outcome(races=[WELL, other], changes=40)
    assert lunrace.holes(fine, nodes=2) == [] and fine.verdict is Verdict.VALID
    fine.wrong.append("split")
    assert fine.verdict is Verdict.INVALID and "split" in lunrace.as_text(fine)


LIO = """\
LUN /sys/kernel/config/target/core/fileio_3/farm0/pr
SPC-3 Reservation: iSCSI Initiator: iqn.2026-11.org.hactl:n2,i,0x00023d000001

KEYS
SPC-3 PR Registrations:
iSCSI Node: iqn.2026-11.org.hactl:n2,i,0x00023d000001 Key: 0x07a1a10020000006 PRgen: 0x0000000a
LUN /sys/kernel/config/target/core/fileio_4/farm1/pr
No SPC-3 Reservation holder

KEYS
SPC-3 PR Registrations:
None
"""


class Target:
    class command:
        @staticmethod
        def run(argv: object) -> Completed:
            return Completed(status=0, stdout=LIO.encode(), stderr=b"")


def test_the_targets_tables_are_read() -> None:
    found = lunrace.owned(Target)  # type: ignore[arg-type]
    assert found == {
        "farm0": Owned(holder="0x07a1a10020000006", keys=("0x07a1a10020000006",)),
        "farm1": Owned(holder="", keys=()),
    }


def test_figures_of_fencing_are_medians_and_judged_by_what_is_promised() -> None:
    one = Result(luns=1, preempt_ms=[1.0, 2.0, 90.0], fence_ms=[4.0], acquire_ms=[9.0], verify_ms=[1.0])
    many = Result(luns=100, preempt_ms=[1.0], fence_ms=[999.0], acquire_ms=[1900.0], verify_ms=[80.0])
    assert fencebench.kept([one, many])
    assert fencebench.as_dict([one])["sets"][0]["preempt_ms"] == {"median": 2.0, "min": 1.0, "max": 90.0}
    assert "2.0 (1.0 to 90.0)" in fencebench.as_text([one])
    assert not fencebench.kept([replace_values(one, preempt_ms=[11.0])])
    assert not fencebench.kept([replace_values(many, fence_ms=[1001.0])])


def replace_values(result: Result, **values: list[float]) -> Result:
    return replace(result, **values)  # type: ignore[arg-type]


def test_every_kind_of_race_is_drawn() -> None:
    dice = random.Random(1)
    drawn = [dice.choice(lunrace.KINDS) for _ in range(100)]
    assert {"plain", "paused", "ended", "frozen"} == set(drawn)
    assert statistics.mean(kind == "plain" for kind in drawn) < 0.7
