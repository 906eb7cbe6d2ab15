"""What must hold at every event, judged from outside and by true time. Every breach ends the run (`World.fail`).

    served   never two open gates of one volume; none open when a leader says that it must be shut by now
    disk     never two handles that the disk lets write; no key comes back; an owned disk never stands open; no write
             of an owner lands after a newer owner has the disk; labels and generations only grow
    epochs   meant and used once; a handle is taken only when the disk really is the taker's
    data     no answer older than an acknowledged write; no acknowledged write overwritten by an older one
    words    terms only grow; one leader and one vote per term; votes and promises are told only once they are durable

A disk without persistence that loses its power is open to everybody until it is acquired again (docs/limits.md says
so): for such a run the checks of the disk and of the data end there, all others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fencing.label import Label
from fencing.model import Key
from hactl.record import Held
from nodewatch.heartbeat import HEARTBEATS, EntryFlag, Malformed, decode_said, split_heartbeat
from nodewatch.view import View
from nodewatch.wire import HEADER_BYTES, TAG_BYTES

from .disk import unpack
from .kernel import FIRST_DATA_BLOCK

if TYPE_CHECKING:
    from .cluster import Cluster
    from .disk import Unit
    from .host import Host


@dataclass(slots=True)
class Claim:
    """A leader's word that a node's lease will have ended: from then on its gate must be shut, until the bar ends."""

    leader: str
    term: int
    safe_at: float


@dataclass(slots=True)
class DiskHistory:
    volume: str
    seen: set[int]
    gone: set[int]
    closed: bool
    generation: int
    label_epoch: int
    void: bool = False
    """A power loss opened it: nothing can be demanded of it any more."""


class Checker:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._disks: dict[str, DiskHistory] = {}
        self._held: dict[tuple[str, str], int] = {}
        self._taken: dict[str, set[int]] = {}
        self._meant: dict[tuple[str, str], int] = {}
        self._acked: dict[tuple[str, int], int] = {}
        self._leaders: dict[int, str] = {}
        self._terms: dict[str, tuple[int, int]] = {}
        self._generations: dict[str, int] = {}
        self._claims: dict[str, Claim] = {}
        self._votes: dict[tuple[str, int], int] = {}
        self._said: dict[str, bytes] = {}
        self.at_next_intent: Callable[[Host], None] | None = None
        """Whom a fault waits for (`faults.py`)."""
        self.top_term = 0
        self.takeovers = 0
        self.acks = 0
        self.reads = 0

    def fail(self, what: str) -> None:
        self._world.fail(what)

    # -- who serves --------------------------------------------------------------------------------------------------

    def gate_renewed(self, host: Host, volume: str, shut_at: float) -> None:
        for other in self._cluster.hosts.values():
            if other is not host and other.kernel.gate_open(volume):
                self.fail(f"{host.name} has the address of {volume} up while {other.name} has it up")
        self._hold_to(host, shut_at)

    def exported(self, host: Host, volume: str) -> None:
        for other in self._cluster.hosts.values():
            if other is not host and other.kernel.serves(volume) and host.kernel.serves(volume):
                self.fail(f"{host.name} and {other.name} both serve {volume}")

    def viewed(self, host: Host, view: View) -> None:
        """Node watch of `host` shows this."""
        generation, term = self._terms.get(host.name, (0, 0))
        if view.generation == generation and view.term < term:
            self.fail(f"{host.name} went back from term {term} to {view.term}")
        self._terms[host.name] = (view.generation, view.term)
        if view.role != "leader":
            return
        first = self._leaders.setdefault(view.term, host.name)
        if first != host.name:
            self.fail(f"{first} and {host.name} both lead term {view.term}")
        if view.term < self.top_term:
            return  # deposed, and does not know it yet: it finds out before it can serve
        self.top_term = view.term
        now = self._world.now
        for name, node in view.nodes.items():
            number = self._cluster.numbers[name]
            other = self._cluster.hosts[number]
            if name == host.name or not node.confirmed or node.safe_in_ms is None:
                self._claims.pop(name, None)
                continue
            safe_at = now + (node.safe_in_ms + 1) / host.rate
            self._claims[name] = Claim(host.name, view.term, safe_at)
            for volume in self._cluster.volumes:
                shut_at = other.kernel.gate_shut_at(volume)
                if shut_at is not None:
                    self._hold_to(other, shut_at)

    def _hold_to(self, host: Host, shut_at: float) -> None:
        claim = self._claims.get(host.name)
        if claim is not None and claim.term == self.top_term and shut_at > claim.safe_at:
            self.fail(
                f"{claim.leader} says that the lease of {host.name} has ended {shut_at - claim.safe_at:.1f} ms before "
                "its address goes"
            )

    def watch_started(self, host: Host, generation: int) -> None:
        if generation <= self._generations.get(host.name, 0):
            self.fail(f"{host.name}: generation {generation} of node watch was used before")
        self._generations[host.name] = generation

    # -- what is said ------------------------------------------------------------------------------------------------

    def sent(self, host: Host, datagram: bytes) -> None:
        """Votes and promises must be on stable storage before they are told. (`FastSeal` leaves bodies clear.)"""
        body = datagram[HEADER_BYTES:-TAG_BYTES]
        if body[0] not in HEARTBEATS:
            return
        try:
            said_bytes, pulses = split_heartbeat(body)
            if self._said.get(host.name) == said_bytes:
                return
            said = decode_said(said_bytes, pulses)
        except Malformed as error:
            self.fail(f"{host.name} sends what cannot be read: {error}")
        self._said[host.name] = said_bytes
        stable = host.watch.stable
        if said.voted_for:
            if stable.term < said.term or (stable.term == said.term and stable.voted_for != said.voted_for):
                self.fail(f"{host.name} tells its vote for n{said.voted_for} in term {said.term} before it is durable")
            first = self._votes.setdefault((host.name, said.term), said.voted_for)
            if first != said.voted_for:
                self.fail(f"{host.name} votes for n{first} and n{said.voted_for} in term {said.term}")
        durable = {promise[0]: promise[2] for promise in stable.promises}
        for entry in said.entries:
            if entry.flags & EntryFlag.PROMISE and durable.get(entry.number, 0) < entry.mark:
                self.fail(f"{host.name} tells its promise to bar n{entry.number} before it is durable")

    # -- disks -------------------------------------------------------------------------------------------------------

    def add_disk(self, unit: Unit, volume: str, epoch: int) -> None:
        keys = set(unit.registrations.values())
        self._disks[unit.name] = DiskHistory(volume, keys, set(), unit.type is not None, unit.generation, epoch)

    def unit_restarted(self, unit: Unit) -> None:
        history = self._disks[unit.name]
        history.generation = 0
        history.void = history.void or unit.opened

    def unit_changed(self, unit: Unit, what: str) -> None:
        history = self._disks[unit.name]
        if unit.generation < history.generation:
            self.fail(f"{unit.name}: the generation went back")
        history.generation = unit.generation
        present = set(unit.registrations.values())
        history.gone |= history.seen - present
        history.seen |= present
        if history.void:
            return
        back = history.gone & present
        if back:
            self.fail(f"{what}: {Key.parse(min(back))} was removed from {unit.name} and is back")
        if unit.type is None and history.closed:
            self.fail(f"{what}: {unit.name} was owned and stands open")
        history.closed = unit.type is not None
        self._one_handle(unit, history)

    def _one_handle(self, unit: Unit, history: DiskHistory) -> None:
        present = set(unit.registrations.values())
        able = [name for (name, volume), key in self._held.items() if volume == history.volume and key in present]
        if len(able) > 1 and not history.void:
            self.fail(f"{' and '.join(able)} have handles that {unit.name} lets write")

    def label_written(self, unit: Unit, label: Label) -> None:
        history = self._disks[unit.name]
        if label.epoch < history.label_epoch and not history.void:
            self.fail(f"{unit.name}: the label went back from epoch {history.label_epoch} to {label.epoch}")
        history.label_epoch = max(history.label_epoch, label.epoch)

    def meant(self, host: Host, volume: str, epoch: int) -> None:
        """The record of `host` says that it means to use this epoch."""
        if epoch <= self._meant.get((host.name, volume), 0):
            self.fail(f"{host.name} means to use epoch {epoch} of {volume} again")
        self._meant[host.name, volume] = epoch
        strike, self.at_next_intent = self.at_next_intent, None
        if strike is not None:
            strike(host)

    def acquired(self, host: Host, volume: str, held: Held) -> None:
        """hactld of `host` believes that it has a handle: does the disk say so, or did it, until a newer one came?"""
        taken = self._taken.setdefault(volume, set())
        if held.epoch in taken:
            self.fail(f"{host.name} takes {volume} with epoch {held.epoch}, which was used before")
        taken.add(held.epoch)
        self._held[host.name, volume] = held.key
        self.takeovers += 1
        for unit in self._cluster.units_of(volume):
            history = self._disks[unit.name]
            keys = set(unit.registrations.values())
            newer = any(Key.parse(key).epoch > held.epoch for key in keys | history.gone)
            if not (history.void or newer or unit.state().exclusive_to(held.key)):
                self.fail(f"{host.name} believes to own {unit.name}, which says {unit.state().describe()}")
            self._one_handle(unit, history)

    def forgotten(self, host: Host, volume: str) -> None:
        self._held.pop((host.name, volume), None)

    def rebooted(self, host: Host) -> None:
        for volume in self._cluster.volumes:
            self.forgotten(host, volume)

    def key_of(self, host: Host, volume: str) -> int:
        return self._held.get((host.name, volume), 0)

    # -- data --------------------------------------------------------------------------------------------------------

    def landed(self, unit: Unit, host: Host, number: int, data: bytes) -> None:
        history = self._disks[unit.name]
        if history.void:
            return
        value, key = unpack(data)
        epoch = Key.parse(key).epoch
        newest = max(self._taken.get(history.volume, {0}))
        if epoch < newest:
            self.fail(f"a write of {host.name} under epoch {epoch} lands on {unit.name}, which epoch {newest} owns")
        if number >= FIRST_DATA_BLOCK and value < self.acknowledged(history.volume, number):
            self.fail(f"{host.name} overwrites an acknowledged write: block {number} gets {value}")

    def acknowledged(self, volume: str, place: int) -> int:
        return self._acked.get((volume, place), 0)

    def was_acknowledged(self, volume: str, place: int, value: int) -> None:
        self._acked[volume, place] = max(value, self.acknowledged(volume, place))
        self.acks += 1

    def was_read(self, client: str, host: Host, volume: str, place: int, value: int, wanted: int) -> None:
        self.reads += 1
        if value < wanted and not self._void(volume):
            self.fail(f"{client} reads {value} from {host.name} (block {place}); {wanted} was acknowledged before")

    def _void(self, volume: str) -> bool:
        return any(self._disks[unit.name].void for unit in self._cluster.units_of(volume))

    def at_the_end(self) -> None:
        for (volume, place), value in self._acked.items():
            for unit in self._cluster.units_of(volume):
                found = unpack(unit.blocks.get(place))[0]
                if found < value and not self._void(volume):
                    self.fail(f"block {place} of {unit.name} holds {found}; {value} was acknowledged")

    def nothing_unhandled(self) -> None:
        for host in self._cluster.hosts.values():
            if host.daemon.unhandled:
                self.fail(f"{host.name}: {'; '.join(host.daemon.unhandled)}")
