"""Runs inside a node of a lab, pushed there by test_fencing.py: one command, its result as JSON on the last
line.

fencing_guest.py format DEVICE NODE FSTYPE [force]
fencing_guest.py acquire DEVICE NODE [TIMES]
fencing_guest.py write DEVICE NODE       acquire, say so, write until a write fails, say how it ended
fencing_guest.py half DEVICE NODE        as much of an acquisition as a node does that dies in the midst
fencing_guest.py verify DEVICE NODE KEY
fencing_guest.py fill DEVICE BYTE        overwrite the spare area
fencing_guest.py spare DEVICE            which bytes the spare area holds
fencing_guest.py wait-fenced DEVICE      say "listening", wait for the kernel's notice (NVMe), say what it is
fencing_guest.py state | scan | check | try-write DEVICE
"""

import errno
import json
import mmap
import os
import select
import sys
import threading
import time

sys.path[:0] = ["/opt/hactl/lib", "/opt/hactl/site"]
# ruff: noqa: E402

from fencing import (
    FencingError,
    Handle,
    Identity,
    Key,
    Lost,
    acquire,
    check_device,
    probe_pr_out,
    show_key,
    verify,
)
from fencing._contract import may_write
from fencing._discover import look_at
from fencing._disk import open_lun
from fencing._events import FenceEvents
from fencing._format import NewVolume, format_volume, relabel_volume
from fencing._nvmehost import read_notifications
from fencing.model import OUR_TYPE

CLUSTER = "5d0c9a52-0000-4000-8000-000000000001"
SPARE_OFFSET = 3 << 20
WRITERS = 8
WRITE_BYTES = 128 << 10


def identity(node: str) -> Identity:
    return Identity(cluster_uuid=CLUSTER, node=int(node), node_name=f"n{node}")


def floor_file(epoch: int) -> None:
    """The durable record of a real daemon, as small as can be."""
    with open("/root/fencing-floor", "w") as record:
        record.write(str(epoch))
        record.flush()
        os.fsync(record.fileno())


def floor() -> int:
    try:
        return int(open("/root/fencing-floor").read())
    except FileNotFoundError:
        return 0


def settle() -> None:
    """Seconds instead of hactld's minute: a target without a delay of its own has its writes done by then."""
    time.sleep(3)


def take(device: str, node: str) -> tuple[Handle, float]:
    lun = open_lun(device)
    start = time.monotonic()
    handle = acquire([lun], identity(node), floor=floor(), intent=floor_file, clock=time.monotonic, settle=settle)
    return handle, time.monotonic() - start


def told(handle: Handle, took_s: float) -> dict[str, object]:
    return {
        "key": show_key(handle.key.value),
        "epoch": handle.epoch,
        "owner": handle.label and handle.label.owner,
        "took_ms": round(took_s * 1000, 2),
        "doubts": handle.doubts,
        "steps": [[each.step, round((each.end - each.start) * 1000, 2)] for each in handle.timings],
    }


def do_acquire(device: str, node: str, times: str = "1") -> object:
    return [told(*take(device, node)) for _ in range(int(times))]


def do_half(device: str, node: str) -> object:
    """A taker that dies under its preempt: the owner's key is gone, and nobody knows of what it had in flight."""
    port = open_lun(device).port
    [holder] = port.read().holders
    key = identity(node).key(Key.parse(holder).epoch + 1).value
    port.register(0, key, ignore_existing=True)
    port.preempt(key, holder, OUR_TYPE, abort=False)
    return show_key(key)


def new_volume(fstype: str) -> NewVolume:
    return NewVolume(
        name="v1",
        cluster_name="demo",
        fstype=fstype,
        address="10.77.1.50/24",
        clients=("10.77.1.0/24",),
        lease_s=10,
        grace_s=10,
    )


def do_format(device: str, node: str, fstype: str, *force: str) -> object:
    label = format_volume(
        device,
        new_volume(fstype),
        identity(node),
        floor=floor(),
        intent=floor_file,
        clock=time.monotonic,
        force=bool(force),
    )
    return {"epoch": label.epoch, "owner": label.owner, "wwids": label.wwids}


def do_relabel(device: str, node: str) -> object:
    label = relabel_volume(
        device, new_volume("ext4"), identity(node), floor=floor(), intent=floor_file, clock=time.monotonic
    )
    return {"epoch": label.epoch, "volume": label.volume}


def do_write(device: str, node: str) -> object:
    """Many writers, so that the host is frozen with writes at every stage; each ends at its first error."""
    handle, took_s = take(device, node)
    print(json.dumps(told(handle, took_s)), flush=True)
    ended: list[str] = []
    written = [0] * WRITERS

    def writer(index: int) -> None:
        descriptor = os.open(device, os.O_WRONLY | os.O_DIRECT)
        with mmap.mmap(-1, WRITE_BYTES) as buffer:
            while True:
                written[index] += 1
                buffer[:] = bytes([1 + index]) * WRITE_BYTES
                try:
                    os.pwrite(descriptor, buffer, SPARE_OFFSET + index * WRITE_BYTES)
                except OSError as error:
                    ended.append(errno.errorcode.get(error.errno, str(error)))
                    return

    threads = [threading.Thread(target=writer, args=(index,)) for index in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"ended": sorted(ended), "written": written, "verdict": verdict(handle)}


def verdict(handle: Handle) -> str:
    said = verify(handle)
    return f"lost: {said.reason}" if isinstance(said, Lost) else "good"


def do_verify(device: str, node: str, key: str) -> object:
    return verdict(Handle(key=Key.parse(int(key, 16)), luns=(open_lun(device),), label=None))


def do_fill(device: str, byte: str) -> object:
    descriptor = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
    with mmap.mmap(-1, WRITE_BYTES) as buffer:
        buffer[:] = bytes([int(byte)]) * WRITE_BYTES
        return [os.pwrite(descriptor, buffer, SPARE_OFFSET + i * WRITE_BYTES) for i in range(WRITERS)]


def do_spare(device: str) -> object:
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, WRITERS * WRITE_BYTES) as buffer:
        os.preadv(descriptor, [buffer], SPARE_OFFSET)
        return sorted(set(bytes(buffer)))


def do_wait_fenced(device: str) -> object:
    events = FenceEvents()
    print(json.dumps("listening"), flush=True)
    while True:
        select.select([events.fileno()], [], [])
        for event in events.drain():
            notices = [notice.what for notice in read_notifications(event.controller)]
            return {"why": event.why, "notices": notices}


def do_try_write(device: str) -> object:
    return may_write(device, 0)


def do_state(device: str) -> object:
    state = open_lun(device).port.read()
    return {
        "generation": state.generation,
        "keys": [show_key(key) for key in state.keys],
        "holders": [show_key(key) for key in state.holders],
        "nexuses": [registrant.nexus[6:].decode(errors="replace") for registrant in state.registrants],
    }


def do_scan(device: str) -> object:
    disk = look_at(os.path.realpath(device))
    return {"wwid": disk.wwid, "label": str(disk.label), "volume": getattr(disk.label, "volume", None)}


def do_check(device: str) -> object:
    lun = open_lun(device)
    results = [*check_device(lun.port, identity("1").key(0)), probe_pr_out(lun.port, identity("1").key(0))]
    return [[result.name, result.ok, result.detail] for result in results]


def main(arguments: list[str]) -> int:
    what, *rest = arguments
    try:
        print(json.dumps({"ok": globals()[f"do_{what.replace('-', '_')}"](*rest)}))
    except FencingError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
