"""A second NFS client that wants the lock: it must be refused for as long as the first one holds it.

Runs on the client host inside the lab (sent there as text: standard library only), in network, mount and UTS
namespaces of its own with an interface, an address, a host name and an NFS client identifier of its own: for
the server this is another machine. Nothing else would do: two mounts of one client share their locks' fate.

JSON lines on stdout. Words on stdin: `read` reads all records back through this client's own mount (it has
cached nothing) and says what it found, `stop` unmounts in order, so that the server forgets this client.
"""

import argparse
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
import zlib

from hwlab.another_machine import become_another_machine
from hwlab.voice import Voice

RECORD_BYTES = 128
REPORT_EVERY_NS = 500_000_000
READ_BYTES = 1 << 20
DIRECTORY = "/run/hactl-drill/thief"


class Thief:
    """Tries the lock without waiting, again and again, and counts how it was answered."""

    def __init__(self, voice: Voice, base: str, log_path: str, pause_s: float) -> None:
        self.stop = threading.Event()
        self.tries = 0
        self.taken = 0
        self._voice = voice
        self._base = base
        self._pause_s = pause_s
        self._log = open(log_path, "w", buffering=1)  # noqa: SIM115 (closed by work)
        self._reported_ns = 0
        self._fd = os.open(f"{base}.lock", os.O_RDWR)

    def work(self) -> None:
        while not self.stop.is_set():
            self._try()
            self.stop.wait(self._pause_s)
        self._log.close()

    def _try(self) -> None:
        submit_ns = time.monotonic_ns()
        outcome = self._attempt()
        done_ns = time.monotonic_ns()
        self.tries += 1
        self._log.write(f"{submit_ns} {done_ns} {outcome}\n")
        slow = done_ns - submit_ns > REPORT_EVERY_NS
        if outcome != "refused" or slow or done_ns - self._reported_ns > REPORT_EVERY_NS:
            self._reported_ns = done_ns
            self._voice.say("try", submit=submit_ns, done=done_ns, outcome=outcome, tries=self.tries)

    def _attempt(self) -> str:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 64, 0, os.SEEK_SET)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return "refused"
            return "error:" + os.strerror(error.errno or 0).replace(" ", "_")
        self.taken += 1
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 64, 0, os.SEEK_SET)
        return "took"

    def close(self) -> None:
        os.close(self._fd)


def intact(run: str, line: bytes) -> int:
    """The number of an intact record, 0 for anything else."""
    if len(line) != RECORD_BYTES - 1:
        return 0
    body, _, checksum = line.rpartition(b" ")
    if f"{zlib.crc32(body):08x}".encode() != checksum:
        return 0
    words = body.rstrip(b".").split(b" ")
    if len(words) != 4 or not words[0].isdigit():
        return 0
    seq = int(words[0])
    return seq if words[3] == hashlib.sha256(f"{run}:{seq}".encode()).hexdigest().encode() else 0


def read_back(run: str, path: str) -> dict[str, object]:
    """All records of the file in file order: runs of consecutive numbers, and what was not a record."""
    fd = os.open(path, os.O_RDONLY)
    chunks = []
    while chunk := os.read(fd, READ_BYTES):
        chunks.append(chunk)
    os.close(fd)
    runs: list[list[int]] = []
    garbled: list[str] = []
    lines = b"".join(chunks).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for line in lines:
        seq = intact(run, line)
        if seq == 0:
            garbled.append(line[:160].decode("ascii", "backslashreplace"))
        elif runs and runs[-1][1] == seq - 1:
            runs[-1][1] = seq
        else:
            runs.append([seq, seq])
    return {"runs": runs, "garbled": len(garbled), "examples": garbled[:5]}


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
    # One identity for all runs: a thief that was killed is known as rebooted, not as one more dead client.
    become_another_machine(args.link, "thief0", args.address, "hactl-thief")
    mount = ["mount", "-t", "nfs4", "-o", args.options, args.source, DIRECTORY]
    subprocess.run(mount, check=True, timeout=60)
    base = os.path.join(DIRECTORY, f"drill-{args.run}")
    thief = Thief(voice, base, args.log, args.pause_ms / 1000)
    voice.say("started", pid=os.getpid(), address=args.address)
    worker = threading.Thread(target=thief.work, daemon=True)
    worker.start()
    for line in sys.stdin:
        word = line.strip()
        if word == "read":
            voice.say("found", **read_back(args.run, f"{base}.rec"))
        if word == "stop":
            thief.stop.set()
            worker.join(20)
            thief.close()
            subprocess.run(["umount", DIRECTORY], check=False, timeout=30)
            voice.say("final", tries=thief.tries, taken=thief.taken)
            return
    subprocess.run(["umount", "-l", DIRECTORY], check=False, timeout=5)
    os._exit(1)


if __name__ == "__main__":
    main()
