"""`hactl preflight` on real kernels and LIO: storage that keeps its promises, and storage that was made to break them.

The whole device is compared before and after, on the target: only the scratch area may ever differ, and ends as zeros.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from hwlab import strategy
from hwlab.faults import inject
from hwlab.protocols import Completed, Host, Lab
from hwlab.topology import Role
from tests.lab.labs import fresh_lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "preflight"
PORTAL = "10.77.2.10:3260"
TARGET = "iqn.2026-11.org.hactl:san1"
SCRATCH = 3 << 20, 4 << 20
STORE = "/sys/kernel/config/target/core/iblock_0/v1"
# Another LIO disk over the same medium with the same identity, which takes the place of the first one on n2 alone: two
# gateways to one medium that do not share their reservations.
SECOND_GATEWAY = """
import subprocess
import rtslib_fb as lio
lio.RTSRoot._preferred_dbroot = "/etc/target"
subprocess.run(["modprobe", "loop"], check=True)
root = lio.RTSRoot()
[target] = root.targets
[group] = target.tpgs
[first] = [each for each in root.storage_objects if each.name == "v1"]
# the medium itself is the first one's alone; direct I/O, so that both see what is on it
loop = ["losetup", "--find", "--show", "--direct-io=on", first.udev_path]
device = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
second = lio.BlockStorageObject("v1b", dev=device, wwn=first.wwn)
unit = lio.LUN(group, 9, second)
for acl in group.node_acls:
    if acl.node_wwn.endswith("n2"):
        for mapped in list(acl.mapped_luns):
            mapped.delete()
        lio.MappedLUN(acl, 0, unit)
"""

LOGIN = (
    "iscsiadm -m session -u; timeout 30 /usr/lib/hwlab/iscsi-login.sh; "
    "for i in $(seq 100); do [ -b /dev/sda ] && exit; sleep 0.1; done; exit 1"
)


class Report(dict[str, Any]):
    """One device of `hactl preflight --json`. In the message of an assertion: what is not as it should be."""

    def __repr__(self) -> str:
        bad = [each for each in self["promises"] if each["verdict"] != "kept"]
        lines = [f"{each['promise']} {each['verdict']}: {line}" for each in bad for line in each["found"]]
        return "\n".join([self["verdict"], *lines, *(f"left: {each}" for each in self["left"])])


@dataclass
class Bench:
    lab: Lab

    def host(self, name: str) -> Host:
        return self.lab.hosts[name]

    def sh(self, host: str, script: str, timeout_s: float = 60) -> str:
        return self.host(host).command.run(["sh", "-c", script], timeout_s=timeout_s).text

    @property
    def device(self) -> str:
        return "/dev/sda"

    def run(self, *words: str, timeout_s: float = 300) -> Completed:
        argv = ["hactl", "preflight", self.device, "--json", *words]
        return self.host("n1").command.run(argv, timeout_s=timeout_s, check=False)

    def preflight(self, *words: str) -> tuple[int, dict[str, str], Report]:
        """Exit code, verdicts by promise, and the device's whole report."""
        done = self.run(*words)
        assert done.status in (0, 3, 5), done.stderr.decode()
        [device] = json.loads(done.stdout)["devices"]
        return done.status, {each["promise"]: each["verdict"] for each in device["promises"]}, Report(device)

    def digest(self) -> str:
        """Of the medium as the target has it, without the scratch area; and of that."""
        disk = self.sh("san1", f"cat {STORE}/udev_path").strip()
        begin, end = (byte >> 20 for byte in SCRATCH)
        return self.sh(
            "san1",
            f"exec 2>/dev/null; sync; echo 1 > /proc/sys/vm/drop_caches; "
            f"(dd if={disk} bs=1M count={begin}; dd if={disk} bs=1M skip={end}) | md5sum; "
            f"dd if={disk} bs=1M skip={begin} count={end - begin} | md5sum",
            timeout_s=300,
        )

    def status(self, node: str) -> dict[str, Any]:
        return dict(json.loads(self.sh(node, "hactl status --json")))

    def restart_target(self) -> None:
        """It loses its power, and comes back as the topology has it."""
        target = self.host("san1")
        target.power.off()
        target.power.on()
        target.command.wait_reachable(90)

    def registered(self) -> str:
        return self.sh("n1", f"sg_persist --in --read-keys {self.device} | tail -n +2")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with fresh_lab(LAB, "small") as lab:
        lab.up(print)
        nodes = strategy.with_role(lab, Role.NODE)
        strategy.install(nodes, print)
        strategy.wait_for_disks(lab, nodes, print)
        strategy.configure(nodes, print)
        strategy.start_daemons(nodes, print)
        made = Bench(lab)
        # data beyond what is looked at: whoever writes there is found out
        made.sh("n1", "dd if=/dev/urandom of=/dev/sda bs=1M seek=8 count=24 oflag=direct", timeout_s=120)
        heard = "[ $(hactl node list | grep -c alive) = 2 ]"
        made.sh("n1", f"for i in $(seq 120); do {heard} && exit; sleep 0.5; done; exit 1", timeout_s=120)
        yield made


