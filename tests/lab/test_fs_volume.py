"""Volumes on real kernels: taken, moved, lost, adopted and fenced under a client that goes on writing.

No cluster here: the test is the controller, and fences by sg_persist where a fence matters.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hwlab.protocols import Host, Lab
from tests.lab.labs import fresh_lab

pytestmark = pytest.mark.lab

LAB = "fs"
HERE = Path(__file__).parent
TOPOLOGY = """
name = "fs"
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
[[host]]
name = "n2"
role = "node"
addresses = { mgmt = "10.77.0.12", lan = "10.77.1.12", san = "10.77.2.12" }
[[host]]
name = "c1"
role = "client"
addresses = { mgmt = "10.77.0.21", lan = "10.77.1.21" }
[[lun]]
name = "v1"
size_mb = 1024
serial = "5fa1c0de000000000000000000000f501"
"""
DISK = "/dev/sda"
FORMAT = f"""
set -e
until [ -b {DISK} ]; do sleep 0.2; done
out="sg_persist --no-inquiry --out {DISK}"
$out --register-ignore --param-sark=1 || $out --register-ignore --param-sark=1
$out --clear --param-rk=1
wipefs -q -a {DISK}
layout='label: gpt\\nstart=1MiB,size=3MiB\\nstart=4MiB,size=500MiB\\nsize=500MiB\\n'
printf "$layout" | sfdisk -q --wipe-partitions always {DISK}
blockdev --rereadpt {DISK} || true
until [ -b {DISK}3 ]; do sleep 0.2; done
mkfs.$1 -q {DISK}2 $2
mkfs.$1 -q {DISK}3 $2
"""
FORCE = {"ext4": "-F", "xfs": "-f"}
TAKE = ("mount", "start_tracking", "start_nfsd", "open", "announce", "tickle")
GIVE = ("remove_address", "stop_nfsd", "stop_tracking", "unmount")
ENV = ["env", "PYTHONPATH=/opt/hactl/lib:/opt/hactl/site", "python3"]


class Driver:
    """VolumeService on a node, by its lines of JSON. Steps print their times."""

    def __init__(self, node: Host, **spec: Any) -> None:
        self.node, self.name = node, spec["name"]
        argv = [*ENV, "/opt/hactl/volume_driver.py", json.dumps(spec)]
        self._process = node.command.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, what: str, **words: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **words}).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        note = (answer.get("said") or {}).get("note") or answer.get("text", "")
        print(f"{self.node.name} {self.name} {what:16} {answer['ms']:8.1f} ms {note}")
        return answer

    def do(self, what: str, **words: Any) -> dict[str, Any]:
        answer = self.ask(what, **words)
        assert answer["ok"], answer
        return answer["said"] or {}

    def take(self) -> float:
        began = time.monotonic()
        for step in TAKE:
            self.do(step)
        print(f"{self.node.name} {self.name} taken in {(time.monotonic() - began) * 1000:.0f} ms, with the test's ssh")
        return time.monotonic() - began

    def give(self) -> None:
        self.do("shut")
        for step in GIVE:
            self.do(step)

    def wait_grace_over(self) -> None:
        deadline = time.monotonic() + 20
        while self.do("grace_status")["active"] and time.monotonic() < deadline:
            time.sleep(0.2)

    def kill(self) -> None:
        """As a crash of the daemon: nothing is said to anybody."""
        self.node.command.run(["pkill", "-9", "-f", "[v]olume_driver.py"], check=False)
        self._process.kill()
        self._process.wait()


class Load:
    """The writing client."""

    def __init__(self, client: Host, path: str) -> None:
        self._process = client.command.start(
            ["python3", "/opt/hactl/writing_client.py", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"locked\n"

    def end(self) -> dict[str, Any]:
        out, _ = self._process.communicate(b"end\n", timeout=60)
        result: dict[str, Any] = json.loads(out)
        print("client:", result)
        return result


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    path = tmp_path_factory.mktemp("lab") / "fs.toml"
    path.write_text(TOPOLOGY)
    with fresh_lab(LAB, str(path)) as lab:
        lab.up(print)
        yield lab


def run(host: Host, script: str, *words: str, check: bool = True) -> str:
    return host.command.run(["sh", "-c", script, "sh", *words], timeout_s=90, check=check).text


Start = Callable[..., Driver]


@pytest.fixture
def fresh(lab: Lab) -> Callable[[str], Start]:
    """All hosts rebooted, the disk formatted; returns how to start drivers."""

    def install(name: str) -> None:
        files: dict[str, bytes | Path] = {"/opt/hactl/lib/fs": HERE.parents[1] / "fs"}
        files["/opt/hactl/volume_driver.py"] = HERE / "volume_driver.py"
        files["/opt/hactl/writing_client.py"] = HERE / "writing_client.py"
        lab.hosts[name].command.put(files)

    def make(fstype: str) -> Start:
        for name in ("n1", "n2", "c1"):
            lab.hosts[name].power.off()
            lab.hosts[name].power.on()
        for name in ("n1", "n2", "c1"):
            lab.hosts[name].command.wait_reachable(90)
            install(name)
        run(lab.hosts["n1"], FORMAT, fstype, FORCE[fstype])
        wait = f"until blockdev --rereadpt {DISK}; do sleep 0.2; done; until [ -b {DISK}3 ]; do sleep 0.2; done"
        run(lab.hosts["n2"], wait)

        def start(node: str, name: str = "v1", device: str = f"{DISK}2", address: str = "10.77.1.50/24") -> Driver:
            driver = Driver(
                lab.hosts[node],
                name=name,
                device=device,
                fstype=fstype,
                address_cidr=address,
                clients=["10.77.1.0/24"],
            )
            driver.do("prepare")
            return driver

        return start

    return make


def mount_on_client(lab: Lab, address: str = "10.77.1.50", path: str = "/mnt/v1") -> None:
    run(lab.hosts["c1"], "mkdir -p $2 && mount -t nfs4 -o vers=4.2 $1:/ $2", address, path)


def locks(node: Host, volume: str = "v1") -> int:
    states = run(node, f"cat /run/hactl/nfs/{volume}/nfsd/clients/*/states", check=False)
    return states.count("{ type: lock,")


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_volume_moves_and_survives_power_loss_under_a_writing_client(
    lab: Lab, fresh: Callable[[str], Start], fstype: str
) -> None:
    start = fresh(fstype)
    first, second = start("n1"), start("n2")
    first.take()
    mount_on_client(lab)
    load = Load(lab.hosts["c1"], "/mnt/v1/records")
    first.do("save_peers")

    for giver, taker in ((first, second), (second, first)):
        giver.give()
        taker.take()
        taker.wait_grace_over()
        taker.do("save_peers")
        giver.do("prepare")
        assert locks(taker.node) == 1
    assert first.do("observe")["mounted"] == "ours"
    assert second.do("observe")["device_free"] is True

    first.node.power.off()
    second.take()
    second.wait_grace_over()
    time.sleep(1)
    assert locks(second.node) == 1
    result = load.end()
    assert not result["errors"]
    written = run(second.node, "wc -c < /srv/v1/export/records")
    assert int(written) == 100 * result["acknowledged"]


def test_restarted_daemon_adopts_and_interrupts_nothing(lab: Lab, fresh: Callable[[str], Start]) -> None:
    start = fresh("ext4")
    first = start("n1")
    first.take()
    mount_on_client(lab)
    load = Load(lab.hosts["c1"], "/mnt/v1/records")
    tracker = run(first.node, "pgrep -x nfsdcld")

    first.kill()
    again = start("n1")
    seen = again.do("observe")
    assert (seen["nfsd_threads"], seen["responder"], seen["tracking"]) == (8, False, "attached")
    again.do("start_nfsd")
    again.do("prepare")
    assert again.do("observe")["responder"]
    assert run(first.node, "pgrep -x nfsdcld") == tracker

    run(first.node, "pkill -9 -x nfsdcld; while pgrep -x nfsdcld; do sleep 0.1; done")
    assert again.do("observe")["tracking"] == "absent"
    again.do("start_tracking")
    assert again.do("observe")["tracking"] == "attached"
    # A client that is new to this server asks the kernel, and the kernel asks the adopted responder.
    add = "ip address add 10.77.1.22/24 dev lan && mkdir -p /mnt/new"
    run(lab.hosts["c1"], f"{add} && mount -t nfs4 -o vers=4.2,clientaddr=10.77.1.22 10.77.1.50:/ /mnt/new")

    result = load.end()
    assert not result["errors"]
    again.give()
    assert again.do("observe")["device_free"] is True


def test_primary_that_lost_its_disk_gives_everything_up(lab: Lab, fresh: Callable[[str], Start]) -> None:
    start = fresh("ext4")
    n1, n2 = lab.hosts["n1"], lab.hosts["n2"]
    out = f"sg_persist --no-inquiry --out {DISK}"
    register = f"{out} --register-ignore --param-sark=$1 || {out} --register-ignore --param-sark=$1"
    run(n1, f"({register}) && {out} --reserve --param-rk=$1 --prout-type=5", "0xa1")
    first, second = start("n1"), start("n2")
    first.take()
    mount_on_client(lab)
    load = Load(lab.hosts["c1"], "/mnt/v1/records")
    first.do("save_peers")
    holder = n1.command.start(
        ["sh", "-c", "exec 3</srv/v1/export/records; echo open; read -r _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"open\n"

    # As the controller does: the old primary's gate is shut before its disk is taken.
    first.do("shut")
    first.do("remove_address")
    preempt = f"{out} --preempt-abort --param-rk=$1 --param-sark=0xa1 --prout-type=5"
    run(n2, f"({register}) && {preempt}", "0xb2")
    second.take()
    # The journal aborts at the sync; ext4 counts it at the next change.
    run(n1, "cd /srv/v1/export; touch late; sync -f .; touch later", check=False)
    assert first.do("observe")["damaged"]
    first.do("stop_nfsd")
    first.do("stop_tracking")
    refused = first.ask("unmount", **{"with": {"force": True}})
    assert (refused["ok"], refused["error"]) == (False, "Busy")
    assert "sh[" in refused["text"]
    assert "records open" in refused["text"]
    assert not first.ask("mount")["ok"]
    holder.communicate(b"\n")
    first.do("unmount", **{"with": {"force": True}})
    assert first.do("observe")["device_free"] is True

    second.wait_grace_over()
    result = load.end()
    assert not result["errors"]
    assert "late" not in run(n2, "ls /srv/v1/export")


def test_neighbour_volume_goes_on_while_another_stops_and_starts(lab: Lab, fresh: Callable[[str], Start]) -> None:
    start = fresh("ext4")
    one, two = start("n1"), start("n1", name="v2", device=f"{DISK}3", address="10.77.1.51/24")
    one.take()
    two.take()
    mount_on_client(lab, "10.77.1.51", "/mnt/v2")
    load = Load(lab.hosts["c1"], "/mnt/v2/records")
    for _ in range(3):
        one.give()
        one.do("prepare")
        one.take()
    assert two.do("observe")["address_left_s"] is not None
    result = load.end()
    assert not result["errors"]
    assert max(result["stalls"]) < 2000


def test_address_that_nobody_renews_is_gone_by_itself(fresh: Callable[[str], Start]) -> None:
    one = fresh("ext4")("n1")
    one.take()
    assert one.do("observe")["address_left_s"] is not None
    one.do("shut")
    deadline = time.monotonic() + 5
    while one.do("observe")["address_left_s"] is not None:
        assert time.monotonic() < deadline
    assert one.do("observe")["nfsd_threads"] == 8
    # Whoever owns the lease may open it again at once: nothing else had to be stopped.
    one.do("add_address")
    one.do("open")
    assert one.do("observe")["address_left_s"] is not None
