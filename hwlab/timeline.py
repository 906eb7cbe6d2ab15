"""One run as a timeline on a terminal. Pure: text in, text out."""

import math

from hwlab.check_answers import Served
from hwlab.check_timing import Compared
from hwlab.history import Verdict
from hwlab.report import Played, Session

BAR = 44


def of_run(run: Played, runs: int) -> str:
    """Phases with their durations, the stall, what the target saw, the verdict with its reasons."""
    history, judgement = run.history, run.judgement
    if history is None or judgement is None:
        return f"run {run.number} of {runs}: unknown\n  {run.trouble}"
    zero = history.fault_ms
    end = history.end.server if history.end else "?"
    epochs = f", epoch {judgement.epochs[0]} -> {judgement.epochs[1]}" if judgement.epochs else ""
    lines = [f"run {run.number} of {runs}: {history.primary} -> {end or 'nobody'}{epochs}"]
    span = max([phase.end_ms - zero for phase in judgement.phases], default=0.0)
    if judgement.phases:
        lines.append(f"  {'phase':10} {'from':>7} {'to':>7} {'ms':>7}")
    for phase in judgement.phases:
        start_ms, end_ms = phase.start_ms - zero, phase.end_ms - zero
        lines.append(
            f"  {phase.name[:10]:10} {start_ms:7.0f} {end_ms:7.0f} {end_ms - start_ms:7.0f} "
            f"|{bar(start_ms, end_ms, span)}| {phase.detail}".rstrip()
        )
    lines += facts(run)
    lines.append(f"  {judgement.verdict}")
    lines += [f"    {reason.verdict}: {reason.what}" for reason in judgement.reasons]
    return "\n".join(lines)


def bar(start_ms: float, end_ms: float, span_ms: float) -> str:
    """A phase as a bar within the time from the fault to the last phase's end."""
    if span_ms <= 0:
        return " " * BAR
    first = min(BAR - 1, max(0, int(start_ms / span_ms * BAR)))
    last = min(BAR, max(first + 1, round(end_ms / span_ms * BAR)))
    return " " * first + "#" * (last - first) + " " * (BAR - last)


def facts(run: Played) -> list[str]:
    """The numbers behind the verdict, in words."""
    judgement = run.judgement
    assert judgement is not None
    stall = "none seen" if judgement.stall_ms is None else f"{judgement.stall_ms:.0f} ms"
    more = []
    if run.history is not None and run.history.wanted.reads:
        more.append(
            f"  reader: {judgement.reads} reads, {judgement.stale_reads} stale, {judgement.unanswered_reads} unanswered"
        )
    told = judgement.told
    if run.history is not None and told.low_ms is not None and told.high_ms is not None:
        by = run.history.wanted.told_by
        more.append(
            f"  {run.history.primary} knew of its fence {told.low_ms:.0f} to {told.high_ms:.0f} ms later, by: {by}"
        )
    if run.history is not None and judgement.served:
        more.append("  address: " + ", ".join(spell(served, run.history.fault_ms) for served in judgement.served))
    if len(judgement.stalls) > 1:
        more.append("  stalls: " + "; ".join(f"{each.cause} {each.ms:.0f} ms" for each in judgement.stalls))
    return [
        f"  client's stall {stall}; {judgement.acknowledged} records acknowledged, {judgement.lost} lost; "
        f"lock {judgement.lock} ({judgement.thief_tries} attempts on it)",
        f"  disk: at most {judgement.holders_max} holder, {judgement.late_writes} late writes landed, "
        f"{judgement.refused_writes} refused",
        *more,
        *(promise(row) for row in judgement.timing),
    ]


def promise(row: Compared) -> str:
    """One row of `hactl timing` beside what was seen."""
    seen = f"{row.high_ms:.0f}" if row.low_ms == row.high_ms else f"{row.low_ms:.0f} to {row.high_ms:.0f}"
    if not math.isfinite(row.low_ms):
        seen = f"by {row.high_ms:.0f}"
    table = f"{row.best_ms:.0f} to {row.worst_ms:.0f}"
    verdict = row.outside or "within"
    return f"  timing: {row.phase}: seen {seen} ms, promised {table} ms, error {row.error_ms:.0f}: {verdict}"


def spell(served: Served, zero: float) -> str:
    """Who answered for the served address, from when until when."""
    return f"{served.node or served.mac} {served.first_ms - zero:+.0f} to {served.last_ms - zero:+.0f} ms"


def of_session(session: Session) -> str:
    """The last line: verdict and median stall of all runs."""
    stalls = sorted(session.stalls_ms)
    told = ""
    if stalls:
        middle = stalls[len(stalls) // 2] if len(stalls) % 2 else sum(stalls[len(stalls) // 2 - 1 :][:2]) / 2
        told = f"; stall median {middle:.0f} ms ({stalls[0]:.0f} to {stalls[-1]:.0f})"
    counted = ", ".join(
        f"{sum(1 for run in session.runs if verdict_of(run) is verdict)} {verdict}" for verdict in Verdict
    )
    return f"{session.drill}: {session.verdict} ({counted}{told})"


def verdict_of(run: Played) -> Verdict:
    return run.judgement.verdict if run.judgement else Verdict.UNKNOWN
