"""The architecture, held by machine: pure cores import nothing that touches the kernel, the network or the clock.

The directions of imports between the packages are in pyproject.toml (import-linter).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
TOUCHING = {
    "asyncio", "ctypes", "fcntl", "mmap", "multiprocessing", "os", "select", "selectors", "signal",
    "socket", "subprocess", "threading", "time", "pyroute2", "pyudev",
}  # fmt: skip
PURE_HACTL = (
    "controller", "placement", "messages", "status", "explain", "members", "leader", "nodestatus", "sets", "preflight",
    "exercise", "levels",
)  # fmt: skip


def pure_modules() -> list[Path]:
    """Every module below the three siblings without a leading underscore, and hactl's own cores."""
    siblings = [
        path
        for package in ("fencing", "nodewatch", "fs")
        for path in sorted((TOP / package).rglob("*.py"))
        if not path.name.startswith("_")
    ]
    return siblings + [TOP / "hactl" / f"{name}.py" for name in PURE_HACTL]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_pure_module_touches_nothing(path: Path) -> None:
    names = imported(path)
    assert {name.partition(".")[0] for name in names} & TOUCHING == set()
    edges = [name for name in names if any(part.startswith("_") and part != "__future__" for part in name.split("."))]
    assert edges == []


def test_there_are_pure_modules_to_look_at() -> None:
    assert len(pure_modules()) > 30
