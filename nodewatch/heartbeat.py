"""What nodes tell each other. Bodies of frames; `wire.py` seals them.

A heartbeat is the sender's whole state, so the newest one replaces all before it: nothing is lost with a lost packet,
and votes, promises and acknowledgements need no messages of their own. Its two halves: *said* changes only when
something happens, *pulses* (one per entry) change every time. A reader compares the bytes of the first half with those
it read before and, nearly always, has nothing more to do than to look at the pulse about itself: that is what keeps an
idle node cheap.

    heartbeat   kind 1 | length of said 2 | number 4 | said | pulses
    letter      kind 1 | ...        a fragment of what one hactld sends another, see `letters.py`
    request     kind 1 | ...        please ask that node, I do not hear it; and what came of it: `prober.py`
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from nodewatch.arbitration import Word

HEARTBEAT = 1
LETTER = 2
ASKING = 3
"""A heartbeat whose sender wants to hear one at once."""
HEARTBEATS: Final = (HEARTBEAT, ASKING)
REQUEST = 4
TOLD = 5
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
    SERVES: Final = 4
    """I have gates: a volume is, or was just, served here."""
    USES_WITNESS: Final = 8
    """W1 of `arbitration.py`."""


class EntryFlag:
    OVERDUE: Final = 1
    ACK: Final = 2
    """`seq` is acknowledged for the lease (R2), not only heard."""
    PROMISE: Final = 4
    """I promised the bar `mark`; durable."""
    FREE: Final = 8
    """The last heartbeat before that promise said `gave up`: no lease can rest on me."""
    WITNESSED: Final = 16
    """The witness acknowledges `seq`, too (W3)."""


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
    """Of that node, as last heard; 0 = not heard. Naming the reader's own generation proves the sender lives now."""
    mark: int
    """The bar promised, 0 = none."""
    lifted: int
    """The highest mark whose lift the sender knows of."""
    stream: int
    letter: int
    """The next letter expected in that stream of the node's letters to me."""
    links: int = 0
    """Bit k: heard on link k within overdue_ms."""


class Pulse(NamedTuple):
    """What belongs to an entry and changes with every heartbeat."""

    seq: int
    """The newest heartbeat heard from that node; acknowledged if the entry says so."""
    held_ms: int
    """How long ago it came; for the round trip time."""
    age_ms: int
    """R5, when promised."""


class Order(NamedTuple):
    """The leader's word on one node. Marks grow: term << 16 | count within the term."""

    number: int
    kind: int
    forced: int
    """1 = promise even if you hear that node."""
    mark: int


class Said(NamedTuple):
    flags: int
    role: int
    daemon: int
    digest: bytes
    config_version: int
    previous: bytes
    """The digest that the sender's configuration came from (`membership.py`)."""
    durable_term: int
    """The sender accepts no change of an older term any more, not even after a crash."""
    accepted_term: int
    accepted: bytes
    """The digest of the change that the sender accepted in that term, durable; zero = none."""
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
    witness: tuple[Word, ...] = ()
    """What the sender knows of each LUN of the witness, in the order of their WWIDs."""


class Letter(NamedTuple):
    """A fragment of a message. A stream belongs to one pair of processes; its letters are numbered from 0."""

    to_generation: int
    stream: int
    place: int
    last: int
    """1 = the message ends here."""
    content: bytes


class Request(NamedTuple):
    """The sender hears nothing of node `subject`: would you ask it?"""

    subject: int
    ident: int


class Told(NamedTuple):
    """The sender heard node `subject` so long before this left. Hearsay: for people, never for a lease or a bar."""

    subject: int
    ident: int
    heard_ms_ago: int


class Malformed(Exception):
    """An authentic body that does not parse: another version of the program, or a bug."""


_START = struct.Struct(">BHI")
_HEAD = struct.Struct(">BBB8sL8sQQ8sQHHHQBBB")
_ENTRY = struct.Struct(">HBQQQIIB")
_ORDER = struct.Struct(">HBBQ")
_WORD = struct.Struct(">IH")
PULSE_BYTES = 14
_PULSE = struct.Struct(">QHI")
_LETTER = struct.Struct(">BQIIB")
_REQUEST = struct.Struct(">BHQ")
_TOLD = struct.Struct(">BHQI")
MAX_CONTENT = 1200


