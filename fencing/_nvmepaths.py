"""An NVMe namespace with several paths (native multipath): no read waits for one that is silent.

The kernel chooses the path of each command, and gives a silent one up only when its keep-alive ran out; until then what
went there waits. A read changes nothing, so after a while it is simply sent again, beside the one that waits: with the
I/O policies `queue-depth` and `round-robin` that one, or one after it, goes down another path. (With `numa`, the
kernel's own choice, it follows the first; then the kernel's patience decides, as on one path.) Commands that change
something are sent once, and waited for: their end is the proof of what they did.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from fencing._nvme import NvmePort
from fencing.errors import NotDelivered, PortError
from fencing.model import Capabilities, PrType, ReservationState
from fencing.port import ReservationPort

ANSWER_S = 0.6
"""A read that is not answered for so long is sent again."""
ASKS = 4
"""So often at most, whatever the number of paths: with `round-robin` a read may meet the silent path again, since
others send commands, too. All of them together take less than the 3 s after which a silent disk is given up."""
WAITING_MAX = 32
"""Reads that may wait at a time. A handle is checked once a second, and with `round-robin` each check leaves one on the
silent path: enough for some 30 s until the kernel gives that up, so for a keep-alive of 20 s."""


class NvmePaths:
    """A ReservationPort over all paths to a namespace. Used by one thread at a time."""

    def __init__(
        self,
        device: str,
        open_port: Callable[[str], ReservationPort] = NvmePort,
        paths: Callable[[str], int] | None = None,
        answer_s: float = ANSWER_S,
    ) -> None:
        """`paths` tells how many paths there are now. OSError as of `open_port`, whose port must be able to read on
        several threads at a time."""
        self._port = open_port(device)
        self._paths = paths or count_paths
        self._answer_s = answer_s
        self._threads = ThreadPoolExecutor(WAITING_MAX, thread_name_prefix=f"read-{os.path.basename(device)}")
        self._waiting: set[Future[ReservationState]] = set()

    @property
    def device(self) -> str:
        return self._port.device

    def read(self) -> ReservationState:
        """What the first answer says of those that were asked for by this call: none that began before it counts."""
        if self._paths(self.device) < 2:
            return self._port.read()
        self._waiting = {each for each in self._waiting if not each.done()}
        asked: set[Future[ReservationState]] = set()
        failure: PortError | None = None
        for _ in range(min(ASKS, WAITING_MAX - len(self._waiting))):
            sent = self._threads.submit(self._port.read)
            self._waiting.add(sent)
            answered, asked = wait({*asked, sent}, self._answer_s, FIRST_COMPLETED)
            for each in answered:
                try:
                    return each.result()
                except PortError as error:
                    failure = error
        waits = f"asked {len(asked)} times, {self._answer_s:g} s apart; {len(self._waiting)} reads wait"
        what = f"no answer by any path: {waits}"
        raise failure or NotDelivered(what, device=self.device, operation="read", sense="no answer")

    def capabilities(self) -> Capabilities:
        return self._port.capabilities()

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        self._port.register(old, new, ignore_existing)

    def reserve(self, key: int, type: PrType) -> None:
        self._port.reserve(key, type)

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        self._port.preempt(key, victim, type, abort)

    def release(self, key: int, type: PrType) -> None:
        self._port.release(key, type)

    def clear(self, key: int) -> None:
        self._port.clear(key)

    def close(self) -> None:
        """Threads end when their last read does; whoever closes does not wait for a path that hangs."""
        self._port.close()
        self._threads.shutdown(wait=False)


def count_paths(device: str, sys_block: Path = Path("/sys/class/block")) -> int:
    """Controllers through which the kernel reaches a namespace, in whatever state; of one without a head, 1."""
    subsystem = sys_block / os.path.basename(os.path.realpath(device)) / "device"
    return len(list(subsystem.glob("nvme*/state"))) or 1
