"""Drills on NVMe over TCP, and of the watchdog as a level of fencing: QEMU's hosts want a machine for themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwlab.drill import Exit, run_drill
from hwlab.drillfile import load_drill
from hwlab.labstage import LabStage
from tests.lab.labs import fresh_lab, healed

pytestmark = [pytest.mark.lab, pytest.mark.long]

DRILLS = {
    "nvme": ["nvme-kill-primary", "nvme-fenced-event", "nvme-fenced-unplugged", "nvme-target-power-loss"],
    "nvmelate": ["nvme-late-write"],
    "nvmepaths": ["nvme-path-loss"],
    "watchdog": ["watchdog-fence"],
}
TRIES = 2
"""As in test_cluster.py: `unknown` is played once more, invalid never."""


@pytest.fixture(scope="module", params=DRILLS)
def stage(request: pytest.FixtureRequest) -> Iterator[LabStage]:
    with fresh_lab(f"drill{request.param}", request.param) as lab:
        yield healed(lab)


def play(stage: LabStage, name: str, out: Path) -> None:
    for attempt in range(TRIES):
        code = run_drill(name, runs=1, stage=stage, out_dir=out / str(attempt))
        if code is not Exit.UNKNOWN:
            break
    report = json.loads((out / str(attempt) / "latest" / "report.json").read_text())
    assert code is Exit.VALID, report["runs"][-1]["reasons"]


def test_every_drill_of_the_topology_is_valid(stage: LabStage, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    topology = request.node.callspec.params["stage"]
    for name in DRILLS[topology]:
        assert load_drill(name).topology == topology
        play(stage, name, tmp_path / name)
