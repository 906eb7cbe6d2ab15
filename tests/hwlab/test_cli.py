"""The command line of hwlab, as far as it goes without a lab."""

import json
import sys
from pathlib import Path

import pytest

from hwlab import cli
from hwlab.faults import FAULTS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hwlab", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture(autouse=True)
def no_labs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def test_list_shows_faults_drills_and_topologies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--json", "list") == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["faults"]) == set(FAULTS)
    assert "kill-primary" in shown["drills"]
    assert "default" in shown["topologies"]


@pytest.mark.parametrize("arguments", [("status",), ("exec", "n1", "true"), ("fault", "kill", "n1")])
def test_a_lab_that_does_not_exist_is_one_line_with_the_next_action(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--lab", "nowhere", *arguments) == cli.Exit.FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "hwlab --lab nowhere up" in error


def test_a_lab_name_that_could_leave_its_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--lab", "../x", "status") == cli.Exit.FAILED
    assert "not usable" in capsys.readouterr().err


def test_an_unknown_topology_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_labs: Path
) -> None:
    assert run(monkeypatch, "--lab", "nowhere", "up", "--topology", "moon") == cli.Exit.CANNOT
    assert "default" in capsys.readouterr().err
    assert list(no_labs.iterdir()) == []


def test_without_root_nothing_is_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_labs: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(no_labs / "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_labs / "cache"))
    assert run(monkeypatch, "--lab", "nowhere", "up") == cli.Exit.CANNOT
    assert capsys.readouterr().err.count("\n") == 1
    assert list(no_labs.iterdir()) == []
