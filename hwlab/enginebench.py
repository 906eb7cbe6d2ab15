"""The engines side by side, in one lab run on the same kernels: what an idle node sends and spends, at equal detection.

Each engine runs alone: node watch with its builtin engine, then plain corosync. Detection is the time from the kill of
one node's kernel to the line of the journal in which a survivor tells of it, as it reaches this machine. Corosync's
token is sought with which it detects as fast as node watch (consensus = 1.2 of the token, its own minimum; coefficient
0). Every token tried is measured and shown: where none hits the same time, one that is slower and one that is faster
have it between them.

Packets are those that the interface counted, on the network that carries heartbeats and nothing else here. CPU is told
twice: the guest's scheduler account of the one process, and what all of the guest's processes used of the host, less
what the same guest uses with neither engine. The second is exact also on a busy host; the first counts waiting for it.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hwlab import strategy
from hwlab.errors import LabError
from hwlab.faults import NODEWATCH
from hwlab.protocols import Host, Lab, PowerState, Progress
from hwlab.ssh import in_parallel
from hwlab.topology import LAN

WINDOWS = 5
WINDOW_S = 15.0
KILLS = 5
SETTLE_S = 3.0
"""Between the start of the meter and its first reading: starting it costs CPU."""
PATIENCE_S = 90.0
LOST_WITHIN_S = 30.0
MISSES_MAX = 3
FORM_MS = 40
"""What corosync takes beyond token and consensus, for the first guess of a token."""
CLOSE = 0.05
"""Detection times within this share of each other are equal."""
TRIES = 4
"""Tokens tried at most."""
TOKEN_MIN_MS = 130

METER = """
import os, sys, time
def packets():
    with open("/sys/class/net/%s/statistics/tx_packets" % sys.argv[2]) as file:
        return int(file.read())
def spent(pid):
    total = 0
    for task in os.listdir("/proc/%s/task" % pid):
        with open("/proc/%s/task/%s/schedstat" % (pid, task)) as file:
            total += int(file.read().split()[0])
    return total
pid = sys.argv[3]
time.sleep(float(sys.argv[4]))
before, used, began = packets(), spent(pid) if pid else 0, time.monotonic_ns()
time.sleep(float(sys.argv[1]))
passed = time.monotonic_ns() - began
now = spent(pid) if pid else 0
print((packets() - before) * 1e9 / passed, 100 * (now - used) / passed)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One engine as this benchmark sees it. `lost`, `whole`: patterns of a survivor's journal, `%s` = the lost node."""

    name: str
    unit: str
    lost: str
    whole: str


BUILTIN = Kind(
    name="builtin", unit=NODEWATCH, lost=r"node=n%s alive->overdue", whole=r"node=n%s (overdue|unheard)->alive"
)
COROSYNC = Kind(
    name="corosync", unit="corosync", lost=r"QUORUM\] Sync left\[\d+\]:.* %s\b", whole=r"QUORUM\] Members\[3\]"
)


@dataclass(slots=True, kw_only=True)
class Cost:
    """Figures of one engine: one per node and window, or per survivor and kill."""

    engine: str
    token_ms: int = 0
    detect_ms: list[float] = field(default_factory=list)
    packets_per_s: list[float] = field(default_factory=list)
    process_percent: list[float] = field(default_factory=list)
    guest_percent: list[float] = field(default_factory=list)
    """Of one core of the host; empty where the host does not know."""


class Unseen(LabError):
    """A line that should have come did not."""


