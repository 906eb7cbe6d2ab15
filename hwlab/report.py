"""report.json: what a drill found, as data. The format is documented, with its version, in docs/drills.md."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwlab.checker import Judgement
from hwlab.history import History, Phase, Verdict
from hwlab.reason import Reason, invalid, worst

SCHEMA = 1
"""Grows when a field changes its meaning or goes away; new fields may come at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One run: what was seen and what it means; without them, why it could not be session."""

    number: int
    history: History | None = None
    judgement: Judgement | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """All runs of one drill in one lab."""

    drill: str
    title: str
    about: str
    driver: str
    transport: str
    volume: str
    began_unix_ms: int
    runs: tuple[Played, ...]
    stall_ms_max: float | None = None
    """What the drill allows for the median stall."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the runs; without any, nothing is known."""
        if not self.runs:
            return Verdict.UNKNOWN
        verdicts = [run.judgement.verdict if run.judgement else Verdict.UNKNOWN for run in self.runs]
        return worst([*verdicts, *(reason.verdict for reason in self.reasons)])

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """What is wrong with all runs together."""
        if self.stall_ms_max is None or not self.stalls_ms:
            return ()
        median_ms = statistics.median(self.stalls_ms)
        if median_ms <= self.stall_ms_max:
            return ()
        return (invalid(f"median stall {median_ms:.0f} ms, {self.stall_ms_max:.0f} ms allowed"),)

    @property
    def stalls_ms(self) -> list[float]:
        return [run.judgement.stall_ms for run in self.runs if run.judgement and run.judgement.stall_ms is not None]


def as_dict(session: Session) -> dict[str, Any]:
    """The whole report. Times in ms from the fault on, keys as 0x%016x."""
    stalls = session.stalls_ms
    return {
        "schema": SCHEMA,
        "drill": session.drill,
        "title": session.title,
        "driver": session.driver,
        "transport": session.transport,
        "volume": session.volume,
        "began_unix_ms": session.began_unix_ms,
        "verdict": str(session.verdict),
        "reasons": [{"verdict": str(r.verdict), "what": r.what} for r in session.reasons],
        "stall_ms_max_allowed": session.stall_ms_max,
        "stall_ms_median": rounded(statistics.median(stalls)) if stalls else None,
        "stall_ms_min": rounded(min(stalls, default=None)),
        "stall_ms_max": rounded(max(stalls, default=None)),
        "runs": [run_as_dict(run) for run in session.runs],
    }


def run_as_dict(run: Played) -> dict[str, Any]:
    history, judgement = run.history, run.judgement
    if history is None or judgement is None:
        reason = {"verdict": str(Verdict.UNKNOWN), "what": run.trouble}
        return {
            "run": run.number,
            "verdict": str(Verdict.UNKNOWN),
            "reasons": [reason],
            "stall_ms": None,
            "acknowledged": 0,
            "lost": 0,
            "holders_max": 0,
            "late_writes": 0,
            "lock": "unknown",
            "phases": [],
        }
    zero = history.fault_ms
    return {
        "run": run.number,
        "verdict": str(judgement.verdict),
        "reasons": [{"verdict": str(r.verdict), "what": r.what} for r in judgement.reasons],
        "stall_ms": rounded(judgement.stall_ms),
        "stall_start_ms": since(judgement.stall_start_ms, zero),
        "first_ack_ms": since(judgement.first_ack_ms, zero),
        "stalls": [
            {
                "cause": stall.cause,
                "start_ms": since(stall.start_ms, zero),
                "stall_ms": rounded(stall.ms),
                "allowed_ms": rounded(stall.allowed_ms),
            }
            for stall in judgement.stalls
        ],
        "acknowledged": judgement.acknowledged,
        "unknown_outcome": judgement.unknown_outcome,
        "lost": judgement.lost,
        "duplicates": judgement.duplicates,
        "garbled": judgement.garbled,
        "holders_max": judgement.holders_max,
        "registrants_max": judgement.registrants_max,
        "overlap_ms": rounded(judgement.overlap_ms),
        "late_writes": judgement.late_writes,
        "refused_writes": judgement.refused_writes,
        "blind_ms": rounded(judgement.blind_ms),
        "lock": str(judgement.lock),
        "lock_attempts": judgement.thief_tries,
        "moves": judgement.moves,
        "reads": judgement.reads if history.wanted.reads else None,
        "stale_reads": judgement.stale_reads if history.wanted.reads else None,
        "unanswered_reads": judgement.unanswered_reads if history.wanted.reads else None,
        "told_ms": [rounded(judgement.told.low_ms), rounded(judgement.told.high_ms)]
        if history.wanted.told_by
        else None,
        "served": [
            {
                "mac": served.mac,
                "node": served.node,
                "first_ms": since(served.first_ms, zero),
                "last_ms": since(served.last_ms, zero),
                "answers": served.answers,
            }
            for served in judgement.served
        ],
        "primary": history.primary,
        "server": history.end.server if history.end else None,
        "ready": list(history.end.ready) if history.end else None,
        "epochs": list(judgement.epochs) if judgement.epochs else None,
        "uncertainty_ms": rounded(history.uncertainty_ms),
        "witness_gap_ms": rounded(judgement.witness_gap_ms),
        "phases": [phase_as_dict(phase, zero) for phase in judgement.phases],
        "timing": [
            {
                "phase": row.phase,
                "best_ms": rounded(row.best_ms),
                "worst_ms": rounded(row.worst_ms),
                "seen_low_ms": rounded(row.low_ms) if math.isfinite(row.low_ms) else None,
                "seen_high_ms": rounded(row.high_ms),
                "error_ms": rounded(row.error_ms),
                "outside": row.outside,
            }
            for row in judgement.timing
        ],
        "marks": [
            {"at_ms": since(m.at_ms, zero), "what": m.what, "kind": m.kind, "node": m.node} for m in history.marks
        ],
        "conditions": [
            {
                "what": c.what,
                "met": c.met,
                "took_ms": rounded(c.took_ms),
                "deadline_ms": rounded(c.deadline_ms),
            }
            for c in history.conditions
        ],
        "reservations": [
            {
                "device": r.device,
                "since_ms": since(r.since_ms, zero),
                "at_ms": since(r.at_ms, zero),
                "generation": r.generation,
                "type": r.type,
                "holder": None if r.holder is None else f"0x{r.holder:016x}",
                "registrants": [f"0x{key:016x}" for key in r.registrants],
            }
            for r in history.reservations
        ],
    }


def phase_as_dict(phase: Phase, zero: float) -> dict[str, Any]:
    return {
        "name": phase.name,
        "start_ms": since(phase.start_ms, zero),
        "end_ms": since(phase.end_ms, zero),
        "detail": phase.detail,
    }


def rounded(value: float | None) -> float | None:
    """Tenths of a millisecond: finer than any clock here can tell."""
    return None if value is None else round(value, 1)


def since(value: float | None, zero: float) -> float | None:
    return None if value is None else rounded(value - zero)


def write(session: Session, page: str, folders: Sequence[Path]) -> None:
    """report.json and report.html into each folder."""
    text = json.dumps(as_dict(session), indent=1) + "\n"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(text)
        (folder / "report.html").write_text(page)
