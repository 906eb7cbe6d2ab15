"""Finding and ending the processes of a program, as the power switch of a UML host does."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwlab import procs
from hwlab.errors import LabError

SCRIPT = """#!/bin/bash
( exec -a "$0" sleep 60 ) &
echo started
exec -a "$0" sleep 60
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "start"
    path.write_text(SCRIPT)
    path.chmod(0o755)
    return path


@pytest.fixture
def leader(program: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that replaced itself and left a child, as a kernel does."""
    process = subprocess.Popen([str(program)], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    procs.kill_all(lambda: procs.started_by(program), 10, "clean up")
    process.wait()
    process.stdout.close()


def test_all_processes_of_a_program_are_found_its_leader_first(
    leader: "subprocess.Popen[bytes]", program: Path
) -> None:
    found = procs.started_by(program)
    assert found[0] == leader.pid
    assert len(found) == 2
    assert [procs.is_session_leader(pid) for pid in found] == [True, False]


def test_another_program_with_a_similar_name_is_left_alone(leader: "subprocess.Popen[bytes]", program: Path) -> None:
    assert procs.started_by(program.with_name("star")) == []
    assert procs.started_by(program.parent) == []


def test_what_outlived_its_leader_is_ended_too(leader: "subprocess.Popen[bytes]", program: Path) -> None:
    leader.kill()
    leader.wait()
    [orphan] = procs.started_by(program)
    procs.kill_all(lambda: procs.started_by(program), 10, "host")
    assert procs.started_by(program) == []
    assert not procs.is_session_leader(orphan)


def test_stopping_and_continuing(leader: "subprocess.Popen[bytes]") -> None:
    procs.signal_untraced([leader.pid], procs.STOP)
    os.waitpid(leader.pid, os.WUNTRACED)
    assert procs.is_stopped(leader.pid)
    procs.signal_untraced([leader.pid], procs.CONTINUE)
    os.waitpid(leader.pid, os.WCONTINUED)
    assert not procs.is_stopped(leader.pid)


def test_who_stops_a_program_finds_it_stopped(
    leader: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    procs.stop_untraced(lambda: [leader.pid], 20, "host x")
    assert procs.is_stopped(leader.pid)
    procs.signal_untraced([leader.pid], procs.CONTINUE)
    os.waitpid(leader.pid, os.WCONTINUED)
    monkeypatch.setattr(procs, "signal_untraced", lambda pids, number: None)
    with pytest.raises(LabError, match=r"host x: process \d+ does not stop"):
        procs.stop_untraced(lambda: [leader.pid], 0, "host x")


def test_a_process_that_does_not_end_is_named() -> None:
    with pytest.raises(LabError, match=r"host x: processes \[999999999\]"):
        procs.kill_all(lambda: [999999999], 0, "host x")
