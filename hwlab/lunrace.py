"""The drill `multi-lun-race`: nodes take one set of LUNs at the same instant, again and again; it must never be split.

On each node runs the shipped way to a handle (`fencing/_trial.py`), in a process that waits for the word, so that the
nodes begin within a millisecond or so; who is first changes with a random delay. In some races one racer is stopped
between two commands to the LUNs for a while, or ends there, or its whole host freezes. Judged (`check_races.py`) by
what the target has in its tables afterwards, and by its every change that the witness saw on the way.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hwlab import check_races, feed, strategy, witness
from hwlab.check_races import Owned, Raced
from hwlab.errors import LabError
from hwlab.history import Verdict
from hwlab.paths import PACKAGE_DIR
from hwlab.payload import LIB_DIR
from hwlab.protocols import Host, Lab, Progress
from hwlab.ssh import in_parallel
from hwlab.topology import Role

NAME = "multi-lun-race"
EXITS = {Verdict.VALID: 0, Verdict.INVALID: 1, Verdict.UNKNOWN: 3}
LUNS = 8
SIZE_MB = 16
SERIAL = "bace"
RACES = 100
JITTER_MS = 12.0
COMMANDS_MAX = 60
"""About what one acquisition of eight LUNs sends: where a racer is stopped."""
PAUSE_MS = 250.0
ANSWER_S = 60.0
KINDS = ("plain", "plain", "plain", "paused", "paused", "ended", "frozen")


class Racer:
    """The process on one node that takes the LUNs on command."""

    def __init__(self, host: Host, number: int, luns: Sequence[str]) -> None:
        """`luns`: WWIDs or devices."""
        self.host, self.number = host, number
        self._luns = luns
        self.begin()

    @property
    def name(self) -> str:
        return f"n{self.number}"

    def begin(self) -> None:
        """Start the process, or another one in its place. LabError if it does not see the LUNs."""
        argv = ["env", f"PYTHONPATH={LIB_DIR}:/opt/hactl/site", "python3", "-u", "-m", "fencing._trial"]
        argv += [str(self.number), f"/var/lib/hwlab/trial-epoch-{self.number}", *self._luns]
        pipe = subprocess.PIPE
        self._process = self.host.command.start(argv, stdin=pipe, stdout=pipe)
        if not self.answer().get("ready"):
            raise LabError(f"{self.host.name} cannot open the LUNs: look at `lsblk` there")

    def say(self, **word: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line; {"ended": True} when there is none any more."""
        assert self._process.stdout is not None
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(self._process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(ANSWER_S)
        if not found:
            raise LabError(f"{self.host.name} gave no answer within {ANSWER_S:g} s")
        answer: dict[str, Any] = json.loads(found[0]) if found[0].strip() else {"ended": True}
        return answer

    def ask(self, **word: Any) -> dict[str, Any]:
        self.say(**word)
        return self.answer()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(slots=True, kw_only=True)
class Outcome:
    """All races of one run."""

    races: list[Raced] = field(default_factory=list)
    changes: int = 0
    wrong: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        if self.wrong:
            return Verdict.INVALID
        return Verdict.UNKNOWN if self.holes else Verdict.VALID


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where LUNs are: `target` has their tables; each of `nodes` is a host, and how it names them."""

    target: Host
    nodes: Sequence[tuple[Host, Sequence[str]]]

    @property
    def alone(self) -> bool:
        """Are all nodes on one host, and that the target?"""
        return {host.name for host, _ in self.nodes} == {self.target.name}


def place(lab: Lab, count: int, size_mb: int, serial: str, say: Progress) -> AbstractContextManager[Place]:
    """On the lab's target over iSCSI; in a lab without one, on its first host alone (tcm_loop)."""
    if any(host.role is Role.TARGET for host in lab.hosts.values()):
        return farm(lab, count, size_mb, serial, say)
    return looped(next(iter(lab.hosts.values())), count, size_mb, serial, say)


LOOPED_NODES = 3


@contextmanager
def looped(host: Host, count: int, size_mb: int, serial: str, say: Progress) -> Iterator[Place]:
    """So many LUNs of a host's own, which it reaches by three nexuses: each a node of its own."""
    host.command.put({"/run/lunfarm.py": (PACKAGE_DIR / "lunfarm.py").read_bytes()})
    host.command.run(["sh", "-c", f"systemctl stop {UDEV}"], timeout_s=120, check=False)
    host.command.run(["mkdir", "-p", "/etc/target/pr"])  # before the module looks for it
    host.command.run(["modprobe", "-a", "target_core_file", "tcm_loop", "sd_mod", "sg"], timeout_s=120)
    host.command.run(["python3", "/run/lunfarm.py", "remove"], timeout_s=300)
    say(f"making {count} LUNs of {size_mb} MiB on {host.name}, with {LOOPED_NODES} nexuses to each")
    words = [str(count), str(size_mb), serial, str(LOOPED_NODES)]
    made = host.command.run(["python3", "/run/lunfarm.py", "loop", *words], timeout_s=600)
    try:
        yield Place(target=host, nodes=[(host, devices) for devices in json.loads(made.stdout)["nexuses"]])
    finally:
        host.command.run(["python3", "/run/lunfarm.py", "remove"], timeout_s=300, check=False)
        host.command.run(["sh", "-c", f"systemctl start {UDEV}"], timeout_s=120, check=False)


@contextmanager
def farm(lab: Lab, count: int, size_mb: int, serial: str, say: Progress) -> Iterator[Place]:
    """So many more LUNs on the lab's target, seen by every node. They are removed at the end."""
    [target] = [host for host in lab.hosts.values() if host.role is Role.TARGET]
    nodes = strategy.with_role(lab, Role.NODE)
    target.command.put({"/run/lunfarm.py": (PACKAGE_DIR / "lunfarm.py").read_bytes()})
    target.command.run(["modprobe", "target_core_file"])
    target.command.run(["python3", "/run/lunfarm.py", "remove"], timeout_s=120)
    say(f"making {count} LUNs of {size_mb} MiB on {target.name}")
    made = target.command.run(["python3", "/run/lunfarm.py", "add", str(count), str(size_mb), serial], timeout_s=300)
    wwids: list[str] = json.loads(made.stdout)["wwids"]
    try:
        in_parallel(lambda host: see(host, wwids), nodes)
        yield Place(target=target, nodes=[(host, wwids) for host in nodes])
    finally:
        target.command.run(["python3", "/run/lunfarm.py", "remove"], timeout_s=300, check=False)
        for host in nodes:
            host.command.run(["sh", "-c", FORGET, "sh", f"naa.6001405{serial}"], timeout_s=120, check=False)


UDEV = "systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket"
"""Stopped meanwhile: for each new disk it would run a dozen programs, which takes an emulated host minutes for a
hundred. The kernel itself makes the device nodes, and nothing here goes by links."""
FORGET = f"""
for d in /sys/class/block/sd*; do case $(cat $d/device/wwid) in "$1"*) echo 1 > $d/device/delete;; esac; done
systemctl start {UDEV}
"""
SEE = f"""
systemctl stop {UDEV} 2>/dev/null
iscsiadm --mode session --rescan >/dev/null
for try in $(seq 600); do
    seen=$(cat /sys/class/block/sd*/device/wwid | grep -c "^$1")
    [ "$seen" -ge "$2" ] && exit 0
    sleep 0.2
done
echo "only $seen of $2 LUNs are seen"; exit 1
"""


def see(host: Host, wwids: Sequence[str]) -> None:
    """Wait until a node has a disk for each of them."""
    common = wwids[0][:-3]
    done = host.command.run(["sh", "-c", SEE, "sh", common, str(len(wwids))], timeout_s=180, check=False)
    if done.status:
        raise LabError(f"{host.name}: {done.text}")


def run(lab: Lab, say: Progress, *, races: int = RACES, luns: int = LUNS, seed: int | None = None) -> Outcome:
    """Play the races. LabError where the lab broke."""
    dice = random.Random(seed)
    lab.up(say)
    nodes = strategy.with_role(lab, Role.NODE)
    strategy.install(nodes, say)
    outcome = Outcome()
    with ExitStack() as stack:
        where = stack.enter_context(place(lab, luns, SIZE_MB, SERIAL, say))
        racers = [Racer(host, number, named) for number, (host, named) in enumerate(where.nodes, start=1)]
        for racer in racers:
            stack.callback(racer.end)
        must(racers[0].ask(do="make"))
        seen = stack.enter_context(watched(where.target))
        kinds = tuple(kind for kind in KINDS if kind != "frozen" or not where.alone)
        for number in range(1, races + 1):
            race = one_race(dice, number, racers, where.target, kinds)
            outcome.races.append(race)
            wrong = check_races.judge_race(race, luns)
            outcome.wrong += wrong
            for line in wrong:
                say(line)
            if number % 10 == 0:
                say(f"{number} races, {len(outcome.wrong)} wrong")
    outcome.changes = len(seen)
    outcome.wrong += check_races.judge_changes(seen)
    outcome.holes += holes(outcome, len(racers))
    return outcome


def play(lab: Lab, say: Progress, out_dir: Path, *, runs: int) -> tuple[int, list[Outcome]]:
    """So many series, one after the other; the exit code is that of the worst. Each is written to `out_dir`."""
    outcomes = []
    for number in range(1, runs + 1):
        outcomes.append(run(lab, say))
        folder = out_dir / f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(as_dict(outcomes[-1]), indent=1) + "\n")
        say(f"run {number} of {runs}: {outcomes[-1].verdict}, {folder}/report.json")
    worst = [verdict for verdict in (Verdict.INVALID, Verdict.UNKNOWN) if any(o.verdict is verdict for o in outcomes)]
    return EXITS[worst[0] if worst else Verdict.VALID], outcomes


