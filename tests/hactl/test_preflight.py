"""The command over all nodes: sessions, silent nodes, the report, its exit code. Nodes are trials over a fake unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fencing.errors import FencingError
from fencing.fake import FakeLogicalUnit, own
from fencing.faketrial import FakeDisk
from fencing.model import Key
from fencing.preflight import Options
from fencing.promises import Promise, Verdict
from fencing.trial import Trial, TrialRefused
from hactl.cli import preflightcmd, render
from hactl.cli.main import main
from hactl.errors import OutcomeUnknown
from hactl.judged import Judged
from hactl.preflight import Run

TAG = 0xABCDE
NUMBERS = {"n1": 1, "n2": 2}
CONFIG = """
[cluster]
name = "demo"
uuid = "5d0c9a52-0000-4000-8000-000000000001"
key_file = "/etc/hactl/cluster.key"
[[node]]
name = "n1"
number = 1
address = "192.0.2.11"
[[node]]
name = "n2"
number = 2
address = "192.0.2.12"
"""


class Cluster:
    """What answers `carry`: a trial for each node and WWID, and what each node was told to keep."""

    def __init__(self, *wwids: str, tag: int = TAG, **switches: bool) -> None:
        self.units = {wwid: FakeLogicalUnit(**switches) for wwid in wwids}
        self.trials = {
            (node, wwid): Trial(
                FakeDisk(unit, {"sda": node.encode()}), Key(cluster_tag=tag, node=NUMBERS[node], epoch=0)
            )
            for node in NUMBERS
            for wwid, unit in self.units.items()
        }
        self.silent: set[str] = set()
        self.acts: list[tuple[str, str]] = []
        self.on_record = ""
        self.judged: list[tuple[str, Judged]] = []

    def carry(self, node: str, act: str, wwid: str, args: Mapping[str, str], timeout_s: float = 0) -> Mapping[str, Any]:
        self.acts.append((node, act))
        if node in self.silent:
            raise OutcomeUnknown(f"hactld of {node} did not answer")
        if act == "judged":
            self.judged.append((node, Judged.parse(args)))
            return {"ok": {"risk": self.on_record or self.judged[-1][1].risk}}
        if act in ("begin", "end"):
            return {"ok": {}}
        if act == "facts":
            return {"ok": {"names": {"host name": [node]}, "devices": dict.fromkeys(args["wwids"].split(), DEVICE)}}
        try:
            return {"ok": json.loads(json.dumps(self.trials[node, wwid].do(act, args)))}
        except (TrialRefused, FencingError, OSError) as error:
            return {"error": str(error)}


DEVICE = {
    "head": "/dev/sda",
    "size_bytes": 1 << 30,
    "sector_bytes": 512,
    "paths": [{"name": "sda", "via": "iSCSI x", "state": "running", "size_bytes": 1 << 30}],
}


def run(cluster: Cluster, **options: Any) -> Run:
    return Run(
        carry=cluster.carry,
        tag=TAG,
        numbers=NUMBERS,
        options=Options(rounds=1, read_mib=1, **options),
        say=lambda text: None,
        sleep=lambda seconds: None,
        now_s=lambda: 0.0,
    )


def test_every_device_is_judged_for_itself_and_the_sessions_are_ended() -> None:
    cluster = Cluster("naa.1", "naa.2")
    own(cluster.units["naa.2"], b"n2", 0x1234)
    first, second = run(cluster).all({"naa.1": "/dev/a", "naa.2": "/dev/b"}, ["n1", "n2"])
    assert (first.verdict, second.verdict) == (Verdict.KEPT, Verdict.NOT_TESTED)
    assert cluster.acts[-2:] == [("n1", "end"), ("n2", "end")] or cluster.acts[-2:] == [("n2", "end"), ("n1", "end")]
    assert first.paths[0]["mb_per_s"] == 1.0


def test_a_node_that_does_not_answer_is_told_and_the_others_are_tried() -> None:
    cluster = Cluster("naa.1")
    cluster.silent.add("n2")
    [found] = run(cluster).all({"naa.1": "/dev/a"}, ["n1", "n2"])
    assert found.verdict is Verdict.NOT_TESTED
    assert any("n2 was not asked" in line for each in found.findings for line in each.found)
    assert ("n2", "end") not in cluster.acts and ("n1", "end") in cluster.acts


def test_an_interruption_ends_the_sessions() -> None:
    cluster = Cluster("naa.1")
    plain = cluster.carry

    def carry(node: str, act: str, wwid: str, args: Mapping[str, str], timeout_s: float) -> Mapping[str, Any]:
        if act == "overrun":
            raise KeyboardInterrupt
        return plain(node, act, wwid, args)

    begun = run(cluster)
    begun.carry = carry
    with pytest.raises(KeyboardInterrupt):
        begun.all({"naa.1": "/dev/a"}, ["n1", "n2"])
    assert {("n1", "end"), ("n2", "end")} <= set(cluster.acts)


# -- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = tmp_path / "hactl.toml"
    config.write_text(CONFIG)
    nodes = [{"name": name, "state": "alive"} for name in NUMBERS] + [
        {"name": "w1", "state": "alive", "votes_only": True}
    ]
    monkeypatch.setattr(preflightcmd, "ask", lambda verb: {"me": "n1", "nodes": nodes})
    monkeypatch.setattr(preflightcmd, "wwid_of", lambda device: f"naa.{device[-1]}")
    monkeypatch.setattr("os.uname", lambda: type("U", (), {"nodename": "n1"})())

    def run_command(cluster: Cluster, *words: str) -> Result:
        monkeypatch.setattr(preflightcmd, "_carrier", lambda session: cluster.carry)
        return CliRunner().invoke(main, ["preflight", "/dev/1", "--config", str(config), "--rounds", "1", *words])

    return run_command


def tagged(**switches: bool) -> Cluster:
    from fencing.model import cluster_tag

    return Cluster("naa.1", tag=cluster_tag("5d0c9a52-0000-4000-8000-000000000001"), **switches)


def test_good_storage_is_exit_code_0_and_every_node_keeps_the_verdict(command: Any) -> None:
    cluster = tagged()
    done = command(cluster)
    assert done.exit_code == 0, done.output
    assert "/dev/1 is fit" in done.output and "NOT TESTED" in done.output
    kept = [(node, each.verdict, each.risk) for node, each in cluster.judged]
    assert kept == [("n1", "kept", ""), ("n2", "kept", "")]


def test_broken_storage_is_exit_code_5_with_what_it_means_and_what_to_do(command: Any) -> None:
    cluster = tagged(drains=False)
    done = command(cluster)
    assert done.exit_code == 5
    words = Promise.LATE_WRITES.words
    assert f"BROKEN      {words.promise}" in done.output
    assert words.broken_means in done.output and words.to_do in done.output
    assert {each.risk for _, each in cluster.judged} == {"late-writes"}


def test_the_report_as_json_has_every_promise(command: Any) -> None:
    done = command(tagged(drains=False), "--json")
    report = json.loads(done.stdout)
    [device] = report["devices"]
    assert report["schema"] == 1 and report["verdict"] == device["verdict"] == "broken"
    assert [each["promise"] for each in device["promises"]] == [promise.value for promise in Promise]
    assert device["risk"] == "late-writes" and device["left"] == []


def test_what_an_earlier_preflight_found_broken_and_this_one_did_not_try_is_told(command: Any) -> None:
    cluster = tagged()
    assert "on record" not in command(cluster).output
    assert {each.untested for _, each in cluster.judged} == {"persistence"}
    cluster.on_record = "persistence"
    told = command(cluster).output
    assert "/dev/1: on record as broken" in told and "--restart-target" in told


def test_one_reason_for_several_promises_is_told_once(command: Any) -> None:
    cluster = tagged()
    own(cluster.units["naa.1"], b"n2", 0x77)
    told = command(cluster).output
    # and once more for persistence, of which there is more to tell
    assert told.count("the device is not free to be tried") == told.count("Do: mend or free") == 2
    assert told.count("as above") == told.count("NOT TESTED") - 2 == 4


def test_a_look_alone_is_exit_code_3_and_is_no_verdict_to_keep(command: Any) -> None:
    cluster = tagged()
    done = command(cluster, "--read-only")
    assert done.exit_code == 3 and cluster.judged == []


def test_what_is_no_disk_is_refused_with_nothing_asked(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_disk(device: str) -> str:
        raise OSError(15, "not a block device", device)

    monkeypatch.setattr(preflightcmd, "wwid_of", no_disk)
    cluster = tagged()
    done = command(cluster)
    assert done.exit_code == 2 and "not a block device" in done.output and cluster.acts == []


def test_what_was_left_behind_is_told() -> None:
    device = {"device": "/dev/a", "wwid": "naa.1", "verdict": "kept", "paths": [], "promises": [], "left": ["n1: key"]}
    assert "LEFT BEHIND n1: key" in render.preflight({"devices": [device]}, False)
