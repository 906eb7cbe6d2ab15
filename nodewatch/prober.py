"""Asking instead of waiting: what is sent out of turn when somebody falls silent.

    silence  0 ................ half of overdue_ms ................ overdue_ms
             heartbeats only    | ask, ask, ask ... every pause_ms |  overdue; heartbeats only
                                | once: two others, will you ask it?

An *ask* is this node's own heartbeat to that peer alone, on every link, marked "answer at once"; the answer is
the peer's own heartbeat. So an answer is worth exactly what a heartbeat is worth, and every rule of `lease.py` applies
to it unchanged. Who reads in a heartbeat that its sender has not heard him for half of overdue_ms knows that his own
heartbeats get lost, and repeats them every pause_ms too, until the sender says that it heard, or has given up.

Rules
  P1  Nothing is sent while nothing is silent: a quiet cluster has no probes.
  P2  Only first-hand packets are signs of life, acknowledgements or promises. What a third node tells (`Told`) is shown
      to people ("n3 hears it") and changes nothing else: not who is overdue here, not who leads, no lease, no bar. A
      bar needs a majority that is itself without a sign of life, so a break between two nodes moves nothing anyway.
  P3  A peer that said goodbye is not asked, nor one that was never heard.
  P4  A lease that runs out for want of acknowledgements, while gates need it, asks as if everybody were silent.

How often packet loss alone makes a healthy node overdue: docs/nodewatch.md computes it, tests/nodewatch/test_prober.py
computes it again and measures it in the simulation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nodewatch.detector import Detector
from nodewatch.lease import Timing

HELPERS = 2
_PAUSES = 16
"""In one overdue_ms."""


class Ask(NamedTuple):
    """My heartbeat, to this peer only."""

    to: int
    asking: bool
    """It shall answer at once."""


class Help(NamedTuple):
    """Ask `to` whether it hears `subject`."""

    to: int
    subject: int
    ident: int


class Tell(NamedTuple):
    """Tell `to` that `subject` was heard."""

    to: int
    subject: int
    ident: int
    heard_ms_ago: int


Probe = Ask | Help | Tell


class Silence:
    """What was tried in the last silence of one peer."""

    __slots__ = ("answered_ms", "asked_ms", "began_ms", "helpers", "ident", "times", "told")

    def __init__(self, now_ms: int, ident: int) -> None:
        self.ident = ident
        self.began_ms = self.asked_ms = now_ms
        self.times = 0
        self.helpers: tuple[int, ...] = ()
        self.answered_ms: int | None = None
        """First heard again."""
        self.told: dict[int, int] = {}
        """By helper: when it heard the peer, on my clock."""


class _Debt(NamedTuple):
    """A peer that waits for my heartbeat."""

    next_ms: int
    until_ms: int


class _Favour(NamedTuple):
    """`asker` wants to know when `subject` is heard."""

    asker: int
    subject: int
    ident: int
    until_ms: int


class Prober:
    """Changed in place. It sees by the detector who is silent."""

    def __init__(self, peers: Iterable[int], timing: Timing, detector: Detector) -> None:
        self._peers = tuple(peers)
        self._detector = detector
        self._overdue_ms = timing.overdue_ms
        self.suspect_ms = timing.overdue_ms // 2
        self.pause_ms = max(1, timing.overdue_ms // _PAUSES)
        self.silences: dict[int, Silence] = {}
        self._debts: dict[int, _Debt] = {}
        self._answered_ms: dict[int, int] = {}
        self._favours: list[_Favour] = []
        self._count = 0
        self._short_ms: int | None = None
        self._quiet_until_ms = 0
        """When last looked, nobody was to be asked for silence before that; what is heard makes it only later."""

    def configure(self, peers: Iterable[int]) -> None:
        """The configured nodes changed; the detector knows already. What concerns one that left is dropped."""
        self._peers = tuple(peers)
        self._quiet_until_ms = 0
        for known in (self.silences, self._debts, self._answered_ms):
            for peer in [peer for peer in known if peer not in self._peers]:
                del known[peer]
        here = set(self._peers)
        self._favours = [each for each in self._favours if {each.asker, each.subject} <= here]

    # --- what happened --------------------------------------------------------------------------------------------

    def heard(self, peer: int, now_ms: int) -> list[Tell]:
        """An authentic packet of the peer came. Gives who wanted to know."""
        silence = self.silences.get(peer)
        if silence is not None and silence.answered_ms is None:
            silence.answered_ms = now_ms
        if not self._favours:
            return []
        kept = [favour for favour in self._favours if now_ms < favour.until_ms]
        self._favours = [favour for favour in kept if favour.subject != peer]
        return [Tell(favour.asker, peer, favour.ident, 0) for favour in kept if favour.subject == peer]

    def asked(self, peer: int, now_ms: int, *, misses_me_ms: int, overdue: bool, wants: bool) -> None:
        """A heartbeat of the peer says that it last heard me `misses_me_ms` before, whether it has me overdue, and
        whether it wants to hear me at once."""
        complains = misses_me_ms >= self.suspect_ms and not overdue
        if not complains and not wants:
            self._debts.pop(peer, None)
            return
        next_ms = max(now_ms, self._answered_ms.get(peer, now_ms - self.pause_ms) + self.pause_ms // 2)
        # A complaint is answered until it ends, but not for ever; a mere wish once.
        until_ms = now_ms + self._overdue_ms - misses_me_ms if complains else 0
        self._debts[peer] = _Debt(next_ms, max(next_ms + 1, until_ms))

    def favour(self, asker: int, subject: int, ident: int, now_ms: int) -> list[Probe]:
        """`asker` wants to know whether I hear `subject`; one such favour per pair is remembered."""
        if subject not in self._peers or subject == asker or self._detector.gone(subject):
            return []
        silent_ms = self._detector.silent_ms(subject, now_ms)
        if silent_ms is not None and silent_ms < self.pause_ms:
            return [Tell(asker, subject, ident, silent_ms)]
        self._favours = [each for each in self._favours if each[:2] != (asker, subject) and now_ms < each.until_ms]
        self._favours.append(_Favour(asker, subject, ident, now_ms + self._overdue_ms))
        return [Ask(subject, True)]

    def told(self, helper: int, subject: int, ident: int, heard_ms_ago: int, now_ms: int) -> bool:
        """A helper heard the subject. True the first time in this silence; an answer to nothing is dropped."""
        silence = self.silences.get(subject)
        if silence is None or silence.ident != ident or helper not in silence.helpers:
            return False
        news = not silence.told and silence.answered_ms is None
        silence.told[helper] = now_ms - heard_ms_ago
        return news

    def short_of_acks(self, from_ms: int | None) -> None:
        """P4: from when on no gate could be renewed, if no acknowledgement came. None = no gate needs any."""
        self._short_ms = from_ms

    # --- what to do -----------------------------------------------------------------------------------------------

    def due(self, now_ms: int) -> list[Probe]:
        """What is to be sent now."""
        if self._quiet_before(now_ms + 1):
            return []
        found: list[Probe] = []
        for peer in self._peers:
            ask_at = self._ask_at(peer)
            if ask_at is not None and now_ms >= ask_at:
                found += self._ask(peer, now_ms)
        self._look(now_ms)
        for peer, debt in list(self._debts.items()):
            if now_ms >= debt.until_ms:
                del self._debts[peer]
            elif now_ms >= debt.next_ms:
                self._debts[peer] = debt._replace(next_ms=now_ms + self.pause_ms)
                self._answered_ms[peer] = now_ms
                if Ask(peer, True) not in found:
                    found.append(Ask(peer, False))
        return found

    def deadline_ms(self, now_ms: int, before_ms: int) -> int | None:
        """When `due` will have something to say, if that is before `before_ms`."""
        if self._quiet_before(before_ms):
            return None
        waiting = [debt.next_ms for debt in self._debts.values()]
        first = self._look(now_ms)
        if first is not None:
            waiting.append(first)
        return min(waiting, default=None)

    def _look(self, now_ms: int) -> int | None:
        """When the first peer is to be asked."""
        first = min((at for peer in self._peers if (at := self._ask_at(peer)) is not None), default=None)
        # Who is not asked now may be heard from now on, and fall silent later.
        later_ms = now_ms + self.suspect_ms
        self._quiet_until_ms = later_ms if first is None else min(first, later_ms)
        return first

    def _quiet_before(self, before_ms: int) -> bool:
        """The cheap answer, and nearly always the only one needed: nothing is to be sent earlier than that."""
        enough = self._short_ms is None or before_ms <= self._short_ms
        return enough and not self._debts and before_ms <= self._quiet_until_ms

    def _ask_at(self, peer: int) -> int | None:
        heard_ms = self._detector.heard_ms(peer)
        if heard_ms is None or not self._detector.alive(peer):
            return None
        at = heard_ms + self.suspect_ms
        if self._short_ms is not None and self._short_ms < at:
            at = self._short_ms
        silence = self.silences.get(peer)
        return at if silence is None else max(at, silence.asked_ms + self.pause_ms)

    def _ask(self, peer: int, now_ms: int) -> list[Probe]:
        silence = self.silences.get(peer)
        if silence is None or silence.answered_ms is not None:
            self._count += 1
            silence = self.silences[peer] = Silence(now_ms, self._count)
        silence.asked_ms = now_ms
        silence.times += 1
        found: list[Probe] = [Ask(peer, True)]
        silent_ms = self._detector.silent_ms(peer, now_ms)
        if not silence.helpers and silent_ms is not None and silent_ms >= self.suspect_ms:
            silence.helpers = self._choose_helpers(peer)
            found += [Help(helper, peer, silence.ident) for helper in silence.helpers]
        return found

    def _choose_helpers(self, subject: int) -> tuple[int, ...]:
        """By rotation, so that many silences do not burden the same two."""
        able = [peer for peer in self._peers if peer != subject and self._detector.alive(peer)]
        start = self._count % len(able) if able else 0
        return tuple((able[start:] + able[:start])[:HELPERS])