@pytest.fixture(autouse=True)
def well(bench: Bench) -> None:
    """Each test begins with paths that answer; the one before may have left sessions that are just made anew."""
    read = "dd if=/dev/sda of=/dev/null bs=4096 count=1 iflag=direct"
    for node in ("n1", "n2"):
        bench.sh(node, f"for i in $(seq 300); do {read} 2>/dev/null && exit; sleep 0.2; done; exit 1", timeout_s=90)


def test_a_lio_disk_keeps_its_promises_and_is_left_as_it_was(bench: Bench) -> None:
    before = bench.digest()
    code, verdicts, report = bench.preflight("--rounds", "5")
    assert (code, report["verdict"], report["left"]) == (0, "kept", []), report
    assert {name for name, verdict in verdicts.items() if verdict != "kept"} == {"persistence"}
    assert {(path["node"], path["path"]) for path in report["paths"]} == {("n1", "/dev/sda"), ("n2", "/dev/sda")}
    assert all(path["mb_per_s"] > 0 and "iSCSI" in path["via"] for path in report["paths"])
    assert bench.digest() == before
    assert "NO registered reservation keys" in bench.registered()


def test_an_owned_disk_is_only_looked_at(bench: Bench) -> None:
    bench.sh("n2", "sg_persist --out --register --param-sark=0x77 /dev/sda")
    bench.sh("n2", "sg_persist --out --reserve --param-rk=0x77 --prout-type=5 /dev/sda")
    before = bench.digest(), bench.registered()
    code, verdicts, report = bench.preflight()
    assert code == 3 and verdicts["fence"] == verdicts["late-writes"] == "not tested"
    assert "0x0000000000000077" in json.dumps(report)
    assert (bench.digest(), bench.registered()) == before
    bench.sh("n2", "sg_persist --out --clear --param-rk=0x77 /dev/sda")


def test_a_disk_in_use_or_not_empty_is_only_looked_at(bench: Bench) -> None:
    bench.sh("n2", "mkfs.ext4 -q /dev/sda 8192 && mount /dev/sda /mnt")
    try:
        before = bench.sh("san1", f"cat {STORE}/udev_path")
        code, verdicts, report = bench.preflight()
        assert code == 3 and verdicts["operations"] == "not tested"
        assert "mounted on /mnt" in json.dumps(report) and before
    finally:
        bench.sh("n2", "umount /mnt")
    code, _, report = bench.preflight()
    assert code == 3 and "ext4" in json.dumps(report)
    bench.sh("n2", "wipefs -aq /dev/sda; dd if=/dev/zero of=/dev/sda bs=1M count=8 oflag=direct")
    for node in ("n1", "n2"):
        bench.sh(node, "blockdev --flushbufs /dev/sda")


@pytest.fixture
def second_path(bench: Bench) -> Iterator[Callable[[str], None]]:
    """Another session of n2, by the initiator name that it is given."""

    def log_in(name: str) -> None:
        made = f"-m iface -I second -o new; iscsiadm -m iface -I second -o update -n iface.initiatorname -v {name}"
        bench.sh("n2", f"iscsiadm {made}; iscsiadm -m node -T {TARGET} -p {PORTAL} -I second -o new")
        bench.sh("n2", f"iscsiadm -m node -T {TARGET} -p {PORTAL} -I second -l")
        bench.sh("n2", "for i in $(seq 100); do [ -b /dev/sdb ] && exit; sleep 0.1; done; exit 1")

    yield log_in
    bench.sh("n2", f"iscsiadm -m node -T {TARGET} -p {PORTAL} -I second -u")
    bench.sh("n2", f"iscsiadm -m node -T {TARGET} -p {PORTAL} -I second -o delete")
    bench.sh("n2", "iscsiadm -m iface -I second -o delete")


def test_every_path_of_a_node_is_tried(bench: Bench, second_path: Callable[[str], None]) -> None:
    second_path("iqn.2026-11.org.hactl:n2-second")
    before = bench.digest()
    code, _, report = bench.preflight("--rounds", "2")
    assert code == 0, report
    assert [path["path"] for path in report["paths"] if path["node"] == "n2"] == ["/dev/sda", "/dev/sdb"]
    assert "3 registrants of 2 nodes" in json.dumps(report)
    assert bench.digest() == before


