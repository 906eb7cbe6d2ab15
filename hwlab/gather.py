"""Turns what the scripts on the hosts said into a history: parsing and mapping of times. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hwlab.clocks import Clock
from hwlab.history import (
    Answer,
    Answers,
    Attempt,
    DiskWrite,
    Epoch,
    Found,
    Notice,
    Owner,
    Phase,
    Read,
    Recovery,
    Reservation,
    StampSeen,
    StampWrite,
    Witness,
    Write,
)

NS_PER_MS = 1_000_000
Event = dict[str, Any]

# What the client's kernel says when it could not get back what it held.
COMPLAINTS = re.compile(r"lock reclaim failed|nfs4_reclaim_open_state|lost lock|\bbug:|\boops\b", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClocks:
    """The clocks of one host during a run: of the boot it began with, and of the one it ended with."""

    before: Clock
    after: Clock | None = None
    rebooted_ms: float | None = None

    def wall(self, value: float) -> float:
        """A wall clock time of this host, in the drill's clock: the boot decides which offset holds."""
        mapped = self.before.from_wall_ms(value)
        if self.rebooted_ms is not None and self.after is not None and mapped > self.rebooted_ms:
            return self.after.from_wall_ms(value)
        return mapped


def writes(log: str, clock: Clock) -> tuple[Write, ...]:
    """The writer's log: `seq submit_ns done_ns ok|why` per line; a torn last line is left out."""
    found = []
    for words in _lines(log, 4):
        found.append(
            Write(
                seq=int(words[0]),
                submit_ms=clock.from_mono_ns(int(words[1])),
                done_ms=clock.from_mono_ns(int(words[2])),
                error="" if words[3] == "ok" else words[3].replace("_", " "),
            )
        )
    return tuple(found)


def attempts(log: str, clock: Clock) -> tuple[Attempt, ...]:
    """The thief's log: `submit_ns done_ns outcome` per line."""
    return tuple(
        Attempt(
            submit_ms=clock.from_mono_ns(int(words[0])),
            done_ms=clock.from_mono_ns(int(words[1])),
            outcome=words[2],
        )
        for words in _lines(log, 3)
    )


def reads(log: str, clock: Clock) -> tuple[Read, ...]:
    """The reader's log: `begun N NS`, then `done N BEGUN_NS DONE_NS value|error:...` if it ended."""
    begun = {int(words[1]): int(words[2]) for words in _lines(log, 3) if words[0] == "begun"}
    done = {int(words[1]): words for words in _lines(log, 5) if words[0] == "done"}
    found = []
    for n, submit_ns in sorted(begun.items()):
        words = done.get(n)
        outcome = words[4] if words else "0"
        error = outcome.partition(":")[2].replace("_", " ") if outcome.startswith("error:") else ""
        found.append(
            Read(
                submit_ms=clock.from_mono_ns(submit_ns),
                done_ms=clock.from_mono_ns(int(words[3])) if words else None,
                value=0 if error else int(outcome),
                error=error,
            )
        )
    return tuple(found)


def answers(log: str, clock: Clock) -> Answers:
    """The asker's log: `ask N NS` and `answer N NS MAC`."""
    return Answers(
        asked_ms=tuple(clock.from_mono_ns(int(words[2])) for words in _lines(log, 3) if words[0] == "ask"),
        answers=tuple(
            Answer(ask=int(words[1]), at_ms=clock.from_mono_ns(int(words[2])), mac=words[3])
            for words in _lines(log, 4)
            if words[0] == "answer"
        ),
    )


def _lines(log: str, words: int) -> list[list[str]]:
    complete = log.split("\n")[:-1]
    return [line.split(" ") for line in complete if len(line.split(" ")) == words]


def owner(events: Iterable[Event], clock: Clock) -> Owner | None:
    """The end of the lock's owner; None if it did not come to its end."""
    last = {event["t"]: event for event in events}
    if "final" not in last or "releasing" not in last or "released" not in last:
        return None
    troubles = [event["why"] for event in events if event["t"] == "lock-error"]
    return Owner(
        releasing_ms=clock.from_mono_ns(last["releasing"]["at"]),
        touches=last["final"]["touches"],
        trouble=last["final"]["lock_trouble"] or (troubles[0] if troubles else ""),
    )


