"""The door: which datagrams are believed. Everything that comes from the network passes here first.

A peer's *session* is one process of it. A frame of a newer generation opens a pending session, which becomes
the present one as soon as such a frame names our own generation and a heartbeat that we sent: only a process
that lives now can do that, so a recording of an earlier process is never believed, not even by a process that
has just started and remembers nothing.

With several links each heartbeat comes once on each. A copy is known by being equal, byte for byte, to one that was
opened just before, so it need not be opened again: it tells that its link works, and nothing else. It is no sign of
life: the first one was.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from nodewatch import wire
from nodewatch.config import NodeConfig
from nodewatch.heartbeat import (
    HEARTBEATS,
    LETTER,
    Malformed,
    decode_said,
    kind_of,
    number_of,
    pulse_at,
    split_heartbeat,
)
from nodewatch.wire import Cipher, ReplayWindow

_WARN_EVERY_MS = 60_000
_WARN_SOURCES = 64
CONFLICT_SHOWN_MS = 60_000
_OWN_ECHO_MS = 5000
"""No network delays a frame of our own previous process for longer."""
_COPIES_KEPT = 4
"""So many heartbeats a link may be behind the fastest one and still count as working."""


class _Opened(NamedTuple):
    """A frame that was opened, for its copies on other links."""

    datagram: bytes
    beat: int
    links: set[int]
    at_ms: int


class Session:
    __slots__ = ("beat_ms", "beat_seq", "ciphers", "opened", "since_seq", "window")

    def __init__(self, ciphers: tuple[Cipher, ...], since_seq: int) -> None:
        self.ciphers = ciphers
        """One for each cluster key that is accepted."""
        self.window = ReplayWindow()
        self.beat_seq = 0
        """The newest heartbeat received."""
        self.beat_ms = 0
        self.opened: deque[_Opened] = deque(maxlen=_COPIES_KEPT)
        self.since_seq = since_seq
        """Our own newest heartbeat when this session became the present one."""

    @property
    def generation(self) -> int:
        return self.ciphers[0].generation

    def open(self, datagram: bytes, seq: int) -> bytes | None:
        """The body; the key that fitted is tried first from then on."""
        for cipher in self.ciphers:
            body = cipher.open(datagram, seq)
            if body is not None:
                if cipher is not self.ciphers[0]:
                    self.ciphers = (cipher, *(other for other in self.ciphers if other is not cipher))
                return body
        return None


class _Peer:
    __slots__ = ("addresses", "name", "pending", "present")

    def __init__(self, config: NodeConfig) -> None:
        self.name = config.name
        self.addresses = config.addresses
        self.present: Session | None = None
        self.pending: Session | None = None


class Admitted(NamedTuple):
    number: int
    seq: int
    body: bytes
    kind: int
    beat: int
    """The heartbeat's number among those that went to everybody; 0 = none of those."""
    reborn: bool
    """The first believed frame of a new process."""

    @property
    def is_heartbeat(self) -> bool:
        return self.kind in HEARTBEATS


class Copy(NamedTuple):
    """A believed frame once more, on another link."""

    number: int
    beat: int
    late_ms: int
    """After the first one."""


