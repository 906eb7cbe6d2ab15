"""The lease to serve: how long it lasts, who can tell that it has ended, and why that is safe.

Words. A is a node that may serve. Its *gate* is whatever the kernel keeps open for a time and then closes by
itself (the lifetime of a served address). B is any other node. Each node has a clock of its own whose rate
differs from true time by at most d = drift_percent/100. Clocks are never compared, only durations travel.
T(x) is the true time of x.

Rules
  R1  A numbers its heartbeats; heartbeat s leaves at or after A's clock shows t_s.
  R2  B acknowledges A's heartbeat s only if it received it in A's present generation, has not promised to bar
      A, has the same configuration digest, and is not in its *fresh silence* (below). Acknowledgements ride
      on B's heartbeats.
  R3  Once a majority (A included) acknowledged heartbeats >= s, A's lease runs until t_s + lease_ms on A's
      clock.
  R4  A's gate is renewed at t only if t + gate_lifetime_s * 1000 + gate_slack_ms <= the end of the lease,
      where t is read from the clock just before the kernel is told; if it reads later than that afterwards,
      the gate is closed.
  R5  B's promise to bar A names an age: B's clock now minus its clock when it last received a heartbeat of A
      *before* it promised; after a start of B's process, at most the age of the process. It is on stable
      storage before it is sent.
  R6  A promise ends only by a leader's lift, and the leader lifts only after A said that it knows of the bar
      and has shut every gate. (A bar that was never confirmed may be withdrawn: nobody acted on it.)
  R7  A that says `gave up` in heartbeat s has no open gate and will use no acknowledgement of a heartbeat <=
      s.
  R8  A that knows of a bar against it (its *mark*) holds that on stable storage before it says so, and until the lift
      uses no lease and opens no gate, also as a new process. So when A says both that mark and `gave up`, the bar is
      confirmed by A alone and no wait is left: its gates are shut and stay shut until the lift (R6). That is how a node
      is fenced whose hactld hangs while its node watch lives, when there is no majority of others to promise.
  R9  A that runs closes its gates once the newest heartbeat that a majority acknowledged is older than shut_ms.
      The claim does not rest on it, for A may be frozen. But who takes over spares A's clients an I/O error by
      not fencing the disk before a running A must have shut its gates: by the proof below, with shut_ms for
      lease_ms, shut_guard_ms after A was last heard.

  R10 A node whose power was read back as off after the bar against it was confirmed has no gate any more: whatever it
      had open went with its kernel. So no wait is left, as long as the bar stands and that life of it is not heard
      again. (Booted anew it is a new generation, and by R2 gets no acknowledgement before the lift.)

Claim. Let a majority P have promised to bar A. A's gate is closed, and stays closed until a lift, from
      v + guard_ms - age      on the clock of whoever received, at v, the last-ended of those promises,
      guard_ms = lease_ms * (1 + d) / (1 - d) + ROUNDING_MS.
Proof. Take a lease of A, resting on heartbeat s. The majority that acknowledged >= s shares with P a node
  other than A (P does not contain A: nobody promises for itself; P and the acknowledgers without A together
  exceed the other nodes). Call it B. B received a heartbeat s' >= s before promising, last at its local time
  r. s left before s' arrived, so T(t_s) <= T(r). By R3 the lease ends at most lease_ms of A's clock after
  t_s: at a true time <= T(r) + lease_ms / (1 - d). B reported age = u - r at its local time u, thus T(r) <=
  T(u) - age / (1 + d), and T(u) <= T(v). The lease has ended when true time reaches T(v) + lease_ms/(1-d) -
  age/(1+d). The observer's clock runs at most 1 + d fast, so it has waited long enough after (1+d)/(1-d) *
  lease_ms - age. By R4 the gate closed no later than the lease ended. For a node B whose last heartbeat from
  A said `gave up`, R7 makes that lease empty: it ends at once. A later lease needs a new acknowledgement by
  some node of P, which by R2 comes only after its promise ended, by R6 after A had shut every gate.  []

Changes of the configuration. A majority is one of the configuration that the node made durable last. Those of two
  configurations that differ by one node meet, and a lease and a bar never rest on configurations further apart:
  `membership.py` has the rules and the argument. There "the same configuration digest" in R2 becomes "the same, or
  the direct successor's".

Fresh silence. B's process may have acknowledged A until the very moment it was killed, and may have lost what
  was not yet on stable storage. So for guard_ms after its start it acknowledges nobody, and also not before
  it heard a leader's list of bars; and it reports ages no larger than its own. For the same time after its
  start A itself never says `gave up`:
  the gate of the process before it may still be open in the kernel.

Rounding. Clocks are read in whole milliseconds, rounded down. That can make an age 1 ms too large, v 1 ms too
  small, the clock of R4 1 ms too early: ROUNDING_MS = 4 covers them.

Engines. Nothing above says how heartbeats travel or who decides that a node is silent: a datagram may be late by any
  time, come twice, or never. So the proof holds for every engine (`engine.py`). What an engine changes is when a
  healthy node's lease may lapse for want of acknowledgements; `corosync.violations` bounds that.

Outside the proof.
  A process that is stopped between reading the clock and telling the kernel (R4) may renew late when it runs again.
  That window is some ten microseconds per renewal, and the clock is read again right after it.
  Linux (6.1, net/ipv4/devinet.c, check_lifetime) looks for expired addresses at least 1 s after the newest change of
  any address with a lifetime, in any namespace. Ours are renewed together for that reason; a DHCP client that happens
  to renew its own in the one second after our last renewal can keep the gate open up to 0.95 s longer, if node watch is
  frozen too (else it closes the gate itself when the lease ends).
  A host that is frozen as a whole (a virtual machine that is paused) closes its gate when its timers run after the
  thaw. What waited in its network card may come first: one of Linux 7.3 in QEMU was seen to answer ARP for 2 ms more.
  The disk's own fence depends on none of this.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from nodewatch.arbitration import WITNESS
from nodewatch.quorum import kth_largest, majority

ROUNDING_MS = 4
WATCHDOG_TICK_MS = 1000
"""Watchdogs count in whole seconds, and need not reset in the middle of one."""
POWER_RUNS = 3
"""Runs of a fence agent until a node's power is known to be off: status, off, status."""
STAGGER_MS = 100
"""Between the candidacies of two neighbours in rank: longer than a round of votes with its fsync takes."""


