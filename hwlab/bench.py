"""The numbers that hactl promises, measured: stalls of a takeover and of a move, and what its daemons cost idle.

Medians with their spread over several runs each. It judges nothing: a run that is not valid is counted and named
in the table, its stall is not.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwlab import page, report, timeline
from hwlab.drill import Exit, heal_after, play_once, session_of
from hwlab.drillfile import load_drill
from hwlab.history import Verdict
from hwlab.progress import Progress
from hwlab.report import Played, Session
from hwlab.stage import HostSilent, Stage

SCHEMA = 1
DRILLS = ("kill-primary", "planned-move")
PROMISED_MS = {"kill-primary": 3000.0, "planned-move": 1000.0}
IDLE_S = 30
RSS_KB_PROMISED = 60_000
CPU_PERCENT_PROMISED = 2.0

# Runs on a node: resident memory and CPU time of the services' own processes, over IDLE_S seconds.
METER = """
import json, os, subprocess, sys, time
def show(unit):
    argv = ["systemctl", "show", "-p", "MainPID", "--value", unit]
    return int(subprocess.run(argv, capture_output=True, text=True).stdout or 0)
def spent_ns(pid):
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            total += int(file.read().split()[0])
    return total
def resident_kb(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
pids = {unit: show(unit) for unit in sys.argv[2:]}
pids = {unit: pid for unit, pid in pids.items() if pid}
before, began = {u: spent_ns(p) for u, p in pids.items()}, time.monotonic_ns()
time.sleep(float(sys.argv[1]))
passed = time.monotonic_ns() - began
print(json.dumps({u: {"rss_kb": resident_kb(p), "cpu_percent": 100 * (spent_ns(p) - before[u]) / passed}
                  for u, p in pids.items()}))
"""
UNITS = ("hactld", "hactl-nodewatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one process costs on one node while nothing happens."""

    node: str
    unit: str
    rss_kb: int
    cpu_percent: float


def run_bench(stage: Stage, out_dir: Path, runs: int = 5, progress: Progress | None = None) -> Exit:
    """Measure, print a table, write bench.json. UNKNOWN if something could not be measured, PRECONDITION
    if there is no healthy lab to measure."""
    progress = progress or Progress()
    try:
        stage.heal(progress.say)
    except HostSilent as error:
        progress.say(f"cannot begin: {error}")
        return Exit.PRECONDITION
    progress.say(f"idle cost of the daemons, over {IDLE_S} s")
    costs = idle_costs(stage)
    sessions = [series(name, runs, stage, out_dir, progress) for name in DRILLS]
    table = as_dict(sessions, costs)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "bench.json").write_text(json.dumps(table, indent=1) + "\n")
    print(as_text(table))
    whole = costs and all(session.verdict is Verdict.VALID for session in sessions)
    return Exit.VALID if whole else Exit.UNKNOWN


def series(name: str, runs: int, stage: Stage, out_dir: Path, progress: Progress) -> Session:
    """Several runs of one drill; each run's timeline goes to the report, not to the table."""
    drill, began, played = load_drill(name), time.time(), []
    for number in range(1, runs + 1):
        progress.say(f"{name}, run {number} of {runs}")
        one = play_once(drill, number, stage, progress)
        heal_after(stage, one, progress)
        played.append(one)
        progress.say(summary(one))
    session = session_of(drill, stage, began, played)
    report.write(session, page.render(session), [out_dir / f"bench-{name}"])
    return session


def summary(one: Played) -> str:
    if one.judgement is None or one.judgement.stall_ms is None:
        return f"unknown: {one.trouble or 'no stall seen'}"
    reasons = "".join(f"; {reason.what}" for reason in one.judgement.reasons)
    return f"{timeline.verdict_of(one)}, stall {one.judgement.stall_ms:.0f} ms{reasons}"


def idle_costs(stage: Stage) -> list[Cost]:
    """One node after another: measuring costs CPU itself, and the lab's machine is shared."""
    costs = []
    for node in stage.nodes.values():
        try:
            argv = ["python3", "-c", METER, str(IDLE_S), *UNITS]
            done = stage.exec(node, argv, timeout_s=IDLE_S + 60)
            table: dict[str, Any] = json.loads(done.stdout)
        except (HostSilent, ValueError):
            continue
        costs += [
            Cost(node=node, unit=unit, rss_kb=cost["rss_kb"], cpu_percent=round(cost["cpu_percent"], 2))
            for unit, cost in table.items()
        ]
    return costs


def as_dict(sessions: list[Session], costs: list[Cost]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "drills": [stalls(session) for session in sessions],
        "idle": [{"node": c.node, "unit": c.unit, "rss_kb": c.rss_kb, "cpu_percent": c.cpu_percent} for c in costs],
    }


def stalls(session: Session) -> dict[str, Any]:
    """Median and spread over the valid runs, and how many there were."""
    valid = [
        run.judgement.stall_ms
        for run in session.runs
        if run.judgement and run.judgement.verdict is Verdict.VALID and run.judgement.stall_ms is not None
    ]
    return {
        "drill": session.drill,
        "runs": len(session.runs),
        "valid": len(valid),
        "stall_ms": [round(value, 1) for value in valid],
        "stall_ms_median": round(statistics.median(valid), 1) if valid else None,
        "stall_ms_min": round(min(valid), 1) if valid else None,
        "stall_ms_max": round(max(valid), 1) if valid else None,
        "promised_ms": PROMISED_MS[session.drill],
    }


def as_text(table: dict[str, Any]) -> str:
    """The same as a table for people."""
    lines = [f"{'drill':14} {'valid':>7} {'median':>8} {'min':>7} {'max':>7} {'promised':>9}"]
    for row in table["drills"]:
        shown = [
            "-" if row[name] is None else f"{row[name]:.0f}"
            for name in ("stall_ms_median", "stall_ms_min", "stall_ms_max")
        ]
        lines.append(
            f"{row['drill']:14} {row['valid']:>3} / {row['runs']} {shown[0]:>8} {shown[1]:>7} {shown[2]:>7} "
            f"{row['promised_ms']:>6.0f} ms"
        )
    lines += ["", f"{'node':6} {'process':16} {'resident':>10} {'CPU idle':>9}"]
    for cost in table["idle"]:
        lines.append(
            f"{cost['node']:6} {cost['unit']:16} {cost['rss_kb'] / 1000:>7.1f} MB {cost['cpu_percent']:>7.2f} %"
        )
    lines.append(f"promised: hactld below {RSS_KB_PROMISED / 1000:.0f} MB and {CPU_PERCENT_PROMISED:.0f} %")
    return "\n".join(lines)
