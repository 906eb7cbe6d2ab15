"""One node's view of a fake unit for preflights: its paths are nexuses, and its floods stand still until they are
ended.

What a real host has in its queues is decided here: of a flood every second write reached the device and waits there,
the others wait in the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fencing.asking import NEVER_REFUSED
from fencing.errors import CONFLICT
from fencing.fake import FakeLogicalUnit, FakeWrite, WriteState
from fencing.port import ReservationPort
from fencing.stamp import BLOCK_BYTES, BLOCKS
from fencing.trial import SCRATCH_OFFSET

FIRST_BLOCK = SCRATCH_OFFSET // BLOCK_BYTES
ACKNOWLEDGED = 64


class FakeDisk:
    """A `trial.Disk`. `hinders` is what stands against writing; `bad_paths` are paths whose reads fail."""

    def __init__(self, unit: FakeLogicalUnit, nexuses: Mapping[str, bytes], hinders: str = "") -> None:
        self.unit = unit
        self.hinders = hinders
        self.bad_paths: dict[str, str] = {}
        self._nexuses = nexuses
        self._ports: dict[str, ReservationPort] = {path: unit.connect(nexus) for path, nexus in nexuses.items()}
        self._flood: list[FakeWrite] = []

    def port(self, path: str) -> ReservationPort:
        return self._ports[path]

    def replace_port(self, path: str, port: ReservationPort) -> None:
        self._ports[path] = port

    def paths(self) -> Sequence[str]:
        return tuple(self._nexuses)

    def hindrance(self) -> str:
        return self.hinders

    def write(self, path: str, block: int, data: bytes) -> str:
        for index in range(len(data) // BLOCK_BYTES):
            piece = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            write = self._write(path, block + index, piece)
            write.arrive()
            if write.state is WriteState.REFUSED:
                return CONFLICT
            write.finish()
        return ""

    def read_scratch(self, path: str) -> bytes:
        blocks = (self.unit.blocks.get(FIRST_BLOCK + index, b"") for index in range(BLOCKS))
        return b"".join(block.ljust(BLOCK_BYTES, b"\0") for block in blocks)

    def read_long(self, path: str, mib: int) -> tuple[int, float, str]:
        return mib << 20, 1.0, self.bad_paths.get(path, "")

    def flood(self, paths: Sequence[str], stamp: bytes) -> None:
        self._flood = [self._write(path, block, stamp) for path in paths for block in range(8)]
        for write in self._flood[::2]:
            write.arrive()

    def flooded(self) -> int:
        return ACKNOWLEDGED if self._flood else 0

    def flood_end(self, wait_s: float) -> dict[str, int]:
        """The host lives on: what waited in it is sent, what the device has is carried out, if it may be."""
        ended: dict[str, int] = {}
        for write in self._flood:
            write.arrive()
            write.finish()
            why = {WriteState.REFUSED: CONFLICT, WriteState.ABORTED: "aborted"}.get(write.state, NEVER_REFUSED)
            ended[why] = ended.get(why, 0) + 1
        if all(write.state is WriteState.LANDED for write in self._flood) and self._flood:
            ended = {NEVER_REFUSED: len(self._flood)}
        else:
            # a writer whose write landed late is refused at its next one
            ended.pop(NEVER_REFUSED, None)
        self._flood = []
        return ended

    def _write(self, path: str, block: int, data: bytes) -> FakeWrite:
        return self.unit.write(self._nexuses[path], FIRST_BLOCK + block, data)