class Admission:
    def __init__(
        self,
        *,
        keys: tuple[bytes, ...],
        uuid: str,
        me: NodeConfig,
        generation: int,
        peers: Iterable[NodeConfig],
        now_ms: int,
    ) -> None:
        self._keys = keys
        self._uuid = uuid
        self._me = me
        self._generation = generation
        self._start_ms = now_ms
        self._peers = {peer.number: _Peer(peer) for peer in peers}
        self._warned: dict[tuple[str, str], int] = {}
        self.drops: Counter[str] = Counter()
        self._conflicts: dict[tuple[str, int], tuple[int, str]] = {}
        self.warnings: list[str] = []
        """New lines for the log; the reader clears it."""

    def admit(self, source: str, datagram: bytes, *, now_ms: int, my_seq: int, link: int = 0) -> Admitted | Copy | None:
        """The body of a datagram that is to be believed; None (and a reason counted) otherwise."""
        try:
            found = self._admit(source, link, datagram, now_ms, my_seq)
        except Malformed:
            found = wire.MALFORMED
        if isinstance(found, str):
            if found:
                self.drop(found, source, now_ms)
            return None
        return found

    def conflicts(self, now_ms: int) -> tuple[str, ...]:
        """What was seen lately of two nodes that use one number, name or address."""
        return tuple(text for at_ms, text in self._conflicts.values() if now_ms - at_ms < CONFLICT_SHOWN_MS)

    def configure(self, keys: tuple[bytes, ...], peers: Iterable[NodeConfig]) -> None:
        """The configured nodes, or the keys that are accepted, changed. Who stays keeps its sessions."""
        self._peers = {peer.number: self._peers.get(peer.number) or _Peer(peer) for peer in peers}
        if keys == self._keys:
            return
        self._keys = keys
        for number, known in self._peers.items():
            for session in (known.present, known.pending):
                if session is not None:
                    session.ciphers = self._ciphers(number, session.generation)

    def session(self, number: int) -> Session | None:
        """The peer's present process."""
        return self._peers[number].present

    def newest(self, number: int) -> Session | None:
        """The process of the peer to be answered: one that is not yet believed must learn our generation."""
        peer = self._peers[number]
        return peer.pending or peer.present

    def unproven(self, number: int) -> bool:
        """Its frames arrive, but it has not heard us yet."""
        peer = self._peers[number]
        return peer.pending is not None and peer.present is None

    def _admit(self, source: str, link: int, datagram: bytes, now_ms: int, my_seq: int) -> Admitted | Copy | str:
        header = wire.parse_header(datagram)
        if isinstance(header, str):
            return header
        peer = self._peers.get(header.sender)
        if peer is None:
            return self._stranger(header, datagram, source, now_ms)
        known = self._known_session(peer, header.generation)
        right_source = link < len(peer.addresses) and source == peer.addresses[link]
        if known is not None and right_source:
            copy = self._copy(known, header.sender, datagram, link, now_ms)
            if copy is not None:
                return copy if known is peer.present else ""
        session = known if known is not None else self._session(header, my_seq)
        body = session.open(datagram, header.seq)
        if body is None:
            if right_source:
                sentence = (
                    f"packets from the address of {peer.name} are sealed with a key that does not count here: if the "
                    f"cluster key was changed while a node was away, copy hactl.toml and cluster.key from one that is "
                    f"in the cluster and restart hactl-nodewatch"
                )
                self._conflict(("key", header.sender), sentence, now_ms)
            return wire.WRONG_KEY
        if not right_source:
            configured = peer.addresses[link] if link < len(peer.addresses) else "nothing"
            where = f" on link {link + 1}" if len(peer.addresses) > 1 else ""
            sentence = (
                f"packets of {peer.name} (number {header.sender}) come from {source}{where}, configured is "
                f"{configured}: "
                f"two nodes use this number, or the configurations differ"
            )
            self._conflict(("address", header.sender), sentence, now_ms)
            return wire.WRONG_SOURCE
        if known is None:
            newest = peer.pending or peer.present
            if newest is not None and header.generation < newest.generation:
                return self._old_generation(peer, header, body, now_ms, my_seq)
            known = peer.pending = session
        if not known.window.accept(header.seq):
            return wire.REPLAYED
        if len(peer.addresses) > 1 and kind_of(body) != LETTER:  # those take one link
            known.opened.append(_Opened(datagram, _number(body), {link}, now_ms))
        return self._believe(peer, known, header, body, now_ms, my_seq)

    @staticmethod
    def _copy(session: Session, sender: int, datagram: bytes, link: int, now_ms: int) -> Copy | str | None:
        """What a datagram is that equals one opened before; None if it is none."""
        for opened in session.opened:
            if opened.datagram == datagram:
                if link in opened.links:
                    return wire.REPLAYED
                opened.links.add(link)
                return Copy(sender, opened.beat, now_ms - opened.at_ms)
        return None

    def _believe(
        self, peer: _Peer, session: Session, header: wire.Header, body: bytes, now_ms: int, my_seq: int
    ) -> Admitted | str:
        kind = kind_of(body)
        beat = _number(body)
        if kind in HEARTBEATS and header.seq > session.beat_seq:
            session.beat_seq, session.beat_ms = header.seq, now_ms
        if session is peer.present:
            return Admitted(header.sender, header.seq, body, kind, beat, False)
        if not self._names_me(body, 0, my_seq):
            return ""
        peer.present, peer.pending = session, None
        session.since_seq = my_seq
        return Admitted(header.sender, header.seq, body, kind, beat, True)

    def _names_me(self, body: bytes, after_seq: int, my_seq: int) -> bool:
        """Does the message say that it heard a heartbeat of this very process, newer than `after_seq`?"""
        if kind_of(body) not in HEARTBEATS:
            return False
        said, pulses = split_heartbeat(body)
        for place, entry in enumerate(decode_said(said, pulses).entries):
            if entry.number == self._me.number:
                return entry.generation == self._generation and after_seq < pulse_at(pulses, place).seq <= my_seq
        return False

    def _old_generation(self, peer: _Peer, header: wire.Header, body: bytes, now_ms: int, my_seq: int) -> str:
        """Late frames of a process that ended are harmless. One that heard us lately has not ended."""
        if peer.present is not None and self._names_me(body, peer.present.since_seq + 1, my_seq):
            sentence = (
                f"two processes at {peer.addresses[0]} call themselves {peer.name} (number {header.sender}): "
                f"give every node its own name, number and address"
            )
            self._conflict(("process", header.sender), sentence, now_ms)
        return wire.OLD_GENERATION

    def _stranger(self, header: wire.Header, datagram: bytes, source: str, now_ms: int) -> str:
        """A number that is no peer's: our own, or one that the configuration does not have."""
        if header.sender == self._me.number and header.generation == self._generation:
            return wire.OWN_NUMBER
        if self._session(header, 0).open(datagram, header.seq) is None:
            return wire.WRONG_KEY
        if header.sender != self._me.number:
            return wire.UNKNOWN_SENDER
        if now_ms - self._start_ms > _OWN_ECHO_MS or header.generation > self._generation:
            sentence = (
                f"{source} also calls itself {self._me.name} (number {header.sender}): give every node its "
                "own name and number"
            )
            self._conflict(("own", header.sender), sentence, now_ms)
        return wire.OWN_NUMBER

    def _known_session(self, peer: _Peer, generation: int) -> Session | None:
        for session in (peer.present, peer.pending):
            if session is not None and session.generation == generation:
                return session
        return None

    def _session(self, header: wire.Header, my_seq: int) -> Session:
        return Session(self._ciphers(header.sender, header.generation), my_seq)

    def _ciphers(self, sender: int, generation: int) -> tuple[Cipher, ...]:
        return tuple(Cipher(key, self._uuid, sender, generation) for key in self._keys)

    def _conflict(self, key: tuple[str, int], sentence: str, now_ms: int) -> None:
        known = self._conflicts.get(key)
        if known is None or now_ms - known[0] >= CONFLICT_SHOWN_MS:
            self.warnings.append(sentence)
        self._conflicts[key] = (now_ms, sentence)

    def drop(self, reason: str, source: str, now_ms: int) -> None:
        self.drops[reason] += 1
        at_ms = self._warned.get((source, reason))
        if at_ms is not None and now_ms - at_ms < _WARN_EVERY_MS:
            return
        if len(self._warned) >= _WARN_SOURCES:
            if at_ms is None and now_ms - min(self._warned.values()) < _WARN_EVERY_MS:
                return
            self._warned.clear()
        self._warned[source, reason] = now_ms
        if reason not in (wire.REPLAYED, wire.OLD_GENERATION):
            self.warnings.append(f"dropped a datagram from {source}: {reason} (said once a minute)")


def _number(body: bytes) -> int:
    """Of a heartbeat that went to everybody; 0 = it is none."""
    return number_of(body) if kind_of(body) in HEARTBEATS else 0
