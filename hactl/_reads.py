"""Long reads through every path of a LUN, past the cache, after everything else.

The reading is a process of its own, at low priority: a device that never answers holds up nothing but that process.
Run as `python -m hactl._reads PATH FROM_MB COUNT_MB SLOW_MS` it prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
PAUSE_S = 0.005
"""After each MiB: others come first, also where the I/O scheduler knows no priorities."""
STALL_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """`trouble`: "" = all was read, fast enough. `next_mb`: where to go on another time."""

    trouble: str
    read_mb: int = 0
    slowest_ms: int = 0
    next_mb: int = 0


def paths_of(device: str, sysfs: Path = Path("/sys/class/block")) -> list[str]:
    """The devices through which a LUN is reached: those below a multipath map, else the device itself."""
    name = os.path.basename(os.path.realpath(device))
    with contextlib.suppress(OSError):
        if (sysfs / name / "dm/uuid").read_text().startswith("mpath-"):
            return [f"/dev/{slave.name}" for slave in sorted((sysfs / name / "slaves").iterdir())]
    return [device]


async def read_path(path: str, *, from_mb: int, count_mb: int, slow_ms: int) -> Read:
    """Never raises: what goes wrong is the result."""
    argv = ["-m", "hactl._reads", path, str(from_mb), str(count_mb), str(slow_ms)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    limit_s = STALL_S + count_mb * (slow_ms / 1000 + PAUSE_S)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), limit_s)
        return Read(**json.loads(output))
    except TimeoutError:
        return Read(trouble=f"{path}: no answer in {limit_s:.0f} s")
    except (ValueError, TypeError):
        return Read(trouble=f"{path}: the reading process ended with status {process.returncode}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):  # a process that waits for a device ends when that answers
            await asyncio.wait_for(process.wait(), 1.0)


def read_here(path: str, from_mb: int, count_mb: int, slow_ms: int) -> Read:
    """Blocking. Begins anew at the start of the device when its end is reached."""
    slowest_s, done, at = 0.0, 0, from_mb
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            size_mb = os.lseek(fd, 0, os.SEEK_END) // MIB
            count_mb = min(count_mb, size_mb)
            with mmap.mmap(-1, MIB) as buffer:  # a page boundary, as O_DIRECT wants
                while done < count_mb:
                    at = at if at < size_mb else 0
                    began = time.monotonic()
                    if os.preadv(fd, [buffer], at * MIB) != MIB:
                        return Read(trouble=f"{path}: a short read at {at} MiB", read_mb=done, next_mb=at)
                    slowest_s = max(slowest_s, time.monotonic() - began)
                    done, at = done + 1, at + 1
                    time.sleep(PAUSE_S)
        finally:
            os.close(fd)
    except OSError as error:
        return Read(trouble=f"{path}: {error.strerror} at {at} MiB", read_mb=done, next_mb=at)
    slow = slowest_s * 1000 > slow_ms
    trouble = f"{path}: a MiB took {slowest_s * 1000:.0f} ms, more than {slow_ms}" if slow else ""
    return Read(trouble=trouble, read_mb=done, slowest_ms=round(slowest_s * 1000), next_mb=at)


def main() -> None:
    path, *numbers = sys.argv[1:]
    os.nice(19)  # the I/O priority follows it
    result = read_here(path, *(int(number) for number in numbers))
    print(json.dumps({name: getattr(result, name) for name in Read.__dataclass_fields__}))


if __name__ == "__main__":
    main()
