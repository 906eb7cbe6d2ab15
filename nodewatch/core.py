"""One node's watch over the cluster: detector, election, bars, lease and gates put together. No I/O, no
clock.

    watch = NodeWatch(config=..., me=..., key=..., restored=Stable(...), now_ms=...)
    effects = watch.step(Datagram(now_ms=..., source="10.77.1.12", data=...))     # carry them out, in order
    ... call step(Tick(...)) no later than watch.deadline_ms()

It is changed in place, as h11 and etcd's raft are: at five heartbeats a second per peer a copy of it would be
most of its cost. All it ever says about itself goes out in one heartbeat, sent every heartbeat_ms and at once
when something changed that others wait for; all that it knows of a peer is the peer's newest heartbeat. So
lost, late and repeated packets need no care beyond "only the newest counts".

The order of a step: take the event in; then `_settle`: who is overdue, who leads, which bars stand, may I
serve; then what of that must go to the disk, to the peers, to hactld.
"""

from __future__ import annotations

from typing import assert_never

from nodewatch import events as ev
from nodewatch.admission import Admission, Admitted
from nodewatch.bars import BarTable, Promises
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.daemonwatch import DaemonWatch
from nodewatch.detector import Detector
from nodewatch.election import Claim, Election, Observed
from nodewatch.gates import Gates
from nodewatch.heartbeat import (
    MAX_AGE_MS,
    Daemon,
    Entry,
    EntryFlag,
    Heartbeat,
    HeartbeatFlag,
    Letter,
    Order,
    OrderKind,
    Role,
    encode_heartbeat,
    encode_letter,
)
from nodewatch.lease import OwnLease
from nodewatch.letters import ACK_AT_ONCE, Inbox, Outbox
from nodewatch.quorum import majority
from nodewatch.stable import Stable
from nodewatch.view import DaemonState, GateState, NodeView, RoleName, View
from nodewatch.wire import Cipher

UNHEARD_PATIENCE_MS = 10_000
"""A leader bars a node that it never heard only after so long a life of its own: at a cold start nodes come
one by one."""
PUBLISH_MS = 1000
UNDELIVERED = "message to a peer's hactld not delivered"

