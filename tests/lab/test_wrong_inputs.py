"""LUNs that are not what they should be, on real kernels and LIO: each a clear error, and nothing is written to any.

The labels are made by hactl's own code, of volumes that are to be served: the cluster would take each of them if it
could. A good volume beside them is served all the time. Whole LUNs are compared, on the machine below the target.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hwlab import strategy
from hwlab.guests import lun_file
from hwlab.protocols import Completed, Lab
from hwlab.topology import Role
from tests.lab.labs import fresh_lab

pytestmark = [pytest.mark.lab, pytest.mark.long]

LAB = "wronginputs"
HERE = Path(__file__).parent
NODES = ("n1", "n2")
MIB = 1 << 20
SHRUNK_MB = 40
GARBAGE_SERIAL = "6a4ba6e00000000000000000000001"
GARBAGE = f"naa.6001405{GARBAGE_SERIAL[:25]}"
MOVED_SERIAL = "5fa1c0de4f000000000000000000004"
MOVED = f"naa.6001405{MOVED_SERIAL[:25]}"
GARBAGE_FILE, GARBAGE_MODE = "/var/lib/hwlab/garbage.img", "/run/garbage-mode"

# A label of a volume of this cluster that is to be served, as `volume add` would have made it; and what spoils it.
LABEL = """
import sys, uuid
from dataclasses import replace
sys.path[:0] = ["/opt/hactl/lib", "/opt/hactl/site"]
import os
from pathlib import Path
from fencing._disk import DiskLabels, size_bytes, wwid
from fencing.label import FORMAT, Label, encode
from hactl.config import load
name, device, spoil = sys.argv[1:]
cluster = load(Path("/etc/hactl/hactl.toml"), hostname=os.uname().nodename).cluster
identity = wwid(device)
label = Label(
    cluster_uuid=cluster.uuid, cluster_name=cluster.name, volume=name, volume_uuid=str(uuid.uuid4()), epoch=3,
    wanted="started", wwids=(identity,), fstype="ext4", address="10.77.1.60/24", clients=("10.77.1.0/24",), lease_s=10,
    grace_s=10, seq=1, member=0, sizes=(size_bytes(device),),
)
labels = DiskLabels(device, identity)
copies = [label, label]
if spoil == "claimed":
    copies[1] = replace(label, cluster_uuid=str(uuid.uuid4()), cluster_name="theirs", volume_uuid=str(uuid.uuid4()))
for slot, each in enumerate(copies):
    block = bytearray(encode(each))
    if spoil == "newer":
        block[16] = FORMAT + 1
    labels._write_block(bytes(block), slot)
labels.close()
"""

# The unit of a name gets another identity, over the same medium.
RENAMED = """
import sys
import rtslib_fb as lio
lio.RTSRoot._preferred_dbroot = "/etc/target"
root = lio.RTSRoot()
[target] = root.targets
[group] = target.tpgs
[old] = [each for each in root.storage_objects if each.name == sys.argv[1]]
[number] = [lun.lun for lun in group.luns if lun.storage_object.name == sys.argv[1]]
medium = old.udev_path
old.delete()
unit = lio.LUN(group, number, lio.BlockStorageObject(sys.argv[1], dev=medium, wwn=sys.argv[2]))
for acl in group.node_acls:
    lio.MappedLUN(acl, number, unit)
