"""When the watchdog is patted, and what the device is told."""

from __future__ import annotations

import fcntl
import itertools
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nodewatch import _watchdog
from nodewatch import events as ev
from nodewatch._watchdog import WatchdogDevice, WatchdogUnusable
from nodewatch.config import ConfigError, parse_config
from nodewatch.core import NodeWatch
from nodewatch.heartbeat import Daemon
from nodewatch.lease import Timing
from nodewatch.sections import Fencing
from nodewatch.view import View
from nodewatch.watchdog import Condition, Watchdog, objection

from .cluster_sim import SimNode, Simulation
from .test_config import GOOD

WELL = Condition(lease=True, shut=False, daemon=Daemon.OK, held=1, lost=0)
STOPPED = Condition(lease=False, shut=True, daemon=Daemon.OK, held=0, lost=0)


@pytest.mark.parametrize(
    "seen",
    [
        WELL,
        WELL._replace(daemon=Daemon.GONE),
        WELL._replace(lost=1),
        STOPPED,
        STOPPED._replace(daemon=Daemon.ABSENT),
        STOPPED._replace(held=2),
    ],
    ids=[
        "serves",
        "hactld restarts",
        "one of two is stuck",
        "has nothing",
        "never had a hactld",
        "waits, address shut",
    ],
)
def test_a_node_that_serves_or_did_stop_is_patted(seen: Condition) -> None:
    assert objection(seen) == ""


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (STOPPED._replace(shut=False), "a gate may still be open"),
        (STOPPED._replace(daemon=Daemon.HUNG, held=1), "hactld is hung with 1 volume"),
        (STOPPED._replace(daemon=Daemon.ABSENT, held=1), "hactld is absent with 1 volume"),
        (STOPPED._replace(daemon=Daemon.GONE, lost=1), "hactld is gone with 1 volume"),
        (STOPPED._replace(lost=1), "cannot let go of 1 volume"),
        (WELL._replace(held=0, lost=1), "cannot let go of 1 volume"),
    ],
)
def test_a_node_that_should_have_stopped_and_did_not_is_not_patted(seen: Condition, why: str) -> None:
    assert why in objection(seen)


def test_without_a_lease_an_open_gate_or_a_lost_volume_is_never_patted() -> None:
    every = itertools.product((False, True), (False, True), Daemon, (0, 1), (0, 1))
    for seen in itertools.starmap(Condition, every):
        if not objection(seen):
            assert seen.lease or seen.shut
            assert not seen.lost or (seen.lease and seen.held)


def test_it_is_patted_once_a_second_and_says_when_it_will_reset() -> None:
    dog = Watchdog(14_000, 0)
    assert [now for now in range(0, 3001, 100) if dog.due(WELL, now)] == [1000, 2000, 3000]
    assert dog.words(3000) == ""
    assert not dog.due(STOPPED._replace(lost=1), 9000)
    assert dog.words(9000).endswith("this host is reset in 8.0 s unless that ends")
    assert dog.due(STOPPED, 9100)


# --- in a node ----------------------------------------------------------------------------------------------------


class Kennel:
    """A cluster whose third node has a watchdog."""

    def __init__(self) -> None:
        self.sim = Simulation(3)
        self.node.cluster = replace(self.sim.config, watchdog="/dev/watchdog0")
        self.sim.owner = 3
        self.effects: list[ev.Effect] = []
        act = self.node.act
        self.node.act = lambda effect: (self.effects.append(effect), act(effect))[1]  # type: ignore[method-assign]
        self.sim.run_until(5000)
        assert self.sim.settled() is None

    @property
    def node(self) -> SimNode:
        return self.sim.nodes[3]

    def beat(self, held: int, lost: int) -> None:
        self.node.feed(ev.DaemonBeat(now_ms=self.node.clock(), held=held, lost=lost))

    def pats(self, for_ms: float) -> int:
        self.effects.clear()
        self.sim.run_until(self.sim.now + for_ms)
        return sum(isinstance(effect, ev.Pat) for effect in self.effects)

    def view(self) -> View:
        assert self.node.watch is not None
        return self.node.watch.view(self.node.clock())

    def end(self) -> bool:
        """Node watch stops in order. Was the watchdog disarmed?"""
        self.effects.clear()
        self.node.feed(ev.Stop(now_ms=self.node.clock()))
        self.node.feed(ev.Farewell(now_ms=self.node.clock()))
        return any(isinstance(effect, ev.Disarm) for effect in self.effects)


def test_a_serving_node_is_patted_and_one_whose_daemon_hangs_is_not() -> None:
    kennel = Kennel()
    kennel.beat(1, 0)
    assert 8 <= kennel.pats(10_000) <= 11
    assert kennel.view().watchdog == ""
    kennel.node.daemon_hung = True
    kennel.pats(3000)
    assert kennel.pats(5000) == 0
    assert "hactld is hung with 1 volume(s) in hand: this host is reset in" in (kennel.view().watchdog or "")
    kennel.node.daemon_hung = False
    assert kennel.pats(5000) > 0


