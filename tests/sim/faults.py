"""What goes wrong, drawn from the seed before the run begins: a list of faults, each of which can be left out.

Whom a fault strikes is named by role ("server", "leader") or by number, and looked up when it strikes: most is to be
learned from the node that serves and from the one that leads. `heal` makes everything whole again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hactl.errors import HaError

if TYPE_CHECKING:
    from .cluster import Cluster
    from .host import Host
    from .process import DaemonProcess

STORM_MS = 4500.0
CALM_MS = 3500.0
"""Before the first storm, so that there is something to strike."""

GIVE_UP_MS = (None, 5000.0, 8000.0)
"""When an initiator fails what hangs. Never before hactl doubts the disk (3 s), as docs/administration.md asks for."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One misfortune from `at` on for `lasts` milliseconds. `draw` seeds what it must choose when it strikes."""

    at: float
    kind: str
    who: str
    lasts: float
    draw: int

    def __str__(self) -> str:
        return f"{self.at:.0f} {self.kind} {self.who} for {self.lasts:.0f} ms"


KINDS = {
    "freeze": 4,
    "crash": 4,
    "pause-nodewatch": 3,
    "kill-nodewatch": 4,
    "stop-nodewatch": 1,
    "pause-hactld": 4,
    "kill-hactld": 4,
    "lose-hactld": 2,
    "mute": 2,
    "deaf": 2,
    "isolate": 3,
    "cut-pair": 3,
    "cut-link": 2,
    "split": 2,
    "loss": 3,
    "slow": 3,
    "cut-disk": 4,
    "flaky-disk": 3,
    "flaky-disks": 2,
    "blind-takeover": 4,
    "interrupted-takeover": 4,
    "power-off-target": 2,
    "log-in-anew": 1,
    "slow-files": 2,
    "move": 3,
    "fence": 1,
}
ROLES = ("server", "server", "server", "leader", "any", "any")


def draw_faults(seed: int, nodes: int, storms: int) -> tuple[list[Fault], float]:
    """The schedule of a seed, and the time when all is to be whole again."""
    dice = random.Random(f"faults {seed}")
    kinds, weights = list(KINDS), list(KINDS.values())
    found = []
    begin = CALM_MS
    for _ in range(storms):
        for _ in range(dice.choice((1, 2, 2, 3, 4))):
            role = dice.choice(ROLES)
            who = f"n{dice.randint(1, nodes)}" if role == "any" else role
            lasts = dice.choice((100, 400, 1000, 2000, 4000, 6000)) * dice.uniform(0.5, 1.5)
            kind = dice.choices(kinds, weights)[0]
            found.append(Fault(begin + dice.uniform(0, 2000), kind, who, lasts, dice.getrandbits(32)))
        begin += STORM_MS
    return sorted(found, key=lambda fault: fault.at), begin + 2000