class Follower:
    """The end of one unit's journal on one host; each line with the time at which it came here."""

    def __init__(self, host: Host, unit: str) -> None:
        argv = ["journalctl", "--follow", "--lines=0", "--output=cat", "--unit", unit]
        self._process = host.command.start(argv, stdout=subprocess.PIPE)
        self._lines: list[tuple[float, str]] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append((time.monotonic(), line.decode(errors="replace")))
                self._news.notify_all()

    def seen(self, pattern: str, since: float, within_s: float | None = None) -> float:
        """When the first such line after `since` came. Unseen if none comes within the time (`PATIENCE_S`)."""
        within_s = PATIENCE_S if within_s is None else within_s
        deadline = time.monotonic() + within_s
        with self._news:
            while True:
                for at, line in self._lines:
                    if at >= since and re.search(pattern, line):
                        return at
                if not self._news.wait(deadline - time.monotonic()):
                    raise Unseen(f"no line like {pattern!r} within {within_s:g} s")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def run(
    lab: Lab, say: Progress, *, windows: int = WINDOWS, window_s: float = WINDOW_S, kills: int = KILLS
) -> list[Cost]:
    """Measure; the first is the guest with neither engine, the second node watch, the others corosync with one token
    each. LabError if something does not come about."""
    lab.up(say)
    hosts = list(lab.hosts.values())
    strategy.install(hosts, say)
    strategy.configure(hosts, say)
    in_parallel(lambda host: stop(host), hosts)
    idle = Cost(engine="neither")
    say(f"neither engine: {windows} windows of {window_s:g} s")
    measure(idle, None, hosts, windows, window_s)
    own = Cost(engine=BUILTIN.name)
    with running(BUILTIN, hosts, say):
        measure(own, BUILTIN, hosts, windows, window_s)
        own.detect_ms = detect(BUILTIN, hosts, kills, say)
    others = list[Cost]()
    while len(others) < TRIES and not bracketed(own, others):
        other = Cost(engine=COROSYNC.name, token_ms=next_token(own, others))
        configure_corosync(hosts, other.token_ms)
        with running(COROSYNC, hosts, say):
            other.detect_ms = detect(COROSYNC, hosts, kills, say)
            measure(other, COROSYNC, hosts, windows, window_s)
        others.append(other)
    return [idle, own, *sorted(others, key=lambda cost: cost.token_ms)]


def bracketed(own: Cost, others: Sequence[Cost]) -> bool:
    """One detects in the time of `own`, or one is slower and one is faster."""
    wanted = statistics.median(own.detect_ms)
    off = [statistics.median(cost.detect_ms) - wanted for cost in others]
    return any(abs(ms) <= CLOSE * wanted for ms in off) or (bool(off) and min(off) < 0 < max(off))


def next_token(own: Cost, others: Sequence[Cost]) -> int:
    """The token to try: what corosync took beyond token and consensus the last time is what it takes the next time."""
    last = others[-1] if others else None
    beyond_ms = statistics.median(last.detect_ms) - 2.2 * last.token_ms if last else FORM_MS
    wanted = statistics.median(own.detect_ms)
    return max(TOKEN_MIN_MS, round((wanted - beyond_ms) / 2.2 / 5) * 5)


def configure_corosync(hosts: Sequence[Host], token_ms: int) -> None:
    argv = ["sh", "-c", f"hactl corosync-conf --token {token_ms} && sync"]
    in_parallel(lambda host: host.command.run(argv, timeout_s=60), hosts)


def stop(host: Host) -> None:
    units = f"hactld {NODEWATCH} {COROSYNC.unit}"
    script = f"systemctl stop {units}; systemctl --quiet disable {units}"
    host.command.run(["sh", "-c", script], timeout_s=60, check=False)


@contextmanager
def running(kind: Kind, hosts: Sequence[Host], say: Progress) -> Iterator[None]:
    """The engine on all hosts, everybody with everybody."""
    say(f"{kind.name}: starting")
    followers = [Follower(host, kind.unit) for host in hosts]
    try:
        since = time.monotonic()
        in_parallel(lambda host: host.command.run(["systemctl", "start", kind.unit], timeout_s=60), hosts)
        for number, follower in enumerate(followers, start=1):
            follower.seen(kind.whole % _other(number) if "%s" in kind.whole else kind.whole, since)
    finally:
        for follower in followers:
            follower.end()
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        in_parallel(stop, hosts)


def _other(number: int) -> int:
    return 1 if number != 1 else 2


def detect(kind: Kind, hosts: Sequence[Host], kills: int, say: Progress) -> list[float]:
    """Kill the last host's kernel so many times; ms until each survivor tells of it.

    A survivor whose ring just broke by itself (a machine without a processor to spare) has lost the victim before it
    is killed, and tells of nothing: that kill is told and made once more. LabError after `MISSES_MAX` of them.
    """
    found, missed, kill = list[float](), 0, 0
    while kill < kills:
        try:
            # Where in its interval the victim is should not be the same each time.
            took = kill_once(kind, hosts, 2.0 + 0.037 * (kill + missed))
        except Unseen as unseen:
            missed += 1
            say(f"{kind.name}: {unseen}; once more")
            if missed > MISSES_MAX:
                raise LabError(f"{kind.name}: {missed} kills were not seen: its rings break by themselves") from unseen
            continue
        kill += 1
        say(f"{kind.name}: kill {kill} seen after {', '.join(f'{ms:.0f}' for ms in took)} ms")
        found += took
    return found