def test_two_nodes_with_one_initiator_name_are_found(bench: Bench, second_path: Callable[[str], None]) -> None:
    name = bench.sh("n1", "cat /sys/class/iscsi_session/*/initiatorname").split()[0]
    second_path(name)
    code, verdicts, report = bench.preflight("--read-only")
    assert (code, verdicts["unique-names"]) == (5, "broken"), report
    assert f"n1 and n2 have the same iSCSI initiator name: {name}" in json.dumps(report)


def test_a_path_that_gives_errors_is_found(bench: Bench) -> None:
    """n2's disk is taken offline, as the kernel does with a path that is lost for good."""
    code, verdicts, _ = bench.preflight("--read-only")
    assert verdicts["paths"] == "kept" and code == 3
    bench.sh("n2", "echo offline > /sys/block/sda/device/state")
    try:
        code, verdicts, report = bench.preflight("--read-only")
        assert (code, verdicts["paths"]) == (5, "broken"), report
        [finding] = [each for each in report["promises"] if each["promise"] == "paths"]
        assert all(line.startswith("n2 /dev/sda") for line in finding["found"])
    finally:
        bench.sh("n2", "echo running > /sys/block/sda/device/state")


def test_a_target_without_reservations_is_found(bench: Bench) -> None:
    before = bench.digest()
    bench.sh("san1", f"echo 0 > {STORE}/attrib/emulate_pr")
    try:
        code, verdicts, report = bench.preflight()
        assert code == 5 and verdicts["capabilities"] == "broken", report
        assert "kept" not in (verdicts["fence"], verdicts["conflict"], verdicts["late-writes"])
    finally:
        bench.sh("san1", f"echo 1 > {STORE}/attrib/emulate_pr")
    assert bench.digest() == before


def test_two_gateways_that_do_not_share_reservations_are_found(bench: Bench) -> None:
    before = bench.digest()
    bench.host("san1").command.run(["python3", "-c", SECOND_GATEWAY], timeout_s=60)
    try:
        bench.sh("n2", LOGIN)
        code, verdicts, report = bench.preflight()
        assert code == 5, report
        assert verdicts["same-device"] == "kept", "it looks like one disk"
        assert verdicts["operations"] == verdicts["conflict"] == "broken", report
        assert verdicts["late-writes"] != "kept"
        assert bench.digest() == before
    finally:
        bench.restart_target()


def test_a_target_that_keeps_its_reservations_passes_its_restart_and_one_that_forgets_does_not(bench: Bench) -> None:
    for forget in (False, True):
        words = ["hactl", "preflight", bench.device, "--json", "--rounds", "1", "--restart-target"]
        argv = [*words, "--restart-timeout", "200"]
        running = bench.host("n1").command.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert running.stderr is not None and running.stdout is not None
        for line in running.stderr:
            if b"restart the target now" in line:
                break
        inject("volatile" if forget else "persistent", bench.host("san1"))
        bench.restart_target()
        report = json.loads(running.stdout.read())
        device = Report(report["devices"][0])
        assert running.wait(120) == (5 if forget else 0), device
        verdicts = {each["promise"]: each["verdict"] for each in device["promises"]}
        assert verdicts["persistence"] == ("broken" if forget else "kept"), device
        assert device["risk"] == ("persistence" if forget else "")
        assert device["left"] == []
        assert "NO registered reservation keys" in bench.registered()
    inject("persistent", bench.host("san1"))


def test_a_volume_on_storage_that_failed_takes_an_accepted_risk_and_shows_it(bench: Bench) -> None:
    """The verdict is that of the test before: a target that forgets. It was given on n1, and is known on n2."""
    before = bench.digest()
    words = ["hactl", "volume", "add", "v1", bench.device, "--address", "10.77.1.50/24"]
    words += ["--clients", "10.77.1.0/24", "--format"]
    refused = bench.host("n2").command.run(words, timeout_s=60, check=False)
    assert refused.status == 1
    assert b"found broken: persistence" in refused.stderr and b"--accept-risk" in refused.stderr
    assert bench.digest() == before
    bench.host("n2").command.run([*words, "--accept-risk"], timeout_s=120)
    served = "hactl status | grep -q serving"
    for node in ("n1", "n2"):
        bench.sh(node, f"for i in $(seq 120); do {served} && exit; sleep 0.5; done; exit 1", timeout_s=120)
        assert [each["risk"] for each in bench.status(node)["volumes"]] == ["persistence"]
        assert "persistence" in bench.sh(node, "hactl status")
    owned = bench.digest()
    code, verdicts, report = bench.preflight()
    assert code == 3 and verdicts["conflict"] == "not tested", report
    assert "is to be served" in repr(report) or "in use" in repr(report) or "mounted" in repr(report)
    assert bench.digest().splitlines()[1] == owned.splitlines()[1], "the scratch area of a volume in service"
    assert [each["risk"] for each in bench.status("n1")["volumes"]] == ["persistence"], "a look takes no risk back"
