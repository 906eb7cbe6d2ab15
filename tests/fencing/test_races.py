"""Nodes that acquire at the same time, in every order of their commands.

An acquisition does nothing but answer to what it is told, so a contender is the tape of its answers so far.
One step runs `acquire` from its beginning, feeds it the tape, lets one more command through to the unit, and
stops it there. Tapes and units can be copied, so a walk over all orders visits each state once.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from fencing import (
    FencingError,
    Good,
    Handle,
    Key,
    LostRace,
    Lun,
    PortError,
    ReservationState,
    acquire,
    verify,
)
from fencing.fake import FakeLogicalUnit, fake_lun, own
from fencing.faulty import Crash, Fault, FaultyLabels, FaultyPort, run_with
from tests.fencing.conftest import at_once

T = TypeVar("T")
Units = Sequence[FakeLogicalUnit]


class Stop(BaseException):
    """The tape has ended and the one new command is done."""


class Tape:
    """Answers of the device so far. Replays them, then takes one answer from the device, then stops."""

    def __init__(self, answers: tuple[object, ...], fault: Fault) -> None:
        self.answers = list(answers)
        self._fault = fault
        self._position = 0
        self._new = False

    def run(self, operation: str, changes: bool, call: Callable[[], T]) -> T:
        if self._position == len(self.answers):
            if self._new:
                raise Stop
            self._new = True
            try:
                self.answers.append(run_with(self._fault, operation, changes, "unit", call))
            except PortError as error:
                self.answers.append(error)
        self._position += 1
        answer = self.answers[self._position - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[return-value]


class TapedPort(FaultyPort):
    def __init__(self, lun: Lun, tape: Tape) -> None:
        super().__init__(lun.port, lambda operation, changes: Fault.NONE)
        self._tape = tape

    def _run(self, operation: str, changes: bool, call: Callable[[], T]) -> T:
        return self._tape.run(operation, changes, call)


class TapedLabels(FaultyLabels):
    def __init__(self, lun: Lun, tape: Tape) -> None:
        super().__init__(lun.labels, lambda operation, changes: Fault.NONE, lun.wwid)
        self._tape = tape

    def read(self):
        return self._tape.run("read label", False, self._labels.read)

    def write(self, label, slot: int) -> None:
        self._tape.run("write label", True, lambda: self._labels.write(label, slot))


class Contender:
    """A node somewhere in its acquisition. `step` leaves this one as it is and returns the next."""

    def __init__(self, node) -> None:
        self.node = node
        self.answers: tuple[object, ...] = ()
        self.knows: tuple[str, ...] = ()  # all that decides what it will do
        self.handle: Handle | None = None
        self.error: FencingError | None = None
        self.crashed = False
        self.epoch: int | None = None

    @property
    def ended(self) -> bool:
        return self.handle is not None or self.error is not None or self.crashed

    def step(self, units: Units, fault: Fault = Fault.NONE) -> "Contender":
        tape = Tape(self.answers, fault)
        after = Contender(self.node)
        luns = [taped(fake_lun(unit, f"n{self.node.number}".encode()), tape) for unit in units]
        try:
            after.handle = acquire(
                luns,
                self.node.identity,
                floor=self.node.floor,
                intent=lambda epoch: setattr(after, "epoch", epoch),
                clock=lambda: 0.0,
                settle=at_once,
            )
        except Stop:
            pass
        except Crash:
            after.crashed = True
        except FencingError as error:
            after.error = error
        after.answers = tuple(tape.answers)
        after.knows = (*self.knows, *map(known, tape.answers[len(self.answers) :]))
        return after

    def good(self, units: Units) -> bool:
        """Does its handle say so, asked through ports of its own?"""
        if self.handle is None:
            return False
        luns = tuple(fake_lun(unit, f"n{self.node.number}".encode()) for unit in units)
        return isinstance(verify(Handle(key=self.handle.key, luns=luns, label=None)), Good)


def taped(lun: Lun, tape: Tape) -> Lun:
    return Lun(wwid=lun.wwid, port=TapedPort(lun, tape), labels=TapedLabels(lun, tape), in_use=lun.in_use)


def copied(unit: FakeLogicalUnit) -> FakeLogicalUnit:
    return replace(unit, registrations=dict(unit.registrations), blocks=dict(unit.blocks), attentions={})


def known(answer: object) -> str:
    """An answer without what no decision depends on: the device's counter, and words."""
    if isinstance(answer, PortError):
        return type(answer).__name__
    if isinstance(answer, ReservationState):
        return repr((answer.registrants, answer.type))
    return repr(answer)