def encode_said(said: Said) -> bytes:
    *head, entries, orders, witness = said
    parts = [_HEAD.pack(*head, len(entries), len(orders), len(witness))]
    parts += [_ENTRY.pack(*entry) for entry in entries]
    parts += [_ORDER.pack(*order) for order in orders]
    parts += [_WORD.pack(*word) for word in witness]
    return b"".join(parts)


def encode_heartbeat(said: bytes, pulses: list[Pulse], *, number: int = 0, asking: bool = False) -> bytes:
    """A whole body; one pulse for each entry of what was said. `number` counts the heartbeats that go to everybody, so
    that a reader can tell how many it missed; 0 = out of turn, for one peer."""
    start = _START.pack(ASKING if asking else HEARTBEAT, len(said), number & 0xFFFFFFFF)
    return start + said + b"".join([_PULSE.pack(*pulse) for pulse in pulses])


def encode_letter(letter: Letter) -> bytes:
    return _LETTER.pack(LETTER, letter.to_generation, letter.stream, letter.place, letter.last) + letter.content


def encode_request(request: Request) -> bytes:
    return _REQUEST.pack(REQUEST, *request)


def encode_told(told: Told) -> bytes:
    return _TOLD.pack(TOLD, *told)


def kind_of(body: bytes) -> int:
    """HEARTBEAT, ASKING, LETTER, REQUEST or TOLD. Raises Malformed."""
    if body and HEARTBEAT <= body[0] <= TOLD:
        return body[0]
    raise Malformed(f"no such kind of message: {body[:1].hex() or 'empty'}")


def number_of(body: bytes) -> int:
    """Of a heartbeat, see `encode_heartbeat`. Raises Malformed."""
    if len(body) < _START.size:
        raise Malformed(f"a heartbeat of {len(body)} bytes")
    return int(_START.unpack_from(body)[2])


def split_heartbeat(body: bytes) -> tuple[bytes, bytes]:
    """What was said, and the pulses, both as bytes. Raises Malformed."""
    if len(body) < _START.size:
        raise Malformed(f"a heartbeat of {len(body)} bytes")
    end = _START.size + _START.unpack_from(body)[1]
    if len(body) < end or (len(body) - end) % _PULSE.size:
        raise Malformed(f"a heartbeat of {len(body)} bytes that ends in the middle")
    return body[_START.size : end], body[end:]


def decode_said(said: bytes, pulses: bytes) -> Said:
    """Raises Malformed, also when there is not one pulse per entry."""
    if len(said) < _HEAD.size:
        raise Malformed(f"a heartbeat that says only {len(said)} bytes")
    *head, entries, orders, words = _HEAD.unpack_from(said)
    middle = _HEAD.size + entries * _ENTRY.size
    tail = middle + orders * _ORDER.size
    end = tail + words * _WORD.size
    if len(said) != end or len(pulses) != entries * _PULSE.size:
        raise Malformed(f"{len(said)} + {len(pulses)} bytes for {entries} entries and {orders} orders")
    if head[1] > Role.LEADER or head[2] > Daemon.OK:
        raise Malformed(f"no such role or daemon state: {head[1]}, {head[2]}")
    view = memoryview(said)
    entry_fields = _ENTRY.iter_unpack(view[_HEAD.size : middle])
    order_fields = _ORDER.iter_unpack(view[middle:tail])
    return Said._make(
        (
            *head,
            tuple(map(Entry._make, entry_fields)),
            tuple(map(Order._make, order_fields)),
            tuple(map(Word._make, _WORD.iter_unpack(view[tail:]))),
        )
    )


def pulse_at(pulses: bytes, place: int) -> Pulse:
    """The pulse that belongs to the entry at `place`."""
    return Pulse(*_PULSE.unpack_from(pulses, place * _PULSE.size))


def decode_letter(body: bytes) -> Letter:
    """Raises Malformed."""
    if not _LETTER.size <= len(body) <= _LETTER.size + MAX_CONTENT:
        raise Malformed(f"a letter of {len(body)} bytes")
    _, to_generation, stream, place, last = _LETTER.unpack_from(body)
    return Letter(to_generation, stream, place, last, body[_LETTER.size :])


def decode_request(body: bytes) -> Request:
    """Raises Malformed."""
    if len(body) != _REQUEST.size:
        raise Malformed(f"a request of {len(body)} bytes")
    return Request(*_REQUEST.unpack(body)[1:])


def decode_told(body: bytes) -> Told:
    """Raises Malformed."""
    if len(body) != _TOLD.size:
        raise Malformed(f"an answer to a request of {len(body)} bytes")
    return Told(*_TOLD.unpack(body)[1:])
