"""A logical unit in memory: the rules of SPC-4 5.13 as LIO applies them, for any number of nexuses.

tests/contract/test_reservation_port.py holds it to what real devices do. Its switches make it the device that
one meets: without persistence, without draining, or reporting success for a preempt that it ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from fencing.errors import CONFLICT, NotDelivered, PortError, Refused
from fencing.label import COPIES, FoundLabel, Label, encode, newest
from fencing.model import OUR_TYPE, Capabilities, PrType, Registrant, ReservationState
from fencing.port import Lun

INVALID_FIELD = "illegal request"


class WriteState(Enum):
    """Where a write is: still in the initiator, checked and begun by the device, or over."""

    QUEUED = "queued"
    IN_FLIGHT = "in flight"
    LANDED = "landed"
    REFUSED = "refused"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class FakeWrite:
    """One write of a nexus; `step` moves it on (a frozen host's writes simply are not stepped)."""

    unit: FakeLogicalUnit
    nexus: bytes
    block: int
    data: bytes
    state: WriteState = WriteState.QUEUED

    def arrive(self) -> None:
        """The device sees the command: reservations are checked now, and never again (SPC-4 5.13.1)."""
        if self.state is WriteState.QUEUED:
            allowed = self.unit.may_write(self.nexus)
            self.state = WriteState.IN_FLIGHT if allowed else WriteState.REFUSED
            if allowed:
                self.unit.in_flight.append(self)

    def finish(self) -> None:
        """The device carries it out, if it still may."""
        if self.state is WriteState.IN_FLIGHT:
            self.unit.in_flight.remove(self)
            self.unit.blocks[self.block] = self.data
            self.state = WriteState.LANDED

    def abort(self) -> None:
        if self.state is WriteState.IN_FLIGHT:
            self.unit.in_flight.remove(self)
            self.state = WriteState.ABORTED


@dataclass(slots=True, kw_only=True)
class FakeLogicalUnit:
    """One device, and what it believes. `connect` gives a nexus to it; all nexuses of one name are the same
    one.
    """

    name: str = "fake"
    size_bytes: int = 0
    can_persist: bool = True
    drains: bool = True
    ignores_preempt: bool = False
    generation: int = 0
    registrations: dict[bytes, int] = field(default_factory=dict)
    holder: bytes | None = None
    type: PrType | None = None
    blocks: dict[int, bytes] = field(default_factory=dict)
    in_flight: list[FakeWrite] = field(default_factory=list)
    attentions: dict[bytes, str] = field(default_factory=dict)

    def connect(self, nexus: bytes) -> FakePort:
        """A login: the first command gets a UNIT ATTENTION. A registration of an earlier login is found
        again.
        """
        self.attentions[nexus] = "power on or reset"
        return FakePort(self, nexus)

    def write(self, nexus: bytes, block: int, data: bytes) -> FakeWrite:
        """A write that waits in the initiator until it is told to arrive and to finish."""
        return FakeWrite(self, nexus, block, data)

    def may_write(self, nexus: bytes) -> bool:
        if self.type is None or nexus == self.holder:
            return True
        return self.type.registrants_write and nexus in self.registrations

    def may_read(self, nexus: bytes) -> bool:
        return self.type is None or self.type.others_read or self.may_write(nexus)

    def power_loss(self) -> None:
        """The device restarts: commands in flight are gone, persistent registrations are not; generation
        begins anew.
        """
        for write in tuple(self.in_flight):
            write.abort()
        if not self.can_persist:
            self.registrations.clear()
            self.holder, self.type = None, None
        self.generation = 0

    def holds(self, nexus: bytes) -> bool:
        if self.type is not None and self.type.all_registrants:
            return nexus in self.registrations
        return self.type is not None and nexus == self.holder

    def state(self) -> ReservationState:
        return ReservationState(
            generation=self.generation,
            registrants=tuple(
                Registrant(key=key, holder=self.holds(nexus), nexus=nexus)
                for nexus, key in sorted(self.registrations.items())
            ),
            type=self.type,
        )

    def fingerprint(self) -> tuple[object, ...]:
        """Everything that decides how the unit will answer, hashable: for tests that walk all states."""
        registered = tuple(sorted(self.registrations.items()))
        return registered, self.holder, self.type, self.generation, tuple(sorted(self.blocks.items()))

    def drop(self, nexus: bytes) -> None:
        """Remove one registration, and with the holder's (or the last of all holders') the reservation."""
        del self.registrations[nexus]
        if nexus != self.holder:
            return
        if self.type is not None and self.type.all_registrants and self.registrations:
            self.holder = next(iter(self.registrations))
        else:
            self.end_reservation(nexus)

    def end_reservation(self, by: bytes) -> None:
        told = self.type is not None and self.type.registrants_write
        self.holder, self.type = None, None
        if told:
            self.tell(self.registrations, "reservations released", but=by)

    def tell(self, nexuses: Iterable[bytes], what: str, *, but: bytes) -> None:
        """Put a UNIT ATTENTION before the next command of each nexus."""
        for nexus in nexuses:
            if nexus != but:
                self.attentions[nexus] = what

    def end_commands(self, nexus: bytes) -> None:
        """Preempt-and-abort: what the victim has in flight is aborted, by a device that drains."""
        if self.drains:
            for write in tuple(self.in_flight):
                if write.nexus == nexus:
                    write.abort()


class FakePort:
    """One nexus to a FakeLogicalUnit: a ReservationPort. `seen` lists the UNIT ATTENTIONs it got."""

    def __init__(self, unit: FakeLogicalUnit, nexus: bytes) -> None:
        self.unit = unit
        self.nexus = nexus
        self.seen: list[str] = []
        self._open = True
        self._generation: int | None = None

    @property
    def device(self) -> str:
        return self.unit.name

    def read(self) -> ReservationState:
        self._deliver("read")
        state = self.unit.state()
        self._generation = state.generation
        return state

    def capabilities(self) -> Capabilities:
        self._deliver("capabilities")
        persists = self.unit.can_persist
        active = persists and bool(self.unit.registrations)
        return Capabilities(persists=persists, persistence_active=active, types=frozenset(PrType))

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        self._deliver("register")
        unit, mine = self.unit, self.unit.registrations.get(self.nexus)
        if not ignore_existing and old != (mine or 0):
            raise self._refused("register", new, CONFLICT)
        if mine is None and new == 0:
            return
        if mine is None:
            unit.registrations[self.nexus] = new
        elif new == 0:
            unit.drop(self.nexus)
        else:
            unit.registrations[self.nexus] = new
        unit.generation += 1

    def reserve(self, key: int, type: PrType) -> None:
        self._deliver("reserve")
        self._must_be_registered("reserve", key)
        if self.unit.type is None:
            self.unit.holder, self.unit.type = self.nexus, type
        elif not self.unit.holds(self.nexus) or self.unit.type is not type:
            raise self._refused("reserve", key, CONFLICT)

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._deliver("preempt")
        self._must_be_registered("preempt", key)
        if self.unit.ignores_preempt:
            return
        unit, shared = self.unit, self.unit.type is not None and self.unit.type.all_registrants
        if victim == 0 and not shared:
            raise self._refused("preempt", key, INVALID_FIELD)
        victims = [n for n, k in unit.registrations.items() if k == victim or victim == 0]
        # with an all-registrants type, LIO goes by the one that reserved first, where SPC has no such one
        takes_over = unit.holder in victims
        if not victims:
            raise self._refused("preempt", key, CONFLICT)
        if takes_over or shared:
            victims = [nexus for nexus in victims if nexus != self.nexus]
        for nexus in victims:
            del unit.registrations[nexus]
            if abort:
                unit.end_commands(nexus)
        unit.tell(victims, "registrations preempted", but=self.nexus)
        if takes_over:
            unit.holder, unit.type = self.nexus, type
        unit.generation += 1

    def release(self, key: int, type: PrType) -> None:
        self._deliver("release")
        self._must_be_registered("release", key)
        if not self.unit.holds(self.nexus):
            return
        if self.unit.type is not type:
            raise self._refused("release", key, INVALID_FIELD)
        self.unit.end_reservation(self.nexus)

    def clear(self, key: int) -> None:
        self._deliver("clear")
        self._must_be_registered("clear", key)
        self.unit.tell(self.unit.registrations, "reservations preempted", but=self.nexus)
        self.unit.registrations.clear()
        self.unit.holder, self.unit.type = None, None
        self.unit.generation += 1

    def close(self) -> None:
        self._open = False

    def _deliver(self, operation: str) -> None:
        if not self._open:
            raise NotDelivered("the port is closed", device=self.device, operation=operation)
        attention = self.unit.attentions.pop(self.nexus, None)
        if attention is not None:
            self.seen.append(attention)  # told once; the repeated command finds none

    def _must_be_registered(self, operation: str, key: int) -> None:
        if self.unit.registrations.get(self.nexus) != key:
            raise self._refused(operation, key, CONFLICT)

    def _refused(self, operation: str, key: int, sense: str) -> PortError:
        return Refused(
            sense,
            device=self.device,
            operation=operation,
            own_key=key,
            sense=sense,
            generation=self._generation,
        )


class FakeLabels:
    """The label blocks of a FakeLogicalUnit, written by one nexus under the unit's reservation."""

    FIRST_BLOCK = 2048

    def __init__(self, unit: FakeLogicalUnit, nexus: bytes) -> None:
        self._unit = unit
        self._nexus = nexus

    def read(self) -> FoundLabel | None:
        blocks = [self._unit.blocks.get(self.FIRST_BLOCK + slot, b"\0") for slot in range(COPIES)]
        return newest(blocks, device=self._unit.name)

    def write(self, label: Label, slot: int) -> None:
        write = self._unit.write(self._nexus, self.FIRST_BLOCK + slot, encode(label))
        write.arrive()
        if write.state is WriteState.REFUSED:
            raise Refused(CONFLICT, device=self._unit.name, operation="write label", sense=CONFLICT)
        write.finish()

    def close(self) -> None:
        pass


def fake_lun(unit: FakeLogicalUnit, nexus: bytes, in_use: Callable[[], str] = lambda: "") -> Lun:
    """One node's view of a fake unit; its WWID is the unit's name."""
    return Lun(
        wwid=unit.name,
        port=unit.connect(nexus),
        labels=FakeLabels(unit, nexus),
        in_use=in_use,
        size_bytes=lambda: unit.size_bytes,
    )


def seed_label(unit: FakeLogicalUnit, label: Label) -> None:
    """Format a fake unit: both copies of a label, as if written by an administrator's tool."""
    for slot in range(COPIES):
        unit.blocks[FakeLabels.FIRST_BLOCK + slot] = encode(label.on(unit.name) if unit.name in label.wwids else label)


def own(unit: FakeLogicalUnit, nexus: bytes, key: int) -> None:
    """Make a nexus the only registrant and the holder, as if it had acquired the unit before."""
    unit.registrations = {nexus: key}
    unit.holder, unit.type = nexus, OUR_TYPE
    unit.generation += 1
