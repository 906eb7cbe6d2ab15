"""What nodes tell each other. Bodies of frames; `wire.py` seals them.

A heartbeat is the sender's whole state, so the newest one replaces all before it: nothing is lost with a lost
packet, and votes, promises and acknowledgements need no messages of their own. A letter is a fragment of what
one hactld sends another.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

HEARTBEAT = 1
LETTER = 2
MAX_AGE_MS = 0xFFFFFFFF


class Role(IntEnum):
    FOLLOWER = 0
    ASPIRANT = 1
    """Asks whether it would be elected; disturbs nobody."""
    CANDIDATE = 2
    LEADER = 3


class Daemon(IntEnum):
    ABSENT = 0
    GONE = 1
    HUNG = 2
    OK = 3


class HeartbeatFlag:
    """Plain integers: an enum's operators would be a tenth of the cost of a packet."""

    GOODBYE: Final = 1
    """The last words of this process."""
    GAVE_UP: Final = 2
    """No gate of mine is open and I will use no acknowledgement of this heartbeat or an earlier one (R7)."""


class EntryFlag:
    OVERDUE: Final = 1
    ACK: Final = 2
    """`seq` is acknowledged for the lease (R2), not only heard."""
    PROMISE: Final = 4
    """I promised the bar `mark`; durable."""
    FREE: Final = 8
    """The last heartbeat before that promise said `gave up`: no lease can rest on me."""


class OrderKind(IntEnum):
    BAR = 1
    LIFT = 2
    WITHDRAW = 3
    """End a bar that was never confirmed."""


class Entry(NamedTuple):
    """What the sender has to say about one other node."""

    number: int
    flags: int
    generation: int
    """Of that node, as last heard; 0 = not heard. Naming the reader's own generation proves the sender lives
    now."""
    seq: int
    """The newest heartbeat heard from that node."""
    held_ms: int
    """How long ago it came; for the round trip time."""
    mark: int
    """The bar promised, 0 = none."""
    age_ms: int
    """R5, when promised."""
    lifted: int
    """The highest mark whose lift the sender knows of."""
    stream: int
    letter: int
    """The next letter expected in that stream of the node's letters to me."""


class Order(NamedTuple):
    """The leader's word on one node. Marks grow: term << 16 | count within the term."""

    number: int
    kind: int
    forced: int
    """1 = promise even if you hear that node."""
    mark: int


class Heartbeat(NamedTuple):
    flags: int
    role: int
    daemon: int
    digest: bytes
    term: int
    leader: int
    """Node number, 0 = none known."""
    voted_for: int
    """In `term`; durable."""
    supports: int
    """The aspirant that would get my vote, 0 = none."""
    barred_mark: int
    """The bar against the sender that it knows of, 0 = none."""
    entries: tuple[Entry, ...]
    orders: tuple[Order, ...]


class Letter(NamedTuple):
    """A fragment of a message. A stream belongs to one pair of processes; its letters are numbered from 0."""

    to_generation: int
    stream: int
    place: int
    last: int
    """1 = the message ends here."""
    content: bytes


class Malformed(Exception):
    """An authentic body that does not parse: another version of the program, or a bug."""


_HEAD = struct.Struct(">BBBB8sQHHHQBB")
_ENTRY = struct.Struct(">HBQQHQIQII")
_ORDER = struct.Struct(">HBBQ")
_LETTER = struct.Struct(">BQIIB")
MAX_CONTENT = 1200


def encode_heartbeat(beat: Heartbeat) -> bytes:
    parts = [
        _HEAD.pack(
            HEARTBEAT,
            beat.flags,
            beat.role,
            beat.daemon,
            beat.digest,
            beat.term,
            beat.leader,
            beat.voted_for,
            beat.supports,
            beat.barred_mark,
            len(beat.entries),
            len(beat.orders),
        )
    ]
    parts += [_ENTRY.pack(*entry) for entry in beat.entries]
    parts += [_ORDER.pack(*order) for order in beat.orders]
    return b"".join(parts)


def encode_letter(letter: Letter) -> bytes:
    return _LETTER.pack(LETTER, letter.to_generation, letter.stream, letter.place, letter.last) + letter.content


def decode(body: bytes) -> Heartbeat | Letter:
    """Raises Malformed."""
    if body[:1] == b"\x02":
        return _decode_letter(body)
    if body[:1] != b"\x01" or len(body) < _HEAD.size:
        raise Malformed(f"no such kind of message: {body[:1].hex() or 'empty'}")
    _, flags, role, daemon, digest, term, leader, voted_for, supports, barred, entries, orders = _HEAD.unpack_from(body)
    middle = _HEAD.size + entries * _ENTRY.size
    end = middle + orders * _ORDER.size
    if len(body) != end:
        raise Malformed(f"{len(body)} bytes for {entries} entries and {orders} orders, {end} expected")
    if role > Role.LEADER or daemon > Daemon.OK:
        raise Malformed(f"no such role or daemon state: {role}, {daemon}")
    view = memoryview(body)
    return Heartbeat(
        flags,
        role,
        daemon,
        digest,
        term,
        leader,
        voted_for,
        supports,
        barred,
        tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(view[_HEAD.size : middle])),
        tuple(Order(*fields) for fields in _ORDER.iter_unpack(view[middle:end])),
    )


def _decode_letter(body: bytes) -> Letter:
    if not _LETTER.size <= len(body) <= _LETTER.size + MAX_CONTENT:
        raise Malformed(f"a letter of {len(body)} bytes")
    _, to_generation, stream, place, last = _LETTER.unpack_from(body)
    return Letter(to_generation, stream, place, last, body[_LETTER.size :])
