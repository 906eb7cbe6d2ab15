"""Takes a set of LUNs over and over as one node, on command: for races between nodes and for measurements.

    python3 -m fencing._trial NODE RECORD LUN...

NODE is this node's number in a cluster of the trial's own, RECORD a file for its epochs, LUN a WWID or, where a host
has several nexuses to one unit, a device. It destroys what is on the LUNs. Commands are JSON objects, one a line on
stdin; each is answered by one line. All of it is the shipped way to a handle: `acquisition.acquire` through the ports
of `_disk.open_lun`, at once on many LUNs by `_threads.Threads`.

    {"do": "make"}       writes the labels of a new volume on all LUNs, whoever has them
    {"do": "acquire"}    takes it. "delay_ms": first waits; "pause": [N, MS]: all of this process stops before the Nth
                         command to any LUN for so long; "die": N: the process ends there
    {"do": "verify"}     asks every LUN whether the last handle is good
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fencing._disk import DiskLabels, in_use, open_lun, size_bytes, wwid
from fencing._sgutils import SgPort
from fencing._threads import Threads
from fencing.acquisition import acquire, fence, stamp
from fencing.errors import FencingError, LostRace
from fencing.faulty import Fault, faulty_lun
from fencing.handle import Handle, in_order, verify
from fencing.label import Label
from fencing.model import Identity
from fencing.ownership import Lost
from fencing.port import Lun
from fencing.timing import Stopwatch

CLUSTER = "7a1a1a1a-0000-4000-8000-000000000001"
VOLUME = "7a1a1a1a-0000-4000-8000-000000000002"
"""Always the same, so that a copy of an earlier trial's label is an older one, and not another volume's."""


def _nothing_written() -> None:
    """Contenders of a trial write nothing but labels: no owner's writes to wait for."""


class Gate:
    """Where every command to a LUN passes: counts them, and stops them or the process at one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: int | None = None
        self._pause_s = 0.0
        self._open = threading.Event()
        self._open.set()

    def set(self, at: int | None, pause_s: float = 0.0) -> None:
        """`at`: before which command from now on; None: before none. `pause_s` 0 ends the process."""
        self._left, self._pause_s = at, pause_s

    def passing(self, operation: str, changes: bool) -> Fault:
        with self._lock:
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    self._left = None
                    self._stop()
        self._open.wait()
        return Fault.NONE

    def _stop(self) -> None:
        if not self._pause_s:
            os._exit(9)
        self._open.clear()
        threading.Timer(self._pause_s, self._open.set).start()


class Trial:
    def __init__(self, node: int, record: Path, luns: list[Lun]) -> None:
        self._identity = Identity(cluster_uuid=CLUSTER, node=node, node_name=f"n{node}")
        self._record = record
        self.gate = Gate()
        self._luns = [faulty_lun(lun, self.gate.passing) for lun in luns]
        self._spread = Threads()
        self._handle: Handle | None = None

    def make(self, word: dict[str, Any]) -> dict[str, Any]:
        ordered = in_order(self._luns)
        handle = fence(
            ordered, self._identity, floor=self._floor(), intent=self._intend, clock=time.monotonic,
            force=True, spread=self._spread,
        )  # fmt: skip
        label = Label(
            cluster_uuid=CLUSTER, cluster_name="trial", volume="trial", volume_uuid=VOLUME,
            epoch=handle.epoch, wwids=tuple(lun.wwid for lun in ordered), fstype="ext4", lease_s=10, grace_s=10,
            seq=1, member=0, sizes=tuple(lun.size_bytes() for lun in ordered),
        )  # fmt: skip
        stamp(handle, label, stopwatch=Stopwatch(time.monotonic))
        self._handle = handle
        return {"epoch": handle.epoch, "key": str(handle.key)}

    def acquire(self, word: dict[str, Any]) -> dict[str, Any]:
        time.sleep(word.get("delay_ms", 0) / 1000)
        self._handle = None
        if "die" in word:
            self.gate.set(int(word["die"]))
        if "pause" in word:
            self.gate.set(int(word["pause"][0]), word["pause"][1] / 1000)
        started = time.monotonic()
        try:
            self._handle = acquire(
                self._luns, self._identity, floor=self._floor(), intent=self._intend, clock=time.monotonic,
                settle=_nothing_written, spread=self._spread,
            )  # fmt: skip
        finally:
            self.gate.set(None)
        ended = time.monotonic()
        return {"epoch": self._handle.epoch, "key": str(self._handle.key)} | times(self._handle, started, ended)

    def verify(self, word: dict[str, Any]) -> dict[str, Any]:
        if self._handle is None:
            return {"good": False}
        started = time.monotonic()
        good = not isinstance(verify(self._handle), Lost)
        return {"good": good, "key": str(self._handle.key), "took_ms": _ms(started, time.monotonic())}

    def _floor(self) -> int:
        return int(self._record.read_text()) if self._record.exists() else 0

    def _intend(self, epoch: int) -> None:
        """Durable, as hactld's record is."""
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with open(self._record, "w") as file:
            file.write(str(epoch))
            file.flush()
            os.fsync(file.fileno())