@dataclass(frozen=True, slots=True)
class TimingRow:
    """One phase, counted from the fault (or from what `because` says), in ms."""

    phase: str
    best_ms: int
    worst_ms: int
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    heartbeat_ms: int = 200
    overdue_ms: int = 800
    lease_ms: int = 1700
    gate_lifetime_s: int = 1
    gate_slack_ms: int = 400
    drift_percent: int = 5
    daemon_hang_ms: int = 2000
    daemon_restart_ms: int = 10_000
    head_start_ms: int = 300
    """With a witness: so much later does a side race that serves nothing."""

    @property
    def guard_ms(self) -> int:
        """How long after a node was last heard its lease must have ended, on any other node's clock."""
        return self._elsewhere_ms(self.lease_ms)

    def _elsewhere_ms(self, here_ms: int) -> int:
        """What another node must count to be sure that `here_ms` have passed on the first one's clock."""
        drift = self.drift_percent
        return math.ceil(here_ms * (100 + drift) / (100 - drift)) + ROUNDING_MS

    @property
    def shut_ms(self) -> int:
        """R9: how old the newest acknowledged heartbeat may be before a node that runs shuts its own gates."""
        return min(self.lease_ms, self.overdue_ms + self.heartbeat_ms)

    @property
    def shut_guard_ms(self) -> int:
        """How long after a node was last heard it must have shut its gates, if it runs, on any other node's clock."""
        return self._elsewhere_ms(self.shut_ms)

    @property
    def fence_early_ms(self) -> int:
        """How long before the end of the last lease the disk may be fenced for the sake of the old node's clients."""
        return self.guard_ms - self.shut_guard_ms

    @property
    def gate_ms(self) -> int:
        """The longest that the kernel keeps a gate open after a renewal."""
        return self.gate_lifetime_s * 1000 + self.gate_slack_ms

    @property
    def renewable_ms(self) -> int:
        """How old the newest acknowledged heartbeat may be for a gate to be renewed."""
        return self.lease_ms - self.gate_ms

    @property
    def watchdog_s(self) -> int:
        """The watchdog resets a node that should have stopped and did not for so long. Until then each part had its
        chance: a new node watch to hold a lease again, a hung hactld to be noticed, a restarted one to come back."""
        return math.ceil((self.guard_ms + self.daemon_hang_ms + self.daemon_restart_ms) / 1000)

    @property
    def reset_after_ms(self) -> int:
        """Where the watchdog is a level of fencing: how long after the last possible end of a node's lease the node has
        been reset, or has let go of every volume, on any other node's clock.

        By W5 the last pat comes before the end of the lease. One more reload there may be after it: the kernel makes it
        when node watch dies with the device open (W6: the next node watch opens it only when it may pat)."""
        return self._elsewhere_ms(2 * self.watchdog_s * 1000 + WATCHDOG_TICK_MS)

    def watchdog_violations(self, real_s: int) -> list[str]:
        """As `violations`, for a watchdog that others count on: `real_s` is what the device took."""
        if real_s == self.watchdog_s:
            return []
        return [
            f"the device resets after {real_s} s, not after guard_ms + daemon_hang_ms + daemon_restart_ms = "
            f"{self.guard_ms} + {self.daemon_hang_ms} + {self.daemon_restart_ms} = {self.watchdog_s} s: others "
            f"take this node for reset 2 * {self.watchdog_s} + {WATCHDOG_TICK_MS // 1000} s after its lease, and it "
            f"may take 2 * {real_s} + {WATCHDOG_TICK_MS // 1000} s"
        ]

    def violations(self) -> list[str]:
        """Every promise that these values break, with its arithmetic; empty = they are good."""
        found = [
            f"{name} = {value} must lie between {low} and {high}"
            for name, value, low, high in (
                ("heartbeat_ms", self.heartbeat_ms, 20, 5000),
                ("overdue_ms", self.overdue_ms, 60, 60_000),
                ("lease_ms", self.lease_ms, 100, 120_000),
                ("gate_lifetime_s", self.gate_lifetime_s, 1, 60),
                ("gate_slack_ms", self.gate_slack_ms, 0, 5000),
                ("drift_percent", self.drift_percent, 0, 20),
                ("daemon_hang_ms", self.daemon_hang_ms, 500, 60_000),
                ("daemon_restart_ms", self.daemon_restart_ms, 0, 600_000),
                ("head_start_ms", self.head_start_ms, 0, 60_000),
            )
            if not low <= value <= high
        ]
        if found:
            return found
        beat, gate = self.heartbeat_ms, self.gate_ms
        if self.overdue_ms < 3 * beat:
            found.append(
                f"overdue_ms = {self.overdue_ms} < 3 * heartbeat_ms = {3 * beat}: two lost packets would "
                "make a healthy "
                f"node overdue; set overdue_ms to at least {3 * beat} or heartbeat_ms to at most "
                f"{self.overdue_ms // 3}"
            )
        needed = gate + beat + beat // 2
        if self.lease_ms < needed:
            found.append(
                f"lease_ms = {self.lease_ms} < gate_lifetime_s * 1000 + gate_slack_ms + 1.5 * heartbeat_ms = "
                f"{self.gate_lifetime_s * 1000} + {self.gate_slack_ms} + {beat + beat // 2} = {needed}: an "
                "acknowledgement "
                "comes up to one heartbeat late, so the gate could never be renewed in time; set lease_ms "
                f"to at least {needed}"
            )
        if self.gate_lifetime_s * 1000 < 3 * beat:
            found.append(
                f"gate_lifetime_s * 1000 = {self.gate_lifetime_s * 1000} < 3 * heartbeat_ms = {3 * beat}: "
                "two lost packets "
                f"would close the gate of a healthy node; lower heartbeat_ms or raise gate_lifetime_s"
            )
        return found

    def witness_violations(self) -> list[str]:
        """As `violations`, for a cluster with a witness: the head start must decide the race, and cost nothing."""
        found = []
        beat, spent = self.heartbeat_ms, self.overdue_ms + self.head_start_ms + 2 * STAGGER_MS
        if self.head_start_ms < beat + beat // 8:
            found.append(
                f"head_start_ms = {self.head_start_ms} < 1.125 * heartbeat_ms = {beat + beat // 8}: so much earlier "
                "may the side that serves nothing find the other one overdue, and win a race that it should lose; set "
                f"head_start_ms to at least {beat + beat // 8}"
            )
        if spent > self.guard_ms:
            found.append(
                f"head_start_ms = {self.head_start_ms} makes a takeover slower: overdue_ms + head_start_ms + "
                f"{2 * STAGGER_MS} (claim, vote, promise) = {spent} > {self.guard_ms}, when the lease of the lost node "
                f"must have ended; set head_start_ms to at most {self.head_start_ms - spent + self.guard_ms}"
            )
        return found

    def fencing_table(self) -> list[TimingRow]:
        """More rows, for a cluster that has the watchdog as a level of fencing."""
        worst = self.guard_ms + self.reset_after_ms
        because = (
            f"guard_ms + (2 * watchdog_s * 1000 + {WATCHDOG_TICK_MS}) * (1 + d) / (1 - d) + {ROUNDING_MS} = "
            f"{self.guard_ms} + {self.reset_after_ms} after it was heard: last pat before its lease ends, one reload "
            "when node watch dies"
        )
        return [TimingRow("node without contact has reset itself", (self.watchdog_s - 1) * 1000, worst, because)]

    def power_table(self, timeout_s: int) -> list[TimingRow]:
        """One more row, for a cluster that has power as a level of fencing. `timeout_s`: the longest that one run of an
        agent may take. Holds for an agent that succeeds: after one that failed the next try comes later."""
        worst = self.overdue_ms + 2 * STAGGER_MS + POWER_RUNS * timeout_s * 1000
        because = (
            f"overdue_ms + {2 * STAGGER_MS} + {POWER_RUNS} * timeout_s * 1000: once the bar is confirmed, status, off, "
            f"status of its agent, each at most timeout_s = {timeout_s}"
        )
        return [TimingRow("its power is read back as off", self.overdue_ms - self.heartbeat_ms, worst, because)]

    def table(self) -> list[TimingRow]:
        """Best and worst case of each phase of a takeover, from the values that run. A network delay of 0 is
        assumed."""
        beat, guard, barred = self.heartbeat_ms, self.guard_ms, self.overdue_ms + 2 * STAGGER_MS
        best, life = self.overdue_ms - beat, self.gate_lifetime_s * 1000
        silence = f"overdue_ms = {self.overdue_ms} of silence, last heard up to heartbeat_ms = {beat} before the fault"
        ended = f"lease_ms * (1 + d) / (1 - d) + {ROUNDING_MS} = {guard} after it was heard, d = {self.drift_percent} %"
        gate = (
            f"renewed up to {self.renewable_ms} after the last acknowledged heartbeat left, stays up to {self.gate_ms}"
        )
        cut = f"{self.shut_ms} = overdue_ms + heartbeat_ms after the last acknowledged heartbeat left, closed actively"
        reset = (
            f"guard_ms + daemon_hang_ms + daemon_restart_ms = {guard} + {self.daemon_hang_ms} + "
            f"{self.daemon_restart_ms} in whole seconds after it should have stopped; patted once a second until then"
        )
        hang = f"no beat for daemon_hang_ms = {self.daemon_hang_ms}, then closed actively"
        return [
            TimingRow("detect", best, self.overdue_ms, silence),
            TimingRow(
                "elect, if it led", best, self.overdue_ms + STAGGER_MS, f"two rounds, one stagger of {STAGGER_MS}"
            ),
            TimingRow("bar confirmed", best, barred, "a majority promised: one round trip and one fsync"),
            TimingRow("its lease must have ended", guard - beat, max(guard, barred), ended),
            TimingRow("gate of a cut-off node closes", max(0, self.shut_ms - 2 * beat), self.shut_ms, cut),
            TimingRow("gate of a stopped node watch closes", max(0, life - beat), self.lease_ms, gate),
            TimingRow("gate of a hung daemon closes", self.daemon_hang_ms - beat, self.daemon_hang_ms, hang),
            TimingRow("watchdog resets who cannot stop", (self.watchdog_s - 1) * 1000, self.watchdog_s * 1000, reset),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientTiming(Timing):
    """For an engine that delivers nothing while it forms a new membership (`corosync.py`): what is silence with the
    builtin engine is not with that one, so R9 waits until the kernel would shut the gates anyway."""

    @property
    def shut_ms(self) -> int:
        return self.lease_ms - self.gate_slack_ms


class OwnLease:
    """R3 for this node: which of my heartbeats did a majority acknowledge, and until when may I serve?

    All times on my own clock. Changed in place: it is touched for every packet.
    """

    __slots__ = ("_acked", "_floor", "_lease_ms", "_needed", "_sent", "end_ms")

    def __init__(self, *, nodes: int, lease_ms: int) -> None:
        """`nodes` that vote; with a witness, it is one more."""
        self._needed = majority(nodes) - 1
        self._lease_ms = lease_ms
        self._sent: deque[tuple[int, int]] = deque()
        self._acked: dict[int, int] = {}
        self._floor = 0
        self.end_ms = 0

    def sent(self, seq: int, now_ms: int) -> None:
        """Heartbeat `seq` is about to leave; `now_ms` was read before."""
        self._sent.append((seq, now_ms))
        while self._sent and self._sent[0][1] + self._lease_ms < now_ms:
            self._sent.popleft()
        if self._needed == 0:
            self._advance(seq)

    def acked(self, peer: int, seq: int) -> bool:
        """Peer acknowledges my heartbeats up to `seq`. True if my lease grew longer."""
        if seq <= self._acked.get(peer, 0):
            return False
        self._acked[peer] = seq
        reached = kth_largest(self._acked.values(), self._needed)
        return reached is not None and self._advance(reached)

    def configure(self, members: Collection[int], votes: int) -> None:
        """The configured nodes changed. The lease that runs goes on: `membership.py` says why that is safe."""
        self._needed = majority(votes) - 1
        self._acked = {peer: seq for peer, seq in self._acked.items() if peer in members}

    def newest_before(self, at_ms: int) -> int:
        """The newest heartbeat that had surely left before `at_ms`; 0 = none that is recent."""
        return next((seq for seq, sent_ms in reversed(self._sent) if sent_ms < at_ms), 0)

    def rests_on_nodes(self, since_ms: int) -> bool:
        """Did a majority, without the witness, acknowledge a heartbeat that left since then?"""
        seqs = [seq for peer, seq in self._acked.items() if peer != WITNESS]
        reached = kth_largest(seqs, self._needed)
        left_at = None if reached is None else self.sent_at(reached)
        return left_at is not None and left_at >= since_ms

    def give_up(self, seq: int) -> None:
        """R7: use no acknowledgement of a heartbeat <= `seq` any more."""
        self._floor = max(self._floor, seq)
        self.end_ms = 0

    def left_ms(self, now_ms: int) -> int:
        return max(0, self.end_ms - now_ms)

    def sent_at(self, seq: int) -> int | None:
        """When heartbeat `seq` left, if that is recent."""
        for known, at_ms in reversed(self._sent):
            if known == seq:
                return at_ms
        return None

    def _advance(self, seq: int) -> bool:
        if seq <= self._floor:
            return False
        left_at = self.sent_at(seq)
        if left_at is None or left_at + self._lease_ms <= self.end_ms:
            return False
        self.end_ms = left_at + self._lease_ms
        return True
