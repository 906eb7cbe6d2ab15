"""The network namespace of a lab: its bridges, one tap per host and network, and who lives in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hwlab.errors import LabError
from hwlab.protocols import LinkState
from hwlab.topology import MGMT, Topology

PREFIX = "hwlab-"

_SILENT = """
cd /proc/sys/net
echo 0 >ipv4/ip_forward
echo 2 >ipv4/conf/all/arp_ignore
[ ! -d ipv6 ] || echo 1 >ipv6/conf/default/disable_ipv6
"""


def name_of(lab: str) -> str:
    """Name of a lab's namespace."""
    return PREFIX + lab


def path_of(lab: str) -> Path:
    """The file that keeps a lab's namespace alive."""
    return Path("/run/netns") / name_of(lab)


def labs_with_namespace() -> list[str]:
    """Labs that have a namespace, whether or not there is any record of them."""
    found = Path("/run/netns").glob(PREFIX + "*")
    return sorted(path.name.removeprefix(PREFIX) for path in found)


def entering(lab: str) -> list[str]:
    """Words to put before a command that is to run in the lab's network."""
    return ["nsenter", f"--net={path_of(lab)}"]


def tap_name(host: str, network: str) -> str:
    """Name of a host's tap device: host and network names are checked to fit into 15 bytes."""
    return f"{host}-{network}"


def create(lab: str, topology: Topology) -> None:
    """Make namespace, bridges and taps; what exists is left as it is."""
    if not path_of(lab).exists():
        _ip(["netns", "add", name_of(lab)])
    # A tap out of its bridge is a plain interface of this namespace, which must not answer or forward.
    _ip(["netns", "exec", name_of(lab), "sh", "-c", _SILENT])
    existing = _interfaces(lab)
    lines = ["link set lo up"]
    for network, subnet in topology.networks.items():
        if network not in existing:
            lines.append(f"link add {network} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
            if network == MGMT:
                lines.append(f"address add {next(subnet.hosts())}/{subnet.prefixlen} dev {network}")
            lines.append(f"link set {network} up")
    for host in topology.hosts:
        for network in host.addresses:
            tap = tap_name(host.name, network)
            if tap not in existing:
                lines.append(f"tuntap add {tap} mode tap")
                lines.append(f"link set {tap} master {network} up")
    _batch(lab, lines)


def remove(lab: str) -> None:
    """Remove the namespace with everything in it; the caller has ended its processes."""
    if path_of(lab).exists():
        _ip(["netns", "delete", name_of(lab)])


def set_link(lab: str, host: str, network: str, *, up: bool) -> None:
    """Put a host's tap into its bridge, or take it out.

    The tap itself stays up: UML's network driver stops for good once the other end of its tap was down.
    """
    tap = tap_name(host, network)
    _batch(lab, [f"link set {tap} master {network}" if up else f"link set {tap} nomaster"])


def link_state(lab: str, host: str, network: str) -> LinkState:
    """Whether a host's tap is attached to its bridge."""
    result = subprocess.run(
        ["ip", "-n", name_of(lab), "-o", "link", "show", tap_name(host, network)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        return LinkState.UNKNOWN
    return LinkState.UP if f"master {network} " in result.stdout else LinkState.CUT


def pids(lab: str) -> list[int]:
    """Processes that live in the lab's network, except this one."""
    try:
        wanted = path_of(lab).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            status = (entry / "ns/net").stat()
            if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                found.append(int(entry.name))
    return found


def _interfaces(lab: str) -> set[str]:
    lines = _ip(["-n", name_of(lab), "-o", "link", "show"]).splitlines()
    return {line.split(": ")[1].split("@")[0] for line in lines}


def _batch(lab: str, lines: Sequence[str]) -> None:
    _ip(["-n", name_of(lab), "-batch", "-"], "\n".join(lines) + "\n")


def _ip(arguments: Sequence[str], text: str = "") -> str:
    result = subprocess.run(["ip", *arguments], input=text, capture_output=True, text=True)
    if result.returncode != 0:
        raise LabError(f"`ip {' '.join(arguments)}` failed: {result.stderr.strip()}; try `hwlab down` and again")
    return result.stdout
