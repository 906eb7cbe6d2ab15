"""The alert rules for Prometheus: they fire when they should, and they ask for metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hactl import metrics

RULES = Path(__file__).parent.parent / "deploy" / "prometheus"


def test_the_rules_pass_their_tests_in_promtool() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian package prometheus, which set-up does not install: it would start a server)")
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
