"""Drills are data, and data is checked before anything is done."""

from pathlib import Path
from typing import Any

import pytest

from hwlab.drillfile import DrillError, Fault, load_drill, names, parse

GOOD: dict[str, Any] = {
    "name": "d",
    "title": "t",
    "about": "a",
    "step": [{"fault": "kill", "on": "primary", "start": True}],
    "end": {"server": "another"},
}


def test_all_drills_that_ship_can_be_read() -> None:
    assert names() == [
        "cut-primary",
        "cut-storage",
        "double-failure",
        "hang-controller",
        "hang-daemon",
        "kill-primary",
        "pause-primary",
        "planned-move",
        "power-cycle",
    ]
    for name in names():
        drill = load_drill(name)
        assert drill.steps and drill.about.strip()


def test_a_drill_in_which_the_old_owner_lives_on_insists_that_its_late_writes_are_tried() -> None:
    for name in ("pause-primary", "cut-primary", "hang-daemon", "hang-controller", "planned-move"):
        assert load_drill(name).end.old_owner_must_try


def test_every_node_that_loses_power_gets_it_back() -> None:
    for name in names():
        faults = [step for step in load_drill(name).steps if isinstance(step, Fault)]
        kinds = [fault.kind for fault in faults]
        for cause, cure in (("kill", "power-on"), ("pause", "resume"), ("cut", "heal")):
            assert (cause in kinds) <= (cure in kinds), f"{name}: {cause} without {cure}"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "other"}, "must be the file's name"),
        ({"surprise": 1}, "unknown: surprise"),
        ({"step": [{"fault": "kill", "on": "primary"}]}, "one step must have `start = true`"),
        ({"step": [{"fault": "kill", "on": "nobody", "start": True}]}, "step 1: on is 'nobody'"),
        ({"step": [{"expect": "luck"}]}, "step 1: expect is 'luck'"),
        ({"step": [{"expect": "writes", "within_s": 5}]}, "step 1: unknown: within_s"),
        ({"step": [{}]}, "step 1: watch_s must be given, as float"),
        ({"end": {"server": "best"}}, "server is 'best'"),
        ({"end": {"server": "any", "ready": ["moon"]}}, "'moon' must be one of"),
        ({"load": {"warm_up_records": 1.5}}, "warm_up_records must be given, as int"),
        ({"title": None}, "title must be given, as str"),
    ],
)
def test_a_wrong_word_is_named_with_its_place(change: dict[str, Any], text: str) -> None:
    with pytest.raises(DrillError, match=r"d\.toml") as caught:
        parse({**GOOD, **change}, "d.toml")
    assert text in str(caught.value)


def test_a_drill_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(DrillError, match=r"there is no drill 'x'; there are: .*kill-primary"):
        load_drill("x")
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(DrillError, match=r"bad\.toml"):
        load_drill("bad", tmp_path)
