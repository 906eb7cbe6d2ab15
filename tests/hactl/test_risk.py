"""Storage that failed its preflight: refused for a volume, unless the risk is accepted, and then shown for good."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencing.errors import FormatRefused
from fencing.label import decode, encode
from fencing.verdict import CheckResult
from hactl.cli import diskcmd, render
from hactl.judged import Judged, Judgements
from hactl.levels import reservations_hold
from tests.fencing.conftest import label_for
from tests.hactl.test_cli import run
from tests.hactl.test_placement import SERVED, node, volume
from tests.hactl.test_preflight import CONFIG
from tests.hactl.test_status import told

WORDS = ("--address", "192.0.2.50/24", "--clients", "192.0.2.0/24", "--format")


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`volume add` up to the moment in which it would write: what the label would say, by `made`."""
    config = tmp_path / "hactl.toml"
    config.write_text(CONFIG)
    made: list[Any] = []

    def format_set(disks: Any, new: Any, identity: Any, **rest: Any) -> Any:
        made.append(new)
        raise FormatRefused("not in a test", device="x", next_action="none")

    monkeypatch.setattr(diskcmd, "ask", lambda verb: {"volumes": []})
    monkeypatch.setattr(diskcmd, "STABLE", tmp_path)
    monkeypatch.setattr(diskcmd, "wwid_of", lambda device: "naa.1")
    monkeypatch.setattr(diskcmd, "_check_stack", lambda new, disks: None)
    monkeypatch.setattr(diskcmd, "format_set", format_set)
    monkeypatch.setattr(diskcmd, "checked_device", lambda device, run: [CheckResult(name="a", ok=True, detail="")])
    monkeypatch.setattr("os.uname", lambda: type("U", (), {"nodename": "n1"})())

    def add_volume(*words: str) -> Any:
        result = run("volume", "add", "v1", "/dev/x", *WORDS, "--config", str(config), *words)
        result.made = made  # type: ignore[attr-defined]
        return result

    return add_volume


def judged(tmp_path: Path, verdict: str, risk: str = "") -> None:
    Judgements(tmp_path).keep(Judged(wwid="naa.1", verdict=verdict, risk=risk, unix_s="1", by="n1"))


def test_a_device_that_failed_its_preflight_is_refused_with_what_is_broken(add: Any, tmp_path: Path) -> None:
    judged(tmp_path, "broken", "late-writes, persistence")
    result = add()
    assert result.exit_code == 1 and result.made == []
    assert "late-writes, persistence" in result.output and "--accept-risk" in result.output
    assert add("--force").made == [], "force is about what is on the disk"


def test_an_accepted_risk_goes_into_the_label(add: Any, tmp_path: Path) -> None:
    judged(tmp_path, "broken", "late-writes, persistence")
    assert add("--accept-risk").made[0].risk == "late-writes, persistence"


@pytest.mark.parametrize(
    ("check", "promise"),
    [
        ("reserve", "operations"),
        ("preempt of an absent key", "operations"),
        ("PR OUT reaches the device", "capabilities"),
        ("type Write Exclusive - Registrants Only", "capabilities"),
    ],
)
def test_a_failed_check_needs_the_same_and_is_written_down_as_the_promise_it_breaks(
    add: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, promise: str
) -> None:
    """By those words it is known what such storage fences: nothing."""
    assert not reservations_hold(promise)
    failed = [CheckResult(name=check, ok=False, detail="no")]
    monkeypatch.setattr(diskcmd, "checked_device", lambda device, run: failed)
    assert add().made == [] and add("--force").made == []
    assert "--accept-risk" in add().output
    assert add("--accept-risk").made[0].risk == promise


def test_a_check_and_a_preflight_that_found_the_same_are_one_risk(
    add: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("persistence through power loss", "persistence through power loss is active")
    failed = [CheckResult(name=name, ok=False, detail="no") for name in names]
    monkeypatch.setattr(diskcmd, "checked_device", lambda device, run: failed)
    judged(tmp_path, "broken", "persistence")
    risk = add("--accept-risk").made[0].risk
    assert risk == "persistence" and reservations_hold(risk)


@pytest.mark.parametrize("verdict", ["kept", "not tested", None])
def test_storage_that_did_not_fail_is_no_risk(add: Any, tmp_path: Path, verdict: str | None) -> None:
    if verdict is not None:
        judged(tmp_path, verdict)
    result = add()
    assert result.made[0].risk == ""
    assert ("no preflight" in result.output) == (verdict is None)


def test_what_was_broken_stays_so_until_it_is_found_kept(add: Any, tmp_path: Path) -> None:
    kept = Judgements(tmp_path)
    one = Judged(wwid="naa.1", verdict="broken", risk="late-writes, persistence", unix_s="1", by="n1")
    kept.keep(one)
    in_use = replace(one, verdict="not tested", risk="", unix_s="2", untested="fence, late-writes, persistence")
    assert kept.keep(in_use).risk == one.risk
    assert add().made == [], "a look at a device in use takes nothing back"
    no_restart = replace(one, verdict="kept", risk="", unix_s="3", untested="persistence")
    assert kept.keep(no_restart) == replace(no_restart, verdict="broken", risk="persistence")
    assert "found broken: persistence" in add().output
    more = replace(one, risk="operations", untested="fence, persistence")
    assert kept.keep(more).risk == "operations, persistence"
    kept.keep(replace(one, verdict="kept", risk=""))
    assert add().made[0].risk == ""


def test_a_verdict_of_an_earlier_build_is_understood_and_a_garbled_one_is_replaced(tmp_path: Path) -> None:
    kept = Judgements(tmp_path)
    kept.keep(Judged(wwid="naa.1", verdict="broken", risk="fence", unix_s="1", by="n1"))
    [path] = (tmp_path / "preflight").iterdir()
    old = json.loads(path.read_text())
    del old["untested"]
    path.write_text(json.dumps(old))
    found = kept.of("naa.1")
    assert found is not None and found.risk == "fence" and found.untested == ""
    path.write_text("{")
    new = Judged(wwid="naa.1", verdict="kept", risk="", unix_s="2", by="n1", untested="persistence")
    assert kept.keep(new) == new == kept.of("naa.1")


def test_a_garbled_verdict_refuses(add: Any, tmp_path: Path) -> None:
    judged(tmp_path, "kept")
    [path] = (tmp_path / "preflight").iterdir()
    path.write_text("{")
    result = add("--accept-risk")
    assert result.exit_code == 1 and "garbled" in result.output and result.made == []


def test_the_label_carries_the_risk_and_without_one_older_nodes_can_read_it() -> None:
    plain = label_for("naa.1")
    risky = replace(plain, risk="late-writes")
    assert decode(encode(risky)) == risky and risky.format == 2
    assert decode(encode(plain)) == plain and plain.format == 1


def test_the_status_shows_an_accepted_risk_for_as_long_as_the_volume_lives() -> None:
    risky = {name: node(volume("serving" if name == "n1" else "standby", risk="late-writes")) for name in SERVED}
    state = told(**risky)
    (one,) = state["volumes"]
    assert one["risk"] == "late-writes"
    assert any("late-writes" in line and "accepted" in line for line in one["problems"])
    assert "volume v1: its storage does not keep what it should (late-writes)" in render.status(state)
    assert all("storage does not keep" not in line for line in told(**SERVED)["volumes"][0]["problems"])
