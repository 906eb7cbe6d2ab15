"""Bring a lab, from whatever state it is in, to "cluster running, volume served, client has it mounted".

Each step looks at what is there and does what is missing, so `serve` both sets up a new lab and heals one after
a drill. Waiting is polling a condition with a deadline. Nothing here knows which driver is below.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hwlab import bmc, hostfaults, payload
from hwlab.errors import LabError
from hwlab.faults import DAEMON, NODEWATCH, UNDO_COMMANDS
from hwlab.protocols import Host, Lab, LinkState, PowerState, Progress
from hwlab.ssh import in_parallel
from hwlab.topology import LAN, NVME, Role, Topology, VolumeSpec

T = TypeVar("T")

CONFIG = "/etc/hactl/hactl.toml"
KEY = "/etc/hactl/cluster.key"
METRICS_PORT = 9747
CLUSTER = "demo"
COROSYNC = "corosync"

# Says on the first node that the strategy has made the volume: an empty list of volumes means "not found yet" then.
MARKER_DIR = "/var/lib/hwlab"

LUN_TIMEOUT_S = 60.0
CLUSTER_TIMEOUT_S = 90.0
SERVING_TIMEOUT_S = 120.0
MOUNT_TIMEOUT_S = 60.0
# The first Python of an emulated processor that has just booted.
STATUS_TIMEOUT_S = 120.0


def serve(lab: Lab, say: Progress) -> None:
    """Undo all faults, then do every step that is not done yet.

    LabError (LabLost where a host does not answer) names the step that did not get there, and what it saw.
    """
    volume = lab.topology.volume
    installed = with_role(lab, Role.NODE)
    nodes = [host for host in installed if host.name not in lab.topology.spare]
    voters = with_role(lab, Role.VOTER)
    if volume is None or not nodes:
        raise LabError(f"topology {lab.topology.name} has no [volume] or no nodes: nothing to serve")
    started = time.monotonic()
    undo_faults(lab, say)
    lab.up(say)
    undo_commands(lab)
    install([*installed, *voters], say)
    wait_for_disks(lab, installed, say)
    options = [*engine_options(lab.topology), *witness_options(lab)]
    configure([*nodes, *voters], say, options, further_sections(lab.topology))
    give_secrets(lab, nodes)
    start_engine(nodes, say, lab.topology.engine)
    add_witness(lab, nodes, say)
    start_voters(voters)
    start_daemons(nodes, say)
    add_volume(lab, volume, nodes, say)
    wait_until_serving(volume, nodes, say)
    in_parallel(lambda client: mount(client, volume, say), with_role(lab, Role.CLIENT))
    say(f"cluster: volume {volume.name} is served and mounted [{time.monotonic() - started:.1f} s]")


def with_role(lab: Lab, role: Role) -> list[Host]:
    """The lab's hosts of one kind, in the topology's order."""
    return [host for host in lab.hosts.values() if host.role is role]


def undo_faults(lab: Lab, say: Progress) -> None:
    """Thaw what is frozen, heal every cut, let stopped processes go on. Hosts that are off are for `Lab.up`."""
    for host in lab.hosts.values():
        if host.power.state() is PowerState.PAUSED:
            say(f"cluster: resuming {host.name}")
            host.power.resume()
        if host.power.state() is not PowerState.OFF:
            for network, link in host.links.items():
                if link.state() is LinkState.CUT:
                    say(f"cluster: healing {host.name}'s link to {network}")
                    link.heal()


def undo_commands(lab: Lab) -> None:
    """Undo what faults did on the hosts themselves: filters, load, clocks."""

    def on(host: Host) -> None:
        healed = hostfaults.unfiltered(host.interfaces.get(LAN, LAN)) if LAN in host.links else ""
        host.command.run(["sh", "-c", healed + UNDO_COMMANDS])

    in_parallel(on, [*with_role(lab, Role.NODE), *with_role(lab, Role.VOTER)])


def install(nodes: list[Host], say: Progress) -> None:
    """The code under test on every node; running daemons are restarted if it changed."""
    archive = payload.build()

    def to(host: Host) -> None:
        if host.command.run(["cat", payload.DIGEST_FILE], check=False).text == archive.digest:
            return
        say(f"cluster: installing hactl on {host.name}")
        script = (
            # sync: a drill may take the power away a second later.
            f"rm -rf {payload.LIB_DIR} && tar -x -C / && sync && systemctl daemon-reload && "
            f"systemctl try-restart {NODEWATCH} {DAEMON}"
        )
        host.command.run(["sh", "-c", script], input=archive.tar, timeout_s=60)

    in_parallel(to, nodes)


def wait_for_disks(lab: Lab, nodes: list[Host], say: Progress) -> None:
    """Every node sees every shared disk under its name.

    A name can be missing although the disk is there: when udev looked at the disk while the storage network was cut,
    it took the name away, and no event tells it that the disk answers again.
    """
    devices = [disk.device for disk in lab.disks.values()]
    tests = " && ".join([f"[ -b {shlex.quote(device)} ]" for device in devices] + paths_up(lab.topology)) or "true"
    script = f"until {tests}; do udevadm trigger --subsystem-match=block; sleep 0.5; done"

    def on(host: Host) -> None:
        argv = ["timeout", f"{LUN_TIMEOUT_S:g}", "sh", "-c", script]
        if host.command.run(argv, timeout_s=LUN_TIMEOUT_S + 10, check=False).status != 0:
            raise LabError(
                f"{host.name} does not see {', '.join(devices)} after {LUN_TIMEOUT_S:g} s: "
                f"look at `journalctl -u iscsid -u hwlab-nvme` there and at hwlab-target.service on the target"
            )

    in_parallel(on, nodes)


def paths_up(topology: Topology) -> list[str]:
    """With several paths, every one of them: what takes one away must not take the last one."""
    if topology.transport == NVME:
        live = "grep -lx live /sys/class/nvme/nvme*/state | wc -l"
        return [f'[ "$({live})" -ge {len(topology.portals())} ]']
    if not topology.multipath:
        return []
    number = len(topology.luns) * len(topology.portals())
    return [f'[ "$(cat /sys/class/block/sd*/device/state | grep -c running)" -ge {number} ]']


def give_secrets(lab: Lab, nodes: list[Host]) -> None:
    """The password of the nodes' management controllers, where the topology has some."""
    if lab.topology.bmc is not None:
        secret = f"{bmc.password(lab.name)}\n".encode()
        in_parallel(lambda host: host.command.put({bmc.SECRET: secret}, mode=0o600), nodes)


