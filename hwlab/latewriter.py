"""Keeps writes of a node on their way at every stage, so that a freeze catches some of them in each.

Runs on a node inside the lab (sent there as text: standard library only), on the disk of a mounted volume, in the spare
area that `stamper.py` uses, with stamps of the same form: node N has blocks 16 N to 16 N + 15 there.

- block 16 N: written through the page cache and not synced: waits there until this host was frozen and runs again;
- blocks 16 N + 1 to 16 N + 15: one thread each, past the cache, one write on its way at a time. The device takes
  DEPTH of them, the others wait in the block layer; those that it took are with the target, or, when the network is cut
  and the device is let take more, still in the socket of the iSCSI session, or of the NVMe controller.

JSON lines on stdout, times in CLOCK_MONOTONIC nanoseconds: `stamps` as the stamper's, and `stages`, what is where now:
`inside` writes that this program waits for, `taken` by the driver, `unsent` bytes in sockets to the target.
`depth N` on stdin: the device takes N at a time from now on. `stop`, or the end of stdin, ends it.
"""

import argparse
import glob
import json
import mmap
import os
import re
import sys
import threading
import time

from hwlab.stamps import BLOCK, STAMP_BASE, stamp, whole_disk

BLOCKS_PER_NODE = 16
DEPTH = 8
FROZEN_NS = 1_000_000_000
STAGES_EVERY_S = 0.05
REFUSED_S = 0.5
# iSCSI, NVMe over TCP
PORTS = (3260, 4420)
STOP = threading.Event()
VOICE = threading.Lock()


def say(kind: str, **fields: object) -> None:
    with VOICE:
        print(json.dumps({"t": kind, "at": time.monotonic_ns(), **fields}), flush=True)


class Slot:
    """One block of the area, written by one thread."""

    def __init__(self, path: str, run: str, number: int, flags: int) -> None:
        self.inside = False
        self.number = number
        self.n = 0
        self._run = run
        self._fd = os.open(path, os.O_WRONLY | flags)
        self._buffer = mmap.mmap(-1, BLOCK)

    def write(self) -> "tuple[int, str]":
        """One stamp; when it began and how it ended."""
        self.n += 1
        self._buffer.seek(0)
        self._buffer.write(stamp(self._run, self.number, self.n, time.time_ns()).ljust(BLOCK, b"\0"))
        begun_ns = time.monotonic_ns()
        self.inside = True
        try:
            os.pwritev(self._fd, [self._buffer], STAMP_BASE + BLOCK * self.number)
            return begun_ns, "ok"
        except OSError as error:
            return begun_ns, os.strerror(error.errno or 0)
        finally:
            self.inside = False

    def sync(self) -> str:
        try:
            os.fsync(self._fd)
            return "ok"
        except OSError as error:
            return os.strerror(error.errno or 0)


def direct(slot: Slot) -> None:
    """Past the cache, one after the other."""
    while not STOP.is_set():
        begun_ns, outcome = slot.write()
        say("stamps", node=slot.number, rows=[[slot.n, begun_ns, time.monotonic_ns(), outcome]])
        if outcome != "ok":
            STOP.wait(REFUSED_S)


def cached(slot: Slot) -> None:
    """Into the cache; written out only once this host was frozen."""
    begun: list[tuple[int, int]] = []
    looked_ns = time.monotonic_ns()
    frozen = False
    while not STOP.wait(0.02):
        now_ns = time.monotonic_ns()
        frozen, looked_ns = frozen or now_ns - looked_ns > FROZEN_NS, now_ns
        if not frozen:
            begun_ns, _ = slot.write()
            begun.append((slot.n, begun_ns))
        elif begun:
            outcome = slot.sync()
            done_ns = time.monotonic_ns()
            say("stamps", node=slot.number, rows=[[n, begun_ns, done_ns, outcome] for n, begun_ns in begun])
            begun = []


def unsent(text: str) -> int:
    """Bytes in the send queues of connections to a target's port; `text` is /proc/net/tcp."""
    total = 0
    for line in text.splitlines()[1:]:
        words = line.split()
        if int(words[2].rpartition(":")[2], 16) in PORTS:
            total += int(words[4].partition(":")[0], 16)
    return total


class Device:
    """How many commands the disk takes at a time."""

    def __init__(self, disk: str) -> None:
        self._path = places(disk)[1]
        with open(self._path) as file:
            self._before = int(file.read())
        self.depth = self._before

    def take(self, depth: int) -> None:
        with open(self._path, "w") as file:
            file.write(str(depth))
        self.depth = depth

    def restore(self) -> None:
        try:
            self.take(self._before)
        except OSError:
            pass  # the disk is gone


def watch(disk: str, device: Device, slots: "list[Slot]") -> None:
    """Say what is where, again and again, until a write was refused: then it is over."""
    while not STOP.wait(STAGES_EVERY_S):
        with open(places(disk)[0]) as file:
            taken = int(file.read().split()[1])
        with open("/proc/net/tcp") as file:
            waiting = unsent(file.read())
        say("stages", inside=sum(slot.inside for slot in slots), taken=min(taken, device.depth), unsent=waiting)


def places(disk: str) -> "tuple[str, str]":
    """In sysfs: how many commands the driver has, and how many it may have. With NVMe's own multipath the disk is a
    head without a queue: its path has one."""
    name = os.path.basename(disk)
    found = re.fullmatch(r"nvme(\d+)n(\d+)", name)
    if found is None:
        return f"/sys/class/block/{name}/inflight", f"/sys/class/block/{name}/device/queue_depth"
    [path] = glob.glob(f"/sys/class/block/nvme{found[1]}c*n{found[2]}") or [f"/sys/class/block/{name}"]
    return f"{path}/inflight", f"{path}/queue/nr_requests"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mount", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--number", type=int, required=True)
    args = parser.parse_args()
    disk = whole_disk(args.mount)
    first = BLOCKS_PER_NODE * args.number
    cache = Slot(disk, args.run, first, 0)
    slots = [Slot(disk, args.run, first + k, os.O_DIRECT) for k in range(1, BLOCKS_PER_NODE)]
    device = Device(disk)
    device.take(DEPTH)
    say("started", disk=disk, slots=[slot.number for slot in (cache, *slots)])
    threads = [threading.Thread(target=direct, args=(slot,), daemon=True) for slot in slots]
    threads += [threading.Thread(target=cached, args=(cache,), daemon=True)]
    threads += [threading.Thread(target=watch, args=(disk, device, slots), daemon=True)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word != "depth":
            break
        device.take(int(number))
    STOP.set()
    device.restore()
    say("final", n=sum(slot.n for slot in slots))


if __name__ == "__main__":
    main()
