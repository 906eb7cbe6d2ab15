"""The client's load: numbered, checksummed records appended to one file, each made durable, and one lock.

Runs on the client inside the lab: its text is sent there, so it uses the standard library only. It says what
happens as JSON lines on stdout and takes words on stdin: `stop` ends it in order, end of input ends it at once,
so that nothing is left behind when the drill is interrupted.

Every record is written and fsynced before the next: an acknowledgement is a promise that the record survives.
The log keeps, for each record, when it was handed to the kernel and when it was acknowledged (CLOCK_MONOTONIC
nanoseconds) or how it failed; a failed one has an unknown outcome. The lock is held on a file of its own, and
that file is written through the locked descriptor: a lock that the client lost answers EIO there.
"""

import argparse
import fcntl
import hashlib
import os
import sys
import threading
import time
import zlib

from hwlab.voice import Voice

RECORD_BYTES = 128
TOUCH_EVERY_S = 0.5
REPORT_EVERY_NS = 200_000_000
STUCK_AFTER_S = 20.0


def record(run: str, seq: int, mono_ns: int, real_ns: int) -> bytes:
    """One line of RECORD_BYTES: number, two times, a payload of this run and number alone, a checksum."""
    payload = hashlib.sha256(f"{run}:{seq}".encode()).hexdigest()
    head = f"{seq:010d} {mono_ns:018d} {real_ns:019d} {payload}"
    body = head.ljust(RECORD_BYTES - 10, ".")
    return f"{body} {zlib.crc32(body.encode()):08x}\n".encode()


class Writer:
    """Appends records until told to stop. One record is on its way at any time."""

    def __init__(self, voice: Voice, run: str, path: str, log_path: str, pause_s: float) -> None:
        self.acknowledged = 0
        self.errors = 0
        self.stop = threading.Event()
        self._voice = voice
        self._run = run
        self._pause_s = pause_s
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._log = open(log_path, "w", buffering=1)  # noqa: SIM115 (closed by work)
        self._reported_ns = 0

    def work(self) -> None:
        seq = 0
        while not self.stop.is_set():
            seq += 1
            self._one(seq)
            self.stop.wait(self._pause_s)
        self._log.close()

    def _one(self, seq: int) -> None:
        submit_ns = time.monotonic_ns()
        data = record(self._run, seq, submit_ns, time.time_ns())
        try:
            written = os.write(self._fd, data)
            os.fsync(self._fd)
        except OSError as error:
            self._failed(seq, submit_ns, os.strerror(error.errno or 0))
            return
        if written != len(data):
            self._failed(seq, submit_ns, f"short write of {written} bytes")
            return
        done_ns = time.monotonic_ns()
        self._log.write(f"{seq} {submit_ns} {done_ns} ok\n")
        self.acknowledged += 1
        # After a gap the first acknowledgement is news: whoever waits for it sees it at once.
        if done_ns - submit_ns > REPORT_EVERY_NS or done_ns - self._reported_ns > REPORT_EVERY_NS:
            self._reported_ns = done_ns
            self._voice.say("ack", seq=seq, ack=done_ns, acknowledged=self.acknowledged)

    def _failed(self, seq: int, submit_ns: int, why: str) -> None:
        self.errors += 1
        self._log.write(f"{seq} {submit_ns} {time.monotonic_ns()} {why.replace(' ', '_')}\n")
        self._voice.say("error", seq=seq, why=why)
        self.stop.wait(0.2)


class Keeper:
    """Holds the byte-range lock and uses it: a write through a lost lock fails."""

    def __init__(self, voice: Voice, path: str) -> None:
        self.stop = threading.Event()
        self.trouble = ""
        self.touches = 0
        self._voice = voice
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 64, 0, os.SEEK_SET)

    def work(self) -> None:
        while not self.stop.wait(TOUCH_EVERY_S):
            self.touch()

    def touch(self) -> None:
        try:
            os.pwrite(self._fd, f"{self.touches:020d}\n".encode(), 0)
            os.fsync(self._fd)
        except OSError as error:
            self.trouble = self.trouble or os.strerror(error.errno or 0)
            self._voice.say("lock-error", why=os.strerror(error.errno or 0))
            return
        self.touches += 1

    def release(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 64, 0, os.SEEK_SET)


def listen() -> str:
    """Wait for the word `stop`; "" means that the other end went away."""
    for line in sys.stdin:
        if line.strip() == "stop":
            return "stop"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--pause-ms", type=float, default=10.0)
    args = parser.parse_args()
    voice = Voice()
    os.makedirs(os.path.dirname(args.log), exist_ok=True)
    base = os.path.join(args.directory, f"drill-{args.run}")
    keeper = Keeper(voice, f"{base}.lock")
    writer = Writer(voice, args.run, f"{base}.rec", args.log, args.pause_ms / 1000)
    voice.say("started", pid=os.getpid())
    threads = [threading.Thread(target=part.work, daemon=True) for part in (writer, keeper)]
    for thread in threads:
        thread.start()
    if not listen():
        os._exit(1)
    writer.stop.set()
    keeper.stop.set()
    for thread in threads:
        thread.join(STUCK_AFTER_S)
    if any(thread.is_alive() for thread in threads):
        voice.say("stuck", acknowledged=writer.acknowledged)
        os._exit(3)
    keeper.touch()
    voice.say(
        "final",
        acknowledged=writer.acknowledged,
        errors=writer.errors,
        touches=keeper.touches,
        lock_trouble=keeper.trouble,
    )
    # Said before it is done: an attempt of the other client that succeeds before this moment was a theft.
    voice.say("releasing")
    keeper.release()
    voice.say("released")


if __name__ == "__main__":
    main()
