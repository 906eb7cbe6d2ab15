"""How cost and times grow with nodes and volumes: `python -m tests.sim.scale` prints the tables of docs/scale.md.

Three measurements, all of the shipped code. Node watch: whole clusters of real cores in virtual time, with the real
seal, and with the limits on nodes and on the length of a frame lifted (a frame is then as long as UDP allows).
Placement and messages: the leader's decision on made-up reports. Takeover: whole simulated clusters whose busiest node
loses its power.
Beyond what can be run here, a line through the measured points is continued, and marked so.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from unittest.mock import patch

from hactl import messages, parcel, placement
from hactl.messages import ORDER_NONE, Report, VolumeReport
from hactl.placement import Facts, NodeFacts
from nodewatch import events as ev
from nodewatch.config import NODES_MAX
from nodewatch.core import NodeWatch
from nodewatch.stable import Stable
from nodewatch.wire import MAX_DATAGRAM

from .cluster import Cluster, cluster_config, seams
from .faults import Misfortune
from .process import KEY
from .world import World

T = TypeVar("T")
UDP_MAX = 65_507
SETTLE_MS = 6000.0
LETTER_MAX = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchCost:
    """One idle node, per second; and what happens when one of the others loses its power."""

    nodes: int
    packets: float
    kilobytes: float
    datagram: int
    cpu_percent: float
    detect_ms: float
    confirmed_ms: float


class Watches:
    """`count` cores and nothing else: no hactld but its beats, no disks, a network that delays by 0.5 ms."""

    def __init__(self, count: int) -> None:
        self.config = cluster_config(count)
        self.now = 0.0
        self.dead = 0
        self.packets = self.sent_bytes = self.longest = 0
        self.cpu_s = 0.0
        self._dice = random.Random(count)
        self.world = World(count)
        self.cores = {node.number: self._core(node.number) for node in self.config.nodes}
        self._addresses = {node.number: node.address for node in self.config.nodes}
        self._wakes: dict[int, float] = {}
        for number in self.cores:
            self.world.at(self._dice.uniform(0, 200), lambda number=number: self._beat(number))

    def _core(self, number: int) -> NodeWatch:
        me = self.config.nodes[number - 1]
        return NodeWatch(config=self.config, me=me, key=KEY, restored=Stable(generation=1), now_ms=0)

    def _beat(self, number: int) -> None:
        self._feed(number, ev.DaemonBeat(now_ms=int(self.world.now)))
        self.world.after(500, lambda: self._beat(number))

    def _feed(self, number: int, event: ev.Event) -> None:
        if number == self.dead:
            return
        core = self.cores[number]
        began = time.process_time()
        effects = core.step(event)
        if any(isinstance(effect, ev.Publish) for effect in effects):
            core.view(event.now_ms)
        self.cpu_s += time.process_time() - began
        for effect in effects:
            if isinstance(effect, ev.Transmit):
                self._transmit(number, effect)
            elif isinstance(effect, ev.Persist):
                self.world.after(5, lambda stable=effect.stable: self._persisted(number, stable))
        self._wake_later(number, core)

    def _persisted(self, number: int, stable: Stable) -> None:
        self._feed(number, ev.Persisted(now_ms=int(self.world.now), stable=stable))

    def _wake_later(self, number: int, core: NodeWatch) -> None:
        due = max(float(core.deadline_ms()), self.world.now + 0.1)
        if due >= self._wakes.get(number, float("inf")):
            return
        self._wakes[number] = due

        def ring() -> None:
            if self._wakes.get(number) == due:
                del self._wakes[number]
                self._feed(number, ev.Tick(now_ms=int(self.world.now) + 1))

        self.world.at(due, ring)

    def _transmit(self, number: int, effect: ev.Transmit) -> None:
        self.packets += len(effect.to)
        self.sent_bytes += len(effect.to) * len(effect.datagram)
        self.longest = max(self.longest, len(effect.datagram))
        for to in effect.to:
            self.world.after(0.5, lambda to=to: self._arrive(number, to, effect.datagram))

    def _arrive(self, number: int, to: int, datagram: bytes) -> None:
        source = self._addresses[number]
        self._feed(to, ev.Datagram(now_ms=int(self.world.now), source=source, data=datagram))


def watch_cost(count: int, *, idle_ms: float = 3000.0) -> WatchCost:
    with patch("nodewatch.wire.MAX_DATAGRAM", UDP_MAX):
        watches = Watches(count)
        world = watches.world
        world.run_until(SETTLE_MS)
        watches.packets = watches.sent_bytes = watches.longest = 0
        watches.cpu_s = 0.0
        world.run_until(SETTLE_MS + idle_ms)
        seconds = count * idle_ms / 1000
        idle = (watches.packets / seconds, watches.sent_bytes / seconds, watches.longest, watches.cpu_s / seconds)
        detect_ms, confirmed_ms = _kill(watches)
    return WatchCost(
        nodes=count,
        packets=idle[0],
        kilobytes=idle[1] / 1000,
        datagram=idle[2],
        cpu_percent=idle[3] * 100,
        detect_ms=detect_ms,
        confirmed_ms=confirmed_ms,
    )


def _kill(watches: Watches) -> tuple[float, float]:
    """Power off the node with the highest number: when does the leader find it overdue, when is its bar confirmed?"""
    world = watches.world
    views = {number: core.view(int(world.now)) for number, core in watches.cores.items()}
    leader = next(number for number, view in views.items() if view.role == "leader")
    victim = max(number for number in watches.cores if number != leader)
    name, struck = f"n{victim}", world.now
    watches.dead = victim
    detect_ms = 0.0
    while True:
        world.run_until(world.now + 5)
        seen = watches.cores[leader].view(int(world.now)).nodes[name]
        if seen.state == "overdue" and not detect_ms:
            detect_ms = world.now - struck
        if seen.confirmed:
            return detect_ms, world.now - struck
        if world.now > struck + 10_000:
            raise RuntimeError(f"{name} was never barred: {seen}")


# -- placement and messages ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementCost:
    """On the leader, in ms of CPU; messages in bytes, as JSON and as they travel (`parcel.py`)."""

    nodes: int
    volumes: int
    steady_ms: float
    failover_ms: float
    report: int
    report_sent: int
    assign: int
    assign_sent: int
    send_ms: float
    take_in_ms: float


def made_up(nodes: int, volumes: int, *, dead: int = 0) -> Facts:
    """Every volume seen by every node, served in turn; `dead` has lost its power and is barred."""

    def report(number: int) -> Report:
        return Report(
            boot="0123456789ab",
            term=3,
            standby=False,
            volumes={
                f"volume{index:05}": VolumeReport(
                    phase="serving" if index % nodes == number - 1 else "standby",
                    holding=index % nodes == number - 1,
                    ready=True,
                    why="",
                    order=ORDER_NONE,
                    epoch=4,
                    owner=f"n{index % nodes + 1}",
                    wanted="started",
                    key=0x42EA100000000000 + (number << 32) + index if index % nodes == number - 1 else 0,
                    address=f"10.9.{index >> 8}.{index & 255}/16",
                    device=f"/dev/mapper/mpath{index}",
                )
                for index in range(volumes)
            },
        )

    gone = NodeFacts(alive=False, barred=True, confirmed=True, safe_in_ms=500)
    return Facts(
        me="n2",
        term=3,
        now_ms=1_000_000,
        now_unix_ms=1_000_000,
        nodes={
            f"n{number}": gone if number == dead else NodeFacts(alive=True, report=report(number))
            for number in range(1, nodes + 1)
        },
    )


def placement_cost(nodes: int, volumes: int) -> PlacementCost:
    seen, after = made_up(nodes, volumes), made_up(nodes, volumes, dead=1)
    plan = placement.decide(placement.begin(3, seen, frozenset()), seen).plan
    steady_ms, _ = timed(lambda: placement.decide(plan, seen))
    failover_ms, decision = timed(lambda: placement.decide(plan, after))
    told = decision.assign()
    report = seen.nodes["n2"].report
    assert report is not None and all(word.node != "n1" for word in told.volumes.values())
    return PlacementCost(
        nodes=nodes,
        volumes=volumes,
        steady_ms=steady_ms,
        failover_ms=failover_ms,
        report=json_bytes(messages.encode(report)),
        report_sent=sent_bytes(report),
        assign=json_bytes(messages.encode(told)),
        assign_sent=sent_bytes(told),
        send_ms=timed(lambda: json.dumps(messages.encode(report)))[0],
        take_in_ms=_take_in_ms(report),
    )


def _take_in_ms(report: Report) -> float:
    text = json.dumps(messages.encode(report))
    return timed(lambda: messages.decode(json.loads(text)))[0]


def json_bytes(body: dict[str, object]) -> int:
    return len(json.dumps(body, separators=(",", ":")).encode())


def sent_bytes(message: messages.Message) -> int:
    return sum(json_bytes(part) for part in parcel.pack(messages.encode(message), ident=1))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds of CPU, and what came of it."""
    began = time.process_time()
    result = work()
    return (time.process_time() - began) * 1000, result


