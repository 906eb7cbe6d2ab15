"""Clients of the served volume: one writes numbered values, others read them, all remember what they were told.

A client goes on asking the host that answered it last for as long as that one's address is up: that is how a cut-off
old primary is asked. A write counts as acknowledged when the answer reached the client, and a read must give no less
than what was acknowledged before it was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kernel import FIRST_DATA_BLOCK

if TYPE_CHECKING:
    from .cluster import Cluster
    from .host import Host

EVERY_MS = 60
PATIENCE_MS = 900


class Client:
    """`place` is the block that it writes; it reads all of them."""

    def __init__(self, cluster: Cluster, name: str, volume: str, place: int | None) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self.name = name
        self.volume = volume
        self._place = place
        self._host: Host | None = None
        self._number = 0
        self._asked = 0
        self._asked_at = 0.0
        self._waits = False
        self.answered_at = 0.0
        self.answers = 0

    def start(self) -> None:
        self._world.after(self._world.random.uniform(0, EVERY_MS), self._turn)

    def _turn(self) -> None:
        world = self._world
        world.after(EVERY_MS * (0.5 + world.random.random()), self._turn)
        if self._waits and world.now - self._asked_at < PATIENCE_MS:
            return
        self._waits = False
        host = self._find()
        if host is None:
            return
        self._asked += 1
        self._asked_at, self._waits = world.now, True
        ident = self._asked
        if self._place is None:
            self._read(host, ident)
        else:
            self._number += 1
            self._write(host, ident, self._number)

    def _find(self) -> Host | None:
        """Who has the address up: the one known, else any."""
        if self._host is None or not self._host.kernel.gate_open(self.volume):
            self._host = next(
                (host for host in self._cluster.hosts.values() if host.kernel.gate_open(self.volume)), None
            )
        return self._host

    def _network_ms(self) -> float:
        draw = self._world.random
        return draw.uniform(20, 200) if draw.random() < 0.02 else draw.uniform(0.1, 0.6)

    def _read(self, host: Host, ident: int) -> None:
        places = [FIRST_DATA_BLOCK + index for index in range(self._cluster.writers)]
        place = self._world.random.choice(places)
        wanted = self._cluster.checker.acknowledged(self.volume, place)

        def at_host() -> None:
            value = host.kernel.read(self.volume, place)
            if value is not None:
                self._world.after(self._network_ms(), lambda: answered(value))

        def answered(value: int) -> None:
            self._settled(ident)
            self._cluster.checker.was_read(self.name, host, self.volume, place, value, wanted)

        self._world.after(self._network_ms(), lambda: host.when_unfrozen(at_host))

    def _write(self, host: Host, ident: int, number: int) -> None:
        place = FIRST_DATA_BLOCK + (self._place or 0)

        def at_host() -> None:
            host.kernel.write(self.volume, place, number, written)

        def written(good: bool) -> None:
            self._world.after(self._network_ms(), lambda: answered(good))

        def answered(good: bool) -> None:
            if good:
                self._cluster.checker.was_acknowledged(self.volume, place, number)
                self._settled(ident)
            elif ident == self._asked:
                self._waits = False

        self._world.after(self._network_ms(), lambda: host.when_unfrozen(at_host))

    def _settled(self, ident: int) -> None:
        """The answer to the newest question ends the wait."""
        if ident == self._asked:
            self._waits = False
            self.answers += 1
            self.answered_at = self._world.now

    def announced(self, host: Host) -> None:
        """A gratuitous ARP: ask there from now on."""
        self._host = host


class Clients:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.all = [
            Client(cluster, f"{kind}{index}@{volume}", volume, index if kind == "w" else None)
            for volume in cluster.volumes
            for kind, count in (("w", cluster.writers), ("r", 2))
            for index in range(count)
        ]

    def start(self) -> None:
        for client in self.all:
            client.start()

    def announced(self, host: Host, volume: str) -> None:
        """Not everybody hears it."""
        for client in self.all:
            if client.volume == volume and self._cluster.world.chance(0.7):
                client.announced(host)

    def all_served_since(self, when: float) -> bool:
        return all(client.answered_at > when for client in self.all)
