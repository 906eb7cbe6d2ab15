"""The background thread of a volume."""

import os
import threading

import pytest

from fs._attendant import Attendant

WITHIN_S = 10.0


def test_readable_descriptor_is_answered() -> None:
    attendant, read, (out, into) = Attendant("v1"), threading.Event(), os.pipe()

    def readable() -> None:
        assert os.read(out, 1) == b"x"
        read.set()

    attendant.watch(out, readable)
    os.write(into, b"x")
    assert read.wait(WITHIN_S)
    attendant.close()
    os.close(out)
    os.close(into)


def test_things_done_later_are_done_in_the_order_of_their_time() -> None:
    clock_s = [0.0]
    attendant, done, ended = Attendant("v1", now_s=lambda: clock_s[0]), [], threading.Event()
    attendant.later(60, ended.set)
    attendant.later(20, lambda: done.append("second"))
    attendant.later(10, lambda: done.append("first"))
    assert not done
    clock_s[0] = 1.0
    assert ended.wait(WITHIN_S)
    assert done == ["first", "second"]
    attendant.close()


def test_action_that_raises_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    attendant, ended = Attendant("v1"), threading.Event()
    attendant.later(0, lambda: os.close(-1))
    attendant.later(10, ended.set)
    assert ended.wait(WITHIN_S)
    assert "volume=v1 background action failed" in caplog.text
    attendant.close()


def test_forgotten_things_are_not_done() -> None:
    attendant, done, ended = Attendant("v1"), [], threading.Event()
    attendant.later(1000, lambda: done.append("too late"))
    attendant.forget()
    attendant.later(0, ended.set)
    assert ended.wait(WITHIN_S)
    assert not done
    attendant.close()


def test_close_without_any_work_returns() -> None:
    Attendant("v1").close()
