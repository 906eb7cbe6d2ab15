"""The simulated cluster with corosync as its engine: the shipped engine and cores on a stand-in for corosync's rings.

The stand-in keeps corosync's promises and its silences: messages come to all members of a ring in one order, each once;
when a ring breaks nothing is delivered for token + consensus, then everybody in a new ring is told who is in it. What
was sent meanwhile is delivered in the new ring. A process that ends leaves the group at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nodewatch import events as ev
from nodewatch._corosync import CorosyncEngine
from nodewatch._cpg import Delivered, GroupChanged, Item, QuorumChanged, RingLost
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.core import NodeWatch
from nodewatch.corosync import Facts, recommended
from nodewatch.engine import COROSYNC, Members, Packet
from nodewatch.lease import PatientTiming

from .cluster_sim import SimNode, Simulation

TIMING = PatientTiming(lease_ms=2050)
TOTEM = recommended(400)
LOOK_MS = 20.0
"""How often the stand-in looks for nodes and processes that came or went."""


def facts_of(config: ClusterConfig, node: int) -> Facts:
    """A corosync that is set up as it should be."""
    nodes = {each.number: (each.name, (each.address,)) for each in config.nodes}
    return Facts(node=node, nodes=nodes, totem=TOTEM, expected_votes=len(nodes))


class FakeRing:
    """`nodewatch._cpg.Ring` in memory."""

    def __init__(self, facts: Facts, sent: Callable[[bytes], bool]) -> None:
        self._facts = facts
        self._sent = sent
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.items: list[Item] = []
        self.lost = False
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    def facts(self) -> Facts:
        return self._facts

    def give(self, item: Item) -> None:
        self.items.append(item)
        os.eventfd_write(self._fd, 1)

    def lose(self) -> None:
        self.lost = True
        os.eventfd_write(self._fd, 1)

    def mcast(self, message: bytes) -> bool:
        if self.lost:
            raise RingLost("gone")
        return self._sent(message)

    def dispatch(self) -> list[Item]:
        if self.lost:
            raise RingLost("gone")
        items, self.items = self.items, []
        return items

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._fd)


class Totem:
    """All corosyncs of the simulated cluster."""

    def __init__(self, sim: RingSimulation) -> None:
        self._sim = sim
        self._rings: dict[int, frozenset[int]] = {}
        """Node -> the ring it is in."""
        self._broken_since: dict[int, float] = {}
        self._clients: dict[int, FakeRing] = {}
        self._groups: dict[int, frozenset[int]] = {}
        """Node -> the group as it was last told."""
        self._waiting: dict[int, list[bytes]] = {}
        self._last_ms = 0.0
        """When the newest message is delivered: the agreed order."""

    def attach(self, node: int, facts: Facts) -> FakeRing:
        """A process joins the group."""
        self.detach(node)
        ring = FakeRing(facts, partial(self._mcast, node))
        self._clients[node] = ring
        self._groups.pop(node, None)
        ring.give(QuorumChanged(quorate=self._quorate(node)))
        return ring

    def detach(self, node: int) -> None:
        old = self._clients.pop(node, None)
        if old is not None:
            old.close()

    def look(self) -> None:
        """Who can reach whom, who runs, and what follows from it."""
        for number, node in self._sim.nodes.items():
            if node.watch is None:
                self.detach(number)
            if not node.daemon_up:  # no power
                self._rings.pop(number, None)
                self._waiting.pop(number, None)
                self._broken_since.pop(number, None)
        for wanted in self._components():
            for number in wanted:
                if self._rings.get(number) == wanted and self._broken_since.pop(number, None) is not None:
                    self._send_waiting(number)
            since = [self._broken_since.setdefault(n, self._sim.now) for n in wanted if self._rings.get(n) != wanted]
            lost = any(self._rings.get(number, wanted) - wanted for number in wanted)
            if since and self._sim.now - max(since) >= (TOTEM.detect_ms + 50 if lost else 100):
                self._form(wanted)
        self._tell_groups()

    def _form(self, ring: frozenset[int]) -> None:
        """A new ring, when all who will be in it waited for the missing."""
        for member in ring:
            self._rings[member] = ring
            self._broken_since.pop(member, None)
            client = self._clients.get(member)
            if client is not None:
                client.give(QuorumChanged(quorate=self._quorate(member)))
        self._tell_groups()
        for member in sorted(ring):
            self._send_waiting(member)

    def _send_waiting(self, member: int) -> None:
        for message in self._waiting.pop(member, []):
            self._deliver(member, message)

    def say(self, node: int, message: bytes) -> None:
        """Somebody on that node says something to the group."""
        self._mcast(node, message)

    def _tell_groups(self) -> None:
        for number, client in list(self._clients.items()):
            ring = self._rings.get(number)
            if ring is None or number in self._broken_since:
                continue
            group = frozenset(member for member in ring if member in self._clients)
            if self._groups.get(number) != group:
                self._groups[number] = group
                client.give(GroupChanged(nodes=group))
                self._sim.ready(number)

    def _components(self) -> list[frozenset[int]]:
        """Groups in which everybody reaches everybody, both ways; lower numbers first."""
        cuts, found = self._sim.network.cuts, list[set[int]]()
        for number in sorted(n for n, node in self._sim.nodes.items() if node.daemon_up):
            for group in found:
                if not any((number, other) in cuts or (other, number) in cuts for other in group):
                    group.add(number)
                    break
            else:
                found.append({number})
        return [frozenset(group) for group in found]

    def _quorate(self, number: int) -> bool:
        return len(self._rings.get(number, ())) * 2 > len(self._sim.nodes)

    def _mcast(self, node: int, message: bytes) -> bool:
        if self._rings.get(node) is None or node in self._broken_since:
            self._waiting.setdefault(node, []).append(message)
        else:
            self._deliver(node, message)
        return True

    def _deliver(self, sender: int, message: bytes) -> None:
        ring = self._rings[sender]
        self._last_ms = max(self._last_ms + 0.01, self._sim.now + self._sim.random.uniform(1, 40))

        def arrive() -> None:
            for member in ring:
                client = self._clients.get(member)
                if self._rings.get(member) == ring and client is not None and member in self._groups:
                    client.give(Delivered(node=sender, message=message))
                    self._sim.ready(member)

        self._sim.at(self._last_ms, arrive)


class RingSimulation(Simulation):
    """`Simulation` with the corosync engine in every node."""

    def __init__(self, seed: int, *, nodes: int = 3, core: type[NodeWatch] = NodeWatch, **more: Any) -> None:
        super().__init__(seed, nodes=nodes, core=core, timing=TIMING)
        self.config = replace(self.config, engine=COROSYNC)
        for node in self.nodes.values():
            node.cluster = self.config
        self.engines: dict[int, CorosyncEngine] = {}
        self.totem = Totem(self)
        self._core = core
        self.make_core = self._start  # type: ignore[assignment]
        self._look()

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()

    def _look(self) -> None:
        self.totem.look()
        self.after(LOOK_MS, self._look)

    def _start(self, *, config: ClusterConfig, me: NodeConfig, **more: Any) -> NodeWatch:
        if me.number in self.engines:
            self.engines[me.number].close()
        self.engines[me.number] = CorosyncEngine(
            config, me, patience_s=0, opened=lambda group: self.totem.attach(me.number, facts_of(config, me.number))
        )
        self.at(self.now, lambda: self.ready(me.number))
        return self._core(config=config, me=me, **more)

    def transmit(self, sender: SimNode, receiver: SimNode, datagram: bytes, link: int = 0) -> None:
        self.packets += 1
        self.engines[sender.number].send((receiver.number,), datagram)

    def ready(self, number: int) -> None:
        """Corosync has something for this node's process."""
        node, life = self.nodes[number], self.nodes[number].life

        def collect() -> None:
            if node.life != life:
                return
            for arrival in self.engines[number].receive():
                match arrival:
                    case Packet(data=data, source=source):
                        node.feed(ev.Datagram(now_ms=node.clock(), source=source, data=data))
                    case Members(present=present, quorate=quorate):
                        node.feed(ev.GroupChanged(now_ms=node.clock(), present=present, quorate=quorate))

        node.when_running(collect)