def test_a_node_that_is_cut_off_and_shut_its_address_is_patted() -> None:
    kennel = Kennel()
    kennel.beat(1, 0)
    kennel.sim.network.cuts.update({(3, 1), (3, 2), (1, 3), (2, 3)})
    kennel.pats(4000)
    assert kennel.view().lease_left_ms == 0
    assert kennel.pats(5000) >= 4
    kennel.beat(0, 1)
    assert kennel.pats(5000) == 0


def test_where_the_watchdog_fences_a_node_without_a_lease_is_patted_only_with_nothing_in_hand() -> None:
    fences = STOPPED._replace(fences=True)
    assert objection(fences) == "" and objection(WELL._replace(fences=True)) == ""
    assert "the watchdog is to fence this node" in objection(fences._replace(held=1))
    assert "the watchdog is to fence this node" in objection(fences._replace(lost=1))


class Reloads:
    """The watchdog device of node 3 in a simulation where the others count on it, and what they count."""

    def __init__(self, seed: int) -> None:
        self.sim = Simulation(seed)
        fencing = Fencing(levels=("reservation", "watchdog"), distrust=("v1",))
        for node in self.sim.nodes.values():
            node.cluster = replace(self.sim.config, watchdog="/dev/watchdog0", fencing=fencing)
        self.node, self.last_ms = self.sim.nodes[3], 0.0
        self.make_core = self.sim.make_core
        self.sim.make_core = self.make  # type: ignore[method-assign]
        act = self.node.act
        self.node.act = lambda effect: (self.note(effect), act(effect))[1]  # type: ignore[method-assign]
        self.sim.run_until(5000)
        self.beat()

    def make(self, **given: Any) -> NodeWatch:
        """W6: whoever follows a node watch that died was left an armed watchdog."""
        mine = given["me"].number == 3
        return self.make_core(**given, left_armed=mine and self.node.life > 1)

    def note(self, effect: ev.Effect) -> None:
        late = isinstance(effect, ev.Pat) and effect.not_after_ms is not None
        if isinstance(effect, ev.Pat) and not (late and self.node.clock() >= (effect.not_after_ms or 0)):
            self.last_ms = self.sim.now

    def beat(self) -> None:
        if self.node.watch is not None:
            self.node.feed(ev.DaemonBeat(now_ms=self.node.clock(), held=1, lost=0))

    def taken_for_reset(self, patience_ms: int) -> float:
        """Cut off from now on. When the leader takes node 3 for reset, in true time."""
        self.sim.network.cuts.update({(3, 1), (3, 2), (1, 3), (2, 3)})
        give_up = self.sim.now + patience_ms
        while self.sim.now < give_up:
            self.sim.run_until(self.sim.now + 20)
            for number in (1, 2):
                watch, clock = self.sim.nodes[number].watch, self.sim.nodes[number].clock()
                assert watch is not None
                view = watch.view(clock)
                if view.role != "leader" or not view.nodes["n3"].barred:
                    self.sim.nodes[number].feed(ev.BarWanted(now_ms=clock, node="n3"))
                elif view.nodes["n3"].safe_in_ms is not None:
                    until = clock + view.nodes["n3"].safe_in_ms + self.sim.config.timing.reset_after_ms
                    return self.sim.nodes[number].true_time(until)
        raise AssertionError("no bar was confirmed")


@pytest.mark.parametrize("seed", range(30))
def test_a_node_without_contact_is_reset_before_others_count_on_it(seed: int) -> None:
    """Clocks run as fast and as slow as they may; node watch dies at any time, and is started again."""
    world = Reloads(seed)
    timing, draw = world.sim.config.timing, Random(seed)
    world.sim.run_until(world.sim.now + draw.uniform(0, 2000))
    counted_ms = world.taken_for_reset(10_000)
    if seed % 3:
        world.sim.run_until(world.sim.now + draw.uniform(0, timing.watchdog_s * 1000))
        if world.last_ms + timing.watchdog_s * 1000 / world.node.rate > world.sim.now:
            world.last_ms = world.sim.now  # the kernel reloads it when the device is closed
        world.node.kill()
        world.node.start()
        if seed % 3 == 2:
            world.sim.run_until(world.sim.now + 5000)
            world.node.kill()  # it never opened the device, so nothing is reloaded
            world.node.start()
    world.sim.run_until(counted_ms)
    reset_ms = world.last_ms + timing.watchdog_s * 1000 / world.node.rate
    assert reset_ms <= counted_ms


