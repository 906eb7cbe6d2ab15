"""The engine plays whole drills here: the real scripts, on a stage whose hosts are folders and whose cluster is
a few lines of Python that take over, or fail to, as the test says."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwlab import drill as drills
from hwlab import observers
from hwlab.drill import Exit, run_drill
from hwlab.progress import Progress
from hwlab.stage import Done, HostSilent, Share

NEXUS = {1: "iqn.2026-11.org.hactl:n1,i,0x1", 2: "iqn.2026-11.org.hactl:n2,i,0x2"}
TYPE = "SPC-3 Reservation Type: Write Exclusive Access, Registrants Only\n"
STALL_S = 0.7
DRILL = """
name = "{name}"
title = "t"
about = "a"
[load]
warm_up_records = 5
record_pause_ms = 2
lock_pause_ms = 5
stamp_pause_ms = 5
[[step]]
stamp = "primary"
[[step]]
fault = "pause"
on = "primary"
start = true
[[step]]
expect = "new-holder"
deadline_s = {deadline}
[[step]]
expect = "writes"
count = 5
deadline_s = 10
[[step]]
fault = "resume"
on = "primary"
[[step]]
watch_s = 0.4
[[step]]
expect = "ready"
on = "primary"
deadline_s = 5
[end]
server = "another"
ready = ["primary"]
old_owner_must_try = true
"""


# The real one needs a network; this one asks a file who has the address.
ASKER = """
import json, os, select, sys, time
os.makedirs(os.path.dirname(sys.argv[sys.argv.index("--log") + 1]), exist_ok=True)
log = open(sys.argv[sys.argv.index("--log") + 1], "w", buffering=1)
print(json.dumps({"t": "started"}), flush=True)
n = 0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    n += 1
    log.write(f"ask {n} {time.monotonic_ns()}\\n")
    for server in open(SERVER).read().split():
        log.write(f"answer {n} {time.monotonic_ns()} 02:00:00:00:00:0{server}\\n")
        print(json.dumps({"t": "answer", "mac": server}), flush=True)
