"""The target's set-up in a guest: what of it needs no kernel."""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hwlab.image import GUEST_DIR


@pytest.fixture
def target() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guest_target", GUEST_DIR / "target.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_slow_target_delays_writes_to_the_stamps_and_neither_reads_nor_flushes(
    target: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[list[str], str]] = []
    for number, name in enumerate(("other", "v1")):
        (tmp_path / "block" / f"dm-{number}" / "dm").mkdir(parents=True)
        (tmp_path / "block" / f"dm-{number}" / "dm" / "name").write_text(f"{name}\n")

    def run(argv: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        asked.append((argv, options.get("input", "")))
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(target.subprocess, "run", run)
    monkeypatch.setattr(target, "Path", lambda path: tmp_path / Path(path).name)
    (tmp_path / "size").write_text("4194304\n")
    assert target.slowed("v1", "/dev/ubdb", 6000) == "/dev/dm-1", "no udev rule makes a link below /dev/mapper"
    table = next(text for argv, text in asked if argv[:2] == ["dmsetup", "create"]).splitlines()
    assert table == [
        "0 6144 linear /dev/ubdb 0",
        "6144 2048 delay /dev/ubdb 6144 0 /dev/ubdb 6144 6000 /dev/ubdb 6144 0",
        "8192 4186112 linear /dev/ubdb 8192",
    ]
    assert target.slowed("v1", "/dev/ubdb", 0) == "/dev/ubdb"
