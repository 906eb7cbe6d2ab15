from __future__ import annotations

from pathlib import Path

from nodewatch.lease import Timing

PAGE = Path(__file__).parents[2] / "docs" / "nodewatch.md"


def test_the_timing_table_in_the_documentation_is_the_one_that_runs() -> None:
    table = "\n".join(f"{row.phase:<26}{row.best_ms:>7}{row.worst_ms:>7}" for row in Timing().table())
    assert f"```text\n{table}\n```" in PAGE.read_text(), f"put this into {PAGE.name}:\n{table}"


def test_the_guard_in_the_documentation_is_the_one_that_runs() -> None:
    assert f"| {Timing().guard_ms} | its last lease must have ended" in PAGE.read_text()