def visible(unit: FakeLogicalUnit) -> tuple[object, ...]:
    registered = tuple(sorted(unit.registrations.items()))
    return registered, unit.holder, unit.type, tuple(sorted(unit.blocks.items()))


class Watch:
    """What must hold at every moment, seen from outside the contenders."""

    def __init__(self, units: Units) -> None:
        self._closed = [unit.type is not None for unit in units]
        self._seen: list[set[int]] = [set() for _ in units]
        self._gone: list[set[int]] = [set() for _ in units]

    def copy(self) -> "Watch":
        watch = Watch(())
        watch._closed = list(self._closed)
        watch._seen, watch._gone = [set(keys) for keys in self._seen], [set(keys) for keys in self._gone]
        return watch

    def look(self, units: Units, contenders: Sequence[Contender]) -> None:
        for index, unit in enumerate(units):
            assert unit.type is not None or not self._closed[index], "an owned disk was opened to everybody"
            self._closed[index] = self._closed[index] or unit.type is not None
            present = set(unit.registrations.values())
            self._gone[index] |= self._seen[index] - present
            self._seen[index] |= present
            assert not self._gone[index] & present, "a key that was bad became good again"
        assert sum(contender.good(units) for contender in contenders) <= 1, "two handles are good"


Schedule = Callable[[list[int], Sequence[Contender]], tuple[int, Fault]]


def race(units: Units, contenders: list[Contender], schedule: Schedule) -> list[Contender]:
    """Let contenders go on, one command at a time, until all have ended."""
    watch = Watch(units)
    while running := [index for index, contender in enumerate(contenders) if not contender.ended]:
        chosen, fault = schedule(running, contenders)
        contenders[chosen] = contenders[chosen].step(units, fault)
        watch.look(units, contenders)
    return contenders


def assert_one_owns_all(units: Units, contenders: Sequence[Contender]) -> None:
    owners = [contender for contender in contenders if contender.good(units)]
    assert len(owners) == 1, [str(each.error or each.handle) for each in contenders]
    assert owners[0].handle is not None
    assert all(unit.state().exclusive_to(owners[0].handle.key.value) for unit in units)
    for contender in contenders:
        assert contender.handle or isinstance(contender.error, LostRace), contender.error


def walk(unit: FakeLogicalUnit, nodes: Sequence[object]) -> tuple[int, int]:
    """Visit every state that two contenders can reach; returns how many there are, and how many ends."""
    seen: set[object] = set()
    ends = 0
    todo = [(unit, tuple(Contender(node) for node in nodes), Watch([unit]))]
    while todo:
        unit, contenders, watch = todo.pop()
        watch.look([unit], contenders)
        state = (visible(unit), *(contender.knows for contender in contenders))
        if state in seen:
            continue
        seen.add(state)
        if all(contender.ended for contender in contenders):
            ends += 1
            assert_one_owns_all([unit], contenders)
        for index, contender in enumerate(contenders):
            if not contender.ended:
                then = copied(unit)
                moved = contender.step([then])
                todo.append((then, (*contenders[:index], moved, *contenders[index + 1 :]), watch.copy()))
    return len(seen), ends


@pytest.mark.parametrize("owned_before", [True, False])
def test_two_nodes_that_race_in_any_order_end_with_one_owner(new_cluster, owned_before: bool) -> None:
    cluster = new_cluster()
    if owned_before:
        cluster.nodes[0].acquire()
    states, ends = walk(cluster.units[0], cluster.nodes[1:])
    assert states > 300 and ends > 3, (states, ends)


