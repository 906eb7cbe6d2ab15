"""When to pat the watchdog: the layer below all others. Pure; `_watchdog.py` does it.

The hardware (or softdog) resets the host when it was not patted for `Timing.watchdog_s`. No promise rests on it, unless
it is a level of fencing (W5): an old primary's address closes by itself, its disk is fenced. It is for a node that
should have stopped and cannot: its unmount hangs, its hactld hangs while it has volumes mounted, node watch or the
kernel hang themselves. Reset, such a node comes back as a backup instead of standing around with a dead file system.

Rules
  W1  Node watch pats from its one loop only, after a whole step: a loop that hangs does not pat.
  W2  With a lease it pats, unless all that this node has are volumes that it lost and cannot let go.
  W3  Without a lease it pats only if every gate is surely shut, and if hactld beats and has nothing that it lost. A
      hactld that does not beat is taken at its last word: it must have had nothing.
      So a node that was cut off and waits with its volumes mounted, address shut, is not reset: it did stop.
  W4  Node watch disarms the watchdog when it ends only if every gate is shut and hactld has nothing. Otherwise it stays
      armed: whoever stops node watch under mounted volumes has watchdog_s to start it again.
  W5  Where the watchdog is a level of fencing (`fences`), it is not patted without a lease as long as anything is in
      hand: a volume whose disk does not hold reservations may be written until this host is reset. Others count
      `Timing.reset_after_ms` from the end of the lease.
  W6  There, a node watch that follows one that died with the watchdog armed opens the device (which reloads it) only
      when it may pat, and takes something for in hand until hactld says otherwise. So dying and starting again puts
      the reset off once, not again and again.

It begins to count when the rule is first broken, so a node that stops in time is never reset.
"""

from __future__ import annotations

from typing import NamedTuple

from nodewatch.heartbeat import Daemon

PAT_MS = 1000


class Condition(NamedTuple):
    """What the rules look at."""

    lease: bool
    shut: bool
    """Every gate, surely."""
    daemon: Daemon
    held: int
    """Volumes that hactld has in hand and whose disk is still its own, as it last said."""
    lost: int
    """Volumes that it lost and has not let go, as it last said."""
    fences: bool = False
    """W5."""

    @property
    def clean(self) -> bool:
        """W4."""
        return self.shut and not self.held and not self.lost


def objection(seen: Condition) -> str:
    """Why the watchdog must not be patted; "" = it may."""
    if seen.lease:
        return "" if seen.held or not seen.lost else _stuck(seen)
    if not seen.shut:
        return "the lease is lost, and a gate may still be open"
    if seen.fences and (seen.held or seen.lost):
        return (
            f"the lease is lost with {seen.held + seen.lost} volume(s) in hand, and the watchdog is to fence this node"
        )
    if seen.daemon != Daemon.OK and (seen.held or seen.lost):
        had = seen.held + seen.lost
        return f"the lease is lost, and hactld is {seen.daemon.name.lower()} with {had} volume(s) in hand"
    return _stuck(seen) if seen.lost else ""


def _stuck(seen: Condition) -> str:
    return f"hactld cannot let go of {seen.lost} volume(s) that it lost"


class Watchdog:
    """Keeps the time of the last pat. Changed in place."""

    def __init__(self, timeout_ms: int, now_ms: int, *, left_armed: bool = False) -> None:
        """`left_armed`: by a node watch that died in this boot (W6)."""
        self.timeout_ms = timeout_ms
        self.held, self.lost = int(left_armed), 0
        self.objection = ""
        self.patted_ms = now_ms

    def told(self, held: int, lost: int) -> None:
        """What hactld said with its beat."""
        self.held, self.lost = held, lost

    def due(self, seen: Condition, now_ms: int) -> bool:
        """Is a pat to be given now?"""
        self.objection = objection(seen)
        if self.objection or now_ms - self.patted_ms < PAT_MS:
            return False
        self.patted_ms = now_ms
        return True

    @staticmethod
    def rests_on_lease(seen: Condition) -> bool:
        """W5: may the pat be given only while the lease runs? The loop may be held up before it pats."""
        return seen.fences and seen.lease and bool(seen.held or seen.lost)

    def words(self, now_ms: int) -> str:
        """Trouble, for people; "" = patted as it should be."""
        if not self.objection:
            return ""
        left_s = max(0, self.timeout_ms - (now_ms - self.patted_ms)) / 1000
        return f"{self.objection}: this host is reset in {left_s:.1f} s unless that ends"
