"""Two nodes and a witness LUN, on a lab of real kernels and LIO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hwlab.drill import Exit, run_drill
from hwlab.labstage import LabStage
from hwlab.protocols import Lab
from tests.lab.labs import fresh_lab, healed

pytestmark = pytest.mark.lab

LAB = "twonodes"
TRIES = 2
"""As in test_cluster.py."""
ROUNDS = 8
GUEST = "/root/claim_guest.py"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab(LAB, "two") as made:
        yield made


@pytest.fixture(scope="module")
def stage(lab: Lab) -> LabStage:
    return healed(lab)


@pytest.mark.parametrize("name", ["two-node-split", "kill-primary"])
def test_a_drill_of_two_nodes_is_valid(stage: LabStage, name: str) -> None:
    out = Path("build/drills")
    for _ in range(TRIES):
        code = run_drill(name, runs=1, stage=stage, out_dir=out)
        if code is not Exit.UNKNOWN:
            break
    report = json.loads((out / "latest" / "report.json").read_text())
    assert code is Exit.VALID, report["runs"][-1]


def test_the_witness_is_shown_and_cannot_be_made_a_volume(stage: LabStage, lab: Lab) -> None:
    stage.heal(print)
    shown = json.loads(stage.exec("n1", ["hactl", "witness", "show", "--json"]).stdout)
    assert [lun["reachable"] for lun in shown["luns"]] == [True]
    assert shown["used_by"] == []
    device = lab.disks["w1"].device
    words = ["volume", "add", "v2", "--device", device, "--address", "10.77.1.51/24", "--clients", "10.77.1.0/24"]
    done = stage.exec("n1", ["hactl", *words, "--format"], timeout_s=60)
    assert done.returncode == 1
    assert b"not empty" in done.stderr, done.stderr
    done = stage.exec("n1", ["hactl", "witness", "add", lab.disks["v1"].device], timeout_s=60)
    assert done.returncode == 1, "a volume's disk is no witness"


def test_of_two_nodes_that_claim_at_once_from_the_same_epoch_one_wins(stage: LabStage, lab: Lab) -> None:
    """fencing/claim.py on LIO. hactld goes on reading meanwhile, as it does."""
    stage.heal(print)
    script = (Path(__file__).parent / "claim_guest.py").read_bytes()
    device = lab.disks["w1"].device

    def claims(name: str) -> list[dict[str, Any]]:
        lab.hosts[name].command.put({GUEST: script})
        argv = ["python3", GUEST, device, "/etc/hactl/hactl.toml", str(ROUNDS), "2"]
        done = stage.exec(name, argv, timeout_s=90)
        assert done.returncode == 0, done.stderr.decode()
        rounds: list[dict[str, Any]] = json.loads(done.stdout)
        return rounds

    with ThreadPoolExecutor(2) as pool:
        ended = dict(zip(("n1", "n2"), pool.map(claims, ("n1", "n2")), strict=True))
    by_epoch: dict[int, list[dict[str, Any]]] = {}
    for rounds in ended.values():
        for each in rounds:
            by_epoch.setdefault(each["from"], []).append(each)
    raced = [pair for pair in by_epoch.values() if len(pair) == 2]
    assert len(raced) >= ROUNDS // 2, ended
    for pair in raced:
        assert [each["won"] > 0 for each in pair].count(True) == 1, pair
        assert all(each["stands"] for each in pair if each["won"]), pair
