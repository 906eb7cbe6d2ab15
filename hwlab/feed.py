"""A script that runs on a host and tells what it sees, line by line."""

import json
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from hwlab import clocks
from hwlab.stage import Stage

PACKAGE = Path(__file__).parent

# Reads its own program from stdin, then goes on reading words there: nothing has to be installed or removed.
BOOT = "import sys; s = sys.stdin; exec(compile(s.read(int(s.readline())), 'drill', 'exec'))"

# A script may share code with others; on the host there is nothing to import it from.
SHARED = re.compile(r"^from hwlab\.(\w+) import .*\n", re.M)

Event = dict[str, Any]


def program(script: Path) -> str:
    """The text of a script, with that of each module of hwlab which it imports in the place of the import."""
    return SHARED.sub(lambda found: (PACKAGE / f"{found[1]}.py").read_text(), script.read_text())


class News:
    """Wakes whoever waits for something that a feed may tell."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, met: Callable[[], bool], deadline_s: float, each: Callable[[], None] | None = None) -> bool:
        """Wait until `met`, at most `deadline_s`; `each` is called now and then meanwhile."""
        end = time.monotonic() + deadline_s
        while True:
            with self._changed:
                if met():
                    return True
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, 0.25))
            if each:
                each()


class Feed:
    """One running script: its events so far (dicts with "t"), in order, each with its time of arrival."""

    def __init__(self, stage: Stage, host: str, script: Path, argv: list[str], news: News) -> None:
        self.host = host
        self.name = script.stem
        self.events: list[Event] = []
        self.ended = False
        self.complaint = ""
        self._news = news
        self._process = stage.stream(host, ["python3", "-u", "-c", BOOT, *argv])
        text = program(script)
        self._readers = [
            threading.Thread(target=self._listen, daemon=True),
            threading.Thread(target=self._overhear, daemon=True),
        ]
        self._write(f"{len(text)}\n{text}")
        for reader in self._readers:
            reader.start()

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it ended; the listener says so

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            event["heard_ms"] = clocks.now_ms()
            self.events.append(event)
            self._news.tell()
        self.ended = True
        self._news.tell()

    def _overhear(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.complaint = line.decode("utf-8", "replace").strip() or self.complaint

    def all(self, kind: str) -> list[Event]:
        return [event for event in list(self.events) if event["t"] == kind]

    def last(self, kind: str) -> Event | None:
        return next((event for event in reversed(list(self.events)) if event["t"] == kind), None)

    def say(self, word: str) -> None:
        self._write(word + "\n")

    def wait(self, kind: str, deadline_s: float) -> Event | None:
        """The last event of a kind, once there is one; None if it ended or took too long."""
        self._news.wait(lambda: self.last(kind) is not None or self.ended, deadline_s)
        return self.last(kind)

    def close(self, deadline_s: float = 5.0) -> None:
        """End the connection; the script ends with it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


CLOCK_S = 20.0


def _pass_on(stdout: IO[bytes], lines: "queue.SimpleQueue[str]") -> None:
    for line in stdout:
        lines.put(line.decode())


def read_clock(stage: Stage, host: str) -> clocks.Clock:
    """Ask a host for its clocks over a connection of its own; OSError if it does not answer in time."""
    process = stage.stream(host, ["python3", "-u", "-c", clocks.ANSWERER])
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Reading in a thread: a frozen host's pipe gives neither a line nor its end, even when ssh is killed.
    threading.Thread(target=_pass_on, args=(stdout, lines), daemon=True).start()
    end = time.monotonic() + CLOCK_S

    def send(text: str) -> None:
        stdin.write(text.encode())
        stdin.flush()

    def receive() -> str:
        try:
            return lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return ""

    try:
        return clocks.ask(host, send, receive)
    finally:
        process.kill()
        process.wait()
