"""The client's scripts, run here on an ordinary file system: what they log must be what happened."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

import hwlab.load
import hwlab.thief
from hwlab.feed import program

LOAD = Path(hwlab.load.__file__)


def next_event(stdout: IO[str], kind: str) -> dict[str, Any]:
    for line in stdout:
        event: dict[str, Any] = json.loads(line)
        if event["t"] == kind:
            return event
    raise AssertionError(f"ended without {kind}")


def start(folder: Path, run: str = "r1") -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", program(LOAD), "--directory", str(folder), "--run", run]
    argv += ["--log", str(folder / "log" / "load.log"), "--pause-ms", "1"]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_every_acknowledged_record_is_in_the_file_and_in_the_log(tmp_path: Path) -> None:
    with start(tmp_path) as load:
        assert load.stdin and load.stdout
        next_event(load.stdout, "ack")
        load.stdin.write("stop\n")
        load.stdin.flush()
        final = next_event(load.stdout, "final")
        next_event(load.stdout, "released")
    lines = (tmp_path / "log" / "load.log").read_text().splitlines()
    assert final["acknowledged"] == len(lines) > 0
    assert final["lock_trouble"] == ""
    assert final["touches"] > 0
    assert all(line.endswith(" ok") for line in lines)
    found = hwlab.thief.read_back("r1", str(tmp_path / "drill-r1.rec"))
    assert found == {"runs": [[1, len(lines)]], "garbled": 0, "examples": []}


def test_the_load_ends_by_itself_when_nobody_listens_any_more(tmp_path: Path) -> None:
    with start(tmp_path) as load:
        assert load.stdin and load.stdout
        next_event(load.stdout, "started")
        load.stdin.close()
        assert load.wait(20) == 1


def test_the_other_client_is_refused_until_the_lock_is_released(tmp_path: Path) -> None:
    with start(tmp_path) as load:
        assert load.stdin and load.stdout
        next_event(load.stdout, "started")
        thief = hwlab.thief.Thief(hwlab.thief.Voice(), str(tmp_path / "drill-r1"), str(tmp_path / "thief.log"), 0.001)
        assert thief._attempt() == "refused"
        load.stdin.write("stop\n")
        load.stdin.flush()
        next_event(load.stdout, "released")
        assert thief._attempt() == "took"


def damaged(records: list[bytes]) -> bytes:
    return b"".join(records)


def make(run: str, *numbers: int) -> list[bytes]:
    return [hwlab.load.record(run, n, 10**12, 10**18) for n in numbers]


@pytest.mark.parametrize(
    ("data", "runs", "garbled"),
    [
        (damaged(make("r", 1, 2, 3)), [[1, 3]], 0),
        (damaged(make("r", 1, 3, 2)), [[1, 1], [3, 3], [2, 2]], 0),
        (damaged(make("r", 1, 1)), [[1, 1], [1, 1]], 0),
        (damaged(make("r", 1)) + b"\0" * 128 + damaged(make("r", 3)), [[1, 1]], 1),
        (damaged(make("r", 1, 2))[:-30], [[1, 1]], 1),
        (damaged(make("r", 1)) + damaged(make("other", 2)), [[1, 1]], 1),
        (damaged(make("r", 1)).replace(b"1", b"2", 1), [], 1),
        (b"", [], 0),
    ],
)
def test_what_is_read_back_is_told_apart_record_by_record(
    tmp_path: Path, data: bytes, runs: list[list[int]], garbled: int
) -> None:
    (tmp_path / "f").write_bytes(data)
    found = hwlab.thief.read_back("r", str(tmp_path / "f"))
    assert (found["runs"], found["garbled"]) == (runs, garbled)


@pytest.mark.parametrize("name", ["load", "thief", "reader", "asker", "witness", "stamper"])
def test_scripts_that_are_sent_to_hosts_need_nothing_but_the_standard_library(name: str) -> None:
    path = LOAD.with_name(f"{name}.py")
    text = program(path)
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported <= set(sys.stdlib_module_names)
    compile(text, name, "exec")
    assert text.isascii(), "its length is told in characters and sent in bytes"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and isinstance(importlib.util.module_from_spec(spec), ModuleType)