def test_the_time_after_which_a_node_was_reset_is_derived_and_shown() -> None:
    timing = Timing()
    assert timing.reset_after_ms == 32_057 == -(-(2 * 14_000 + 1000) * 105 // 95) + 4
    [row] = timing.fencing_table()
    assert (row.worst_ms, row.best_ms) == (timing.guard_ms + 32_057, 13_000)
    assert replace(timing, daemon_restart_ms=0).reset_after_ms < 11_000


def test_the_time_after_which_a_nodes_power_is_known_is_derived_and_shown() -> None:
    [row] = Timing().power_table(20)
    assert (row.best_ms, row.worst_ms) == (600, 800 + 200 + 3 * 20_000)
    assert "timeout_s = 20" in row.because


def test_a_watchdog_that_waits_longer_than_others_count_on_is_refused() -> None:
    assert Timing().watchdog_violations(14) == []
    [why] = Timing().watchdog_violations(20)
    assert "= 1883 + 2000 + 10000 = 14 s" in why and "2 * 20 + 1 s" in why


def test_it_is_disarmed_at_the_end_only_when_nothing_is_in_hand() -> None:
    kennel = Kennel()
    kennel.beat(1, 0)
    assert not kennel.end()
    kennel = Kennel()
    kennel.beat(0, 0)
    assert kennel.end()


def test_without_a_watchdog_nothing_is_patted() -> None:
    sim = Simulation(3)
    sim.run_until(5000)
    watch = sim.nodes[1].watch
    assert watch is not None
    assert watch.view(sim.nodes[1].clock()).watchdog is None
    assert not any(isinstance(each, ev.Pat) for each in watch.step(ev.Tick(now_ms=sim.nodes[1].clock() + 2000)))


# --- configuration and device -------------------------------------------------------------------------------------


def test_the_section_names_a_device_and_is_no_part_of_the_digest() -> None:
    config = parse_config(GOOD + '[watchdog]\ndevice = "/dev/watchdog1"\n')
    assert config.watchdog == "/dev/watchdog1"
    assert config.digest() == parse_config(GOOD).digest()
    assert parse_config(GOOD).watchdog is None
    for wrong in ("", 'device = "watchdog0"', "device = 0", 'path = "/dev/watchdog0"'):
        with pytest.raises(ConfigError, match="watchdog"):
            parse_config(f"{GOOD}[watchdog]\n{wrong}\n")


def test_the_timeout_gives_every_part_its_chance() -> None:
    timing = Timing()
    assert timing.watchdog_s == 14
    assert replace(timing, daemon_restart_ms=0).watchdog_s == 4
    assert replace(timing, daemon_restart_ms=100_000).watchdog_s == 104


class FakeDriver:
    """Answers the ioctls as a driver would that takes no more than `most_s`."""

    def __init__(self, most_s: int) -> None:
        self.most_s = most_s
        self.timeout_s = 60

    def ioctl(self, fd: int, request: int, buffer: bytes) -> bytes:
        if request == _watchdog.WDIOC_GETSUPPORT:
            return _watchdog.INFO.pack(_watchdog.WDIOF_SETTIMEOUT | _watchdog.WDIOF_MAGICCLOSE, 0, b"Fake Timer")
        if request == _watchdog.WDIOC_SETTIMEOUT:
            self.timeout_s = min(self.most_s, struct.unpack("=i", buffer)[0])
        return struct.pack("=i", self.timeout_s)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "watchdog"
    path.touch()
    return path


def test_the_timeout_is_set_and_read_back(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", FakeDriver(65535).ioctl)
    dog = WatchdogDevice(str(device), 14)
    assert (dog.identity, dog.timeout_s) == ("Fake Timer", 14)
    dog.pat()
    dog.disarm()
    assert device.read_bytes() == b"\0V"


def test_a_device_that_cannot_wait_so_long_is_refused_and_disarmed(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", FakeDriver(10).ioctl)
    with pytest.raises(
        WatchdogUnusable, match=r"after 10 s, but guard_ms \+ daemon_hang_ms \+ daemon_restart_ms = 14 s"
    ):
        WatchdogDevice(str(device), 14)
    assert device.read_bytes() == b"V"


def test_what_is_no_watchdog_is_refused(device: Path) -> None:
    with pytest.raises(WatchdogUnusable, match="does not take a timeout"):
        WatchdogDevice(str(device), 14)
    with pytest.raises(WatchdogUnusable, match="is its driver loaded"):
        WatchdogDevice(str(device) + "9", 14)


def test_numbers_and_sizes_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not Path("/usr/include/linux/watchdog.h").exists():
        pytest.skip("no C compiler, or no linux/watchdog.h, to compare with")
    names = ("WDIOC_GETSUPPORT", "WDIOC_SETTIMEOUT", "WDIOC_GETTIMEOUT", "WDIOF_SETTIMEOUT", "WDIOF_MAGICCLOSE")
    prints = "".join(f'printf("%lu\\n", (unsigned long){name});' for name in names)
    source = tmp_path / "w.c"
    source.write_text(
        "#include <stdio.h>\n#include <linux/watchdog.h>\n#include <sys/ioctl.h>\n"
        f'int main(void) {{ {prints} printf("%lu\\n", (unsigned long)sizeof(struct watchdog_info)); }}\n'
    )
    subprocess.run([compiler, "-o", str(tmp_path / "w"), str(source)], check=True)
    said = subprocess.run([str(tmp_path / "w")], check=True, capture_output=True, text=True).stdout.split()
    assert [int(word) for word in said] == [*(getattr(_watchdog, name) for name in names), _watchdog.INFO.size]
