"""Frames: what every datagram looks like, and why each bad one is thrown away.

    clear    magic 2 | version 1 | zero 1 | sender 2 | generation 8 | seq 8          (22 bytes, big endian)
    sealed   ChaCha20-Poly1305 over the body, the clear part as associated data, nonce = 4 zero bytes + seq

Each process of each node seals under a key of its own: HKDF-SHA256(cluster key, salt = cluster uuid, info =
sender and generation). A generation is used by one process only (it is on stable storage before the first
frame leaves) and seq grows with every frame, so no nonce repeats under a key. A body is sealed once and may
go to every peer.

Replay: within a generation a window refuses what was seen. Frames of an older generation are refused. A
*newer* generation is not believed before it names our own generation (`core.py`): recordings of earlier
processes cannot do that.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC = b"hN"
VERSION = 1
KEY_BYTES = 32
_HEADER = struct.Struct(">2sBBHQQ")
HEADER_BYTES = _HEADER.size
TAG_BYTES = 16
MAX_DATAGRAM = 1400
MAX_BODY = MAX_DATAGRAM - HEADER_BYTES - TAG_BYTES
WINDOW = 256
"""How far behind the newest frame a late one may be."""

# Why a datagram was dropped. These are the keys of `View.drops`.
TOO_SHORT = "shorter than any frame"
NOT_OURS = "not a node watch frame"
OTHER_VERSION = "other protocol version: install the same hactl on every node"
UNKNOWN_SENDER = "node number not in the configuration"
WRONG_KEY = "wrong cluster key or not our cluster"
WRONG_SOURCE = "right key, but not from the address configured for that node"
REPLAYED = "replayed or duplicated"
OLD_GENERATION = "of an earlier generation of its sender"
OWN_NUMBER = "with our own node number"
MALFORMED = "authentic, but not understood"
TOO_LONG = "longer than any frame"


class Header(NamedTuple):
    sender: int
    generation: int
    seq: int


def parse_header(datagram: bytes) -> Header | str:
    """The clear part, or the reason for dropping the datagram. Nothing in it is trusted yet."""
    if len(datagram) < HEADER_BYTES + TAG_BYTES:
        return TOO_SHORT if datagram[:2] == MAGIC or len(datagram) < 2 else NOT_OURS
    magic, version, zero, sender, generation, seq = _HEADER.unpack_from(datagram)
    if magic != MAGIC:
        return NOT_OURS
    if version != VERSION or zero:
        return OTHER_VERSION
    if len(datagram) > MAX_DATAGRAM:
        return TOO_LONG
    return Header(sender, generation, seq)


class Cipher:
    """Seals and opens the frames of one process of one node."""

    __slots__ = ("_aead", "generation", "sender")

    def __init__(self, cluster_key: bytes, cluster_uuid: str, sender: int, generation: int) -> None:
        info = b"hactl node watch 1" + struct.pack(">HQ", sender, generation)
        derive = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=cluster_uuid.encode(), info=info)
        self._aead = ChaCha20Poly1305(derive.derive(cluster_key))
        self.sender = sender
        self.generation = generation

    def seal(self, seq: int, body: bytes) -> bytes:
        """A whole datagram. Each seq once only."""
        header = _HEADER.pack(MAGIC, VERSION, 0, self.sender, self.generation, seq)
        return header + self._aead.encrypt(_nonce(seq), body, header)

    def open(self, datagram: bytes, seq: int) -> bytes | None:
        """The body of a datagram whose header named `seq`; None if it was not sealed by this process."""
        try:
            return self._aead.decrypt(_nonce(seq), datagram[HEADER_BYTES:], datagram[:HEADER_BYTES])
        except InvalidTag:
            return None


class ReplayWindow:
    """Which seqs of one generation were seen: the newest, and a bit for each of the WINDOW before it."""

    __slots__ = ("_mask", "newest")

    def __init__(self) -> None:
        self.newest = 0
        self._mask = 0

    def accept(self, seq: int) -> bool:
        """True the first time. Call only with an authentic seq."""
        ahead = seq - self.newest
        if ahead > 0:
            self._mask = (self._mask << ahead | 1) & ((1 << WINDOW) - 1) if ahead < WINDOW else 1
            self.newest = seq
            return True
        bit = 1 << -ahead
        if -ahead >= WINDOW or self._mask & bit:
            return False
        self._mask |= bit
        return True


def _nonce(seq: int) -> bytes:
    return b"\0\0\0\0" + seq.to_bytes(8, "big")
