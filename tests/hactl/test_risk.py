"""Storage that failed its preflight: refused for a volume, unless the risk is accepted, and then shown for good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencing.errors import FormatRefused
from fencing.label import decode, encode
from fencing.verdict import CheckResult
from hactl.cli import diskcmd, render
from hactl.judged import Judged, Judgements
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


def test_a_failed_check_needs_the_same_and_is_written_down_too(
    add: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [CheckResult(name="reserve", ok=False, detail="no")]
    monkeypatch.setattr(diskcmd, "checked_device", lambda device, run: failed)
    assert add().made == []
    assert add("--accept-risk").made[0].risk == "reserve"


@pytest.mark.parametrize("verdict", ["kept", "not tested", None])
def test_storage_that_did_not_fail_is_no_risk(add: Any, tmp_path: Path, verdict: str | None) -> None:
    if verdict is not None:
        judged(tmp_path, verdict)
    result = add()
    assert result.made[0].risk == ""
    assert ("no preflight" in result.output) == (verdict is None)


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
