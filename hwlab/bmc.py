"""A baseboard management controller for each node of an emulated lab: OpenIPMI's `ipmi_sim`, whose power switch is the
lab's own.

It speaks IPMI over LAN, so fence agents work on it as on hardware. It listens on the lab's management network, lives in
the lab's network namespace, and ends with it. `python -m hwlab.bmc LAB HOST get|set power [0|1]` is what it calls.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hwlab import netns, procs
from hwlab.errors import LabError
from hwlab.paths import PROJECT_DIR, state_dir
from hwlab.topology import MGMT, Role, Topology

USER = "hactl"
FIRST_PORT = 6230
SECRET = "/etc/hactl/bmc.secret"
"""Where nodes keep the password."""

_LAN = """name "{host}"
set_working_mc 0x20
  startlan 1
    addr {address} {port}
    priv_limit admin
    allowed_auths_callback md5
    allowed_auths_user md5
    allowed_auths_operator md5
    allowed_auths_admin md5
    guid {guid}
  endlan
  chassis_control "{switch}"
  user 1 false "" "none" user 10 md5
  user 2 true "{user}" "{password}" admin 10 md5
"""
_CONTROLLER = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
# The words after the host are ipmi_sim's own.
_SWITCH = """#!/bin/sh
cd {project} && exec {python} -B -m hwlab.bmc {lab} {host} "$@"
"""


def ensure(lab: str, topology: Topology) -> None:
    """Start the controllers that are not running. LabError without ipmi_sim."""
    if topology.bmc is None:
        return
    if shutil.which("ipmi_sim") is None:
        raise LabError(f"topology {topology.name} needs ipmi_sim: apt-get install openipmi")
    for number, host in enumerate(topology.with_role(Role.NODE), start=1):
        directory = _directory(lab, host.name)
        if procs.started_by(directory / "lan.conf"):
            continue
        (directory / "state").mkdir(parents=True, exist_ok=True)
        _write(directory, lab, host.name, address(topology), FIRST_PORT + number)
        argv = [*netns.entering(lab), "ipmi_sim", "-c", str(directory / "lan.conf")]
        argv += ["-f", str(directory / "controller.emu"), "-s", str(directory / "state"), "-n"]
        with (directory / "log").open("ab") as log:
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True)


def address(topology: Topology) -> str:
    """Where all of them listen, each on a port of its own: this machine's end of the management network."""
    return str(next(topology.networks[MGMT].hosts()))


def password(lab: str) -> str:
    """One for all nodes; made with the lab."""
    path = state_dir(lab) / "bmc.password"
    if not path.exists():
        path.write_text(secrets.token_hex(6))
        path.chmod(0o600)
    return path.read_text()


def configuration(topology: Topology) -> str:
    """What hactl.toml says of it: levels and an agent for each node; empty for a topology without controllers."""
    if topology.bmc is None:
        return ""
    text = f"\n[fencing]\nlevels = {_words(topology.bmc.levels)}\ndistrust = {_words(topology.bmc.distrust)}\n"
    for number, host in enumerate(topology.with_role(Role.NODE), start=1):
        options = f'ip = "{address(topology)}", ipport = {FIRST_PORT + number}, lanplus = 1, cipher = 3'
        text += f'\n[[fencing.agent]]\nnode = "{host.name}"\nagent = "fence_ipmilan"\nsecret_file = "{SECRET}"\n'
        text += f'options = {{ {options}, username = "{USER}" }}\ntimeout_s = 60\n'
    return text


def _words(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def _directory(lab: str, host: str) -> Path:
    return state_dir(lab) / "bmc" / host


def _write(directory: Path, lab: str, host: str, where: str, port: int) -> None:
    switch = directory / "switch"
    switch.write_text(_SWITCH.format(project=PROJECT_DIR, python=sys.executable, lab=lab, host=host))
    switch.chmod(0o755)
    (directory / "controller.emu").write_text(_CONTROLLER)
    guid = secrets.token_hex(16)
    text = _LAN.format(host=host, address=where, port=port, guid=guid, switch=switch, user=USER, password=password(lab))
    (directory / "lan.conf").write_text(text)


def main(argv: Sequence[str]) -> int:
    """One call of ipmi_sim: exit status 0, and `power:1` or `power:0` on stdout for `get power`."""
    from hwlab.lab import open_lab
    from hwlab.protocols import PowerState

    lab, host, verb, *words = argv
    power = open_lab(lab).hosts[host].power
    for name, value in zip(words[::2], words[1::2], strict=False) if verb == "set" else ():
        if name == "power":
            power.on() if value == "1" else power.off()
    if verb == "get" and words == ["power"]:
        print(f"power:{int(power.state() is not PowerState.OFF)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
