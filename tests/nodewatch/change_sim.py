"""The simulated cluster, and an administrator who adds and removes nodes all the time.

Six hosts, of which three are in the cluster at first. Each has its configuration on a disk of its own; a stand-in for
hactld carries offers and chosen changes about, over a network that loses them, and writes them to the disk, which takes
its time. Removed nodes are not told: they go on as long as they can, also when they own the volume. Whoever leads
without the owner in its configuration takes the volume at once: nothing but the rules of `membership.py` protects the
readers then.

Checked besides everything else: each version has one configuration; nobody goes back; nobody outside the
configuration that a node moves to has an open gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nodewatch import events as ev
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.core import NodeWatch
from nodewatch.membership import Accepted, Change, ChangeRefused
from nodewatch.view import View

from .cluster_sim import KEY, SimNode, Simulation, misfortune

HOSTS = 6
MEMBERS = 3


class ChangingNode(SimNode):
    sim: ChangingSimulation

    def __init__(self, sim: Simulation, config: NodeConfig) -> None:
        super().__init__(sim, config)
        self.made: dict[int, Change] = {}
        """On its disk: how each version came about."""
        self.told: dict[str, Change] = {}
        self.writing_change = False

    def start(self) -> None:
        if any(node.number == self.number for node in self.cluster.nodes):
            super().start()

    def kill(self) -> None:
        super().kill()
        self.writing_change = False
        self.told.clear()

    def run_daemon(self) -> None:
        super().run_daemon()
        away = self.daemon_hung or self.sim.now < self.daemon_away_until
        if self.watch is not None and self.daemon_up and not away and not self.paused:
            self.tend_change(self.watch.view(self.clock()))

    # --- what hactld does with the configuration ---------------------------------------------------------------------

    def tend_change(self, view: View) -> None:
        for name, node in view.nodes.items():
            number = self.sim.number_of(name)
            behind = 0 < node.config_version < view.config.version
            if behind and (view.role == "leader" or view.leader in (None, name)):
                change = self.made.get(node.config_version + 1)
                if change is not None:
                    self.tell(number, lambda to, change=change: to.make(change))
        if view.role == "leader":
            self.lead_change(view)

    def lead_change(self, view: View) -> None:
        config = view.config
        accepted = self.watch._membership.accepted if self.watch is not None else None
        if accepted is not None and accepted.term == view.term:
            self.drive(view, accepted)
        elif config.must_take is not None:
            self.take_up(config.must_take)
        elif not config.blocked and self.sim.wishes and self.sim.now >= self.sim.wishes[0]:
            change = self.sim.draw_change(self.cluster, self.number)
            if change is not None:
                self.sim.wishes.pop(0)
                self.propose(change)

    def propose(self, change: Change) -> None:
        try:
            digest = change.applied(self.cluster).digest().hex()
        except ChangeRefused:
            return
        self.feed(ev.ChangeProposed(now_ms=self.clock(), change=change, digest=digest))

    def drive(self, view: View, accepted: Accepted) -> None:
        everybody = [node.number for node in self.cluster.nodes if node.number != self.number]
        if view.config.safe_in_ms == 0:
            for number in everybody:
                self.tell(number, lambda to: to.make(accepted.change))
            self.make(accepted.change)
            return
        for number in everybody:
            self.tell(number, lambda to: to.offered(accepted))

    def take_up(self, must_take: tuple[str, str]) -> None:
        name, digest = must_take
        mine = self.watch._membership.accepted if self.watch is not None else None
        known = mine.change if mine is not None and mine.digest == digest else self.told.get(digest)
        if known is not None:
            self.propose(known)
        else:
            self.tell(self.sim.number_of(name), lambda to: to.asked(self.number, digest))

    def asked(self, by: int, digest: str) -> None:
        mine = self.watch._membership.accepted if self.watch is not None else None
        if mine is not None and mine.digest == digest:
            self.tell(by, lambda to: to.told.update({digest: mine.change}))

    def offered(self, accepted: Accepted) -> None:
        self.feed(
            ev.ChangeOffered(now_ms=self.clock(), term=accepted.term, change=accepted.change, digest=accepted.digest)
        )

    def make(self, change: Change) -> None:
        """It was chosen: onto the disk, then into node watch. A removed node does not listen."""
        try:
            following = change.applied(self.cluster)
        except ChangeRefused:
            return
        if self.writing_change or change.remove == self.number:
            return
        self.writing_change = True
        life = self.life

        def synced() -> None:
            if life == self.life:
                self.writing_change = False
                self.sim.moved(self, following)
                self.cluster, self.made[change.version] = following, change
                self.when_running(lambda: self.feed(ev.ChangeMade(now_ms=self.clock(), change=change, keys=(KEY,))))

        draw = self.sim.random
        self.sim.after(draw.uniform(100, 600) if draw.random() < 0.2 else draw.uniform(1, 20), synced)

    def tell(self, number: int, what: Callable[[ChangingNode], None]) -> None:
        """A message between two hactlds: as lossy as the network."""
        sim, network = self.sim, self.sim.network
        receiver = sim.hosts[number]
        if sim.letters_lost or (self.number, number) in network.cuts or sim.random.random() < network.drop:
            return

        def arrive() -> None:
            if receiver.daemon_up and not receiver.daemon_hung and sim.now >= receiver.daemon_away_until:
                receiver.when_running(lambda: what(receiver))

        sim.after(sim.random.uniform(*network.delay_ms) + sim.random.uniform(0, 5), arrive)


class ChangingSimulation(Simulation):
    node_type = ChangingNode

    def __init__(
        self,
        seed: int,
        *,
        core: type[NodeWatch] = NodeWatch,
        hosts: int = HOSTS,
        members: int = MEMBERS,
        witness: int = 0,
    ) -> None:
        super().__init__(seed, nodes=hosts, core=core, witness=witness)
        self.hosts: dict[int, ChangingNode] = dict(self.nodes)  # type: ignore[misc]
        first = tuple(node for node in self.config.nodes if node.number <= members)
        self.newest = replace(self.config, nodes=first)
        self.chosen = {1: self.newest.digest()}
        for node in self.hosts.values():
            node.cluster = self.newest
        self.wishes: list[float] = []
        """When the administrator wants the next change."""
        self.wanted: dict[str, int] = {}
        self.letters_lost = False
        self.changes = 0
        self.smallest = 3

    def wish(self, **what: int) -> None:
        """One change, now: add=NUMBER (of a host that is prepared) or remove=NUMBER."""
        self.wanted = what
        self.wishes = [self.now]

    def draw_change(self, config: ClusterConfig, leader: int) -> Change | None:
        """Any change but one that leaves fewer than `smallest` nodes, or takes the leader out."""
        inside = [node.number for node in config.nodes]
        new = [host.config for host in self.hosts.values() if host.number not in inside and host.watch is None]
        old = [number for number in inside if number != leader] if len(inside) > self.smallest else []
        if not new and not old and not self.wanted:
            return None
        number = next(iter(self.wanted.values()), 0) or self.random.choice([*[node.number for node in new], *old])
        version, previous = config.version + 1, config.digest().hex()
        if number in inside:
            return Change(version=version, previous=previous, remove=number)
        change = Change(version=version, previous=previous, add=self.hosts[number].config)
        host = self.hosts[number]
        if self.wanted or self.random.random() < 0.5:  # prepared: it waits to be let in
            host.cluster = change.applied(config)
            host.start()
        return change

    def moved(self, node: ChangingNode, config: ClusterConfig) -> None:
        self.note(node, f"moves to version {config.version}: {[each.number for each in config.nodes]}")
        if self.chosen.setdefault(config.version, config.digest()) != config.digest():
            self.fail(f"{node.config.name} moves to another version {config.version} than others did")
        inside = {each.number for each in config.nodes}
        for host in self.hosts.values():
            # Who follows later may find that a node came back in a version that it does not know yet.
            newest = config.version >= self.newest.version
            if newest and host.number not in inside and host.gate_open():
                self.fail(f"{node.config.name} moves to version {config.version}, {host.config.name} still serves")
        if config.version > self.newest.version:
            self.changes += 1
            self.newest = config
            for host in self.hosts.values():
                if host.number in inside and all(each.number != host.number for each in node.cluster.nodes):
                    self.join(host)

    def join(self, host: ChangingNode) -> None:
        """The administrator copies the new file to a host that was not in the cluster, and starts it anew."""
        newest = self.newest

        def come() -> None:
            if host.cluster.version < newest.version:
                host.kill()
                host.cluster = newest
            host.start()

        self.after(self.random.uniform(0, 3000), come)

    def settled(self) -> str | None:
        members = [node.number for node in self.newest.nodes]
        behind = [n for n in members if self.hosts[n].cluster.version != self.newest.version]
        if behind:
            return f"{behind} are behind version {self.newest.version}"
        if self.owner not in members:
            return f"the owner n{self.owner} is no member"
        everybody, self.nodes = self.nodes, {n: self.nodes[n] for n in members}
        try:
            return super().settled()
        finally:
            self.nodes = everybody


def run_changing_seed(seed: int, core: type[NodeWatch] = NodeWatch, *, storms: int = 5) -> ChangingSimulation:
    """One seed from start to recovery, with a wish for a change every few seconds. Raises Violation."""
    members, witness, smallest = ((3, 0, 3), (3, 0, 3), (4, 0, 3), (4, 1, 3), (5, 0, 3), (2, 0, 2), (2, 1, 2))[seed % 7]
    sim = ChangingSimulation(seed, core=core, members=members, witness=witness)
    sim.smallest = smallest
    sim.wishes = [3000.0 + 1500.0 * count for count in range(storms * 5000 // 1500)]
    whole = misfortune(sim, storms=storms)
    sim.run_until(whole)
    sim.wishes = []
    if len(sim.newest.nodes) < 3:
        return sim  # two nodes cannot bar each other, so not everything heals: docs/limits.md
    while (missing := sim.settled()) is not None:
        if sim.now > whole + 40_000:
            sim.fail(f"no recovery within 40 s: {missing}")
        sim.run_until(sim.now + 100)
    return sim