print(json.dumps({"t": "final"}), flush=True)
"""


def key(node: int, epoch: int) -> str:
    return f"0x{0xABCDE << 44 | node << 32 | epoch:016x}"


class World:
    """One disk, two nodes, one client, all in a folder. `flaw` names what this cluster does wrong."""

    driver = "folders"
    transport = "none"
    target = "san1"
    client = "c1"

    def __init__(self, folder: Path, flaw: str = "") -> None:
        self.folder = folder
        self.flaw = flaw
        self.nodes = {1: "n1", 2: "n2"}
        self.server, self.epoch = 1, 4
        self.recoveries: list[dict[str, object]] = []
        self.healed = 0
        self.asked = 0
        self.faults: list[str] = []
        self.witnesses: list[subprocess.Popen[bytes]] = []
        self.disk = folder / "disk"
        self.disk.write_bytes(b"\0" * (4 << 20))
        self.fence_file = folder / "fenced"
        self.pr = folder / "core" / "iblock_0" / "lun0" / "pr"
        self.pr.mkdir(parents=True)
        (self.pr.parent / "udev_path").write_text(f"{self.disk}\n")
        (folder / "mnt").mkdir()
        (folder / "server").write_text("1")
        self.share = Share(
            volume="v1",
            mount_point=str(folder / "mnt"),
            source="10.77.1.50:/",
            options="vers=4.2",
            node_mount="/srv/v1",
            thief_link="lan",
            thief_address="10.77.1.22/24",
            reader_address="10.77.1.23/24",
        )
        self._show([1])

    def _show(self, registered: list[int]) -> None:
        lines = "".join(f"iSCSI Node: {NEXUS[n]} Key: {key(n, self.epoch)} PRgen: 0x1\n" for n in registered)
        (self.pr / "res_pr_registered_i_pts").write_text("SPC-3 PR Registrations:\n" + lines)
        (self.pr / "res_holder").write_text(f"SPC-3 Reservation: iSCSI Initiator: {NEXUS[self.server]}\n")
        (self.pr / "res_pr_generation").write_text(f"0x{self.epoch:08x}\n")
        (self.pr / "res_pr_type").write_text(TYPE)

    # ---- what the engine uses ----

    def exec(self, host: str, argv: list[str], *, input: bytes | None = None, timeout_s: float = 30) -> Done:
        if host == "c1" and self.flaw == "client lost" and argv[0] == "cat":
            raise HostSilent("c1 does not answer")
        words = " ".join(argv)
        if words == "hactl status --json":
            return self._answer(self._status())
        if words == "hactl timing --json":
            return self._answer([{"phase": "detect", "best_ms": 0, "worst_ms": 5000, "because": "a toy"}])
        if words == "hactl history --json":
            self.asked += 1
            return self._answer([] if self.flaw == "recorded late" and self.asked < 3 else self.recoveries)
        if "nfsd/clients" in words:
            shown = ["10.77.1.21:900", "10.77.1.22:901"]
            return self._say("".join(f'clientid: 0x{n}\naddress: "{a}"\n' for n, a in enumerate(shown)))
        if words == "systemctl is-active --quiet hwlab-target.service":
            return Done(returncode=0 if self.flaw != "target stays down" else 3, stdout=b"", stderr=b"")
        if words == "dmesg":
            return self._say((self.folder / "kmsg").read_text())
        if "/dev/kmsg" in words:
            (self.folder / "kmsg").write_text(words)
            return self._say("")
        done = subprocess.run(argv, capture_output=True, input=input, timeout=timeout_s)
        return Done(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)

    def stream(self, host: str, argv: list[str]) -> "subprocess.Popen[bytes]":
        if "--numbers" in argv:
            argv = [*argv, "--core", str(self.folder / "core")]
        pipe = subprocess.PIPE
        started = subprocess.Popen([sys.executable, *argv[1:]], stdin=pipe, stdout=pipe, stderr=pipe)
        if "--numbers" in argv:
            self.witnesses.append(started)
        if any(word.endswith("-load.log") for word in argv):
            self.load = started
        return started

    def console(self, host: str) -> str:
        old = "[  149.1] BUG: of an earlier run\n"
        if host == self.target and self.flaw == "target crashes" and self.server != 1:
            return old + "[  949.139332] BUG: kernel NULL pointer dereference, address: 0000000000000000\r\n"
        return old

    def fault(self, kind: str, host: str) -> None:
        self.faults.append(f"{kind} {host}")
        if (kind, host) == ("kill", self.target):
            self.witnesses[-1].kill()
        if kind in ("cut-from-nodes", "heal"):
            (self.folder / "server").write_text("" if kind == "cut-from-nodes" else str(self.server))
        if kind == "pause" and self.flaw != "no takeover":
            # The client waits for the takeover: no other gap in its writes may be longer, however busy this machine is.
            self.load.send_signal(signal.SIGSTOP)
            threading.Thread(target=self._take_over).start()

    def heal(self, say: Callable[[str], None]) -> None:
        self.healed += 1
        self.server, self.epoch = 1, self.epoch + 1
        self.fence_file.unlink(missing_ok=True)
        self._show([1])
        (self.folder / "server").write_text("1")

    # ---- the cluster ----

    def _take_over(self) -> None:
        self.server, self.epoch = 2, self.epoch + 1
        start_ms = time.time() * 1000
        if self.flaw not in ("no preempt", "leaky fence"):
            self.fence_file.touch()
        self._show([1, 2] if self.flaw == "no preempt" else [2])
        (self.folder / "server").write_text("1 2" if self.flaw == "gate left open" else "2")
        end_ms = time.time() * 1000
        off_ms = 5000 if self.flaw == "wrong times" else 0
        steps = [
            {"name": name, "start_unix_ms": start_ms - off_ms, "end_unix_ms": end_ms - off_ms}
            for name in ("decide", "fence", "mount", "address")
        ]
        self.recoveries.append(
            {"volume": "v1", "from": "n1", "to": "n2", "epoch": self.epoch, "node": "n2", "steps": steps}
        )
        threading.Timer(STALL_S, self.load.send_signal, [signal.SIGCONT]).start()

    def _status(self) -> dict[str, object]:
        other = 3 - self.server
        names = [{"name": name, "ready": self.flaw != "not ready"} for name in ("n1", "n2")]
        mine = {"name": "v1", "state": "serving", "server": f"n{self.server}", "next": f"n{other}"}
        return {"leader": "n1", "nodes": names, "volumes": [mine]}

    def _answer(self, table: object) -> Done:
        return self._say(json.dumps(table))

    def _say(self, text: str) -> Done:
        return Done(returncode=0, stdout=text.encode(), stderr=b"")


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Exit, World]]]:
    """Plays a drill in a new world; scripts are the real ones, cut off from kernel features."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    fence_file = tmp_path / "fenced"
    for name in ("load", "witness"):
        text = (observers.SCRIPTS / f"{name}.py").read_text()
        (scripts / f"{name}.py").write_text(text.replace("run_first(10)", "False"))
    thief = (observers.SCRIPTS / "thief.py").read_text()
    thief = re.sub(r"become_another_machine\(args.link.*\n", "pass\n", thief)
    thief = re.sub(r"from hwlab.another_machine.*\n", "", thief)
    thief = re.sub(r'subprocess.run\((mount|\["umount").*\n', "pass\n", thief)
    thief = thief.replace('"/run/hactl-drill/thief"', repr(str(tmp_path / "mnt")))
    (scripts / "thief.py").write_text(thief)
    (scripts / "asker.py").write_text(ASKER.replace("SERVER", repr(str(tmp_path / "server"))))
    stamper = (observers.SCRIPTS / "stamper.py").read_text()
    stamper = stamper.replace("whole_disk(args.mount)", repr(str(tmp_path / "disk")))
    stamper = stamper.replace("(os.O_DIRECT if direct else 0)", "0")
    refuse = f"if os.path.exists({str(fence_file)!r}): raise OSError(52, 'fenced')\n            os.pwritev("
    (scripts / "stamper.py").write_text(stamper.replace("os.pwritev(", refuse))
    monkeypatch.setattr(observers, "SCRIPTS", scripts)
    monkeypatch.setattr(observers, "LOGS", str(tmp_path / "logs"))
    monkeypatch.setattr(observers, "STOP_S", 5.0)
    monkeypatch.setattr("hwlab.run.HEALTHY_S", 0.3)
    monkeypatch.setattr("hwlab.run.POLL_S", 0.1)

    monkeypatch.setattr("hwlab.run.SILENT_MS", 300.0)

    def start(flaw: str = "", runs: int = 1, deadline_s: float = 10.0, text: str = DRILL) -> tuple[Exit, World]:
        folder = tmp_path / "drills"
        folder.mkdir(exist_ok=True)
        (folder / "test.toml").write_text(text.format(name="test", deadline=deadline_s))
        monkeypatch.setattr(drills, "load_drill", lambda name, duration_s: drills_load(name, folder, duration_s))
        world = World(tmp_path, flaw)
        with (tmp_path / "progress").open("w") as out:
            code = run_drill("test", runs=runs, stage=world, out_dir=tmp_path / "out", progress=Progress(out))
        return code, world

    from hwlab.drillfile import load_drill as drills_load

    yield start