"""
LOG_IN = "timeout 40 /usr/lib/hwlab/iscsi-login.sh"


@dataclass
class Bench:
    lab: Lab
    before: dict[str, str]

    def sh(self, host: str, script: str, timeout_s: float = 60) -> str:
        return self.lab.hosts[host].command.run(["sh", "-c", script], timeout_s=timeout_s).text

    def python(self, host: str, script: str, *arguments: str) -> str:
        argv = ["python3", "-c", script, *arguments]
        return self.lab.hosts[host].command.run(argv, timeout_s=60).text

    def hactl(self, host: str, *words: str) -> Completed:
        return self.lab.hosts[host].command.run(["hactl", *words], timeout_s=90, check=False)

    def status(self, host: str) -> dict[str, Any]:
        return dict(json.loads(self.hactl(host, "status", "--json").stdout))

    def device(self, wwid: str, host: str = "n1") -> str:
        """Not by link: udev may have dropped it while the target was away."""
        script = f"for d in /sys/class/block/sd*; do grep -qs {wwid} $d/device/wwid && echo /dev/${{d##*/}}; done; true"
        return self.sh(host, script).strip()

    def keys(self, host: str, device: str) -> list[dict[str, Any]]:
        return list(json.loads(self.hactl(host, "keys", device, "--json").stdout))

    def digests(self) -> dict[str, str]:
        """Of every LUN but the good one; what the target was told is written, is in these files."""
        luns = [lun for lun in self.lab.disks if lun != "good"]
        found = {lun: _digest(lun_file(self.lab.name, lun)) for lun in luns}
        return found | {"garbage": self.sh("san1", f"sha256sum < {GARBAGE_FILE}").split()[0]}

    def add(self, device: str, *more: str) -> Completed:
        words = ["--address", "10.77.1.70/24", "--clients", "10.77.1.0/24", "--format"]
        return self.hactl("n1", "volume", "add", "v9", device, *words, *more)

    def assert_told_on_every_node(self, *words: str) -> None:
        for node in NODES:
            until(
                lambda node=node: any(all(word in line for word in words) for line in self.status(node)["problems"]),  # type: ignore[misc]
                40,
                f"{node} to tell of {words}; it tells {self.status(node)['problems']}",
            )

    def assert_nobody_takes_it(self, name: str) -> None:
        """Asked for by name too; the good volume goes on."""
        self.hactl("n1", "volume", "start", name, "--timeout", "3")
        for node in NODES:
            volumes = {each["name"]: each for each in self.status(node)["volumes"]}
            assert name not in volumes or volumes[name]["server"] is None, volumes
            assert volumes["good"]["state"] in ("serving", "reclaiming"), volumes

    def assert_untouched(self, *but: str) -> None:
        now = self.digests()
        changed = {lun for lun, digest in self.before.items() if digest != now[lun]}
        assert changed <= set(but)


def _digest(path: Path) -> str:
    """Of a sparse file, by its data and their places."""
    summed = hashlib.sha256()
    with path.open("rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            block = file.read(MIB)
            if any(block):
                summed.update(at.to_bytes(8, "big") + block)
            at += MIB
    return summed.hexdigest()


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with fresh_lab(LAB, str(HERE / "wrong_inputs.toml")) as lab:
        lab.up(print)
        nodes = strategy.with_role(lab, Role.NODE)
        strategy.install(nodes, print)
        strategy.wait_for_disks(lab, nodes, print)
        strategy.configure(nodes, print)
        made = Bench(lab, {})
        spoil(made)
        strategy.start_daemons(nodes, print)
        serve_good(made)
        yield made


def spoil(bench: Bench) -> None:
    """Before any daemon runs: labels on the LUNs, and then what became of the LUNs."""
    for name in ("newer", "shrunk", "moved", "claimed", "taken"):
        bench.python("n1", LABEL, name, bench.device(bench.lab.disks[name].wwid), name)
    on_both(lambda node: bench.sh(node, "iscsiadm -m session -u"))
    target = bench.lab.hosts["san1"]
    bench.sh("san1", "sync")
    target.power.off()
    os.truncate(lun_file(LAB, "shrunk"), SHRUNK_MB * MIB)
    target.power.on()
    target.command.wait_reachable(120)
    bench.sh("san1", "until systemctl is-active --quiet hwlab-target; do sleep 0.2; done")
    bench.python("san1", RENAMED, "moved", MOVED_SERIAL)
    target.command.put({"/root/garbage_guest.py": HERE / "garbage_guest.py"})
    bench.sh("san1", f"mkdir -p /var/lib/hwlab; truncate -s 48M {GARBAGE_FILE}; echo ones > {GARBAGE_MODE}")
    garbage = f"python3 /root/garbage_guest.py {GARBAGE_FILE} {GARBAGE_SERIAL} {GARBAGE_MODE}"
    bench.sh("san1", f"{garbage} 2> /var/log/garbage.log < /dev/null")
    on_both(lambda node: bench.sh(node, LOG_IN))
    wwids = [disk.wwid for name, disk in bench.lab.disks.items() if name != "moved"] + [MOVED, GARBAGE]
    for node in NODES:
        until(lambda node=node: all(bench.device(wwid, node) for wwid in wwids), 40, f"the LUNs on {node}")  # type: ignore[misc]
    # it would be taken as soon as nobody stands against it
    reserve(bench, bench.device(bench.lab.disks["taken"].wwid, "n2"), "0x77")
    bench.before = bench.digests()


def on_both(act: Callable[[str], object]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(act, NODES))


def serve_good(bench: Bench) -> None:
    until(lambda: bench.hactl("n1", "node", "list").stdout.count(b"alive") == 2, 60, "both nodes")
    device = bench.device(bench.lab.disks["good"].wwid)
    words = ["--address", "10.77.1.50/24", "--clients", "10.77.1.0/24", "--format"]
    added = bench.hactl("n1", "volume", "add", "good", device, *words)
    assert added.status == 0, added.stderr

    def served() -> bool:
        return [each["state"] for each in bench.status("n1")["volumes"] if each["name"] == "good"] == ["serving"]

    until(served, 90, "the good volume served")


WRONG = {
    "newer": ("newer", ["format 3, this hactl knows up to 2", "use the newer hactl"]),
    "shrunk": ("shrunk", [f"it has {SHRUNK_MB * MIB} bytes", f"it had {48 * MIB}: it shrank"]),
    "claimed": ("claimed", ["two claim it", 'cluster "demo"', 'cluster "theirs"']),
    "moved": ("moved", ["the label of volume moved", f"is {MOVED}", "got another identity"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_lun_that_is_not_what_its_label_says_is_named_and_left_alone(bench: Bench, wrong: str) -> None:
    name, words = WRONG[wrong]
    bench.assert_told_on_every_node(*words)
    bench.assert_nobody_takes_it(name)
    device = bench.device(MOVED if name == "moved" else bench.lab.disks[name].wwid)
    refused = bench.add(device)
    assert refused.status == 1 and b"not empty" in refused.stderr, refused
    looked = bench.hactl("n1", "preflight", device, "--read-mib", "4", "--json")
    assert looked.status in (3, 5), looked
    assert bench.keys("n1", device) == []
    bench.assert_untouched()


@pytest.mark.parametrize("answer", ["ones", "noise", "odd length", "text", "zeros"])
def test_a_device_that_answers_with_garbage_is_refused_and_not_written(bench: Bench, answer: str) -> None:
    """Its label would do: the volume is to be served, and every node tries."""
    if answer == "ones":
        bench.python("n1", LABEL, "garbage", bench.device(GARBAGE), "")
        bench.before = bench.digests()
    bench.sh("san1", f"echo '{answer}' > {GARBAGE_MODE}")
    device = bench.device(GARBAGE)
    shown = bench.hactl("n1", "keys", device)
    if answer == "zeros":  # which says that nobody is registered; every command then succeeds, and does nothing
        assert shown.status == 0, shown
    else:
        assert shown.status == 1, shown
        assert device.encode() in shown.stderr and b"next:" in shown.stderr, shown
    checked = bench.hactl("n1", "check", device)
    assert checked.status == 5 and b"FAIL" in checked.stdout, checked
    bench.assert_nobody_takes_it("garbage")
    for words in ((), ("--force", "--accept-risk")):
        refused = bench.add(device, *words)
        assert refused.status == 1, refused
    bench.assert_untouched()


KEYS = {
    "0xabcd0002": "fence_scsi, cluster with the hash abcd, node 2",
    "0x1000000000010003": "LVM, host 3 of a shared volume group, generation 1",
    "0x4150475230303030": "Veritas, data disk, node 0",
    "0x77": "an unknown tool",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_somebody_else_is_explained_and_never_preempted_unasked(bench: Bench, key: str) -> None:
    """On a LUN of a volume that is to be served, and on an empty one."""
    printed = f"0x{int(key, 16):016x}"
    for name in ("taken", "foreign"):
        device = bench.device(bench.lab.disks[name].wwid, "n2")
        reserve(bench, device, key)
        [row] = bench.keys("n1", bench.device(bench.lab.disks[name].wwid))
        assert row["key"] == printed and row["holder"] is True
        assert KEYS[key].lower() in row["meaning"].lower(), row
    bench.assert_nobody_takes_it("taken")
    until(lambda: any(printed in json.dumps(bench.status(node)) for node in NODES), 40, f"{printed} in the status")
    refused = bench.add(bench.device(bench.lab.disks["foreign"].wwid))
    assert refused.status == 1 and printed.encode() in refused.stderr, refused
    for name in ("taken", "foreign"):
        [row] = bench.keys("n1", bench.device(bench.lab.disks[name].wwid))
        assert row["key"] == printed, "still theirs"
    bench.assert_untouched()


def reserve(bench: Bench, device: str, key: str) -> None:
    """n2 has it with this key, whatever key it had before, and without a moment between them."""
    out = "sg_persist --no-inquiry --out"
    register = f"{out} --register-ignore --param-sark={key} {device}"  # again after a unit attention
    bench.sh("n2", f"{register} || {register}; {out} --reserve --param-rk={key} --prout-type=5 {device}")


def test_force_preempts_a_key_of_somebody_else_and_says_so(bench: Bench) -> None:
    """Last: the LUN is a volume then."""
    device = bench.device(bench.lab.disks["foreign"].wwid, "n2")
    reserve(bench, device, "0xabcd0002")
    forced = bench.add(bench.device(bench.lab.disks["foreign"].wwid), "--force")
    assert forced.status == 0, forced
    assert b"0x00000000abcd0002 (it has the form of fence_scsi" in forced.stdout, forced
    told = [row["key"] for row in bench.keys("n1", bench.device(bench.lab.disks["foreign"].wwid))]
    assert "0x00000000abcd0002" not in told
    bench.assert_untouched("foreign")