def further_sections(topology: Topology) -> bytes:
    """What hactl.toml says beyond what `hactl init` writes."""
    timing = timing_section(topology.timing) if topology.timing else b""
    return timing + bmc.configuration(topology).encode() + f"\n{topology.sections}".encode()


def configure(nodes: list[Host], say: Progress, options: Sequence[str] = (), further: bytes = b"") -> None:
    """One configuration and one key, made by the first node that has none to follow, the same on all. `further`: more
    sections than `hactl init` writes."""

    def read(host: Host) -> tuple[bytes, bytes] | None:
        files = [host.command.run(["cat", path], check=False) for path in (CONFIG, KEY)]
        return None if any(file.status for file in files) else (files[0].stdout, files[1].stdout)

    found = in_parallel(read, nodes)
    existing = [each for each in found if each is not None]
    if len(set(existing)) > 1:
        raise LabError("the nodes have different configurations: take the lab down and up again")
    if not existing:
        say(f"cluster: configuring {', '.join(host.name for host in nodes)}")
        nodes[0].command.run(init_argv(nodes, options))
        if further:
            nodes[0].command.run(["sh", "-c", f"cat >>{CONFIG}"], input=further)
        for host in nodes:
            if host.role is Role.VOTER:
                nodes[0].command.run(["sed", "-i", f'/^name = "{host.name}"$/a votes_only = true', CONFIG])
        first = read(nodes[0])
        if first is None:
            raise LabError(f"`hactl init` on {nodes[0].name} wrote no {CONFIG}")
        existing, found[0] = [first], first
    config, key = existing[0]
    for host, present in zip(nodes, found, strict=True):
        if present is None:
            host.command.put({CONFIG: config})
            host.command.put({KEY: key}, mode=0o600)
            host.command.run(["sync"])


