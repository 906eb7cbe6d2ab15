"""Fencing on real kernels: a LIO disk over iSCSI, and nodes that really freeze and lose power."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hwlab.protocols import Host, Lab
from tests.lab.labs import fresh_lab

pytestmark = pytest.mark.lab

LAB = "fencing"
HERE = Path(__file__).parent
FENCING = HERE.parent.parent / "fencing"
GUEST = "/opt/hactl/fencing_guest.py"
PORTAL = "10.77.2.10:3260"
TARGET = "iqn.2026-11.org.hactl:san1"
ROUNDS = 3

# Two more sessions with initiator names of their own: three nexuses to one LUN from one kernel.
MORE_SESSIONS = f"""
set -e
for name in b c; do
  iscsiadm -m iface -I hactl-$name -o new
  iscsiadm -m iface -I hactl-$name -o update -n iface.initiatorname -v iqn.2026-11.org.hactl:n1-$name
  iscsiadm -m node -T {TARGET} -p {PORTAL} -I hactl-$name -o new
  iscsiadm -m node -T {TARGET} -p {PORTAL} -I hactl-$name --login
done
"""
FEWER_SESSIONS = f"""
for name in b c; do
  iscsiadm -m node -T {TARGET} -p {PORTAL} -I hactl-$name -u
  iscsiadm -m node -T {TARGET} -p {PORTAL} -I hactl-$name -o delete
  iscsiadm -m iface -I hactl-$name -o delete
done
true
"""
# A second LUN whose sectors have 4096 bytes; gone with the target's next power loss. Only the first 25 digits
# of a serial go into LIO's WWID, so it must not begin like the first LUN's.
DISK_4K = """
import subprocess
import rtslib_fb

rtslib_fb.RTSRoot._preferred_dbroot = "/etc/target"
subprocess.run(["modprobe", "target_core_file"], check=True)
serial = "4096c0de0000000000000000000000001"
store = rtslib_fb.FileIOStorageObject("big", "/root/big.img", size=400 << 20, wwn=serial)
store.set_attribute("block_size", "4096")
[target] = rtslib_fb.RTSRoot().targets
[group] = target.tpgs
unit = rtslib_fb.LUN(group, 7, store)
for acl in group.node_acls:
    rtslib_fb.MappedLUN(acl, 7, unit)
"""
CLEAR = """
import sys
sys.path[:0] = ["/opt/hactl/lib", "/opt/hactl/site"]
from fencing._sgutils import SgPort
port = SgPort(sys.argv[1])
port.register(0, 1, ignore_existing=True)
port.clear(1)
"""


@dataclass
class Bench:
    """A lab with the package in its nodes, and the commands of the guest's script."""

    lab: Lab

    def host(self, name: str) -> Host:
        return self.lab.hosts[name]

    @property
    def device(self) -> str:
        # not by its WWID: udev drops that link if it looks at the disk while the target has no power
        return "/dev/sda"

    def shell(self, host: str, script: str) -> str:
        return self.host(host).command.run(["sh", "-c", script], timeout_s=60).text

    def python(self, host: str, script: str, *arguments: str) -> str:
        argv = ["python3", "-c", script, *arguments]
        return self.host(host).command.run(argv, timeout_s=60).text

    def answer(self, host: str, what: str, *arguments: str, device: str = "") -> dict[str, Any]:
        argv = ["python3", GUEST, what, device or self.device, *arguments]
        done = self.host(host).command.run(argv, timeout_s=120)
        return dict(json.loads(done.text.splitlines()[-1]))

    def ask(self, host: str, what: str, *arguments: str, device: str = "") -> Any:
        answer = self.answer(host, what, *arguments, device=device)
        assert "ok" in answer, answer
        return answer["ok"]

    def clear(self, device: str = "") -> None:
        """Nobody is registered any more."""
        self.python("n1", CLEAR, device or self.device)

    def push(self, host: str) -> None:
        self.host(host).command.put({"/opt/hactl/lib/fencing": FENCING, GUEST: HERE / "fencing_guest.py"}, timeout_s=60)
        self.wait_for_disk(host)

    def wait_for_disk(self, host: str) -> None:
        """A read succeeds: the session is there, or there again."""
        read = f"dd if={self.device} of=/dev/null bs=4096 count=1 iflag=direct"
        self.shell(host, f"for i in $(seq 300); do {read} && exit; sleep 0.1; done; exit 1")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with fresh_lab(LAB, "small") as lab:
        lab.up(print)
        bench = Bench(lab)
        for node in ("n1", "n2"):
            bench.push(node)
        yield bench


@pytest.fixture(scope="module")
def volume(bench: Bench) -> Bench:
    bench.clear()
    bench.ask("n1", "format", "1", "ext4", "force")
    return bench


