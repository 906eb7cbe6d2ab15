"""The alert rules for Prometheus: they fire when they should, and they ask for metrics that there are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hactl import metrics
from hwlab.monitoring import PROGRAMS

RULES = Path(__file__).parent.parent / "deploy" / "prometheus"


def test_the_rules_pass_their_tests_in_promtool() -> None:
    promtool = shutil.which("promtool", path=f"{os.environ.get('PATH', '')}:{PROGRAMS}")
    if promtool is None:
        pytest.skip("no promtool: the Debian package prometheus, or a run of tests/lab/test_alerts.py, brings it")
    done = subprocess.run(
        [promtool, "test", "rules", str(RULES / "hactl.rules.test.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_asks_for_a_metric_that_hactl_has_and_is_tested() -> None:
    rules, tests = ((RULES / name).read_text() for name in ("hactl.rules.yml", "hactl.rules.test.yml"))
    asked = set(re.findall(r"\bhactl_[a-z_]+", rules))
    assert asked <= set(re.findall(r'"(hactl_[a-z_]+)"', Path(metrics.__file__).read_text()))
    for alert in re.findall(r"alert: (\w+)", rules):
        assert re.search(rf"alertname: {alert}\s+exp_alerts", tests), alert
