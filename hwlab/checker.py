"""Judges the history of one run: valid, invalid or unknown, and why. Pure: no I/O, no clock.

The rules, each about an outcome that somebody outside could see:
- no acknowledged record is lost, none is there twice, out of order or damaged, none that nobody wrote;
- no application saw an error;
- the lock's owner kept it from beginning to end, and nobody else ever had it;
- never two holders of a device, epochs only grow, at the end exactly the server is registered;
- no write of an old owner landed after it was fenced;
- never two kernels had the served address, and none had it again without a new epoch (the asker);
- no read showed less than what was acknowledged before it began (the reader, where a drill has one);
- a fenced primary that lives learned it by the notice that the drill names (check_notice.py);
- the volume moved no more often than the drill allows;
- the client stood still for no step of the drill longer than it allows;
- the phases lie where `hactl timing` says, give or take the stated error;
- all conditions of the drill were met in time, and the cluster ended as the drill wants it.

What breaks a rule makes the run invalid. What was not observed, or could not have been seen to fail, makes it
unknown: a thief that could never have taken the lock proves nothing by not taking it. Never valid by default.
"""

from dataclasses import dataclass
from itertools import pairwise

from hwlab.check_answers import Served, judge_answers
from hwlab.check_disk import by_device, judge_holders, judge_late_writes
from hwlab.check_lock import judge_lock
from hwlab.check_notice import Told, judge_notice
from hwlab.check_reads import judge_reads
from hwlab.check_records import judge_records, longest_gap
from hwlab.check_stalls import Stall, judge_stalls, stalls_of
from hwlab.check_timing import Compared, compare, judge_timing
from hwlab.history import History, Lock, Phase, Reservation, Verdict, key_node
from hwlab.phases import phases_of
from hwlab.reason import Reason, invalid, unknown, worst

WITNESS_GAP_MS_MAX = 1000.0
UNCERTAINTY_MS_MAX = 250.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The verdict of one run and the numbers behind it (times in ms; None: could not be told)."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    stall_ms: float | None
    stall_start_ms: float | None
    first_ack_ms: float | None
    stalls: tuple[Stall, ...]
    acknowledged: int
    unknown_outcome: int
    lost: int
    duplicates: int
    garbled: int
    lock: Lock
    thief_tries: int
    holders_max: int
    registrants_max: int
    overlap_ms: float
    late_writes: int
    refused_writes: int
    blind_ms: float | None
    epochs: tuple[int, int] | None
    witness_gap_ms: float | None
    phases: tuple[Phase, ...]
    served: tuple[Served, ...]
    reads: int
    stale_reads: int
    unanswered_reads: int
    moves: int | None
    timing: tuple[Compared, ...]
    told: Told


def judge(history: History) -> Judgement:
    """The verdict on one run. Invalid wins over unknown: a hole in the evidence does not undo a violation."""
    records = judge_records(history)
    lock, lock_reasons = judge_lock(history)
    holders = judge_holders(history)
    late = judge_late_writes(history)
    stall = longest_gap(history.writes or (), history.fault_ms)
    stalls = stalls_of(history)
    phases, phase_reasons = phases_of(history)
    answers = judge_answers(history)
    reads = judge_reads(history)
    moves = moves_of(history)
    timing = compare(history)
    told = judge_notice(history)
    reasons = (
        *records.reasons,
        *lock_reasons,
        *holders.reasons,
        *late.reasons,
        *answers.reasons,
        *reads.reasons,
        *told.reasons,
        *judge_moves(history, moves),
        *judge_timing(history, timing),
        *judge_stalls(history, stalls),
        *judge_witness(history),
        *judge_conditions(history),
        *judge_end(history),
        *(unknown(what) for what in phase_reasons),
    )
    return Judgement(
        verdict=worst(reason.verdict for reason in reasons),
        reasons=reasons,
        stall_ms=stall[1] - stall[0] if stall else None,
        stall_start_ms=stall[0] if stall else None,
        first_ack_ms=stall[1] if stall else None,
        stalls=stalls,
        acknowledged=records.acknowledged,
        unknown_outcome=records.unknown_outcome,
        lost=records.lost,
        duplicates=records.duplicates,
        garbled=records.garbled,
        lock=lock,
        thief_tries=len(history.attempts or ()),
        holders_max=holders.holders_max,
        registrants_max=holders.registrants_max,
        overlap_ms=holders.overlap_ms,
        late_writes=late.late,
        refused_writes=late.refused,
        blind_ms=late.blind_ms,
        epochs=holders.epochs,
        witness_gap_ms=history.witness.gap_ms_max if history.witness else None,
        phases=phases,
        served=answers.served,
        reads=reads.answered,
        stale_reads=reads.stale,
        unanswered_reads=reads.unanswered,
        moves=moves,
        timing=timing,
        told=told,
    )


