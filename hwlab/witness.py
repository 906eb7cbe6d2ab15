"""What the disk itself believes, seen from the target: reservations, the label's epoch, the drill's stamps.

Runs on the target inside the lab (sent there as text: standard library only) and takes no part in anything.
It samples the target's own view (LIO's in configfs, or nvmet's: hwlab/nvmet_table.py) every few milliseconds and
reports each change between two times:
`since`, when the last sample that did not show it began, and `at`, when the sample that shows it was
complete: the change happened in between. Right after each change it reads the stamps from the backing device, and
goes on reading them, and then the label, until the label names a new epoch: a key leaves the target's table
before the command that removes it has waited for what was in flight, and only then does the new owner write.
Which of two writes between two looks was first the kernel may have noted (hwlab/writeorder.py): once the new label is
there, all writes since the last change are said.

JSON lines on stdout, times in CLOCK_MONOTONIC nanoseconds. The word `stop` on stdin, or its end, ends it.
"""

import argparse
import ctypes
import glob
import json
import mmap
import os
import re
import stat
import sys
import threading
import time

from hwlab.nvmet_table import NvmetTable, nvmet_tables
from hwlab.writeorder import write_order

CORE = "/sys/kernel/config/target/core"
LABEL_OFFSETS = (1 << 20, (1 << 20) + (64 << 10))
STAMP_BASE = 3 << 20
BLOCK = 4096
STAMP_EVERY_NS = 250_000_000
FOLLOW_NS = 15_000_000_000
ALIVE_EVERY_NS = 1_000_000_000
KEY = re.compile(r"(?P<nexus>\S+)\s+Key: (?P<key>0x[0-9a-f]+)")
HOLDER = re.compile(r"Initiator: (?P<nexus>\S+)")
TYPES = {
    "Write Exclusive Access": 1,
    "Exclusive Access": 3,
    "Write Exclusive Access, Registrants Only": 5,
    "Exclusive Access, Registrants Only": 6,
    "Write Exclusive Access, All Registrants": 7,
    "Exclusive Access, All Registrants": 8,
}


def say(kind: str, **fields: object) -> None:
    print(json.dumps({"t": kind, **fields}), flush=True)


