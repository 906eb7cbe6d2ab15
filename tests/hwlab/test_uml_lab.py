"""The driver `uml` on this machine: real kernels, real power losses. Needs root; some seconds per host."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwlab import netns, procs
from hwlab.errors import CommandFailed, CommandTimeout
from hwlab.faults import inject
from hwlab.guests import IQN_PREFIX
from hwlab.lab import open_lab, remove_lab
from hwlab.locallab import leftovers
from hwlab.paths import state_dir
from hwlab.protocols import Host, Lab, PowerState
from hwlab.strategy import wait_for_disks

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and tap devices"),
]

ONE_HOST = """
name = "one"
driver = "uml"
[networks]
mgmt = "10.77.0.0/24"
lan = "10.77.1.0/24"
[[host]]
name = "h1"
role = "client"
addresses = { mgmt = "10.77.0.21", lan = "10.77.1.21" }
"""

# Two initiators would cost a third boot; the target's own word is enough to see what it kept.
TARGET_AND_NODE = """
name = "pair"
driver = "uml"
[networks]
mgmt = "10.77.0.0/24"
lan = "10.77.1.0/24"
san = "10.77.2.0/24"
[[host]]
name = "san1"
role = "target"
addresses = { mgmt = "10.77.0.10", san = "10.77.2.10" }
[[host]]
name = "n1"
role = "node"
addresses = { mgmt = "10.77.0.11", lan = "10.77.1.11", san = "10.77.2.11" }
[[lun]]
name = "v1"
size_mb = 256
serial = "7e57ab1e0000"
"""


def say(line: str) -> None:
    print(line, flush=True)


def labs_left(name: str) -> list[str]:
    """All traces of a lab: its own account, and what the machine shows without asking hwlab."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"hwlab-{name}" in line]
    words = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/hactl-lab/{name}/" in line or f"hwlab-{name}/" in line:
            words.append(line)
    return [*leftovers(name), *mounts, *words]


@pytest.fixture(scope="module")
def topologies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("topologies")
    (directory / "one.toml").write_text(ONE_HOST)
    (directory / "pair.toml").write_text(TARGET_AND_NODE)
    return directory


@pytest.fixture(scope="module")
def pair(topologies: Path) -> Iterator[Lab]:
    remove_lab("t-pair", say)
    lab = open_lab("t-pair", str(topologies / "pair.toml"))
    try:
        lab.up(say)
        yield lab
    finally:
        remove_lab("t-pair", say)


def eventually(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.1)


def on_disk(host: Host, script: str) -> str:
    return host.command.run(["sh", "-c", script], timeout_s=60).text


def wait_for_disk(lab: Lab, node: Host) -> str:
    wait_for_disks(lab, [node], say)
    return lab.disks["v1"].device


def test_two_labs_run_side_by_side_and_one_goes_without_the_other(topologies: Path) -> None:
    names = ("t-left", "t-right")
    try:
        for name in names:
            open_lab(name, str(topologies / "one.toml")).up(say)
        hosts = [open_lab(name).hosts["h1"] for name in names]
        for name, host in zip(names, hosts, strict=True):
            host.command.run(["sh", "-c", f"echo {name} >/root/whose"])
        assert [host.command.run(["cat", "/root/whose"]).text for host in hosts] == list(names)
        remove_lab("t-left", say)
        assert labs_left("t-left") == []
        assert hosts[1].command.run(["cat", "/root/whose"]).text == "t-right"
    finally:
        for name in names:
            remove_lab(name, say)
    assert [labs_left(name) for name in names] == [[], []]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_down_removes_everything_after_hwlab_was_ended_half_way(topologies: Path, number: signal.Signals) -> None:
    name = "t-cut"
    argv = [sys.executable, "-m", "hwlab", "--lab", name, "up", "--topology", str(topologies / "pair.toml")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: procs.started_by(state_dir(name) / "hosts/san1/start") != [], timeout_s=300)
        process.send_signal(number)
        process.wait()
        assert netns.pids(name), "nothing was running: the test came too late or too early"
        subprocess.run([sys.executable, "-m", "hwlab", "--lab", name, "down"], check=True)
        assert labs_left(name) == []
    finally:
        process.kill()
        process.wait()
        remove_lab(name, say)


def test_down_works_without_any_record(topologies: Path) -> None:
    name = "t-norec"
    try:
        open_lab(name, str(topologies / "one.toml")).up(say)
        (state_dir(name) / "lab.json").write_text("{ damaged")
        remove_lab(name, say)
        assert labs_left(name) == []
    finally:
        remove_lab(name, say)


def test_a_host_keeps_its_disk_over_a_power_loss(pair: Lab) -> None:
    node = pair.hosts["n1"]
    boot_id = node.command.run(["cat", "/proc/sys/kernel/random/boot_id"]).text
    node.command.run(["sh", "-c", "echo kept >/root/kept && sync"])
    inject("kill", node)
    assert node.power.state() is PowerState.OFF
    inject("power-on", node)
    node.command.wait_reachable(120)
    assert node.command.run(["cat", "/root/kept"]).text == "kept"
    assert node.command.run(["cat", "/proc/sys/kernel/random/boot_id"]).text != boot_id
    assert "power on at" in node.console.text()