def must(answer: dict[str, Any]) -> dict[str, Any]:
    if not answer.get("ok"):
        raise LabError(f"the LUNs could not be prepared: {answer.get('text', answer)}")
    return answer


def one_race(dice: random.Random, number: int, racers: Sequence[Racer], target: Host, kinds: Sequence[str]) -> Raced:
    """Two or three nodes at once; then whoever is left owns all, or acquires again until one does."""
    chosen = dice.sample(list(racers), min(len(racers), dice.choice((2, 2, 3))))
    kind, unlucky = dice.choice(kinds), dice.choice(chosen)
    for racer in chosen:
        word: dict[str, Any] = {"do": "acquire", "delay_ms": round(dice.uniform(0, JITTER_MS), 2)}
        if racer is unlucky and kind == "paused":
            word["pause"] = [dice.randrange(COMMANDS_MAX), round(dice.uniform(10, PAUSE_MS))]
        if racer is unlucky and kind == "ended":
            word["die"] = dice.randrange(COMMANDS_MAX)
        racer.say(**word)
    if kind == "frozen":
        freeze(unlucky.host, dice.uniform(0, 0.06), dice.uniform(0.02, PAUSE_MS / 1000))
    answers = {racer: racer.answer() for racer in chosen}
    for racer, answer in answers.items():
        if answer.get("ended"):
            racer.end()
            racer.begin()
    good = those_with_a_good_handle(racers)
    again = not good and ("ended" in kind or not any(answer.get("ok") for answer in answers.values()))
    if again:
        # the last winner ended, before or after it could say so
        must(dice.choice(list(racers)).ask(do="acquire"))
        good = those_with_a_good_handle(racers)
    ends = {racer.name: told(answer) for racer, answer in answers.items()}
    return Raced(number=number, kind=kind, owned=owned(target), good=good, ends=ends, again=again)


