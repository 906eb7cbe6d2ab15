"""The links' state as a real kernel tells it, in a network namespace of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


def test_carrier_address_and_route_are_told_as_they_change() -> None:
    isolate = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*isolate, "true"], capture_output=True).returncode:
        pytest.skip("this host allows no user namespaces, in which network interfaces could be made")
    host = [*isolate, sys.executable, "-m", "tests.nodewatch.link_host"]
    done = subprocess.run(host, cwd=TOP, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