def init_argv(nodes: list[Host], options: Sequence[str] = ()) -> list[str]:
    """Nodes are numbered by their place in the topology, from 1."""
    argv = ["hactl", "init", "--cluster", CLUSTER, "--metrics-port", str(METRICS_PORT)]
    for number, host in enumerate(nodes, start=1):
        argv += ["--node", f"{host.name}={number},{host.addresses[LAN]}"]
    return [*argv, *options]


def timing_section(timing: Mapping[str, int]) -> bytes:
    """The end of hactl.toml for a lab whose hosts are slower than real ones."""
    return "".join(["\n[timing]\n", *(f"{name} = {value}\n" for name, value in timing.items())]).encode()


def engine_options(topology: Topology) -> list[str]:
    """What `hactl init` is told of the engine."""
    token = ["--token", str(topology.token_ms)] if topology.token_ms else []
    return ["--engine", topology.engine, *token] if topology.engine else []


def witness_options(lab: Lab) -> list[str]:
    """What `hactl init` is told of the witness."""
    return [word for name in lab.topology.witness for word in ("--witness", lab.disks[name].wwid)]


def start_engine(nodes: list[Host], say: Progress, engine: str) -> None:
    """Corosync set up and running, where the topology wants it below node watch."""
    if engine != COROSYNC:
        return
    # Enabling is the last step: a node whose unit is enabled was set up whole.
    script = (
        f"systemctl is-enabled --quiet {COROSYNC} || {{ hactl corosync-conf >/dev/null && "
        f"systemctl restart {COROSYNC} && systemctl --quiet enable {COROSYNC} && sync; }}; systemctl start {COROSYNC}"
    )
    say("cluster: corosync is the engine")
    in_parallel(lambda host: host.command.run(["sh", "-c", script], timeout_s=60), nodes)


def start_daemons(nodes: list[Host], say: Progress) -> None:
    """Both daemons run on every node, and each hactld answers and knows of a leader."""

    def on(host: Host) -> None:
        script = (
            f"systemctl --quiet enable {NODEWATCH} {DAEMON}; systemctl start {NODEWATCH} {DAEMON}; "
            # After a drill that stopped them with a signal.
            f"systemctl kill --signal=CONT {NODEWATCH} {DAEMON}"
        )
        host.command.run(["sh", "-c", script], timeout_s=60)

    def led(host: Host) -> None:
        wait_until(
            lambda: bool(status([host]).get("leader")), CLUSTER_TIMEOUT_S, f"hactld of {host.name} to see a leader"
        )

    in_parallel(on, nodes)
    try:
        in_parallel(led, nodes)
    except LabError as error:
        raise LabError(f"{error}\n{_last_words(nodes)}") from error


def start_voters(voters: list[Host]) -> None:
    """A node that only votes needs node watch alone."""
    unit = NODEWATCH
    script = f"systemctl --quiet enable {unit}; systemctl start {unit}; systemctl kill --signal=CONT {unit}"
    in_parallel(lambda host: host.command.run(["sh", "-c", script], timeout_s=60), voters)


def _last_words(nodes: list[Host]) -> str:
    """The end of the daemons' journals, for the message of an error."""
    argv = ["journalctl", "--no-pager", "--lines=6", "--unit", NODEWATCH, "--unit", DAEMON]
    return "\n".join(host.command.run(argv, check=False).text for host in nodes)


