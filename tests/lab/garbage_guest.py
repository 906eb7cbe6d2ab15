"""A logical unit that answers PERSISTENT RESERVE IN with bytes that mean nothing. Runs on the target of a lab.

    garbage_guest.py FILE SERIAL MODE_FILE

The kernel hands every SCSI command of a TCMU device to the process that has it (linux/target_core_user.h), here with
the emulation of reservations off. All commands but the reservations' are answered rightly, out of FILE. MODE_FILE says
how PERSISTENT RESERVE IN is answered (`ANSWERS`); PERSISTENT RESERVE OUT succeeds and does nothing. Prints a line when
every initiator can have the unit. Standard library and rtslib.
"""

import mmap
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import rtslib_fb

LUN_NUMBER = 60
SECTOR = 512
OP_CMD = 1
GOOD, CHECK_CONDITION = 0, 2
INVALID_OPCODE = bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0])

# By mode: what a PERSISTENT RESERVE IN gets, whatever it asked for
ANSWERS = {
    "ones": lambda length: b"\xff" * length,
    "noise": lambda length: random.Random(7).randbytes(length),
    "odd length": lambda length: struct.pack(">II", 9, 13) + b"\x12" * 13,
    "text": lambda length: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "zeros": bytes,
}


class Unit:
    def __init__(self, path: Path, serial: str, mode: Path) -> None:
        self._file = os.open(path, os.O_RDWR)
        self._sectors = os.fstat(self._file).st_size // SECTOR
        self._serial = serial
        self._mode = mode

    def answer(self, cdb: bytes, data_out: bytes, length: int) -> "tuple[int, bytes, bytes]":
        """(status, data in, sense)."""
        code = cdb[0]
        if code in (0x28, 0x88):  # READ
            at, count = self._where(cdb)
            return GOOD, os.pread(self._file, count * SECTOR, at * SECTOR), b""
        if code in (0x2A, 0x8A):  # WRITE
            os.pwrite(self._file, data_out, self._where(cdb)[0] * SECTOR)
            return GOOD, b"", b""
        if code == 0x12:
            return GOOD, self._inquiry(cdb), b""
        if code == 0x25:
            return GOOD, struct.pack(">II", self._sectors - 1, SECTOR), b""
        if code == 0x9E:
            return GOOD, struct.pack(">QI20x", self._sectors - 1, SECTOR), b""
        if code == 0x1A:
            return GOOD, bytes([3, 0, 0, 0]), b""
        if code == 0x5A:
            return GOOD, bytes([0, 6, 0, 0, 0, 0, 0, 0]), b""
        if code == 0x5E:
            return GOOD, ANSWERS[self._mode.read_text().strip()](length), b""
        if code in (0x00, 0x35, 0x91, 0x5F):  # TEST UNIT READY, SYNCHRONIZE CACHE, PERSISTENT RESERVE OUT
            return GOOD, b"", b""
        return CHECK_CONDITION, b"", INVALID_OPCODE

    def _where(self, cdb: bytes) -> "tuple[int, int]":
        if cdb[0] & 0x80:
            return struct.unpack_from(">QI", cdb, 2)
        at, _, count = struct.unpack_from(">IBH", cdb, 2)
        return at, count

    def _inquiry(self, cdb: bytes) -> bytes:
        if not cdb[1] & 1:
            return bytes([0, 0, 6, 2, 31, 0, 0, 2]) + b"HWLAB   GARBAGE         0001"
        naa = bytes.fromhex(f"6001405{self._serial[:25]}")
        pages = {0: bytes([0, 0x80, 0x83]), 0x80: self._serial.encode(), 0x83: bytes([1, 3, 0, len(naa)]) + naa}
        page = pages.get(cdb[2], b"")
        return bytes([0, cdb[2], 0, len(page)]) + page


def serve(unit: Unit, uio: str, size: int) -> None:
    """The kernel's ring: a mailbox, commands, and their data, all in one mapping."""
    descriptor = os.open(f"/dev/{uio}", os.O_RDWR)
    ring = mmap.mmap(descriptor, size)
    _, _, begin, length = struct.unpack_from("<HHII", ring, 0)
    while True:
        os.read(descriptor, 4)
        while True:
            (head,), (tail,) = struct.unpack_from("<I", ring, 12), struct.unpack_from("<I", ring, 64)
            if head == tail:
                break
            entry = begin + tail
            (long,) = struct.unpack_from("<I", ring, entry)
            if long & 7 == OP_CMD:
                carry_out(unit, ring, entry)
            struct.pack_into("<I", ring, 64, (tail + (long & ~7)) % length)
        os.write(descriptor, bytes(4))


def carry_out(unit: Unit, ring: mmap.mmap, entry: int) -> None:
    (count,) = struct.unpack_from("<I", ring, entry + 8)
    (cdb_at,) = struct.unpack_from("<Q", ring, entry + 24)
    cdb = ring[cdb_at : cdb_at + 16]
    areas = [struct.unpack_from("<QQ", ring, entry + 48 + 16 * index) for index in range(count)]
    out = b"".join(ring[at : at + size] for at, size in areas)
    status, data, sense = unit.answer(cdb, out, len(out))
    if cdb[0] not in (0x2A, 0x8A, 0x5F):
        data = data[: len(out)].ljust(len(out), b"\0")
        for at, size in areas:
            ring[at : at + size], data = data[:size], data[size:]
    ring[entry + 8 : entry + 16] = bytes([status]) + bytes(7)
    ring[entry + 16 : entry + 16 + len(sense)] = sense


def main() -> int:
    path, serial, mode = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    rtslib_fb.RTSRoot._preferred_dbroot = "/etc/target"
    subprocess.run(["modprobe", "target_core_user"], check=True)
    store = rtslib_fb.UserBackedStorageObject(
        "garbage", "hwlab/garbage", path.stat().st_size, wwn=serial, control="nl_reply_supported=-1"
    )
    Path(store.path, "attrib/pgr_support").write_text("0")
    [uio] = [each for each in Path("/sys/class/uio").iterdir() if "/garbage/" in (each / "name").read_text()]
    size = int((uio / "maps/map0/size").read_text(), 0)
    while not Path("/dev", uio.name).exists():
        time.sleep(0.05)
    if os.fork():
        [target] = [each for each in rtslib_fb.RTSRoot().targets if each.fabric_module.name == "iscsi"]
        group = next(iter(target.tpgs))
        lun = rtslib_fb.LUN(group, LUN_NUMBER, store)
        for acl in group.node_acls:
            rtslib_fb.MappedLUN(acl, LUN_NUMBER, lun)
        print(f"naa.6001405{serial[:25]}", flush=True)
        return 0
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    serve(Unit(path, serial, mode), uio.name, size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
