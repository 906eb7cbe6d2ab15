"""A machine that cannot run a lab hears one clear line, before anything is changed."""

import os
import shutil
from pathlib import Path

import pytest

from hwlab import preconditions
from hwlab.errors import PreconditionError


@pytest.fixture
def good_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(preconditions, "TUN", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def test_a_good_machine_has_no_problem(good_machine: Path) -> None:
    assert preconditions.machine_problem(disk_needed_mb=1) is None
    preconditions.preconditions(disk_needed_mb=1)


def test_without_root(good_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in (preconditions.machine_problem() or "")


def test_without_apt(good_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert "needs apt" in (preconditions.machine_problem() or "")


def test_without_disk_space(good_machine: Path) -> None:
    assert "MB of free disk" in (preconditions.machine_problem(disk_needed_mb=10**9) or "")


def test_without_tap_devices(good_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "TUN", good_machine / "missing")
    assert "missing: load the module" in (preconditions.machine_problem(disk_needed_mb=1) or "")


def test_missing_tools_are_named_by_their_packages(good_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"linux.uml", "mmdebstrap"}
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in missing else tool)
    with pytest.raises(PreconditionError, match="apt-get install mmdebstrap user-mode-linux"):
        preconditions.preconditions(disk_needed_mb=1)


def test_the_check_is_one_line_and_exit_code_2_and_changes_nothing(
    good_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert preconditions.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(good_machine.iterdir()) == []
