"""Phases of a recovery, from the fault to the client's first acknowledged write. Pure.

The nodes record what they did and when (`hactl history`); this maps it onto the fault and the client's
return, and does not believe it blindly: the fence must lie where the target saw the reservation change, and
the client cannot have been served before the address was there.
"""

from collections.abc import Sequence

from hwlab.history import History, Phase, Recovery, Reservation, key_epoch

# A step's own time stamps are taken by a daemon that waits for its turn: 100 Hz guests on two cores.
SLACK_MS = 60.0


def phases_of(history: History) -> tuple[tuple[Phase, ...], tuple[str, ...]]:
    """(phases in the drill's clock, doubts). The doubts say which recorded times cannot be true."""
    acks = sorted(write.done_ms for write in history.writes or () if not write.error)
    recoveries = [recovery for recovery in history.recoveries or () if not recovery.failed]
    phases: list[Phase] = []
    doubts: list[str] = []
    for recovery in recoveries:
        phases += with_detection(recovery, fault_before(history, recovery))
        doubts += contradictions(history, recovery)
        phases += clients_return(recovery, acks)
        doubts += too_early(history, recovery, acks)
    return tuple(phases), tuple(doubts)


def address_of(recovery: Recovery) -> Phase | None:
    """The last time that the recovery opened the address."""
    return next((step for step in reversed(recovery.steps) if step.name == "address"), None)


def clients_return(recovery: Recovery, acks: Sequence[float]) -> list[Phase]:
    """From the address of this recovery to the first acknowledgement that can have come through it.

    A stall before, of a fault that nothing moved for, is none of its own.
    """
    address = address_of(recovery)
    first_ms = next((at_ms for at_ms in acks if address and at_ms >= address.start_ms), None)
    if address is None or first_ms is None:
        return []
    start_ms = min(address.end_ms, first_ms)
    return [Phase(name="client", start_ms=start_ms, end_ms=first_ms, detail="first acknowledged write")]


def too_early(history: History, recovery: Recovery, acks: Sequence[float]) -> list[str]:
    """Once the target saw the disk taken, nobody can acknowledge before the taker's address is there."""
    address, taken = address_of(recovery), acquisition(history, recovery)
    if address is None or taken is None:
        return []
    since_ms = taken.at_ms + history.uncertainty_ms + SLACK_MS
    if not any(since_ms < at_ms < address.start_ms for at_ms in acks):
        return []
    return [f"the client had an acknowledgement before the address of epoch {recovery.epoch} that it came through"]


def fault_before(history: History, recovery: Recovery) -> float:
    """The last fault or command before the recovery's first step: what it answers to."""
    if not recovery.steps:
        return history.fault_ms
    begun = max(step.start_ms for step in recovery.steps)
    causes = [mark for mark in history.marks if mark.kind in ("fault", "command")]
    faults = [mark.at_ms for mark in causes if mark.at_ms <= begun]
    return max([history.fault_ms, *faults])


def with_detection(recovery: Recovery, fault_ms: float) -> list[Phase]:
    """The recorded steps; detection begins with the fault, whatever the node thinks when it began."""
    steps = sorted(recovery.steps, key=lambda step: (step.start_ms, step.end_ms))
    if not steps:
        return []
    rest = [step for step in steps if step.name != "detect"]
    detected = [step.end_ms for step in steps if step.name == "detect"]
    if not detected and not rest:
        return []
    end_ms = detected[0] if detected else rest[0].start_ms
    return [Phase(name="detect", start_ms=min(fault_ms, end_ms), end_ms=end_ms, detail=recovery.cause), *rest]


def acquisition(history: History, recovery: Recovery) -> Reservation | None:
    """The first state of the target in which somebody holds the disk with this recovery's epoch."""
    held = [s for s in history.reservations if s.holder is not None and key_epoch(s.holder) == recovery.epoch]
    return min(held, key=lambda state: state.at_ms, default=None)


def contradictions(history: History, recovery: Recovery) -> list[str]:
    """Where the record of the nodes and the view of the target cannot both be true."""
    seen = acquisition(history, recovery)
    slack = history.uncertainty_ms + SLACK_MS
    doubts = []
    for step in recovery.steps:
        if step.end_ms < step.start_ms:
            doubts.append(f"recorded step {step.name} of epoch {recovery.epoch} ends before it starts")
    fences = [step for step in recovery.steps if step.name == "fence"]
    if fences and seen is None:
        return [*doubts, f"the target never saw a holder with the recorded epoch {recovery.epoch}"]
    if fences and seen is not None:
        start, end = min(s.start_ms for s in fences) - slack, max(s.end_ms for s in fences) + slack
        if seen.at_ms < start or seen.since_ms > end:
            off = seen.at_ms - fences[-1].end_ms
            where = f"the fence of epoch {recovery.epoch} {off:+.0f} ms off the recorded one"
            doubts.append(f"the target saw {where}")
    return doubts
