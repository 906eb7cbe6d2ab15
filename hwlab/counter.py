"""How fast this machine's time stamp counter goes, measured.

QEMU hands the counter on to its guests as it is. A guest that measures it at boot, while this machine is busy, may find
a seventh of its speed: then all its clocks run seven times too fast, and its target drops every host for silent.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time

from hwlab.errors import LabError

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_TRIES = 50
_MEASURE_S = 0.1


@functools.cache
def counter_khz() -> int:
    """Ticks per millisecond; exact to some millionths. LabError on a machine that has no such counter."""
    if platform.machine() != "x86_64":
        raise LabError(f"driver qemu needs an x86-64 machine, this one is {platform.machine()}")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_READ)
    place = ctypes.c_char.from_buffer(code)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))

    def pair() -> tuple[int, int]:
        """Counter and clock of one moment: of several tries the one that took least."""
        tries = []
        for _ in range(_TRIES):
            before_ns, ticks, after_ns = time.monotonic_ns(), read(), time.monotonic_ns()
            tries.append((after_ns - before_ns, ticks, before_ns))
        return min(tries)[1:]

    first_ticks, first_ns = pair()
    time.sleep(_MEASURE_S)
    last_ticks, last_ns = pair()
    return round((last_ticks - first_ticks) * 1_000_000 / (last_ns - first_ns))
