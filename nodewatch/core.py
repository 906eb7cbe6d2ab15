"""One node's watch over the cluster: detector, election, bars, lease and gates put together. No I/O, no clock.

    watch = NodeWatch(config=..., me=..., key=..., restored=Stable(...), now_ms=...)
    effects = watch.step(Datagram(now_ms=..., source="10.77.1.12", data=...))     # carry them out, in order
    ... call step(Tick(...)) no later than watch.deadline_ms()

It is changed in place, as h11 and etcd's raft are. All it ever says about itself goes out in one heartbeat, sent every
heartbeat_ms and at once when something changed that others wait for; all that it knows of a peer is the peer's newest
heartbeat. So lost, late and repeated packets need no care beyond "only the newest counts".

Followers send theirs when the leader's comes: acknowledgements are fresh, and an idle node wakes up once per interval
for all of its peers, not once for each.

The order of a step: take the event in; if it changed anything (`_dirty`), `_settle`: who is overdue, who leads, which
bars stand, what must go to the disk. Then always: may I serve, is a heartbeat due, must somebody be shown something.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from nodewatch import events as ev
from nodewatch.admission import Admission, Admitted, Copy
from nodewatch.arbitration import THE_WITNESS, WITNESS
from nodewatch.barring import UNHEARD_PATIENCE_MS, Barring
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.daemonwatch import DaemonWatch
from nodewatch.detector import Detector
from nodewatch.election import Election, Observed
from nodewatch.engine import BUILTIN
from nodewatch.gates import Gates
from nodewatch.heartbeat import (
    ASKING,
    LETTER,
    MAX_AGE_MS,
    REQUEST,
    Daemon,
    Entry,
    EntryFlag,
    HeartbeatFlag,
    Malformed,
    Pulse,
    Request,
    Role,
    Said,
    Told,
    decode_letter,
    decode_request,
    decode_told,
    encode_heartbeat,
    encode_letter,
    encode_request,
    encode_said,
    encode_told,
    split_heartbeat,
)
from nodewatch.lease import OwnLease
from nodewatch.letters import ACK_AT_ONCE
from nodewatch.links import Links
from nodewatch.membership import NO_DIGEST, ChangeRefused, Membership
from nodewatch.peers import Peer
from nodewatch.prober import Ask, Help, Prober, Tell
from nodewatch.quorum import majority
from nodewatch.show import Scene, show
from nodewatch.stable import Stable
from nodewatch.view import GateState, View
from nodewatch.watchdog import Condition, Watchdog
from nodewatch.wire import MALFORMED, Cipher
from nodewatch.witnessing import Witnessing

PUBLISH_MS = 1000
STALL_WORTH_SAYING_MS = 100
_FAR_MS = 1 << 60
UNDELIVERED = "message to a peer's hactld not delivered"


class NodeWatch:
    """`restored` is what stable storage holds, with the new generation of this process already in it."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        me: NodeConfig,
        key: bytes,
        restored: Stable,
        now_ms: int,
        other_keys: tuple[bytes, ...] = (),
        left_armed: bool = False,
    ) -> None:
        """`key` seals what leaves; what comes may be sealed under that or under `other_keys`."""
        timing = config.timing
        others = [node for node in config.nodes if node.number != me.number]
        self._timing = timing
        self._me = me
        self._needed = majority(config.votes)
        self._start_ms = self._now_ms = now_ms
        self._membership = Membership(config, me.number, restored.accepted)
        self._generation = restored.generation
        self._key = key
        self._cipher = Cipher(key, config.uuid, me.number, restored.generation)
        self._seq = 0
        self._beat_seq = 0
        self._beats = 0
        """Heartbeats that went to everybody."""
        self._peers = {node.number: Peer(node, now_ms) for node in others}
        self._all = tuple(self._peers)
        self._numbers = {node.name: node.number for node in config.nodes}
        self._admission = Admission(
            keys=(key, *other_keys),
            uuid=config.uuid,
            me=me,
            generation=restored.generation,
            peers=others,
            now_ms=now_ms,
        )
        knows = config.engine != BUILTIN
        self._quorate = not knows
        self._detector = Detector(
            self._peers,
            heartbeat_ms=timing.heartbeat_ms,
            overdue_ms=config.silence_ms,
            now_ms=now_ms,
            present=frozenset() if knows else None,
        )
        self._links = Links(self._all, count=config.links, fresh_ms=timing.overdue_ms)
        # Nor is anybody asked for being silent: what such an engine took is not lost, and cannot be heard sooner.
        self._prober = Prober(self._all, replace(timing, overdue_ms=_FAR_MS) if knows else timing, self._detector)
        self._election = Election(
            me=me.number,
            needed=self._needed,
            retry_ms=timing.overdue_ms,
            term=restored.term,
            voted_for=restored.voted_for,
            wait_from_ms=now_ms + timing.overdue_ms,
        )
        self._barring = Barring(
            me=me.number,
            peers=self._peers,
            detector=self._detector,
            needed=self._needed,
            guard_ms=timing.guard_ms,
            restored=restored,
            now_ms=now_ms,
            names={node.number: node.name for node in config.nodes} | {WITNESS: THE_WITNESS},
            note=self._note_bar,
        )
        self._lease = OwnLease(nodes=config.votes, lease_ms=timing.lease_ms)
        self._gates = Gates(timing)
        self._out: list[ev.Effect] = []
        self._witness = Witnessing(
            config=config,
            me=me,
            peers=self._peers,
            detector=self._detector,
            barring=self._barring,
            lease=self._lease,
            gates=self._gates,
            restored=restored,
            now_ms=now_ms,
            emit=self._out.append,
            note=self._note_witness,
        )
        self._daemon = DaemonWatch(timing)
        self._daemon_state = Daemon.ABSENT
        dog = Watchdog(timing.watchdog_s * 1000, now_ms, left_armed=left_armed)
        self._watchdog = dog if config.watchdog else None
        self._watchdog_fences = config.watchdog_fences
        self._scene = Scene(
            me=me,
            nodes=config.nodes,
            generation=restored.generation,
            start_ms=now_ms,
            overdue_ms=config.silence_ms,
            peers=self._peers,
            admission=self._admission,
            detector=self._detector,
            barring=self._barring,
            gates=self._gates,
            links=self._links,
            prober=self._prober,
        )
        self._durable = self._requested = restored
        self._yielded = False
        self._stopping = False
        self._serving = False
        self._patience_ends_ms = now_ms + UNHEARD_PATIENCE_MS
        self._shown_gates: dict[str, GateState] = {}
        self._said: tuple[tuple[bool, list[int]], bytes] | None = None
        """The half of my heartbeats that seldom changes, and what it says of giving up and of links. None = make it
        anew."""
        self._next_beat_ms = now_ms
        self._last_beat_ms = now_ms - timing.heartbeat_ms
        self._again_ms = now_ms
        """A second heartbeat soon after a change of membership; in the past = it went out."""
        self._published_ms = now_ms - PUBLISH_MS
        self._dirty = True
        """Something is known that was not settled yet."""
        self._urgent = True
        """The others wait for a heartbeat that says so."""
        self._changed = True
        """hactld waits for a view."""

    def step(self, event: ev.Event) -> tuple[ev.Effect, ...]:
        """Take in what happened; give what is to be done about it, in order."""
        now = self._now_ms = event.now_ms
        stall_ms = self._detector.running(now)
        if stall_ms:
            self._daemon.excuse(stall_ms)
        if stall_ms >= STALL_WORTH_SAYING_MS:
            self._log(f"this process did not run for {stall_ms} ms more than it should have")
        match event:
            case ev.Datagram():
                self._take_datagram(event)
            case ev.GroupChanged():
                self._take_group(event)
            case ev.Tick():
                self._take_time(now)
            case ev.LinkChanged():
                self._take_link(event)
            case ev.DaemonBeat():
                self._daemon.beat(now)
                self._settle_daemon(now)
                if self._watchdog is not None and event.held is not None and event.lost is not None:
                    self._watchdog.told(event.held, event.lost)
            case ev.GatesRenewed():
                self._take_renewed(event)
            case ev.GatesClosed():
                self._gates.closed(event.results, now)
                self._changed = True
            case ev.Persisted():
                self._durable = event.stable
                self._dirty = self._urgent = True
            case ev.DaemonGone():
                self._daemon.gone(now)
                self._settle_daemon(now)
            case ev.GateGiven():
                self._gates.register(event.volume, now_ms=now, latched=bool(self._barring.barred_mark))
                self._changed = self._dirty = True
            case ev.GateTaken():
                self._gates.forget(event.volume, closed=event.closed)
                self._changed = self._dirty = True
            case ev.WitnessRead() | ev.Raced() | ev.WitnessChecked() | ev.WitnessForced():
                self._witness.take(event, self._election)
            case ev.BarWanted():
                self._bar_wanted(event.node)
            case ev.LiftWanted():
                self._lift_wanted(event.node, now)
            case ev.YieldWanted():
                self._changed = self._urgent = True
                self._yielded = event.yielded
            case ev.MessageWanted():
                self._take_message(event)
            case ev.ChangeProposed() | ev.ChangeOffered():
                self._take_change(event)
            case ev.ChangeMade():
                self._change(event)
            case ev.Stop():
                self._stopping = self._dirty = True
            case ev.Farewell():
                self._beat(now, goodbye=True)
                self._beat(now, goodbye=True)
                if self._watchdog is not None and self._condition(self._watchdog, now).clean:
                    self._out.append(ev.Disarm())
                return self._flush()
            case _ as unreachable:
                assert_never(unreachable)
        if self._dirty or self._witness.busy(now) or self._barring.postponed:
            self._settle(now)
        self._serve(now)
        self._speak(now)
        if self._watchdog is not None:
            self._guard(self._watchdog, now)
        return self._flush()

    def deadline_ms(self) -> int:
        """When `step` must be called again at the latest."""
        now, found = self._now_ms, self._next_beat_ms
        for candidate in (
            self._detector.deadline_ms(),
            # What a datagram's step came too late to see is due at once: only a tick looks at hactld.
            self._daemon.deadline_ms(now) if self._daemon.state(now) == self._daemon_state else now,
            None if self._election.leader else self._election.deadline_ms(self._observed(now)),
            self._shut_by_ms(now) if self._serving else None,
            self._prober.deadline_ms(now, found),
            self._witness.deadline_ms(now),
        ):
            if candidate is not None and candidate < found:
                found = candidate
        for peer in self._peers.values():
            resend = peer.outbox.deadline_ms()
            if resend is not None and resend < found:
                found = resend
        return found

    def view(self, now_ms: int) -> View:
        """The picture for hactld and for people."""
        return show(
            self._scene,
            now_ms,
            election=self._election,
            quorum=self._observed(now_ms).quorum,
            lease_left_ms=0 if self._must_not_serve() else self._lease.left_ms(now_ms),
            yielded=self._yielded,
            gave_up=self._gave_up(now_ms),
            daemon=self._daemon_state,
            membership=self._membership,
            witness=self._witness.show(now_ms),
            watchdog=None if self._watchdog is None else self._watchdog.words(now_ms),
        )

    # --- from the network -----------------------------------------------------------------------------------------

    def _take_datagram(self, event: ev.Datagram) -> None:
        admission = self._admission
        now = event.now_ms
        admitted = admission.admit(event.source, event.data, now_ms=now, my_seq=self._beat_seq, link=event.link)
        if admission.warnings:
            self._changed = True
            for warning in admission.warnings:
                self._log(warning, serious=True)
            admission.warnings.clear()
        if admitted is None:
            self._said = None  # a process that is not believed yet must be answered
            return
        peer = self._peers[admitted.number]
        try:
            if isinstance(admitted, Copy):
                self._links.heard(admitted.number, event.link, now, number=admitted.beat, late_ms=admitted.late_ms)
                return
            if admitted.reborn:
                self._new_process(peer)
            self._links.heard(admitted.number, event.link, now, number=admitted.beat)
            if not admitted.is_heartbeat:
                self._take_other(peer, admitted, now)
            elif admitted.seq > peer.beat_seq:
                self._take_heartbeat(peer, admitted, now)
        except Malformed:
            admission.drop(MALFORMED, event.source, now)

    def _take_link(self, event: ev.LinkChanged) -> None:
        """A link that works again is spoken on at once. One that does not is no reason to stop: a short lapse would
        interrupt the service for nothing, and the lease ends in time by itself."""
        if not self._links.changed(event.link, event.trouble):
            return
        self._changed = True
        self._urgent |= not event.trouble
        name = f"link {event.link + 1} ({self._me.addresses[event.link]})"
        self._log(f"{name} {f'down: {event.trouble}' if event.trouble else 'up'}", serious=bool(event.trouble))
        if self._links.cut_off:
            self._log("this node is cut off: none of its heartbeat links works", serious=True)

    def _new_process(self, peer: Peer) -> None:
        session = self._admission.session(peer.config.number)
        assert session is not None
        self._detector.reborn(peer.config.number)
        peer.forget()
        self._undelivered(peer.outbox.open(session.generation))
        self._dirty = self._changed = self._urgent = True
        self._log(f"node={peer.config.name} heard generation={session.generation}")

    def _note_heard(self, peer: Peer, now: int) -> None:
        number = peer.config.number
        before = self._detector.state(number)
        if self._detector.heard(number, now):
            self._dirty = self._changed = self._urgent = True
            self._log(f"node={peer.config.name} {before}->alive")
        for tell in self._prober.heard(number, now):
            self._send_probe(tell, now)

    def _take_heartbeat(self, peer: Peer, admitted: Admitted, now: int) -> None:
        said_bytes, pulses = split_heartbeat(admitted.body)
        before = peer.said
        news = peer.take_said(said_bytes, pulses, self._me.number, self._generation)
        peer.beat_seq, peer.ref_ms = admitted.seq, now
        self._note_heard(peer, now)
        if news:
            self._take_news(peer, before, pulses, now)
        if not peer.mismatch:
            pulse, wants = peer.my_pulse(pulses), admitted.kind == ASKING
            self._take_pulse(peer, pulse, now)
            if peer.my_entry is not None and pulse is not None:
                overdue = bool(peer.my_entry.flags & EntryFlag.OVERDUE)
                number = peer.config.number
                self._prober.asked(number, now, misses_me_ms=pulse.held_ms, overdue=overdue, wants=wants)
        if peer.config.number == self._election.leader and now - self._last_beat_ms >= self._timing.heartbeat_ms // 2:
            self._next_beat_ms = now

    def _take_pulse(self, peer: Peer, pulse: Pulse | None, now: int) -> None:
        """What a peer says of my own heartbeats: heard, and perhaps acknowledged."""
        mine = peer.my_entry
        if mine is None or pulse is None or pulse.seq > self._beat_seq:
            return
        if mine.flags & EntryFlag.ACK:
            self._lease.acked(peer.config.number, pulse.seq)
            if mine.flags & EntryFlag.WITNESSED:
                self._lease.acked(WITNESS, pulse.seq)
        if pulse.seq > peer.echoed:
            peer.echoed = pulse.seq
            sent_ms = self._lease.sent_at(pulse.seq)
            if sent_ms is not None:
                peer.rtt_ms = max(0, now - sent_ms - pulse.held_ms)

    def _take_news(self, peer: Peer, before: Said | None, pulses: bytes, now: int) -> None:
        """A heartbeat that says something new."""
        said = peer.said
        assert said is not None
        self._dirty = True
        self._changed |= before is None or _visible(before) != _visible(said)
        if said.flags & HeartbeatFlag.GOODBYE and self._detector.said_goodbye(peer.config.number):
            self._urgent = True
            self._log(f"node={peer.config.name} alive->overdue cause=goodbye")
        if peer.my_entry is not None:
            peer.outbox.acked(peer.my_entry.stream, peer.my_entry.letter)
        peer.granted = self._membership.grants(peer.config.number, said)
        if peer.mismatch == self._membership.counts(said):
            peer.mismatch = not peer.mismatch
            verdict = "differs from ours: it counts for nothing here" if peer.mismatch else "fits ours"
            self._log(f"node={peer.config.name} its configuration {verdict}", serious=peer.mismatch)
        if peer.mismatch:
            return
        for entry in said.entries:
            if entry.lifted:
                self._barring.promises.learn_lift(entry.number, entry.lifted)
        if self._election.role == Role.LEADER:
            self._barring.count_promises(peer, pulses, now)
        peer.claim = peer.make_claim()
        self._witness.heard(peer, now)

    # --- messages between the daemons -----------------------------------------------------------------------------

    def _take_other(self, peer: Peer, admitted: Admitted, now: int) -> None:
        """A letter, or what concerns a third node."""
        self._note_heard(peer, now)
        if admitted.kind == LETTER:
            self._take_letter(peer, admitted.body)
        elif peer.mismatch:
            return
        elif admitted.kind == REQUEST:
            request = decode_request(admitted.body)
            for probe in self._prober.favour(peer.config.number, request.subject, request.ident, now):
                self._send_probe(probe, now)
        else:
            told = decode_told(admitted.body)
            if self._prober.told(peer.config.number, told.subject, told.ident, told.heard_ms_ago, now):
                self._changed = True
                subject, silent = self._peers[told.subject].config.name, self._detector.silent_ms(told.subject, now)
                self._log(f"node={subject} silent here for {silent} ms, but {peer.config.name} hears it")

    def _take_letter(self, peer: Peer, body: bytes) -> None:
        letter = decode_letter(body)
        if letter.to_generation != self._generation:
            return
        for message in peer.inbox.receive(letter):
            self._out.append(ev.Deliver(sender=peer.config.name, message=message))
        self._said = None
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

    def _send_letters(self, now: int) -> None:
        for number, peer in self._peers.items():
            if peer.outbox.deadline_ms() is None:
                continue
            letters, lost = peer.outbox.due(now)
            self._undelivered(lost)
            for letter in letters:
                heard_there = peer.my_entry.links if peer.my_entry is not None else 0
                link = self._links.best(number, now, heard_there, peer.outbox.attempt)
                self._send(number, encode_letter(letter), link)

    def _send(self, number: int, body: bytes, link: int | None) -> None:
        self._seq += 1
        self._out.append(ev.Transmit(to=(number,), datagram=self._cipher.seal(self._seq, body), link=link))

    def _undelivered(self, count: int) -> None:
        if count:
            self._admission.drops[UNDELIVERED] += count

    # --- what follows ---------------------------------------------------------------------------------------------

    def _take_time(self, now: int) -> None:
        """What only time changes."""
        self._settle_daemon(now)
        for number in self._detector.newly_overdue(now):
            self._dirty = self._changed = self._urgent = True
            silence_ms = self._detector.silent_ms(number, now)
            self._log(f"node={self._peers[number].config.name} alive->overdue cause=silence of {silence_ms} ms")
        if not self._election.leader or self._patience_ends_ms <= now:
            self._dirty = True
            if self._patience_ends_ms <= now:
                self._patience_ends_ms = _FAR_MS

    def _take_group(self, event: ev.GroupChanged) -> None:
        """All beat now, and once more when they heard each other: leases that bridged the change are renewed."""
        self._dirty = self._changed = self._urgent = True
        self._again_ms = event.now_ms + self._timing.heartbeat_ms // 4
        self._quorate = event.quorate
        for number in self._detector.group(event.present):
            self._log(f"node={self._peers[number].config.name} alive->overdue cause=left corosync's group")

    def _settle_daemon(self, now: int) -> None:
        state = self._daemon.state(now)
        if state != self._daemon_state:
            self._log(f"hactld {self._daemon_state.name.lower()}->{state.name.lower()}", serious=state == Daemon.HUNG)
            self._daemon_state = state
            if state == Daemon.OK:
                self._witness.resume()
            self._dirty = self._changed = self._urgent = True

    def _settle(self, now: int) -> None:
        """Draw the conclusions from what changed."""
        self._dirty = False
        self._said = None
        self._elect(now)
        election = self._election
        if election.role == Role.LEADER:
            self._barring.lead(now, election.term, self._durable, self._witness.promise)
            self._lead_change(now)
        else:
            self._barring.follow(election.leader, election.term)
            self._membership.follow()
        self._witness.settle(
            now,
            election=election,
            heard=self._heard(),
            daemon=self._daemon_state,
            forbidden=self._must_not_serve(),
        )
        held = self._barring.promises.held.items()
        wanted = Stable(
            generation=self._generation,
            term=election.term,
            voted_for=election.voted_for,
            promises=tuple((number, promise.first, promise.mark) for number, promise in sorted(held)),
            accepted=self._membership.accepted,
            barred=self._barring.barred_mark,
            witness=self._witness.arbitration.base(),
        )
        if wanted != self._requested:
            self._requested = wanted
            self._out.append(ev.Persist(stable=wanted))

    def _elect(self, now: int) -> None:
        before = self._election
        after = before.step(self._observed(now))
        if after == before:
            return
        self._election = after
        self._urgent = True
        if (after.term, after.role, after.leader) != (before.term, before.role, before.leader):
            self._changed = True
            role = after.role.name.lower()
            was = "" if after.role == before.role else f"{before.role.name.lower()}->"
            self._log(f"term={after.term} role={was}{role} leader={self._scene.name(after.leader) or 'none'}")
        if after.rivals - before.rivals:
            self._log(f"INVARIANT BROKEN: {sorted(after.rivals)} also lead term {after.term}", serious=True)

    def _heard(self) -> frozenset[int]:
        """The others that are heard and count for quorum."""
        return frozenset(n for n, peer in self._peers.items() if peer.claim is not None and self._counted(peer))

    def _observed(self, now: int) -> Observed:
        heard = self._heard()
        claims = {
            number: peer.claim if peer.granted else replace(peer.claim, role=Role.FOLLOWER)
            for number, peer in self._peers.items()
            if peer.claim is not None and number in heard
        }
        daemon_able = self._daemon_state in (Daemon.OK, Daemon.GONE)
        return Observed(
            now_ms=now,
            claims=claims,
            quorum=self._quorate and len(claims) + 1 + self._witness.votes(heard, now) >= self._needed,
            witness_after=self._witness.votes_after,
            able=daemon_able and not (self._barring.barred_mark or self._stopping or self._membership.leaving),
            durable_term=self._durable.term,
            durable_vote=self._durable.voted_for,
        )

    # --- changes of the configuration: `membership.py` --------------------------------------------------------------

    def _lead_change(self, now: int) -> None:
        """The leader's books of the change that is under way."""
        membership = self._membership
        before = membership.accepted_by, membership.chosen_ms, membership.blocked, membership.must_take
        membership.lead(
            now,
            self._election.term,
            durable_term=self._durable.term,
            durable=self._durable.accepted,
            heard={n: p.said for n, p in self._peers.items() if p.said is not None and self._counted(p)},
            needed=self._needed,
            bars_settled=self._barring.table.settled(),
        )
        if before != (membership.accepted_by, membership.chosen_ms, membership.blocked, membership.must_take):
            self._changed = True
            if membership.chosen_ms is not None and before[1] is None:
                self._log(f"configuration version={membership.config.version + 1} chosen term={self._election.term}")

    def _counted(self, peer: Peer) -> bool:
        return not peer.mismatch and self._detector.alive(peer.config.number)

    def _take_change(self, event: ev.ChangeProposed | ev.ChangeOffered) -> None:
        election, membership = self._election, self._membership
        try:
            if isinstance(event, ev.ChangeOffered):
                refusal = "" if event.term == election.term and election.leader else "it is not of the present leader"
            else:
                refusal = membership.may_propose(event.digest) if self._leads() else "this node does not lead"
                if event.change.remove == self._me.number and membership.must_take is None:
                    refusal = refusal or "a leader does not remove itself"
            if refusal:
                raise ChangeRefused(refusal)
            membership.accept(election.term, event.change, event.digest)
        except ChangeRefused as error:
            self._log(f"configuration version={event.change.version} refused: {error}")
            return
        self._log(f"configuration version={event.change.version} accepted term={election.term}")
        self._election = election.spend_vote()
        self._look_again()

    def _look_again(self) -> None:
        """Who counts may have changed."""
        self._dirty = self._changed = self._urgent = True
        for peer in self._peers.values():
            peer.read_again()
            if peer.said is not None:
                peer.mismatch = not self._membership.counts(peer.said)
                peer.granted = self._membership.grants(peer.config.number, peer.said)

    def _change(self, event: ev.ChangeMade) -> None:
        """M5. Everything goes on; only who is counted changes."""
        now = event.now_ms
        try:
            config = self._membership.move(event.change)
        except ChangeRefused as error:
            self._log(f"configuration version={event.change.version} not taken: {error}", serious=True)
            return
        names = {node.number: node.name for node in config.nodes}
        self._witness.configure(config)
        for number in [number for number in self._peers if number not in names]:
            self._undelivered(self._peers.pop(number).outbox.open(0))
            self._detector.remove(number)
        for node in config.nodes:
            if node.number != self._me.number and node.number not in self._peers:
                self._peers[node.number] = Peer(node, now)
                self._detector.add(node.number)
                self._patience_ends_ms = now + UNHEARD_PATIENCE_MS
        self._all = tuple(self._peers)
        self._numbers = {name: number for number, name in names.items()}
        self._needed = majority(config.votes)
        self._key = event.keys[0]
        self._cipher = Cipher(self._key, config.uuid, self._me.number, self._generation)
        self._admission.configure(event.keys, [peer.config for peer in self._peers.values()])
        self._election = self._election.configure(self._needed, names, now)
        self._barring.configure(self._needed, names | {WITNESS: THE_WITNESS})
        self._lease.configure({*names, WITNESS}, config.votes)
        self._links.configure(self._all)
        self._prober.configure(self._all)
        self._scene = replace(self._scene, nodes=config.nodes)
        self._log(f"configuration version={config.version} nodes={','.join(names.values())}")
        self._out.append(ev.Configured(config=config))
        self._look_again()

    # --- bars -----------------------------------------------------------------------------------------------------

    def _bar_wanted(self, node: str) -> None:
        number = self._numbers.get(node)
        if number is None or not self._leads():
            self._log(f"bar of {node!r} ignored: {'no such node' if number is None else 'this node does not lead'}")
            return
        self._barring.bar(number)

    def _lift_wanted(self, node: str, now: int) -> None:
        number = self._numbers.get(node)
        if number is not None and self._leads():
            self._barring.lift(number, i_gave_up=self._gave_up(now))

    def _leads(self) -> bool:
        return self._election.role == Role.LEADER and self._barring.table.term == self._election.term

    def _note_bar(self, line: str) -> None:
        """Barring tells of a change."""
        self._dirty = self._urgent = self._changed = True
        if line:
            self._log(line, serious=line.startswith("this node is barred:"))

    def _note_witness(self, line: str, serious: bool) -> None:
        """The witness tells of a change."""
        self._dirty = self._urgent = self._changed = True
        if line:
            self._log(line, serious)

    # --- serving --------------------------------------------------------------------------------------------------

    def _must_not_serve(self) -> bool:
        """For a reason of this node's own; what the others grant is the lease."""
        daemon_lost = self._daemon_state in (Daemon.HUNG, Daemon.ABSENT)
        leaving = self._membership.leaving
        return bool(self._barring.barred_mark) or self._yielded or self._stopping or daemon_lost or leaving

    def _gave_up(self, now: int) -> bool:
        """R7. A gate of the process before this one may be open until its lease has ended."""
        fresh = now - self._start_ms < self._timing.guard_ms
        return self._must_not_serve() and not fresh and self._gates.all_shut(now)

    def _serve(self, now: int) -> None:
        lease = self._lease
        forbidden = self._must_not_serve()
        if forbidden:
            lease.give_up(self._beat_seq)
            if self._barring.barred_mark:
                self._gates.latch()
        left_ms = lease.left_ms(now)
        needs_acks = left_ms > 0 and not forbidden and self._gates.kept
        self._prober.short_of_acks(lease.end_ms - self._timing.gate_ms + 1 if needs_acks else None)
        if self._serving != (left_ms > 0):
            self._serving = left_ms > 0
            self._changed = True
            self._log(f"lease {'gained' if self._serving else 'lost'}")
        if forbidden or (lease.end_ms and now >= self._shut_by_ms(0)):
            closing = self._gates.closing(now)
            if closing:
                self._out.append(ev.CloseGates(volumes=closing))
            return
        not_after_ms = lease.end_ms - self._timing.gate_ms
        if now <= not_after_ms:
            due = self._gates.due(now)
            if due:
                self._out.append(ev.RenewGates(volumes=due, not_after_ms=not_after_ms))

    def _shut_by_ms(self, now: int) -> int:
        """R9: when the newest acknowledgement is too old to go on; the end of the lease if `now` is after that."""
        early_ms = self._lease.end_ms - self._timing.lease_ms + self._timing.shut_ms
        return early_ms if now < early_ms else self._lease.end_ms

    def _condition(self, watchdog: Watchdog, now: int) -> Condition:
        return Condition(
            lease=self._lease.left_ms(now) > 0 and not self._must_not_serve(),
            shut=self._gates.all_shut(now),
            daemon=self._daemon_state,
            held=watchdog.held,
            lost=watchdog.lost,
            fences=self._watchdog_fences,
        )

    def _guard(self, watchdog: Watchdog, now: int) -> None:
        """The rules of `watchdog.py`."""
        before = watchdog.objection
        seen = self._condition(watchdog, now)
        if watchdog.due(seen, now):
            self._out.append(ev.Pat(not_after_ms=self._lease.end_ms if watchdog.rests_on_lease(seen) else None))
        if watchdog.objection != before:
            self._changed = True
            self._log(f"watchdog {watchdog.words(now) or 'patted again'}", serious=bool(watchdog.objection))

    def _take_renewed(self, event: ev.GatesRenewed) -> None:
        late = self._gates.renewed(event.results, event.now_ms, self._lease.end_ms)
        if late:
            self._log(f"gates {', '.join(late)} renewed too late: closing them", serious=True)
            self._out.append(ev.CloseGates(volumes=late))

    # --- speaking -------------------------------------------------------------------------------------------------

    def _speak(self, now: int) -> None:
        """To the peers, and to hactld."""
        if self._urgent or now >= self._next_beat_ms:
            self._beat(now)
        for probe in self._prober.due(now):
            self._send_probe(probe, now)
        self._send_letters(now)
        gates = self._gates.states(now)
        if self._changed or gates != self._shown_gates or now - self._published_ms >= PUBLISH_MS:
            self._shown_gates = gates
            self._changed = False
            self._published_ms = now
            self._out.append(ev.Publish())

    def _send_probe(self, probe: Ask | Help | Tell, now: int) -> None:
        match probe:
            case Ask():
                self._send_heartbeat((probe.to,), now, asking=probe.asking)
            case Help():
                self._send(probe.to, encode_request(Request(probe.subject, probe.ident)), None)
            case Tell():
                self._send(probe.to, encode_told(Told(probe.subject, probe.ident, probe.heard_ms_ago)), None)

    def _send_heartbeat(
        self, to: tuple[int, ...], now: int, *, number: int = 0, asking: bool = False, goodbye: bool = False
    ) -> None:
        gave_up = self._gave_up(now)
        self._seq += 1
        self._beat_seq = self._seq
        self._lease.sent(self._seq, now)
        if gave_up:
            self._lease.give_up(self._seq)
        key = gave_up, [self._links.mask(peer, now) for peer in self._all]
        if goodbye:
            said = encode_said(self._make_said(now, gave_up=gave_up, goodbye=True))
        elif self._said is None or self._said[0] != key or self._fresh(now) or self._witness.busy(now):
            said = encode_said(self._make_said(now, gave_up=gave_up, goodbye=False))
            self._said = (key, said)
        else:
            said = self._said[1]
        body = encode_heartbeat(said, self._pulses(now), number=number, asking=asking)
        self._out.append(ev.Transmit(to=to, datagram=self._cipher.seal(self._seq, body)))

    def _beat(self, now: int, *, goodbye: bool = False) -> None:
        self._beats += 1
        self._send_heartbeat(self._all, now, number=self._beats, goodbye=goodbye)
        self._last_beat_ms = now
        # A follower's own timer is a little slower than the leader's: it answers the leader's heartbeat.
        pace_ms = self._timing.heartbeat_ms
        follows = self._election.leader not in (0, self._me.number)
        self._next_beat_ms = now + (pace_ms + pace_ms // 8 if follows else pace_ms)
        if now < self._again_ms:
            self._next_beat_ms = self._again_ms
        self._urgent = False

    def _fresh(self, now: int) -> bool:
        """The fresh silence of `lease.py`, and one heartbeat more so that its end is told."""
        return now - self._start_ms < self._timing.guard_ms + 2 * self._timing.heartbeat_ms

    def _acknowledges(self, peer: Peer, now: int) -> bool:
        """R2."""
        fresh = now - self._start_ms < self._timing.guard_ms or not self._barring.heard_leader
        return not fresh and peer.granted and peer.config.number not in self._barring.promises.held

    def _make_said(self, now: int, *, gave_up: bool, goodbye: bool) -> Said:
        election, durable = self._election, self._durable
        voted = election.voted_for if (durable.term, durable.voted_for) == (election.term, election.voted_for) else 0
        role = election.role if election.role != Role.CANDIDATE or voted else Role.FOLLOWER
        orders = self._barring.table.orders() if self._leads() and not goodbye else ()
        accepted = self._membership.accepted if durable.accepted == self._membership.accepted else None
        return Said(
            flags=(HeartbeatFlag.GOODBYE if goodbye else 0)
            | (HeartbeatFlag.GAVE_UP if gave_up else 0)
            | self._witness.flags(now),
            role=Role.FOLLOWER if goodbye else role,
            daemon=self._daemon_state,
            digest=self._membership.digest,
            config_version=self._membership.config.version,
            previous=self._membership.previous,
            durable_term=durable.term,
            accepted_term=0 if accepted is None else accepted.term,
            accepted=NO_DIGEST if accepted is None else bytes.fromhex(accepted.digest),
            term=election.term,
            leader=election.leader,
            voted_for=voted,
            supports=election.supports,
            barred_mark=min(self._barring.barred_mark, durable.barred),
            entries=(*(self._entry(peer, now) for peer in self._peers.values()), self._own_entry()),
            orders=orders,
            witness=self._witness.arbitration.words(),
        )

    def _entry(self, peer: Peer, now: int) -> Entry:
        number = peer.config.number
        newest = self._admission.newest(number)
        flags = 0 if self._detector.alive(number) else EntryFlag.OVERDUE
        if newest is not None and newest is self._admission.session(number) and self._acknowledges(peer, now):
            flags |= EntryFlag.ACK
            if newest.beat_seq == peer.beat_seq and self._witness.acknowledges(peer, self._election):
                flags |= EntryFlag.WITNESSED
        mark = self._barring.promised_mark(number, self._durable)
        if mark:
            flags |= EntryFlag.PROMISE
            if self._barring.promises.held[number].free:
                flags |= EntryFlag.FREE
        peer.inbox.unreported = 0
        return Entry(
            number,
            flags,
            0 if newest is None else newest.generation,
            mark,
            self._barring.promises.lifted.get(number, 0),
            peer.inbox.stream,
            peer.inbox.expected,
            self._links.mask(number, now),
        )

    def _own_entry(self) -> Entry:
        """Tells others of a lift that they may have missed."""
        return Entry(self._me.number, 0, 0, 0, self._barring.promises.lifted.get(self._me.number, 0), 0, 0)

    def _pulses(self, now: int) -> list[Pulse]:
        pulses = []
        for number, peer in self._peers.items():
            newest = self._admission.newest(number)
            promise = self._barring.promises.held.get(number)
            age_ms = 0 if promise is None else min(now - promise.ref_ms, MAX_AGE_MS)
            if newest is None:
                pulses.append(Pulse(0, 0, age_ms))
            else:
                # Acknowledged is what was *taken in*; a process that is not believed yet is only told that it was
                # heard.
                seq = peer.beat_seq if newest is self._admission.session(number) else newest.beat_seq
                pulses.append(Pulse(seq, min(now - newest.beat_ms, 0xFFFF), age_ms))
        pulses.append(Pulse(0, 0, 0))
        return pulses

    def _log(self, text: str, serious: bool = False) -> None:
        self._out.append(ev.Log(text=text, serious=serious))

    def _flush(self) -> tuple[ev.Effect, ...]:
        out = tuple(self._out)
        self._out.clear()
        return out


def _visible(said: Said) -> tuple[object, ...]:
    """What of a peer's heartbeat a view shows."""
    return said.flags, said.daemon, said.barred_mark, [entry.flags & EntryFlag.OVERDUE for entry in said.entries]
