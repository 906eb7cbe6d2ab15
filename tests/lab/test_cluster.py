"""The whole of hactl on a lab of real kernels: the drills, restarts of the daemon, and what must be refused.

One lab serves all tests of this module: a test that leaves it unhealthy fails the next, which is how it should be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwlab.drill import Exit, run_drill
from hwlab.labstage import LabStage
from hwlab.stage import Done, HostSilent
from tests.lab.labs import fresh_lab, healed

pytestmark = pytest.mark.lab

LAB = "cluster"
DRILLS = (
    "kill-primary",
    "planned-move",
    "pause-primary",
    "cut-primary",
    "cut-storage",
    "hang-daemon",
    "hang-controller",
    "double-failure",
    "power-cycle",
    "cut-one-way",
    "cut-one-way-out",
    "cut-all",
    "stale-read",
    "kill-controller",
    "drift",
    *(pytest.param(name, marks=pytest.mark.long) for name in ("flap", "starved", "stop-node")),
)
SHORT_S = {"flap": 16.0, "starved": 60.0}
"""Drills that take a minute or ten are played shorter here; their own length is for `make drill`."""
TRIES = 2
"""A drill during which the lab itself was too slow to observe is `unknown`, and is played once more; an invalid one
never is."""


@pytest.fixture(scope="module")
def stage() -> Iterator[LabStage]:
    with fresh_lab(LAB) as lab:
        yield healed(lab)


def hactl(stage: LabStage, host: str, *words: str) -> Done:
    return stage.exec(host, ["hactl", *words], timeout_s=120)


def status(stage: LabStage) -> dict[str, Any]:
    for host in stage.nodes.values():
        done = hactl(stage, host, "status", "--json")
        if done.returncode == 0:
            told: dict[str, Any] = json.loads(done.stdout)
            return told
    raise AssertionError("no node answers `hactl status`")


def script(stage: LabStage, host: str, text: str, timeout_s: float = 60) -> str:
    done = stage.exec(host, ["sh", "-c", text], timeout_s=timeout_s)
    assert done.returncode == 0, f"{host}: {text}: {done.stderr.decode()}"
    return done.stdout.decode()


@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_is_valid(stage: LabStage, tmp_path: Path, name: str) -> None:
    out = Path("build/drills")
    for _ in range(TRIES):
        code = run_drill(name, runs=1, stage=stage, out_dir=out, duration_s=SHORT_S.get(name))
        if code is not Exit.UNKNOWN:
            break
    report = json.loads((out / "latest" / "report.json").read_text())
    assert code is Exit.VALID, report["runs"][-1]


WRITER = r"""
import os, sys, time
file = os.open("/mnt/v1/restart-test", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
print("ready", flush=True)
last, worst, count, end = time.monotonic(), 0.0, 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    os.write(file, b"x" * 100)
    os.fsync(file)
    now = time.monotonic()
    worst, last, count = max(worst, now - last), now, count + 1
    time.sleep(0.01)
print(count, worst)
"""


@pytest.mark.parametrize("how", ["systemctl restart hactld", "systemctl kill -s KILL --kill-who=main hactld"])
def test_a_daemon_that_restarts_or_is_killed_interrupts_and_moves_nothing(stage: LabStage, how: str) -> None:
    stage.heal(print)
    before = status(stage)["volumes"][0]
    primary = before["server"]
    old_pid = script(stage, primary, "systemctl show -p MainPID --value hactld")
    writer = stage.stream(stage.client, ["python3", "-c", WRITER, "15"])
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    script(stage, primary, how)
    told = writer.stdout.readline().split()
    assert writer.wait(60) == 0
    assert int(told[0]) > 50
    wait_for(lambda: script(stage, primary, "systemctl show -p MainPID --value hactld").strip() not in ("0", old_pid))
    wait_for(lambda: volume_phase(stage, primary) == "serving")
    after = status(stage)["volumes"][0]
    assert (after["server"], after["epoch"], after["key"]) == (primary, before["epoch"], before["key"])
    # A takeover would cost the old lease at least; a busy lab alone may cost a second.
    assert float(told[1]) < 5


ADDRESSES = 'for name in $(ip netns list | cut -d" " -f1); do ip -n "$name" -4 -o addr show; done'


def test_a_daemon_that_is_killed_while_its_disk_is_cut_off_shuts_what_it_no_longer_sees(stage: LabStage) -> None:
    """The new hactld finds no disk, reports nothing held, and node watch still renews the address of the old one."""
    stage.heal(print)
    primary = status(stage)["volumes"][0]["server"]
    service = stage.share.source.partition(":")[0]
    assert service in script(stage, primary, ADDRESSES)
    stage.fault("cut-storage", primary)
    script(stage, primary, "systemctl kill -s KILL --kill-who=main hactld")
    other = next(host for host in stage.nodes.values() if host != primary)

    def moved() -> bool:
        volume = json.loads(hactl(stage, other, "status", "--json").stdout)["volumes"][0]
        if volume["server"] in ("", None, primary):
            return False
        assert service not in script(stage, primary, ADDRESSES), "two nodes have the address"
        return str(volume["state"]) == "serving"

    wait_for(moved)
    stage.fault("heal-storage", primary)


def volume_phase(stage: LabStage, host: str) -> str:
    done = hactl(stage, host, "status", "--json")
    return str(json.loads(done.stdout)["volumes"][0]["phases"].get(host)) if done.returncode == 0 else ""


def wait_for(done: Any, deadline_s: float = 60) -> None:
    deadline = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.2)


def test_the_daemons_stay_small(stage: LabStage) -> None:
    stage.heal(print)
    for host in stage.nodes.values():
        pid = script(stage, host, "systemctl show -p MainPID --value hactld").strip()
        rss = script(stage, host, f"grep VmRSS /proc/{pid}/status")
        assert int(rss.split()[1]) < 60_000, f"{host}: {rss}"


def test_a_device_without_reservations_is_refused_and_left_alone(stage: LabStage) -> None:
    host = stage.nodes[1]
    script(stage, host, "modprobe scsi_debug dev_size_mb=100 num_tgts=1; udevadm settle; sleep 1")
    device = script(
        stage, host, "for d in /sys/block/sd*; do grep -q scsi_debug $d/device/model && echo /dev/${d##*/}; done"
    ).strip()
    try:
        checked = hactl(stage, host, "check", device)
        assert checked.returncode == 5
        assert b"FAIL" in checked.stdout
        added = add(stage, host, device)
        assert added.returncode == 1
        assert b"Nothing was written" in added.stderr
        assert not any(script(stage, host, f"head -c 8388608 {device} | od -An -v -tx1 | tr -d ' 0\\n' | head -c 1"))
    finally:
        script(stage, host, "modprobe -r scsi_debug")


def add(stage: LabStage, host: str, device: str, name: str = "v2") -> Done:
    words = ["--device", device, "--address", "10.77.1.60/24", "--clients", "10.77.1.0/24", "--format"]
    return hactl(stage, host, "volume", "add", name, *words)


LOOP = r"""
import rtslib_fb as lio
open("/var/tmp/spare", "wb").truncate(128 << 20)
store = lio.FileIOStorageObject("spare", "/var/tmp/spare", 128 << 20)
lio.LUN(lio.TPG(lio.Target(lio.FabricModule("loopback"), "naa.5001405000000001"), 1), 0, store)
"""
UNLOOP = (
    "import rtslib_fb as lio; lio.RTSRoot().clear_existing(confirm=True); __import__('os').remove('/var/tmp/spare')"
)


@pytest.fixture
def spare(stage: LabStage) -> Iterator[str]:
    """A disk of its own on the first node, with real reservations (LIO's loopback)."""
    host = stage.nodes[1]
    prepare = "modprobe tcm_loop; mkdir -p /etc/target/pr /var/target/pr; mountpoint -q /sys/kernel/config"
    script(stage, host, f"{prepare} || mount -t configfs configfs /sys/kernel/config")
    assert stage.exec(host, ["python3", "-c", LOOP], timeout_s=60).returncode == 0
    find = "for d in /sys/block/sd*; do grep -q FILEIO $d/device/model && echo /dev/${d##*/}; done"
    wait_for(lambda: script(stage, host, find + "; true").strip())
    try:
        yield script(stage, host, find).strip()
    finally:
        stage.exec(host, ["python3", "-c", UNLOOP], timeout_s=60)


def first_bytes(stage: LabStage, host: str, device: str) -> str:
    return script(stage, host, f"dd if={device} bs=1M count=8 iflag=direct 2>/dev/null | sha256sum")


def test_a_disk_of_somebody_else_is_refused_and_left_alone(stage: LabStage, spare: str) -> None:
    host = stage.nodes[1]
    reserve = "sg_persist --no-inquiry --out"
    for words in (f"--register --param-sark=0xabc123 {spare}", f"--reserve --param-rk=0xabc123 --prout-type=5 {spare}"):
        script(stage, host, f"{reserve} {words} || {reserve} {words}")
    before = first_bytes(stage, host, spare)
    refused = add(stage, host, spare)
    assert refused.returncode == 1, refused.stdout
    assert b"0x0000000000abc123" in refused.stderr
    assert first_bytes(stage, host, spare) == before
    keys = script(stage, host, f"sg_persist --no-inquiry --in --read-keys {spare}")
    assert "0xabc123" in keys
    script(stage, host, f"{reserve} --clear --param-rk=0xabc123 {spare}")


def test_a_label_that_was_damaged_is_named_and_nothing_else_changes(stage: LabStage, spare: str) -> None:
    host = stage.nodes[1]
    before = status(stage)["volumes"]
    garbage = "printf 'HACTL-LABEL\\r\\n\\032\\n\\000garbage'"
    script(
        stage, host, f"for at in 1048576 1114112; do {garbage} | dd of={spare} bs=1 seek=$at 2>/dev/null; done; sync"
    )
    wait_for(lambda: any(spare in line and "label" in line for line in problems(stage, host)), 30)
    refused = add(stage, host, spare)
    assert refused.returncode == 1
    assert b"not empty" in refused.stderr
    assert [each["name"] for each in status(stage)["volumes"]] == [each["name"] for each in before]


def problems(stage: LabStage, host: str) -> list[str]:
    told: list[str] = json.loads(hactl(stage, host, "status", "--json").stdout)["problems"]
    return told


def test_a_configuration_with_an_unknown_key_stops_the_daemon_with_a_clear_line(stage: LabStage) -> None:
    host = stage.nodes[1]
    script(
        stage,
        host,
        "cp /etc/hactl/hactl.toml /tmp/wrong.toml; printf '[timing]\\nheartbeats = 3\\n' >> /tmp/wrong.toml",
    )
    python = ["env", "PYTHONPATH=/opt/hactl/lib:/opt/hactl/site", "python3", "-m"]
    for module in ("hactl.daemon", "nodewatch"):
        done = stage.exec(host, [*python, module, "--config", "/tmp/wrong.toml"], timeout_s=60)
        assert done.returncode == 2, module
        assert b"heartbeats" in done.stderr, module


def test_a_node_with_a_wrong_key_is_told_apart_from_a_dead_one(stage: LabStage) -> None:
    """A stranger's datagrams: dropped, counted, shown on the nodes; the cluster goes on as it was."""
    before = status(stage)
    client = "import socket, os; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    client += "for n in range(2000): s.sendto(os.urandom(n % 1400), ('10.77.1.%d' % (11 + n % 3), 7747))"
    assert stage.exec(stage.client, ["python3", "-c", client], timeout_s=60).returncode == 0
    after = status(stage)
    assert (after["leader"], after["term"]) == (before["leader"], before["term"])
    assert after["volumes"][0]["server"] == before["volumes"][0]["server"]


CONFIG = "/etc/hactl/hactl.toml"
RESTART = "systemctl restart hactl-nodewatch; systemctl restart hactld"


def well(stage: LabStage) -> bool:
    """The volume is served, and every node is ready."""
    try:
        told = [hactl(stage, host, "status", "--json") for host in stage.nodes.values()]
    except HostSilent:
        return False
    if any(done.returncode for done in told):
        return False
    states = [json.loads(done.stdout) for done in told]
    return all(
        state["volumes"] and state["volumes"][0]["state"] == "serving" and all(node["ready"] for node in state["nodes"])
        for state in states
    )


def test_with_a_second_heartbeat_link_the_loss_of_the_first_is_seen_and_moves_nothing(stage: LabStage) -> None:
    stage.heal(print)
    twice = r's/^address = "10\.77\.1\.([0-9]+)"/addresses = ["10.77.1.\1", "10.77.2.\1"]/'
    for host in stage.nodes.values():
        script(stage, host, f"cp {CONFIG} /root/one-link.toml; sed -i -E '{twice}' {CONFIG}; {RESTART}")
    try:
        wait_for(lambda: well(stage), 120)
        before = status(stage)["volumes"][0]
        backup, observer = [host for host in stage.nodes.values() if host != before["server"]]

        def seen() -> dict[str, Any]:
            shown = hactl(stage, observer, "node", "show", backup, "--json")
            return dict(json.loads(shown.stdout)) if shown.returncode == 0 else {"links": []}

        wait_for(lambda: [link["state"] for link in seen()["links"]] == ["up", "up"])
        stage.fault("cut", backup)
        wait_for(lambda: [link["state"] for link in seen()["links"]] == ["silent", "up"])
        now = seen()
        assert now["state"] == "alive", now
        assert not now["links"][0]["hears_us"] or now["links"][1]["hears_us"]
        script(stage, backup, "ip link set lan down")
        wait_for(lambda: "is down" in hactl(stage, backup, "node", "show", backup).stdout.decode())
        script(stage, backup, "ip link set lan up")
        stage.fault("heal", backup)
        wait_for(lambda: [link["state"] for link in seen()["links"]] == ["up", "up"])
        after = status(stage)["volumes"][0]
        assert (after["server"], after["epoch"]) == (before["server"], before["epoch"])
    finally:
        stage.heal(print)
        for host in stage.nodes.values():
            script(stage, host, f"mv /root/one-link.toml {CONFIG}; {RESTART}")
    wait_for(lambda: well(stage), 120)
