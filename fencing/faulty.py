"""A LUN whose commands go wrong on purpose: lost before the device, carried out without an answer, or the
last one
before the node's end. For tests of everything that must survive it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from fencing.errors import NotDelivered, OutcomeUnknown
from fencing.label import FoundLabel, Label
from fencing.model import Capabilities, PrType, ReservationState
from fencing.port import LabelStore, Lun, ReservationPort

T = TypeVar("T")


class Crash(BaseException):
    """The node ended. Not an Exception: nothing in the code under test may handle it."""


class Fault(Enum):
    """What becomes of one command."""

    NONE = "none"
    LOST = "lost before the device"
    UNANSWERED = "carried out, answer lost"
    TWICE = "carried out twice"
    CRASH_BEFORE = "node ends before the command"
    CRASH_AFTER = "node ends after the command"


Chooser = Callable[[str, bool], Fault]
"""(operation, does it change something) -> what becomes of it. Asked once for each command."""


def faulty_lun(lun: Lun, choose: Chooser) -> Lun:
    """The same LUN through which every command first asks `choose`."""
    return Lun(
        wwid=lun.wwid,
        port=FaultyPort(lun.port, choose),
        labels=FaultyLabels(lun.labels, choose, lun.wwid),
        in_use=lun.in_use,
        size_bytes=lun.size_bytes,
        nexus=lun.nexus,
    )


class FaultyPort:
    """A ReservationPort around another one."""

    def __init__(self, port: ReservationPort, choose: Chooser) -> None:
        self._port = port
        self._choose = choose

    @property
    def device(self) -> str:
        return self._port.device

    def read(self) -> ReservationState:
        return self._run("read", False, self._port.read)

    def capabilities(self) -> Capabilities:
        return self._run("capabilities", False, self._port.capabilities)

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        self._run("register", True, lambda: self._port.register(old, new, ignore_existing))

    def reserve(self, key: int, type: PrType) -> None:
        self._run("reserve", True, lambda: self._port.reserve(key, type))

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._run("preempt", True, lambda: self._port.preempt(key, victim, type, abort))

    def release(self, key: int, type: PrType) -> None:
        self._run("release", True, lambda: self._port.release(key, type))

    def clear(self, key: int) -> None:
        self._run("clear", True, lambda: self._port.clear(key))

    def close(self) -> None:
        self._port.close()

    def _run(self, operation: str, changes: bool, call: Callable[[], T]) -> T:
        return run_with(self._choose(operation, changes), operation, changes, self.device, call)


class FaultyLabels:
    """A LabelStore around another one."""

    def __init__(self, labels: LabelStore, choose: Chooser, device: str) -> None:
        self._labels = labels
        self._choose = choose
        self._device = device

    def read(self) -> FoundLabel | None:
        fault = self._choose("read label", False)
        return run_with(fault, "read label", False, self._device, self._labels.read)

    def write(self, label: Label, slot: int) -> None:
        fault = self._choose("write label", True)
        run_with(fault, "write label", True, self._device, lambda: self._labels.write(label, slot))

    def close(self) -> None:
        self._labels.close()


def run_with(fault: Fault, operation: str, changes: bool, device: str, call: Callable[[], T]) -> T:
    """One command with one fault. An answer that is lost on a read is a read that was not delivered."""
    match fault:
        case Fault.CRASH_BEFORE:
            raise Crash(operation)
        case Fault.LOST:
            raise NotDelivered("lost on the way", device=device, operation=operation)
        case Fault.TWICE:
            call()
    result = call()
    match fault:
        case Fault.CRASH_AFTER:
            raise Crash(operation)
        case Fault.UNANSWERED:
            kind = OutcomeUnknown if changes else NotDelivered
            raise kind("no answer", device=device, operation=operation)
    return result