def moves_of(history: History) -> int | None:
    """How often the disk went from one node to another, as the target saw it; None: it saw nothing."""
    if not history.reservations:
        return None
    moves = 0
    for states in by_device(history.reservations).values():
        owners = [key_node(state.holder) for state in states if state.holder is not None]
        moves = max(moves, sum(1 for before, after in pairwise(owners) if before != after))
    return moves


def judge_moves(history: History, moves: int | None) -> tuple[Reason, ...]:
    allowed = history.wanted.moves_max
    if allowed is None or moves is None or moves <= allowed:
        return ()
    return (invalid(f"the volume moved {moves} times, {allowed} allowed"),)


def judge_witness(history: History) -> tuple[Reason, ...]:
    witness = history.witness
    if witness is None:
        return (unknown("nobody watched the target"),)
    reasons = [unknown(f"the lab broke: {what}") for what in history.lost]
    if witness.ended_ms is None:
        reasons.append(unknown("the witness on the target died"))
    if witness.started_ms > history.fault_ms:
        reasons.append(unknown("the witness started after the fault"))
    if witness.gap_ms_max > WITNESS_GAP_MS_MAX:
        reasons.append(unknown(f"the witness saw nothing for {witness.gap_ms_max:.0f} ms"))
    if not history.reservations:
        reasons.append(unknown("the witness saw no reservation"))
    if history.uncertainty_ms > UNCERTAINTY_MS_MAX:
        reasons.append(unknown(f"the clocks are only known to {history.uncertainty_ms:.0f} ms"))
    return tuple(reasons)


def judge_conditions(history: History) -> tuple[Reason, ...]:
    return tuple(
        invalid(f"not within {condition.deadline_ms / 1000:.0f} s: {condition.what}")
        for condition in history.conditions
        if not condition.met
    )


def judge_end(history: History) -> tuple[Reason, ...]:
    """Who serves, who is ready, and whether the disk and the recovery records agree with it."""
    end, wanted = history.end, history.wanted
    if end is None:
        return (unknown("the cluster's state at the end was not seen"),)
    reasons = []
    if end.server not in wanted.server:
        served = end.server or "nobody"
        reasons.append(invalid(f"{served} serves at the end, not {' or '.join(wanted.server)}"))
    for name in wanted.ready:
        if name not in end.ready:
            reasons.append(invalid(f"{name} is not ready to take over at the end"))
    for states in by_device(history.reservations).values():
        reasons += end_of_device(history, states[-1], end.server)
    if history.recoveries is None:
        reasons.append(unknown("the cluster's own history was not read"))
        return tuple(reasons)
    done = [recovery for recovery in history.recoveries if not recovery.failed]
    if len(done) < wanted.recoveries_min:
        reasons.append(invalid(f"the cluster recorded {len(done)} of {wanted.recoveries_min} recoveries"))
    return tuple(reasons)


def end_of_device(history: History, state: Reservation, server: str) -> list[Reason]:
    """Only the server may be registered in the end; else somebody else could write."""
    names = sorted(history.nodes.get(node, str(node)) for node in state.nodes())
    if state.holder is None or history.nodes.get(key_node(state.holder)) != server:
        return [invalid(f"{state.device} is not reserved by {server or 'anybody'} at the end")]
    if names != [server]:
        listed = ", ".join(names)
        return [invalid(f"{state.device} has registrations of {listed} at the end; only {server} serves")]
    return []
