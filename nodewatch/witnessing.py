"""This node's part in the witness: `arbitration.py` has the rules and the books; here they meet what is observed.

For silence, heartbeats, bars and the lease, as `barring.py` does for bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nodewatch import events as ev
from nodewatch.arbitration import WITNESS, Arbitration, Phase, RaceCall, Situation
from nodewatch.barring import Barring, WitnessPromise
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.detector import Detector
from nodewatch.election import Election
from nodewatch.gates import Gates
from nodewatch.heartbeat import Daemon, EntryFlag, HeartbeatFlag, Role
from nodewatch.lease import OwnLease
from nodewatch.peers import Peer
from nodewatch.quorum import majority
from nodewatch.stable import Stable

Event = ev.WitnessRead | ev.Raced | ev.WitnessChecked | ev.WitnessForced


class Witnessing:
    __slots__ = (
        "_barring",
        "_config",
        "_detector",
        "_emit",
        "_fading_ms",
        "_gates",
        "_heartbeat_ms",
        "_lease",
        "_me",
        "_needed",
        "_note",
        "_peers",
        "arbitration",
    )

    def __init__(
        self,
        *,
        config: ClusterConfig,
        me: NodeConfig,
        peers: Mapping[int, Peer],
        detector: Detector,
        barring: Barring,
        lease: OwnLease,
        gates: Gates,
        restored: Stable,
        now_ms: int,
        emit: Callable[[ev.Effect], None],
        note: Callable[[str, bool], None],
    ) -> None:
        """`note` is called whenever something changed that peers or hactld wait for, with a line for the log or
        none, and whether it is serious."""
        self._config = config
        self._me = me
        self._peers = peers
        self._detector = detector
        self._barring = barring
        self._lease = lease
        self._gates = gates
        self._heartbeat_ms = config.timing.heartbeat_ms
        self._fading_ms = config.timing.overdue_ms * 3 // 4
        self._needed = majority(config.votes)
        self._emit = emit
        self._note = note
        self.arbitration = Arbitration(
            me=me.number,
            wwids=config.witness,
            needed=self._needed,
            head_start_ms=config.timing.head_start_ms,
            base=dict(restored.witness),
            start_ms=now_ms,
        )

    def configure(self, config: ClusterConfig) -> None:
        """The nodes changed."""
        self._config = config
        self._needed = majority(config.votes)
        self.arbitration.configure(self._needed)

    # --- what comes in --------------------------------------------------------------------------------------------

    def heard(self, peer: Peer, now: int) -> None:
        """A heartbeat that says something new."""
        said = peer.said
        if said is not None and self.arbitration.configured:
            uses = bool(said.flags & HeartbeatFlag.USES_WITNESS)
            self.arbitration.heard(peer.config.number, uses=uses, words=said.witness, now_ms=now)

    def take(self, event: Event, election: Election) -> None:
        """hactld's answers, and the operator's word."""
        arbitration, now = self.arbitration, event.now_ms
        if not arbitration.configured:
            return
        match event:
            case ev.WitnessRead():
                if arbitration.read(event.luns, event.problem):
                    self._note("", False)
            case ev.Raced():
                self._raced(event, election)
            case ev.WitnessChecked(good=True):
                if arbitration.held(event.epoch, event.began_ms):
                    self._note("", False)
            case ev.WitnessChecked():
                if arbitration.gone(event.epoch, now):
                    self._emit(ev.WatchWitness(epoch=0))
                    self._note(f"witness using->lost cause=the claim of epoch {event.epoch} is gone", True)
            case ev.WitnessForced():
                self._force(now)

    def _raced(self, event: ev.Raced, election: Election) -> None:
        arbitration, now = self.arbitration, event.now_ms
        before = arbitration.phase
        if event.outcome == "won":
            terms = [peer.said.term for peer in self._peers.values() if peer.said is not None]
            if arbitration.won(event.ident, event.epoch, event.claimed, max([election.term, *terms]), now):
                self._emit(ev.WatchWitness(epoch=event.epoch))
        elif event.outcome == "lost":
            arbitration.beaten(event.ident, now)
        else:
            arbitration.not_won(event.ident, now)
        late = "" if arbitration.phase != before else ", too late: not used"
        line = f"witness {before}->{arbitration.phase} cause={event.outcome} epoch={event.epoch} {event.why}{late}"
        self._note(line.rstrip(), event.outcome != "won")

    def _force(self, now: int) -> None:
        reason = "this node still has volumes" if self._gates.states(now) else self._hindrance(Daemon.OK, False)
        call = None if reason else self.arbitration.force(now)
        if call is None:
            reason = reason or "exactly half of the nodes must be heard, and no claim in use"
            self._note(f"witness not forced: {reason}", True)
            return
        self._race(call)

    # --- what follows ---------------------------------------------------------------------------------------------

    def busy(self, now: int) -> bool:
        """Time and acknowledgements alone may change something."""
        return self.arbitration.phase in (Phase.RACING, Phase.USING) or bool(self._fading(now))

    def _fading(self, now: int) -> set[int]:
        """Nodes that count, and soon may not. A side that serves claims the witness for their case before they are
        overdue, so that it need not shut its gates meanwhile (R9). A claim made for nothing costs an epoch."""
        if not self.arbitration.configured:
            return set()
        fading = {number for number, silent_ms in self._silence(now).items() if silent_ms >= self._fading_ms}
        return fading if fading and self._side_serves(self._peers.keys() - fading) else set()

    def _silence(self, now: int) -> dict[int, int]:
        """For how long the nodes that are not overdue were silent."""
        alive = [number for number in self._peers if self._detector.alive(number)]
        return {number: self._detector.silent_ms(number, now) or 0 for number in alive}

    def _side_serves(self, others: Iterable[int]) -> bool:
        """This node has a volume, or one of those others says so."""
        saids = [self._peers[number].said for number in others if self._detector.alive(number)]
        return self._gates.kept or any(said is not None and said.flags & HeartbeatFlag.SERVES for said in saids)

    def settle(self, now: int, *, election: Election, heard: frozenset[int], daemon: Daemon, forbidden: bool) -> None:
        """After elections and bars: race, stop, remember. `heard`: the other nodes that count."""
        arbitration = self.arbitration
        if not arbitration.configured:
            return
        before = arbitration.phase, arbitration.waits_for
        call = arbitration.consider(self._situation(now, election, heard - self._fading(now), daemon, forbidden))
        if call is not None:
            self._race(call)
        elif (arbitration.phase, arbitration.waits_for) != before:
            if before[0] == Phase.USING:
                self._emit(ev.WatchWitness(epoch=0))
            waits = f" waits_for={arbitration.waits_for}" if arbitration.waits_for else ""
            change = arbitration.phase if before[0] == arbitration.phase else f"{before[0]}->{arbitration.phase}"
            self._note(f"witness {change} nodes={len(heard) + 1}{waits}", bool(waits))
        if self._in_order(election, heard):
            arbitration.remember(now)
        if arbitration.uses and arbitration.checked_ms is not None and self._leads(election):
            self._lease.acked(WITNESS, self._lease.newest_before(arbitration.checked_ms))

    def resume(self) -> None:
        """A new hactld is there: it does not know what the one before was asked."""
        if self.arbitration.uses:
            self._emit(ev.WatchWitness(epoch=self.arbitration.epoch))

    def _race(self, call: RaceCall) -> None:
        self._emit(ev.Race(call=call))
        expected = " ".join(f"{wwid}={epoch}" for wwid, epoch in call.expected.items())
        self._note(f"witness idle->racing {'FORCED' if call.forced else f'expected {expected}'}", call.forced)

    def _situation(
        self, now: int, election: Election, heard: frozenset[int], daemon: Daemon, forbidden: bool
    ) -> Situation:
        peers = [self._peers[number] for number in heard]
        silent = [peer for number, peer in self._peers.items() if number not in heard]
        return Situation(
            now_ms=now,
            heard=len(heard) + 1,
            connected=any(
                entry.number in self._peers
                and not self._detector.alive(entry.number)
                and not entry.flags & EntryFlag.OVERDUE
                for peer in peers
                for entry in (peer.said.entries if peer.said is not None else ())
            ),
            first=all(self._place(self._me, daemon, bool(forbidden)) < self._place_of(peer) for peer in peers),
            serves=self._side_serves(heard),
            opposed=not all(peer.gave_up for peer in silent),
            never_heard=any(self._detector.state(peer.config.number) == "unheard" for peer in silent),
            hindrance=self._hindrance(daemon, forbidden),
            nodes_suffice=self._lease.rests_on_nodes(now - 2 * self._heartbeat_ms),
            leads=self._leads(election),
        )

    def _hindrance(self, daemon: Daemon, forbidden: bool) -> str:
        if self._me.votes_only:
            return "this node only votes"
        if daemon != Daemon.OK:
            return "hactld does not answer"
        if forbidden:
            return "this node may not serve (barred, yielded or stopping)"
        names = {node.number: node.name for node in self._config.nodes}
        unknown = ", ".join(names.get(number, str(number)) for number in sorted(set(self._barring.unknown_bars())))
        return f"a bar of {unknown} was heard of and not settled" if unknown else ""

    @staticmethod
    def _place(node: NodeConfig, daemon: int, barred: bool) -> tuple[bool, int]:
        return (daemon != Daemon.OK or barred or node.votes_only, node.number)

    def _place_of(self, peer: Peer) -> tuple[bool, int]:
        said = peer.said
        if said is None:
            return (True, peer.config.number)
        return self._place(peer.config, said.daemon, bool(said.barred_mark))

    def _in_order(self, election: Election, heard: frozenset[int]) -> bool:
        """W6: the conditions for stable storage."""
        used = self.arbitration.uses or self.used_by_peer(heard)
        obeys = bool(election.leader) and self._barring.obeys(election.leader, election.term)
        return len(heard) + 1 >= self._needed and not used and obeys and not self._barring.unknown_bars()

    def _leads(self, election: Election) -> bool:
        return election.role == Role.LEADER and self._barring.table.term == election.term

    # --- what others ask ------------------------------------------------------------------------------------------

    def used_by_peer(self, heard: frozenset[int]) -> bool:
        """Some node of this side says that it uses the witness."""
        saids = [self._peers[number].said for number in heard]
        return any(said is not None and said.flags & HeartbeatFlag.USES_WITNESS for said in saids)

    def votes(self, heard: frozenset[int], now: int) -> int:
        """One, if the witness stands with this side."""
        return int(self.arbitration.configured and (self.arbitration.backs(now) or self.used_by_peer(heard)))

    @property
    def votes_after(self) -> int | None:
        """W5: the witness's vote is this node's in terms beyond that one; None = it is not."""
        return self.arbitration.after_term if self.arbitration.uses else None

    @property
    def promise(self) -> WitnessPromise | None:
        """W4."""
        if not self.arbitration.uses:
            return None
        return WitnessPromise(clear_ms=self.arbitration.clear_ms, alone=len(self._peers) == 1)

    def acknowledges(self, peer: Peer, election: Election) -> bool:
        """W3: does what is acknowledged to this peer count for the witness, too?"""
        checked_ms = self.arbitration.checked_ms
        return self.arbitration.uses and checked_ms is not None and peer.ref_ms < checked_ms and self._leads(election)

    def flags(self, now: int) -> int:
        """For the heartbeat."""
        serves = HeartbeatFlag.SERVES if self._gates.kept else 0
        return serves | (HeartbeatFlag.USES_WITNESS if self.arbitration.may_use else 0)

    def show(self, now: int) -> dict[str, Any]:
        """For people; {} = no witness is configured."""
        arbitration = self.arbitration
        if not arbitration.configured:
            return {}
        names = {node.number: node.name for node in self._config.nodes}
        return {
            "state": str(arbitration.phase),
            "epoch": arbitration.epoch if arbitration.uses else 0,
            "checked_ms_ago": None if arbitration.checked_ms is None else max(0, now - arbitration.checked_ms),
            "used_by": [
                name
                for number, name in names.items()
                if (number == self._me.number and arbitration.uses)
                or (number in self._peers and self._detector.alive(number) and self.used_by_peer(frozenset({number})))
            ],
            "luns": [
                {"wwid": wwid, "epoch": word.epoch, "claimed_by": names.get(word.owner, "")}
                for wwid, word in zip(arbitration.wwids, arbitration.seen, strict=True)
            ],
            "problem": arbitration.problem,
            "waits_for": arbitration.waits_for,
        }

    def deadline_ms(self, now: int) -> int | None:
        """When `settle` may want to be called although nothing changed."""
        if not self.arbitration.configured:
            return None
        due = [self.arbitration.deadline_ms()]
        fresh = [silent_ms for silent_ms in self._silence(now).values() if silent_ms < self._fading_ms]
        if fresh and self._side_serves(self._peers):
            due.append(now + self._fading_ms - max(fresh))
        return min((at_ms for at_ms in due if at_ms is not None), default=None)