def times(handle: Handle, started: float, ended: float) -> dict[str, Any]:
    """Milliseconds. `acquire_ms` all of it; `fence_ms` from the first command that changes a LUN to the last read that
    shows this node as the owner of each, the durable record of the epoch being made before; `preempt_ms` for each LUN
    from PREEMPT AND ABORT to the read that proves it."""
    fencing = [each for each in handle.timings if not each.step.startswith("label")]
    changing = [each for each in fencing if each.step != "read"]
    proofs: dict[str, float] = {}
    preempts: list[float] = []
    for each in fencing:
        if each.step == "preempt":
            proofs[each.lun] = each.start
        elif each.step == "read" and each.lun in proofs:
            preempts.append(_ms(proofs.pop(each.lun), each.end))
    first = min((each.start for each in changing), default=started)
    return {
        "acquire_ms": _ms(started, ended),
        "fence_ms": _ms(first, max(each.end for each in fencing)),
        "preempt_ms": preempts,
    }


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)


def find(wwids: list[str]) -> list[Lun]:
    """OSError if one is not there."""
    found = {}
    for path in Path("/sys/class/block").glob("[sd][dm]*"):
        if not (path / "partition").exists():
            try:
                found[wwid(f"/dev/{path.name}")] = f"/dev/{path.name}"
            except OSError:
                continue
    return [
        one_nexus(each) if each.startswith("/dev/") else open_lun(found.get(each) or _missing(each)) for each in wwids
    ]


def one_nexus(device: str) -> Lun:
    """A SCSI disk by this path alone, though it may be one of several on this host: here each is a node of its own."""
    name = wwid(device)
    return Lun(
        wwid=name,
        port=SgPort(device),
        labels=DiskLabels(device, name),
        in_use=partial(in_use, device),
        size_bytes=partial(size_bytes, device),
    )


def _missing(name: str) -> str:
    raise OSError(f"no disk {name} is seen here")


def answer(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"ok": True} | call()
    except (FencingError, OSError) as error:
        return {"ok": False, "lost": isinstance(error, LostRace), "error": type(error).__name__, "text": str(error)}


def main(arguments: list[str]) -> int:
    node, record, *wwids = arguments
    trial = Trial(int(node), Path(record), find(wwids))
    print(json.dumps({"ok": True, "ready": len(wwids)}), flush=True)
    for line in sys.stdin:
        word = json.loads(line)
        does = {"make": trial.make, "acquire": trial.acquire, "verify": trial.verify}[word["do"]]
        print(json.dumps(answer(lambda does=does, word=word: does(word))), flush=True)  # type: ignore[misc]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
