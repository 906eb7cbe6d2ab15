"""What an NVMe target believes of reservations, asked on the target itself. Standard library only: runs there.

nvmet shows nothing of reservations in configfs, and Debian builds it without its debugfs. So the observer is a host of
its own: the target is connected to itself over nvmet's loop transport, with a host id that never registers
(hwlab/guest/nvmet.py), and asks for a reservation report. That answers at once also while a preempt-and-abort
waits for writes in flight, and changes nothing.
"""

import ctypes
import fcntl
import glob
import os
import struct
import time

LUNS = "/run/hwlab/nvmet"
NVME_IOCTL_IO_CMD = 0xC0484E43
RESERVATION_REPORT = 0x0E
EXTENDED = 1
REPORT_BYTES = 4096
HEADER = ENTRY = 64
APPEARS_S = 10.0
# The drills' judgement speaks SCSI: write exclusive 1, exclusive access 3, registrants only 5 and 6, all registrants 7
# and 8.
SCSI_TYPES = {1: 1, 2: 3, 3: 5, 4: 6, 5: 7, 6: 8}


class Passthrough(ctypes.Structure):
    """`struct nvme_passthru_cmd` of linux/nvme_ioctl.h."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("reserved", ctypes.c_uint16),
        ("nsid", ctypes.c_uint32),
        ("cdw2", ctypes.c_uint32),
        ("cdw3", ctypes.c_uint32),
        ("metadata", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("metadata_len", ctypes.c_uint32),
        ("data_len", ctypes.c_uint32),
        ("cdw10", ctypes.c_uint32),
        ("cdw11", ctypes.c_uint32),
        ("cdw12", ctypes.c_uint32),
        ("cdw13", ctypes.c_uint32),
        ("cdw14", ctypes.c_uint32),
        ("cdw15", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_uint32),
        ("result", ctypes.c_uint32),
    )


def parse_report(data: bytes) -> "dict[str, object]":
    """Fields of the witness's `pr` event from an extended report: keys as `0x%016x`, the nexus is a host id."""
    generation, kind, count = struct.unpack_from("<IBH", data)
    registrants = []
    holder = ""
    for number in range(min(count, (len(data) - HEADER) // ENTRY)):
        at = HEADER + number * ENTRY
        status, key = data[at + 2], struct.unpack_from("<Q", data, at + 8)[0]
        nexus = data[at + 16 : at + 32].hex()
        registrants.append({"nexus": nexus, "key": f"0x{key:016x}"})
        if status & 1:
            holder = nexus
    keys = {str(entry["nexus"]): str(entry["key"]) for entry in registrants}
    return {
        "generation": str(generation),
        "type": SCSI_TYPES.get(kind, 0),
        "holder": keys.get(holder, ""),
        "holder_nexus": holder,
        "registrants": registrants,
    }


def same(data: bytes) -> bytes:
    """The part of a report that says who is registered and who holds: a generation alone is no change."""
    return data[4:7] + data[HEADER:]


class NvmetTable:
    """One namespace of nvmet. `folder`: its place in configfs."""

    interval_ms = 25.0

    def __init__(self, folder: str) -> None:
        self.name = "nvmet/" + os.path.basename(folder)
        self.backing = _word(f"{folder}/device_path")
        self._nsid = int(os.path.basename(os.path.realpath(folder)))
        self._fd = os.open(_device("uuid." + _word(f"{folder}/device_uuid")), os.O_RDONLY)
        self._buffer = ctypes.create_string_buffer(REPORT_BYTES)

    def read(self) -> "tuple[bytes, ...]":
        """The state, to be compared with the one before."""
        command = Passthrough(
            opcode=RESERVATION_REPORT,
            nsid=self._nsid,
            addr=ctypes.addressof(self._buffer),
            data_len=REPORT_BYTES,
            cdw10=REPORT_BYTES // 4 - 1,
            cdw11=EXTENDED,
        )
        status = fcntl.ioctl(self._fd, NVME_IOCTL_IO_CMD, command)
        if status:
            raise OSError(f"{self.name}: the reservation report ended with NVMe status 0x{status:x}")
        return (same(self._buffer.raw),)

    def describe(self) -> "dict[str, object]":
        """The state that was read last, in the words of the `pr` event."""
        return parse_report(self._buffer.raw)


def nvmet_tables(lun: str) -> "list[NvmetTable]":
    """The namespaces of this target with that name, all of them for an empty one."""
    return [NvmetTable(folder) for folder in sorted(glob.glob(f"{LUNS}/{lun or '*'}"))]


def _word(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _device(wwid: str) -> str:
    """This host's own device for a namespace: it is there soon after the loop controller was made."""
    end = time.monotonic() + APPEARS_S
    while True:
        for path in glob.glob("/sys/block/nvme*/wwid"):
            if _word(path) == wwid:
                return "/dev/" + path.split("/")[3]
        if time.monotonic() > end:
            raise SystemExit(f"no device of this host is namespace {wwid}: see hwlab-nvmet.service")
        time.sleep(0.1)
