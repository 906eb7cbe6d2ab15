"""One run of a drill: plays its steps on a stage while everything is watched, and returns the history."""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from hwlab import clocks, cluster, gather
from hwlab.cluster import ClusterSilent, Status
from hwlab.drillfile import Command, Drill, Expect, Fault, Flap, Late, Reader, Stamp, Step, Watch
from hwlab.faults import DAEMON
from hwlab.feed import Event
from hwlab.history import (
    Condition,
    End,
    History,
    Mark,
    Notice,
    Recovery,
    TimingRow,
    Wanted,
)
from hwlab.observers import NotReady, Observers
from hwlab.progress import Progress
from hwlab.stage import HostSilent, Stage

POLL_S = 1.0
HEALTHY_S = 120.0
END_S = 20.0
JOURNAL_LINES = 2000
REPAIRS = ("power-on", "resume", "heal", "heal-storage", "start-daemon", "thaw-daemon", "idle", "persistent")
SILENT_MS = 2000.0
"""Nobody answered for the served address for that long: nobody has it. The asker tells twice a second."""


class Run:
    """The state of one run. `play` is called once."""

    def __init__(self, stage: Stage, drill: Drill, run: str, progress: Progress) -> None:
        self._stage = stage
        self._drill = drill
        self._progress = progress
        late = any(isinstance(step, Late) for step in drill.steps)
        self._observers = Observers(stage, drill.load, run, late=late)
        self._cast: dict[str, str] = {}
        self._marks: list[Mark] = []
        self._conditions: list[Condition] = []
        self._lost: list[str] = []
        self._consoles: dict[str, int] = {}
        self._silent: set[str] = set()
        self._fault_ms = 0.0
        self._acted_ms = 0.0
        self._epoch_first = 0
        self._epoch_acted = 0
        self._rebooted_ms: dict[str, float] = {}

    def play(self) -> History:
        """Steps in order; if one fails, only repairs; then, always, the evidence. NotReady: it never began."""
        try:
            self._begin()
            self._steps()
            return self._evidence()
        finally:
            self._observers.close()

    # ---- before ----

    def _begin(self) -> None:
        status = self._healthy()
        target, client = self._stage.target, self._stage.client
        hosts = (target, client, *self._stage.nodes.values())
        self._consoles = {host: len(self._stage.console(host)) for host in hosts}
        self._cast = {
            "primary": status.server,
            "backup": status.following,
            "leader": status.leader,
            "client": client,
            "target": target,
        }
        self._progress.say(f"{status.server} serves {self._stage.share.volume}, {status.following} would be next")
        # Records of earlier runs: the last run's stay for whoever wants to look at them.
        folder = shlex.quote(self._stage.share.mount_point)
        script = f"echo {self._marker()} > /dev/kmsg; rm -f {folder}/drill-*.rec {folder}/drill-*.lock"
        with contextlib.suppress(HostSilent):
            self._stage.exec(client, ["sh", "-c", script])
        for fault in self._drill.prepare:
            for host in self._hosts(fault.role):
                self._stage.fault(fault.kind, host)
        self._observers.start()
        if self._observers.holder_name() != status.server:
            raise NotReady(
                f"{status.server} serves, but the disk is held by {self._observers.holder_name() or 'nobody'}"
            )
        self._epoch_first = self._epoch_acted = self._observers.holder_epoch()
        self._progress.say("the client writes, the other client is refused the lock, the target is watched")

    def _healthy(self) -> Status:
        """A volume that is served, somebody who could take it over, and all nodes ready."""
        end = time.monotonic() + HEALTHY_S
        trouble = ""
        while time.monotonic() < end:
            try:
                status = cluster.read_status(self._stage, self._stage.nodes.values())
            except ClusterSilent as error:
                trouble = str(error)
            else:
                waiting = [n for n in self._stage.nodes.values() if n not in (*status.ready, status.server)]
                if status.server and status.following and not waiting:
                    return status
                trouble = f"served by {status.server or 'nobody'}, not ready: {', '.join(waiting) or 'nobody'}"
            self._progress.now(f"waiting for a healthy cluster: {trouble}")
            time.sleep(POLL_S)
        raise NotReady(f"the cluster is not healthy: {trouble}")

    def _marker(self) -> str:
        return f"hactl-drill {self._observers.run} begins"

    # ---- the steps ----

    def _steps(self) -> None:
        failed = False
        for step in self._drill.steps:
            # After a failed step only the repairs are left: a host that stays frozen gives no evidence.
            if failed and not (isinstance(step, Fault) and step.kind in REPAIRS):
                continue
            try:
                failed = not self._step(step) or failed
            except (HostSilent, ClusterSilent) as error:
                self._lost.append(str(error))
                self._progress.say(f"the lab broke: {error}")
                failed = True

    def _step(self, step: Step) -> bool:
        """Play one step; False if the rest makes no sense any more."""
        match step:
            case Fault():
                self._do_fault(step)
            case Command():
                return self._do_command(step)
            case Stamp():
                for host in self._hosts(step.role):
                    self._observers.stamp(host)
            case Late():
                for host in self._hosts(step.late):
                    self._observers.write_late(host, step.depth)
            case Flap():
                self._flap(step)
            case Reader():
                self._observers.pin(step.word)
            case Watch():
                self._observers.news.wait(lambda: False, step.watch_s, self._show)
            case Expect():
                return self._expect(step)
        return True

    def _hosts(self, role: str) -> tuple[str, ...]:
        """Who plays a role: `server` is whoever holds the disk now, the others were cast at the beginning."""
        if role == "nodes":
            return tuple(self._stage.nodes.values())
        if role == "server":
            return (self._observers.holder_name(),)
        return (self._cast[role],)

    def _do_fault(self, step: Fault) -> None:
        hosts = [host for host in self._hosts(step.role) if step.kind != "power-on" or host in self._silent]
        if not hosts:
            return
        self._acted(clocks.now_ms(), step.start and not self._fault_ms)
        # All at once: a majority that is cut off one by one would have time to do something about it.
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(lambda host: self._strike(step.kind, host, step.stall_ms_max), hosts))

    def _strike(self, kind: str, host: str, stall_ms_max: float | None = None) -> None:
        """Do one thing to one host, and note when it began and when it was done."""
        at_ms = clocks.now_ms()
        self._progress.say(f"{kind} {host}")
        self._stage.fault(kind, host)
        until_ms = clocks.now_ms()
        what = f"{kind} {host}"
        self._marks.append(
            Mark(at_ms=at_ms, what=what, kind="fault", node=host, until_ms=until_ms, stall_ms_max=stall_ms_max)
        )
        if kind in ("kill", "reboot"):
            self._rebooted_ms[host] = at_ms
        if kind in ("kill", "pause"):
            self._silent.add(host)
        if kind in ("power-on", "resume"):
            self._silent.discard(host)
        if kind == "power-on" and host == self._stage.target:
            self._observers.watch_again()

    def _flap(self, step: Flap) -> None:
        """Down and up again; the hosts are those that have the role at the beginning."""
        hosts, end = self._hosts(step.role), time.monotonic() + step.for_s
        self._acted(clocks.now_ms(), step.start and not self._fault_ms)
        while time.monotonic() < end:
            for kind, pause_s in (("cut", step.down_s), ("heal", step.up_s)):
                for host in hosts:
                    self._strike(kind, host)
                self._observers.news.wait(lambda: False, pause_s)

    def _acted(self, at_ms: float, start: bool) -> None:
        """Remember when something was done, and which epoch the disk had then."""
        self._acted_ms = at_ms
        self._epoch_acted = self._observers.holder_epoch() or self._epoch_acted
        if start:
            self._fault_ms = at_ms

    def _do_command(self, step: Command) -> bool:
        (host,) = self._hosts(step.role)
        argv = [word.format(volume=self._stage.share.volume, **self._cast) for word in step.argv]
        at_ms = clocks.now_ms()
        self._acted(at_ms, step.start)
        mark = Mark(at_ms=at_ms, what=" ".join(argv), kind="command", node=host, stall_ms_max=step.stall_ms_max)
        self._marks.append(mark)
        self._progress.say(f"{host}: {' '.join(argv)}")
        done = self._stage.exec(host, argv, timeout_s=step.deadline_s)
        if done.returncode == 0:
            return True
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[:300]
        self._condition(f"{' '.join(argv)} succeeds (exit {done.returncode}: {said})", False, at_ms, 0.0)
        return False

    def _expect(self, step: Expect) -> bool:
        what, met = self._meaning(step)
        began_ms = clocks.now_ms()
        self._progress.now(what)
        if step.condition == "ready":
            came = self._poll_ready(self._hosts(step.role), step.deadline_s)
        else:
            came = self._observers.news.wait(met, step.deadline_s, lambda: self._show(what))
        if step.condition == "no-new-holder":
            came = not came
        self._condition(what, came, began_ms, step.deadline_s)
        return came

    def _condition(self, what: str, met: bool, began_ms: float, deadline_s: float) -> None:
        now_ms = clocks.now_ms()
        self._conditions.append(Condition(what=what, met=met, took_ms=now_ms - began_ms, deadline_ms=deadline_s * 1000))
        self._marks.append(Mark(at_ms=now_ms, what=what if met else f"missed: {what}", kind="condition"))
        self._progress.say(f"{'seen' if met else 'MISSED'}: {what}")

    def _meaning(self, step: Expect) -> tuple[str, Callable[[], bool]]:
        """A condition in words, and how it is told from what the observers say."""
        watch, epoch = self._observers, self._epoch_acted
        who = " and ".join(self._hosts(step.role))
        match step.condition:
            case "new-holder":
                return "another epoch holds the disk", lambda: self._newer(epoch)
            case "no-new-holder":
                return "nobody takes the disk", lambda: self._newer(epoch)
            case "writes":
                since = self._since_ms()
                return (
                    f"{step.count} more records acknowledged",
                    lambda: watch.acks_since(since) >= step.count,
                )
            case "no-answer":
                return "nobody answers for the served address", lambda: watch.silent_ms() > SILENT_MS
            case "held-in-target":
                return f"writes of {who} wait in its block layer and in the target", watch.held_in_target
            case "held-in-socket":
                return f"writes of {who} wait in its block layer and in its socket", watch.held_in_socket
            case "reads":
                since = self._since_ms()
                return "the reader is answered again", lambda: watch.reads_since(since)
            case _:
                return f"{who} ready", lambda: False

    def _newer(self, epoch: int) -> bool:
        return self._observers.holder_epoch() > epoch

    def _since_ms(self) -> float:
        """Records count from the last action on, or from the takeover that answered it."""
        taken = [mark.at_ms for mark in self._marks if mark.kind == "condition" and "holds the disk" in mark.what]
        return max([self._acted_ms, *taken])

    def _poll_ready(self, hosts: tuple[str, ...], deadline_s: float) -> bool:
        """Ask the cluster itself, seldom: its command line costs the nodes time."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            try:
                status = cluster.read_status(self._stage, self._answering())
            except ClusterSilent:
                status = None
            if status and all(host in (*status.ready, status.server) for host in hosts):
                return True
            self._show(f"{' and '.join(hosts)} ready")
            time.sleep(POLL_S)
        return False

    def _answering(self) -> Iterator[str]:
        """Nodes to ask, those first that nothing was done to."""
        touched = {mark.node for mark in self._marks if mark.kind == "fault"}
        return iter(sorted(set(self._stage.nodes.values()) - self._silent, key=lambda host: host in touched))

    def _show(self, what: str = "watching") -> None:
        told = self._observers.load.last("ack") if self._observers.load else None
        if told is None:
            return
        at_ms = self._observers.clocks[self._stage.client].before.from_mono_ns(told["ack"])
        ago_s = max(0.0, clocks.now_ms() - at_ms) / 1000
        self._progress.now(f"{what}; {told['acknowledged']} records acknowledged, the last {ago_s:.1f} s ago")

    # ---- after ----

    def _evidence(self) -> History:
        """Stop everything in order and collect what it saw; what cannot be had stays None."""
        self._progress.say("collecting the evidence")
        observers = self._observers
        end = self._end()
        distinct = self._distinct(end.server if end else "")
        found = observers.stop_load()
        observers.stop_watching()
        ended_ms = clocks.now_ms()
        observers.read_clocks_again(self._rebooted_ms)
        return self._assemble(end, distinct, found, ended_ms)

    def _assemble(self, end: End | None, distinct: bool | None, found: Event | None, ended_ms: float) -> History:
        observers, stage = self._observers, self._stage
        assert observers.load
        client = observers.clocks[stage.client].before
        watched = observers.watched()
        load_log, thief_log = self._fetch(observers.log("load")), self._fetch(observers.log("thief"))
        asker_log = self._fetch(observers.log("asker"))
        reader_log = self._fetch(observers.log("reader")) if observers.reader else None
        kernel_log = self._kernel_log()
        return History(
            drill=self._drill.name,
            nodes=dict(stage.nodes),
            primary=self._cast["primary"],
            fault_ms=self._fault_ms or ended_ms,
            ended_ms=ended_ms,
            uncertainty_ms=max(self._uncertainties()),
            wanted=self._wanted(),
            writes=None if load_log is None else gather.writes(load_log, client),
            found=gather.found(found),
            timing=self._timing(),
            rate_error=max(abs(observers.clocks[node].before.rate - 1) for node in stage.nodes.values()),
            answers=None if asker_log is None else gather.answers(asker_log, client),
            reads=None if reader_log is None else gather.reads(reader_log, client),
            attempts=None if thief_log is None else gather.attempts(thief_log, client),
            distinct_clients=distinct,
            owner=gather.owner(observers.load.events, client),
            kernel_complaints=None if kernel_log is None else gather.complaints(kernel_log, self._marker()),
            reservations=gather.all_reservations(watched),
            stamps_seen=tuple(each for seen in watched for each in gather.stamps_seen(*seen, observers.run)),
            disk_writes=tuple(each for seen in watched for each in gather.disk_writes(*seen)),
            stamp_writes=tuple(
                write
                for number, feed in observers.stampers
                for write in gather.stamp_writes(feed.events, observers.clocks[stage.nodes[number]].before)
            ),
            epochs=tuple(each for seen in watched for each in gather.epochs(*seen)),
            witness=gather.witness(watched),
            conditions=tuple(self._conditions),
            recoveries=self._recoveries(),
            notices=self._notices() if self._drill.end.told_by else None,
            end=end,
            marks=tuple(self._marks),
            lost=(*self._kernel_failures(), *self._lost),
        )

    def _kernel_failures(self) -> Iterator[str]:
        """Whatever else a run shows in which a kernel failed, that is the first thing to know of it."""
        for host, before in self._consoles.items():
            what = gather.kernel_failure(self._stage.console(host)[before:])
            if what:
                yield f"the kernel of {host} failed: {what}"

    def _uncertainties(self) -> Iterator[float]:
        for known in self._observers.clocks.values():
            yield known.before.uncertainty_ms
            if known.after:
                yield known.after.uncertainty_ms

    def _wanted(self) -> Wanted:
        end, nodes = self._drill.end, tuple(self._stage.nodes.values())
        servers = {
            "primary": (self._cast["primary"],),
            "backup": (self._cast["backup"],),
            "another": tuple(host for host in nodes if host != self._cast["primary"]),
            "any": nodes,
        }
        return Wanted(
            server=servers[end.server],
            ready=tuple(host for role in end.ready for host in self._hosts(role)),
            old_owner_must_try=end.old_owner_must_try,
            recoveries_min=end.recoveries_min,
            moves_max=end.moves_max,
            reads=self._drill.load.reader,
            told_by=end.told_by,
            told_ms_max=end.told_ms_max,
            lease_lapse_ms=None if end.lease_lapse_s is None else end.lease_lapse_s * 1000,
        )

    def _end(self) -> End | None:
        """Ask until somebody serves: after a takeover the cluster's own view may lag behind the client's."""
        end = time.monotonic() + END_S
        while True:
            try:
                status = cluster.read_status(self._stage, self._answering())
            except ClusterSilent:
                return None
            if status.server or time.monotonic() > end:
                return End(server=status.server, ready=status.ready, problems=status.problems)
            time.sleep(POLL_S)

    def _distinct(self, server: str) -> bool | None:
        """Ask the serving kernel for its clients: the thief must be one of its own."""
        if not server or server in self._silent:
            return None
        script = "cat /run/hactl/nfs/*/nfsd/clients/*/info"
        try:
            done = self._stage.exec(server, ["sh", "-c", script])
        except HostSilent:
            return None
        if done.returncode != 0:
            return None
        return gather.distinct(done.stdout.decode(errors="replace"), self._stage.share.thief_address)

    def _fetch(self, path: str) -> str | None:
        try:
            done = self._stage.exec(self._stage.client, ["cat", path])
        except HostSilent:
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None

    def _kernel_log(self) -> str | None:
        try:
            done = self._stage.exec(self._stage.client, ["dmesg"])
        except HostSilent:
            return None
        text = done.stdout.decode(errors="replace")
        return text if done.returncode == 0 and self._marker() in text else None

    def _timing(self) -> tuple[TimingRow, ...] | None:
        try:
            return cluster.read_timing(self._stage, self._answering())
        except (ClusterSilent, KeyError, TypeError):
            return None

    def _notices(self) -> tuple[Notice, ...] | None:
        """hactld's own words on the primary. Its journal is gone with a boot."""
        host = self._cast["primary"]
        argv = ["journalctl", "--no-pager", "--output=short-monotonic", f"--unit={DAEMON}", f"--lines={JOURNAL_LINES}"]
        try:
            done = self._stage.exec(host, argv, timeout_s=60.0)
        except HostSilent:
            return None
        if done.returncode != 0 or host in self._rebooted_ms:
            return None
        return gather.notices(done.stdout.decode(errors="replace"), self._observers.clocks[host].before)

    def _recoveries(self) -> tuple[Recovery, ...] | None:
        """Ask until the last holder's is told: a takeover is recorded when the clients' grace is over."""
        end, newest = time.monotonic() + END_S, self._observers.holder_epoch()
        while True:
            try:
                entries = cluster.read_history(self._stage, self._answering())
            except (ClusterSilent, AttributeError):
                return None
            found = gather.recoveries(entries, self._epoch_first, self._observers.clocks)
            told = max((recovery.epoch for recovery in found if not recovery.failed), default=self._epoch_first)
            if told >= newest or time.monotonic() > end:
                return found
            time.sleep(POLL_S)
