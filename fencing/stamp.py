"""Stamps: blocks of a scratch area that tell who wrote them, and in which round."""

from __future__ import annotations

import struct
from collections import Counter

BLOCK_BYTES = 4096
BLOCKS = 256
"""Blocks of the scratch area: 1 MiB."""

MAGIC = b"HACTL-PREFLIGHT\x00"
SECTOR_BYTES = 512
BLANK = (0, 0)
"""(node, round) of a sector of zeros."""
UNKNOWN = (-1, -1)
"""... of one that nobody stamped."""

_STAMP = struct.Struct("<16sHH492x")
assert _STAMP.size == SECTOR_BYTES


def stamped(*, node: int, round: int) -> bytes:
    """One block; every sector of it says the same, so that a torn one shows."""
    return _STAMP.pack(MAGIC, node, round) * (BLOCK_BYTES // SECTOR_BYTES)


def counted(area: bytes) -> list[tuple[int, int, int]]:
    """(node, round, sectors) of everything in the area, ascending."""
    alike = Counter(area[at : at + SECTOR_BYTES] for at in range(0, len(area), SECTOR_BYTES))
    found: Counter[tuple[int, int]] = Counter()
    for sector, count in alike.items():
        found[_read(sector)] += count
    return sorted((node, round, count) for (node, round), count in found.items())


def only_stamps(area: bytes) -> bool:
    """Nothing in it but zeros and stamps: what an interrupted preflight leaves."""
    return all((node, round) != UNKNOWN for node, round, _ in counted(area))


def _read(sector: bytes) -> tuple[int, int]:
    if not any(sector):
        return BLANK
    if len(sector) < SECTOR_BYTES:
        return UNKNOWN
    magic, node, round = _STAMP.unpack(sector)
    return (node, round) if sector == _STAMP.pack(MAGIC, node, round) and magic == MAGIC else UNKNOWN
