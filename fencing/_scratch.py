"""One device of this node in a preflight: its paths, its scratch area, and whether it may be written at all.

Everything goes past the page cache (O_DIRECT), by path: what counts is what the device answers on that path. A
descriptor for writing is opened once and stays, because closing it makes udev read the disk anew.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence

from fencing._disk import DiskLabels, _ask_not_to_rescan, in_use, open_lun, size_bytes, wwid
from fencing._format import contents
from fencing._nodefacts import head_of, path_names
from fencing._sgutils import SgPort
from fencing.asking import NEVER_REFUSED
from fencing.errors import CONFLICT, LabelError, NotDelivered, PortError
from fencing.model import cluster_tag
from fencing.port import ReservationPort
from fencing.stamp import BLOCK_BYTES, only_stamps
from fencing.trial import MIB, SCRATCH_BYTES, SCRATCH_END, SCRATCH_OFFSET

WRITERS = 16
"""For each path; each has a part of the area of its own, so that there is always one write of each in flight."""
WRITE_BYTES = SCRATCH_BYTES // WRITERS
JOIN_S = 30.0
READ_S_MAX = 20.0
"""A long read of a slow path ends here, and counts for what it read."""
CHECKED_BYTES = 5 * MIB
_GONE = frozenset({"no such device", "no such device or address", "bad file descriptor"})


class ScratchDisk:
    """A `trial.Disk`. OSError if this node does not see the device."""

    def __init__(self, name: str, tag: int) -> None:
        """`name` is the WWID, `tag` the cluster's."""
        self._wwid = name
        self._tag = tag
        self._paths = path_names(name)
        if not self._paths:
            raise OSError(errno.ENODEV, f"no disk with the WWID {name} on this node")
        self._head = head_of(self._paths)
        self._ports: dict[str, ReservationPort] = {}
        self._readers: dict[str, int] = {}
        self._writers: dict[str, int] = {}
        self._flood: _Flood | None = None

    def paths(self) -> Sequence[str]:
        return tuple(self._paths)

    def port(self, path: str) -> ReservationPort:
        """OSError if it cannot be opened. One whose disk the kernel made anew since is opened again."""
        port = self._ports.get(path)
        if port is not None and not _is_gone(port):
            return port
        if port is not None:
            self._ports.pop(path).close()
        if wwid(path) != self._wwid:
            raise OSError(errno.ENODEV, f"{path} is another disk now")
        self._ports[path] = opened = _open_port(path)
        return opened

    def hindrance(self) -> str:
        if size_bytes(self._head) < CHECKED_BYTES:
            return f"it has only {size_bytes(self._head) // MIB} MiB, a trial takes {CHECKED_BYTES // MIB}"
        used = in_use(self._head)
        return used or self._strange_label() or self._strange_contents()

    def _strange_label(self) -> str:
        labels = DiskLabels(self._paths[0], self._wwid)
        try:
            found = labels.read()
        except LabelError as error:
            return f"a label that cannot be used ({error.what})"
        finally:
            labels.close()
        if found is None:
            return ""
        label = found.label
        if cluster_tag(label.cluster_uuid) != self._tag:
            return f'volume "{label.volume}" of cluster "{label.cluster_name}"'
        return f"volume {label.volume} is to be served" if label.wanted == "started" else ""

    def _strange_contents(self) -> str:
        """What is on it, unless it is a volume of this cluster (whose label was good), or left by a preflight."""
        found = contents(self._head)
        if not found or self._is_ours():
            return ""
        outside = [at for at in range(0, CHECKED_BYTES, MIB) if at != SCRATCH_OFFSET and any(self._read_at(at, MIB))]
        if not outside and only_stamps(self._read_at(SCRATCH_OFFSET, SCRATCH_BYTES)):
            return ""
        return f"it is not empty: {', '.join(found)}"

    def _is_ours(self) -> bool:
        labels = DiskLabels(self._paths[0], self._wwid)
        try:
            return labels.read() is not None
        finally:
            labels.close()

    def write(self, path: str, block: int, data: bytes) -> str:
        offset = SCRATCH_OFFSET + block * BLOCK_BYTES
        if offset + len(data) > SCRATCH_END:
            raise ValueError(f"{len(data)} bytes at block {block} would leave the scratch area")
        try:
            with mmap.mmap(-1, len(data)) as buffer:
                buffer[:] = data
                done = os.pwrite(self._writer(path), buffer, offset)
        except OSError as error:
            return _word(error)
        return "" if done == len(data) else f"{done} of {len(data)} bytes written"

    def read_scratch(self, path: str) -> bytes:
        return self._read(path, SCRATCH_OFFSET, SCRATCH_BYTES)

    def read_long(self, path: str, mib: int) -> tuple[int, float, str]:
        size = size_bytes(path)
        end = min(mib * MIB, size)
        last = (size - 1) // BLOCK_BYTES * BLOCK_BYTES
        began, at = time.monotonic(), 0
        try:
            # the last block, too: a LUN may be shorter than it says
            while at < end and time.monotonic() - began < READ_S_MAX:
                at += len(self._read(path, at, min(MIB, end - at)))
            at_end, seconds = at, time.monotonic() - began
            at = last
            self._read(path, last, min(BLOCK_BYTES, size - last))
        except OSError as error:
            return at, time.monotonic() - began, f"{_word(error)} at byte {at}"
        return at_end, seconds, ""

    def flood(self, paths: Sequence[str], stamp: bytes) -> None:
        self.flood_end(0)
        self._flood = _Flood([self._writer(path) for path in paths], stamp)

    def flooded(self) -> int:
        return self._flood.acknowledged if self._flood else 0

    def flood_end(self, wait_s: float) -> dict[str, int]:
        flood, self._flood = self._flood, None
        return flood.end(wait_s) if flood else {}

    def close(self) -> None:
        for port in self._ports.values():
            port.close()
        for descriptor in (*self._readers.values(), *self._writers.values()):
            os.close(descriptor)

    def _writer(self, path: str) -> int:
        if path not in self._writers:
            self._writers[path] = self._open(path, os.O_WRONLY)
            _ask_not_to_rescan(self._writers[path])
        return self._writers[path]

    def _read_at(self, offset: int, length: int) -> bytes:
        return self._read(self._paths[0], offset, length)

    def _read(self, path: str, offset: int, length: int) -> bytes:
        if path not in self._readers:
            self._readers[path] = self._open(path, os.O_RDONLY)
        with mmap.mmap(-1, length) as buffer:
            got = os.preadv(self._readers[path], [buffer], offset)
            if got != length:
                raise OSError(errno.EIO, f"{got} of {length} bytes read")
            return bytes(buffer)

    def _open(self, path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
        if wwid(path) != self._wwid:
            os.close(descriptor)
            raise OSError(errno.ENODEV, f"{path} is another disk now")
        return descriptor


class _Flood:
    """Writers that go on until their first error, or until they are stopped."""

    def __init__(self, descriptors: Sequence[int], stamp: bytes) -> None:
        self._stop = threading.Event()
        self._counts = [0] * (WRITERS * len(descriptors))
        self._ended: list[str] = []
        data = stamp * (WRITE_BYTES // BLOCK_BYTES)
        self._threads = [
            threading.Thread(target=self._run, args=(number, descriptor, data, _region(number)), daemon=True)
            for number, descriptor in enumerate(each for each in descriptors for _ in range(WRITERS))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def acknowledged(self) -> int:
        return sum(self._counts)

    def end(self, wait_s: float) -> dict[str, int]:
        _join(self._threads, wait_s)
        self._stop.set()
        _join(self._threads, JOIN_S)
        ended = {why: self._ended.count(why) for why in self._ended}
        hanging = sum(thread.is_alive() for thread in self._threads)
        return {**ended, **({"still under way": hanging} if hanging else {})}

    def _run(self, number: int, descriptor: int, data: bytes, offset: int) -> None:
        why = NEVER_REFUSED
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            while not self._stop.is_set():
                try:
                    os.pwrite(descriptor, buffer, offset)
                except OSError as error:
                    why = _word(error)
                    break
                self._counts[number] += 1
        self._ended.append(why)


def _open_port(path: str) -> ReservationPort:
    """The one nexus of a path: `open_lun` would join all paths of a SCSI disk. NVMe registers hosts, not paths."""
    return SgPort(path) if os.path.basename(path).startswith("sd") else open_lun(path).port


def _region(number: int) -> int:
    return SCRATCH_OFFSET + number % WRITERS * WRITE_BYTES


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _is_gone(port: ReservationPort) -> bool:
    """Its descriptor belongs to a disk that the kernel took away."""
    return _ends_with(port.read, _GONE)


def _ends_with(call: Callable[[], object], senses: frozenset[str]) -> bool:
    try:
        call()
    except NotDelivered as error:
        return error.sense in senses
    except PortError:
        pass
    return False


def _word(error: OSError) -> str:
    # EBADE is how the block layer says "reservation conflict"
    return CONFLICT if error.errno == errno.EBADE else errno.errorcode.get(error.errno or 0, str(error))
