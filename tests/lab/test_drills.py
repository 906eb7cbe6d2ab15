"""The drills' machinery on real kernels, a real disk and a real NFS client, with a toy in place of the cluster.

The toy takes over with a few shell commands, rightly or with a mistake of our choice. Whatever hactl does, a
drill is only worth its verdict if it finds these: so each mistake is made for real and must be found.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hwlab.drill import Exit, run_drill
from hwlab.labstage import LabStage
from hwlab.progress import Progress
from hwlab.protocols import Lab
from hwlab.stage import Done
from tests.lab.labs import fresh_lab

pytestmark = pytest.mark.lab

LAB = "toydrill"
TOPOLOGY = """
name = "toydrill"
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
size_mb = 256
serial = "5fa1c0de00000000000000000000000d1"
[volume]
name = "v1"
lun = "v1"
fs = "ext4"
address = "10.77.1.50/24"
clients = ["10.77.1.0/24"]
lease_s = 10
grace_s = 10
mount_point = "/mnt/v1"
"""

FORMAT = r"""
set -e
until [ -b /dev/sda ]; do sleep 0.2; done
printf 'label: gpt\nstart=1MiB,size=3MiB\nstart=4MiB\n' | sfdisk -q /dev/sda
blockdev --rereadpt /dev/sda || true
until [ -b /dev/sda2 ]; do sleep 0.2; done
mkfs.ext4 -q -F /dev/sda2
"""

# Arguments: own key, victim's key or -, mistake. Prints the steps with their times.
TAKE = r"""
set -e
key=$1 victim=$2 mistake=$3 dev=/dev/sda
now() { date +%s%3N; }
step() { echo "STEP $1 $start $(now)"; start=$(now); }
pr() { sg_persist --no-inquiry --out "$@" $dev >/dev/null; }
start=$(now)
pr --register-ignore --param-sark=$key || pr --register-ignore --param-sark=$key
[ $victim = - ] || [ $mistake = no-preempt ] ||
  pr --preempt-abort --param-rk=$key --param-sark=$victim --prout-type=5
[ $mistake = no-preempt ] || pr --reserve --param-rk=$key --prout-type=5
[ $mistake != no-reserve ] || pr --release --param-rk=$key --prout-type=5
step fence
blockdev --rereadpt $dev || true
mkdir -p /srv/v1 && mount -t ext4 ${dev}2 /srv/v1
step mount
mkdir -p /srv/v1/export /srv/v1/.ha /run/rpc_pipefs /run/hactl/nfs/v1/nfsd
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
mount -t nfsd nfsd /run/hactl/nfs/v1/nfsd
mount -t nfsd nfsd /proc/fs/nfsd
nfsdcld -s /srv/v1/.ha -p /run/rpc_pipefs
until ls -l /proc/$(pidof nfsdcld)/fd 2>/dev/null | grep -q inotify; do sleep 0.05; done
exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=0 10.77.1.0/24:/srv/v1/export
rpc.mountd -N 2 -N 3
cd /proc/fs/nfsd
echo "-3 +4 +4.1 +4.2" > versions
echo 10 > nfsv4leasetime
echo 10 > nfsv4gracetime
unshare -u sh -c 'hostname toy-v1; rpc.nfsd -N 3 8'
step export
ip addr add 10.77.1.50/24 dev lan
python3 - <<'P'
import socket, struct
mac = bytes.fromhex(open("/sys/class/net/lan/address").read().strip().replace(":", ""))
ip = socket.inet_aton("10.77.1.50")
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
packets.bind(("lan", 0x0806))
for op in (1, 2):
    head = b"\xff" * 6 + mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, op)
    packets.send(head + mac + ip + b"\xff" * 6 + ip)
