"""The watchdog below everything else, on real kernels with softdog: who is reset, and who is not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from hwlab.errors import LabError
from hwlab.lab import open_lab, remove_lab
from hwlab.labstage import LabStage
from hwlab.preconditions import preconditions
from hwlab.stage import HostSilent

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "watchdog"
FIND = "for w in /sys/class/watchdog/*; do grep -q Software $w/identity && echo /dev/${w##*/}; done"
SECTION = "printf '\\n[watchdog]\\ndevice = \"%s\"\\n' {} >> /etc/hactl/hactl.toml"
SWITCH_ON = SECTION + "; systemctl restart hactl-nodewatch hactld"
WATCHDOG_S = 14
"""With the default timing: docs/nodewatch.md."""


@pytest.fixture(scope="module")
def stage() -> Iterator[LabStage]:
    try:
        preconditions()
    except LabError as error:
        pytest.skip(str(error))
    remove_lab(LAB, lambda _: None)
    try:
        made = LabStage(open_lab(LAB))
        made.heal(print)
        for host in made.nodes.values():
            device = script(made, host, FIND).split()[0]
            script(made, host, SWITCH_ON.format(device))
        wait_for(lambda: all(told(made, host)["watchdog"] for host in made.nodes.values()))
        yield made
    finally:
        remove_lab(LAB, print)


def script(stage: LabStage, host: str, text: str) -> str:
    done = stage.exec(host, ["sh", "-c", text], timeout_s=60)
    assert done.returncode == 0, f"{host}: {text}: {done.stderr.decode()}"
    return done.stdout.decode()


def told(stage: LabStage, host: str) -> dict[str, object]:
    """`hactl status --json` as that host tells it."""
    answer: dict[str, object] = json.loads(script(stage, host, "hactl status --json"))
    return answer


def wait_for(done: Callable[[], object], deadline_s: float = 90) -> None:
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            if done():
                return
        except (HostSilent, AssertionError):
            pass
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.3)


def serving(stage: LabStage, host: str) -> str:
    """Who serves the volume, as `host` sees it; "" while nobody does."""
    volume = told(stage, host)["volumes"][0]  # type: ignore[index]
    return str(volume["server"]) if volume["state"] == "serving" else ""


def boot_of(stage: LabStage, host: str) -> str:
    return script(stage, host, "cat /proc/sys/kernel/random/boot_id")


def another(stage: LabStage, than: str) -> str:
    return next(host for host in stage.nodes.values() if host != than)


def test_a_primary_that_was_cut_off_and_stopped_in_order_is_not_reset(stage: LabStage) -> None:
    wait_for(lambda: serving(stage, "n1"))
    primary = serving(stage, "n1")
    boot, other = boot_of(stage, primary), another(stage, primary)
    stage.fault("cut", primary)
    wait_for(lambda: serving(stage, other) not in ("", primary))
    # Long enough for a watchdog that nobody pats; ssh has a network of its own.
    end = time.monotonic() + WATCHDOG_S * 1.5
    while time.monotonic() < end:
        assert boot_of(stage, primary) == boot
        time.sleep(1)
    stage.fault("heal", primary)
    assert boot_of(stage, primary) == boot


def test_a_primary_whose_daemons_both_hang_is_reset_and_comes_back_as_a_backup(stage: LabStage) -> None:
    wait_for(lambda: serving(stage, "n1"))
    primary = serving(stage, "n1")
    boot, other = boot_of(stage, primary), another(stage, primary)
    stage.fault("hang-daemon", primary)
    wait_for(lambda: serving(stage, other) not in ("", primary))
    wait_for(lambda: boot_of(stage, primary) != boot, 120)
    wait_for(lambda: all(node["ready"] for node in told(stage, other)["nodes"]), 120)  # type: ignore[attr-defined]
    assert serving(stage, other) != primary
