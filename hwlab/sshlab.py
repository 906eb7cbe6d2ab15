"""Driver `ssh`: hosts that exist already, reached over the network.

What the topology has to say about them: `ssh` (destination, default root@ADDRESS on mgmt) and `interfaces` (network
-> interface name on the host) for each host, and templates of commands for the power switch, run on this machine:

    [power]
    on = "ipmitool -H {host}-bmc power on"
    off = "ipmitool -H {host}-bmc power off"      # must be hard: no shutdown
    pause = "virsh suspend {host}"                 # optional, for virtual machines
    resume = "virsh resume {host}"
    state = "ipmitool -H {host}-bmc power status"  # prints a word that contains on, off or paused
    console = "cat /var/log/conserver/{host}.log"  # optional

UNTESTED on real machines: its parts are tested with a fake power command only. The target and the logins to it
are the owner's work; `hwlab.strategy` starts from a disk that all nodes see.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping

from hwlab import record
from hwlab.errors import LabError
from hwlab.paths import runtime_dir
from hwlab.protocols import Command, Disk, Host, LinkState, PowerState, Progress
from hwlab.ssh import SshCommand, in_parallel
from hwlab.topology import MGMT, HostSpec, Topology

BOOT_TIMEOUT_S = 600.0
POWER_TIMEOUT_S = 120.0


class SshLab:
    """`hwlab.protocols.Lab` of machines that are there already: `up` powers on, `down` only forgets them."""

    def __init__(self, name: str, topology: Topology, text: str) -> None:
        self.name = name
        self.driver = "ssh"
        self.topology = topology
        self._text = text
        self.disks: Mapping[str, Disk] = {
            lun.name: Disk(name=lun.name, device=lun.device, wwid=lun.wwid, size_mb=lun.size_mb)
            for lun in topology.luns
        }
        self.hosts: Mapping[str, Host] = {spec.name: self._host(spec) for spec in topology.hosts}

    def up(self, progress: Progress) -> None:
        """See `Lab.up`."""
        with record.locked(self.name):
            record.write(self.name, record.Record(topology=self._text, image=""))
            for host in self.hosts.values():
                if host.power.state() is PowerState.OFF:
                    progress(f"lab {self.name}: power on {host.name}")
                    host.power.on()
            in_parallel(lambda host: host.command.wait_reachable(BOOT_TIMEOUT_S), self.hosts.values())
        progress(f"lab {self.name}: {len(self.hosts)} hosts reachable")

    def down(self, progress: Progress) -> None:
        """See `Lab.down`: closes connections and forgets the lab. The machines keep running."""
        with record.locked(self.name):
            in_parallel(lambda host: host.command.forget(), self.hosts.values())
            record.forget(self.name)
        progress(f"lab {self.name}: forgotten; its machines keep running")

    def exists(self) -> bool:
        """See `Lab.exists`."""
        return record.read(self.name) is not None

    def _host(self, spec: HostSpec) -> Host:
        command = SshCommand(
            spec.name,
            spec.ssh or f"root@{spec.addresses[MGMT]}",
            key_file=None,
            control=runtime_dir(self.name) / f"ssh-{spec.name}",
        )
        return Host(
            name=spec.name,
            role=spec.role,
            addresses=spec.addresses,
            command=command,
            power=CommandPower(spec.name, self.topology.power, command),
            console=CommandConsole(spec.name, self.topology.power),
            links={
                network: InterfaceLink(command, spec.interfaces.get(network, network))
                for network in spec.addresses
                if network != MGMT
            },
            interfaces=spec.interfaces,
            peers=self.topology.peers(spec.name),
        )


class CommandPower:
    """`hwlab.protocols.Power` by command templates; `{host}` stands for the host's name."""

    def __init__(self, host: str, templates: Mapping[str, str], command: Command) -> None:
        self._host = host
        self._templates = templates
        self._command = command

    def on(self) -> None:
        """See `Power.on`."""
        _run_template(self._templates, "on", self._host)

    def off(self) -> None:
        """See `Power.off`."""
        _run_template(self._templates, "off", self._host)
        self._command.forget()

    def pause(self) -> None:
        """See `Power.pause`."""
        _run_template(self._templates, "pause", self._host)

    def resume(self) -> None:
        """See `Power.resume`."""
        _run_template(self._templates, "resume", self._host)

    def state(self) -> PowerState:
        """See `Power.state`."""
        if "state" not in self._templates:
            return PowerState.UNKNOWN
        words = _run_template(self._templates, "state", self._host).lower().split()
        for state in (PowerState.PAUSED, PowerState.OFF, PowerState.ON):
            if state.value in words:
                return state
        return PowerState.UNKNOWN


class CommandConsole:
    """`hwlab.protocols.Console` by a command template; empty if there is none."""

    def __init__(self, host: str, templates: Mapping[str, str]) -> None:
        self._host = host
        self._templates = templates

    def text(self) -> str:
        """See `Console.text`."""
        if "console" not in self._templates:
            return ""
        return _run_template(self._templates, "console", self._host)


class InterfaceLink:
    """`hwlab.protocols.Link`: the host's own interface goes down, which needs a second way in (mgmt)."""

    def __init__(self, command: Command, interface: str) -> None:
        self._command = command
        self._interface = interface

    def cut(self) -> None:
        """See `Link.cut`."""
        self._command.run(["ip", "link", "set", self._interface, "down"])

    def heal(self) -> None:
        """See `Link.heal`. Addresses stay on an interface that is down; routes through it do not come back."""
        self._command.run(["ip", "link", "set", self._interface, "up"])

    def state(self) -> LinkState:
        """See `Link.state`."""
        shown = self._command.run(["ip", "-o", "link", "show", self._interface]).text
        flags = shown.partition("<")[2].partition(">")[0].split(",")
        return LinkState.UP if "UP" in flags else LinkState.CUT


def _run_template(templates: Mapping[str, str], action: str, host: str) -> str:
    """Output of the command for `action`; LabError if the topology has none or it fails."""
    if action not in templates:
        raise LabError(f"the topology's [power] has no `{action}`: add a command, or leave this drill out")
    argv = [word.replace("{host}", host) for word in shlex.split(templates[action])]
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=POWER_TIMEOUT_S)
    if result.returncode != 0:
        raise LabError(f"`{shlex.join(argv)}` failed with status {result.returncode}: {result.stderr.strip()}")
    return result.stdout
