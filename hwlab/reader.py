"""A third NFS client that reads what the first one writes: what it sees may never be older than what was promised.

Runs on the client host inside the lab (sent there as text: standard library only), in namespaces of its own like the
thief, with its own address and NFS identity. The mount caches nothing (noac, lookupcache=none, O_DIRECT): every read
asks the server. One read is begun every `--pause-ms`, each by a thread of its own, also while others wait: a server
that comes back to life for a moment is asked again and again, not only what it was asked before.

A read asks for all records from shortly before the newest one seen to the end of the file; its value is the number of
the last intact record. The log has a line when a read begins (`begun N NS`, CLOCK_MONOTONIC) and one when it ends
(`done N BEGUN_NS DONE_NS value|error:...`).

Words on stdin: `pin` talk to the MAC that has the served address now, whatever anybody announces later; `free` undoes
that; `stop` ends it in order.
"""

import argparse
import hashlib
import mmap
import os
import subprocess
import sys
import threading
import time
import zlib

from hwlab.another_machine import become_another_machine
from hwlab.voice import Voice

RECORD_BYTES = 128
READ_BYTES = 1 << 16
PENDING_MAX = 100
REPORT_EVERY_NS = 500_000_000
DIRECTORY = "/run/hactl-drill/reader"
LINK = "reader0"


def number(run: str, line: bytes) -> int:
    """The number of an intact record of this run, 0 for anything else."""
    body, _, checksum = line.rstrip(b"\n").rpartition(b" ")
    words = body.rstrip(b".").split(b" ")
    if f"{zlib.crc32(body):08x}".encode() != checksum or len(words) != 4 or not words[0].isdigit():
        return 0
    seq = int(words[0])
    return seq if words[3] == hashlib.sha256(f"{run}:{seq}".encode()).hexdigest().encode() else 0


def highest(run: str, data: bytes) -> int:
    """The number of the last intact record in what a read returned, 0 without any."""
    whole = len(data) // RECORD_BYTES * RECORD_BYTES
    for start in range(whole - RECORD_BYTES, -1, -RECORD_BYTES):
        if seq := number(run, data[start : start + RECORD_BYTES]):
            return seq
    return 0


class Reader:
    """Begins reads at a steady pace until told to stop."""

    def __init__(self, voice: Voice, run: str, path: str, log_path: str, pause_s: float) -> None:
        self.stop = threading.Event()
        self.begun = self.done = self.pending = 0
        self._voice = voice
        self._run = run
        self._pause_s = pause_s
        self._lock = threading.Lock()
        # The offset only ever grows over records that this client has seen: they cannot go away again.
        self._seen = 0
        self._offset = 0
        self._reported_ns = 0
        self._log = open(log_path, "w", buffering=1)  # noqa: SIM115 (lives as long as the process)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def work(self) -> None:
        while not self.stop.wait(self._pause_s):
            if self.pending < PENDING_MAX:
                with self._lock:
                    self.begun += 1
                    self.pending += 1
                    n = self.begun
                threading.Thread(target=self._one, args=(n,), daemon=True).start()

    def _one(self, n: int) -> None:
        with self._lock:
            offset = self._offset
        submit_ns = time.monotonic_ns()
        self._log.write(f"begun {n} {submit_ns}\n")
        try:
            found, end = self._read_on(offset)
        except OSError as error:
            done_ns, outcome = time.monotonic_ns(), "error:" + os.strerror(error.errno or 0).replace(" ", "_")
        else:
            done_ns = time.monotonic_ns()
            # The newest record seen so far lies behind `offset`: an answer without it is an old one, and says so.
            outcome = str(found)
            self._advance(found, end)
        with self._lock:
            self.pending -= 1
            self.done += 1
        self._log.write(f"done {n} {submit_ns} {done_ns} {outcome}\n")
        if outcome.startswith("error") or done_ns - self._reported_ns > REPORT_EVERY_NS:
            self._reported_ns = done_ns
            self._voice.say("read", submit=submit_ns, done=done_ns, outcome=outcome, reads=self.done)

    def _read_on(self, offset: int) -> tuple[int, int]:
        """(number of the last record, where the file ends): everything from an offset on."""
        found, buffer = 0, mmap.mmap(-1, READ_BYTES)
        while True:
            size = os.preadv(self._fd, [buffer], offset)
            found = highest(self._run, buffer[:size]) or found
            offset += size // RECORD_BYTES * RECORD_BYTES
            if size < READ_BYTES:
                return found, offset

    def _advance(self, found: int, end: int) -> None:
        """Read on from what was found, leaving the end of it to be read again."""
        with self._lock:
            if found > self._seen:
                self._seen, self._offset = found, max(self._offset, (end - 8192) // 4096 * 4096)


def neighbour(*words: str) -> str:
    done = subprocess.run(["ip", "neigh", *words], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout


def pin(address: str) -> str:
    """Make the neighbour entry of the served address permanent as it is; returns the MAC."""
    shown = neighbour("show", address, "dev", LINK).split()
    mac = shown[shown.index("lladdr") + 1]
    neighbour("replace", address, "lladdr", mac, "nud", "permanent", "dev", LINK)
    return mac


def free(address: str) -> None:
    """Forget the entry: the next packet asks for the owner of the address."""
    neighbour("del", address, "dev", LINK)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True, help="ADDRESS:/ of the export")
    parser.add_argument("--options", default="vers=4.2")
    parser.add_argument("--link", required=True)
    parser.add_argument("--address", required=True, help="own address with prefix length")
    parser.add_argument("--run", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--pause-ms", type=float, default=100.0)
    args = parser.parse_args()
    voice = Voice()
    os.makedirs(os.path.dirname(args.log), exist_ok=True)
    os.makedirs(DIRECTORY, exist_ok=True)
    become_another_machine(args.link, LINK, args.address, "hactl-reader")
    mount = ["mount", "-t", "nfs4", "-o", f"{args.options},noac,lookupcache=none", args.source, DIRECTORY]
    subprocess.run(mount, check=True, timeout=60)
    path = os.path.join(DIRECTORY, f"drill-{args.run}.rec")
    reader = Reader(voice, args.run, path, args.log, args.pause_ms / 1000)
    voice.say("started", pid=os.getpid(), address=args.address)
    threading.Thread(target=reader.work, daemon=True).start()
    served = args.source.partition(":")[0]
    for line in sys.stdin:
        word = line.strip()
        if word == "pin":
            voice.say("pinned", mac=pin(served))
        if word == "free":
            free(served)
            voice.say("freed")
        if word == "stop":
            reader.stop.set()
            until = time.monotonic() + 20
            while reader.pending and time.monotonic() < until:
                time.sleep(0.05)
            voice.say("final", begun=reader.begun, done=reader.done)
            # Reads that still hang would keep umount from ending.
            subprocess.run(["umount", "-l", DIRECTORY], check=False, timeout=5)
            os._exit(0)
    subprocess.run(["umount", "-l", DIRECTORY], check=False, timeout=5)
    os._exit(1)


if __name__ == "__main__":
    main()
