"""report.html: one page that explains itself and needs nothing else. Pure but for reading its template."""

from html import escape
from pathlib import Path
from string import Template

from hwlab import drawing
from hwlab.report import Played, Session
from hwlab.timeline import promise

TEMPLATE = Path(__file__).with_name("report.html")


def render(session: Session) -> str:
    """The page of a session of runs."""
    stalls = session.stalls_ms
    return Template(TEMPLATE.read_text()).substitute(
        drill=escape(session.drill),
        title=escape(session.title),
        about=escape(" ".join(session.about.split())),
        verdict=session.verdict,
        driver=escape(session.driver),
        transport=escape(session.transport),
        summary=escape(f"{len(session.runs)} run(s)" + (f", longest stall {max(stalls):.0f} ms" if stalls else "")),
        rows="\n".join(_row(run) for run in session.runs),
        runs="\n".join(_run(run) for run in session.runs),
    )


def _row(run: Played) -> str:
    judgement = run.judgement
    if judgement is None:
        why = f'<td class="unknown">unknown</td><td colspan="7">{escape(run.trouble)}</td>'
        return f"<tr><td>{run.number}</td>{why}</tr>"
    stall = "-" if judgement.stall_ms is None else f"{judgement.stall_ms:.0f} ms"
    cells = (
        stall,
        judgement.acknowledged,
        judgement.lost,
        judgement.holders_max,
        judgement.late_writes,
        judgement.refused_writes,
        judgement.lock,
    )
    told = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><td>{run.number}</td><td class="{judgement.verdict}">{judgement.verdict}</td>{told}</tr>'


def _run(run: Played) -> str:
    history, judgement = run.history, run.judgement
    if history is None or judgement is None:
        return ""
    reasons = "".join(f"<li>{escape(r.what)} ({r.verdict})</li>" for r in judgement.reasons)
    end = history.end.server if history.end else "?"
    marks = "".join(
        f"<tr><td>{mark.at_ms - history.fault_ms:+.0f} ms</td><td>{escape(mark.what)}</td></tr>"
        for mark in history.marks
    )
    timing = "".join(f"<li>{escape(promise(row).strip())}</li>" for row in judgement.timing)
    return f"""<section>
<h2>Run {run.number}: {escape(history.primary)} &rarr; {escape(end or "nobody")},
<span class="{judgement.verdict}">{judgement.verdict}</span></h2>
{f"<ul>{reasons}</ul>" if reasons else ""}
{f"<ul>{timing}</ul>" if timing else ""}
<h3>The takeover, from the fault to the client's return</h3>
<div class="scroll">{drawing.takeover(history, judgement)}</div>
<h3>The whole run</h3>
<div class="scroll">{drawing.whole_run(history, judgement)}</div>
<details><summary>What was done and seen</summary><table>{marks}</table></details>
</section>"""