def test_an_orderly_reboot_comes_back_by_itself(pair: Lab) -> None:
    node = pair.hosts["n1"]
    boot_id = node.command.run(["cat", "/proc/sys/kernel/random/boot_id"]).text
    inject("reboot", node)

    def rebooted() -> bool:
        answer = node.command.run(["cat", "/proc/sys/kernel/random/boot_id"], check=False, timeout_s=20)
        return answer.status == 0 and answer.text != boot_id

    eventually(rebooted, timeout_s=120)
    assert node.power.state() is PowerState.ON


def test_a_paused_host_does_nothing_and_goes_on_afterwards(pair: Lab) -> None:
    node = pair.hosts["n1"]
    node.command.run(["sh", "-c", "while :; do date +%s.%N >/root/tick; sleep 0.02; done >/dev/null 2>&1 &"])
    eventually(lambda: node.command.run(["test", "-s", "/root/tick"], check=False).status == 0)
    inject("pause", node)
    assert node.power.state() is PowerState.PAUSED
    with pytest.raises(CommandTimeout):
        node.command.run(["true"], timeout_s=1)
    inject("resume", node)
    assert node.power.state() is PowerState.ON
    before = node.command.run(["cat", "/root/tick"], timeout_s=60).text
    eventually(lambda: node.command.run(["cat", "/root/tick"]).text != before)


def test_a_cut_network_carries_nothing_and_heals(pair: Lab) -> None:
    node, target = pair.hosts["n1"], pair.hosts["san1"]
    ping = ["ping", "-c1", "-W1", target.addresses["san"]]
    node.command.run(ping)
    inject("cut-storage", node)
    with pytest.raises(CommandFailed):
        node.command.run(ping)
    inject("heal-storage", node)
    eventually(lambda: node.command.run(ping, check=False).status == 0)


def test_a_cut_survives_a_power_loss(pair: Lab) -> None:
    node, target = pair.hosts["n1"], pair.hosts["san1"]
    inject("cut-storage", node)
    inject("kill", node)
    inject("power-on", node)
    node.command.wait_reachable(120)
    ping = ["ping", "-c1", "-W1", target.addresses["san"]]
    assert node.command.run(ping, check=False).status != 0
    inject("heal-storage", node)
    wait_for_disk(pair, node)


def test_the_target_keeps_reservations_and_acknowledged_writes_over_its_power_loss(pair: Lab) -> None:
    node, target = pair.hosts["n1"], pair.hosts["san1"]
    device = wait_for_disk(pair, node)
    key = "0xabc0000000000001"
    persist = f"sg_persist --readonly --out --no-inquiry --param-rk={key} {device}"
    # The first command after a login is answered with a unit attention.
    on_disk(node, f"sg_persist --readonly --in -k {device} || true")
    on_disk(node, f"sg_persist --readonly --out --register --param-sark={key} --param-aptpl {device}")
    on_disk(node, f"{persist} --reserve --prout-type=5")
    on_disk(node, f"echo landed | dd of={device} bs=4096 seek=100 conv=sync oflag=direct")
    # The holder stays away: its reservation has to be in force without it.
    inject("kill", node)
    inject("kill", target)
    inject("power-on", target)
    target.command.wait_reachable(120)
    pr = "/sys/kernel/config/target/core/iblock_0/v1/pr"
    eventually(lambda: target.command.run(["test", "-e", pr], check=False).status == 0)
    eventually(lambda: f"{IQN_PREFIX}:n1" in on_disk(target, f"cat {pr}/res_holder"))
    assert key in on_disk(target, f"cat {pr}/res_pr_registered_i_pts")
    inject("power-on", node)
    node.command.wait_reachable(120)
    wait_for_disk(pair, node)
    read = f"dd if={device} bs=4096 skip=100 count=1 iflag=direct"
    assert on_disk(node, read).startswith("landed")
    on_disk(node, f"{persist} --clear")


def test_status_and_exec_on_the_command_line(pair: Lab) -> None:
    def hwlab(*arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "hwlab", "--lab", "t-pair", *arguments]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    shown = json.loads(hwlab("--json", "status").stdout)
    assert [host["power"] for host in shown["hosts"]] == ["on", "on"]
    assert hwlab("exec", "n1", "--", "hostname").stdout == "n1\n"
    assert hwlab("exec", "n1", "--", "sh", "-c", "exit 7").returncode == 7
    unknown = hwlab("exec", "n9", "--", "true")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)


def test_starting_a_lab_that_is_up_changes_nothing(pair: Lab) -> None:
    def kernels() -> list[int]:
        starters = [state_dir("t-pair") / f"hosts/{name}/start" for name in pair.hosts]
        return [procs.started_by(starter)[0] for starter in starters]

    before = kernels()
    open_lab("t-pair").up(say)
    assert kernels() == before
