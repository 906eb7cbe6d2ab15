"""The gates of this node's volumes: when to renew one, when it is surely shut. Rule R4 of `lease.py`.

    closed --renewed--> open --renewed--> open
    open --closed by us | its kernel lifetime ran out--> closed
Latched: stays shut whatever the lease says, until hactld registers it anew after the bar was lifted.
"""

from __future__ import annotations

from collections.abc import Mapping

from nodewatch.lease import Timing
from nodewatch.view import GateState

_CLOSE_AGAIN_MS = 100


class _Gate:
    __slots__ = ("closed", "kernel_until_ms", "latched", "renewed_ms", "tried_ms")

    def __init__(self, *, kernel_until_ms: int, latched: bool) -> None:
        self.latched = latched
        self.renewed_ms: int | None = None
        self.tried_ms: int | None = None
        self.kernel_until_ms = kernel_until_ms
        self.closed = False
        """Surely: closed by us since the last renewal."""


class Gates:
    __slots__ = ("_batch_ms", "_forgotten_until_ms", "_gates", "_timing")

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._gates: dict[str, _Gate] = {}
        self._forgotten_until_ms = 0
        self._batch_ms = 0

    def register(self, volume: str, *, now_ms: int, latched: bool) -> None:
        """hactld may have opened it itself, or a node watch before us: it may be open for one lifetime."""
        self._gates[volume] = _Gate(kernel_until_ms=now_ms + self._timing.gate_ms, latched=latched)

    def forget(self, volume: str, *, closed: bool) -> None:
        """hactld took it back. A gate that could not be closed stays open in the kernel for its lifetime."""
        gate = self._gates.pop(volume, None)
        if gate is not None and not closed and not gate.closed:
            self._forgotten_until_ms = max(self._forgotten_until_ms, gate.kernel_until_ms)

    def due(self, now_ms: int) -> tuple[str, ...]:
        """All gates that may be renewed, if it is time: every three quarters of a heartbeat, or when there is a new
        one.

        All or none: Linux looks for expired addresses 1 s after the newest renewal of *any* of them, so one that was
        renewed alone would keep the others open longer than their lifetime."""
        wanted = tuple(volume for volume, gate in self._gates.items() if not gate.latched)
        pause = self._timing.heartbeat_ms * 3 // 4
        new = any(self._gates[volume].tried_ms is None for volume in wanted)
        return wanted if new or now_ms - self._batch_ms >= pause else ()

    def renewed(self, results: Mapping[str, bool], now_ms: int, lease_end_ms: int) -> tuple[str, ...]:
        """`now_ms` was read after the kernel answered. Gives the gates that were renewed too late and must be
        closed."""
        self._batch_ms = now_ms
        late = []
        for volume, done in results.items():
            gate = self._gates.get(volume)
            if gate is None:
                continue
            gate.tried_ms = now_ms
            if done:
                gate.renewed_ms = now_ms
                gate.closed = False
                if now_ms + self._timing.gate_ms > lease_end_ms:
                    late.append(volume)
        if any(results.values()):
            for gate in self._gates.values():
                gate.kernel_until_ms = now_ms + self._timing.gate_ms
        return tuple(late)

    def closing(self, now_ms: int) -> tuple[str, ...]:
        """Gates to be closed now: all that we did not surely close, though the kernel should have. One that could not
        be closed is tried again after a while."""
        return tuple(
            volume
            for volume, gate in self._gates.items()
            if not gate.closed
            and (gate.renewed_ms is not None or gate.tried_ms is None or now_ms - gate.tried_ms >= _CLOSE_AGAIN_MS)
        )

    def closed(self, results: Mapping[str, bool], now_ms: int) -> None:
        for volume, done in results.items():
            gate = self._gates.get(volume)
            if gate is not None:
                gate.closed = gate.closed or done
                gate.renewed_ms = None
                gate.tried_ms = now_ms

    @property
    def kept(self) -> bool:
        """There are gates to be renewed."""
        return any(not gate.latched for gate in self._gates.values())

    def latch(self) -> None:
        for gate in self._gates.values():
            gate.latched = True

    def all_shut(self, now_ms: int) -> bool:
        """No gate of ours can be open in the kernel."""
        return now_ms >= self._forgotten_until_ms and all(self._shut(gate, now_ms) for gate in self._gates.values())

    def states(self, now_ms: int) -> dict[str, GateState]:
        """As a client would see it: open from the first renewal until its lifetime may have run out."""
        lifetime_ms = self._timing.gate_lifetime_s * 1000
        return {
            volume: "open" if gate.renewed_ms is not None and now_ms < gate.renewed_ms + lifetime_ms else "closed"
            for volume, gate in self._gates.items()
        }

    @staticmethod
    def _shut(gate: _Gate, now_ms: int) -> bool:
        return gate.closed or now_ms >= gate.kernel_until_ms
