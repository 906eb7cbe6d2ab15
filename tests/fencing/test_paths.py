"""One port over several paths: every rule of fencing/paths.py, on paths that die, hang, and come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from fencing.acquisition import acquire
from fencing.errors import FencingError, LostRace, NotDelivered, OutcomeUnknown, PortError, Refused
from fencing.fake import FakeLabels, FakeLogicalUnit, FakePort, own, seed_label
from fencing.faulty import Fault, FaultyPort
from fencing.handle import Good, Handle, release, verify
from fencing.model import OUR_TYPE, Identity, ReservationState
from fencing.ownership import Lost
from fencing.paths import MultipathPort, join
from fencing.port import Lun, ReservationPort
from tests.fencing.conftest import CLUSTER, at_once, label_for

K1, K2, FOREIGN = 0x3A79000100000001, 0x3A79000200000002, 0x1


class FakePath:
    """A path that can be down, or lose answers, and is gone for good once retired."""

    def __init__(self, unit: FakeLogicalUnit, nexus: bytes, life: int = 0) -> None:
        self.unit, self.nexus = unit, nexus
        self.device = f"/dev/{nexus.decode()}#{life}"
        self.up = True
        self.retired = False
        self.stubborn = False
        self.fault: Callable[[str, bool], Fault] = lambda operation, changes: Fault.NONE
        self.commands: list[str] = []
        self._port: ReservationPort = FaultyPort(unit.connect(nexus), self._choose)

    def __getattr__(self, name: str) -> object:
        return getattr(self._port, name)

    def _choose(self, operation: str, changes: bool) -> Fault:
        self.commands.append(operation)
        return self.fault(operation, changes) if self.up and not self.retired else Fault.LOST

    def retire(self) -> None:
        if self.stubborn:
            raise NotDelivered("cannot be taken out of use", device=self.device, operation="retire")
        self.retired = True

    def may_carry(self) -> bool:
        """Whether dm would send a write down this path now, or later without anybody being asked."""
        return not self.retired


@dataclass
class Group:
    """What a node sees of a unit; `came` are paths that appear at the next listing."""

    members: list[FakePath]
    noted: int = 0
    came: list[FakePath] = field(default_factory=list)

    def expect(self, key: int) -> None:
        self.noted = key

    def paths(self) -> Sequence[FakePath]:
        seen = [path for path in self.members if not path.retired]
        self.members += self.came
        self.came = []
        return seen

    def close(self) -> None:
        pass


def node(unit: FakeLogicalUnit, name: str, paths: int = 2) -> tuple[MultipathPort, Group]:
    group = Group([FakePath(unit, f"{name}/{number}".encode()) for number in range(paths)])
    return MultipathPort(f"/dev/{name}", group), group


def lun_of(unit: FakeLogicalUnit, name: str, paths: int = 2) -> tuple[Lun, Group]:
    port, group = node(unit, name, paths)
    return Lun(wwid=unit.name, port=port, labels=HeadLabels(unit, group), in_use=lambda: ""), group


class HeadLabels:
    """Labels written as dm writes: down any path that is up and not known to be lost; a conflict is final."""

    def __init__(self, unit: FakeLogicalUnit, group: Group) -> None:
        self._unit, self._group = unit, group

    def _any(self) -> FakeLabels:
        up = [path for path in self._group.members if path.up and path.may_carry()]
        if not up:
            raise NotDelivered("no path", device=self._unit.name, operation="label")
        return FakeLabels(self._unit, up[-1].nexus)

    def read(self) -> object:
        return self._any().read()

    def write(self, label: object, slot: int) -> None:
        self._any().write(label, slot)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


def identity(number: int) -> Identity:
    return Identity(cluster_uuid=CLUSTER, node=number, node_name=f"n{number}")


def volume() -> FakeLogicalUnit:
    unit = FakeLogicalUnit(name="naa.1")
    seed_label(unit, label_for("naa.1"))
    return unit


def take(lun: Lun, number: int, floor: int = 0) -> Handle:
    return acquire([lun], identity(number), floor=floor, intent=lambda epoch: None, clock=lambda: 0.0, settle=at_once)


def writers(unit: FakeLogicalUnit) -> set[bytes]:
    assert unit.type is OUR_TYPE
    return set(unit.registrations)


def test_an_owner_has_its_key_on_every_path() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    handle = take(lun, 1)
    assert unit.registrations == {b"a/0": handle.key.value, b"a/1": handle.key.value}
    assert unit.state().exclusive_to(handle.key.value)
    assert group.noted == handle.key.value
    assert isinstance(verify(handle), Good)


def test_a_takeover_drops_the_old_owner_on_all_its_paths() -> None:
    unit = volume()
    old_lun, _ = lun_of(unit, "a")
    old = take(old_lun, 1)
    new_lun, _ = lun_of(unit, "b")
    take(new_lun, 2)
    assert writers(unit) == {b"b/0", b"b/1"}
    assert isinstance(verify(old), Lost)


def test_the_key_is_noted_before_the_paths_are_listed_and_registered() -> None:
    unit = FakeLogicalUnit()
    port, group = node(unit, "a")
    order: list[str] = []
    group.members[0].fault = lambda operation, changes: order.append(f"{operation} {group.noted:#x}") or Fault.NONE  # type: ignore[func-returns-value]
    port.register(0, K1, ignore_existing=True)
    assert order == [f"register {K1:#x}"]


def test_a_lost_path_costs_nothing_while_the_volume_is_held() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    handle = take(lun, 1)
    group.members[0].up = False
    assert verify(handle) == Good(generations=(unit.generation,))
    assert not group.members[0].retired


def test_a_path_that_cannot_be_registered_is_taken_out_of_use() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    group.members[0].up = False
    handle = take(lun, 1)
    assert group.members[0].retired and not group.members[1].retired
    assert unit.registrations == {b"a/1": handle.key.value}


def test_nothing_is_owned_while_a_path_can_be_neither_registered_nor_taken_away() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    group.members[0].up, group.members[0].stubborn = False, True
    with pytest.raises(PortError, match="taken out of use"):
        take(lun, 1)
    assert group.members[0].may_carry()


def test_with_every_path_down_no_path_is_taken_away() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    seen = lun.labels.read()
    assert seen is not None
    for path in group.members:
        path.fault = lambda operation, changes: Fault.LOST if changes else Fault.NONE
    with pytest.raises(NotDelivered):
        take(lun, 1)
    assert not any(path.retired for path in group.members)


def test_a_path_that_appears_while_the_others_are_registered_is_registered_too() -> None:
    unit = FakeLogicalUnit()
    port, group = node(unit, "a", paths=1)
    group.came = [FakePath(unit, b"a/late")]
    port.register(0, K1, ignore_existing=True)
    assert unit.registrations == {b"a/0": K1, b"a/late": K1}


def test_paths_that_never_stop_changing_are_an_error() -> None:
    unit = FakeLogicalUnit()
    port, group = node(unit, "a", paths=1)
    lives = iter(range(1, 100))

    def another(operation: str, changes: bool) -> Fault:
        path = FakePath(unit, b"a/flap", next(lives))
        path.fault = another
        group.members.append(path)
        return Fault.NONE

    group.members[0].fault = another
    with pytest.raises(NotDelivered, match="change all the time"):
        port.register(0, K1, ignore_existing=True)


@pytest.mark.parametrize("carried_out", [True, False])
def test_an_unknown_register_is_read_back_on_its_own_path(carried_out: bool) -> None:
    unit = FakeLogicalUnit()
    port, group = node(unit, "a")
    first = group.members[0]
    original = first._port.register

    def register(old: int, new: int, ignore_existing: bool = False) -> None:
        if ignore_existing:
            if carried_out:
                original(old, new, ignore_existing)
            raise OutcomeUnknown("no answer", device=first.device, operation="register")
        original(old, new, ignore_existing)

    first.register = register  # type: ignore[method-assign]
    port.register(0, K1, ignore_existing=True)
    assert first.retired is not carried_out
    assert unit.registrations.get(b"a/1") == K1
    assert (unit.registrations.get(b"a/0") == K1) is carried_out


def test_a_command_goes_on_to_the_next_path_when_it_was_not_delivered() -> None:
    unit = FakeLogicalUnit()
    port, group = node(unit, "a")
    port.register(0, K1, ignore_existing=True)
    group.members[0].up = False
    port.reserve(K1, OUR_TYPE)
    assert unit.state().exclusive_to(K1)
    group.members[0].commands.clear()
    port.read()
    assert group.members[0].commands == []


def test_an_unknown_outcome_is_told_and_the_next_command_takes_another_path() -> None:
    unit = FakeLogicalUnit()
    port, group = node(unit, "a")
    port.register(0, K1, ignore_existing=True)
    group.members[0].fault = lambda operation, changes: Fault.UNANSWERED if changes else Fault.NONE
    with pytest.raises(OutcomeUnknown):
        port.reserve(K1, OUR_TYPE)
    group.members[0].commands.clear()
    port.reserve(K1, OUR_TYPE) if unit.holder == b"a/1" else port.read()
    assert group.members[0].commands == []


def test_without_any_path_nothing_is_delivered() -> None:
    unit = FakeLogicalUnit()
    port, _ = node(unit, "a", paths=0)
    for act in (port.read, port.capabilities, lambda: port.register(0, K1, ignore_existing=True)):
        with pytest.raises(NotDelivered, match="no path"):
            act()
    with pytest.raises(NotDelivered, match="no path"):
        port.reserve(K1, OUR_TYPE)


def test_the_probe_of_a_backup_is_refused_however_many_paths_are_down() -> None:
    unit = FakeLogicalUnit()
    own(unit, b"b/0", K2)
    port, group = node(unit, "a")
    group.members[0].up = False
    with pytest.raises(Refused):
        port.register(K1, K1)
    assert unit.registrations == {b"b/0": K2}


# -- an initiator that comes back ----------------------------------------------------------------------------


def test_the_old_nexus_of_a_returned_initiator_is_no_stranger() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    handle = take(lun, 1)
    group.members[0].retired = True  # its session is logged out
    back = FakePath(unit, b"a/0-new-isid")
    assert join(back, handle.key.value)
    group.members.append(back)
    assert verify(handle) == Good(generations=(unit.generation,))
    assert writers(unit) == {b"a/0", b"a/1", b"a/0-new-isid"}


def test_the_next_acquisition_cleans_up_the_old_nexus() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    first = take(lun, 1)
    group.members[0].retired = True
    group.members.append(FakePath(unit, b"a/0-new-isid"))
    second = take(lun, 1, floor=first.epoch)
    assert second.taken_from == (first.key.value,)
    assert unit.registrations == {b"a/1": second.key.value, b"a/0-new-isid": second.key.value}


def test_a_release_through_a_living_path_ends_the_reservation_of_a_dead_one() -> None:
    unit = volume()
    lun, group = lun_of(unit, "a")
    handle = take(lun, 1)
    assert unit.holder == b"a/0"
    group.members[0].up = False
    release(handle)
    assert unit.registrations == {} and unit.holder is None


def test_a_loser_takes_its_key_back_from_nexuses_that_are_gone() -> None:
    unit = FakeLogicalUnit()
    own(unit, b"b/0", K2)
    port, group = node(unit, "a")
    port.register(0, K1, ignore_existing=True)
    group.members[1].up = False
    port.register(K1, 0)
    assert unit.registrations == {b"b/0": K2} and unit.holder == b"b/0"


# -- joining -------------------------------------------------------------------------------------------------


def held_by(unit: FakeLogicalUnit, *nexuses: bytes) -> None:
    own(unit, nexuses[0], K1)
    unit.registrations.update(dict.fromkeys(nexuses, K1))


def test_a_new_path_is_joined_while_the_key_is_registered_elsewhere() -> None:
    unit = FakeLogicalUnit()
    held_by(unit, b"a/0")
    assert join(unit.connect(b"a/1"), K1)
    assert unit.registrations == {b"a/0": K1, b"a/1": K1} and unit.holder == b"a/0"


def test_a_path_that_has_the_key_already_is_joined_without_a_change() -> None:
    unit = FakeLogicalUnit()
    held_by(unit, b"a/0")
    before = unit.registrations.copy()
    assert join(unit.connect(b"a/0"), K1)
    assert unit.registrations == before


def test_a_fenced_node_gets_no_path_back() -> None:
    unit = FakeLogicalUnit()
    own(unit, b"b/0", K2)
    assert not join(unit.connect(b"a/1"), K1)
    assert unit.registrations == {b"b/0": K2}


class PreemptedBetween(FakePort):
    """A rival takes the unit over just before the nth command of this port."""

    def __init__(self, unit: FakeLogicalUnit, nexus: bytes, nth: int) -> None:
        super().__init__(unit, nexus)
        self.left = nth
        self.rival = unit.connect(b"b/0")

    def _deliver(self, operation: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.rival.register(0, K2, ignore_existing=True)
            self.rival.preempt(K2, K1, OUR_TYPE)
        super()._deliver(operation)


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_path_that_is_joined_during_a_takeover_writes_nothing_after_it(nth: int) -> None:
    unit = FakeLogicalUnit()
    held_by(unit, b"a/0")
    path = PreemptedBetween(unit, b"a/1", nth)
    joined = join(path, K1)
    rival_won = path.left <= 0
    assert not (joined and rival_won and unit.may_write(b"a/1"))
    if rival_won:
        assert unit.registrations == {b"b/0": K2}
    else:
        assert joined


@pytest.mark.parametrize("operation", ["read", "register"])
def test_a_path_that_does_not_answer_is_not_joined(operation: str) -> None:
    unit = FakeLogicalUnit()
    held_by(unit, b"a/0")
    path = FakePath(unit, b"a/1")
    path.fault = lambda asked, changes: Fault.LOST if asked == operation else Fault.NONE
    with pytest.raises(PortError):
        join(path, K1)  # type: ignore[arg-type]


# -- at random -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(300))
def test_whoever_owns_writes_down_every_path_it_may_use_and_nobody_else_down_any(seed: int) -> None:
    """Two nodes, two paths each, that lose commands and answers, in turns; then the one invariant."""
    dice = random.Random(seed)
    unit = volume()
    nodes = {number: lun_of(unit, f"n{number}", paths=2) for number in (1, 2)}
    floor = 0
    owner: Handle | None = None
    for _ in range(6):
        number = dice.choice((1, 2))
        if owner is not None and owner.key.node == number:
            owner = None  # who acquires anew has given up what it had
        lun, group = nodes[number]
        for path in group.members:
            path.fault = lambda operation, changes: dice.choice([Fault.NONE] * 6 + [Fault.LOST, Fault.UNANSWERED])
        try:
            owner = take(lun, number, floor=floor)
            floor = owner.epoch
        except FencingError:
            floor += 1
        for path in group.members:
            path.fault = lambda operation, changes: Fault.NONE
        if owner is not None and isinstance(quiet(owner), Good):
            mine = nodes[owner.key.node][1]
            assert {path.nexus for path in mine.members if path.may_carry()} <= set(unit.registrations)
            others = [path for n, (_, g) in nodes.items() if n != owner.key.node for path in g.members]
            if number == owner.key.node:
                assert not any(unit.may_write(path.nexus) for path in others)
        comes_back(unit, group, dice)


def quiet(handle: Handle) -> object:
    try:
        return verify(handle)
    except (PortError, LostRace) as error:
        return error


def comes_back(unit: FakeLogicalUnit, group: Group, dice: random.Random) -> None:
    """A retired path is found again by a scan, under the same nexus or another, and passes the gate."""
    for path in [path for path in group.members if path.retired]:
        suffix = dice.choice((b"", b"'"))
        again = FakePath(unit, path.nexus + suffix, life=dice.randrange(1 << 30))
        if group.noted:
            join(again, group.noted)  # type: ignore[arg-type]
        group.members.remove(path)
        group.members.append(again)


def test_states_of_one_key_on_two_nexuses_are_exclusive() -> None:
    unit = FakeLogicalUnit()
    held_by(unit, b"a/0", b"a/1")
    state: ReservationState = unit.state()
    assert state.exclusive_to(K1) and state.keys == (K1,) and len(state.registrants) == 2
