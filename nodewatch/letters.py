"""Messages between the daemons of two nodes: in order, never twice, retried for a while, cut into letters
that fit a frame.

An Outbox sends to one peer process, an Inbox receives from one. Acknowledgements are in the heartbeats'
entries (the next letter expected), so nothing is sent for them alone unless many letters came at once. What
is not acknowledged for GIVE_UP_MS is dropped together with everything behind it, and a new stream begins: a
gap never turns into a wrong order.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from nodewatch.heartbeat import MAX_CONTENT, Letter

WINDOW = 64
RESEND_MS = 300
GIVE_UP_MS = 5000
MAX_QUEUED = 1024
MAX_MESSAGE = 65_536
ACK_AT_ONCE = 16


class _Waiting(NamedTuple):
    place: int
    last: int
    content: bytes
    queued_ms: int


class Outbox:
    __slots__ = ("_generation", "_next", "_queue", "_sent", "_sent_ms", "_stream", "attempt")

    def __init__(self) -> None:
        self._stream = 0
        self._generation = 0
        self._queue: deque[_Waiting] = deque()
        self._sent = 0
        """How many of the queue's head were sent in this round."""
        self._sent_ms = 0
        self._next = 0
        self.attempt = 0
        """How often the head of the queue was sent in vain."""

    def open(self, generation: int) -> int:
        """The peer's process is `generation`: letters to the one before it are dropped. Gives how many
        messages."""
        lost = self._drop()
        self._generation = generation
        return lost

    def put(self, message: bytes, now_ms: int) -> bool:
        """Queue a message. False if the peer was never heard, or too much is queued already."""
        pieces = [message[at : at + MAX_CONTENT] for at in range(0, len(message), MAX_CONTENT)] or [b""]
        if not self._generation or len(self._queue) + len(pieces) > MAX_QUEUED or len(message) > MAX_MESSAGE:
            return False
        for position, piece in enumerate(pieces, start=1):
            self._queue.append(_Waiting(self._next, int(position == len(pieces)), piece, now_ms))
            self._next += 1
        return True

    def acked(self, stream: int, expected: int) -> None:
        """The peer has every letter of `stream` below `expected`."""
        if stream != self._stream:
            return
        while self._queue and self._queue[0].place < expected:
            self._queue.popleft()
            self._sent = max(0, self._sent - 1)
            self.attempt = 0

    def due(self, now_ms: int) -> tuple[list[Letter], int]:
        """Letters to send now, and how many messages were given up."""
        lost = 0
        if self._queue and now_ms - self._queue[0].queued_ms >= GIVE_UP_MS:
            lost = self._drop()
        if self._sent and now_ms - self._sent_ms >= RESEND_MS:
            self._sent = 0
            self.attempt += 1
        found = [
            Letter(self._generation, self._stream, self._queue[at].place, self._queue[at].last, self._queue[at].content)
            for at in range(self._sent, min(len(self._queue), WINDOW))
        ]
        if found:
            self._sent += len(found)
            self._sent_ms = now_ms
        return found, lost

    def deadline_ms(self) -> int | None:
        return self._sent_ms + RESEND_MS if self._queue else None

    def _drop(self) -> int:
        lost = sum(waiting.last for waiting in self._queue)
        self._queue.clear()
        self._sent = 0
        self._next = 0
        self.attempt = 0
        self._stream += 1
        return lost


class Inbox:
    __slots__ = ("_early", "_parts", "expected", "stream", "unreported")

    def __init__(self) -> None:
        self.stream = 0
        self.expected = 0
        self.unreported = 0
        """Letters taken since this inbox's state was last sent."""
        self._early: dict[int, tuple[int, bytes]] = {}
        self._parts: list[bytes] = []

    def receive(self, letter: Letter) -> list[bytes]:
        """The messages that this letter completes, in order."""
        if letter.stream > self.stream:
            self.stream, self.expected = letter.stream, 0
            self._early.clear()
            self._parts.clear()
        self.unreported += 1
        if letter.stream < self.stream or not self.expected <= letter.place < self.expected + WINDOW:
            return []
        self._early[letter.place] = (letter.last, letter.content)
        complete = []
        while (found := self._early.pop(self.expected, None)) is not None:
            last, content = found
            self._parts.append(content)
            self.expected += 1
            if last:
                complete.append(b"".join(self._parts))
                self._parts.clear()
            elif len(self._parts) * MAX_CONTENT > MAX_MESSAGE:
                self._parts.clear()
        return complete
