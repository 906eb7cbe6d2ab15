"""The witness: one more vote, kept on disks, for clusters that may fall into two equal halves.

Words. W is the witness: an odd set of LUNs that every node with storage sees, together one voter (number 0) beside the
nodes. A *claim* takes over a majority of its LUNs by compare-and-swap (`fencing/claim.py`): it succeeds only on LUNs
whose epoch is not beyond the one that the claimant expected, and leaves them with a new, higher epoch that names the
claimant, the *owner*. A *check* reads whether a claim still stands. hactld does both; node watch knows no disks. While
the nodes alone make a majority nobody uses W.

    idle --exactly half is heard--> racing --won--> using --a majority of nodes acknowledges again--> idle
                                       |               `--a check finds the claim gone--> lost
                                       `--lost--> lost --a majority of nodes is heard--> idle

W is to be one voter among others in the proof of `lease.py`: whoever it acknowledges it has not promised to bar, and it
votes once per term, whichever node speaks for it. For that:

  W1  Every heartbeat says of each LUN the newest claim that its sender knows of (epoch, owner), and whether the
      sender uses W. A node says `uses` from the moment that it asks for a claim (it may read on the LUNs that it won
      before hactld says so), and never uses a claim again once it said no.
  W2  A claim expects, per LUN, no more than the newest epoch whose owner itself said, in a heartbeat that also said
      that it does not use W. (Or: that this node owns; that nobody owns, as after formatting; or that stable storage
      holds by W6.) So no claim is taken over while it is used, or by somebody who did not hear that its use ended.
  W3  Only the claimant speaks for W, and only while it leads: it acknowledges the claimant's own heartbeats that left
      before a good check *began*; and other nodes' heartbeats that the claimant acknowledges and received before then.
  W4  The claimant's promise to bar a node is W's promise, too. Its age counts from when the use of W before this one
      must have ended, as this node heard it: from the words by W2. A forced claim (below): from when it was won.
  W5  W votes only for the claimant, only in terms beyond every term that the claimant had heard of when it won.
  W6  A node races only if it is not barred and holds every promise that it heard of and that was not lifted. The
      expected epochs go to stable storage only when that is so and it obeys a leader that hears a majority of nodes;
      a new process goes on from there.

Claim. W obeys R2, R5 and E1 as a node would.
Proof. Claims are totally ordered: two that won share a LUN, whose epochs grow. Let c' follow c, of K. By W2 the
  claimant of c' heard K say, after c, that it does not use W; so K uses c no more (W1), the use of c ended before that
  word was heard, and an acknowledgement or vote of W by c was given before. (R2) c' speaks for W only as leader, and
  a leader orders every bar that it or a node in sight promised: by W6 the claimant of c' knew of the bars under c,
  which K had promised itself when it led (W3, W4), so none of them ends without a lift. (R5) W acknowledged nobody
  between the end of c's use and c', and the age is no larger than the time since. (E1) By W5 K's terms were heard
  before c'. []

A check makes the same safe against a claim that is *forced*: an operator says that the silent half is off, and W is
taken over whatever its epochs. An acknowledgement rests on a check that began before it, so before the forced claim;
the lease of the old owner ends lease_ms after that. The terms jump by FORCED_TERMS, for votes of W never heard of.

What is lost is liveness, in corners: who lost a race, or finds W used by a node that has since died, waits until it
hears the other half again (or for the operator).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

WITNESS = 0
"""The witness among the node numbers."""
THE_WITNESS = "the witness"
RETRY_MS = 500
"""After a claim that did not come about: no LUN answered, or hactld went away."""
ANSWER_MS = 5000
"""hactld answers a race within this time, or it counts as not begun; what it wins later is not used."""
UNHEARD_PATIENCE_MS = 10_000
"""At a cold start nodes come one by one: who never heard the other half waits so long before it races."""
FRESH_CHECK_MS = 2000
"""A claim whose last good check began longer ago makes no quorum."""
FORCED_TERMS = 1 << 20


class Phase(StrEnum):
    IDLE = "idle"
    RACING = "racing"
    USING = "using"
    LOST = "lost"


class Word(NamedTuple):
    """What is known of one LUN. Owner 0: nobody claimed it since it was made."""

    epoch: int
    owner: int


NOTHING = Word(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the rules ask of the rest of node watch, now."""

    now_ms: int
    heard: int
    """Nodes that count here, this one included."""
    connected: bool
    """A node that is heard hears one that is not heard here."""
    first: bool
    """This node is the best placed of those heard."""
    serves: bool
    """Somebody on this side has a volume."""
    opposed: bool
    """The silent side may serve: it did not say that it gave up."""
    never_heard: bool
    """Some silent node was not heard since this process began."""
    hindrance: str
    """Why this node may not race; "" = it may."""
    nodes_suffice: bool
    """A majority of nodes acknowledges this node's newest heartbeats."""
    leads: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceCall:
    """Claim these LUNs, expecting these epochs."""

    ident: int
    expected: Mapping[str, int]
    forced: bool = False