class Misfortune:
    """Strikes the faults of a schedule, and ends each when its time is over."""

    def __init__(self, cluster: Cluster, schedule: list[Fault]) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._fenced: set[str] = set()
        for fault in schedule:
            self._world.at(fault.at, lambda fault=fault: self._strike(fault))

    def _strike(self, fault: Fault) -> None:
        host = self._whom(fault.who)
        self._world.note("***", f"{fault} strikes {host.name}")
        getattr(self, "_" + fault.kind.replace("-", "_"))(host, fault.lasts, random.Random(fault.draw))

    def _whom(self, who: str) -> Host:
        cluster = self._cluster
        found = {"server": lambda: cluster.server(cluster.volumes[0]), "leader": cluster.leader}
        if who in found:
            return found[who]() or cluster.hosts[1]
        return cluster.hosts[int(who[1:])]

    def _after(self, delay_ms: float, action: Callable[[], None]) -> None:
        self._world.after(delay_ms, action)

    # -- hosts and processes -----------------------------------------------------------------------------------------

    def _freeze(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.freeze()
        self._after(lasts, host.thaw)

    def _crash(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.crash()
        self._after(lasts, host.boot)

    def _pause_nodewatch(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.watch.pause()
        self._after(lasts, host.watch.resume)

    def _kill_nodewatch(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.watch.kill(restart_ms=dice.choice((50, 500, min(lasts, 3000))))

    def _stop_nodewatch(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.watch.stop()
        self._after(lasts, lambda: self._start_nodewatch(host))

    def _start_nodewatch(self, host: Host) -> None:
        host.watch.stop_wanted = False
        host.watch.start()

    def _pause_hactld(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.daemon.pause()
        self._after(lasts, host.daemon.resume)

    def _kill_hactld(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.daemon.kill(restart=True)

    def _lose_hactld(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.daemon.kill(restart=True, restart_ms=lasts)

    def _slow_files(self, host: Host, lasts: float, dice: random.Random) -> None:
        host.files.slow = True
        self._after(lasts, lambda: setattr(host.files, "slow", False))

    # -- network -----------------------------------------------------------------------------------------------------

    def _cut(self, ways: list[tuple[int, ...]], lasts: float, dice: random.Random) -> None:
        """Ways of one fault do not fail and heal in the same moment."""
        network = self._cluster.network
        for way in ways:
            begin = dice.choice((0.0, dice.uniform(0, 800)))
            self._after(begin, lambda way=way: network.cut(way))
            self._after(begin + lasts * dice.choice((1, 1, 1.5)), lambda way=way: network.heal(way))

    def _others(self, host: Host) -> list[int]:
        return [number for number in self._cluster.hosts if number != host.number]

    def _mute(self, host: Host, lasts: float, dice: random.Random) -> None:
        self._cut([(host.number, other) for other in self._others(host)], lasts, dice)

    def _deaf(self, host: Host, lasts: float, dice: random.Random) -> None:
        self._cut([(other, host.number) for other in self._others(host)], lasts, dice)

    def _isolate(self, host: Host, lasts: float, dice: random.Random) -> None:
        self._mute(host, lasts, dice)
        self._deaf(host, lasts, dice)

    def _cut_pair(self, host: Host, lasts: float, dice: random.Random) -> None:
        other = dice.choice(self._others(host))
        both = [(host.number, other), (other, host.number)]
        self._cut(both if dice.random() < 0.5 else [dice.choice(both)], lasts, dice)

    def _cut_link(self, host: Host, lasts: float, dice: random.Random) -> None:
        """One of the heartbeat networks, for one host or for all."""
        link = dice.randrange(self._cluster.config.links)
        numbers = list(self._cluster.hosts)
        ways = [(a, b, link) for a in numbers for b in numbers if a != b]
        if dice.random() < 0.6:
            ways = [way for way in ways if host.number in way[:2]]
        self._cut(ways, lasts, dice)

    def _split(self, host: Host, lasts: float, dice: random.Random) -> None:
        numbers = list(self._cluster.hosts)
        dice.shuffle(numbers)
        near = set(numbers[: dice.randint(1, len(numbers) - 1)])
        crossing = [(a, b) for a in numbers for b in numbers if (a in near) != (b in near)]
        self._cut(crossing, lasts, dice)

    def _loss(self, host: Host, lasts: float, dice: random.Random) -> None:
        network = self._cluster.network
        network.drop, network.repeat = dice.uniform(0.05, 0.6), 0.3
        self._after(lasts, self._calm)

    def _slow(self, host: Host, lasts: float, dice: random.Random) -> None:
        self._cluster.network.slow_ms = dice.choice((30.0, 300.0, 900.0))
        self._after(lasts, self._calm)

    def _calm(self) -> None:
        network = self._cluster.network
        network.drop = network.repeat = network.slow_ms = 0.0

    # -- disks -------------------------------------------------------------------------------------------------------

    def _cut_disk(self, host: Host, lasts: float, dice: random.Random) -> None:
        give_up_ms = dice.choice(GIVE_UP_MS)
        for path in host.paths.values():
            path.cut("cut", give_up_ms)
            self._after(lasts, lambda path=path: path.heal("cut"))

    def _flaky_disk(self, host: Host, lasts: float, dice: random.Random) -> None:
        for path in host.paths.values():
            path.lose_request, path.lose_reply = dice.uniform(0, 0.2), dice.uniform(0, 0.4)
            self._after(lasts, path.steady)

    def _flaky_disks(self, host: Host, lasts: float, dice: random.Random) -> None:
        for each in self._cluster.hosts.values():
            self._flaky_disk(each, lasts, dice)

    def _blind_takeover(self, host: Host, lasts: float, dice: random.Random) -> None:
        """The server goes while every disk leaves changes of its reservation unanswered, carried out or not."""
        for each in self._cluster.hosts.values():
            for path in each.paths.values():
                path.blind = dice.uniform(0.2, 0.6)
                self._after(max(lasts, 4000.0), path.steady)
        self._lose(host, lasts, dice)

    def _interrupted_takeover(self, host: Host, lasts: float, dice: random.Random) -> None:
        """The server goes, and who takes over is struck just after it noted the epoch that it means to use; perhaps the
        next one, too."""
        if dice.random() < 0.5:
            self._lose(host, lasts, dice)
        else:
            self._crash(host, dice.uniform(100, 600), dice)  # back before the others take over: it takes its own again
        left = dice.choice((1, 2, 3))

        def strike(taker: Host) -> None:
            nonlocal left
            left -= 1
            self._cluster.checker.at_next_intent = strike if left else None
            kind = dice.choice(("kill_hactld", "kill_hactld", "freeze", "crash", "cut_disk"))
            self._world.note("***", f"{kind} strikes the taker {taker.name}")
            short = dice.choice((50.0, 500.0, 3000.0))
            self._after(dice.choice((0.1, dice.uniform(0, 8))), lambda: getattr(self, f"_{kind}")(taker, short, dice))

        self._cluster.checker.at_next_intent = strike

    def _lose(self, host: Host, lasts: float, dice: random.Random) -> None:
        """It is frozen or crashes, and comes back."""
        self._after(dice.uniform(0, 500), host.freeze if dice.random() < 0.5 else host.crash)
        self._after(lasts + 500, lambda: host.thaw() if host.frozen else host.boot())

    def _power_off_target(self, host: Host, lasts: float, dice: random.Random) -> None:
        give_up_ms = dice.choice(GIVE_UP_MS)
        paths = [path for each in self._cluster.hosts.values() for path in each.paths.values()]
        for unit in self._cluster.units.values():
            unit.lose_power()
        for path in paths:
            path.cut("target", give_up_ms)
            self._after(lasts, path.target_is_back)

    def _log_in_anew(self, host: Host, lasts: float, dice: random.Random) -> None:
        """The initiator makes a new session under another port identifier: to the disk, an I_T nexus that never
        registered, while the old one still is."""
        for path in host.paths.values():
            path.log_in(new_nexus=True)

    # -- administrators ----------------------------------------------------------------------------------------------

    def _move(self, host: Host, lasts: float, dice: random.Random) -> None:
        target = dice.choice(["", *self._cluster.numbers])
        volume = dice.choice(self._cluster.volumes)
        for daemon in self._daemons(dice):
            self._ask(daemon, "move", {"volume": volume, "node": target})
            return

    def _fence(self, host: Host, lasts: float, dice: random.Random) -> None:
        for daemon in self._daemons(dice):
            self._fenced.add(host.name)
            self._ask(daemon, "fence", {"node": host.name})
            self._after(lasts, lambda: self._unfence(host.name, dice))
            return

    def _unfence(self, name: str, dice: random.Random) -> None:
        for daemon in self._daemons(dice):
            self._ask(daemon, "unfence", {"node": name})
            return

    def _daemons(self, dice: random.Random) -> list[DaemonProcess]:
        running = [host.daemon for host in self._cluster.hosts.values() if host.daemon.ready]
        dice.shuffle(running)
        return running

    def _ask(self, process: DaemonProcess, verb: str, args: dict[str, str]) -> None:
        """`hactl VERB` on that host. A refusal, or no answer, is the administrator's to bear."""
        assert process.daemon is not None
        daemon = process.daemon

        async def ask() -> None:
            try:
                await daemon.command(verb, args)
                answer = "done"
            except HaError as refused:
                answer = str(refused)
            process.note(f"command {verb} {args}: {answer}")

        process.when_running(lambda: process.spawn(ask()))

    # -- the end -----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything works from now on, and what an administrator kept out is let in."""
        self._world.note("***", "all is whole")
        self._cluster.network.cuts.clear()
        self._calm()
        for host in self._cluster.hosts.values():
            host.files.slow = False
            for path in host.paths.values():
                path.steady()
                for why in ("cut", "target"):
                    path.heal(why)
            host.thaw()
            host.boot()
            host.watch.resume()
            self._start_nodewatch(host)
            host.daemon.resume()
            host.daemon.start()
        self._let_in()

    def _let_in(self) -> None:
        """Again and again: there may be no leader just now, or a new one that heard of the fence."""
        dice = random.Random(self._world.seed)
        for name in sorted(self._fenced):
            self._unfence(name, dice)
        if self._fenced:
            self._after(1500, self._let_in)