def test_an_owner_that_acquires_again_while_it_is_taken_over_ends_with_one_owner(new_cluster) -> None:
    """The first node still has the registration of its earlier life on its nexus."""
    cluster = new_cluster()
    cluster.nodes[0].acquire()
    states, ends = walk(cluster.units[0], cluster.nodes[:2])
    assert states > 300 and ends > 3, (states, ends)


@pytest.mark.parametrize("seed", range(100))
def test_nodes_that_race_for_many_devices_end_with_one_owner_of_all(new_cluster, seed: int) -> None:
    dice = random.Random(seed)
    cluster = new_cluster(units=dice.randrange(1, 6), nodes=4)
    if dice.random() < 0.7:
        cluster.nodes[0].acquire()
    nodes = dice.sample(cluster.nodes, dice.choice((2, 2, 3)))
    pace = [dice.choice((1, 1, 5)) for _ in nodes]

    def schedule(running: list[int], contenders: Sequence[Contender]) -> tuple[int, Fault]:
        return dice.choices(running, [pace[index] for index in running])[0], Fault.NONE

    contenders = race(cluster.units, [Contender(node) for node in nodes], schedule)
    assert_one_owns_all(cluster.units, contenders)


@pytest.mark.parametrize("seed", range(150))
def test_whatever_goes_wrong_in_a_race_the_next_acquisition_owns_all(new_cluster, seed: int) -> None:
    dice = random.Random(seed)
    cluster = new_cluster(units=dice.randrange(1, 4), nodes=4)
    cluster.nodes[0].acquire()
    faults = [Fault.LOST, Fault.UNANSWERED, Fault.TWICE, Fault.CRASH_BEFORE, Fault.CRASH_AFTER]

    def schedule(running: list[int], contenders: Sequence[Contender]) -> tuple[int, Fault]:
        return dice.choice(running), dice.choice(faults) if dice.random() < 0.08 else Fault.NONE

    nodes = dice.sample(cluster.nodes, 3)
    contenders = race(cluster.units, [Contender(node) for node in nodes], schedule)
    for contender in contenders:
        assert contender.error is None or isinstance(contender.error, LostRace | PortError), contender.error
        contender.node.floor = contender.epoch or contender.node.floor
    handle = dice.choice(cluster.nodes).acquire()
    assert isinstance(verify(handle), Good)
    assert not any(contender.good(cluster.units) for contender in contenders)
    assert all(unit.state().exclusive_to(handle.key.value) for unit in cluster.units)


def test_a_contender_that_meets_a_foreign_key_late_backs_off(cluster) -> None:
    cluster.nodes[0].acquire()
    unit = cluster.units[0]
    contender = Contender(cluster.nodes[1])
    while b"n2" not in unit.registrations:
        contender = contender.step(cluster.units)
    unit.connect(b"elsewhere").register(0, 0xF00D)
    while not contender.ended:
        contender = contender.step(cluster.units)
    assert "0x000000000000f00d" in str(contender.error)
    assert b"n2" not in unit.registrations
    assert Key.parse(unit.state().holders[0]).node == 1


def test_a_beaten_holder_stays_registered_so_that_the_disk_stays_closed(new_cluster) -> None:
    cluster = new_cluster(units=2)
    contender = Contender(cluster.nodes[1])
    while cluster.units[0].holder != b"n2":
        contender = contender.step(cluster.units)
    newer = cluster.nodes[2].identity.key(50).value
    cluster.units[0].connect(b"n3").register(0, newer)
    while not contender.ended:
        contender = contender.step(cluster.units)
    assert isinstance(contender.error, LostRace) and contender.error.rival == newer
    assert cluster.units[0].holder == b"n2"
    own(cluster.units[0], b"n3", newer)
    assert cluster.nodes[0].acquire().epoch == 51