class Arbitration:
    """This node's part in claiming and using the witness. All times on this node's clock. Changed in place."""

    __slots__ = (
        "_asked_ms",
        "_base",
        "_base_ms",
        "_clear",
        "_forced",
        "_half_since_ms",
        "_head_start_ms",
        "_ident",
        "_me",
        "_needed",
        "_released",
        "_retry_ms",
        "_start_ms",
        "_told",
        "_used_until_ms",
        "after_term",
        "checked_ms",
        "clear_ms",
        "epoch",
        "phase",
        "problem",
        "seen",
        "waits_for",
        "won_ms",
        "wwids",
    )

    def __init__(
        self,
        *,
        me: int,
        wwids: Sequence[str],
        needed: int,
        head_start_ms: int,
        base: Mapping[str, int],
        start_ms: int,
    ) -> None:
        """`base`: the expected epochs that stable storage holds (W6)."""
        self.wwids = tuple(wwids)
        self._me = me
        self._needed = needed
        self._head_start_ms = head_start_ms
        self._base = {wwid: base[wwid] for wwid in self.wwids if wwid in base}
        self._base_ms = dict.fromkeys(self._base, start_ms)
        self._start_ms = start_ms
        self._told: dict[int, tuple[Word, ...]] = {}
        """What each peer said while it did not use W."""
        self._released: dict[int, int] = {}
        """Since when it says so."""
        self.seen = [NOTHING] * len(self.wwids)
        """The newest claims known here, by the disks or by words."""
        self.phase = Phase.IDLE
        self.problem = ""
        """What hactld says of the LUNs; "" = all answer."""
        self.waits_for = ""
        """Why there is no race although exactly half is heard."""
        self.epoch = 0
        """Of the claim that is used."""
        self.won_ms = self._used_until_ms = start_ms
        self.checked_ms: int | None = None
        """When the last good check of the claim in use began."""
        self.clear_ms = start_ms
        """W4."""
        self.after_term = 0
        """W5."""
        self._ident = 0
        self._asked_ms = self._retry_ms = start_ms
        self._half_since_ms: int | None = None
        self._clear = start_ms
        self._forced = False

    @property
    def configured(self) -> bool:
        return bool(self.wwids)

    @property
    def uses(self) -> bool:
        return self.phase == Phase.USING

    @property
    def may_use(self) -> bool:
        """W1: what heartbeats say."""
        return self.phase in (Phase.RACING, Phase.USING)

    def backs(self, now_ms: int) -> bool:
        """Does W stand behind this node now? For quorum; what it grants has rules of its own."""
        newest = self.won_ms if self.checked_ms is None else self.checked_ms
        return self.uses and now_ms - newest < FRESH_CHECK_MS

    def configure(self, needed: int) -> None:
        """The nodes changed; the LUNs cannot. What somebody said who is a node no more still holds."""
        self._needed = needed

    # --- what is known --------------------------------------------------------------------------------------------

    def heard(self, peer: int, *, uses: bool, words: tuple[Word, ...], now_ms: int) -> None:
        """A peer's newest heartbeat (W1)."""
        if len(words) != len(self.wwids):
            return
        if uses:
            self._told.pop(peer, None)
            self._released.pop(peer, None)
        else:
            self._told[peer] = words
            self._released.setdefault(peer, now_ms)

    def read(self, found: Mapping[str, Word], problem: str) -> bool:
        """hactld read the LUNs. True if something is new."""
        before = (tuple(self.seen), self.problem)
        for place, wwid in enumerate(self.wwids):
            word = found.get(wwid)
            if word is not None and word.epoch >= self.seen[place].epoch:
                self.seen[place] = word
        self.problem = problem
        return before != (tuple(self.seen), self.problem)

    def expected(self) -> dict[str, int]:
        """W2. Without those LUNs of which nothing is known."""
        found = {}
        for place, wwid in enumerate(self.wwids):
            epoch = self._expect(place)[0]
            if epoch:
                found[wwid] = epoch
        return found

    def _expect(self, place: int) -> tuple[int, int]:
        """(epoch expected, my clock when its use had ended)."""
        wwid = self.wwids[place]
        best = (self._base.get(wwid, 0), self._base_ms.get(wwid, self._start_ms))
        if self.seen[place].owner in (0, self._me):
            best = max(best, (self.seen[place].epoch, self._used_until_ms))
        for peer, words in self._told.items():
            if words[place].owner in (0, peer):
                best = max(best, (words[place].epoch, self._released[peer]))
        return best

    def remember(self, now_ms: int) -> None:
        """The caller made sure of the conditions of W6."""
        for wwid, epoch in self.expected().items():
            if epoch != self._base.get(wwid):
                self._base[wwid], self._base_ms[wwid] = epoch, now_ms

    def base(self) -> tuple[tuple[str, int], ...]:
        """What is to be on stable storage."""
        return tuple(sorted(self._base.items()))

    def words(self) -> tuple[Word, ...]:
        """W1, in the order of the LUNs."""
        return tuple(self.seen)

    # --- racing ---------------------------------------------------------------------------------------------------

    def consider(self, now: Situation) -> RaceCall | None:
        """What follows from the situation: perhaps a race."""
        if self.phase == Phase.RACING and now.now_ms - self._asked_ms >= ANSWER_MS:
            self.not_won(self._ident, now.now_ms)
        if now.heard >= self._needed:
            self._half_since_ms = None
            self.waits_for = ""
            if self.phase != Phase.USING or now.nodes_suffice:
                self._stop(Phase.IDLE, now.now_ms)
            return None
        if now.heard != self._needed - 1 or now.connected:
            self._half_since_ms = None
            return None
        if self._half_since_ms is None:
            self._half_since_ms = now.now_ms
        if self.phase != Phase.IDLE:
            return None
        self.waits_for = now.hindrance or ("" if now.first else "another node of this side races")
        due = self._due_ms(now)
        if self.waits_for or due is None or now.now_ms < due:
            return None
        expected = self.expected()
        if len(expected) * 2 <= len(self.wwids):
            self.waits_for = "nothing is known of most of its LUNs since this node last heard a majority of nodes"
            return None
        self._clear = max(self._expect(place)[1] for place in range(len(self.wwids)))
        return self._call(expected, now.now_ms, forced=False)

    def _call(self, expected: Mapping[str, int], now_ms: int, *, forced: bool) -> RaceCall:
        self.phase = Phase.RACING
        self._forced = forced
        self._ident += 1
        self._asked_ms = now_ms
        return RaceCall(ident=self._ident, expected=expected, forced=forced)

    def force(self, now_ms: int) -> RaceCall | None:
        """The operator says that the silent half is off. None while a majority is heard, or W is in use here."""
        if self._half_since_ms is None or self.phase in (Phase.RACING, Phase.USING):
            return None
        return self._call({}, now_ms, forced=True)

    def _due_ms(self, now: Situation) -> int | None:
        assert self._half_since_ms is not None
        wait_ms = self._head_start_ms if now.opposed and not now.serves else 0
        due = max(self._half_since_ms + wait_ms, self._retry_ms)
        return max(due, self._start_ms + UNHEARD_PATIENCE_MS) if now.never_heard else due

    def deadline_ms(self) -> int | None:
        """When `consider` may want to be called although nothing changed."""
        if self.phase == Phase.RACING:
            return self._asked_ms + ANSWER_MS
        if self._half_since_ms is None or self.phase != Phase.IDLE or self.waits_for:
            return None
        return max(self._half_since_ms + self._head_start_ms, self._retry_ms)

    # --- answers of hactld ----------------------------------------------------------------------------------------

    def won(self, ident: int, epoch: int, claimed: Sequence[str], term: int, now_ms: int) -> bool:
        """The claim came about. True if it is used: nothing changed since it was asked for. `term`: the highest term
        heard of."""
        for place, wwid in enumerate(self.wwids):
            if wwid in claimed and epoch > self.seen[place].epoch:
                self.seen[place] = Word(epoch, self._me)
        if self.phase != Phase.RACING or ident != self._ident:
            return False
        self.phase = Phase.USING
        self.epoch = epoch
        self.won_ms = now_ms
        self.checked_ms = None
        self.clear_ms = now_ms if self._forced else self._clear
        self.after_term = term + (FORCED_TERMS if self._forced else 0)
        return True

    def beaten(self, ident: int, now_ms: int) -> None:
        """Somebody else was first, or claimed while this node did not hear it."""
        if self.phase == Phase.RACING and ident == self._ident:
            self._stop(Phase.LOST, now_ms)

    def not_won(self, ident: int, now_ms: int) -> None:
        """Whether the claim came about is not known, or it did not. Trying again is harmless: what this node owns it
        may expect."""
        if self.phase == Phase.RACING and ident == self._ident:
            self._stop(Phase.IDLE, now_ms)
            self._retry_ms = now_ms + RETRY_MS

    def held(self, epoch: int, began_ms: int) -> bool:
        """A check that began at `began_ms` found the claim of that epoch good. True if W acknowledges more by that."""
        if not self.uses or epoch != self.epoch or (self.checked_ms is not None and began_ms <= self.checked_ms):
            return False
        self.checked_ms = began_ms
        return True

    def gone(self, epoch: int, now_ms: int) -> bool:
        """A check found that the claim is gone. True if it was in use."""
        if not self.uses or epoch != self.epoch:
            return False
        self._stop(Phase.LOST, now_ms)
        return True

    def _stop(self, phase: Phase, now_ms: int) -> None:
        if self.uses:
            self._used_until_ms = now_ms
        self.phase = phase
        self.checked_ms = None
