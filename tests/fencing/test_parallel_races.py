"""Nodes that acquire a set at the same time, each with commands to many LUNs under way at once, in random orders.

Every command of every node is a point at which anybody else may go on: a command that was decided on is carried out an
arbitrary time later. Each node, and each of its works on one LUN, is a greenlet; a die says who goes on.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from greenlet import getcurrent, greenlet

from fencing import Good, Handle, LostRace, PortError, acquire, acquisition, verify
from fencing.fake import FakeLogicalUnit, fake_lun
from fencing.faulty import Fault, faulty_lun
from fencing.model import Key
from fencing.spread import Work, worst
from tests.fencing.conftest import at_once

T = TypeVar("T")
FAULTS = [Fault.LOST, Fault.UNANSWERED, Fault.TWICE]


class Racer:
    """A node in its acquisition: one greenlet that leads, one for each work that it spread."""

    def __init__(self, race: "Race", node: Any) -> None:
        self.race, self.node = race, node
        self.handle: Handle | None = None
        self.error: Exception | None = None
        self.dead = False
        self.epoch = 0
        race.start(self, self._acquire)

    def _acquire(self) -> None:
        nexus = f"n{self.node.number}".encode()
        luns = [faulty_lun(fake_lun(unit, nexus), self.race.turn) for unit in self.race.units]
        try:
            self.handle = acquire(
                luns, self.node.identity, floor=self.node.floor, intent=self._intend, clock=lambda: 0.0,
                settle=at_once,
                spread=self._spread,
            )  # fmt: skip
        except Exception as error:
            self.error = error

    def _intend(self, epoch: int) -> None:
        self.epoch = self.node.floor = epoch

    def _spread(self, works: Sequence[Work]) -> None:
        raised: list[Exception] = []

        def run(work: Work) -> None:
            try:
                if not raised:
                    work()
            except Exception as error:
                raised.append(error)

        begun = [self.race.start(self, run, work) for work in works]
        while not all(each.dead for each in begun):
            self.race.wait(begun)
        if raised:
            raise worst(raised)

    def good(self) -> bool:
        """By its handle, asked through ports of its own."""
        if self.handle is None or self.dead:
            return False
        luns = tuple(fake_lun(unit, f"n{self.node.number}".encode()) for unit in self.race.units)
        return isinstance(verify(Handle(key=self.handle.key, luns=luns, label=None)), Good)


class Race:
    def __init__(self, units: Sequence[FakeLogicalUnit], dice: random.Random, faulty: float = 0.0) -> None:
        self.units, self.dice, self._faulty = units, dice, faulty
        self._hub = getcurrent()
        self._running: dict[greenlet, Racer] = {}
        self._waits: dict[greenlet, list[greenlet]] = {}
        self._keys: list[set[int]] = [set() for _ in units]
        self._gone: list[set[int]] = [set() for _ in units]
        self._kept: list[greenlet] = []
        self._closed = [unit.type is not None for unit in units]

    def start(self, racer: Racer, call: Callable[..., None], *arguments: object) -> greenlet:
        new = greenlet(lambda: call(*arguments), parent=self._hub)
        self._running[new] = racer
        return new

    def turn(self, operation: str, changes: bool) -> Fault:
        """Before each command: others go on first, for as long as the die wants."""
        self._hub.switch()
        return self.dice.choice(FAULTS) if self.dice.random() < self._faulty else Fault.NONE

    def wait(self, others: list[greenlet]) -> None:
        self._waits[getcurrent()] = others
        self._hub.switch()

    def run(self, racers: Sequence[Racer], deaths: float = 0.0) -> None:
        while ready := [each for each in self._running if self._is_ready(each)]:
            chosen = self.dice.choice(ready)
            if self.dice.random() < deaths:
                self._end(self._running[chosen])
                continue
            chosen.switch()
            self._running = {each: racer for each, racer in self._running.items() if not each.dead}
            self._look(racers)

    def _is_ready(self, one: greenlet) -> bool:
        return all(each.dead for each in self._waits.get(one, ()))

    def _end(self, racer: Racer) -> None:
        """The node loses its power: none of its commands goes on."""
        racer.dead = True
        self._kept += [each for each, owner in self._running.items() if owner is racer]
        self._running = {each: owner for each, owner in self._running.items() if owner is not racer}

    def _look(self, racers: Sequence[Racer]) -> None:
        """What must hold at every moment."""
        for index, unit in enumerate(self.units):
            assert unit.type is not None or not self._closed[index], "an owned LUN was opened to everybody"
            self._closed[index] = self._closed[index] or unit.type is not None
            present = set(unit.registrations.values())
            self._gone[index] |= self._keys[index] - present
            self._keys[index] |= present
            assert not self._gone[index] & present, "a key that was dropped came back"
        assert sum(racer.good() for racer in racers) <= 1, "two handles are good"


def holders(units: Sequence[FakeLogicalUnit]) -> set[int]:
    return {unit.state().holders[0] for unit in units}


def prepared(new_cluster: Any, dice: random.Random) -> Any:
    cluster = new_cluster(units=dice.randrange(2, 7), nodes=4)
    if dice.random() < 0.7:
        cluster.nodes[0].acquire()
    return cluster


@pytest.mark.parametrize("seed", range(200))
def test_nodes_that_race_for_a_set_in_parallel_end_with_one_owner_of_all(new_cluster: Any, seed: int) -> None:
    dice = random.Random(seed)
    cluster = prepared(new_cluster, dice)
    race = Race(cluster.units, dice)
    racers = [Racer(race, node) for node in dice.sample(cluster.nodes, dice.choice((2, 2, 3)))]
    race.run(racers)
    owners = [racer for racer in racers if racer.good()]
    assert len(owners) == 1, [str(racer.error or racer.handle) for racer in racers]
    assert owners[0].handle is not None
    assert all(unit.state().exclusive_to(owners[0].handle.key.value) for unit in cluster.units)
    for racer in racers:
        assert racer.handle or isinstance(racer.error, LostRace), racer.error


@pytest.mark.parametrize("seed", range(200))
def test_whatever_ends_in_a_parallel_race_the_next_acquisition_owns_all(new_cluster: Any, seed: int) -> None:
    dice = random.Random(seed)
    cluster = prepared(new_cluster, dice)
    race = Race(cluster.units, dice, faulty=0.03)
    racers = [Racer(race, node) for node in dice.sample(cluster.nodes, 3)]
    race.run(racers, deaths=0.01)
    for racer in racers:
        assert racer.dead or racer.handle or isinstance(racer.error, LostRace | PortError), racer.error
    handle = dice.choice(cluster.nodes).acquire()
    assert isinstance(verify(handle), Good)
    assert holders(cluster.units) == {handle.key.value}
    assert not any(racer.good() for racer in racers)


def test_without_a_first_lun_that_decides_a_set_would_be_split(new_cluster: Any, monkeypatch: Any) -> None:
    """The races above can tell: here every LUN is contended for at once, and nodes with equal epochs share them."""

    def all_at_once(
        luns: Any,
        identity: Any,
        floor: int,
        intent: Any,
        watch: Any,
        force: bool,
        spread: Any,
        settle: Any,
        served: int,
    ) -> Handle:
        seen = acquisition._survey(luns, identity, watch, force, spread)
        epoch = acquisition.next_epoch(seen, cluster_tag=identity.tag, floor=floor)
        intent(epoch)
        handle = Handle(key=identity.key(epoch), luns=luns, label=None, spread=spread)
        contests = [acquisition.Contest(lun, handle, watch, force) for lun in luns]
        spread([contest.run for contest in contests])
        return handle

    monkeypatch.setattr(acquisition, "_fence", all_at_once)
    split = 0
    for seed in range(40):
        dice = random.Random(seed)
        cluster = new_cluster(units=4, nodes=3)
        cluster.nodes[0].acquire()
        race = Race(cluster.units, dice)
        race.run([Racer(race, node) for node in cluster.nodes[1:]])
        split += len({Key.parse(key).node for key in holders(cluster.units)}) > 1
    assert split > 0
