"""The driver for real hosts, with commands of this machine in place of a power switch."""

from pathlib import Path

import pytest

from hwlab.errors import LabError
from hwlab.protocols import PowerState
from hwlab.sshlab import CommandConsole, CommandPower, SshLab
from hwlab.topology import parse
from tests.hwlab.test_faults import FakeCommand

TOPOLOGY = """
name = "rack"
driver = "ssh"
[networks]
mgmt = "192.0.2.0/26"
lan = "192.0.2.64/26"
[[host]]
name = "n1"
role = "node"
addresses = { mgmt = "192.0.2.11", lan = "192.0.2.75" }
interfaces = { lan = "eno2" }
[power]
off = "echo off {host}"
"""


def power(tmp_path: Path, **templates: str) -> tuple[CommandPower, list[str]]:
    calls: list[str] = []
    return CommandPower("n1", templates, FakeCommand(calls, "run")), calls


def test_the_hosts_name_is_put_into_the_command(tmp_path: Path) -> None:
    switch, calls = power(tmp_path, off=f"touch {tmp_path}/{{host}}.off")
    switch.off()
    assert (tmp_path / "n1.off").exists()
    assert calls == ["run.forget"]


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ("Chassis Power is on", PowerState.ON),
        ("Chassis Power is off", PowerState.OFF),
        ("domain paused", PowerState.PAUSED),
        ("no idea", PowerState.UNKNOWN),
    ],
)
def test_the_state_is_read_from_what_the_command_prints(tmp_path: Path, printed: str, state: PowerState) -> None:
    switch, _ = power(tmp_path, state=f"echo {printed}")
    assert switch.state() is state


def test_a_missing_command_says_what_to_add(tmp_path: Path) -> None:
    switch, _ = power(tmp_path)
    with pytest.raises(LabError, match=r"\[power\] has no `pause`"):
        switch.pause()
    assert switch.state() is PowerState.UNKNOWN


def test_a_failing_command_is_an_error(tmp_path: Path) -> None:
    switch, _ = power(tmp_path, on="false")
    with pytest.raises(LabError, match="status 1"):
        switch.on()


def test_a_console_is_optional(tmp_path: Path) -> None:
    assert CommandConsole("n1", {}).text() == ""
    assert CommandConsole("n1", {"console": "echo {host} booted"}).text() == "n1 booted\n"


def test_the_network_that_carries_ssh_cannot_be_cut() -> None:
    lab = SshLab("rack", parse(TOPOLOGY, "rack"), TOPOLOGY)
    assert set(lab.hosts["n1"].links) == {"lan"}