@pytest.fixture
def three_nexuses(bench: Bench) -> Iterator[list[str]]:
    bench.clear()
    bench.shell("n1", MORE_SESSIONS)
    try:
        wait = "for i in $(seq 100); do [ -b /dev/sdb ] && [ -b /dev/sdc ] && exit; sleep 0.1; done; exit 1"
        bench.shell("n1", wait)
        yield ["/dev/sda", "/dev/sdb", "/dev/sdc"]
    finally:
        bench.shell("n1", FEWER_SESSIONS)


def contract(bench: Bench, what: list[str], devices: list[str]) -> list[dict[str, Any]]:
    argv = ["env", "PYTHONPATH=/opt/hactl/lib:/opt/hactl/site", "python3", "-m", "fencing._contract"]
    done = bench.host("n1").command.run([*argv, *what, *devices], timeout_s=300, check=False)
    assert done.status in (0, 1) and not done.stderr, done.stderr.decode()
    return [json.loads(line) for line in done.text.splitlines()]


def test_libsgutils2_on_a_lio_disk_keeps_the_contract(bench: Bench, three_nexuses: list[str]) -> None:
    results = contract(bench, ["cases"], three_nexuses)
    assert len(results) > 30
    assert [result for result in results if not result["ok"]] == []


def test_the_pr_ioctls_on_a_lio_disk_keep_the_contract(bench: Bench, three_nexuses: list[str]) -> None:
    """This kernel cannot read reservations by ioctl: what they did is read by SG_IO."""
    results = contract(bench, ["cases", "--port", "pr-sg"], three_nexuses)
    assert len(results) > 30
    assert [result for result in results if not result["ok"]] == []
    unreadable = contract(bench, ["cases", "--port", "pr"], three_nexuses)
    assert len(unreadable) == len(results)
    assert [result for result in unreadable if "cannot read" not in result.get("failure", "")] == []


def test_the_fake_and_a_lio_disk_agree_on_random_operations(bench: Bench, three_nexuses: list[str]) -> None:
    differences = contract(bench, ["compare", "--seed", "11", "--count", "10000"], three_nexuses)
    assert [difference for difference in differences if not difference["explained"]] == []


def test_commands_take_milliseconds(bench: Bench, three_nexuses: list[str]) -> None:
    [figures] = contract(bench, ["measure"], three_nexuses)
    print(figures)
    assert figures["preempt"]["median_ms"] < 100


def test_a_lio_disk_is_found_fit_and_left_as_it_was(bench: Bench) -> None:
    bench.clear()
    assert [result for result in bench.ask("n1", "check") if not result[1]] == []
    assert bench.ask("n1", "state")["keys"] == []


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_a_formatted_disk_is_found_by_every_node_and_mounts(bench: Bench, fstype: str) -> None:
    bench.clear()
    formatted = bench.ask("n1", "format", "1", fstype, "force")
    assert formatted["owner"] == ""
    assert bench.ask("n2", "scan")["volume"] == "v1"
    bench.ask("n1", "acquire", "1")
    # the guest's script closed the disk that it wrote to: udev reads the partitions anew, and they go for a moment
    bench.shell("n1", f"udevadm settle && mount -t {fstype} /dev/sda2 /mnt && echo x > /mnt/x")
    busy = bench.answer("n1", "acquire", "1")
    assert busy["error"] == "DeviceBusy" and "mounted on /mnt" in busy["text"]
    bench.shell("n1", "umount /mnt")


def test_a_disk_that_is_not_empty_is_not_formatted_without_force(volume: Bench) -> None:
    before = volume.ask("n2", "scan")
    refused = volume.answer("n2", "format", "2", "ext4")
    assert refused["error"] == "FormatRefused" and 'volume "v1"' in refused["text"] and "gpt" in refused["text"]
    assert volume.ask("n2", "scan") == before


def test_a_disk_that_others_reserved_is_taken_from_them_only_with_force(volume: Bench) -> None:
    volume.clear()
    volume.python("n2", CLEAR.replace("port.clear(1)", "port.reserve(1, 5)"), volume.device)
    taken = volume.answer("n1", "acquire", "1")
    assert taken["error"] == "ForeignOwner" and "0x0000000000000001" in taken["text"]
    assert volume.ask("n1", "state")["keys"] == ["0x0000000000000001"]
    volume.ask("n1", "format", "1", "ext4", "force")
    assert "0x0000000000000001" not in volume.ask("n1", "state")["keys"]