# -- a whole takeover --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverCost:
    """Half of the volumes lose their server. Virtual time until clients of every one were answered again."""

    volumes: int
    first_ms: float
    last_ms: float
    cpu_s: float
    packets: int


def takeover_cost(volumes: int) -> TakeoverCost:
    world = World(volumes)
    with seams(world):
        cluster = Cluster(world, nodes=3, volumes=volumes, writers=1)
        misfortune = Misfortune(cluster, [])
        cluster.start()
        while any(cluster.server(volume) is None for volume in cluster.volumes):
            world.run_until(world.now + 100)
        world.run_until(world.now + 3000)
        victim = max(cluster.hosts.values(), key=lambda host: len(_served_by(cluster, host)))
        lost = _served_by(cluster, victim)
        struck, began, packets = world.now, time.process_time(), cluster.network.packets
        victim.crash()
        back: dict[str, float] = {}
        while len(back) < len(lost) and world.now < struck + 60_000:
            world.run_until(world.now + 5)
            for volume in lost:
                if volume not in back and cluster.server(volume) is not None:
                    back[volume] = world.now - struck
        cpu_s = time.process_time() - began
        del misfortune
        cluster.bury()
    return TakeoverCost(
        volumes=volumes,
        first_ms=min(back.values()),
        last_ms=max(back.values()),
        cpu_s=cpu_s,
        packets=cluster.network.packets - packets,
    )


