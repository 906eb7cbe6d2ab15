"""Volumes on several LUNs, on a lab of real kernels, LIO, LVM and md."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hwlab import lunrace
from hwlab.drill import Exit, run_drill
from hwlab.history import Verdict
from hwlab.labstage import LabStage
from hwlab.protocols import Lab
from tests.lab.labs import fresh_lab, healed

pytestmark = [pytest.mark.lab, pytest.mark.long]

TRIES = 2
"""As in test_cluster.py."""
RACES = 30


@pytest.fixture(scope="module", params=["lvm", "md"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    name = f"sets{request.param}"
    with fresh_lab(name, request.param) as made:
        yield made


@pytest.fixture(scope="module")
def stage(lab: Lab) -> LabStage:
    return healed(lab)


def state(stage: LabStage, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(stage.exec(node, ["hactl", "status", "--json"]).stdout)
    return found


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.5)


def assembled(stage: LabStage, node: str) -> bool:
    """Does this node's kernel have a device that joins disks?"""
    return b"hactl_v1" in stage.exec(node, ["sh", "-c", "ls /dev/mapper /dev/md 2>/dev/null"]).stdout


@pytest.mark.parametrize("name", ["planned-move", "kill-primary"])
def test_a_drill_on_a_volume_of_several_luns_is_valid(stage: LabStage, name: str) -> None:
    out = Path("build/drills")
    for _ in range(TRIES):
        code = run_drill(name, runs=1, stage=stage, out_dir=out)
        if code is not Exit.UNKNOWN:
            break
    report = json.loads((out / "latest" / "report.json").read_text())
    assert code is Exit.VALID, report["runs"][-1]


def test_only_the_node_that_serves_has_it_assembled(stage: LabStage) -> None:
    stage.heal(print)
    server = state(stage, "n1")["volumes"][0]["server"]
    for node in stage.nodes.values():
        stage.exec(node, ["udevadm", "trigger", "--settle", "--subsystem-match=block"], timeout_s=60)
        stage.exec(node, ["sh", "-c", "lvm vgchange -ay; mdadm --assemble --scan"], timeout_s=60)
        assert assembled(stage, node) is (node == server)


def test_a_node_that_lacks_one_lun_is_not_ready_and_says_which(stage: LabStage, lab: Lab) -> None:
    stage.heal(print)
    server = state(stage, "n1")["volumes"][0]["server"]
    backup = next(name for name in stage.nodes.values() if name != server)
    wwid = lab.disks["v1b"].wwid
    script = f"for d in /sys/class/block/sd*; do grep -q {wwid} $d/device/wwid && echo 1 > $d/device/delete; done; true"
    stage.exec(backup, ["sh", "-c", script])

    def told() -> bool:
        node = next(each for each in state(stage, server)["nodes"] if each["name"] == backup)
        return not node["ready"] and wwid in "".join(node["reasons"])

    until(told, 30, f"{backup} not ready for want of {wwid}")
    stage.exec(backup, ["sh", "-c", "for h in /sys/class/scsi_host/host*; do echo '- - -' > $h/scan; done"])
    until(lambda: all(each["ready"] for each in state(stage, server)["nodes"]), 60, "all nodes ready again")


def test_races_for_a_set_of_luns_never_split_it(lab: Lab) -> None:
    outcome = lunrace.run(lab, print, races=RACES, seed=1)
    assert outcome.verdict is Verdict.VALID, lunrace.as_text(outcome)
