"""Shared disks: the reservation rules of `fencing.fake`, behind paths that delay, hang, fail and lose answers.

A command travels to the unit, is carried out there in one moment, and its answer travels back. Between these points
the path may be cut, the host frozen, the process gone. A write is checked when it arrives and lands later (SPC-4
5.13.1): PREEMPT AND ABORT ends what is between. What a frozen host, or a cut path, still has queued arrives late.

Not simulated: a command that arrives after its sender was told that it failed (the initiator's error handling excludes
it), and a block that is torn.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fencing.errors import NotDelivered, OutcomeUnknown, PortError
from fencing.fake import FakeLabels, FakeLogicalUnit, FakePort, WriteState
from fencing.label import FoundLabel, Label
from fencing.model import Capabilities, PrType, ReservationState
from fencing.port import Lun

from .loop import block

if TYPE_CHECKING:
    from .checker import Checker
    from .host import Host
    from .world import World

Answer = Callable[[Any], None]
_DATA = struct.Struct(">QQ")
SUPERBLOCK = 1
RESERVATION_CHANGES = frozenset({"register", "reserve", "preempt", "release", "clear"})


def pack(number: int, key: int) -> bytes:
    """A block of file system data: its value, and the key of the handle under which it was written."""
    return _DATA.pack(number, key)


def unpack(data: bytes | None) -> tuple[int, int]:
    return _DATA.unpack(data) if data else (0, 0)


class Unit(FakeLogicalUnit):
    """One disk of one volume. `opened`: a power loss took its reservation, and nobody acquired it since."""

    def __init__(self, world: World, checker: Checker, name: str, *, persists: bool) -> None:
        super().__init__(name=name, can_persist=persists)
        self.world = world
        self.checker = checker
        self.opened = False

    def lose_power(self) -> None:
        self.power_loss()
        self.opened = self.opened or not self.can_persist
        self.checker.unit_restarted(self)


class Command:
    """One command on its way. `answer` is called once: with the result, or with a PortError."""

    def __init__(self, path: Path, operation: str, changes: bool, execute: Callable[[], Any], answer: Answer) -> None:
        self.path = path
        self.operation = operation
        self.changes = changes
        self._execute = execute
        self._answer: Answer | None = answer
        self._session = path.session
        self.begun = False

    def send(self) -> None:
        path = self.path
        if path.failing:
            path.world.after(1, lambda: self.end(self.error(NotDelivered, "the path is down")))
        else:
            path.world.after(path.delay_ms(), self.arrive)

    def arrive(self) -> None:
        path = self.path
        if self._answer is None or self._session != path.session:
            return
        if path.host.frozen:
            path.host.when_unfrozen(self.arrive)
        elif path.cuts:
            path.hung.append(self)
        elif path.world.chance(path.lose_request):
            path.world.after(path.timeout_ms(), self.lost)
        elif self.operation in RESERVATION_CHANGES and path.world.chance(path.blind):
            if path.world.chance(0.5):
                with contextlib.suppress(PortError):
                    self._execute()
            path.world.after(path.timeout_ms(), self.lost)
        else:
            self.begin()

    def begin(self) -> None:
        """At the unit."""
        self.begun = True
        try:
            result = self._execute()
        except PortError as refused:
            result = refused
        self.reply(result)

    def reply(self, result: Any) -> None:
        path = self.path
        if path.world.chance(path.lose_reply):
            path.world.after(path.timeout_ms(), self.lost)
            return

        def come() -> None:
            if path.cuts and self._session == path.session:
                path.hung.append(self)
            else:
                self.end(result)

        path.world.after(path.delay_ms(), come)

    def lost(self) -> None:
        """No answer came in time."""
        self.end(self.unsure("not answered in time"))

    def healed(self) -> None:
        """The path is back. What had not begun is sent again; of the rest the outcome stays unknown."""
        if self.begun:
            self.end(self.unsure("the path was lost meanwhile"))
        else:
            self.arrive()

    def end(self, result: Any) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and self._session == self.path.session:
            answer(result)

    def unsure(self, why: str) -> PortError:
        return self.error(OutcomeUnknown if self.changes else NotDelivered, why)

    def error(self, kind: type[PortError], why: str) -> PortError:
        return kind(why, device=self.path.unit.name, operation=self.operation)


class Write(Command):
    """A write of a file system. The initiator repeats it until it landed, is refused, or the path is given up."""

    def __init__(self, path: Path, block_number: int, data: bytes, answer: Answer) -> None:
        super().__init__(path, "write", True, lambda: None, answer)
        self._block = block_number
        self._data = data

    def begin(self) -> None:
        self.begun = True
        path, unit = self.path, self.path.unit
        write = unit.write(path.nexus, self._block, self._data)
        write.arrive()
        if write.state is WriteState.REFUSED:
            self.reply(self.error(NotDelivered, "reservation conflict"))
            return

        def finish() -> None:
            if write.state is WriteState.IN_FLIGHT:
                write.finish()
                unit.checker.landed(unit, path.host, self._block, self._data)
                self.reply(True)
            elif write.state is WriteState.ABORTED:
                self.begun = False
                path.world.after(1, self.arrive)

        draw = path.world.random
        path.world.after(draw.uniform(5, 60) if draw.random() < 0.05 else draw.uniform(0.05, 0.5), finish)

    def lost(self) -> None:
        self.healed()

    def healed(self) -> None:
        self.begun = False
        self.arrive()


class Path:
    """One host's way to one unit: one I_T nexus, one queue. `cuts` names what cuts it now."""

    def __init__(self, host: Host, unit: Unit) -> None:
        self.host = host
        self.world = host.world
        self.unit = unit
        self.session = 0
        self.cuts: set[str] = set()
        self.hung: list[Command] = []
        self.failing = False
        """The initiator gave the path up: commands fail at once."""
        self.lose_request = self.lose_reply = 0.0
        self.blind = 0.0
        """How probably a change of reservations is not answered, carried out or not."""
        self._logins = 0
        self.nexus = f"{host.name}".encode()
        self.port = FakePort(unit, self.nexus)

    def log_in(self, *, new_nexus: bool) -> None:
        """After a boot, or when the initiator made a new session: perhaps under another port identifier."""
        if new_nexus:
            self._logins += 1
            self.nexus = f"{self.host.name}.{self._logins}".encode()
        self.port = self.unit.connect(self.nexus)

    def crash(self) -> None:
        self.session += 1
        self.hung.clear()

    def delay_ms(self) -> float:
        draw = self.world.random
        return draw.uniform(5, 50) if draw.random() < 0.02 else draw.uniform(0.05, 0.4)

    def timeout_ms(self) -> float:
        return self.world.random.uniform(200, 1500)

    def cut(self, why: str, give_up_ms: float | None) -> None:
        """Commands hang; after `give_up_ms` they fail, and so does every new one. None: they hang until it heals."""
        self.cuts.add(why)
        session = self.session

        def give_up() -> None:
            if why not in self.cuts or session != self.session or self.failing:
                return
            self.failing = True
            hung, self.hung = self.hung, []
            for command in hung:
                command.end(command.unsure("the path is down"))

        if give_up_ms is not None:
            self.world.after(give_up_ms, lambda: self.host.when_unfrozen(give_up))

    def heal(self, why: str) -> None:
        self.cuts.discard(why)
        if self.cuts:
            return
        self.failing = False
        hung, self.hung = self.hung, []
        for command in hung:
            self.world.after(self.world.random.uniform(0, 5), command.healed)

    def steady(self) -> None:
        self.lose_request = self.lose_reply = self.blind = 0.0

    def target_is_back(self) -> None:
        """The initiator logs in again: the first command gets a UNIT ATTENTION."""
        if self.host.up:
            self.log_in(new_nexus=False)
        self.heal("target")

    def run(self, operation: str, changes: bool, execute: Callable[[], Any]) -> Any:
        """In a worker: one command, with its answer or its PortError."""

        def begin(answer: Answer) -> None:
            Command(self, operation, changes, execute, answer).send()

        return block(self.world.current, begin)