def add_witness(lab: Lab, nodes: list[Host], say: Progress) -> None:
    """Make the LUNs of the witness, once in the life of a lab."""
    for name in lab.topology.witness:
        marker = f"{MARKER_DIR}/witness-{name}"
        if nodes[0].command.run(["test", "-e", marker], check=False).status == 0:
            continue
        say(f"cluster: making {name} a witness")
        nodes[0].command.run(["hactl", "witness", "add", lab.disks[name].device], timeout_s=120)
        nodes[0].command.run(["sh", "-c", f"mkdir -p {MARKER_DIR} && touch {marker} && sync"])


def add_volume(lab: Lab, volume: VolumeSpec, nodes: list[Host], say: Progress) -> None:
    """Format the disk and make it a volume, once in the life of a lab."""
    marker = f"{MARKER_DIR}/{volume.name}"
    if nodes[0].command.run(["test", "-e", marker], check=False).status == 0:
        return
    say(f"cluster: adding volume {volume.name}")
    nodes[0].command.run(add_argv(lab, volume), timeout_s=120)
    nodes[0].command.run(["sh", "-c", f"mkdir -p {MARKER_DIR} && touch {marker} && sync"])


def add_argv(lab: Lab, volume: VolumeSpec) -> list[str]:
    """The command that makes the volume."""
    argv = ["hactl", "volume", "add", volume.name, *(lab.disks[lun].device for lun in volume.luns)]
    argv += ["--stack", volume.stack] if volume.stack else []
    argv += ["--fs", volume.fs, "--address", volume.address]
    for cidr in volume.clients:
        argv += ["--clients", cidr]
    # nvmet forgets reservations with its power: `volume add` refuses that, unless an administrator accepts it.
    argv += ["--accept-risk"] if lab.topology.transport == NVME else []
    return [*argv, "--lease-s", str(volume.lease_s), "--grace-s", str(volume.grace_s), "--format"]


def wait_until_serving(volume: VolumeSpec, nodes: list[Host], say: Progress) -> None:
    """The volume is served, and every node could take it over."""

    def well() -> bool:
        now = status(nodes)
        mine = [each for each in now.get("volumes", []) if each["name"] == volume.name]
        if mine and mine[0].get("wanted") == "stopped":
            nodes[0].command.run(["hactl", "volume", "start", volume.name], timeout_s=90, check=False)
            return False
        return bool(mine) and mine[0]["state"] == "serving" and all(node["ready"] for node in now["nodes"])

    try:
        wait_until(well, SERVING_TIMEOUT_S, f"volume {volume.name} to be served and all nodes to be ready")
    except LabError as error:
        shown = nodes[0].command.run(["hactl", "status"], check=False)
        raise LabError(f"{error}\n{shown.text}{shown.stderr.decode(errors='replace')}") from error


def status(nodes: list[Host]) -> Mapping[str, Any]:
    """`hactl status --json` of the first node that answers; empty if none does."""
    for host in nodes:
        result = host.command.run(["hactl", "status", "--json"], timeout_s=STATUS_TIMEOUT_S, check=False)
        if result.status == 0:
            answer: Mapping[str, Any] = json.loads(result.stdout)
            return answer
    return {}


def mount(client: Host, volume: VolumeSpec, say: Progress) -> None:
    """NFSv4.2, hard: the client waits for as long as a takeover takes."""
    point = volume.mount_point
    if client.command.run(["mountpoint", "--quiet", "--nofollow", point], check=False).status == 0:
        return
    say(f"cluster: mounting {volume.name} on {client.name}")
    source = f"{volume.address.partition('/')[0]}:/"
    script = f"mkdir -p {shlex.quote(point)} && mount -t nfs4 -o vers=4.2,hard {source} {shlex.quote(point)}"
    client.command.run(["sh", "-c", script], timeout_s=MOUNT_TIMEOUT_S)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll a condition; LabError that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.2)