def report(world: World) -> dict[str, object]:
    table: dict[str, object] = json.loads((world.folder / "out" / "latest" / "report.json").read_text())
    return table


def reasons(world: World) -> str:
    return json.dumps([run["reasons"] for run in report(world)["runs"]])  # type: ignore[attr-defined]


def test_a_takeover_that_keeps_all_promises_is_valid_twice_in_a_row(
    play: Callable[..., tuple[Exit, World]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, world = play(runs=2)
    assert code is Exit.VALID, reasons(world)
    run = report(world)["runs"][1]  # type: ignore[index]
    assert run["lock"] == "kept" and run["lost"] == 0 and run["late_writes"] == 0
    assert run["refused_writes"] > 0 and run["acknowledged"] > 10 and run["holders_max"] == 1
    assert [phase["name"] for phase in run["phases"]][:4] == ["detect", "decide", "fence", "mount"]
    assert "test: valid (2 valid, 0 invalid, 0 unknown" in capsys.readouterr().out
    assert (world.folder / "out" / "latest" / "report.html").is_file()


TARGET_LOSS = DRILL.replace(
    '[[step]]\nfault = "resume"',
    '[[step]]\nfault = "kill"\non = "target"\n[[step]]\nfault = "power-on"\non = "target"\n[[step]]\nfault = "resume"',
)


def test_a_target_that_loses_its_power_is_watched_again(play: Callable[..., tuple[Exit, World]]) -> None:
    code, world = play(text=TARGET_LOSS)
    assert code is Exit.VALID, reasons(world)
    assert len(world.witnesses) == 2
    assert report(world)["runs"][0]["refused_writes"] > 0  # type: ignore[index]


def test_a_kernel_that_failed_is_told_with_its_own_words_and_makes_the_run_unknown(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    code, world = play("target crashes")
    assert code is Exit.UNKNOWN
    assert "the kernel of san1 failed: BUG: kernel NULL pointer dereference" in reasons(world)
    assert "earlier run" not in reasons(world)


def test_a_target_that_does_not_come_back_leaves_nothing_to_judge_by(
    play: Callable[..., tuple[Exit, World]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "BACK_S", 0.3)
    code, world = play("target stays down", text=TARGET_LOSS)
    assert code is Exit.UNKNOWN
    assert "nobody watches san1 after its restart" in reasons(world)


def test_a_takeover_that_left_out_the_preempt_is_invalid(play: Callable[..., tuple[Exit, World]]) -> None:
    code, world = play("no preempt")
    assert code is Exit.INVALID
    assert "registrations of n1, n2 at the end" in reasons(world)


def test_a_fence_that_stops_nobody_is_invalid_even_if_the_key_is_gone(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    code, world = play("leaky fence")
    assert code is Exit.INVALID
    assert report(world)["runs"][0]["late_writes"] > 0  # type: ignore[index]


def test_an_old_server_that_keeps_the_address_is_invalid_whatever_the_disk_says(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    code, world = play("gate left open")
    assert code is Exit.INVALID
    assert "two kernels had the served address" in reasons(world)


def test_a_cluster_that_does_nothing_is_invalid(play: Callable[..., tuple[Exit, World]]) -> None:
    code, world = play("no takeover", deadline_s=0.5)
    assert code is Exit.INVALID
    assert "not within 0 s: another epoch holds the disk" in reasons(world)
    assert world.healed > 1, "an invalid run is healed before the lab is left"


def test_recorded_times_that_cannot_be_true_make_the_run_unknown(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    code, world = play("wrong times")
    assert code is Exit.UNKNOWN
    assert "off the recorded one" in reasons(world)


def test_a_client_that_is_gone_at_the_end_makes_the_run_unknown(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    code, world = play("client lost")
    assert code is Exit.UNKNOWN
    assert "the load's log is missing" in reasons(world)


def test_a_cluster_that_is_not_healthy_to_begin_with_is_a_precondition(
    play: Callable[..., tuple[Exit, World]], tmp_path: Path
) -> None:
    code, world = play("not ready")
    assert code is Exit.PRECONDITION
    assert not (world.folder / "out").exists()
    assert "not ready: n2" in (tmp_path / "progress").read_text()


def test_a_drill_of_no_runs_or_no_such_name_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    world = World(tmp_path)
    with (tmp_path / "p").open("w") as out:
        for name, runs in (("kill-primary", 0), ("no-such", 1)):
            code = run_drill(name, runs=runs, stage=world, out_dir=tmp_path / "o", progress=Progress(out))
            assert code is Exit.PRECONDITION
    assert world.healed == 0
    assert "there is no drill 'no-such'" in (tmp_path / "p").read_text()


NOTHING_MOVES = """
name = "{name}"
title = "t"
about = "a"
duration_s = 0.5
[load]
warm_up_records = 5
record_pause_ms = 2
[[prepare]]
fault = "clock-fast"
on = "backup"
[[step]]
STEP
[[step]]
expect = "writes"
count = 5
deadline_s = {deadline}
[end]
server = "primary"
recoveries_min = 0
moves_max = 0
"""
FLAP = """flap = "primary"
down_s = 0.1
up_s = 0.1
for_s = "duration"
start = true
"""
NOBODY = """fault = "cut-from-nodes"
on = "nodes"
start = true
[[step]]
expect = "no-answer"
deadline_s = {deadline}
[[step]]
fault = "heal"
on = "nodes"
"""


def test_a_flapping_link_is_cut_and_healed_in_turn_after_what_was_prepared(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    _, world = play(text=NOTHING_MOVES.replace("STEP", FLAP))
    first, *flaps = world.faults
    assert first == "clock-fast n2"
    assert len(flaps) >= 4 and flaps == ["cut n1", "heal n1"] * (len(flaps) // 2)
    assert "not within" not in reasons(world)


def test_that_nobody_serves_is_seen_by_the_asker(play: Callable[..., tuple[Exit, World]]) -> None:
    _, world = play(text=NOTHING_MOVES.replace("STEP", NOBODY))
    assert sorted(world.faults[1:3]) == ["cut-from-nodes n1", "cut-from-nodes n2"]
    run = report(world)["runs"][0]  # type: ignore[index]
    assert [c["met"] for c in run["conditions"] if c["what"].startswith("nobody answers")] == [True]
    served = [(each["node"], each["answers"] > 0) for each in run["served"]]
    assert served == [("n1", True)], "silence is no change of hands"


def test_an_address_that_is_answered_all_the_time_fails_a_drill_that_wants_silence(
    play: Callable[..., tuple[Exit, World]],
) -> None:
    text = NOTHING_MOVES.replace("STEP", NOBODY.replace("cut-from-nodes", "cut-in"))
    code, world = play(text=text, deadline_s=0.6)
    assert code is Exit.INVALID
    assert "not within 1 s: nobody answers for the served address" in reasons(world)


def test_a_recovery_that_is_recorded_late_is_waited_for(play: Callable[..., tuple[Exit, World]]) -> None:
    """Nodes record one when the clients' grace is over."""
    code, world = play("recorded late")
    assert code is Exit.VALID and world.asked == 3