def found(event: Event | None) -> Found | None:
    if event is None:
        return None
    return Found(runs=tuple((low, high) for low, high in event["runs"]), garbled=event["garbled"])


def reservations(events: Iterable[Event], clock: Clock) -> tuple[Reservation, ...]:
    return tuple(
        Reservation(
            device=event["device"],
            since_ms=clock.from_mono_ns(event["since"]),
            at_ms=clock.from_mono_ns(event["at"]),
            generation=int(event["generation"] or "0", 0),
            type=event["type"],
            holder=int(event["holder"], 16) if event["holder"] else None,
            registrants=tuple(int(entry["key"], 16) for entry in event["registrants"]),
        )
        for event in events
        if event["t"] == "pr"
    )


def all_reservations(watched: Sequence[tuple[Sequence[Event], Clock]]) -> tuple[Reservation, ...]:
    """What all witnesses saw, one for each life of the target.

    What a later one found at its start came about at some time since the one before it last spoke: between the target's
    return and its own start nobody looked.
    """
    found: list[Reservation] = []
    spoke_ms: float | None = None
    for events, clock in watched:
        fresh: set[str] = set()
        for state in reservations(events, clock):
            if spoke_ms is not None and state.device not in fresh:
                state = replace(state, since_ms=min(state.since_ms, spoke_ms))
            fresh.add(state.device)
            found.append(state)
        spoke_ms = max((clock.from_mono_ns(event["at"]) for event in events if "at" in event), default=spoke_ms)
    return tuple(found)


def stamps_seen(events: Iterable[Event], clock: Clock, run: str) -> tuple[StampSeen, ...]:
    """Stamps of this run on the disk; a block that still shows another run's stamp counts as 0."""
    return tuple(
        StampSeen(
            device=event["device"],
            at_ms=clock.from_mono_ns(event["at"]),
            node=row["node"],
            n=row["n"] if row["run"] == run else 0,
            epoch_after=event.get("epoch_after"),
        )
        for event in events
        if event["t"] == "stamps"
        for row in event["rows"]
    )


def disk_writes(events: Iterable[Event], clock: Clock) -> tuple[DiskWrite, ...]:
    """None of a reading of which the kernel lost some: half an order is none."""
    return tuple(
        DiskWrite(
            device=event["device"],
            at_ms=clock.from_mono_ns(row["at"]),
            done=row["done"],
            offset=row["offset"],
            length=row["length"],
        )
        for event in events
        if event["t"] == "writes"
        for row in event["rows"] or ()
    )


def stamp_writes(events: Iterable[Event], clock: Clock) -> tuple[StampWrite, ...]:
    return tuple(
        StampWrite(
            node=event["node"],
            n=n,
            submit_ms=clock.from_mono_ns(submit_ns),
            done_ms=clock.from_mono_ns(done_ns),
            error="" if outcome == "ok" else outcome,
        )
        for event in events
        if event["t"] == "stamps"
        for n, submit_ns, done_ns, outcome in event["rows"]
    )


def epochs(events: Iterable[Event], clock: Clock) -> tuple[Epoch, ...]:
    """The newest label epoch at each change of a label copy."""
    seen = []
    for event in events:
        if event["t"] != "label":
            continue
        copies = [copy for copy in event["copies"] if isinstance(copy.get("epoch"), int)]
        if copies:
            newest = max(copies, key=lambda copy: (copy["epoch"], copy.get("seq") or 0))
            seen.append(
                Epoch(
                    device=event["device"],
                    at_ms=clock.from_mono_ns(event["at"]),
                    epoch=newest["epoch"],
                    owner=newest.get("owner") or "",
                )
            )
    return tuple(seen)


