"""Fencing over NVMe on real kernels: nvmet over TCP, by passthrough and by the kernel's PR ioctls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwlab.protocols import Lab
from tests.lab.labs import fresh_lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "fencenvme"
HERE = Path(__file__).parent
GUEST = "/opt/hactl/fencing_guest.py"
HOSTS = "/opt/hactl/nvme_hosts.sh"
DEVICE = "/dev/nvme0n1"
DEVICES = ["/dev/nvme0n1", "/dev/nvme1n1", "/dev/nvme2n1"]
PYTHON = ["env", "PYTHONPATH=/opt/hactl/lib:/opt/hactl/site", "python3"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab(LAB, "nvmepair") as made:
        made.up(print)
        wait = f"for i in $(seq 300); do [ -b {DEVICE} ] && exit; sleep 0.1; done; exit 1"
        for node in ("n1", "n2"):
            files = {
                "/opt/hactl/lib/fencing": HERE.parent.parent / "fencing",
                GUEST: HERE / "fencing_guest.py",
                HOSTS: HERE / "nvme_hosts.sh",
            }
            made.hosts[node].command.put(files, timeout_s=120)
            made.hosts[node].command.run(["sh", "-c", wait], timeout_s=60)
        yield made


def ask(lab: Lab, host: str, what: str, *arguments: str) -> dict[str, Any]:
    done = lab.hosts[host].command.run([*PYTHON, GUEST, what, DEVICE, *arguments], timeout_s=180)
    return dict(json.loads(done.text.splitlines()[-1]))


def contract(lab: Lab, *what: str) -> list[dict[str, Any]]:
    argv = [*PYTHON, "-m", "fencing._contract", *what, *DEVICES]
    done = lab.hosts["n1"].command.run(argv, timeout_s=580, check=False)
    assert done.status in (0, 1), done.stderr.decode()
    return [json.loads(line) for line in done.text.splitlines()]


def test_a_namespace_is_formatted_taken_over_and_closed_to_the_fenced_node(lab: Lab) -> None:
    assert "ok" in ask(lab, "n1", "format", "1", "ext4", "force")
    [first] = ask(lab, "n1", "acquire", "1")["ok"]
    [second] = ask(lab, "n2", "acquire", "2")["ok"]
    assert second["epoch"] == first["epoch"] + 1 and second["doubts"] == []
    state = ask(lab, "n1", "state")["ok"]
    assert state["keys"] == state["holders"] == [second["key"]]
    assert ask(lab, "n1", "verify", "1", first["key"])["ok"].startswith("lost")
    assert ask(lab, "n1", "try-write")["ok"] is False and ask(lab, "n2", "try-write")["ok"] is True


def test_a_node_with_the_number_of_another_one_is_told_of_its_twin(lab: Lab) -> None:
    """n1 as node 7 presents the host identifier under which node 1 is registered."""
    ask(lab, "n1", "acquire", "1")
    before = ask(lab, "n2", "state")
    refused = ask(lab, "n1", "acquire", "7")
    assert refused["error"] == "SharedNexus" and "node 1" in refused["text"]
    assert ask(lab, "n2", "state") == before


def test_the_fenced_node_is_told_by_its_kernel(lab: Lab) -> None:
    ask(lab, "n1", "acquire", "1")
    waiting = lab.hosts["n1"].command.start([*PYTHON, "-u", GUEST, "wait-fenced", DEVICE])
    assert waiting.stdout is not None
    assert json.loads(waiting.stdout.readline()) == "listening"
    assert "ok" in ask(lab, "n2", "acquire", "2")
    told = json.loads(waiting.stdout.readlines()[-1])["ok"]
    assert waiting.wait(timeout=60) == 0
    assert told["why"] == "reservation notice" and "registration preempted" in told["notices"]


@pytest.fixture(scope="module")
def three_hosts(lab: Lab) -> Lab:
    lab.hosts["n1"].command.run(["sh", HOSTS], timeout_s=120)
    return lab


@pytest.mark.parametrize("port", ["nvme", "pr"])
def test_nvmet_keeps_the_contract(three_hosts: Lab, port: str) -> None:
    results = contract(three_hosts, "cases", "--port", port)
    assert len(results) > 30
    assert [result for result in results if not result["ok"]] == []


def test_the_fake_and_nvmet_agree_on_random_operations(three_hosts: Lab) -> None:
    assert contract(three_hosts, "compare", "--port", "nvme", "--seed", "12", "--count", "10000") == []