class Backing:
    """Aligned reads of the device behind one LUN, past the page cache where it is a block device."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY
        if stat.S_ISBLK(os.stat(path).st_mode):
            flags |= os.O_DIRECT
        self._fd = os.open(path, flags)

    def read(self, offset: int, length: int) -> bytes:
        # A new one each time: one that was kept went on showing what it held first, on User-Mode Linux, in some runs.
        buffer = mmap.mmap(-1, length)
        count = os.preadv(self._fd, [buffer], offset)
        data = bytes(buffer[:count])
        buffer.close()
        return data


def parse_stamp(block: bytes) -> "tuple[str, int]":
    """(run, number) of a stamp block; ("", 0) where there is none."""
    words = block.split(b"\n", 1)[0].decode("ascii", "replace").split(" ")
    if len(words) < 5 or words[0] != "hactl-stamp" or not words[4].isdigit():
        return "", 0
    return words[2], int(words[4])


def parse_label(block: bytes) -> "dict[str, object]":
    """Epoch, owner and more of a label copy: the JSON object in the block, whatever surrounds it."""
    start = block.find(b"{")
    if start < 0:
        return {}
    try:
        fields, _ = json.JSONDecoder().raw_decode(block[start:].decode("utf-8", "replace"))
    except ValueError:
        return {}
    return {name: fields.get(name) for name in ("epoch", "owner", "seq", "wanted") if name in fields}


def parse_registrants(text: str) -> "list[tuple[str, str]]":
    """(nexus, key) of every registration in `res_pr_registered_i_pts`."""
    return [(match["nexus"], match["key"]) for match in KEY.finditer(text)]


def parse_holder(text: str) -> str:
    """The nexus that holds the reservation, "" for none."""
    match = HOLDER.search(text)
    return match["nexus"] if match else ""


def parse_type(text: str) -> int:
    """SCSI's code of the reservation's type, 0 for none."""
    return TYPES.get(text.partition("Type: ")[2].strip(), 0)


class LioTable:
    """What LIO believes of one backstore. `folder`: its place in configfs."""

    interval_ms = 10.0

    def __init__(self, folder: str) -> None:
        self.name = "/".join(folder.split("/")[-2:])
        self._folder = folder
        self._state = (b"", b"")
        with open(f"{folder}/udev_path") as path:
            self.backing = path.read().strip()

    def read(self) -> "tuple[bytes, ...]":
        """The state, to be compared with the one before."""
        self._state = (self._word("res_pr_registered_i_pts"), self._word("res_holder"))
        return self._state

    def describe(self) -> "dict[str, object]":
        """The state that was read last, in the words of the `pr` event."""
        registrants = parse_registrants(self._state[0].decode())
        holder = parse_holder(self._state[1].decode())
        return {
            "generation": self._word("res_pr_generation").decode().strip(),
            "type": parse_type(self._word("res_pr_type").decode()),
            "holder": dict(registrants).get(holder, ""),
            "holder_nexus": holder,
            "registrants": [{"nexus": nexus, "key": key} for nexus, key in registrants],
        }

    def _word(self, name: str) -> bytes:
        # Opened anew each time: an open configfs file answers with what it read first. Bare system calls,
        # since each costs a guest of an emulated lab as much as hundreds of lines of Python.
        fd = os.open(f"{self._folder}/pr/{name}", os.O_RDONLY)
        data = os.read(fd, 65536)
        os.close(fd)
        return data


class Lun:
    """One logical unit of the target: its last state, and what changed since."""

    def __init__(self, table: "LioTable | NvmetTable", numbers: "list[int]") -> None:
        self.name = table.name
        self._table = table
        self._numbers = numbers
        self._state: tuple[bytes, ...] = ()
        self._area = b""
        self._copies: list[bytes] = []
        self._stamps: dict[int, tuple[str, int]] = {}
        self._labels: list[dict[str, object]] = []
        self._began_ns = time.monotonic_ns()
        self._stamps_ns = 0
        self._epoch = 0
        self._follow_until_ns = 0
        self._epoch_followed = 0
        self._epoch_told = 0
        self.gap_ns_max = 0
        self._backing = Backing(table.backing)
        self._order = write_order(table.backing)

    def sample(self) -> None:
        began_ns = time.monotonic_ns()
        state = self._table.read()
        at_ns = time.monotonic_ns()
        since_ns, self._began_ns = self._began_ns, began_ns
        self.gap_ns_max = max(self.gap_ns_max, at_ns - since_ns)
        if state != self._state:
            self._state = state
            say("pr", device=self.name, since=since_ns, at=at_ns, **self._table.describe())
            self._follow_until_ns, self._epoch_followed = at_ns + FOLLOW_NS, self._epoch
            if self._order is not None:
                self._order.forget()
            self.stamps(always=True)
        elif self._follows(at_ns) or at_ns - self._stamps_ns > STAMP_EVERY_NS:
            self.stamps(always=False)
        if self._order is not None and self._epoch != self._epoch_told:
            self._epoch_told = self._epoch
            say("writes", device=self.name, at=at_ns, rows=self._order.read())

    def _follows(self, at_ns: int) -> bool:
        return at_ns < self._follow_until_ns and self._epoch == self._epoch_followed

    def stamps(self, always: bool) -> None:
        """Read the stamp area, then the label; say the stamps if they must be said, or changed.

        A label with a new epoch may be newer than the stamps that were read before it: then both are read again."""
        epoch = self._epoch
        data = self._backing.read(STAMP_BASE, BLOCK * (max(self._numbers) + 1))
        self._stamps_ns = time.monotonic_ns()
        self._label()
        # Most readings show what the last one did: parsing each would take the time that a witness needs to look.
        same = data == self._area
        self._area = data
        found = self._stamps if same else self._parse(data)
        news = self._epoch != epoch
        if always or news or found != self._stamps:
            self._stamps = found
            rows = [{"node": n, "run": run, "n": count} for n, (run, count) in found.items()]
            say("stamps", device=self.name, at=self._stamps_ns, epoch_after=self._epoch, rows=rows)
        if news:
            self.stamps(always=True)

    def _parse(self, data: bytes) -> "dict[int, tuple[str, int]]":
        return {n: parse_stamp(data[n * BLOCK : (n + 1) * BLOCK]) for n in self._numbers}

    def _label(self) -> None:
        copies = [self._backing.read(offset, BLOCK) for offset in LABEL_OFFSETS]
        at_ns = time.monotonic_ns()
        if copies == self._copies:
            return
        self._copies = copies
        labels = [parse_label(copy) for copy in copies]
        epochs = [label.get("epoch") for label in labels]
        self._epoch = max([self._epoch, *(epoch for epoch in epochs if isinstance(epoch, int))])
        if labels != self._labels:
            self._labels = labels
            say("label", device=self.name, at=at_ns, copies=labels)


def run_first(priority: int) -> bool:
    """Ask for a place before ordinary processes: a witness that sleeps through a change is no witness."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
        ctypes.CDLL(None).mlockall(3)
    except OSError:
        return False
    return True


def wait_for_word(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", default=CORE)
    parser.add_argument("--numbers", required=True, help="node numbers, comma separated")
    parser.add_argument("--lun", default="", help="watch this LUN only")
    parser.add_argument("--interval-ms", type=float, default=0.0, help="0: what suits the target")
    args = parser.parse_args()
    folders = sorted(os.path.dirname(path) for path in glob.glob(f"{args.core}/*/{args.lun or '*'}/pr"))
    tables: list[LioTable | NvmetTable] = [*map(LioTable, folders), *nvmet_tables(args.lun)]
    luns = [Lun(table, [int(word) for word in args.numbers.split(",")]) for table in tables]
    interval_ms = args.interval_ms or max((table.interval_ms for table in tables), default=LioTable.interval_ms)
    stop = threading.Event()
    threading.Thread(target=wait_for_word, args=(stop,), daemon=True).start()
    first = run_first(10)
    say("started", at=time.monotonic_ns(), devices=[lun.name for lun in luns], realtime=first)
    alive_ns, samples = time.monotonic_ns(), 0
    while not stop.is_set():
        for lun in luns:
            lun.sample()
        samples += 1
        if time.monotonic_ns() - alive_ns > ALIVE_EVERY_NS:
            alive_ns = time.monotonic_ns()
            gap_ns = max((lun.gap_ns_max for lun in luns), default=0)
            say("alive", at=alive_ns, samples=samples, gap_ns=gap_ns)
            samples = 0
            for lun in luns:
                lun.gap_ns_max = 0
        time.sleep(interval_ms / 1000)
    for lun in luns:
        lun.stamps(always=True)
    gap_ns = max((lun.gap_ns_max for lun in luns), default=0)
    say("final", at=time.monotonic_ns(), gap_ns=gap_ns)


if __name__ == "__main__":
    main()
