"""Run in a network namespace of its own: moves a link through its troubles and waits for what the monitor
must say of each."""

from __future__ import annotations

import select
import subprocess
import sys

from nodewatch._links import LinkMonitor
from nodewatch.config import ClusterConfig, NodeConfig

from .cluster_sim import cluster

PATIENCE_S = 30
STORY: tuple[tuple[str, dict[int, str]], ...] = (
    ("", {0: "", 1: ""}),
    ("link set east down", {0: "west has no carrier", 1: ""}),
    ("link set east up", {0: "", 1: ""}),
    ("link set west down", {0: "west is down", 1: ""}),
    ("link set west up", {0: "", 1: ""}),
    ("addr del 10.9.1.1/24 dev west", {0: "no interface has the address 10.9.1.1", 1: ""}),
    ("addr add 10.9.1.1/24 dev west", {0: "", 1: ""}),
    ("route del 10.9.1.0/24", {0: "no route to 10.9.1.2", 1: ""}),
    ("route add 10.9.1.0/24 dev west", {0: "", 1: ""}),
)


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def main() -> None:
    for command in (
        "link set lo up",
        "link add west type veth peer name east",
        "link set west up",
        "link set east up",
        "addr add 10.9.1.1/24 dev west",
    ):
        ip(command)
    base = cluster(2)
    nodes = (
        NodeConfig(name="n1", number=1, address="10.9.1.1", further=("127.0.0.77",)),
        NodeConfig(name="n2", number=2, address="10.9.1.2", further=("127.0.0.78",)),
    )
    config = ClusterConfig(
        **{name: getattr(base, name) for name in ClusterConfig.__dataclass_fields__ if name != "nodes"}, nodes=nodes
    )
    monitor = LinkMonitor(config, nodes[0])
    for command, expected in STORY:
        if command:
            ip(command)
        told: dict[int, str] | None = {}
        while told != expected:  # what is between two states may be told too
            if not select.select([monitor], [], [], PATIENCE_S)[0]:
                sys.exit(f"after {command!r} {expected} was not told, only {told}")
            told = monitor.take()
    monitor.close()


if __name__ == "__main__":
    main()
