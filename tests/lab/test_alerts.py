"""What an administrator gets of a fault: a real Prometheus scrapes the cluster, a real Alertmanager sends mail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest

from hwlab import faults
from hwlab.labstage import LabStage
from hwlab.monitoring import Monitoring, monitoring
from hwlab.protocols import Lab, PowerState
from tests.lab.labs import fresh_lab, healed

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "alerts"
NODES = ["n1", "n2", "n3"]
MAIL_S = 240.0
EXERCISE = """
[exercise]
window = "daily {begin:02d}:00-{end:02d}:00"
read_mb = 8
swap = false
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab(LAB, "multipath") as made:
        yield made


@pytest.fixture(scope="module")
def stage(lab: Lab) -> LabStage:
    return healed(lab)


@pytest.fixture(scope="module")
def watched(lab: Lab, stage: LabStage) -> Iterator[Monitoring]:
    with monitoring(LAB, lab.topology, NODES) as made:
        yield made


def status(stage: LabStage, node: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(stage.exec(node, ["hactl", "status", "--json"]).stdout)
    return told


def mail(watched: Monitoring, fits: Callable[[EmailMessage], bool]) -> EmailMessage:
    """The first that fits, waited for."""
    end = time.monotonic() + MAIL_S
    while time.monotonic() < end:
        for each in watched.mails():
            if fits(each):
                return each
        time.sleep(1)
    subjects = [each["Subject"] for each in watched.mails()]
    raise AssertionError(f"no such mail, but {subjects}\n{watched.log()}")


def with_subject(watched: Monitoring, subject: str) -> str:
    body = mail(watched, lambda each: each["Subject"] == subject).get_body(("plain",))
    assert body is not None
    print(subject, body.get_content(), sep="\n")
    return str(body.get_content())


def test_a_path_of_a_backup_that_died_unseen_is_a_mail_and_no_outage(
    lab: Lab, stage: LabStage, watched: Monitoring
) -> None:
    volume = status(stage, "n1")["volumes"][0]
    backup = next(node for node in NODES if node != volume["server"])
    faults.inject("cut-path", lab.hosts[backup])
    hour = int(stage.exec(backup, ["date", "-u", "+%H"]).stdout)
    section = EXERCISE.format(begin=hour, end=(hour + 2) % 24)
    script = "cat >> /etc/hactl/hactl.toml && systemctl restart hactld"
    assert stage.exec(backup, ["sh", "-c", script], input=section.encode()).returncode == 0
    text = with_subject(watched, "The scheduled exercise (reads) of volume v1 found a fault")
    assert "The volume is served" in text
    after = status(stage, volume["server"])["volumes"][0]
    assert (after["server"], after["state"], after["epoch"]) == (volume["server"], "serving", volume["epoch"])
    wrong = "\n".join(status(stage, backup)["problems"])
    assert "exercise" in wrong, wrong
    faults.inject("heal-storage", lab.hosts[backup])


def test_a_node_that_died_is_one_mail_and_its_return_another(lab: Lab, stage: LabStage, watched: Monitoring) -> None:
    told = status(stage, "n1")
    busy = {told["leader"], told["volumes"][0]["server"]}
    idle = next(node for node in NODES if node not in busy)
    lab.hosts[idle].power.off()
    text = with_subject(watched, f"Node {idle} is not heard")
    assert "Look at the host and its network" in text
    lab.hosts[idle].power.on()
    with_subject(watched, f"over: Node {idle} is not heard")
    assert lab.hosts[idle].power.state() is PowerState.ON
    subjects = [each["Subject"] for each in watched.mails()]
    assert subjects.count(f"Node {idle} is not heard") == 1
