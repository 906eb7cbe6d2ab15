"""Clocks of hosts, mapped to the drill's own.

A host's clock is asked over an open connection, many times; the exchange with the shortest round trip bounds
the error by half of it. Two clocks per host: the monotonic one of the scripts that the drill runs there, and
the wall clock of the records that the nodes keep. Offsets hold for one boot, named by the kernel's boot id.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

NS_PER_MS = 1_000_000
EXCHANGES = 20

# A clock that strays further than this was not steered by NTP (500 ppm at most): it runs at a rate of its own.
OWN_RATE = 0.001

# Runs on the host. The first line names the boot, then one line answers each line.
ANSWERER = """
import json, sys, time
print(json.dumps(open("/proc/sys/kernel/random/boot_id").read().strip()), flush=True)
for line in sys.stdin:
    print(json.dumps([time.monotonic_ns(), time.time_ns()]), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question: sent and received by the drill's clock, answered by the host's two clocks (all ms)."""

    sent_ms: float
    received_ms: float
    mono_ms: float
    wall_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """host time = drill time + offset, for one boot of a host.

    A clock that runs at a rate of its own has that offset at `at_ms` of the drill's clock.
    """

    host: str
    boot: str
    mono_offset_ms: float
    wall_offset_ms: float
    uncertainty_ms: float
    at_ms: float = 0.0
    rate: float = 1.0
    """Seconds of the host's clocks per second of the drill's."""

    def from_mono_ns(self, value: int) -> float:
        return self._straight(value / NS_PER_MS - self.mono_offset_ms)

    def from_wall_ms(self, value: float) -> float:
        return self._straight(value - self.wall_offset_ms)

    def _straight(self, value: float) -> float:
        return self.at_ms + (value - self.at_ms) / self.rate if self.rate != 1.0 else value


def settle(host: str, boot: str, exchanges: Iterable[Exchange]) -> Clock:
    """The clock that the best exchange shows; ValueError without any."""
    best = min(exchanges, key=lambda exchange: exchange.received_ms - exchange.sent_ms)
    middle = (best.sent_ms + best.received_ms) / 2
    return Clock(
        host=host,
        boot=boot,
        mono_offset_ms=best.mono_ms - middle,
        wall_offset_ms=best.wall_ms - middle,
        uncertainty_ms=(best.received_ms - best.sent_ms) / 2,
        at_ms=middle,
    )


def combine(before: Clock, after: Clock) -> Clock:
    """One clock for the time between two readings of the same boot; its error covers what it drifted.

    A clock with a rate of its own (all clocks of a host share it) is taken to have had it all the time.
    """
    if before.boot != after.boot:
        raise ValueError(f"{before.host} was rebooted: its clocks of two boots cannot be combined")
    drift = abs(after.mono_offset_ms - before.mono_offset_ms)
    wall = abs(after.wall_offset_ms - before.wall_offset_ms)
    elapsed_ms = after.at_ms - before.at_ms
    if elapsed_ms > 0 and drift > OWN_RATE * elapsed_ms:
        rate = 1 + (after.mono_offset_ms - before.mono_offset_ms) / elapsed_ms
        error_ms = max(before.uncertainty_ms, after.uncertainty_ms) + abs(drift - wall) / 2
        return replace(before, rate=rate, uncertainty_ms=error_ms)
    return replace(
        before,
        mono_offset_ms=(before.mono_offset_ms + after.mono_offset_ms) / 2,
        wall_offset_ms=(before.wall_offset_ms + after.wall_offset_ms) / 2,
        uncertainty_ms=max(before.uncertainty_ms, after.uncertainty_ms) + max(drift, wall) / 2,
    )


def now_ms() -> float:
    """The drill's clock."""
    return time.monotonic_ns() / NS_PER_MS


def ask(host: str, send: Callable[[str], None], receive: Callable[[], str], exchanges: int = EXCHANGES) -> Clock:
    """Read a host's clocks through an open connection to ANSWERER; OSError when it ends early."""
    boot = json.loads(_line(host, receive))
    found = []
    for _ in range(exchanges):
        sent_ms = now_ms()
        send("?\n")
        mono_ns, wall_ns = json.loads(_line(host, receive))
        found.append(
            Exchange(
                sent_ms=sent_ms,
                received_ms=now_ms(),
                mono_ms=mono_ns / NS_PER_MS,
                wall_ms=wall_ns / NS_PER_MS,
            )
        )
    return settle(host, boot, found)


def _line(host: str, receive: Callable[[], str]) -> str:
    line = receive()
    if not line:
        raise OSError(f"{host} ended the clock probe early")
    return line
