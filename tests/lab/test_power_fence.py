"""Power fencing with fence_ipmilan against a management controller that switches the lab's hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwlab.drill import Exit, run_drill
from hwlab.labstage import LabStage
from hwlab.protocols import Lab, PowerState
from tests.lab.labs import fresh_lab, healed

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "power"
TRIES = 2
"""As in test_cluster.py."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab(LAB, "power") as made:
        yield made


@pytest.fixture(scope="module")
def stage(lab: Lab) -> LabStage:
    return healed(lab)


def test_the_drill_is_valid_and_the_history_says_who_fenced(stage: LabStage) -> None:
    out = Path("build/drills")
    for _ in range(TRIES):
        code = run_drill("power-fence", runs=1, stage=stage, out_dir=out)
        if code is not Exit.UNKNOWN:
            break
    report = json.loads((out / "latest" / "report.json").read_text())
    assert code is Exit.VALID, report["runs"][-1]
    told = json.loads(stage.exec("n2", ["hactl", "history", "--json"]).stdout)
    assert "power" in [takeover.get("fenced") for takeover in told]


def test_by_hand_a_backup_is_switched_off_and_on_again(stage: LabStage, lab: Lab) -> None:
    stage.heal(print)
    state: dict[str, Any] = json.loads(stage.exec("n1", ["hactl", "status", "--json"]).stdout)
    busy = {state["leader"], state["volumes"][0]["server"]}
    backup = next(name for name in ("n1", "n2", "n3") if name not in busy)
    leader = state["leader"]
    done = stage.exec(leader, ["hactl", "fence", backup, "--level", "power", "--yes"], timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert b"power off" in done.stdout
    assert lab.hosts[backup].power.state() is PowerState.OFF
    assert stage.exec(leader, ["hactl", "unfence", backup, "--power-on"], timeout_s=60).returncode == 0
    stage.heal(print)
    assert lab.hosts[backup].power.state() is PowerState.ON
