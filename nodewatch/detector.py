"""Who is silent? One timeout over any authentic message; silence while this process itself did not run does
not count. Where an engine knows who is there, its word comes first: who left is overdue at once.

The evidence here moves work, it never makes anything safe: that is the lease's part.
"""

from __future__ import annotations

from collections.abc import Iterable

from nodewatch.view import NodeState


class Detector:
    """Last sign of life of each peer, on this node's clock. Changed in place, for every packet."""

    __slots__ = (
        "_excused_until",
        "_gone",
        "_heard",
        "_heartbeat_ms",
        "_last_run",
        "_overdue",
        "_overdue_ms",
        "_present",
    )

    def __init__(
        self,
        peers: Iterable[int],
        *,
        heartbeat_ms: int,
        overdue_ms: int,
        now_ms: int,
        present: frozenset[int] | None = None,
    ) -> None:
        """`present`: who the engine says is there; None = it does not know, and silence alone decides."""
        self._heartbeat_ms = heartbeat_ms
        self._overdue_ms = overdue_ms
        self._heard: dict[int, int | None] = dict.fromkeys(peers)
        self._overdue: set[int] = set()
        self._gone: set[int] = set()
        self._last_run = now_ms
        self._excused_until = now_ms
        self._present = present

    def group(self, present: frozenset[int]) -> list[int]:
        """The engine's word on who is there. Gives those whom it makes overdue; who came back is alive when heard."""
        self._present = present
        found = [
            peer
            for peer, heard in self._heard.items()
            if heard is not None and peer not in present and peer not in self._overdue
        ]
        self._overdue.update(found)
        return found

    def absent(self, peer: int) -> bool:
        """The engine says that it is not there."""
        return self._present is not None and peer not in self._present

    def running(self, now_ms: int) -> int:
        """Call at every event; gives how long this process had not run beyond the ordinary, in ms.

        Packets may wait in the socket after a stall, so everybody gets two heartbeats' time to be heard."""
        stall = now_ms - self._last_run - 2 * self._heartbeat_ms
        self._last_run = now_ms
        if stall > 0:
            self._excused_until = now_ms + 2 * self._heartbeat_ms
        return max(0, stall)

    def heard(self, peer: int, now_ms: int) -> bool:
        """An authentic message came. True if the peer was not alive before."""
        known = self._heard[peer]
        self._heard[peer] = now_ms
        if peer in self._gone or self.absent(peer):
            return False
        was_alive = known is not None and peer not in self._overdue
        self._overdue.discard(peer)
        return not was_alive

    def said_goodbye(self, peer: int) -> bool:
        """Its last words: silent from now on. True if that is news."""
        news = peer not in self._gone
        self._gone.add(peer)
        self._overdue.add(peer)
        return news

    def add(self, peer: int) -> None:
        """A new node of the configuration."""
        self._heard.setdefault(peer, None)

    def remove(self, peer: int) -> None:
        del self._heard[peer]
        self._overdue.discard(peer)
        self._gone.discard(peer)

    def reborn(self, peer: int) -> None:
        """A new process of that node speaks: its goodbye is over."""
        self._gone.discard(peer)

    def newly_overdue(self, now_ms: int) -> list[int]:
        """Peers whose silence has just become too long."""
        if now_ms < self._excused_until:
            return []
        found = [
            peer
            for peer, heard in self._heard.items()
            if heard is not None and peer not in self._overdue and now_ms - heard >= self._overdue_ms
        ]
        self._overdue.update(found)
        return found

    def state(self, peer: int) -> NodeState:
        if peer in self._overdue:
            return "overdue"
        return "unheard" if self._heard[peer] is None else "alive"

    def alive(self, peer: int) -> bool:
        return self._heard[peer] is not None and peer not in self._overdue

    def fresh(self, peer: int, now_ms: int) -> bool:
        """Heard within half of overdue_ms: a node that was cut off as long ago as an overdue one is not."""
        heard = self._heard[peer]
        return heard is not None and now_ms - heard < self._overdue_ms // 2

    def gone(self, peer: int) -> bool:
        return peer in self._gone

    def heard_ms(self, peer: int) -> int | None:
        return self._heard[peer]

    def silent_ms(self, peer: int, now_ms: int) -> int | None:
        heard = self._heard[peer]
        return None if heard is None else now_ms - heard

    def deadline_ms(self) -> int | None:
        """When the next peer may become overdue."""
        heard = [at for peer, at in self._heard.items() if at is not None and peer not in self._overdue]
        return max(min(heard) + self._overdue_ms, self._excused_until) if heard else None
