"""The networks between the node watches: drops, delays, repeats, reorders, cuts (also one way, also of one link)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodewatch import events as ev

if TYPE_CHECKING:
    from .cluster import Cluster
    from .host import Host


class Network:
    """`cuts` counts what cuts a direction now: (from, to) on every link, (from, to, link) on one. Two faults may cut
    the same."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self.drop = 0.0
        self.repeat = 0.0
        self.slow_ms = 0.0
        self.cuts: dict[tuple[int, ...], int] = {}
        self.packets = 0
        self.bytes = 0

    def cut(self, way: tuple[int, ...]) -> None:
        self.cuts[way] = self.cuts.get(way, 0) + 1

    def heal(self, way: tuple[int, ...]) -> None:
        left = self.cuts.get(way, 0) - 1
        if left > 0:
            self.cuts[way] = left
        else:
            self.cuts.pop(way, None)

    def transmit(self, sender: Host, effect: ev.Transmit) -> None:
        config = self._cluster.config
        self._cluster.checker.sent(sender, effect.datagram)
        addresses = config.nodes[sender.number - 1].addresses
        for link in range(config.links) if effect.link is None else (effect.link,):
            self._transmit(sender, effect, link, addresses[link])

    def _transmit(self, sender: Host, effect: ev.Transmit, link: int, source: str) -> None:
        world, hosts, datagram, me = self._world, self._cluster.hosts, effect.datagram, sender.number
        chance = world.random.random
        self.packets += len(effect.to)
        self.bytes += len(effect.to) * len(datagram)
        for number in effect.to:
            if self.cuts and ((me, number) in self.cuts or (me, number, link) in self.cuts):
                continue
            if self.drop and chance() < self.drop:
                continue
            receiver = hosts[number]
            copies = 2 if self.repeat and chance() < self.repeat else 1
            for _ in range(copies):
                delay = 0.1 + 0.9 * chance() + (self.slow_ms * chance() if self.slow_ms else 0.0)
                world.after(delay, lambda receiver=receiver: self._arrive(receiver, source, datagram, link))

    def _arrive(self, receiver: Host, source: str, datagram: bytes, link: int) -> None:
        if receiver.up:
            receiver.watch.receive(source, datagram, link)
