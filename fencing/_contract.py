"""Run the contract of fencing/contract.py on real devices: three nexuses to one LUN that nobody else uses.

    python3 -m fencing._contract cases /dev/sda /dev/sdb /dev/sdc
    python3 -m fencing._contract compare --seed 1 --count 500 /dev/sda /dev/sdb /dev/sdc

The three devices are one LUN over three sessions with different initiator names. Destroys registrations, and
the data in the LUN's spare area from byte 3 MiB on. Prints one JSON object for each case or difference.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from fencing._disk import block_name, wwid
from fencing._nvme import NvmePort
from fencing._prioctl import PrIoctlPort
from fencing._sgutils import SgPort
from fencing.contract import (
    CASES,
    PROFILES,
    A,
    Case,
    ContractBroken,
    NotApplicable,
    Operation,
    Rig,
    explanation,
    outcome,
    random_operations,
)
from fencing.errors import FencingError
from fencing.fake import FakeLogicalUnit
from fencing.fakenvme import FakeNamespace
from fencing.model import OUR_TYPE, Capabilities, ReservationState
from fencing.port import ReservationPort

SPARE_OFFSET = 3 << 20
BLOCK_BYTES = 4096
MEASUREMENTS = 200


class _ReadBySg(PrIoctlPort):
    """The PR ioctls of a kernel that cannot read through them: what they did is read by SG_IO."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._reader = SgPort(device)

    def read(self) -> ReservationState:
        return self._reader.read()

    def capabilities(self) -> Capabilities:
        return self._reader.capabilities()


PORTS: dict[str, Callable[[str], ReservationPort]] = {
    "sg": SgPort,
    "nvme": NvmePort,
    "pr": PrIoctlPort,
    "pr-sg": _ReadBySg,
}


def real_rig(port: str, devices: Sequence[str]) -> Rig:
    """Three devices that are one LUN. ValueError if they are not."""
    if len(devices) != 3 or len({wwid(device) for device in devices}) != 1:
        raise ValueError("three devices of one WWID are needed")
    first, second, third = (PORTS[port](device) for device in devices)
    return Rig(
        ports=(first, second, third),
        may_write=lambda nexus: may_write(devices[nexus], nexus),
        traits=PROFILES[profile_of(port, devices[0])],
    )


def profile_of(port: str, device: str) -> str:
    """Which of PROFILES a device has through a kind of port."""
    kind = "nvme" if block_name(device).startswith("nvme") else "sd"
    return f"pr ioctls of {kind}" if port.startswith("pr") else {"nvme": "nvme", "sd": "scsi"}[kind]


def fake_rig(nvme: bool = False) -> Rig:
    unit = FakeNamespace() if nvme else FakeLogicalUnit()
    first, second, third = (unit.connect(name) for name in (b"1", b"2", b"3"))
    ports: tuple[ReservationPort, ReservationPort, ReservationPort] = (first, second, third)
    traits = PROFILES["nvme" if nvme else "scsi"]
    return Rig(ports=ports, may_write=lambda nexus: unit.may_write(str(nexus + 1).encode()), traits=traits)


def may_write(device: str, nexus: int) -> bool:
    """One write past the cache, into a block of this nexus."""
    descriptor = os.open(device, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, BLOCK_BYTES) as buffer:
            os.pwrite(descriptor, buffer, SPARE_OFFSET + nexus * BLOCK_BYTES)
    except OSError as error:
        if error.errno == errno.EBADE:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def run_cases(rig: Rig, cases: dict[str, Case]) -> Iterator[dict[str, object]]:
    for name, case in cases.items():
        start = time.monotonic()
        try:
            rig.reset()
            case(rig)
            failure = ""
        except (ContractBroken, FencingError, OSError) as error:
            failure = f"{type(error).__name__}: {error}"
        except NotApplicable as error:
            yield {"case": name, "ok": True, "skipped": str(error)}
            continue
        yield {"case": name, "ok": not failure, "failure": failure, "ms": _ms(time.monotonic() - start)}


def compare(real: Rig, fake: Rig, operations: Iterator[Operation]) -> Iterator[dict[str, object]]:
    """Both get the same commands; differences are told; where states differ, both begin anew."""
    for rig in (real, fake):
        rig.reset()
    for number, operation in enumerate(operations):
        before = fake.ports[0].read().describe()
        there, here = outcome(real, operation), outcome(fake, operation)
        if there != here:
            yield {
                "number": number,
                "explained": explanation(operation, there, here, fake.traits),
                "before": before,
                "operation": {name: str(value) for name, value in asdict(operation).items()},
                "real": str(there),
                "fake": str(here),
            }
        if there[1:] != here[1:]:
            for rig in (real, fake):
                rig.reset()


def measure(rig: Rig) -> dict[str, object]:
    """Milliseconds for one command each, median and worst of many."""
    first, second, _ = rig.ports
    rounds: dict[str, list[float]] = {}

    def timed(name: str, act: Callable[[], object]) -> None:
        start = time.monotonic()
        act()
        rounds.setdefault(name, []).append(time.monotonic() - start)

    victim = A + 1
    for _ in range(MEASUREMENTS):
        rig.reset()
        timed("register", lambda: first.register(0, A))
        timed("reserve", lambda: first.reserve(A, OUR_TYPE))
        second.register(0, victim)
        timed("read", first.read)
        timed("preempt", lambda: second.preempt(victim, A, OUR_TYPE))
        timed("release", lambda: second.release(victim, OUR_TYPE))
    rig.reset()
    return {name: {"median_ms": _ms(statistics.median(t)), "max_ms": _ms(max(t))} for name, t in rounds.items()}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="fencing._contract")
    parser.add_argument("what", choices=("cases", "compare", "measure"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--port", choices=PORTS, default="sg")
    parser.add_argument("devices", nargs=3)
    options = parser.parse_args(arguments)
    rig = real_rig(options.port, options.devices)
    if options.what == "measure":
        print(json.dumps(measure(rig)))
        return 0
    if options.what == "cases":
        results = [*run_cases(rig, CASES), *run_cases(rig, {"reset": Rig.reset})]
        failed = [result for result in results if not result["ok"]]
    else:
        nvme = block_name(options.devices[0]).startswith("nvme")
        results = list(compare(rig, fake_rig(nvme), random_operations(options.seed, options.count)))
        failed = [result for result in results if not result["explained"]]
    for result in results:
        print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
