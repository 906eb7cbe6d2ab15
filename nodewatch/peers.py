"""What is known of one other node: its newest heartbeat, and what follows from it without asking anybody else."""

from __future__ import annotations

from nodewatch.config import NodeConfig
from nodewatch.election import Claim
from nodewatch.heartbeat import (
    PULSE_BYTES,
    Daemon,
    Entry,
    EntryFlag,
    HeartbeatFlag,
    Malformed,
    Pulse,
    Said,
    decode_said,
    pulse_at,
)
from nodewatch.letters import Inbox, Outbox


class Peer:
    """Changed in place: touched for every packet."""

    __slots__ = (
        "_said_bytes",
        "beat_seq",
        "claim",
        "config",
        "echoed",
        "granted",
        "inbox",
        "mismatch",
        "my_entry",
        "my_place",
        "outbox",
        "ref_ms",
        "rtt_ms",
        "said",
        "since_ms",
    )

    def __init__(self, config: NodeConfig, start_ms: int) -> None:
        self.config = config
        self.since_ms = start_ms
        self.ref_ms = start_ms
        """When I last received a heartbeat that I may have acknowledged; R5: a fresh process may have forgotten one."""
        self.outbox = Outbox()
        self.echoed = 0
        """My newest heartbeat that it named."""
        self.rtt_ms: int | None = None
        self.mismatch = False
        """What it says counts for nothing: `membership.py`."""
        self.forget()

    def forget(self) -> None:
        """A new process of that node speaks: nothing that the one before said holds."""
        self.said: Said | None = None
        self.granted = False
        """It may get acknowledgements and votes, as far as its configuration goes."""
        self._said_bytes = b""
        self.beat_seq = 0
        self.my_entry: Entry | None = None
        """What it says about me, if it speaks of my present process."""
        self.my_place = 0
        self.claim: Claim | None = None
        self.inbox = Inbox()

    def read_again(self) -> None:
        """Take its next heartbeat for news: what follows from what it says has changed here."""
        self._said_bytes = b""

    @property
    def gave_up(self) -> bool:
        return self.said is not None and bool(self.said.flags & HeartbeatFlag.GAVE_UP)

    @property
    def able(self) -> bool:
        said = self.said
        return said is not None and said.daemon in (Daemon.OK, Daemon.GONE) and not said.barred_mark

    def take_said(self, said_bytes: bytes, pulses: bytes, me: int, generation: int) -> bool:
        """Take in the half of a heartbeat that seldom changes. False if it did not. Raises Malformed."""
        if said_bytes == self._said_bytes:
            if self.said is not None and len(pulses) != len(self.said.entries) * PULSE_BYTES:
                raise Malformed("not one pulse per entry")
            return False
        said = decode_said(said_bytes, pulses)
        self.said, self._said_bytes = said, said_bytes
        self.my_entry = None
        for place, entry in enumerate(said.entries):
            if entry.number == me and entry.generation == generation:
                self.my_entry, self.my_place = entry, place
        return True

    def my_pulse(self, pulses: bytes) -> Pulse | None:
        return None if self.my_entry is None else pulse_at(pulses, self.my_place)

    def make_claim(self) -> Claim | None:
        """The peer's part in the election. None while nothing was heard."""
        said, mine = self.said, self.my_entry
        if said is None:
            return None
        return Claim(
            term=said.term,
            role=said.role,
            voted_for=said.voted_for,
            supports=said.supports,
            able=self.able,
            hears_me=mine is not None and not mine.flags & EntryFlag.OVERDUE,
        )
