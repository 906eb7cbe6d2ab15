"""What every ReservationPort does, as cases that run over any of them: the fake in memory, a LIO LUN in a
lab.

A case gets a `Rig`: three nexuses to one device that nobody else uses, and what its kind does otherwise by design.
`python -m fencing._contract` runs the cases on real devices. `random_operations` and `outcome` compare two
implementations on sequences that nobody thought of.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum

from fencing.errors import CONFLICT, OutcomeUnknown, PortError, Refused
from fencing.model import OUR_TYPE, PrType, ReservationState
from fencing.port import ReservationPort

A, B, C = 0xA0000000000A, 0xB0000000000B, 0xFFFFFFFFFFFFFFFE
ABSENT = 0xDEAD00000000
ALL = PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS
ALONE = PrType.WRITE_EXCLUSIVE


class Trait(Enum):
    """What a kind of device or port does otherwise than SCSI devices through SG_IO; docs/fencing.md explains each."""

    REGISTERS_AGAIN = "REGISTER of the key that is registered already succeeds"
    REGISTRANTS_UNREGISTER = "only a registrant can unregister"
    FORGETS = "registrations do not outlive the device's power"
    KEYS_ONLY = "reading gives keys, not who has them"
    ONE_WORD = "a failure that is no conflict has no name"
    NO_UNREGISTER = "a registration can be replaced, not taken back"


NVME = frozenset((Trait.REGISTERS_AGAIN, Trait.REGISTRANTS_UNREGISTER, Trait.FORGETS))
PROFILES: dict[str, frozenset[Trait]] = {
    "scsi": frozenset(),
    "nvme": NVME,
    "pr ioctls of sd": frozenset((Trait.FORGETS, Trait.KEYS_ONLY, Trait.ONE_WORD)),
    "pr ioctls of nvme": NVME | {Trait.KEYS_ONLY, Trait.ONE_WORD, Trait.NO_UNREGISTER},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """Three nexuses to one device, without a registration. `may_write(n)` tries a write through nexus n."""

    ports: tuple[ReservationPort, ReservationPort, ReservationPort]
    may_write: Callable[[int], bool]
    traits: frozenset[Trait] = frozenset()

    def reset(self) -> None:
        """Back to a device that nobody has registered with, whatever a case left."""
        port = self.ports[0]
        if port.read().registrants:
            port.register(0, A, ignore_existing=True)
            port.clear(A)

    def state(self) -> ReservationState:
        """Read through every nexus; they must agree."""
        states = [port.read() for port in self.ports]
        expect(states[0] == states[1] == states[2], "nexuses read different states")
        return states[0]


Case = Callable[[Rig], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


class ContractBroken(Exception):
    """A port did not do what every port does."""


class NotApplicable(Exception):
    """A case about something that this kind of port does not have, by design."""


def not_for(rig: Rig, trait: Trait) -> None:
    if trait in rig.traits:
        raise NotApplicable(trait.value)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise ContractBroken(what)


def expect_keys(state: ReservationState, *keys: int, holder: int | None, type: PrType | None = OUR_TYPE) -> None:
    """These registrants (one nexus each), this holder, and with it this type."""
    expect(sorted(registrant.key for registrant in state.registrants) == sorted(keys), state.describe())
    expect(state.holders == (() if holder is None else (holder,)), state.describe())
    expect(state.type is (None if holder is None else type), state.describe())


@contextmanager
def refused(sense: str = CONFLICT) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        expect(error.sense == sense, f"refused with {error.sense}, not {sense}")
    else:
        raise ContractBroken("was not refused")


@contextmanager
def not_done() -> Iterator[None]:
    """Refused, or for all that the answer says unknown: devices differ in what they answer, not in what they
    do.
    """
    try:
        yield
    except (Refused, OutcomeUnknown):
        pass
    else:
        raise ContractBroken("was not refused")


@contextmanager
def nothing_changes(rig: Rig) -> Iterator[None]:
    before = rig.state()
    yield
    after = rig.state()
    expect(before == after, f"changed from {before.describe()} to {after.describe()}")


def owned_by_first(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    rig.ports[0].reserve(A, OUR_TYPE)


@case
def a_device_without_registrants_reads_empty(rig: Rig) -> None:
    expect_keys(rig.state(), holder=None)


@case
def a_registered_key_reads_back_with_its_nexus(rig: Rig) -> None:
    not_for(rig, Trait.KEYS_ONLY)
    rig.ports[0].register(0, A)
    rig.ports[2].register(0, C)
    expect_keys(rig.state(), A, C, holder=None)
    nexuses = {registrant.nexus for registrant in rig.state().registrants}
    expect(len(nexuses) == 2 and b"" not in nexuses, f"nexuses are {nexuses}")


@case
def a_registration_raises_the_generation_by_one(rig: Rig) -> None:
    before = rig.state().generation
    rig.ports[0].register(0, A)
    expect(rig.state().generation == before + 1, "register did not count once")
    rig.ports[0].register(A, B)
    expect(rig.state().generation == before + 2, "a change of the key did not count once")


@case
def a_register_with_a_wrong_old_key_is_refused(rig: Rig) -> None:
    with nothing_changes(rig), refused():
        rig.ports[0].register(B, C)
    rig.ports[0].register(0, A)
    with nothing_changes(rig), refused():
        rig.ports[0].register(B, C)


@case
def a_registrant_that_registers_as_a_stranger_changes_nothing(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    with nothing_changes(rig), refused():
        rig.ports[0].register(0, B)
    if Trait.REGISTERS_AGAIN in rig.traits:
        rig.ports[0].register(0, A)
        expect_keys(rig.state(), A, holder=None)
    else:
        with nothing_changes(rig), refused():
            rig.ports[0].register(0, A)


@case
def a_key_is_changed_by_its_nexus(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    rig.ports[0].register(A, C)
    expect_keys(rig.state(), C, holder=None)


@case
def ignore_existing_replaces_whatever_key_the_nexus_has(rig: Rig) -> None:
    rig.ports[0].register(0, A, ignore_existing=True)
    rig.ports[0].register(0, B, ignore_existing=True)
    expect_keys(rig.state(), B, holder=None)


@case
def the_holder_keeps_the_reservation_when_its_key_changes(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[0].register(A, B)
    expect_keys(rig.state(), B, holder=B)
    rig.ports[0].register(0, C, ignore_existing=True)
    expect_keys(rig.state(), C, holder=C)


@case
def two_nexuses_can_have_one_key(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    rig.ports[1].register(0, A)
    expect_keys(rig.state(), A, A, holder=None)
    rig.ports[0].reserve(A, OUR_TYPE)
    if Trait.KEYS_ONLY in rig.traits:
        expect_keys(rig.state(), A, A, holder=A)
        return
    holders = [registrant.holder for registrant in rig.state().registrants]
    expect(sorted(holders) == [False, True], "a key shared by two nexuses has one holder")


@case
def unregistering_removes_the_registration(rig: Rig) -> None:
    not_for(rig, Trait.NO_UNREGISTER)
    rig.ports[0].register(0, A)
    rig.ports[1].register(0, B)
    rig.ports[0].register(A, 0)
    expect_keys(rig.state(), B, holder=None)


@case
def unregistering_the_holder_ends_the_reservation(rig: Rig) -> None:
    not_for(rig, Trait.NO_UNREGISTER)
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    rig.ports[0].register(A, 0)
    expect_keys(rig.state(), B, holder=None)


@case
def unregistering_a_nexus_that_is_not_registered_changes_nothing(rig: Rig) -> None:
    not_for(rig, Trait.NO_UNREGISTER)
    with nothing_changes(rig), refused() if Trait.REGISTRANTS_UNREGISTER in rig.traits else nullcontext():
        rig.ports[0].register(0, 0, ignore_existing=True)


@case
def only_a_registrant_can_reserve(rig: Rig) -> None:
    with nothing_changes(rig), not_done():
        rig.ports[0].reserve(A, OUR_TYPE)
    rig.ports[0].register(0, A)
    with nothing_changes(rig), refused():
        rig.ports[0].reserve(B, OUR_TYPE)


@case
def a_reservation_reads_back_with_holder_and_type(rig: Rig) -> None:
    for kind in (OUR_TYPE, ALONE, PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY):
        rig.ports[0].register(0, A)
        rig.ports[0].reserve(A, kind)
        expect_keys(rig.state(), A, holder=A, type=kind)
        rig.reset()


@case
def the_holder_may_reserve_again_with_the_same_type_only(rig: Rig) -> None:
    owned_by_first(rig)
    with nothing_changes(rig):
        rig.ports[0].reserve(A, OUR_TYPE)
    with nothing_changes(rig), refused():
        rig.ports[0].reserve(A, ALONE)


@case
def a_second_registrant_cannot_reserve(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    with nothing_changes(rig), refused():
        rig.ports[1].reserve(B, OUR_TYPE)


@case
def release_ends_the_reservation_and_keeps_the_registration(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[0].release(A, OUR_TYPE)
    expect_keys(rig.state(), A, holder=None)


@case
def release_by_another_registrant_changes_nothing(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    with nothing_changes(rig):
        rig.ports[1].release(B, OUR_TYPE)


@case
def release_with_another_type_is_refused(rig: Rig) -> None:
    owned_by_first(rig)
    with nothing_changes(rig), not_done():
        rig.ports[0].release(A, ALONE)


@case
def release_by_a_stranger_is_refused(rig: Rig) -> None:
    owned_by_first(rig)
    with nothing_changes(rig), refused():
        rig.ports[1].release(B, OUR_TYPE)


@case
def preempting_the_holder_takes_the_reservation_over(rig: Rig) -> None:
    for abort in (True, False):
        owned_by_first(rig)
        rig.ports[1].register(0, B)
        before = rig.state().generation
        rig.ports[1].preempt(B, A, OUR_TYPE, abort=abort)
        expect_keys(rig.state(), B, holder=B)
        expect(rig.state().generation == before + 1, "preempt did not count once")
        rig.reset()


@case
def preempting_the_holder_leaves_bystanders(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    rig.ports[2].register(0, C)
    rig.ports[1].preempt(B, A, OUR_TYPE)
    expect_keys(rig.state(), B, C, holder=B)


@case
def preempting_the_holder_sets_the_type(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    rig.ports[0].reserve(A, ALONE)
    rig.ports[1].register(0, B)
    rig.ports[1].preempt(B, A, OUR_TYPE)
    expect_keys(rig.state(), B, holder=B)


@case
def the_holder_drops_a_registrant_by_preempting_it(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    rig.ports[0].preempt(A, B, OUR_TYPE)
    expect_keys(rig.state(), A, holder=A)


@case
def a_registrant_drops_another_without_getting_the_reservation(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    rig.ports[2].register(0, C)
    rig.ports[1].preempt(B, C, OUR_TYPE)
    expect_keys(rig.state(), A, B, holder=A)


@case
def preempting_without_a_reservation_only_drops_the_registration(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    rig.ports[1].register(0, B)
    rig.ports[1].preempt(B, A, OUR_TYPE)
    expect_keys(rig.state(), B, holder=None)


@case
def preempting_a_key_drops_all_its_nexuses(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, A)
    rig.ports[2].register(0, C)
    rig.ports[2].preempt(C, A, OUR_TYPE)
    expect_keys(rig.state(), C, holder=C)


@case
def preempting_an_absent_key_is_refused(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    with nothing_changes(rig), refused():
        rig.ports[0].preempt(A, ABSENT, OUR_TYPE)
    rig.ports[0].reserve(A, OUR_TYPE)
    with nothing_changes(rig), refused():
        rig.ports[0].preempt(A, ABSENT, OUR_TYPE)
    rig.ports[1].register(0, B)
    with nothing_changes(rig), refused():
        rig.ports[1].preempt(B, ABSENT, OUR_TYPE)


@case
def preempting_by_a_stranger_is_refused(rig: Rig) -> None:
    owned_by_first(rig)
    with nothing_changes(rig), refused():
        rig.ports[1].preempt(B, A, OUR_TYPE)
    rig.ports[1].register(0, B)
    with nothing_changes(rig), refused():
        rig.ports[1].preempt(C, A, OUR_TYPE)


@case
def preempting_key_0_is_refused_unless_all_registrants_hold(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    with nothing_changes(rig), not_done() if Trait.ONE_WORD in rig.traits else refused("illegal request"):
        rig.ports[1].preempt(B, 0, OUR_TYPE)


@case
def preempting_all_takes_over_from_all_registrants(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    rig.ports[0].reserve(A, ALL)
    rig.ports[1].register(0, B)
    rig.ports[2].register(0, C)
    expect(rig.state().holders == tuple(sorted((A, B, C))), rig.state().describe())
    rig.ports[1].preempt(B, 0, OUR_TYPE)
    expect_keys(rig.state(), B, holder=B)


@case
def clear_removes_everything(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    with nothing_changes(rig), refused():
        rig.ports[2].clear(C)
    rig.ports[1].clear(B)
    expect_keys(rig.state(), holder=None)


@case
def the_preempted_one_is_told_once_and_can_register_again(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    rig.ports[1].preempt(B, A, OUR_TYPE)
    rig.ports[0].register(0, C)
    expect_keys(rig.state(), B, C, holder=B)


@case
def without_a_reservation_everybody_writes(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    expect(all(rig.may_write(nexus) for nexus in range(3)), "a write was refused without a reservation")


@case
def only_registrants_write_under_our_reservation(rig: Rig) -> None:
    owned_by_first(rig)
    expect(rig.may_write(0), "the holder's write was refused")
    expect(not rig.may_write(1), "a stranger's write was accepted")
    rig.ports[1].register(0, B)
    expect(rig.may_write(1), "a registrant's write was refused")
    rig.ports[0].preempt(A, B, OUR_TYPE)
    expect(not rig.may_write(1), "a preempted registrant's write was accepted")


@case
def the_preempted_holder_cannot_write(rig: Rig) -> None:
    owned_by_first(rig)
    rig.ports[1].register(0, B)
    rig.ports[1].preempt(B, A, OUR_TYPE)
    expect(not rig.may_write(0), "the old holder's write was accepted")
    expect(rig.may_write(1), "the new holder's write was refused")


@case
def capabilities_name_our_type(rig: Rig) -> None:
    rig.ports[0].register(0, A)
    capabilities = rig.ports[0].capabilities()
    expect(not capabilities.types or OUR_TYPE in capabilities.types, str(capabilities))
    expect(capabilities.unreadable == "", capabilities.unreadable)
    if Trait.FORGETS not in rig.traits:
        expect(capabilities.persists and capabilities.persistence_active, str(capabilities))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One command through one of three nexuses; `what` is a method of ReservationPort."""

    nexus: int
    what: str
    key: int = 0
    other: int = 0
    type: PrType = OUR_TYPE
    flag: bool = False

    def run(self, port: ReservationPort) -> None:
        match self.what:
            case "register":
                port.register(self.key, self.other, self.flag)
            case "reserve":
                port.reserve(self.key, self.type)
            case "preempt":
                port.preempt(self.key, self.other, self.type, self.flag)
            case "release":
                port.release(self.key, self.type)
            case "clear":
                port.clear(self.key)
            case _:
                raise ValueError(self.what)


