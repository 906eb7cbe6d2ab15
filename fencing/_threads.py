"""Works on many LUNs at once, on a few threads that stay.

A command to a LUN is mostly waiting: libsgutils2 and the system calls let go of the interpreter meanwhile, so sixteen
threads keep sixteen LUNs busy. Making a thread costs more than a command; so they are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from fencing.spread import Work, in_turn, worst

THREADS_MAX = 16


class Threads:
    """A `fencing.spread.Spread`. Each LUN's works come one at a time from their caller, who waits here for all."""

    def __init__(self, threads: int = THREADS_MAX) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, works: Sequence[Work]) -> None:
        if len(works) < 2:
            in_turn(works)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "luns")
        raised: list[BaseException] = []

        def run(part: Sequence[Work]) -> None:
            for work in part:
                if raised:
                    return
                try:
                    work()
                except BaseException as error:
                    raised.append(error)

        # a share for each thread: a handful of futures, not one for each LUN
        shares = [works[start :: self._threads] for start in range(min(self._threads, len(works)))]
        wait([self._pool.submit(run, share) for share in shares])
        if raised:
            raise worst(raised)

    def close(self) -> None:
        """Threads end when their last command does; whoever closes does not wait for a LUN that hangs."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None