class SimPort:
    """The ReservationPort of a path: every call is a command on it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def device(self) -> str:
        return self._path.unit.name

    def read(self) -> ReservationState:
        return self._path.run("read", False, lambda: self._path.port.read())

    def capabilities(self) -> Capabilities:
        return self._path.run("capabilities", False, lambda: self._path.port.capabilities())

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        self._change("register", lambda port: port.register(old, new, ignore_existing))

    def reserve(self, key: int, type: PrType) -> None:
        self._change("reserve", lambda port: port.reserve(key, type))

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._change("preempt", lambda port: port.preempt(key, victim, type, abort))

    def release(self, key: int, type: PrType) -> None:
        self._change("release", lambda port: port.release(key, type))

    def clear(self, key: int) -> None:
        self._change("clear", lambda port: port.clear(key))

    def close(self) -> None:
        pass

    def _change(self, operation: str, call: Callable[[FakePort], None]) -> None:
        path = self._path

        def execute() -> None:
            try:
                call(path.port)
            finally:
                path.unit.checker.unit_changed(path.unit, f"{path.host.name}: {operation}")

        path.run(operation, True, execute)


class SimLabels:
    """The label's two blocks on a path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> FoundLabel | None:
        return self._path.run("read label", False, lambda: self._labels().read())

    def write(self, label: Label, slot: int) -> None:
        def execute() -> None:
            self._labels().write(label, slot)
            self._path.unit.checker.label_written(self._path.unit, label)

        self._path.run("write label", True, execute)

    def close(self) -> None:
        pass

    def _labels(self) -> FakeLabels:
        return FakeLabels(self._path.unit, self._path.nexus)


def open_lun(host: Host, device: str) -> Lun:
    """One unit as a host reaches it."""
    path = host.paths[device]
    return Lun(
        wwid=path.unit.name,
        port=SimPort(path),
        labels=SimLabels(path),
        in_use=lambda: host.kernel.in_use(path.unit.name),
    )