_DAEMON_NAMES: dict[int, DaemonState] = {
    Daemon.OK: "ok",
    Daemon.HUNG: "hung",
    Daemon.GONE: "gone",
    Daemon.ABSENT: "absent",
}
_ROLE_NAMES: dict[int, RoleName] = {
    Role.FOLLOWER: "follower",
    Role.ASPIRANT: "candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}


class _Peer:
    """What is known of one other node."""

    __slots__ = ("beat", "beat_seq", "claim", "config", "echoed", "inbox", "mismatch", "outbox", "ref_ms", "rtt_ms")

    def __init__(self, config: NodeConfig, start_ms: int) -> None:
        self.config = config
        self.beat: Heartbeat | None = None
        """Its newest heartbeat of its present process."""
        self.beat_seq = 0
        self.claim: Claim | None = None
        self.echoed = 0
        """My newest heartbeat that it named."""
        self.ref_ms = start_ms
        """When I last received a heartbeat that I may have acknowledged; R5: a fresh process may have
        forgotten one."""
        self.rtt_ms: int | None = None
        self.mismatch = False
        self.outbox = Outbox()
        self.inbox = Inbox()

    @property
    def gave_up(self) -> bool:
        return self.beat is not None and bool(self.beat.flags & HeartbeatFlag.GAVE_UP)


class NodeWatch:
    """`restored` is what stable storage holds, with the new generation of this process already in it."""

    def __init__(self, *, config: ClusterConfig, me: NodeConfig, key: bytes, restored: Stable, now_ms: int) -> None:
        timing = config.timing
        others = [node for node in config.nodes if node.number != me.number]
        self._config = config
        self._timing = timing
        self._me = me
        self._needed = majority(len(config.nodes))
        self._start_ms = self._now_ms = now_ms
        self._digest = config.digest()
        self._generation = restored.generation
        self._cipher = Cipher(key, config.uuid, me.number, restored.generation)
        self._seq = 0
        self._beat_seq = 0
        self._peers = {node.number: _Peer(node, now_ms) for node in others}
        self._all = tuple(self._peers)
        self._numbers = {node.name: node.number for node in config.nodes}
        self._admission = Admission(
            key=key, uuid=config.uuid, me=me, generation=restored.generation, peers=others, now_ms=now_ms
        )
        self._detector = Detector(
            self._peers, heartbeat_ms=timing.heartbeat_ms, overdue_ms=timing.overdue_ms, now_ms=now_ms
        )
        self._election = Election(
            me=me.number,
            needed=self._needed,
            retry_ms=timing.overdue_ms,
            term=restored.term,
            voted_for=restored.voted_for,
            wait_from_ms=now_ms + timing.overdue_ms,
        )
        self._promises = Promises(restored.promises, now_ms)
        self._table = BarTable(0, self._needed)
        self._lease = OwnLease(nodes=len(config.nodes), lease_ms=timing.lease_ms)
        self._gates = Gates(timing)
        self._daemon = DaemonWatch(timing)
        self._durable = self._requested = restored
        self._barred_mark = 0
        self._heard_leader = False
        self._yielded = False
        self._stopping = False
        self._daemon_state = Daemon.ABSENT
        self._serving = False
        self._shown_gates: dict[str, GateState] = {}
        self._next_beat_ms = now_ms
        self._published_ms = now_ms - PUBLISH_MS
        self._observe = True
        self._urgent = True
        self._changed = True
        self._out: list[ev.Effect] = []

    # --- events
    # -------------------------------------------------------------------------------------------------

    def step(self, event: ev.Event) -> tuple[ev.Effect, ...]:
        """Take in what happened; give what is to be done about it, in order."""
        now = self._now_ms = event.now_ms
        stall_ms = self._detector.running(now)
        if stall_ms:
            self._daemon.excuse(stall_ms)
            self._log(f"this process did not run for {stall_ms} ms more than it should have")
        match event:
            case ev.Datagram():
                self._take_datagram(event)
            case ev.Tick():
                pass
            case ev.Persisted():
                self._durable = event.stable
                self._observe = self._urgent = True
            case ev.DaemonBeat():
                self._daemon.beat(now)
            case ev.DaemonGone():
                self._daemon.gone(now)
            case ev.GateGiven():
                self._gates.register(event.volume, now_ms=now, latched=bool(self._barred_mark))
            case ev.GateTaken():
                self._gates.forget(event.volume, closed=event.closed)
            case ev.GatesRenewed():
                self._take_renewed(event)
            case ev.GatesClosed():
                self._gates.closed(event.results, now)
            case ev.BarWanted():
                self._bar_wanted(event.node)
            case ev.LiftWanted():
                self._lift_wanted(event.node, now)
            case ev.YieldWanted():
                self._changed |= self._yielded != event.yielded
                self._yielded = event.yielded
            case ev.MessageWanted():
                self._take_message(event)
            case ev.Stop():
                self._stopping = True
            case ev.Farewell():
                self._beat(now, goodbye=True)
                self._beat(now, goodbye=True)
                return self._flush()
            case _ as unreachable:
                assert_never(unreachable)
        self._settle(now)
        return self._flush()

    def deadline_ms(self) -> int:
        """When `step` must be called again at the latest."""
        found = self._next_beat_ms
        for candidate in (
            self._detector.deadline_ms(),
            self._daemon.deadline_ms(self._now_ms),
            self._election.deadline_ms(self._observed(self._next_beat_ms)) if not self._election.leader else None,
            self._lease.end_ms if self._serving else None,
        ):
            if candidate is not None and candidate < found:
                found = candidate
        for peer in self._peers.values():
            resend = peer.outbox.deadline_ms()
            if resend is not None and resend < found:
                found = resend
        return found

    def _take_datagram(self, event: ev.Datagram) -> None:
        admission = self._admission
        conflicts = len(admission.conflicts)
        admitted = admission.admit(event.source, event.data, now_ms=event.now_ms, my_seq=self._beat_seq)
        if len(admission.conflicts) > conflicts:
            self._changed = True
            self._log(next(reversed(admission.conflicts.values())), serious=True)
        if admission.warnings:
            for warning in admission.warnings:
                self._log(warning, serious=True)
            admission.warnings.clear()
        if admitted is None:
            return
        peer = self._peers[admitted.number]
        if admitted.reborn:
            self._new_process(peer)
        if isinstance(admitted.message, Letter):
            self._note_heard(peer, event.now_ms)
            self._take_letter(peer, admitted.message)
        elif admitted.seq > peer.beat_seq:
            self._take_heartbeat(peer, admitted, admitted.message, event.now_ms)

    def _new_process(self, peer: _Peer) -> None:
        session = self._admission.session(peer.config.number)
        assert session is not None
        self._detector.reborn(peer.config.number)
        peer.beat = peer.claim = None
        peer.beat_seq = 0
        peer.inbox = Inbox()
        self._undelivered(peer.outbox.open(session.generation))
        self._observe = self._changed = self._urgent = True
        self._log(f"node={peer.config.name} heard generation={session.generation}")

    def _note_heard(self, peer: _Peer, now: int) -> None:
        before = self._detector.state(peer.config.number)
        if self._detector.heard(peer.config.number, now):
            self._observe = self._changed = self._urgent = True
            self._log(f"node={peer.config.name} {before}->alive")

    def _take_heartbeat(self, peer: _Peer, admitted: Admitted, beat: Heartbeat, now: int) -> None:
        number = peer.config.number
        self._note_heard(peer, now)
        before = peer.beat
        peer.beat, peer.beat_seq, peer.ref_ms = beat, admitted.seq, now
        if beat.flags & HeartbeatFlag.GOODBYE and self._detector.said_goodbye(number):
            self._observe = self._changed = self._urgent = True
            self._log(f"node={peer.config.name} alive->overdue cause=goodbye")
        if peer.mismatch != (beat.digest != self._digest):
            peer.mismatch = not peer.mismatch
            self._observe = self._changed = True
            verdict = "differs from ours: it counts for nothing here" if peer.mismatch else "equals ours again"
            self._log(f"node={peer.config.name} its configuration {verdict}", serious=peer.mismatch)
        if peer.mismatch:
            return
        hears_me = self._read_entries(peer, beat, now)
        self._read_claim(peer, beat, hears_me)
        if before is None or (before.daemon, before.flags, before.barred_mark) != (
            beat.daemon,
            beat.flags,
            beat.barred_mark,
        ):
            self._changed = True

    def _read_entries(self, peer: _Peer, beat: Heartbeat, now: int) -> bool:
        """What the peer says of everybody. True if it hears me."""
        hears_me = False
        for entry in beat.entries:
            if entry.lifted:
                self._promises.learn_lift(entry.number, entry.lifted)
            if entry.number == self._me.number:
                if entry.generation == self._generation and 0 < entry.seq <= self._beat_seq:
                    hears_me = not entry.flags & EntryFlag.OVERDUE
                    self._read_my_entry(peer, entry, now)
            elif entry.flags & EntryFlag.PROMISE and self._election.role == Role.LEADER:
                self._count_promise(entry.number, peer.config.number, entry, now)
        return hears_me

    def _read_my_entry(self, peer: _Peer, entry: Entry, now: int) -> None:
        peer.outbox.acked(entry.stream, entry.letter)
        if entry.flags & EntryFlag.ACK:
            self._lease.acked(peer.config.number, entry.seq)
        if entry.seq > peer.echoed:
            peer.echoed = entry.seq
            sent_ms = self._lease.sent_at(entry.seq)
            if sent_ms is not None:
                peer.rtt_ms = max(0, now - sent_ms - entry.held_ms)

    def _read_claim(self, peer: _Peer, beat: Heartbeat, hears_me: bool) -> None:
        claim = Claim(
            term=beat.term,
            role=beat.role,
            voted_for=beat.voted_for,
            supports=beat.supports,
            able=beat.daemon in (Daemon.OK, Daemon.GONE) and not beat.barred_mark,
            hears_me=hears_me,
        )
        if claim != peer.claim:
            peer.claim = claim
            self._observe = True

    def _take_letter(self, peer: _Peer, letter: Letter) -> None:
        if letter.to_generation != self._generation:
            return
        for message in peer.inbox.receive(letter):
            self._out.append(ev.Deliver(sender=peer.config.name, message=message))
        if peer.inbox.unreported >= ACK_AT_ONCE:
            self._urgent = True

    def _take_message(self, event: ev.MessageWanted) -> None:
        if event.to == self._me.name:
            self._out.append(ev.Deliver(sender=event.to, message=event.message))
            return
        chosen = [peer for peer in self._peers.values() if event.to in ("*", peer.config.name)]
        for peer in chosen:
            reachable = self._detector.alive(peer.config.number)
            if not reachable or not peer.outbox.put(event.message, event.now_ms):
                self._undelivered(1)
        if not chosen:
            self._log(f"message to {event.to!r}: no such node", serious=True)

    def _take_renewed(self, event: ev.GatesRenewed) -> None:
        late = self._gates.renewed(event.results, event.now_ms, self._lease.end_ms)
        if late:
            self._log(f"gates {', '.join(late)} renewed too late: closing them", serious=True)
            self._out.append(ev.CloseGates(volumes=late))
        failed = sorted(volume for volume, done in event.results.items() if not done)
        if failed:
            self._log(f"gates {', '.join(failed)} could not be renewed", serious=True)

    # --- what follows
    # ---------------------------------------------------------------------------------------------

    def _settle(self, now: int) -> None:
        self._settle_daemon(now)
        self._settle_silence(now)
        self._settle_election(now)
        if self._election.role == Role.LEADER:
            self._lead(now)
        self._follow_orders()
        self._settle_gates(now)
        self._settle_stable()
        if self._urgent or now >= self._next_beat_ms:
            self._beat(now)
        self._send_letters(now)
        gates = self._gates.states(now)
        if self._changed or gates != self._shown_gates or now - self._published_ms >= PUBLISH_MS:
            self._shown_gates = gates
            self._changed = False
            self._published_ms = now
            self._out.append(ev.Publish())

    def _settle_daemon(self, now: int) -> None:
        state = self._daemon.state(now)
        if state != self._daemon_state:
            self._log(f"hactld {self._daemon_state.name.lower()}->{state.name.lower()}", serious=state == Daemon.HUNG)
            self._daemon_state = state
            self._observe = self._changed = self._urgent = True

    def _settle_silence(self, now: int) -> None:
        for number in self._detector.newly_overdue(now):
            self._observe = self._changed = self._urgent = True
            self._log(
                f"node={self._peers[number].config.name} alive->overdue cause=silence of "
                f"{self._silence(number, now)} ms"
            )

    def _settle_election(self, now: int) -> None:
        before = self._election
        if not self._observe and before.leader:
            return
        self._observe = False
        after = before.step(self._observed(now))
        if after == before:
            return
        self._election = after
        if (after.term, after.role, after.leader) != (before.term, before.role, before.leader):
            self._changed = True
            role = after.role.name.lower()
            was = "" if after.role == before.role else f"{before.role.name.lower()}->"
            self._log(f"term={after.term} role={was}{role} leader={self._name(after.leader) or 'none'}")
        if after.rivals - before.rivals:
            self._log(f"INVARIANT BROKEN: {sorted(after.rivals)} also lead term {after.term}", serious=True)
        self._urgent = True

    def _observed(self, now: int) -> Observed:
        claims = {
            number: peer.claim
            for number, peer in self._peers.items()
            if peer.claim is not None and not peer.mismatch and self._detector.alive(number)
        }
        return Observed(
            now_ms=now,
            claims=claims,
            quorum=len(claims) + 1 >= self._needed,
            able=self._daemon_state in (Daemon.OK, Daemon.GONE) and not self._barred_mark and not self._stopping,
            durable_term=self._durable.term,
            durable_vote=self._durable.voted_for,
        )

    # --- bars
    # -----------------------------------------------------------------------------------------------------

    def _lead(self, now: int) -> None:
        """The leader's standing duties, from what is known now: inherit, bar who is silent, withdraw,
        count."""
        if self._table.term != self._election.term:
            self._table = BarTable(self._election.term, self._needed)
        self._heard_leader = True
        self._inherit()
        self._bar_silent(now)
        for order in self._table.orders():
            self._obey(order)
        for number, promise in self._promises.held.items():
            if self._is_durable(number):
                end_ms = now if promise.free else promise.ref_ms + self._timing.guard_ms
                self._note_promise(number, self._me.number, promise.mark, end_ms)

    def _inherit(self) -> None:
        """A promise or a bar that nobody lifted, and that I did not order: an earlier leader may have acted
        on it."""
        for number, promise in list(self._promises.held.items()):
            self._inherit_one(number, promise.mark)
        for peer in self._peers.values():
            if peer.beat is None or peer.mismatch:
                continue
            if peer.beat.barred_mark:
                self._inherit_one(peer.config.number, peer.beat.barred_mark)
            for entry in peer.beat.entries:
                if entry.flags & EntryFlag.PROMISE:
                    self._inherit_one(entry.number, entry.mark)
        if self._barred_mark:
            self._inherit_one(self._me.number, self._barred_mark)

    def _inherit_one(self, number: int, mark: int) -> None:
        if number != self._me.number and number not in self._peers:
            return
        if self._table.inherit(number, mark, self._promises.lifted.get(number, 0)):
            self._table.bar(number, forced=True, inherited=True, why="barred under an earlier leader")
            self._note_order(number, "barred cause=inherited")

    def _bar_silent(self, now: int) -> None:
        patient = now - self._start_ms < UNHEARD_PATIENCE_MS
        for number in self._peers:
            standing = self._table.barred(number)
            state = self._detector.state(number)
            if state == "alive":
                if standing is not None and self._table.withdraw(number):
                    self._note_order(number, "bar withdrawn cause=heard again, never confirmed")
            elif standing is None and not (state == "unheard" and patient):
                cause = "goodbye" if self._detector.gone(number) else state
                self._table.bar(number, forced=False, inherited=False, why=cause)
                self._note_order(number, f"barred cause={cause}")

    def _bar_wanted(self, node: str) -> None:
        number = self._numbers.get(node)
        if number is None or self._election.role != Role.LEADER or self._table.term != self._election.term:
            self._log(f"bar of {node!r} ignored: {'no such node' if number is None else 'this node does not lead'}")
            return
        self._table.bar(number, forced=True, inherited=False, why="hactld asked for it")
        self._note_order(number, "barred cause=asked by hactld")

    def _lift_wanted(self, node: str, now: int) -> None:
        """R6: only after the node said, of this very bar, that it knows it and has shut its gates."""
        number = self._numbers.get(node, 0)
        standing = self._table.barred(number) if self._election.role == Role.LEADER else None
        if standing is None or self._table.term != self._election.term:
            return
        if number == self._me.number:
            knows, shut = self._barred_mark, self._gave_up(now)
        else:
            beat = self._peers[number].beat
            heard = beat is not None and self._detector.alive(number)
            knows, shut = (beat.barred_mark if beat is not None and heard else 0), self._peers[number].gave_up
        if knows < standing.order.mark or not shut:
            return
        self._table.lift(number)
        self._note_order(number, "bar lifted")

    def _note_order(self, number: int, what: str) -> None:
        self._urgent = self._changed = True
        self._log(f"node={self._name(number)} {what} term={self._election.term}")

    def _count_promise(self, number: int, by: int, entry: Entry, now: int) -> None:
        end_ms = now if entry.flags & EntryFlag.FREE else now + self._timing.guard_ms - entry.age_ms
        self._note_promise(number, by, entry.mark, end_ms)

    def _note_promise(self, number: int, by: int, mark: int, end_ms: int) -> None:
        if number != by and self._table.term == self._election.term and self._table.promised(number, by, mark, end_ms):
            self._note_order(number, f"bar confirmed by={self._table.promisers(number)}")

    def _follow_orders(self) -> None:
        """Carry out what the present leader orders, as far as it concerns me now."""
        leader = self._election.leader
        if leader == self._me.number:
            for order in self._table.orders():
                if order.number == leader:
                    self._order_on_me(order)
            return
        peer = self._peers.get(leader)
        if peer is None or peer.beat is None or peer.beat.role != Role.LEADER or peer.beat.term != self._election.term:
            return
        self._heard_leader = True
        for order in peer.beat.orders:
            if order.number == self._me.number:
                self._order_on_me(order)
            else:
                self._obey(order)

    def _obey(self, order: Order) -> None:
        peer = self._peers.get(order.number)
        if peer is None:
            return
        overdue = not self._detector.alive(order.number)
        if self._promises.obey(order, overdue=overdue, ref_ms=peer.ref_ms, free=peer.gave_up):
            self._urgent = self._changed = True

    def _order_on_me(self, order: Order) -> None:
        if order.kind == OrderKind.BAR and order.forced and order.mark > self._barred_mark:
            self._barred_mark = order.mark
            self._gates.latch()
            self._observe = self._urgent = self._changed = True
            self._log("this node is barred: its gates stay shut until the leader lifts that", serious=True)
        elif order.kind == OrderKind.LIFT:
            self._promises.learn_lift(self._me.number, order.mark)
            if 0 < self._barred_mark <= order.mark:
                self._barred_mark = 0
                self._observe = self._urgent = self._changed = True
                self._log("this node is barred no more")

    # --- serving
    # --------------------------------------------------------------------------------------------------

    def _must_not_serve(self) -> bool:
        """For a reason of this node's own; what the others grant is the lease."""
        daemon_lost = self._daemon_state in (Daemon.HUNG, Daemon.ABSENT)
        return bool(self._barred_mark) or self._yielded or self._stopping or daemon_lost

    def _gave_up(self, now: int) -> bool:
        """R7. A gate of the process before this one may be open until its lease has ended."""
        fresh = now - self._start_ms < self._timing.guard_ms
        return self._must_not_serve() and not fresh and self._gates.all_shut(now)

    def _settle_gates(self, now: int) -> None:
        lease = self._lease
        if self._must_not_serve():
            lease.give_up(self._beat_seq)
        left_ms = lease.left_ms(now)
        if self._serving != (left_ms > 0):
            self._serving = left_ms > 0
            self._changed = True
            self._log(f"lease {'gained' if self._serving else 'lost'}")
        if self._must_not_serve() or (lease.end_ms and not left_ms):
            closing = self._gates.closing(now)
            if closing:
                self._out.append(ev.CloseGates(volumes=closing))
            return
        not_after_ms = lease.end_ms - self._timing.gate_ms
        if now <= not_after_ms:
            due = self._gates.due(now)
            if due:
                self._out.append(ev.RenewGates(volumes=due, not_after_ms=not_after_ms))

    # --- stable storage, heartbeats
    # -------------------------------------------------------------------------------

    def _settle_stable(self) -> None:
        wanted = Stable(
            generation=self._generation,
            term=self._election.term,
            voted_for=self._election.voted_for,
            promises=tuple(
                (number, promise.first, promise.mark) for number, promise in sorted(self._promises.held.items())
            ),
        )
        if wanted != self._requested:
            self._requested = wanted
            self._out.append(ev.Persist(stable=wanted))

    def _is_durable(self, number: int) -> bool:
        promise = self._promises.held[number]
        return (number, promise.first, promise.mark) in self._durable.promises

    def _acknowledges(self, peer: _Peer, now: int) -> bool:
        """R2."""
        fresh = now - self._start_ms < self._timing.guard_ms or not self._heard_leader
        return not fresh and not peer.mismatch and peer.config.number not in self._promises.held

    def _beat(self, now: int, *, goodbye: bool = False) -> None:
        gave_up = self._gave_up(now)
        self._seq += 1
        self._beat_seq = self._seq
        self._lease.sent(self._seq, now)
        if gave_up:
            self._lease.give_up(self._seq)
        body = encode_heartbeat(self._heartbeat(now, gave_up=gave_up, goodbye=goodbye))
        self._out.append(ev.Transmit(to=self._all, datagram=self._cipher.seal(self._seq, body)))
        self._next_beat_ms = now + self._timing.heartbeat_ms
        self._urgent = False

    def _heartbeat(self, now: int, *, gave_up: bool, goodbye: bool) -> Heartbeat:
        election, durable = self._election, self._durable
        voted = election.voted_for if (durable.term, durable.voted_for) == (election.term, election.voted_for) else 0
        role = election.role if election.role != Role.CANDIDATE or voted else Role.FOLLOWER
        leads = role == Role.LEADER and not goodbye
        return Heartbeat(
            flags=(HeartbeatFlag.GOODBYE if goodbye else 0) | (HeartbeatFlag.GAVE_UP if gave_up else 0),
            role=role if not goodbye else Role.FOLLOWER,
            daemon=self._daemon_state,
            digest=self._digest,
            term=election.term,
            leader=election.leader,
            voted_for=voted,
            supports=election.supports,
            barred_mark=self._barred_mark,
            entries=tuple(self._entry(peer, now) for peer in self._peers.values()) + self._own_entry(),
            orders=self._table.orders() if leads and self._table.term == election.term else (),
        )

    def _entry(self, peer: _Peer, now: int) -> Entry:
        number = peer.config.number
        session = self._admission.newest(number)
        flags = 0 if self._detector.alive(number) else EntryFlag.OVERDUE
        if session is not None and session is self._admission.session(number) and self._acknowledges(peer, now):
            flags |= EntryFlag.ACK
        mark = age_ms = 0
        promise = self._promises.held.get(number)
        if promise is not None and self._is_durable(number):
            flags |= EntryFlag.PROMISE | (EntryFlag.FREE if promise.free else 0)
            mark, age_ms = promise.mark, min(now - promise.ref_ms, MAX_AGE_MS)
        peer.inbox.unreported = 0
        return Entry(
            number,
            flags,
            session.generation if session is not None else 0,
            session.beat_seq if session is not None else 0,
            min(now - session.beat_ms, 0xFFFF) if session is not None else 0,
            mark,
            age_ms,
            self._promises.lifted.get(number, 0),
            peer.inbox.stream,
            peer.inbox.expected,
        )

    def _own_entry(self) -> tuple[Entry, ...]:
        """Only to tell others of a lift that they may have missed."""
        lifted = self._promises.lifted.get(self._me.number, 0)
        return (Entry(self._me.number, 0, 0, 0, 0, 0, 0, lifted, 0, 0),) if lifted else ()

    def _send_letters(self, now: int) -> None:
        for number, peer in self._peers.items():
            if peer.outbox.deadline_ms() is None:
                continue
            letters, lost = peer.outbox.due(now)
            self._undelivered(lost)
            for letter in letters:
                self._seq += 1
                datagram = self._cipher.seal(self._seq, encode_letter(letter))
                self._out.append(ev.Transmit(to=(number,), datagram=datagram))

    # --- showing
    # --------------------------------------------------------------------------------------------------

    def view(self, now_ms: int) -> View:
        """The picture for hactld and for people."""
        election = self._election
        nodes = {
            node.name: self._node_view(node, now_ms)
            for node in sorted(self._config.nodes, key=lambda node: node.number)
        }
        return View(
            me=self._me.name,
            generation=self._generation,
            at_ms=now_ms,
            term=election.term,
            role=_ROLE_NAMES[election.role],
            leader=self._name(election.leader),
            quorum=self._observed(now_ms).quorum,
            lease_left_ms=0 if self._must_not_serve() else self._lease.left_ms(now_ms),
            barred=bool(self._barred_mark),
            yielded=self._yielded,
            config_mismatch=tuple(peer.config.name for peer in self._peers.values() if peer.mismatch),
            conflict=tuple(self._admission.conflicts.values()),
            nodes=nodes,
            gates=self._gates.states(now_ms),
            drops=dict(self._admission.drops),
        )

    def _node_view(self, node: NodeConfig, now: int) -> NodeView:
        leads = self._election.role == Role.LEADER
        standing = self._table.barred(node.number) if leads else None
        safe_at_ms = self._table.safe_at_ms(node.number) if standing is not None else None
        barred = standing is not None if leads else node.number in self._promises.held
        safe_in_ms = None if safe_at_ms is None else max(0, safe_at_ms - now)
        if node.number == self._me.number:
            return NodeView(
                state="alive",
                generation=self._generation,
                heard_ms_ago=0,
                daemon=_DAEMON_NAMES[self._daemon_state],
                barred=barred or bool(self._barred_mark),
                confirmed=safe_at_ms is not None,
                safe_in_ms=safe_in_ms,
                gave_up=self._gave_up(now),
                why="this node",
                rtt_ms=None,
            )
        peer = self._peers[node.number]
        session = self._admission.session(node.number)
        return NodeView(
            state=self._detector.state(node.number),
            generation=session.generation if session is not None else 0,
            heard_ms_ago=self._silence(node.number, now),
            daemon=_DAEMON_NAMES[peer.beat.daemon] if peer.beat is not None else "absent",
            barred=barred,
            confirmed=safe_at_ms is not None,
            safe_in_ms=safe_in_ms,
            gave_up=peer.gave_up,
            why=self._why(peer, now),
            rtt_ms=None if peer.rtt_ms is None else float(peer.rtt_ms),
        )

    def _why(self, peer: _Peer, now: int) -> str:
        number = peer.config.number
        parts = []
        silence = self._silence(number, now)
        if self._detector.gone(number):
            parts.append("said goodbye")
        elif silence is None:
            age = now - self._start_ms
            hint = ", but its packets arrive: it does not hear us" if self._admission.unproven(number) else ""
            parts.append(f"not heard since this process began {age} ms ago{hint}")
        elif not self._detector.alive(number):
            parts.append(f"silent for {silence} ms, limit {self._timing.overdue_ms} ms")
        else:
            parts.append(f"heard {silence} ms ago")
        if peer.mismatch:
            parts.append("its configuration differs from ours")
        if peer.beat is not None and self._detector.alive(number):
            overdue = [
                name
                for entry in peer.beat.entries
                if entry.flags & EntryFlag.OVERDUE and (name := self._name(entry.number)) is not None
            ]
            if overdue:
                parts.append(f"does not hear {', '.join(overdue)}")
        standing = self._table.barred(number) if self._election.role == Role.LEADER else None
        if standing is not None:
            names = [self._name(promiser) or "?" for promiser in self._table.promisers(number)]
            parts.append(f"barred ({standing.why}), promised by {', '.join(names) or 'nobody yet'}")
        return "; ".join(parts)

    def _silence(self, number: int, now: int) -> int | None:
        return self._detector.silent_ms(number, now)

    def _name(self, number: int) -> str | None:
        if number == self._me.number:
            return self._me.name
        peer = self._peers.get(number)
        return None if peer is None else peer.config.name

    def _undelivered(self, count: int) -> None:
        if count:
            self._admission.drops[UNDELIVERED] += count

    def _log(self, text: str, serious: bool = False) -> None:
        self._out.append(ev.Log(text=text, serious=serious))

    def _flush(self) -> tuple[ev.Effect, ...]:
        out = tuple(self._out)
        self._out.clear()
        return out
