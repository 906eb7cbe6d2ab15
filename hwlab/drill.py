"""Runs a drill on a stage, as often as asked for, and reports. The entry for the command line and the tests."""

import json
import sys
import time
import uuid
from enum import IntEnum
from pathlib import Path

from hwlab import page, report, timeline
from hwlab.checker import judge
from hwlab.drillfile import Drill, DrillError, load_drill
from hwlab.history import Verdict
from hwlab.observers import NotReady
from hwlab.progress import Progress
from hwlab.report import Played, Session
from hwlab.run import Run
from hwlab.stage import HostSilent, Stage


class Exit(IntEnum):
    VALID = 0
    INVALID = 1
    PRECONDITION = 2
    UNKNOWN = 3


CODES = {Verdict.VALID: Exit.VALID, Verdict.INVALID: Exit.INVALID, Verdict.UNKNOWN: Exit.UNKNOWN}


def run_drill(
    name: str,
    *,
    runs: int,
    stage: Stage,
    out_dir: Path,
    as_json: bool = False,
    progress: Progress | None = None,
    duration_s: float | None = None,
) -> Exit:
    """Play `name` `runs` times in the same lab; between runs everything is healed.

    Writes report.json and report.html to `out_dir/latest` and `out_dir/NAME-TIME`, the timelines (or, with
    `as_json`, the report) to stdout and progress to stderr. PRECONDITION: not a single run could begin, nothing
    was judged and nothing written.
    """
    progress = progress or Progress()
    if runs < 1:
        progress.say("RUNS must be at least 1")
        return Exit.PRECONDITION
    try:
        drill = load_drill(name, duration_s=duration_s)
    except DrillError as error:
        progress.say(str(error))
        return Exit.PRECONDITION
    began = time.time()
    played: list[Played] = []
    for number in range(1, runs + 1):
        progress.say(f"{name}, run {number} of {runs}: {drill.title}")
        one = play_once(drill, number, stage, progress)
        if not played and one.history is None:
            progress.say(f"cannot begin: {one.trouble}")
            return Exit.PRECONDITION
        played.append(one)
        if not as_json:
            print(timeline.of_run(one, runs), flush=True)
        heal_after(stage, one, progress)
        session = session_of(drill, stage, began, played)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
        # After each run: an interrupted series leaves the report of what was played.
        report.write(session, page.render(session), [out_dir / "latest", out_dir / f"{name}-{stamp}"])
    if as_json:
        json.dump(report.as_dict(session), sys.stdout, indent=1)
        print()
    else:
        print(timeline.of_session(session))
        print(f"report: {out_dir / 'latest' / 'report.html'}")
    return CODES[session.verdict]


def play_once(drill: Drill, number: int, stage: Stage, progress: Progress) -> Played:
    """One run, judged; a run that could not begin carries the reason instead."""
    try:
        stage.heal(progress.say)
        history = Run(stage, drill, f"{number}-{uuid.uuid4().hex[:8]}", progress).play()
    except (NotReady, HostSilent) as error:
        return Played(number=number, trouble=str(error))
    return Played(number=number, history=history, judgement=judge(history))


def heal_after(stage: Stage, played: Played, progress: Progress) -> None:
    """Leave a healthy lab behind, also after a run that stopped in the middle."""
    if played.judgement is None or played.judgement.verdict is not Verdict.VALID:
        try:
            stage.heal(progress.say)
        except HostSilent as error:
            progress.say(f"the lab could not be healed: {error}")


def session_of(drill: Drill, stage: Stage, began: float, played: list[Played]) -> Session:
    return Session(
        drill=drill.name,
        title=drill.title,
        about=drill.about,
        driver=stage.driver,
        transport=stage.transport,
        volume=stage.share.volume,
        began_unix_ms=int(began * 1000),
        runs=tuple(played),
        stall_ms_max=drill.end.stall_ms_max,
    )
