"""Drills on the corosync engine: real corosync 3.1 on every node of a lab.

Two of the six, for the time that they take; the others are played by hand (`hwlab serve --topology corosync`, then
`drill`): docs/measurements.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hwlab.drill import Exit, run_drill
from hwlab.labstage import LabStage
from tests.lab.labs import fresh_lab, healed

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "coroeng"
TRIES = 2
"""As in test_cluster.py: `unknown` is played once more, invalid never."""


@pytest.fixture(scope="module")
def stage() -> Iterator[LabStage]:
    with fresh_lab(LAB, "corosync") as lab:
        yield healed(lab)


@pytest.mark.parametrize("name", ["kill-primary", "cut-primary"])
def test_the_drill_is_valid(stage: LabStage, tmp_path: Path, name: str) -> None:
    for attempt in range(TRIES):
        code = run_drill(name, runs=1, stage=stage, out_dir=tmp_path / str(attempt))
        if code is not Exit.UNKNOWN:
            break
    assert code is Exit.VALID


def test_node_watch_runs_on_corosync_and_says_what_it_does_not_like(stage: LabStage) -> None:
    timing = stage.exec("n1", ["hactl", "timing"], timeout_s=60)
    assert timing.returncode == 0 and b"token = 1000" in timing.stdout and b"REFUSED" not in timing.stderr
    log = stage.exec("n1", ["journalctl", "--no-pager", "--unit", "hactl-nodewatch"], timeout_s=60).stdout
    assert b"left corosync's group" in log
    restart = "systemctl stop corosync; sleep 2; systemctl start corosync"
    assert stage.exec("n3", ["sh", "-c", restart], timeout_s=90).returncode == 0
    stage.heal(print)
    lines = stage.exec("n3", ["journalctl", "--no-pager", "--unit", "hactl-nodewatch"], timeout_s=60).stdout
    assert b"corosync is lost" in lines and b"corosync is there again" in lines
