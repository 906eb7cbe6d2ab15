"""Drills are data, and data is checked before anything is done."""

from pathlib import Path
from typing import Any

import pytest

from hwlab.drillfile import DrillError, Expect, Fault, Flap, Reader, Watch, load_drill, names, parse
from hwlab.faults import FAULTS
from hwlab.run import REPAIRS
from hwlab.topology import NVME, Role
from hwlab.topology import load as load_topology

GOOD: dict[str, Any] = {
    "name": "d",
    "title": "t",
    "about": "a",
    "step": [{"fault": "kill", "on": "primary", "start": True}],
    "end": {"server": "another"},
}


def test_all_drills_that_ship_can_be_read() -> None:
    assert names() == [
        "cut-all",
        "cut-one-way",
        "cut-one-way-out",
        "cut-primary",
        "cut-storage",
        "double-failure",
        "drift",
        "flap",
        "hang-controller",
        "hang-daemon",
        "kill-controller",
        "kill-primary",
        "late-write",
        "late-write-socket",
        "nvme-fenced-event",
        "nvme-fenced-unplugged",
        "nvme-kill-primary",
        "nvme-late-write",
        "nvme-path-loss",
        "nvme-target-power-loss",
        "path-loss",
        "path-return-new-isid",
        "pause-primary",
        "planned-move",
        "power-cycle",
        "power-fence",
        "stale-read",
        "starved",
        "stop-node",
        "target-power-loss",
        "target-power-loss-volatile",
        "two-node-split",
        "watchdog-fence",
    ]
    for name in names():
        drill = load_drill(name)
        assert drill.steps and drill.about.strip()


def test_the_drill_of_power_fencing_is_played_where_nodes_can_be_switched_off() -> None:
    """Anywhere else the reservation alone would do, and nobody be switched off."""
    topology, _ = load_topology(load_drill("power-fence").topology)
    assert topology.bmc is not None and "power" in topology.bmc.levels and topology.bmc.distrust


def test_a_drill_that_needs_paths_names_a_topology_with_two_for_every_node() -> None:
    for name in names():
        drill = load_drill(name)
        kinds = {step.kind for step in (*drill.prepare, *drill.steps) if isinstance(step, Fault)}
        if kinds & {"cut-path", "renew-path"}:
            topology, _ = load_topology(drill.topology)
            assert topology.multipath or topology.transport == NVME
            assert len(topology.portals()) == 2
            assert all(set(topology.sans) <= set(host.addresses) for host in topology.with_role(Role.NODE))


def test_a_drill_in_which_the_old_owner_lives_on_insists_that_its_late_writes_are_tried() -> None:
    for name in ("pause-primary", "cut-primary", "hang-daemon", "hang-controller", "planned-move"):
        assert load_drill(name).end.old_owner_must_try


def test_every_node_that_loses_power_gets_it_back() -> None:
    for name in names():
        faults = [step for step in load_drill(name).steps if isinstance(step, Fault)]
        kinds = [fault.kind for fault in faults]
        for kind in kinds:
            cure = FAULTS[kind].undo
            switched_off = kind == "pause" and "power-on" in kinds  # by its fence agent, as in power-fence
            assert cure is None or cure in kinds or switched_off, f"{name}: {kind} without {cure}"


def test_what_undoes_a_fault_is_done_also_after_a_failed_step() -> None:
    assert {fault.undo for fault in FAULTS.values() if fault.undo} - set(REPAIRS) <= {"clock-true"}


def test_a_reader_that_is_pinned_is_freed_and_must_read_again() -> None:
    for name in names():
        drill = load_drill(name)
        words = [step.word for step in drill.steps if isinstance(step, Reader)]
        assert words in ([], ["pin", "free"]), name
        assert drill.load.reader == bool(words)
        asked = any(isinstance(step, Expect) and step.condition == "reads" for step in drill.steps)
        assert asked == drill.load.reader


def test_a_drill_with_a_length_can_be_made_shorter() -> None:
    long, short = load_drill("starved"), load_drill("starved", duration_s=30)
    deadlines = [
        step.deadline_s
        for drill in (long, short)
        for step in drill.steps
        if isinstance(step, Expect) and step.condition == "no-new-holder"
    ]
    assert deadlines == [600.0, 30.0]
    with pytest.raises(DrillError, match="its length cannot be chosen"):
        load_drill("kill-primary", duration_s=30)


def test_a_flapping_link_and_a_setting_are_read() -> None:
    flap = {"flap": "primary", "down_s": 2, "up_s": 0.5, "for_s": "duration", "start": True}
    drill = parse(
        {
            **GOOD,
            "duration_s": 7,
            "prepare": [{"fault": "clock-fast", "on": "backup"}],
            "step": [flap, {"watch_s": "duration"}],
        },
        "d.toml",
    )
    assert drill.prepare == (Fault(kind="clock-fast", role="backup"),)
    assert drill.steps == (Flap(role="primary", down_s=2, up_s=0.5, for_s=7, start=True), Watch(watch_s=7))


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
        ({"step": [{"watch_s": "duration"}]}, "no duration_s is given"),
        ({"step": [{"reader": "stick"}]}, "step 1: reader is 'stick'"),
        ({"prepare": [{"fault": "busy"}]}, "prepare 1: on must be given"),
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