def _served_by(cluster: Cluster, host: object) -> list[str]:
    return [volume for volume in cluster.volumes if cluster.server(volume) is host]


# -- the tables --------------------------------------------------------------------------------------------------------


def straight(points: list[tuple[float, float]]) -> Callable[[float], float]:
    """The least-squares line through the points."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return lambda x: mean_y + slope * (x - mean_x)


def watch_table(counts: list[int], beyond: list[int]) -> str:
    """Measured rows, and rows that continue them: the cost of one packet is a line in the number of nodes (each packet
    describes all of them), the number of packets another."""
    found = [watch_cost(count, idle_ms=2000.0) for count in counts]
    per_packet = straight([(cost.nodes, cost.cpu_percent / cost.packets) for cost in found[-4:]])
    packets = straight([(cost.nodes, cost.packets) for cost in found])
    length = straight([(cost.nodes, float(cost.datagram)) for cost in found])
    rows = [
        f"| {c.nodes} | {c.packets:.0f} | {c.kilobytes:.1f} | {c.datagram} | {c.cpu_percent:.2f} | {c.detect_ms:.0f} | "
        f"{c.confirmed_ms:.0f} |"
        for c in found
    ]
    for nodes in beyond:
        sent, size = packets(nodes), length(nodes)
        cpu = per_packet(nodes) * sent
        rows.append(f"| {nodes} (continued) | {sent:.0f} | {sent * size / 1000:.0f} | {size:.0f} | {cpu:.0f} | | |")
    heading = (
        "| Nodes | Packets sent per s and node | kB sent per s and node | Longest datagram, bytes | "
        "CPU of one core, % | Dead node overdue after, ms | Bar confirmed after, ms |\n|---|---|---|---|---|---|---|"
    )
    return "\n".join([heading, *rows])


def placement_table(sizes: list[tuple[int, int]]) -> str:
    heading = (
        "| Nodes | Volumes | Decision, nothing changed, ms | Decision, one node lost, ms | Report, bytes | as sent | "
        "Assign, bytes | as sent | Making a report, ms | Taking one in, ms |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for nodes, volumes in sizes:
        c = placement_cost(nodes, volumes)
        rows.append(
            f"| {nodes} | {volumes} | {c.steady_ms:.1f} | {c.failover_ms:.1f} | {c.report} | {c.report_sent} | "
            f"{c.assign} | {c.assign_sent} | {c.send_ms:.1f} | {c.take_in_ms:.1f} |"
        )
    return "\n".join([heading, *rows])


def takeover_table(sizes: list[int]) -> str:
    heading = (
        "| Volumes in the cluster | First of the lost ones back, ms | Last one back, ms | CPU of all three nodes "
        "meanwhile, s | Packets meanwhile |\n|---|---|---|---|---|"
    )
    found = [takeover_cost(size) for size in sizes]
    rows = [f"| {c.volumes} | {c.first_ms:.0f} | {c.last_ms:.0f} | {c.cpu_s:.1f} | {c.packets} |" for c in found]
    return "\n".join([heading, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.scale", description="The tables of docs/scale.md.")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    quick = parser.parse_args().quick
    print(
        f"Limits: {NODES_MAX} nodes in a configuration, {MAX_DATAGRAM} bytes in a datagram, {LETTER_MAX} in a letter.\n"
    )
    print(watch_table([3, 5, 8] if quick else [3, 5, 8, 16], [32, 64, 128, 256, 512]), "\n", flush=True)
    sizes = [(3, 100), (3, 1000)] if quick else [(3, 100), (3, 1000), (3, 10_000), (16, 1000)]
    print(placement_table(sizes), "\n", flush=True)
    print(takeover_table([3, 10] if quick else [3, 10, 30, 100]), flush=True)


if __name__ == "__main__":
    main()
