"""The files of one host as `hactl.record` sees them: a stand-in for `pathlib.Path`, in memory.

Below /run nothing survives a crash of the host; elsewhere what was flushed does. `write` stands in for
`hactl.record.write_atomic`: a write that was not flushed when the host crashed may be lost, and one that is being
flushed takes its time, in which the process may be stopped or die with the outcome open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import loop

if TYPE_CHECKING:
    from .world import World


class Files:
    def __init__(self, world: World) -> None:
        self.world = world
        self.present: dict[str, str] = {}
        self.durable: dict[str, str] = {}
        self.slow = False
        """The disk of this host takes long to flush now."""

    def crash(self) -> None:
        """What was never flushed survives or not, as it happens; /run does not."""
        survivors = dict(self.durable)
        for name, text in self.present.items():
            if not name.startswith("/run/") and text != self.durable.get(name) and self.world.chance(0.5):
                survivors[name] = text
        self.present, self.durable = survivors, dict(survivors)

    def flush_ms(self) -> float:
        draw = self.world.random
        return draw.uniform(100, 800) if self.slow or draw.random() < 0.03 else draw.uniform(1, 12)


class SimPath:
    """The few methods of Path that `hactl.record` uses."""

    def __init__(self, files: Files, name: str) -> None:
        self.files = files
        self.name = name

    def __truediv__(self, part: str) -> SimPath:
        return SimPath(self.files, f"{self.name}/{part}")

    def __str__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2].rpartition(".")[0]

    def exists(self) -> bool:
        return self.name in self.files.present

    def read_text(self, errors: str = "strict") -> str:
        try:
            return self.files.present[self.name]
        except KeyError:
            raise FileNotFoundError(self.name) from None

    def unlink(self) -> None:
        self.read_text()
        del self.files.present[self.name]
        self.files.durable.pop(self.name, None)

    def glob(self, pattern: str) -> Iterator[SimPath]:
        start, end = self.name + "/", pattern.removeprefix("*")
        names = [name for name in self.files.present if name.startswith(start) and name.endswith(end)]
        return iter([SimPath(self.files, name) for name in names])

    def __lt__(self, other: SimPath) -> bool:
        return self.name < other.name


def write(path: SimPath, text: str, *, stable: bool) -> None:
    """Stands in for `hactl.record.write_atomic`; blocks for as long as a flush takes."""
    files = path.files
    files.present[path.name] = text
    if not stable:
        return
    process = files.world.current
    loop.pause(process, files.flush_ms())
    files.durable[path.name] = text