def those_with_a_good_handle(racers: Sequence[Racer]) -> dict[str, str]:
    """Name -> key, as the LUNs answer each of them."""
    asked = {racer.name: racer.ask(do="verify") for racer in racers}
    return {name: str(verdict["key"]) for name, verdict in asked.items() if verdict.get("good")}


def freeze(host: Host, after_s: float, for_s: float) -> None:
    time.sleep(after_s)
    host.power.pause()
    time.sleep(for_s)
    host.power.resume()


def told(answer: dict[str, Any]) -> str:
    if answer.get("ended"):
        return "ended"
    return f"won {answer['key']}" if answer.get("ok") else str(answer.get("error"))


def owned(target: Host) -> dict[str, Owned]:
    """What the target has in its tables now, by LUN."""
    script = (
        "for pr in /sys/kernel/config/target/core/*/farm*/pr; do "
        'echo "LUN $pr"; cat $pr/res_holder; echo; echo KEYS; cat $pr/res_pr_registered_i_pts; done'
    )
    found = {}
    for part in target.command.run(["sh", "-c", script]).text.split("LUN ")[1:]:
        name, _, rest = part.partition("\n")
        holder, _, keys = rest.partition("KEYS\n")
        found[name.split("/")[-2]] = _owned(witness.parse_holder(holder), witness.parse_registrants(keys))
    return found


