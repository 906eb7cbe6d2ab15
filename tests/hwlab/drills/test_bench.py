"""The benchmark's table: medians of valid runs only, and what was promised beside what was measured."""

import json
import re
import subprocess
import sys
from typing import Any

from hwlab.bench import METER, Cost, as_dict, as_text
from hwlab.checker import judge
from hwlab.history import Found
from hwlab.report import Played, Session


def session(name: str, *histories: Any) -> Session:
    return Session(
        drill=name,
        title="t",
        about="a",
        driver="uml",
        transport="iscsi",
        volume="v1",
        began_unix_ms=0,
        runs=tuple(
            Played(number=n, history=history, judgement=judge(history)) for n, history in enumerate(histories, start=1)
        ),
    )


def test_only_valid_runs_count_and_the_others_are_told(history: Any) -> None:
    bad = history(found=Found(runs=((1, 800),)))
    sessions = [session("kill-primary", history(), history(), bad), session("planned-move", bad)]
    cost = Cost(node="n1", unit="hactld", rss_kb=41_250, cpu_percent=0.8)
    table = as_dict(sessions, [cost])
    assert table["drills"][0]["stall_ms"] == [2020.0, 2020.0]
    assert (table["drills"][1]["valid"], table["drills"][1]["stall_ms_median"]) == (0, None)
    text = as_text(table)
    assert "kill-primary     2 / 3     2020    2020    2020   3000 ms" in text
    assert "planned-move     0 / 1        -       -       -   1000 ms" in text
    assert re.search(r"n1 +hactld +41\.2 MB +0\.80 %", text)


def test_the_meter_reads_memory_and_time_of_a_living_process() -> None:
    # systemctl is replaced by one that names the meter itself.
    script = METER.replace("def show(unit):", "def show(unit): return os.getpid()\ndef unused(unit):")
    done = subprocess.run([sys.executable, "-c", script, "0.05", "hactld"], capture_output=True, text=True)
    table = json.loads(done.stdout)
    assert table["hactld"]["rss_kb"] > 1000
    assert 0 <= table["hactld"]["cpu_percent"] < 200