_OPERATIONS = ("register",) * 6 + ("reserve",) * 3 + ("preempt",) * 5 + ("release",) * 2 + ("clear",)
_KEYS = (0, A, B, C)
_TYPES = (OUR_TYPE,) * 6 + tuple(PrType)


EXPLAINED = {
    # LIO of 6.1 finds no registration of the nexus, and answers LOGICAL UNIT COMMUNICATION FAILURE
    ("reserve", "not ready", CONFLICT): "a stranger's command fails with another sense",
    ("release", "not ready", CONFLICT): "a stranger's command fails with another sense",
    ("clear", "not ready", CONFLICT): "a stranger's command fails with another sense",
    # LIO looks at the key only when there is a reservation to release, and answers a conflict for a wrong
    # type
    ("release", "ok", CONFLICT): "a release of nothing succeeds with any key",
    ("release", CONFLICT, "illegal request"): "a release with a wrong type is a conflict",
}
"""(command, LIO's answer, the fake's answer) that differ while nothing else does; LIO's first, SPC's second. The fake
namespace answers as nvmet does: there, nothing may differ.
"""


def explanation(
    operation: Operation, real: tuple[object, ...], fake: tuple[object, ...], traits: frozenset[Trait]
) -> str:
    """Why two outcomes may differ, "" if they may not. The state after them may never differ."""
    if real[1:] != fake[1:] or traits & NVME:
        return ""
    return EXPLAINED.get((operation.what, str(real[0]), str(fake[0])), "")


def random_operations(seed: int, count: int) -> Iterator[Operation]:
    """A sequence that anybody can have again from its seed. Few keys and types, and a usual key for each
    nexus, so
    that commands often meet their conditions."""
    dice = random.Random(seed)
    for _ in range(count):
        nexus = dice.randrange(3)
        yield Operation(
            nexus=nexus,
            what=dice.choice(_OPERATIONS),
            key=dice.choice((_KEYS[nexus + 1], _KEYS[nexus + 1], *_KEYS)),
            other=dice.choice(_KEYS),
            type=dice.choice(_TYPES),
            flag=dice.random() < 0.5,
        )


def outcome(rig: Rig, operation: Operation) -> tuple[object, ...]:
    """What an operation answered, and what is to be seen after it, in words that no device has of its own."""
    port = rig.ports[operation.nexus]
    try:
        operation.run(port)
        answer = "ok"
    except PortError as error:
        answer = error.sense
    state = port.read()
    registrants = sorted((registrant.key, registrant.holder) for registrant in state.registrants)
    return answer, state.type, tuple(registrants)
