"""fence_ipmilan itself against OpenIPMI's simulator of a management controller, through `hactl._power`.

Needs `ipmi_sim` (package openipmi), `ipmitool`, and fence-agents in /usr/sbin or in $HACTL_FENCE_AGENTS.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hactl._power import DIRECTORY, PowerUnknown, switch_off, switch_on, unfit
from nodewatch.sections import Agent

AGENTS = Path(os.environ.get("HACTL_FENCE_AGENTS", DIRECTORY))
LAN = """name "n1"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin md5
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{switch}"
  user 1 false "" "none" user 10 md5
  user 2 true "hactl" "secret" admin 10 md5
"""
CONTROLLER = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"
SWITCH = """#!/bin/sh
case "$1 $2" in "get power") echo "power:$(cat {state})";; "set power") echo "$3" >{state};; esac
"""


@dataclass
class Controller:
    place: Path
    agent: Agent

    @property
    def on(self) -> bool:
        return (self.place / "power").read_text().strip() == "1"


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    missing = [name for name in ("ipmi_sim", "ipmitool") if shutil.which(name) is None]
    missing += [] if (AGENTS / "fence_ipmilan").exists() else ["fence_ipmilan"]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian packages openipmi, ipmitool, fence-agents)")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    switch = tmp_path / "switch"
    switch.write_text(SWITCH.format(state=tmp_path / "power"))
    switch.chmod(0o755)
    files = {
        "power": "1",
        "secret": "secret\n",
        "controller.emu": CONTROLLER,
        "lan": LAN.format(port=port, switch=switch),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "state").mkdir()
    argv = ["ipmi_sim", "-n", "-c", str(tmp_path / "lan"), "-f", str(tmp_path / "controller.emu")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, "-s", str(tmp_path / "state")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    options = {"ip": "127.0.0.1", "ipport": str(port), "username": "hactl", "lanplus": "1", "cipher": "3"}
    agent = Agent(node="n1", agent="fence_ipmilan", options=options, secret_file=str(tmp_path / "secret"))
    try:
        _wait_until_it_answers(port)
        yield Controller(tmp_path, agent)
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(port: int) -> None:
    argv = ["ipmitool", "-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", str(port), "-U", "hactl", "-P", "secret"]
    deadline = time.monotonic() + 30
    while subprocess.run([*argv, "chassis", "power", "status"], capture_output=True).returncode != 0:
        assert time.monotonic() < deadline, "ipmi_sim does not answer"


def test_a_real_agent_switches_off_reads_back_and_switches_on(controller: Controller) -> None:
    agent = controller.agent
    assert asyncio.run(unfit(agent, AGENTS)) == ""
    assert "read back by fence_ipmilan" in asyncio.run(switch_off(agent, AGENTS))
    assert not controller.on
    assert "off already" in asyncio.run(switch_off(agent, AGENTS))
    assert "read back by fence_ipmilan" in asyncio.run(switch_on(agent, AGENTS))
    assert controller.on


def test_a_wrong_password_or_a_controller_that_is_not_there_proves_nothing(controller: Controller) -> None:
    away = replace(controller.agent, options={**controller.agent.options, "ipport": "9"}, timeout_s=3)
    with pytest.raises(PowerUnknown):
        asyncio.run(switch_off(away, AGENTS))
    (controller.place / "secret").write_text("guessed\n")
    with pytest.raises(PowerUnknown, match="status is unknown"):
        asyncio.run(switch_off(controller.agent, AGENTS))
    assert controller.on
