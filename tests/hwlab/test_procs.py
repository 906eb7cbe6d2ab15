"""Finding and ending processes by session, as the power switch of a UML host does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hwlab import procs
from hwlab.errors import LabError

CHILD = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"


@pytest.fixture
def session() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, start_new_session=True)
    yield process
    for pid in procs.of_session(process.pid, procs.start_ticks(process.pid) or 0):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def child_of(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_a_session_is_found_leader_first(session: "subprocess.Popen[bytes]") -> None:
    child = child_of(session)
    ticks = procs.start_ticks(session.pid)
    assert ticks is not None
    assert procs.of_session(session.pid, ticks) == [session.pid, child]


def test_a_younger_process_with_the_same_number_is_not_mistaken(session: "subprocess.Popen[bytes]") -> None:
    ticks = procs.start_ticks(session.pid)
    assert ticks is not None
    assert procs.of_session(session.pid, ticks - 1) == []


def test_everything_that_outlived_its_leader_is_ended_too(session: "subprocess.Popen[bytes]") -> None:
    child = child_of(session)
    ticks = procs.start_ticks(session.pid)
    assert ticks is not None
    session.kill()
    session.wait()
    assert procs.of_session(session.pid, ticks) == [child]
    procs.kill_all(lambda: procs.of_session(session.pid, ticks), 10, "session")
    assert procs.start_ticks(child) is None


def test_stopping_and_continuing(session: "subprocess.Popen[bytes]") -> None:
    child_of(session)
    procs.signal_untraced([session.pid], procs.STOP)
    os.waitpid(session.pid, os.WUNTRACED)
    assert procs.is_stopped(session.pid)
    procs.signal_untraced([session.pid], procs.CONTINUE)
    os.waitpid(session.pid, os.WCONTINUED)
    assert not procs.is_stopped(session.pid)


def test_a_process_that_does_not_end_is_named() -> None:
    with pytest.raises(LabError, match=r"host x: processes \[999999999\]"):
        procs.kill_all(lambda: [999999999], 0, "host x")
