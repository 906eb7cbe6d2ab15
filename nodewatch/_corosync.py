"""The corosync engine at its edge: one connection to the corosync of this host, made anew when it is lost.

Opening a connection waits for corosync's answers, so a thread does that, and the loop goes on: it renews and closes
gates while corosync is away. Sending and receiving wait for nobody and are done in the loop.

No corosync = nobody is present and there is no quorum; leases end by themselves.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from nodewatch import corosync
from nodewatch._cpg import CorosyncRing, Delivered, GroupChanged, QuorumChanged, Ring, RingLost
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.engine import Arrival, EngineRefused, EngineUnreachable, Members, Note, Packet

_RETRY_S = 0.5
_SAY_EVERY = 120
"""Attempts between two lines about a corosync that stays away: one a minute."""

Open = Callable[[str], Ring]


class CorosyncEngine:
    """`nodewatch.engine.Engine` on corosync."""

    def __init__(
        self, config: ClusterConfig, me: NodeConfig, *, patience_s: float, opened: Open = CorosyncRing
    ) -> None:
        """Wait for corosync for so long; raises EngineUnreachable after that, EngineRefused at once if its
        configuration does not fit ours."""
        self._me = me
        self._open = opened
        self.configure(config)
        self.send_errors = 0
        self.last_error = ""
        self._present: frozenset[int] = frozenset()
        self._quorate = False
        self._poll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake_fd, select.EPOLLIN)
        self._lock = threading.Lock()
        self._found: Ring | None = None
        """What the thread opened, for the loop to take."""
        self._notes: list[Note] = []
        self._closed = threading.Event()
        self._ring: Ring | None = None
        self._take(self._first(patience_s))

    def fileno(self) -> int:
        return self._poll.fileno()

    def send(self, to: tuple[int, ...], datagram: bytes) -> None:
        """One message, whoever it is for: the group gets every one of them anyway."""
        if not to:
            return
        ring = self._ring
        if ring is None:
            self._failed("corosync is not there")
            return
        try:
            whole = tuple(sorted(to)) == self._everybody
            if not ring.mcast(corosync.pack(() if whole else to, datagram)):
                self._failed("corosync takes no messages now")
        except RingLost as lost:
            # `receive` will find the same and deal with it.
            self._failed(str(lost))

    def receive(self) -> list[Arrival]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        with self._lock:
            found, self._found = self._found, None
            arrivals: list[Arrival] = list(self._notes)
            self._notes.clear()
        if found is not None:
            self._take(found)
            arrivals.append(Note(text="corosync is there again"))
        if self._ring is not None:
            try:
                self._collect(self._ring, arrivals)
            except RingLost as lost:
                self._lose(str(lost), arrivals)
        return arrivals

    def configure(self, config: ClusterConfig) -> None:
        """Its nodes; corosync's own list is compared with them at the next connection."""
        self._config = config
        self._addresses = {node.number: node.address for node in config.nodes}
        self._everybody = tuple(sorted(number for number in self._addresses if number != self._me.number))

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            rings = [ring for ring in (self._ring, self._found) if ring is not None]
            self._ring = self._found = None
        for ring in rings:
            ring.close()

    # --- what came ------------------------------------------------------------------------------------------------

    def _collect(self, ring: Ring, arrivals: list[Arrival]) -> None:
        for item in ring.dispatch():
            match item:
                case Delivered():
                    if item.node == self._me.number:
                        continue  # our own words, in the agreed order
                    data = corosync.unpack(item.message, self._me.number)
                    if data is not None:
                        source = self._addresses.get(item.node, f"corosync nodeid {item.node}")
                        arrivals.append(Packet(data=data, source=source))
                case GroupChanged():
                    self._present = item.nodes
                    arrivals.append(self._members())
                case QuorumChanged():
                    if item.quorate != self._quorate:
                        self._quorate = item.quorate
                        arrivals.append(self._members())

    def _members(self) -> Members:
        return Members(present=self._present, quorate=self._quorate)

    def _failed(self, reason: str) -> None:
        self.send_errors += 1
        self.last_error = reason

    # --- the connection -------------------------------------------------------------------------------------------

    def _first(self, patience_s: float) -> Ring:
        give_up = time.monotonic() + patience_s
        while True:
            try:
                ring = self._checked()
            except EngineUnreachable as away:
                if time.monotonic() >= give_up:
                    raise EngineUnreachable(f"no corosync after {patience_s:g} s: {away}") from away
                time.sleep(0.2)
            else:
                return ring

    def _checked(self) -> Ring:
        """A connection to a corosync that fits our configuration."""
        ring = self._open(corosync.group_name(self._config.uuid))
        try:
            facts = ring.facts()
        except EngineUnreachable:
            ring.close()
            raise
        refusals = corosync.refusals(self._config, self._me, facts)
        if refusals:
            ring.close()
            raise EngineRefused("; ".join(refusals))
        with self._lock:
            self._notes += [Note(text=text, serious=True) for text in corosync.warnings(self._config, facts)]
        return ring

    def _take(self, ring: Ring) -> None:
        self._ring = ring
        self._poll.register(ring, select.EPOLLIN)

    def _lose(self, reason: str, arrivals: list[Arrival]) -> None:
        ring, self._ring = self._ring, None
        assert ring is not None
        with contextlib.suppress(OSError):
            self._poll.unregister(ring)
        ring.close()
        self._present, self._quorate = frozenset(), False
        arrivals += [Note(text=f"corosync is lost ({reason}): nobody is heard now", serious=True), self._members()]
        threading.Thread(target=self._reopen, name="corosync", daemon=True).start()

    def _reopen(self) -> None:
        """In a thread: until corosync answers, and fits."""
        attempt = 0
        while not self._closed.wait(_RETRY_S):
            try:
                ring = self._checked()
            except (EngineUnreachable, EngineRefused) as reason:
                if attempt % _SAY_EVERY == 0:
                    self._hand_over(None, Note(text=f"still without corosync: {reason}", serious=True))
                attempt += 1
            else:
                self._hand_over(ring, None)
                return

    def _hand_over(self, ring: Ring | None, note: Note | None) -> None:
        with self._lock:
            if self._closed.is_set():
                if ring is not None:
                    ring.close()
                return
            self._found = ring
            if note is not None:
                self._notes.append(note)
        os.eventfd_write(self._wake_fd, 1)
