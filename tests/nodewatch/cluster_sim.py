"""A simulated cluster around the shipped cores: one thread, true time as a float of ms, everything drawn from one seed.

Every node has a clock of its own (offset and rate within the drift bound), a disk that loses what was not synced, a
kernel that keeps a gate open for its lifetime whatever happens to the process, and a small stand-in for hactld. All of
them share one disk with one volume, whose owner changes by compare-and-swap. The network drops, delays, repeats and
cuts, also one way.

Checked all the time, against true time: never two open gates; a gate is shut when the leader says that it must be; one
leader per term; terms of a process only grow; a core never asks to be called in the past twice. And once faults end:
progress.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nodewatch import events as ev
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.core import NodeWatch
from nodewatch.lease import Timing
from nodewatch.stable import Stable
from nodewatch.view import View

from .sim_witness import SimLun, WitnessAgent

UUID = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
KEY = bytes(range(32))
VOLUME = "v1"


class Violation(AssertionError):
    """The cores broke a promise."""


def cluster(count: int, timing: Timing | None = None, links: int = 1, witness: int = 0) -> ClusterConfig:
    return ClusterConfig(
        name="sim",
        uuid=UUID,
        key_file="/nonexistent",
        this=None,
        nodes=tuple(
            NodeConfig(
                name=f"n{number}",
                number=number,
                address=f"10.0.0.{number}",
                further=tuple(f"10.0.{link}.{number}" for link in range(1, links)),
            )
            for number in range(1, count + 1)
        ),
        timing=timing or Timing(),
        port=7747,
        metrics_listen=None,
        witness=tuple(f"naa.{place}" for place in range(1, witness + 1)),
    )


@dataclass(kw_only=True)
class Network:
    """What may happen to a datagram now."""

    drop: float = 0.0
    repeat: float = 0.0
    delay_ms: tuple[float, float] = (0.2, 2.0)
    cuts: set[tuple[int, int]] = field(default_factory=set)
    """(from, to), on every link."""
    link_cuts: set[tuple[int, int, int]] = field(default_factory=set)
    """(from, to, link)."""
    link_delay_ms: dict[int, float] = field(default_factory=dict)
    """What a link adds."""


class SimNode:
    def __init__(self, sim: Simulation, config: NodeConfig) -> None:
        self.sim = sim
        self.config = config
        self.cluster = sim.config
        """The configuration that is on its disk."""
        drift = sim.config.timing.drift_percent / 100
        self.rate = sim.random.choice((1 - drift, 1 + drift, 1.0, sim.random.uniform(1 - drift, 1 + drift)))
        self.offset = sim.random.uniform(0, 1_000_000)
        self.watch: NodeWatch | None = None
        self.life = 0
        """Counts the processes: what was scheduled for an earlier one does not arrive."""
        self.stable = Stable()
        self.unsynced: Stable | None = None
        self.writing = False
        self.paused = False
        self.inputs: list[Callable[[], None]] = []
        self.gate_shut_at: float | None = None
        """True time when the kernel shuts the gate; None = shut."""
        self.gate_given = False
        self.daemon_up = False
        self.daemon_hung = False
        self.daemon_away_until = 0.0
        self.wake_version = 0
        self.term_seen = 0
        self.witness = sim.make_agent(self)

    @property
    def number(self) -> int:
        return self.config.number

    def clock(self) -> int:
        return int(self.offset + self.rate * self.sim.now)

    def true_time(self, local_ms: float) -> float:
        return (local_ms - self.offset) / self.rate

    def gate_open(self) -> bool:
        return self.gate_shut_at is not None and self.sim.now < self.gate_shut_at

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.watch is not None:
            return
        self.life += 1
        self.stable = replace(self.stable, generation=self.stable.generation + 1)
        self.paused = False
        self.inputs.clear()
        self.gate_given = False
        self.term_seen = 0
        self.watch = self.sim.make_core(
            config=self.cluster, me=self.config, key=KEY, restored=self.stable, now_ms=self.clock()
        )
        self.wake()

    def kill(self) -> None:
        """kill -9 of the process: what the kernel keeps open stays open."""
        self.watch = None
        self.life += 1
        self.unsynced, self.writing = None, False
        self.paused = False
        self.gate_given = False
        self.witness.forget()

    def power_off(self) -> None:
        self.kill()
        self.gate_shut_at = None
        self.daemon_up = False

    def when_running(self, action: Callable[[], None]) -> None:
        """Now, or when a paused process goes on."""
        if self.watch is not None:
            if self.paused:
                self.inputs.append(action)
            else:
                action()

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        waiting, self.inputs = self.inputs, []
        for action in waiting[-200:]:
            self.when_running(action)
        self.wake()

    # --- the core -------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        if self.watch is None:
            return
        queue = [event]
        while queue:
            for effect in self.watch.step(queue.pop(0)):
                follow = self.act(effect)
                if follow is not None:
                    queue.append(follow)
        self.sim.check(self)
        self.schedule_wake()

    def wake(self) -> None:
        self.when_running(lambda: self.feed(ev.Tick(now_ms=self.clock())))

    def schedule_wake(self) -> None:
        assert self.watch is not None
        self.wake_version += 1
        version, life, deadline = self.wake_version, self.life, self.watch.deadline_ms()
        late = self.sim.random.uniform(0.01, 10.0)  # timers tick at 100 Hz

        def ring() -> None:
            if (version, life) == (self.wake_version, self.life):
                self.wake()

        self.sim.at(max(self.sim.now, self.true_time(deadline)) + late, ring)

    def act(self, effect: ev.Effect) -> ev.Event | None:
        match effect:
            case ev.Transmit():
                for number in effect.to:
                    links = range(self.sim.config.links) if effect.link is None else (effect.link,)
                    for link in links:
                        self.sim.transmit(self, self.sim.nodes[number], effect.datagram, link)
            case ev.Persist():
                self.persist(effect.stable)
            case ev.RenewGates():
                done = self.clock() <= effect.not_after_ms
                if done:
                    self.open_gate()
                return ev.GatesRenewed(now_ms=self.clock(), results={VOLUME: done})
            case ev.CloseGates():
                self.gate_shut_at = None
                return ev.GatesClosed(now_ms=self.clock(), results={VOLUME: True})
            case ev.Log():
                self.sim.note(self, effect.text)
            case ev.Race():
                if self.daemon_runs():
                    self.witness.race(effect.call)
            case ev.WatchWitness():
                self.witness.watched = effect.epoch
            case ev.Publish() | ev.Deliver() | ev.Configured():
                pass
        return None

    def persist(self, stable: Stable) -> None:
        """One write at a time; of those that wait only the newest is written."""
        self.unsynced = stable
        if not self.writing:
            self.write()

    def write(self) -> None:
        stable, self.unsynced = self.unsynced, None
        self.writing = stable is not None
        if stable is None:
            return
        life = self.life

        def synced() -> None:
            if life == self.life:
                self.stable = stable
                self.when_running(lambda: self.feed(ev.Persisted(now_ms=self.clock(), stable=stable)))
                self.write()

        slow = self.sim.random.random() < self.sim.slow_writes
        self.sim.after(self.sim.random.uniform(100, 800) if slow else self.sim.random.uniform(1, 20), synced)

    def open_gate(self) -> None:
        timing = self.sim.config.timing
        self.gate_shut_at = self.true_time(self.offset + self.rate * self.sim.now + timing.gate_ms)
        self.sim.gate_opened(self)

    # --- the stand-in for hactld ----------------------------------------------------------------------------------

    def daemon_runs(self) -> bool:
        away = self.daemon_hung or self.sim.now < self.daemon_away_until
        return self.watch is not None and self.daemon_up and not away and not self.paused

    def run_daemon(self) -> None:
        """Ten times a second: beat, then do what the view and the disk ask for."""
        if self.watch is None or not self.daemon_runs():
            return
        self.feed(ev.DaemonBeat(now_ms=self.clock()))
        view = self.watch.view(self.clock())
        if view.barred:
            if self.gate_given:
                self.take_gate_back()
        elif self.sim.owner == self.number and not self.gate_given:
            self.gate_given = True
            self.feed(ev.GateGiven(now_ms=self.clock(), volume=VOLUME))
        elif self.sim.owner != self.number and self.gate_given and self.sim.random.random() < self.sim.daemon_notices:
            # On a real node the disk itself says so, but late: only the lease may protect the readers.
            self.take_gate_back()
        if view.role == "leader":
            self.lead(view)

    def take_gate_back(self) -> None:
        self.gate_given = False
        self.gate_shut_at = None
        self.feed(ev.GateTaken(now_ms=self.clock(), volume=VOLUME, closed=True))

    def lead(self, view: View) -> None:
        owner = self.sim.nodes[self.sim.owner]
        of_owner = view.nodes.get(owner.config.name)
        free = of_owner is None or (of_owner.confirmed and of_owner.safe_in_ms == 0)
        if owner is not self and free and not view.barred:
            self.sim.owner = self.number
            self.sim.takeovers += 1
            self.sim.note(self, f"takes the volume over from {owner.config.name}")
            self.gate_given = True
            self.feed(ev.GateGiven(now_ms=self.clock(), volume=VOLUME))
            return
        for name, node in view.nodes.items():
            unhealthy = node.daemon in ("hung", "absent") and node.state == "alive" and name != view.me
            if unhealthy and self.sim.owner == self.sim.number_of(name) and not node.barred:
                self.feed(ev.BarWanted(now_ms=self.clock(), node=name))
            alone = name == view.me or self.sim.owner != self.sim.number_of(name)
            if node.barred and node.state == "alive" and alone:
                self.feed(ev.LiftWanted(now_ms=self.clock(), node=name))


class Simulation:
    node_type = SimNode

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        core: type[NodeWatch] = NodeWatch,
        timing: Timing | None = None,
        links: int = 1,
        witness: int = 0,
        agent: type[WitnessAgent] = WitnessAgent,
    ) -> None:
        self.random = random.Random(seed)
        self.make_core = core
        self.make_agent = agent
        self.config = cluster(nodes, timing, links, witness)
        self.luns = [SimLun(wwid) for wwid in self.config.witness]
        self.now = 0.0
        self.network = Network()
        self.owner = 1
        self.daemon_notices = 0.02
        """How probably, ten times a second, an old owner's hactld sees that the disk is not its own any more."""
        self.slow_writes = 0.1
        """How probably a write to stable storage takes long."""
        self.takeovers = 0
        self.packets = 0
        self.transcript: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._leaders: dict[int, int] = {}
        self.nodes = {node.number: self.node_type(self, node) for node in self.config.nodes}
        for node in self.nodes.values():
            node.daemon_up = True
            self.at(self.random.uniform(0, 300), node.start)
            self._beat_daemon(node)
            if self.luns:
                self._tend_witness(node)

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action))

    def after(self, delay_ms: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_ms, action)

    def run_until(self, when: float) -> None:
        while self._queue and self._queue[0][0] <= when:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = when

    def number_of(self, name: str) -> int:
        return next(node.number for node in self.config.nodes if node.name == name)

    def note(self, node: SimNode, text: str) -> None:
        self.transcript.append(f"{self.now:9.1f} {node.config.name} {text}")

    def transmit(self, sender: SimNode, receiver: SimNode, datagram: bytes, link: int = 0) -> None:
        self.packets += 1
        network = self.network
        way = (sender.number, receiver.number)
        if way in network.cuts or (*way, link) in network.link_cuts or self.random.random() < network.drop:
            return
        for _ in range(2 if self.random.random() < network.repeat else 1):
            delay_ms = self.random.uniform(*network.delay_ms) + network.link_delay_ms.get(link, 0.0)
            self.after(delay_ms, lambda: self._arrive(sender, receiver, datagram, link))

    def _arrive(self, sender: SimNode, receiver: SimNode, datagram: bytes, link: int) -> None:
        source = sender.config.addresses[link]
        receiver.when_running(
            lambda: receiver.feed(ev.Datagram(now_ms=receiver.clock(), source=source, data=datagram, link=link))
        )

    def _beat_daemon(self, node: SimNode) -> None:
        node.run_daemon()
        self.after(100, lambda: self._beat_daemon(node))

    def _tend_witness(self, node: SimNode) -> None:
        if node.daemon_runs():
            node.witness.tick()
        self.after(20, lambda: self._tend_witness(node))

    # --- what must hold -------------------------------------------------------------------------------------------

    def gate_opened(self, node: SimNode) -> None:
        for other in self.nodes.values():
            if other is not node and other.gate_open():
                self.fail(f"{node.config.name} opens its gate while that of {other.config.name} is open")
            self.check_safety(other, node)

    def check(self, node: SimNode) -> None:
        watch = node.watch
        if watch is None:
            return
        election = watch._election
        if election.term < node.term_seen:
            self.fail(f"{node.config.name} went back from term {node.term_seen} to {election.term}")
        node.term_seen = election.term
        if election.role.name != "LEADER":
            return
        if self._leaders.setdefault(election.term, node.number) != node.number:
            self.fail(f"{node.config.name} and n{self._leaders[election.term]} both lead term {election.term}")
        for other in self.nodes.values():
            self.check_safety(node, other)

    def check_safety(self, leader: SimNode, node: SimNode) -> None:
        """When the leader says that a node's lease will have ended by then, its kernel must have shut its gate by then.

        A leader that was deposed and does not know it yet may be wrong: it finds out before it can serve."""
        watch = leader.watch
        if watch is None or watch._barring.table.term != max(self._leaders, default=0) or node.gate_shut_at is None:
            return
        safe_at = watch._barring.table.safe_at_ms(node.number) if watch._election.role.name == "LEADER" else None
        if safe_at is not None and node.gate_shut_at > leader.true_time(safe_at):
            late = node.gate_shut_at - leader.true_time(safe_at)
            self.fail(f"{leader.config.name} says {node.config.name} is safe {late:.1f} ms before its gate shuts")

    def fail(self, what: str) -> None:
        raise Violation("\n".join([what, *self.transcript[-60:]]))

    def settled(self) -> str | None:
        """None when everybody follows one leader, nothing is barred and the volume is served; else what is missing."""
        views = [node.watch.view(node.clock()) for node in self.nodes.values() if node.watch is not None]
        leaders = {view.leader for view in views}
        if len(views) < len(self.nodes) or len(leaders) != 1 or None in leaders:
            return f"leaders {leaders}"
        barred = [(view.me, name) for view in views for name, node in view.nodes.items() if node.barred]
        if barred:
            return f"barred {barred}"
        if not all(view.lease_left_ms for view in views):
            return f"leases {[(view.me, view.lease_left_ms) for view in views]}"
        if not self.nodes[self.owner].gate_open():
            return f"gate of n{self.owner} is shut"
        return None


