"""A host's kernel as far as volumes are concerned: mounts, the export, and the gate of the served address.

It outlives hactld and node watch, and ends with the host. The address has a lifetime: whatever happens to the
processes, the kernel removes it when the lifetime since the last renewal is over. A mounted file system answers reads
from its cache, without asking the disk: a node that serves too long therefore serves what is not true any more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fencing.errors import PortError
from fencing.fake import FakeLabels
from fs.errors import Busy, NotPossible
from fs.model import Did, GraceStatus, VolumeSpec

from .disk import SUPERBLOCK, Path, Write, pack, unpack
from .loop import block, pause

if TYPE_CHECKING:
    from .host import Host

GRACE_MS = 300
FIRST_DATA_BLOCK = 100
UNMOUNT_PATIENCE_MS = 2000


class Mount:
    """One mounted file system. `broken`: a write failed, so it takes no more."""

    def __init__(self, path: Path, key: int, cache: dict[int, int]) -> None:
        self.path = path
        self.key = key
        self.cache = cache
        self.queued = 0
        self.broken = False
        self._under_way: set[int] = set()
        self._waiting: dict[int, list[Callable[[bool], None]]] = {}

    def write(self, number: int, value: int, done: Callable[[bool], None]) -> None:
        """Through to the disk. `done(False)`: it failed, or whether it landed is not known. Writes of one block go one
        after the other; those that wait become one, of the newest value."""
        self.cache[number] = max(value, self.cache.get(number, 0))
        waiting = self._waiting.setdefault(number, [])
        waiting.append(done)
        if len(waiting) == 1 and number not in self._under_way:
            self._send(number)

    def _send(self, number: int) -> None:
        told, self._waiting[number] = self._waiting[number], []
        self._under_way.add(number)
        self.queued += 1

        def answered(result: Any) -> None:
            self.path.host.when_unfrozen(lambda: self._written(number, result, told))

        Write(self.path, number, pack(self.cache[number], self.key), answered).send()

    def _written(self, number: int, result: Any, told: list[Callable[[bool], None]]) -> None:
        self.queued -= 1
        self._under_way.discard(number)
        self.broken = self.broken or isinstance(result, PortError)
        for done in told:
            done(not isinstance(result, PortError))
        if self._waiting[number] and not self.broken:
            self._send(number)


class Kernel:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.mounts: dict[str, Mount] = {}
        self.dying: list[tuple[str, Mount]] = []
        """Unmounted by force, with writes still queued."""
        self.exported: set[str] = set()
        self.tracked: set[str] = set()
        self.grace_since: dict[str, float] = {}
        self._shut_at: dict[str, float] = {}
        self.given_up: set[str] = set()

    def crash(self) -> None:
        """A new kernel begins with nothing."""
        self.mounts, self.dying = {}, []
        self.exported, self.tracked, self.given_up = set(), set(), set()
        self.grace_since, self._shut_at = {}, {}

    def thawed(self) -> None:
        """Timers that ran out while nothing ran come first."""
        for volume in [volume for volume, at in self._shut_at.items() if at <= self.world.now]:
            del self._shut_at[volume]

    # -- the gate --------------------------------------------------------------------------------------------------

    def renew_gate(self, volume: str, gate_ms: int) -> None:
        self._shut_at[volume] = self.host.true_time(self.host.clock() + gate_ms)
        self.host.cluster.checker.gate_renewed(self.host, volume, self._shut_at[volume])

    def close_gate(self, volume: str) -> None:
        self._shut_at.pop(volume, None)

    def gate_shut_at(self, volume: str) -> float | None:
        """True time; None = it is shut."""
        at = self._shut_at.get(volume)
        return at if at is not None and at > self.world.now else None

    def gate_open(self, volume: str) -> bool:
        return self._shut_at.get(volume, 0.0) > self.world.now

    def serves(self, volume: str) -> bool:
        return self.gate_open(volume) and volume in self.exported and volume in self.mounts

    # -- what clients ask ------------------------------------------------------------------------------------------

    def read(self, volume: str, number: int) -> int | None:
        return self.mounts[volume].cache.get(number, 0) if self.serves(volume) else None

    def write(self, volume: str, number: int, value: int, done: Callable[[bool], None]) -> bool:
        """False: nobody here takes it. `done` says how it ended, if the answer may leave this host then."""
        if not self.serves(volume) or self.mounts[volume].broken:
            return False
        mount = self.mounts[volume]
        mount.write(number, value, lambda good: done(good) if self.serves(volume) else None)
        return True

    # -- who uses a disk -------------------------------------------------------------------------------------------

    def in_use(self, unit: str) -> str:
        if any(mount.path.unit.name == unit for mount in self.mounts.values()):
            return "a mounted file system"
        if any(mount.path.unit.name == unit and mount.queued for _, mount in self.dying):
            return "writes that wait"
        return ""


class SimVolumeService:
    """Stands in for `fs._service.VolumeService`: the same calls, on a simulated kernel."""

    def __init__(self, host: Host, spec: VolumeSpec) -> None:
        self._host = host
        self._kernel = host.kernel
        self._path = host.paths[spec.device]
        self._name = spec.name

    def _work(self, low_ms: float, high_ms: float) -> None:
        draw = self._host.world.random
        slow = 10 if draw.random() < 0.02 else 1
        pause(self._host.world.current, draw.uniform(low_ms, high_ms) * slow)

    def _did(self, note: str = "") -> Did:
        return Did(step="", changed=True, took_ms=0.0, note=note)

    def prepare(self) -> Did:
        return self._did()

    def mount(self) -> Did:
        kernel, path = self._kernel, self._path
        if self._name in kernel.mounts:
            return self._did("was mounted")
        if kernel.in_use(path.unit.name):
            raise NotPossible(self._name, "the disk is in use", "try again")
        key = kernel.host.cluster.checker.key_of(self._host, self._name)
        blocks = path.run("read", False, lambda: dict(path.unit.blocks))
        cache = {
            number: unpack(data)[0]
            for number, data in blocks.items()
            if FIRST_DATA_BLOCK <= number < FakeLabels.FIRST_BLOCK
        }
        mount = Mount(path, key, cache)

        def replay(answer: Callable[[Any], None]) -> None:
            mount.write(SUPERBLOCK, 1, answer)

        kernel.mounts[self._name] = mount  # the block device is open from here on
        try:
            good = block(self._host.world.current, replay)
        finally:
            if kernel.mounts.get(self._name) is mount and (mount.broken or mount.queued):
                self._let_go(mount)
        if not good:
            raise NotPossible(self._name, "the journal cannot be replayed", "look at the disk")
        self._work(1, 15)
        return self._did("replay")

    def damaged(self) -> bool:
        mount = self._kernel.mounts.get(self._name)
        return mount is not None and mount.broken

    def start_tracking(self) -> Did:
        self._must_be_mounted()
        self._work(1, 10)
        self._kernel.tracked.add(self._name)
        return self._did()

    def start_nfsd(self) -> Did:
        self._must_be_mounted()
        if self._name not in self._kernel.tracked:
            raise NotPossible(self._name, "nobody tracks the clients", "start the tracking")
        self._work(1, 10)
        if self._name not in self._kernel.exported:
            self._kernel.exported.add(self._name)
            self._kernel.grace_since[self._name] = self._host.world.now
            self._kernel.host.cluster.checker.exported(self._host, self._name)
        return self._did()

    def _must_be_mounted(self) -> None:
        if self._name not in self._kernel.mounts:
            raise NotPossible(self._name, "it is not mounted", "mount it")

    def answered_elsewhere(self) -> bool:
        pause(self._host.world.current, 80)
        return any(
            other.kernel.gate_open(self._name) and not other.frozen
            for other in self._host.cluster.hosts.values()
            if other is not self._host
        )

    def announce(self) -> Did:
        self._host.cluster.clients.announced(self._host, self._name)
        return self._did()

    def tickle(self) -> Did:
        return self._did()

    def gate(self) -> SimpleNamespace:
        return SimpleNamespace(fd=0, renew=b"renew", close=b"close")

    def save_peers(self) -> Did:
        return self._did()

    def grace_status(self, gone: frozenset[str] = frozenset()) -> GraceStatus:
        since = self._kernel.grace_since.get(self._name)
        over = since is None or self._host.world.now - since > GRACE_MS
        active = None if self._name not in self._kernel.exported else not over
        return GraceStatus(active=active, known=1, returned=int(over), reclaimed=int(over), waiting=(), may_end=over)

    def end_grace(self, gone: frozenset[str] = frozenset()) -> Did:
        self._kernel.grace_since.pop(self._name, None)
        return self._did()

    def remove_address(self) -> Did:
        self._kernel.close_gate(self._name)
        return self._did()

    def stop_nfsd(self) -> Did:
        self._work(1, 10)
        self._kernel.exported.discard(self._name)
        return self._did()

    def stop_tracking(self) -> Did:
        self._kernel.tracked.discard(self._name)
        return self._did()

    def unmount(self, force: bool = False) -> Did:
        kernel = self._kernel
        mount = kernel.mounts.get(self._name)
        if mount is None:
            return self._did("was not mounted")
        if self._name in kernel.exported:
            raise Busy(self._name, "nfsd still uses it", "stop nfsd", ("nfsd",))
        waited = 0.0
        while mount.queued and not mount.broken and not force:
            if waited >= UNMOUNT_PATIENCE_MS:
                raise Busy(self._name, "writes still wait", "try again", ("the disk",))
            pause(self._host.world.current, 50)
            waited += 50
        self._work(1, 5)
        self._let_go(mount)
        return self._did()

    def _let_go(self, mount: Mount) -> None:
        del self._kernel.mounts[self._name]
        if mount.queued:
            self._kernel.dying.append((self._name, mount))

    def close(self) -> None:
        pass