def witness(watched: Sequence[tuple[Sequence[Event], Clock]]) -> Witness | None:
    """Of all witnesses, one for each life of the target: the first one's start, the last one's end, the longest gap.

    What a target without power does not show is no gap: nothing is written meanwhile.
    """
    events = [event for seen, _ in watched for event in seen]
    if not watched or not any(event["t"] == "started" for event in watched[0][0]):
        return None
    (first, first_clock), (last, last_clock) = watched[0], watched[-1]
    started = next(event for event in first if event["t"] == "started")
    ended = [event for event in last if event["t"] == "final"]
    return Witness(
        started_ms=first_clock.from_mono_ns(started["at"]),
        ended_ms=last_clock.from_mono_ns(ended[0]["at"]) if ended else None,
        gap_ms_max=max((event["gap_ns"] for event in events if "gap_ns" in event), default=0) / NS_PER_MS,
    )


def recoveries(
    entries: Iterable[dict[str, Any]], after_epoch: int, hosts: dict[str, HostClocks]
) -> tuple[Recovery, ...]:
    """What the nodes recorded with epochs above `after_epoch`, each step in the drill's clock."""
    found: dict[tuple[int, str], Recovery] = {}
    for entry in entries:
        if int(entry.get("epoch") or 0) <= after_epoch:
            continue
        recorder = entry.get("node") or entry.get("to") or ""
        # Every node may keep what the others told it: the same recovery is told once.
        found.setdefault(
            (int(entry["epoch"]), entry.get("to") or ""),
            Recovery(
                from_node=entry.get("from") or "",
                to_node=entry.get("to") or "",
                epoch=int(entry["epoch"]),
                cause=str(entry.get("cause") or ""),
                verdict=str(entry.get("verdict") or ""),
                fenced=str(entry.get("fenced") or ""),
                steps=tuple(
                    phase
                    for step in entry.get("steps", ())
                    if (phase := _phase(step, hosts.get(step.get("node") or recorder)))
                ),
            ),
        )
    return tuple(found.values())


def _phase(step: dict[str, Any], clocks: HostClocks | None) -> Phase | None:
    start, end = step.get("start_unix_ms"), step.get("end_unix_ms")
    if clocks is None or start is None or end is None:
        return None
    return Phase(
        name=str(step["name"]),
        start_ms=clocks.wall(start),
        end_ms=clocks.wall(end),
        detail=str(step.get("detail") or ""),
    )


def complaints(kernel_log: str, marker: str) -> tuple[str, ...]:
    """Lines of the client's kernel log after the run's marker that tell of lost state."""
    _, _, since = kernel_log.partition(marker)
    return tuple(line.strip() for line in since.splitlines() if COMPLAINTS.search(line))


KERNEL_FAILED = re.compile(r"^\[ *\d+\.\d+\] (?P<what>BUG: .*|kernel BUG at .*|Kernel panic .*)$", re.M)


def kernel_failure(console: str) -> str:
    """The first line on a console that tells that the kernel failed; "" for none."""
    found = KERNEL_FAILED.search(console)
    return found["what"].strip() if found else ""


NOTICED = re.compile(r"verifying now: .*?: (?P<why>[^,]+)")
LOST = re.compile(r"->leaving cause=.\w+: (?P<prompted>after a notice: )?(?P<why>.*?).$")
STAMPED = re.compile(r"\[ *(?P<s>\d+\.\d+)\] (?P<text>.*)")


def notices(journal: str, clock: Clock) -> tuple[Notice, ...]:
    """Notices of the kernel and losses of a handle, from hactld's journal with times since the boot."""
    found = []
    for line in journal.splitlines():
        stamped = STAMPED.match(line)
        if stamped is None:
            continue
        at_ms = clock.from_mono_ns(round(float(stamped["s"]) * 1e9))
        if told := NOTICED.search(stamped["text"]):
            found.append(Notice(at_ms=at_ms, text=told["why"]))
        elif gone := LOST.search(stamped["text"]):
            found.append(Notice(at_ms=at_ms, text=gone["why"], lost=True, prompted=bool(gone["prompted"])))
    return tuple(found)


def distinct(clients: str, thief_address: str) -> bool:
    """Whether the server's list of clients shows the thief beside at least one other client."""
    ours = thief_address.partition("/")[0]
    addresses = [
        line.partition(":")[2].strip().strip('"') for line in clients.splitlines() if line.startswith("address:")
    ]
    hosts = {address.rpartition(":")[0] for address in addresses}
    return ours in hosts and len(hosts) > 1