def test_a_damaged_label_is_named_and_can_be_replaced_without_the_data(volume: Bench) -> None:
    volume.ask("n1", "acquire", "1")
    volume.shell("n1", f"mount {volume.device}2 /mnt && echo kept > /mnt/x && umount /mnt")
    volume.shell("n1", f"for at in 256 272; do dd if=/dev/urandom of={volume.device} bs=4096 seek=$at count=1; done")
    before = volume.ask("n1", "state")
    refused = volume.answer("n2", "acquire", "2")
    assert refused["error"] == "LabelError" and "damaged" in refused["text"]
    assert volume.ask("n1", "state") == before
    relabelled = volume.ask("n1", "relabel", "1")
    [taken] = volume.ask("n1", "acquire", "1")
    assert taken["epoch"] == relabelled["epoch"] + 1
    assert volume.shell("n1", f"mount {volume.device}2 /mnt && cat /mnt/x && umount /mnt") == "kept"
    assert volume.answer("n1", "relabel", "1")["error"] == "FormatRefused"


def test_a_takeover_leaves_one_registrant_and_the_new_epoch_in_the_label(volume: Bench) -> None:
    [first] = volume.ask("n1", "acquire", "1")
    [second] = volume.ask("n2", "acquire", "2")
    assert second["epoch"] == first["epoch"] + 1 and second["owner"] == "n2" and second["doubts"] == []
    state = volume.ask("n1", "state")
    assert state["keys"] == state["holders"] == [second["key"]]
    assert volume.ask("n1", "verify", "1", first["key"]).startswith("lost")
    assert volume.ask("n1", "try-write") is False and volume.ask("n2", "try-write") is True
    times = sorted(each["took_ms"] for each in volume.ask("n2", "acquire", "2", "30"))
    print(f"acquire: median {times[15]} ms, worst {times[-1]} ms")


def test_a_rebooted_node_replaces_what_the_disk_kept_of_it(volume: Bench) -> None:
    [before] = volume.ask("n1", "acquire", "1")
    volume.host("n1").power.off()
    volume.host("n1").power.on()
    volume.host("n1").command.wait_reachable(60)
    volume.push("n1")
    assert volume.ask("n1", "state")["keys"] == [before["key"]]
    [after] = volume.ask("n1", "acquire", "1")
    assert after["epoch"] == before["epoch"] + 1
    assert volume.ask("n2", "state")["keys"] == [after["key"]]


@pytest.mark.parametrize("half_before", [False, True])
def test_a_frozen_owner_with_writes_in_flight_writes_nothing_after_the_takeover(
    volume: Bench, half_before: bool
) -> None:
    """`half_before`: another taker removed the owner's key and died; the one after it cannot preempt anybody for it."""
    for _ in range(ROUNDS):
        owner = volume.host("n1").command.start(["python3", "-u", GUEST, "write", volume.device, "1"])
        assert owner.stdout is not None
        held = json.loads(owner.stdout.readline())
        while volume.ask("n2", "spare") != list(range(1, 9)):
            pass  # every writer has written at least once
        volume.host("n1").power.pause()
        try:
            if half_before:
                volume.ask("n2", "half", "3")
            [taken] = volume.ask("n2", "acquire", "2")
            volume.ask("n2", "fill", "255")
        finally:
            volume.host("n1").power.resume()
        ended = json.loads(owner.stdout.readlines()[-1])["ok"]
        assert owner.wait(timeout=60) == 0
        assert taken["epoch"] > held["epoch"]
        assert ("settle" in dict(taken["steps"])) is half_before
        assert set(ended["ended"]) == {"EBADE"}, ended
        assert ended["verdict"].startswith("lost")
        assert volume.ask("n2", "spare") == [255]
        volume.ask("n2", "fill", "0")


def test_owner_and_fenced_node_stay_what_they_are_when_the_target_loses_power(volume: Bench) -> None:
    volume.ask("n1", "acquire", "1")
    [owner] = volume.ask("n2", "acquire", "2")
    target = volume.host("san1")
    target.power.off()
    target.power.on()
    target.command.wait_reachable(60)
    for node in ("n1", "n2"):
        volume.wait_for_disk(node)
    assert volume.ask("n2", "verify", "2", owner["key"]) == "good"
    assert volume.ask("n1", "state")["holders"] == [owner["key"]]
    assert volume.ask("n2", "try-write") is True and volume.ask("n1", "try-write") is False
    [again] = volume.ask("n1", "acquire", "1")
    assert again["epoch"] == owner["epoch"] + 1


def test_sectors_of_4096_bytes_make_no_difference(volume: Bench) -> None:
    volume.python("san1", DISK_4K)
    device = ""
    for node in ("n1", "n2"):
        volume.shell(node, "iscsiadm -m session --rescan")
        found = volume.shell(
            node,
            "for i in $(seq 100); do for d in /sys/block/sd*; do [ $(cat $d/queue/logical_block_size) = 4096 ] "
            "&& echo /dev/${d##*/} && exit; done; sleep 0.1; done; exit 1",
        )
        device = found
    formatted = volume.ask("n1", "format", "1", "ext4", device=device)
    [taken] = volume.ask("n2", "acquire", "2", device=device)
    assert taken["epoch"] == formatted["epoch"] + 1
    assert volume.ask("n1", "scan", device=device)["volume"] == "v1"