# --- faults -------------------------------------------------------------------------------------------------------

STORM_MS = 5000.0


def misfortune(sim: Simulation, *, storms: int) -> float:
    """Schedule storms of a few faults each, and the time when everything is whole again. Gives that time.

    Between storms the cluster may recover: most is to be learned when a serving node with an open gate is struck."""
    draw = sim.random
    begin = 3000.0
    for _ in range(storms):
        for _ in range(draw.choice((1, 2, 3, 4))):
            sim.at(begin + draw.uniform(0, 2500), lambda: _strike(sim))
        begin += STORM_MS
    sim.at(begin + 2000, lambda: _heal(sim))
    return begin + 2000


def _strike(sim: Simulation) -> None:
    draw, network, node = sim.random, sim.network, _victim(sim)
    lasts = draw.choice((100, 400, 1000, 2000, 4000)) * draw.uniform(0.5, 1.5)
    kinds = ["kill", "kill", "power", "pause", "mute", "deaf", "isolate", "loss", "slow", "hang", "gone"]
    if sim.luns:
        kinds += ["split", "split", "split", "storage"]
    if sim.config.links > 1:
        kinds += ["link", "link", "cable", "cable"]
    kind = draw.choice(kinds)
    sim.note(node, f"*** {kind} for {lasts:.0f} ms")
    match kind:
        case "kill":
            node.kill()
            node.daemon_away_until = sim.now + draw.choice((50, 300, 3000))
            sim.after(min(lasts, 1000), node.start)
        case "power":
            node.power_off()
            sim.after(lasts, lambda: _power_on(node))
        case "pause":
            node.paused = node.watch is not None
            sim.after(lasts, node.resume)
        case "mute" | "deaf" | "isolate":
            others = [other.number for other in sim.nodes.values() if other is not node]
            for other in others if draw.random() < 0.7 else [draw.choice(others)]:
                if kind != "deaf":
                    _cut(sim, (node.number, other), lasts)
                if kind != "mute":
                    _cut(sim, (other, node.number), lasts)
        case "split":
            numbers = draw.sample(sorted(sim.nodes), len(sim.nodes) // 2)
            links = [(one, other) for one in numbers for other in sim.nodes if other not in numbers]
            one_way = draw.choice((None, None, None, 0, 1))
            for one, other in links:
                if one_way != 0:
                    _cut(sim, (one, other), lasts)
                if one_way != 1:
                    _cut(sim, (other, one), lasts)
        case "link":
            link = draw.randrange(sim.config.links)
            ends = list(sim.nodes) if draw.random() < 0.5 else [node.number]
            for one in ends:
                for other in sim.nodes:
                    if draw.random() < 0.8:
                        _cut_link(sim, draw.choice(((one, other, link), (other, one, link))), lasts)
        case "cable":
            link = draw.randrange(sim.config.links)
            for other in sim.nodes:
                _cut_link(sim, (node.number, other, link), lasts)
                _cut_link(sim, (other, node.number, link), lasts)
            _tell_link(node, link, "no carrier")
            sim.after(800 + lasts, lambda: _tell_link(node, link, ""))
        case "storage":
            node.witness.cut = True
            sim.after(lasts, lambda: setattr(node.witness, "cut", False))
        case "loss":
            network.drop, network.repeat = draw.uniform(0.05, 0.5), 0.3
            sim.after(lasts, lambda: _calm(network))
        case "slow":
            network.delay_ms = (0.2, draw.choice((30, 300, 900)))
            sim.after(lasts, lambda: _calm(network))
        case "hang":
            node.daemon_hung = True
            sim.after(lasts, lambda: setattr(node, "daemon_hung", False))
        case "gone":
            node.daemon_away_until = sim.now + lasts
            node.when_running(lambda: node.feed(ev.DaemonGone(now_ms=node.clock())))


def _victim(sim: Simulation) -> SimNode:
    """Most is to be learned from the owner of the volume and from the leader."""
    leaders = [node for node in sim.nodes.values() if node.watch is not None and node.watch.view(0).role == "leader"]
    return sim.random.choice([*sim.nodes.values(), *leaders, *[sim.nodes[sim.owner]] * 3])


def _cut(sim: Simulation, link: tuple[int, int], lasts: float) -> None:
    """Links of one fault do not fail and heal in the same moment."""
    sim.after(sim.random.choice((0, sim.random.uniform(0, 800))), lambda: sim.network.cuts.add(link))
    sim.after(800 + lasts * sim.random.choice((1, 1, 2)), lambda: sim.network.cuts.discard(link))


def _cut_link(sim: Simulation, link: tuple[int, int, int], lasts: float) -> None:
    sim.network.link_cuts.add(link)
    sim.after(800 + lasts * sim.random.choice((1, 1, 2)), lambda: sim.network.link_cuts.discard(link))


def _tell_link(node: SimNode, link: int, trouble: str) -> None:
    node.when_running(lambda: node.feed(ev.LinkChanged(now_ms=node.clock(), link=link, trouble=trouble)))


def _power_on(node: SimNode) -> None:
    node.daemon_up = True
    node.start()


def _calm(network: Network) -> None:
    network.drop = network.repeat = 0.0
    network.delay_ms = (0.2, 2.0)


def _heal(sim: Simulation) -> None:
    sim.network.cuts.clear()
    sim.network.link_cuts.clear()
    _calm(sim.network)
    for node in sim.nodes.values():
        node.resume()
        node.witness.cut = False
        node.daemon_up, node.daemon_hung, node.daemon_away_until = True, False, 0.0
        node.start()


def run_seed(seed: int, core: type[NodeWatch] = NodeWatch, *, storms: int = 5) -> Simulation:
    """One seed from start to recovery. Raises Violation, with the end of the transcript."""
    return run_misfortune(Simulation(seed, nodes=3 if seed % 3 else 5, core=core), storms=storms)


def run_links_seed(seed: int, core: type[NodeWatch] = NodeWatch, *, storms: int = 5) -> Simulation:
    """As `run_seed`, with two or three links, which fail too."""
    return run_misfortune(Simulation(seed, nodes=3 if seed % 3 else 5, links=2 + seed % 2, core=core), storms=storms)


def run_witness_seed(seed: int, core: type[NodeWatch] = NodeWatch, *, storms: int = 5) -> Simulation:
    """As `run_seed`, with an even number of nodes and a witness of one LUN or three."""
    sim = Simulation(seed, nodes=2 if seed % 3 else 4, witness=1 if seed % 2 else 3, core=core)
    return run_misfortune(sim, storms=storms)


def run_misfortune(sim: Simulation, *, storms: int) -> Simulation:
    whole = misfortune(sim, storms=storms)
    sim.run_until(whole)
    while (missing := sim.settled()) is not None:
        if sim.now > whole + 20_000:
            sim.fail(f"no recovery within 20 s: {missing}")
        sim.run_until(sim.now + 100)
    return sim
