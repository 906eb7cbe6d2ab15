"""What a file system's first bytes say: its type, its name, whether its log must be replayed (pure)."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

# Enough for either kind: ext4's superblock is the 1024 bytes at offset 1024, xfs's are the first 512.
BYTES_NEEDED = 4096

_EXT_MAGIC = 0xEF53
_EXT_HAS_JOURNAL = 0x0004
_EXT_NEEDS_RECOVERY = 0x0004
_EXT_STATE_ERRORS = 0x0002
_XFS_MAGIC = b"XFSB"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperBlock:
    """`dirty` is whether the log holds changes to replay; None where the superblock does not tell (xfs keeps
    that in the log itself). `had_errors`: the file system was marked damaged and wants a check."""

    fstype: str
    uuid: uuid.UUID
    dirty: bool | None
    had_errors: bool


def parse(head: bytes) -> SuperBlock | None:
    """None: neither ext4 nor xfs. `head` is the first BYTES_NEEDED bytes of the partition."""
    if head[:4] == _XFS_MAGIC:
        return SuperBlock(fstype="xfs", uuid=uuid.UUID(bytes=head[32:48]), dirty=None, had_errors=False)
    if len(head) < 2048 or struct.unpack_from("<H", head, 1024 + 56)[0] != _EXT_MAGIC:
        return None
    state = struct.unpack_from("<H", head, 1024 + 58)[0]
    compat, incompat = struct.unpack_from("<II", head, 1024 + 92)
    if not compat & _EXT_HAS_JOURNAL:
        return None
    return SuperBlock(
        fstype="ext4",
        uuid=uuid.UUID(bytes=head[1024 + 104 : 1024 + 120]),
        dirty=bool(incompat & _EXT_NEEDS_RECOVERY),
        had_errors=bool(state & _EXT_STATE_ERRORS),
    )