def _owned(holder: str, registrants: Sequence[tuple[str, str]]) -> Owned:
    keys = {nexus: _shown(key) for nexus, key in registrants}
    return Owned(holder=keys.get(holder, ""), keys=tuple(sorted(keys.values())))


def _shown(key: str) -> str:
    return f"0x{int(key, 16):016x}"


@contextmanager
def watched(target: Host) -> Iterator[list[tuple[str, Owned]]]:
    """Every change of a LUN's registrations that the witness on the target sees meanwhile, in order."""
    source = feed.program(PACKAGE_DIR / "witness.py").encode()
    target.command.put({"/run/witness.py": source})
    argv = ["python3", "-u", "/run/witness.py", "--numbers", "1", "--lun", "farm*", "--interval-ms", "20"]
    process = target.command.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    seen: list[tuple[str, Owned]] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["t"] == "pr":
                registrants = [(each["nexus"], each["key"]) for each in event["registrants"]]
                seen.append((event["device"], _owned(event["holder_nexus"], registrants)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        if process.stdin is not None:
            process.stdin.close()
        reader.join(10)
        process.kill()
        process.wait()


def holes(outcome: Outcome, nodes: int) -> list[str]:
    """What would have to be seen for the races to prove anything."""
    winners = {check_races.node_of(key) for race in outcome.races for key in race.good.values()}
    found = [] if len(winners) == nodes else [f"only nodes {sorted(winners)} ever won: the races were no races"]
    beaten = sum("LostRace" in end for race in outcome.races for end in race.ends.values())
    if not beaten:
        found.append("no racer ever found itself beaten: the races were no races")
    if outcome.changes < len(outcome.races):
        found.append("the witness saw fewer changes than there were races")
    return found


def as_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        "schema": 1,
        "verdict": str(outcome.verdict),
        "races": [asdict(race) for race in outcome.races],
        "changes_seen": outcome.changes,
        "wrong": outcome.wrong,
        "holes": outcome.holes,
    }


def as_text(outcome: Outcome) -> str:
    kinds = Counter(race.kind for race in outcome.races)
    ends = Counter(end.split()[0] for race in outcome.races for end in race.ends.values())
    wins = Counter(check_races.node_of(key) for race in outcome.races for key in race.good.values())
    lines = [
        f"{len(outcome.races)} races ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}): "
        f"{outcome.verdict}",
        f"owner after the race: {', '.join(f'node {node} {count} times' for node, count in sorted(wins.items()))}",
        f"racers: {', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}; "
        f"{sum(race.again for race in outcome.races)} races were left without a winner and taken up again",
        f"the witness saw {outcome.changes} changes of registrations",
    ]
    return "\n".join([*lines, *outcome.wrong, *outcome.holes])
