"""Nodes and the key change while a client writes: nothing moves, no lease lapses, nobody waits for long."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hwlab.protocols import Host, Lab
from hwlab.strategy import CONFIG, KEY, serve
from hwlab.topology import LAN
from tests.lab.labs import fresh_lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "members"
STALL_S_MAX = 3.0
"""Far below what any takeover costs a client that writes all the time, and above what a busy machine may cost."""

WRITER = r"""
import os, select, sys, time
file = os.open("/mnt/v1/members-test", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
print("ready", flush=True)
last, worst, count = time.monotonic(), 0.0, 0
while not select.select([sys.stdin], [], [], 0.01)[0]:
    os.write(file, b"x" * 100)
    os.fsync(file)
    now = time.monotonic()
    worst, last, count = max(worst, now - last), now, count + 1
print(count, worst)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with fresh_lab(LAB, "spare") as made:
        serve(made, print)
        yield made


def run(host: Host, *argv: str) -> str:
    print(f"{host.name}# {' '.join(argv)}")
    text = host.command.run(list(argv), timeout_s=150).text
    print(text)
    return text


def status(host: Host) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(host.command.run(["hactl", "status", "--json"], timeout_s=60).text)
    return told


def prepare(by: Host, new: Host, number: int) -> tuple[str, ...]:
    """What an administrator does on the new host; gives the words of `node add`."""
    words = (new.name, "--number", str(number), "--address", new.addresses[LAN])
    text = by.command.run(["hactl", "node", "add", *words, "--prepare"], timeout_s=60).stdout
    key = by.command.run(["cat", KEY]).stdout
    new.command.put({CONFIG: text})
    new.command.put({KEY: key}, mode=0o600)
    run(new, "systemctl", "restart", "hactl-nodewatch", "hactld")
    return words


def wait_for(done: Callable[[], bool], what: str, deadline_s: float = 60) -> None:
    deadline = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def ready(host: Host, count: int) -> bool:
    nodes = status(host)["nodes"]
    return len(nodes) == count and all(node["ready"] for node in nodes)


def test_nodes_and_the_key_change_while_a_client_writes(lab: Lab) -> None:
    n4, client = lab.hosts["n4"], lab.hosts["c1"]
    before = status(lab.hosts["n1"])
    primary = lab.hosts[before["volumes"][0]["server"]]
    writer = client.command.start(["python3", "-c", WRITER], stdin=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdin is not None
    assert writer.stdout.readline() == b"ready\n"
    lapses = count_lapses(primary)

    words = prepare(primary, n4, 4)
    run(primary, "hactl", "node", "add", *words)
    wait_for(lambda: ready(primary, 4), "n4 to be ready")
    run(primary, "hactl", "node", "list")
    run(primary, "hactl", "node", "remove", "n4")
    wait_for(lambda: any("removed" in line for line in status(n4)["problems"]), "n4 to know that it was removed")
    run(n4, "systemctl", "stop", "hactld", "hactl-nodewatch")
    refused = primary.command.run(["hactl", "node", "add", *words], check=False, timeout_s=60)
    assert refused.status == 1 and b"another node's" in refused.stderr

    words = prepare(primary, n4, 5)
    leader = status(primary)["leader"]
    replaced = next(lab.hosts[name] for name in ("n3", "n2", "n1") if name not in (leader, primary.name))
    run(primary, "hactl", "node", "replace", replaced.name, *words)
    run(replaced, "systemctl", "stop", "hactld", "hactl-nodewatch")
    wait_for(lambda: ready(primary, 3), "three nodes to be ready")
    old_key = primary.command.run(["cat", KEY]).stdout
    run(primary, "hactl", "key", "rotate")
    wait_for(lambda: ready(primary, 3), "three nodes to be ready")
    run(primary, "hactl", "status")
    run(primary, "cat", CONFIG)

    told = writer.communicate(b"\n", timeout=60)[0].split()
    after = status(primary)
    keys = {host.command.run(["cat", KEY]).stdout for host in (primary, n4)}
    assert len(keys) == 1 and old_key not in keys and len(keys.pop().split()) == 1
    assert after["config"]["version"] == 8 and after["config"]["behind"] == []
    for name in ("server", "epoch", "key"):
        assert after["volumes"][0][name] == before["volumes"][0][name]
    print(f"{told[0].decode()} writes, longest stall {float(told[1]):.2f} s")
    print(f"leader and term: {before['leader']} {before['term']}, then {after['leader']} {after['term']}")
    # On a machine that is too busy another leader may be elected meanwhile; who serves must not notice.
    assert count_lapses(primary) == lapses
    assert int(told[0]) > 100
    assert float(told[1]) < STALL_S_MAX


def count_lapses(host: Host) -> int:
    """How often the host's node watch lost its lease since its boot."""
    argv = ["journalctl", "--no-pager", "--unit", "hactl-nodewatch", "--grep", "lease lost"]
    return host.command.run(argv, check=False).text.count("lease lost")