P
step address
"""


def key(node: int, epoch: int) -> str:
    return f"0x{0xABCDE << 44 | node << 32 | epoch:016x}"


class Toy(LabStage):
    """Real hosts; the cluster is this class. `mistake`: what its takeover leaves out."""

    def __init__(self, lab: Lab, mistake: str) -> None:
        super().__init__(lab)
        self._lab = lab
        self._mistake = mistake
        self._server, self._epoch = 1, 1
        self._recoveries: list[dict[str, Any]] = []
        self._taking: threading.Thread | None = None

    def heal(self, say: Callable[[str], None]) -> None:
        """Everything anew: after some mistakes the file system is not to be trusted."""
        say("the toy cluster starts anew")
        for name in ("n1", "n2", "c1"):
            self._lab.hosts[name].power.off()
            self._lab.hosts[name].power.on()
        for name in ("n1", "n2", "c1"):
            self._lab.hosts[name].command.wait_reachable(60)
        clear = f"sg_persist --no-inquiry --out --register-ignore --param-sark={key(1, 1)} /dev/sda; "
        clear += f"sg_persist --no-inquiry --out --clear --param-rk={key(1, 1)} /dev/sda"
        self._run("n1", f"until [ -b /dev/sda ]; do sleep 0.2; done; {clear}; {clear}")
        self._run("n1", FORMAT)
        self._run("n2", "until [ -b /dev/sda ]; do sleep 0.2; done")
        self._server, self._epoch = 1, 1
        self._take(1, "-", "none")
        self._run("c1", "mkdir -p /mnt/v1 && mount -t nfs4 -o vers=4.2 10.77.1.50:/ /mnt/v1")

    def _run(self, host: str, script: str, *words: str) -> str:
        command = self._lab.hosts[host].command
        return command.run(["sh", "-c", script, "toy", *words], timeout_s=60).text

    def _take(self, node: int, victim: str, mistake: str) -> None:
        told = self._run(f"n{node}", TAKE, key(node, self._epoch), victim, mistake)
        steps = [line.split()[1:] for line in told.splitlines() if line.startswith("STEP")]
        self._recoveries.append(
            {
                "volume": "v1",
                "from": "n1",
                "to": f"n{node}",
                "epoch": self._epoch,
                "node": f"n{node}",
                "steps": [
                    {"name": name, "start_unix_ms": int(start), "end_unix_ms": int(end)} for name, start, end in steps
                ],
            }
        )

    def _take_over(self) -> None:
        victim, self._epoch, self._server = key(1, self._epoch), self._epoch + 1, 2
        self._take(2, victim, self._mistake)

    def fault(self, kind: str, host: str) -> None:
        if kind == "heal" and host == f"n{3 - self._server}":
            # From here on the toy is right again: what went on serving meanwhile stops.
            self._run(host, "ip addr del 10.77.1.50/24 dev lan; true")
        if kind == "resume":
            # The toy's address does not expire by itself: it is taken from the old server before it can use it.
            super().fault("cut", host)
            super().fault("resume", host)
            self._run(host, "ip addr del 10.77.1.50/24 dev lan; pkill rpc.mountd; true")
            super().fault("heal", host)
            return
        super().fault(kind, host)
        if kind in ("pause", "cut-from-nodes"):
            self._taking = threading.Thread(target=self._take_over)
            self._taking.start()

    def exec(self, host: str, argv: list[str], *, input: bytes | None = None, timeout_s: float = 30.0) -> Done:
        words = " ".join(argv)
        if words == "hactl status --json":
            other = 3 - self._server
            volume = {"name": "v1", "state": "serving", "server": f"n{self._server}", "next": f"n{other}"}
            nodes = [{"name": name, "ready": True} for name in ("n1", "n2")]
            return self._say({"leader": "n2", "nodes": nodes, "volumes": [volume]})
        if words == "hactl timing --json":
            return self._say([])
        if words == "hactl history --json":
            return self._say(self._recoveries)
        return super().exec(host, argv, input=input, timeout_s=timeout_s)

    def _say(self, table: object) -> Done:
        return Done(returncode=0, stdout=json.dumps(table).encode(), stderr=b"")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    path = tmp_path_factory.mktemp("lab") / "toydrill.toml"
    path.write_text(TOPOLOGY)
    with fresh_lab(LAB, str(path)) as lab:
        lab.up(print)
        yield lab


def drill(lab: Lab, tmp_path: Path, mistake: str, name: str = "pause-primary") -> tuple[Exit, dict[str, Any]]:
    folder = Path(os.environ.get("DRILL_OUT", tmp_path)) / mistake
    code = run_drill(name, runs=1, stage=Toy(lab, mistake), out_dir=folder, progress=Progress())
    report: dict[str, Any] = json.loads((folder / "latest" / "report.json").read_text())
    return code, report["runs"][0]


def test_a_takeover_done_rightly_is_valid_on_a_real_disk(lab: Lab, tmp_path: Path) -> None:
    code, run = drill(lab, tmp_path, "none")
    assert code is Exit.VALID, run["reasons"]
    assert run["lock"] == "kept" and run["lost"] == 0 and run["late_writes"] == 0
    assert run["refused_writes"] > 0 and run["holders_max"] == 1


def test_a_takeover_without_preempt_is_found_invalid(lab: Lab, tmp_path: Path) -> None:
    code, run = drill(lab, tmp_path, "no-preempt")
    assert code is Exit.INVALID
    assert not any(reason["what"].startswith("the lab") for reason in run["reasons"])


def test_late_writes_that_a_released_disk_lets_in_are_found(lab: Lab, tmp_path: Path) -> None:
    began = time.monotonic()
    code, run = drill(lab, tmp_path, "no-reserve")
    assert code is Exit.INVALID
    assert run["late_writes"] > 0, f"after {time.monotonic() - began:.0f} s: {run['reasons']}"


def test_an_old_server_that_goes_on_serving_is_found_by_the_reader_and_the_asker(lab: Lab, tmp_path: Path) -> None:
    """The toy's address never ends by itself: cut off from the other node, the old server answers from its cache."""
    code, run = drill(lab, tmp_path, "goes-on", "stale-read")
    assert code is Exit.INVALID
    assert run["stale_reads"] > 0, run["reasons"]
    assert any("two kernels had the served address" in reason["what"] for reason in run["reasons"])
