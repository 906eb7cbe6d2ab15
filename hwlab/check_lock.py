"""The lock: kept, lost or stolen, and what is missing before "kept" may be said. Pure."""

from hwlab.check_records import longest_gap
from hwlab.history import History, Lock
from hwlab.phases import phases_of
from hwlab.reason import Reason, invalid, unknown


def judge_lock(history: History) -> tuple[Lock, tuple[Reason, ...]]:
    """Kept needs three proofs: the owner's writes, the server's refusals, a thief that could take it."""
    attempts, owner = history.attempts, history.owner
    # Both ran on the client's host: their times compare exactly, whatever the clocks of other machines say.
    # Without the owner's word nobody knows until when it was held: then nothing was stolen, nor kept.
    held_until = owner.releasing_ms if owner else float("-inf")
    thefts = [a for a in attempts or () if a.outcome == "took" and a.done_ms < held_until]
    # The first one decides: a lock that was lost by right is free, and is taken again and again.
    if thefts and lapsed(history, thefts[0].done_ms):
        return Lock.STOLEN, ()
    if thefts:
        when = thefts[0].done_ms - history.fault_ms
        return Lock.STOLEN, (invalid(f"another client took the lock {when:+.0f} ms from the fault"),)
    if owner and owner.trouble:
        return Lock.LOST, (invalid(f"the lock's owner could not use it: {owner.trouble}"),)
    if history.kernel_complaints:
        return Lock.LOST, (invalid(f"the client's kernel says: {history.kernel_complaints[0]}"),)
    doubts = lock_doubts(history, held_until)
    return (Lock.UNKNOWN, doubts) if doubts else (Lock.KEPT, ())


def lapsed(history: History, at_ms: float) -> bool:
    """Does the drill allow a client's lease to lapse, and was nothing acknowledged to it for so long before?

    A server may give away the lock of a client that it could not hear for its whole lease (RFC 8881, 8.3).
    """
    lapse_ms = history.wanted.lease_lapse_ms
    if lapse_ms is None:
        return False
    acks = [write.done_ms for write in history.writes or () if not write.error and write.done_ms <= at_ms]
    return not acks or at_ms - max(acks) >= lapse_ms


def last_return(history: History) -> float | None:
    """When the client was back after the longest stall, or after the last recovery if that was later."""
    gap = longest_gap(history.writes or (), history.fault_ms)
    returns = [phase.end_ms for phase in phases_of(history)[0] if phase.name == "client"]
    return max([*returns, gap[1]]) if gap else None


def lock_doubts(history: History, held_until: float) -> tuple[Reason, ...]:
    """What is missing before "kept" may be said."""
    attempts, back = history.attempts, last_return(history)
    doubts = []
    if history.owner is None:
        doubts.append(unknown("the lock's owner did not report at the end"))
    elif not history.owner.touches:
        doubts.append(unknown("the lock's owner never used its lock"))
    if history.kernel_complaints is None:
        doubts.append(unknown("the client's kernel log was not read"))
    if attempts is None:
        return (*doubts, unknown("the other client's attempts on the lock are not known"))
    if history.distinct_clients is not True:
        doubts.append(unknown("the server did not show the thief as a client of its own"))
    refused = [a for a in attempts if a.outcome == "refused" and back is not None and a.submit_ms > back]
    if not refused:
        doubts.append(unknown("no attempt on the lock was refused after the client's return"))
    if not any(a.outcome == "took" and a.done_ms >= held_until for a in attempts):
        doubts.append(unknown("the other client did not get the lock even after its release: it proves nothing"))
    return tuple(doubts)