def kill_once(kind: Kind, hosts: Sequence[Host], after_s: float) -> list[float]:
    """Kill the last host; ms until each of the others tells of it, or Unseen. On return it runs again, and all know.

    `after_s`: from when their journals are asked for; they must be heard by then.
    """
    *survivors, victim = hosts
    number = len(hosts)
    followers = [Follower(host, kind.unit) for host in survivors]
    try:
        time.sleep(after_s)
        since = time.monotonic()
        victim.power.off()
        pattern = kind.lost % number if "%s" in kind.lost else kind.lost
        try:
            took = [(follower.seen(pattern, since, LOST_WITHIN_S) - since) * 1000 for follower in followers]
        finally:
            back = time.monotonic()
            victim.power.on()
            victim.command.wait_reachable(PATIENCE_S)
            victim.command.run(["systemctl", "start", kind.unit], timeout_s=60)
            for follower in followers:
                follower.seen(kind.whole % number if "%s" in kind.whole else kind.whole, back)
        return took
    finally:
        for follower in followers:
            follower.end()


def measure(cost: Cost, kind: Kind | None, hosts: Sequence[Host], windows: int, window_s: float) -> None:
    """So many windows on all hosts at once."""
    pids = [main_pid(host, kind) for host in hosts]
    for _ in range(windows):
        meters = []
        for host, pid in zip(hosts, pids, strict=True):
            interface = host.interfaces.get(LAN, LAN)
            argv = ["python3", "-c", METER, f"{window_s:g}", interface, pid, f"{SETTLE_S:g}"]
            meters.append(host.command.start(argv, stdout=subprocess.PIPE))
        time.sleep(SETTLE_S + 0.5)
        before, began = [used_ns(host) for host in hosts], time.monotonic()
        time.sleep(max(1.0, window_s - 1.5))
        passed_ns = (time.monotonic() - began) * 1e9
        after = [used_ns(host) for host in hosts]
        for old, new in zip(before, after, strict=True):
            if old and new:
                spent = sum(ns - old[pid] for pid, ns in new.items() if pid in old)
                cost.guest_percent.append(100 * spent / passed_ns)
        for meter in meters:
            told, _ = meter.communicate(timeout=PATIENCE_S)
            packets, percent = (float(word) for word in told.split())
            cost.packets_per_s.append(packets)
            cost.process_percent.append(percent)


def main_pid(host: Host, kind: Kind | None) -> str:
    if kind is None:
        return ""
    found = host.command.run(["systemctl", "show", "--property=MainPID", "--value", kind.unit]).text.strip()
    if found in ("", "0"):
        raise LabError(f"{kind.unit} does not run on {host.name}")
    return found


def used_ns(host: Host) -> dict[int, int]:
    """What each process of the guest used of this machine; empty where the driver cannot tell."""
    tell = getattr(host.power, "used_ns", None)
    return tell() if tell is not None and host.power.state() is PowerState.ON else {}


def as_dict(costs: Sequence[Cost]) -> dict[str, object]:
    """Medians with all that they were taken of."""
    names = ("detect_ms", "packets_per_s", "process_percent", "guest_percent")
    return {
        "schema": 1,
        "engines": [
            {"engine": cost.engine, "token_ms": cost.token_ms or None}
            | {name: [round(value, 3) for value in getattr(cost, name)] for name in names}
            | {f"{name}_median": _median(getattr(cost, name)) for name in names}
            for cost in costs
        ],
    }


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def as_text(costs: Sequence[Cost]) -> str:
    """A table for people: medians, and the spread."""
    idle = _median(costs[0].guest_percent)
    lines = [f"{'':22} {'detection ms':>20} {'packets/s sent':>20} {'CPU % process':>20} {'CPU % guest, more':>20}"]
    for cost in costs:
        name = cost.engine + (f" (token {cost.token_ms})" if cost.token_ms else "")
        more = [value - idle for value in cost.guest_percent] if idle is not None else []
        shown = [cost.detect_ms, cost.packets_per_s, cost.process_percent, more]
        lines.append(f"{name:22} " + " ".join(f"{_spread(values):>20}" for values in shown))
    lines.append("median (min to max), per node; CPU of one core")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def as_json(costs: Sequence[Cost]) -> str:
    return json.dumps(as_dict(costs), indent=1)
