"""The paths of a SCSI disk on this node: sysfs tells which there are, each is one `SgPort`.

A lost path must cost nothing, so no command waits for one: what sysfs shows as blocked or offline is not asked, and
a command that a path does not answer in time is left to its own thread while the others are asked. Only
PREEMPT AND ABORT is waited for: its end is the proof that what the victim had in flight is over.

`retire` deletes the SCSI device. From that moment the kernel refuses every command to it, whoever sends it, and
dm-multipath cannot bring the path back by itself; it comes back as a new device when its host is scanned, and
udev runs fencing/_pathgate.py before anybody hears of it. `bring_back` scans.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import TypeVar

from fencing._sgutils import SgPort
from fencing.errors import NotDelivered, OutcomeUnknown, PortError
from fencing.model import Capabilities, PrType, ReservationState, show_key

SYS_BLOCK = Path("/sys/class/block")
RUN = Path("/run/hactl")
ANSWER_S = 1.5
"""A path that is silent for so long is passed over. Less than the time after which a silent disk is given up."""
RETIRE_S = 3.0
_PATH = re.compile(r"sd[a-z]+")
_REFUSING = ("cancel", "deleted")
"""States of a SCSI device in which the kernel carries nothing to it, and which it never leaves."""

T = TypeVar("T")


def path_names(wwid: str) -> list[str]:
    """Kernel names of the SCSI disks that have this WWID, in whatever state they are."""
    names = sorted(filter(_PATH.fullmatch, os.listdir(SYS_BLOCK)))
    return [name for name in names if _attribute(name, "device/wwid") == wwid]


def state_of(name: str) -> str:
    """What the kernel says of a SCSI device: "running", "blocked", "transport-offline", ..., "" if it is gone."""
    return _attribute(name, "device/state")


def _attribute(name: str, attribute: str) -> str:
    try:
        return " ".join((SYS_BLOCK / name / attribute).read_text().split())
    except OSError:
        return ""


class BlockPath:
    """One path as a PathPort. Its thread outlives a command that hangs; meanwhile it refuses others."""

    def __init__(self, name: str, wwid: str, *, carries_io: bool) -> None:
        """`carries_io`: something writes through this path, so it cannot just be left alone. Opens nothing yet."""
        self.name = name
        self._wwid = wwid
        self._carries_io = carries_io
        self._identity = identity_of(name)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"path-{name}")
        self._hanging: Future[object] | None = None
        self._port: SgPort | None = None

    @property
    def device(self) -> str:
        return f"/dev/{self.name}"

    @property
    def identity(self) -> str:
        return self._identity

    def read(self) -> ReservationState:
        return self._run("read", lambda port: port.read(), NotDelivered)

    def capabilities(self) -> Capabilities:
        return self._run("capabilities", lambda port: port.capabilities(), NotDelivered)

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        self._run("register", lambda port: port.register(old, new, ignore_existing))

    def reserve(self, key: int, type: PrType) -> None:
        self._run("reserve", lambda port: port.reserve(key, type))

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._run("preempt", lambda port: port.preempt(key, victim, type, abort), within_s=None)

    def release(self, key: int, type: PrType) -> None:
        self._run("release", lambda port: port.release(key, type))

    def clear(self, key: int) -> None:
        self._run("clear", lambda port: port.clear(key))

    def close(self) -> None:
        self._worker.submit(self._close)
        self._worker.shutdown(wait=False)

    def retire(self) -> None:
        """See the top of this file. A path that nothing writes through needs no more than to be left alone."""
        if self._carries_io:
            retire(self.name, self._wwid)

    def _run(
        self,
        operation: str,
        command: Callable[[SgPort], T],
        late: type[PortError] = OutcomeUnknown,
        within_s: float | None = ANSWER_S,
    ) -> T:
        self._must_be_usable(operation)
        future = self._worker.submit(lambda: command(self._opened(operation)))
        try:
            return future.result(within_s)
        except FutureTimeout:
            self._hanging = future  # type: ignore[assignment]
            what = f"no answer within {within_s:g} s"
            raise late(what, device=self.device, operation=operation, sense="no answer") from None

    def _must_be_usable(self, operation: str) -> None:
        state = state_of(self.name)
        what = "" if state == "running" else f"the path is {state or 'gone'}"
        if identity_of(self.name) != self._identity:
            what = "the path is gone"
        if self._hanging is not None and not self._hanging.done():
            what = "an earlier command still waits for its answer"
        if what:
            raise NotDelivered(what, device=self.device, operation=operation)

    def _opened(self, operation: str) -> SgPort:
        if self._port is None:
            try:
                self._port = SgPort(self.device)
            except OSError as error:
                what = (error.strerror or str(error)).lower()
                raise NotDelivered(what, device=self.device, operation=operation) from error
        return self._port

    def _close(self) -> None:
        if self._port is not None:
            self._port.close()


def identity_of(name: str) -> str:
    """Tells one life of a kernel name from the next: "" if the device is gone."""
    number = _attribute(name, "diskseq") or _attribute(name, "dev")
    return f"{address_of(name)} {number}" if number else ""


def address_of(name: str) -> str:
    """The SCSI address HOST:CHANNEL:TARGET:LUN of a path."""
    return os.path.basename(os.path.realpath(SYS_BLOCK / name / "device"))


class BlockPaths:
    """The PathGroup of one WWID. `head` is the dm device above the paths; without one only `data` carries I/O."""

    def __init__(self, wwid: str, *, head: bool, data: str = "", run: Path = RUN) -> None:
        self._wwid = wwid
        self._head = head
        self._data = data
        self._run = run
        self._paths: dict[str, BlockPath] = {}
        self._names: list[str] = []
        """Of all SCSI disks when their WWIDs were read last: there may be thousands of them."""

    def expect(self, key: int) -> None:
        self._names = []
        note_key(self._wwid, key, self._run)

    def paths(self) -> Sequence[BlockPath]:
        names = sorted(filter(_PATH.fullmatch, os.listdir(SYS_BLOCK)))
        if names != self._names or any(identity_of(path.name) != key for key, path in self._paths.items()):
            self._names = names
            self._look()
        return list(self._paths.values())

    def _look(self) -> None:
        now = {identity_of(name): name for name in path_names(self._wwid)}
        for identity in self._paths.keys() - now.keys():
            self._paths.pop(identity).close()
        for identity, name in now.items():
            if identity and identity not in self._paths:
                carries = self._head or name == self._data
                self._paths[identity] = BlockPath(name, self._wwid, carries_io=carries)

    def close(self) -> None:
        for path in self._paths.values():
            path.close()
        self._paths.clear()


# -- the key that new paths are registered with --------------------------------------------------------------


def note_key(wwid: str, key: int, run: Path = RUN) -> None:
    """Which key the paths of a disk have, for whoever admits a new one; lost with the boot, as the handle is."""
    folder = run / "keys"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _file_name(wwid)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    draft.write_text(json.dumps({"wwid": wwid, "key": show_key(key)}) + "\n")
    draft.replace(path)


def noted_key(wwid: str, run: Path = RUN) -> int | None:
    """None if this node has no right to the disk, or never had one since it booted. ValueError if damaged."""
    try:
        text = (run / "keys" / _file_name(wwid)).read_text()
    except FileNotFoundError:
        return None
    note = json.loads(text)
    if not isinstance(note, dict) or note.get("wwid") != wwid:
        raise ValueError(f"the note of the key of {wwid} is damaged: {text[:100]!r}")
    return int(note["key"], 16)


def _file_name(wwid: str) -> str:
    return re.sub(r"[^A-Za-z0-9.:_-]", "_", wwid)


# -- paths taken out of use, and back ------------------------------------------------------------------------


def retire(name: str, wwid: str, run: Path = RUN) -> None:
    """Delete a path's SCSI device; returns when the kernel carries nothing to it any more. NotDelivered if not."""
    address, identity = address_of(name), identity_of(name)
    if identity_of(name):
        folder = run / "retired"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / address).write_text(f"{wwid}\n")
        # The write may last until the commands in flight are given up; the state changes at once.
        threading.Thread(target=_delete, args=(name,), daemon=True).start()
    end = time.monotonic() + RETIRE_S
    while identity_of(name) == identity and identity and state_of(name) not in (*_REFUSING, ""):
        if time.monotonic() > end:
            raise NotDelivered(
                "cannot be registered, and cannot be taken out of use",
                device=f"/dev/{name}",
                operation="retire",
                next_action=f"echo 1 > /sys/class/block/{name}/device/delete, and look at the kernel log",
            )
        time.sleep(0.005)


def _delete(name: str) -> None:
    with contextlib.suppress(OSError):
        (SYS_BLOCK / name / "device/delete").write_text("1")


def bring_back(run: Path = RUN) -> list[str]:
    """Scan for every retired path whose transport is up again; returns their SCSI addresses. May block."""
    scanned = []
    for note in _retired(run):
        host, channel, target, lun = note.name.split(":")
        if Path("/sys/class/scsi_device", note.name).exists() or not Path(f"/sys/class/scsi_host/host{host}").exists():
            note.unlink(missing_ok=True)
        elif _transport_up(host):
            with contextlib.suppress(OSError):
                Path(f"/sys/class/scsi_host/host{host}/scan").write_text(f"{channel} {target} {lun}")
                scanned.append(note.name)
    return scanned


def _retired(run: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (note for note in sorted((run / "retired").iterdir()) if note.name.count(":") == 3)


def _transport_up(host: str) -> bool:
    """Of iSCSI: a scan through a lost session only waits. Other transports fail at once, or scan by themselves."""
    sessions = list(Path(f"/sys/class/scsi_host/host{host}/device").glob("session*/iscsi_session/session*/state"))
    return all(session.read_text().strip() == "LOGGED_IN" for session in sessions)
