"""An NVMe namespace in memory, as nvmet of Linux 7.3 is one: the fake unit with the rules of NVMe where they differ.

A nexus is a host here: a registration belongs to the host identifier, so `connect` with a name that another node uses
is a duplicate identifier. docs/fencing.md explains each difference; `python3 -m fencing._contract compare` found them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fencing.errors import CONFLICT
from fencing.fake import INVALID_FIELD, FakeLogicalUnit, FakePort, fake_lun
from fencing.model import PrType
from fencing.port import Lun


@dataclass(slots=True, kw_only=True)
class FakeNamespace(FakeLogicalUnit):
    """nvmet keeps nothing through a power loss."""

    can_persist: bool = False

    def connect(self, nexus: bytes) -> FakeNvmePort:
        """A host connects. A registration of an earlier connection is found again."""
        return FakeNvmePort(self, nexus)


class FakeNvmePort(FakePort):
    """One host of a FakeNamespace: a ReservationPort as `_nvme.NvmePort` is one."""

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        """UNREGISTER and REPLACE are for registrants only; REGISTER of the key that is there already succeeds."""
        self._deliver("register")
        unit, mine = self.unit, self.unit.registrations.get(self.nexus)
        if new == 0:
            allowed = mine is not None and (ignore_existing or old == mine)
        elif old == 0:
            allowed = ignore_existing or mine in (None, new)
        else:
            allowed = ignore_existing or mine == old
        if not allowed:
            raise self._refused("register", new, CONFLICT)
        if new == 0:
            unit.drop(self.nexus)
        else:
            unit.registrations[self.nexus] = new
        unit.generation += 1

    def reserve(self, key: int, type: PrType) -> None:
        """Also of an all-registrants reservation only the one that took it may take it again."""
        self._deliver("reserve")
        self._must_be_registered("reserve", key)
        if self.unit.type is None:
            self.unit.holder, self.unit.type = self.nexus, type
        elif self.unit.holder != self.nexus or self.unit.type is not type:
            raise self._refused("reserve", key, CONFLICT)

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._deliver("preempt")
        self._must_be_registered("preempt", key)
        if self.unit.ignores_preempt:
            return
        unit = self.unit
        if unit.type is not None and unit.type.all_registrants and victim == 0:
            self._take_over(type)
            self._drop([nexus for nexus in unit.registrations if nexus != self.nexus], abort)
        elif unit.type is None or unit.type.all_registrants:
            self._drop_key(key, victim, abort)
        elif victim == 0:
            raise self._refused("preempt", key, INVALID_FIELD)
        elif unit.holder == self.nexus and victim == key:
            unit.type = type  # the holder's own key: only the type changes, and nobody who shares the key goes
        elif victim == unit.registrations.get(unit.holder or b""):
            self._take_over(type)
            self._drop([nexus for nexus in self._with_key(victim) if nexus != self.nexus], abort)
        else:
            self._drop_key(key, victim, abort)
        unit.generation += 1

    def release(self, key: int, type: PrType) -> None:
        """By anybody but the one who reserved: no change, and success."""
        self._deliver("release")
        self._must_be_registered("release", key)
        if self.unit.type is None or self.unit.holder != self.nexus:
            return
        if self.unit.type is not type:
            raise self._refused("release", key, CONFLICT)
        self.unit.end_reservation(self.nexus)

    def _take_over(self, type: PrType) -> None:
        self.unit.holder, self.unit.type = self.nexus, type

    def _drop_key(self, key: int, victim: int, abort: bool) -> None:
        """Everybody who has the key, whoever sends the command: its own registration, too."""
        victims = self._with_key(victim)
        if not victims:
            raise self._refused("preempt", key, CONFLICT)
        self._drop(victims, abort)

    def _drop(self, victims: list[bytes], abort: bool) -> None:
        for nexus in victims:
            self.unit.drop(nexus)
            if abort:
                self.unit.end_commands(nexus)

    def _with_key(self, key: int) -> list[bytes]:
        return [nexus for nexus, mine in self.unit.registrations.items() if mine == key]


def namespace_lun(unit: FakeNamespace, host: bytes) -> Lun:
    """One node's view of a fake namespace, under its host identifier."""
    return replace(fake_lun(unit, host), nexus=host)
