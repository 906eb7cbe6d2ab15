"""Cores with one rule broken each. The simulation must catch every one of them, or it proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nodewatch import events as ev
from nodewatch.core import NodeWatch
from nodewatch.gates import Gates
from nodewatch.heartbeat import Said
from nodewatch.membership import Membership, Told
from nodewatch.peers import Peer
from nodewatch.stable import Stable


class AcknowledgesTheBarred(NodeWatch):
    """R2 without "has not promised"."""

    def _acknowledges(self, peer: Peer, now: int) -> bool:
        return True


class ForgetsAndSpeaksAtOnce(NodeWatch):
    """Promises not on stable storage, and no fresh silence to make up for it."""

    def __init__(self, *, restored: Stable, **rest: Any) -> None:
        super().__init__(restored=replace(restored, promises=()), **rest)

    def _acknowledges(self, peer: Peer, now: int) -> bool:
        return peer.granted and peer.config.number not in self._barring.promises.held


class AgesOfAnotherLife(NodeWatch):
    """R5 without "at most the age of the process": as if a fresh process had acknowledged nobody."""

    def __init__(self, *, now_ms: int, **rest: Any) -> None:
        super().__init__(now_ms=now_ms, **rest)
        for peer in self._peers.values():
            peer.ref_ms = now_ms - 60_000


class LeaseFromTheAnswer(NodeWatch):
    """R3 with the lease counted from the acknowledgement's arrival instead of the heartbeat's departure."""

    def _take_datagram(self, event: ev.Datagram) -> None:
        before = dict(self._lease._acked)
        super()._take_datagram(event)
        if self._lease._acked != before and self._lease.end_ms:
            self._lease.end_ms = event.now_ms + self._timing.lease_ms


class NoGuardForDrift(NodeWatch):
    """The claim with lease_ms alone: right only if all clocks ran equally fast."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        honest = self._timing
        self._barring._guard_ms = honest.lease_ms - honest.heartbeat_ms


class RenewsToTheLastMoment(NodeWatch):
    """R4 without the gate's own lifetime."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._timing = replace(self._timing, gate_slack_ms=-self._timing.gate_lifetime_s * 1000)
        self._gates = Gates(self._timing)
        self._scene = replace(self._scene, gates=self._gates)


class GivesUpAtBirth(NodeWatch):
    """R7 without waiting for the gate of the process before."""

    def _gave_up(self, now: int) -> bool:
        return self._must_not_serve() and self._gates.all_shut(now)


class VotesBeforeTheDisk(NodeWatch):
    """E1 without stable storage."""

    def _make_said(self, now: int, **rest: bool) -> Said:
        election = self._election
        self._durable = replace(self._durable, term=election.term, voted_for=election.voted_for)
        return super()._make_said(now, **rest)


class LiftsOnDemand(NodeWatch):
    """R6 without asking whether the node shut its gates."""

    def _lift_wanted(self, node: str, now: int) -> None:
        if self._leads() and self._barring.table.barred(self._numbers[node]):
            self._barring.table.lift(self._numbers[node])
            self._note_bar("")


class MovesAtOnce(NodeWatch):
    """M5 without the wait: leases that rest on those who did not accept may still run."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._membership._guard_ms = 0


class ChosenByOne(NodeWatch):
    """M5 without a majority."""

    def _lead_change(self, now: int) -> None:
        honest, self._needed = self._needed, 1
        super()._lead_change(now)
        self._needed = honest


class Unsealed(NodeWatch):
    """Without M4: who accepted goes on granting to those who are left behind."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._membership = _NeverSealed(self._membership.config, self._me.number, None)


class _NeverSealed(Membership):
    def grants(self, number: int, told: Told) -> bool:
        return self.counts(told)

    @property
    def leaving(self) -> bool:
        return False


class ForgetsWhatWasAccepted(NodeWatch):
    """M2 without taking up what was accepted under an earlier leader."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._membership = _TakesUpNothing(self._membership.config, self._me.number, None)


class _TakesUpNothing(Membership):
    def _to_be_taken_up(self, at_mine: Mapping[int, Told]) -> tuple[int, bytes] | None:
        return None
