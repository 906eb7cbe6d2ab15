"""Writes numbered stamps past every cache to the node's own disk, for as long as it lives.

Runs on a node inside the lab (sent there as text: standard library only), on the disk of a mounted volume,
in a spare area that nothing else touches: byte 3 MiB + 4096 * node number of the whole disk, O_DIRECT.
Whoever owns the disk succeeds; whoever was fenced must be refused, however late its write comes: a stamp with
a higher number than the disk showed right after the fence is a write by an old owner that landed.

One write is on its way at any time, so the numbers on the disk say exactly which writes landed. JSON lines on
stdout, times in CLOCK_MONOTONIC nanoseconds. The word `stop` on stdin, or its end, ends it.
"""

import argparse
import json
import mmap
import os
import sys
import threading
import time

from hwlab.stamps import BLOCK, STAMP_BASE, stamp, whole_disk

REPORT_EVERY_NS = 200_000_000
REFUSED_PAUSE_S = 0.2


class Stamper:
    """Counts up on the disk and reports, in batches, how each write ended."""

    def __init__(self, path: str, run: str, number: int, direct: bool = True) -> None:
        self._run = run
        self._number = number
        self._fd = os.open(path, os.O_WRONLY | (os.O_DIRECT if direct else 0))
        self._buffer = mmap.mmap(-1, BLOCK)
        self._rows: list[list[object]] = []
        self._said_ns = time.monotonic_ns()
        self._was = ""
        self.n = 0

    def write(self) -> bool:
        """One stamp; False if it was refused."""
        self.n += 1
        self._buffer.seek(0)
        self._buffer.write(stamp(self._run, self._number, self.n, time.time_ns()).ljust(BLOCK, b"\0"))
        submit_ns = time.monotonic_ns()
        outcome = "ok"
        try:
            os.pwritev(self._fd, [self._buffer], STAMP_BASE + BLOCK * self._number)
        except OSError as error:
            outcome = os.strerror(error.errno or 0)
        done_ns = time.monotonic_ns()
        self._rows.append([self.n, submit_ns, done_ns, outcome])
        slow = done_ns - submit_ns > REPORT_EVERY_NS
        if outcome != self._was or slow or done_ns - self._said_ns > REPORT_EVERY_NS:
            self.report()
        self._was = outcome
        return outcome == "ok"

    def report(self) -> None:
        self._said_ns = time.monotonic_ns()
        rows, self._rows = self._rows, []
        line = {"t": "stamps", "at": self._said_ns, "node": self._number, "rows": rows}
        print(json.dumps(line), flush=True)


def wait_for_word(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mount", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--pause-ms", type=float, default=20.0)
    args = parser.parse_args()
    disk = whole_disk(args.mount)
    stamper = Stamper(disk, args.run, args.number)
    stop = threading.Event()
    threading.Thread(target=wait_for_word, args=(stop,), daemon=True).start()
    print(json.dumps({"t": "started", "at": time.monotonic_ns(), "disk": disk}), flush=True)
    while not stop.is_set():
        done = stamper.write()
        stop.wait(args.pause_ms / 1000 if done else REFUSED_PAUSE_S)
    stamper.report()
    print(json.dumps({"t": "final", "at": time.monotonic_ns(), "n": stamper.n}), flush=True)


if __name__ == "__main__":
    main()
