"""The order in which a target's disk was written, as its kernel traced it. Standard library only: runs there.

A witness that looks now and then cannot tell which of two writes was first. The kernel's block layer notes each request
as it is issued and as it is completed (tracefs, events block_rq_issue and block_rq_complete): of the labels and the
stamps only, so that little is noted. Kernels without tracefs (User-Mode Linux) have no such record.
"""

import errno
import glob
import os
import re
import stat

TRACEFS = "/sys/kernel/tracing"
EVENTS = ("block_rq_issue", "block_rq_complete")
SECTOR = 512
FIRST, LAST = 1 << 20, 4 << 20
"""The bytes of the disk that are noted: labels and stamps lie between."""
LINE = re.compile(
    r" (?P<at>\d+\.\d+): (?P<event>block_rq_\w+): \d+,\d+ (?P<kind>\w+) (?:\d+ )?\([^)]*\) "
    r"(?P<sector>\d+) \+ (?P<sectors>\d+)"
)
ENTRIES = re.compile(r"entries-in-buffer/entries-written: (?P<kept>\d+)/(?P<written>\d+)")


class WriteOrder:
    """What one disk was asked to write and has written since `forget`."""

    def __init__(self, backing: str, tracefs: str = TRACEFS) -> None:
        """OSError where the kernel traces nothing, or `backing` is no disk."""
        disk = os.stat(lowest(backing))
        if not stat.S_ISBLK(disk.st_mode):
            raise OSError(errno.ENOTBLK, "not a block device", backing)
        number = disk.st_rdev
        self._folder = f"{tracefs}/instances/hwlab-{os.major(number)}-{os.minor(number)}"
        os.makedirs(self._folder, exist_ok=True)
        # the number of a device as the kernel keeps it, not as stat(2) tells it
        device = os.major(number) << 20 | os.minor(number)
        wanted = f'dev == {device} && sector >= {FIRST // SECTOR} && sector < {LAST // SECTOR} && rwbs ~ "*W*"'
        self._write("trace_clock", "mono")
        for event in EVENTS:
            self._write(f"events/block/{event}/filter", wanted)
            self._write(f"events/block/{event}/enable", "1")

    def forget(self) -> None:
        self._write("trace", "")

    def read(self) -> "list[dict[str, int | bool]] | None":
        """All writes since then, in order; None if the kernel kept only the last of them."""
        with open(f"{self._folder}/trace") as file:
            return parse_trace(file.read())

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._folder}/{name}", "w") as file:
            file.write(text)


def parse_trace(text: str) -> "list[dict[str, int | bool]] | None":
    """Of each write: `at` (CLOCK_MONOTONIC, ns), whether it is `done` or just issued, `offset` and `length` (bytes)."""
    entries = ENTRIES.search(text)
    if entries is None or entries["kept"] != entries["written"]:
        return None
    return [
        {
            "at": round(float(found["at"]) * 1e9),
            "done": found["event"] == "block_rq_complete",
            "offset": int(found["sector"]) * SECTOR,
            "length": int(found["sectors"]) * SECTOR,
        }
        for found in LINE.finditer(text)
        if "W" in found["kind"]
    ]


def lowest(backing: str) -> str:
    """The disk itself below a device-mapper device that maps it sector by sector."""
    name = os.path.basename(os.path.realpath(backing))
    below = glob.glob(f"/sys/class/block/{name}/slaves/*")
    return lowest(os.path.basename(below[0])) if below else f"/dev/{name}"


def write_order(backing: str) -> "WriteOrder | None":
    try:
        return WriteOrder(backing)
    except OSError:
        return None
