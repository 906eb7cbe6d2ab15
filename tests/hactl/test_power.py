"""Fence agents, run as programs: what is believed of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hactl._power import PowerUnknown, switch_off, switch_on, unfit
from nodewatch.sections import Agent

AGENT = Agent(node="n1", agent="fence_lab", options={"ip": "10.0.0.1", "lanplus": "1"}, timeout_s=5)
HEAD = """#!/bin/sh
cd {place}; cat >stdin; action=$(sed -n 's/^action=//p' stdin); echo "$action" >>actions; cp stdin "stdin.$action"
state() {{ cat state; }}
case $action in
"""
HONEST = HEAD + "off) echo off >state;; on) echo on >state;; status) [ $(state) = on ] && exit 0; exit 2;; esac\n"


class Bench:
    """A directory with one agent and the power that it switches."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "state").write_text("on")
        self.script(HONEST)

    def script(self, text: str) -> None:
        path = self.place / AGENT.agent
        path.write_text(text.format(place=self.place))
        path.chmod(0o755)

    def run(self, what: Callable[[Agent, Path], Coroutine[Any, Any, str]], agent: Agent = AGENT) -> str:
        return asyncio.run(what(agent, self.place))

    @property
    def actions(self) -> list[str]:
        return (self.place / "actions").read_text().split()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_off_is_switched_and_read_back_with_the_options_on_stdin(bench: Bench) -> None:
    assert "read back by fence_lab" in bench.run(switch_off)
    assert bench.actions == ["status", "off", "status"]
    assert (bench.place / "stdin.off").read_text() == "ip=10.0.0.1\nlanplus=1\naction=off\n"
    assert "off already" in bench.run(switch_off)
    assert "on, read back" in bench.run(switch_on)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ("off) exit 0;; status) exit 0;; esac", "status is on"),
        ("off) exit 0;; status) exit 1;; esac", "status is unknown"),
        ("off) echo 'Unable to connect/login'; exit 1;; status) exit 1;; esac", "Unable to connect"),
        ("off) exit 2;; status) exit 8;; esac", "status is unknown"),
        ("off) exit 0;; status) kill -9 $$;; esac", "status is unknown"),
    ],
    ids=["still on", "status fails", "cannot connect", "off says what status would say", "status is killed"],
)
def test_anything_but_a_status_of_off_is_not_a_success(bench: Bench, answers: str, why: str) -> None:
    bench.script(HEAD + answers + "\n")
    with pytest.raises(PowerUnknown, match=why):
        bench.run(switch_off)


def test_off_counts_by_the_status_even_if_the_agent_failed(bench: Bench) -> None:
    bench.script(HONEST.replace("off) echo off >state;;", "off) echo off >state; exit 1;;"))
    assert "read back" in bench.run(switch_off)


def test_an_agent_that_hangs_is_ended_with_all_that_it_started(bench: Bench) -> None:
    bench.script(HEAD + "*) sleep 300 & echo $! >child; wait;; esac\n")
    began = time.monotonic()
    with pytest.raises(PowerUnknown, match="no answer in"):
        bench.run(switch_off, replace(AGENT, timeout_s=1))
    assert time.monotonic() - began < 30
    child = int((bench.place / "child").read_text())
    deadline = time.monotonic() + 10
    while _lives(child):
        assert time.monotonic() < deadline


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_agent_that_is_not_there_is_named_with_the_package(bench: Bench) -> None:
    with pytest.raises(PowerUnknown, match="install the package fence-agents"):
        bench.run(switch_off, replace(AGENT, agent="fence_absent"))


def test_the_secret_comes_from_a_file_that_nobody_else_may_read(bench: Bench) -> None:
    secret = bench.place / "secret"
    agent = replace(AGENT, secret_file=str(secret))
    with pytest.raises(PowerUnknown, match="secret_file"):
        bench.run(switch_off, agent)
    secret.write_text("tell no one\nsecond line\n")
    secret.chmod(0o640)
    with pytest.raises(PowerUnknown, match="chmod 600"):
        bench.run(switch_off, agent)
    secret.chmod(0o600)
    bench.run(switch_off, agent)
    assert "password=tell no one\naction=off\n" in (bench.place / "stdin.off").read_text()
    secret.write_text("\n")
    with pytest.raises(PowerUnknown, match="not a secret"):
        bench.run(switch_off, agent)


METADATA = '<resource-agent name="x"><actions>{}</actions></resource-agent>'


def test_an_agent_that_switches_no_power_is_unfit(bench: Bench) -> None:
    def says(*actions: str) -> str:
        text = METADATA.format("".join(f'<action name="{action}"/>' for action in actions))
        bench.script(HEAD + f"metadata) echo 'DeprecationWarning: pipes' >&2; echo '{text}';; esac\n")
        return bench.run(unfit)

    assert says("on", "off", "status", "reboot", "monitor") == ""
    assert "no action reboot" in says("on", "off", "status", "monitor")
    bench.script(HEAD + "*) echo nothing;; esac\n")
    assert "not understood" in bench.run(unfit)
