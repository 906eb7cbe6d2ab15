"""One logical unit over several paths: one ReservationPort made of the ports of its paths. Pure.

Theory. The device knows I_T nexuses, not nodes: two paths are two registrants, here with one key. The reservation has
one of them as its holder; with "registrants only" all of them write. What follows from that, as rules:

1. A path that is not registered must carry no I/O: its writes end with a reservation conflict, which dm-multipath does
   not take for a lost path but hands up to the file system (blk_path_error() in Linux' blk_types.h). So the owner's
   REGISTER reaches every path of the group, or takes the path out of use (`PathPort.retire`); one that can be neither
   makes the register fail.
2. A path that appears later is registered *before* it may carry I/O (`join`), and only while the key is registered
   through another path, read back *after* the own registration. A rival's PREEMPT drops a key on all nexuses at
   once; so when both are seen together, a later PREEMPT drops both. Otherwise the registration is taken back.
   Nothing was written in between, for the path carries nothing yet.
3. Whose a registration is, is told by its key, never by its nexus: an initiator that comes back with another ISID
   leaves its old nexus behind with our key, or an older one of ours. With the present key it is harmless: it is ours,
   and goes with our key when that is preempted. With an older one it is preempted by the next acquisition.
4. A command that any registered path can carry goes to the one whose last failure is longest ago; what did not reach
   the device goes to the next. An unknown outcome is told to the caller, who reads back, and that path is asked last
   from then on.
5. Whether one path is registered is asked of the device, on that path: REGISTER from the key to the same key
   succeeds only there.
6. The holder may be a nexus that is gone for good. RELEASE through the others does nothing then; PREEMPT of the own
   key takes the reservation over to a nexus that lives, which can release it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from fencing.errors import NotDelivered, OutcomeUnknown, PortError, Refused
from fencing.model import OUR_TYPE, Capabilities, PrType, Registrant, ReservationState
from fencing.port import ReservationPort

ROUNDS_MAX = 5
"""So often the group is listed anew because a path appeared while the others were registered."""
_REMEMBERED = 64

T = TypeVar("T")


class PathPort(ReservationPort, Protocol):
    """One path of a group: one I_T nexus. `device` is unique among the paths that there ever were."""

    def retire(self) -> None:
        """Take the path out of use: it carries nothing until it appears again, as a new path. PortError if that cannot
        be made sure.
        """
        ...


class PathGroup(Protocol):
    """The paths of one logical unit, as the node sees them now."""

    def expect(self, key: int) -> None:
        """From now on whoever admits a new path registers it with this key first. Noted when it returns."""
        ...

    def paths(self) -> Sequence[PathPort]:
        """All paths, also those that do not answer; the same object for as long as a path is there."""
        ...

    def close(self) -> None: ...


class MultipathPort:
    """A ReservationPort over all paths of a group. Used by one thread at a time."""

    def __init__(self, device: str, group: PathGroup) -> None:
        self._device = device
        self._group = group
        self._key = 0
        self._joined: set[str] = set()
        self._unfit: list[PathPort] = []
        """Paths that the owner's register did not reach and that are still in use."""
        self._unsettled = False
        """No path said that the owner's register succeeded."""
        self._last: list[str] = []
        """Devices of paths that failed, the latest failure last."""

    @property
    def device(self) -> str:
        return self._device

    def read(self) -> ReservationState:
        """Not without rule 1: what was read would be taken for the state of a disk that may be written."""
        self._settle()
        self._take_out()
        state = self._through_any(self._in_order(), lambda path: path.read())
        if self._unsettled and self._key in state.keys:
            what = "the key is registered, but no path says that it has it"
            raise NotDelivered(what, device=self._device, operation="read", own_key=self._key)
        return state

    def capabilities(self) -> Capabilities:
        return self._through_any(self._in_order(), lambda path: path.capabilities())

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        """`ignore_existing`, the owner's: afterwards no path is without the key (rule 1). Without a key: as on one
        path, on each; Refused if any path refused and none succeeded.
        """
        if ignore_existing and new:
            self._enter(new)
        elif old and not new:
            self._leave(old)
        else:
            joined, _ = self._on_each(lambda path: path.register(old, new, ignore_existing))
            self._key, self._joined, self._unsettled = new, joined, False

    def reserve(self, key: int, type: PrType) -> None:
        self._through_any(self._registered(key), lambda path: path.reserve(key, type))

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._through_any(self._registered(key), lambda path: path.preempt(key, victim, type, abort))

    def release(self, key: int, type: PrType) -> None:
        _, errors = self._on_each(lambda path: path.release(key, type))
        state = self.read()
        if key not in state.holders:
            return
        if errors and isinstance(self._worst(errors, "release"), Refused):
            raise self._worst(errors, "release")
        self.preempt(key, key, type)  # rule 6
        self._on_each(lambda path: path.release(key, type))

    def clear(self, key: int) -> None:
        self._through_any(self._registered(key), lambda path: path.clear(key))

    def close(self) -> None:
        self._group.close()

    # -- all paths -----------------------------------------------------------------------------------------

    def _enter(self, key: int) -> None:
        """Rule 1. A path that appears meanwhile is in the next listing, or finds the key noted (`expect`)."""
        self._group.expect(key)
        self._key, self._joined, self._unfit, self._unsettled = key, set(), [], False
        failed: dict[str, tuple[PathPort, PortError]] = {}
        for _ in range(ROUNDS_MAX):
            new = [path for path in self._group.paths() if path.device not in self._joined | failed.keys()]
            if not new:
                break
            for path in new:
                error = _registered_now(path, key)
                if error is None:
                    self._joined.add(path.device)
                else:
                    failed[path.device] = path, error
        else:
            raise NotDelivered("its paths change all the time", device=self._device, operation="register", own_key=key)
        if not self._joined:
            self._unsettled = True
            raise self._worst([error for _, error in failed.values()], "register")
        self._unfit = [path for path, _ in failed.values()]
        self._take_out()

    def _settle(self) -> None:
        """After a register that seemed to reach no path: which have the key after all? The others are unfit."""
        if not self._unsettled:
            return
        paths = self._group.paths()
        self._joined = {path.device for path in paths if _has_key(path, self._key)}
        if self._joined:
            self._unfit = [path for path in paths if path.device not in self._joined]
            self._unsettled = False

    def _take_out(self) -> None:
        """Retire what could not be registered."""
        there = {path.device for path in self._group.paths()} if self._unfit else set()
        while self._unfit:
            if self._unfit[-1].device in there:
                self._unfit[-1].retire()
            self._unfit.pop()

    def _registered(self, key: int) -> list[PathPort]:
        """Paths through which a registrant's command makes sense; asked of the device where it is not known."""
        if key != self._key or not self._joined:
            paths = self._group.paths()
            self._key, self._joined = key, {path.device for path in paths if _has_key(path, key)}
        paths = self._in_order()
        if not paths:
            raise self._worst((), "command")
        return [path for path in paths if path.device in self._joined] or paths

    def _leave(self, key: int) -> None:
        """Unregister every nexus that has the key, also those that are gone: the last live one preempts them."""
        last, *others = self._registered(key)
        self._joined = set()
        for path in others:
            try:
                path.register(key, 0)
            except PortError:
                self._failed(path)
        left = self._with_key(key)
        if len(left) > 1 and not any(registrant.holder for registrant in left):
            last.preempt(key, key, OUR_TYPE)
            if not self._with_key(key):
                return  # it took its own registration along, as LIO does
        last.register(key, 0)

    def _with_key(self, key: int) -> list[Registrant]:
        return [registrant for registrant in self.read().registrants if registrant.key == key]

    def _on_each(self, act: Callable[[PathPort], None]) -> tuple[set[str], list[PortError]]:
        """Through every path. Returns where it succeeded, and the errors of the others. If all failed, the error that
        says most is raised.
        """
        succeeded: set[str] = set()
        errors: list[PortError] = []
        for path in self._in_order():
            try:
                act(path)
                succeeded.add(path.device)
            except PortError as error:
                errors.append(error)
                if not isinstance(error, Refused):
                    self._failed(path)
        if not succeeded:
            raise self._worst(errors, "command")
        return succeeded, errors

    # -- any path ------------------------------------------------------------------------------------------

    def _through_any(self, paths: Sequence[PathPort], act: Callable[[PathPort], T]) -> T:
        """Rule 4."""
        errors: list[PortError] = []
        for path in paths:
            try:
                return act(path)
            except NotDelivered as error:
                errors.append(error)
                self._failed(path)
            except OutcomeUnknown:
                self._failed(path)
                raise
        raise self._worst(errors, "command")

    def _in_order(self) -> list[PathPort]:
        """Those that never failed first, then by how long ago they did."""
        rank = {device: place for place, device in enumerate(self._last, start=1)}
        return sorted(self._group.paths(), key=lambda path: rank.get(path.device, 0))

    def _failed(self, path: PathPort) -> None:
        self._last = [*(device for device in self._last if device != path.device), path.device][-_REMEMBERED:]

    def _worst(self, errors: Sequence[PortError], operation: str) -> PortError:
        """What all paths together say: unknown if any outcome is, else no if any said so."""
        for kind in (OutcomeUnknown, Refused, PortError):
            for error in errors:
                if isinstance(error, kind):
                    return error
        return NotDelivered("there is no path to it", device=self._device, operation=operation)


def join(path: ReservationPort, key: int) -> bool:
    """Rule 2, for one path that carries no I/O yet: True if it is registered with the key now, False if the key owns
    nothing any more, and the path is as it was. PortError: neither is sure, so the path must not be used.
    """
    if _has_key(path, key):
        return True
    if key not in path.read().keys:
        return False
    error = _registered_now(path, key)
    if error is not None:
        raise error
    if sum(registrant.key == key for registrant in path.read().registrants) > 1:
        return True
    with suppress(Refused):  # preempted with all the others
        path.register(key, 0)
    return False


def _registered_now(path: ReservationPort, key: int) -> PortError | None:
    """Register over whatever this nexus has from an earlier life; an unknown outcome is asked for (rule 5)."""
    try:
        path.register(0, key, ignore_existing=True)
    except OutcomeUnknown as error:
        return None if _has_key(path, key) else error
    except PortError as error:
        return error
    return None


def _has_key(path: ReservationPort, key: int) -> bool:
    """Rule 5. Where nothing can be learned the answer is no."""
    try:
        path.register(key, key)
    except PortError:
        return False
    return True
