"""Reading nfsdcld's database."""

import sqlite3
from pathlib import Path

import pytest

from fs._tracking import read_recorded
from fs.clients import Recorded


def make(path: Path, current: int, recovery: int, clients: dict[int, list[bytes]]) -> Path:
    """As nfsdcld 2.6 lays it out (utils/nfsdcld/sqlite.c)."""
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE grace (current INTEGER, recovery INTEGER)")
    base.execute("INSERT INTO grace VALUES (?, ?)", (current, recovery))
    for epoch, names in clients.items():
        base.execute(f'CREATE TABLE "rec-{epoch:016x}" (id BLOB PRIMARY KEY, princhash BLOB)')
        base.executemany(f'INSERT INTO "rec-{epoch:016x}" (id) VALUES (?)', [(name,) for name in names])
    base.commit()
    base.close()
    return path


def test_in_grace_the_recovery_epoch_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "main.sqlite", 3, 2, {2: [b"a", b"b"], 3: [b"a"]})
    assert read_recorded(path) == Recorded(may_reclaim=frozenset({b"a", b"b"}), done=frozenset({b"a"}))


def test_outside_grace_the_current_epoch_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "main.sqlite", 3, 0, {3: [b"a"]})
    assert read_recorded(path) == Recorded(may_reclaim=frozenset({b"a"}), done=frozenset({b"a"}))


def test_missing_database_says_nothing_about_the_clients(tmp_path: Path) -> None:
    assert read_recorded(tmp_path / "main.sqlite") is None
    assert not (tmp_path / "main.sqlite").exists()


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to look at" * 100])
def test_broken_database_says_nothing_about_the_clients(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "main.sqlite").write_bytes(content)
    assert read_recorded(tmp_path / "main.sqlite") is None


def test_database_that_is_being_written_says_nothing_for_now(tmp_path: Path) -> None:
    path = make(tmp_path / "main.sqlite", 3, 0, {3: [b"a"]})
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    assert read_recorded(path) is None
    writer.execute("ROLLBACK")
    writer.close()
    assert read_recorded(path) == Recorded(may_reclaim=frozenset({b"a"}), done=frozenset({b"a"}))
