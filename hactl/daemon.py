"""hactld: wires nodewatch, disks, exports, the leader's placement and the local API together.

    nodewatch view/messages --> Members --> Leader (if we lead) --Assign--> every hactld
    Assign ------------------> VolumeRuntime (per volume) --> Interpreter --> disk, export, gate

The loop decides and never blocks: whatever may block runs on a volume's own threads. When this process stops,
nothing that it serves stops: nodewatch keeps the gates for a while, and the next hactld adopts what it finds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
import uuid
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hactl import _power, _reads, controller, levels, messages, parcel
from hactl.changes import Changes
from hactl.config import Config, load
from hactl.configfile import ConfigFile
from hactl.controller import Phase, Step
from hactl.errors import HaError, OutcomeUnknown, RequestRefused
from hactl.exerciser import Exerciser
from hactl.fencer import Fencer
from hactl.fencewatch import FenceWatch
from hactl.interpret import Gate
from hactl.journal import Journal
from hactl.judged import Judgements
from hactl.leader import Leader
from hactl.members import Members
from hactl.messages import Assign, Message, Reply, Report, Request, Rescan
from hactl.parcel import Parcels
from hactl.placement import Facts
from hactl.record import Records, Takeover
from hactl.runtime import Clock
from hactl.trials import Trials, helper_argv
from hactl.verbs import Verbs
from hactl.volumes import VolumeSet
from hactl.witness import Witness
from nodewatch._client import NodeWatchClient, NodeWatchUnreachable
from nodewatch.view import View
from nodewatch.wire import KEY_BYTES

BEAT_S = 0.5
TELL_S = 1.0
SCAN_S = 5.0
REQUEST_S = 10.0
NOT_NEEDED = 69
"""Exit status on a node that only votes; hactld.service knows it as a good end, after which it stays down."""
INSPECT_S = 600.0
EXERCISE_S = 5.0
CHANGES = frozenset({"node-add", "node-remove", "key-rotate"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    config: Path = Path("/etc/hactl/hactl.toml")
    stable: Path = Path("/var/lib/hactl")
    boot: Path = Path("/run/hactl")

    @property
    def api(self) -> Path:
        return self.boot / "hactl.sock"

    @property
    def nodewatch(self) -> Path:
        return self.boot / "nodewatch.sock"


class GateKeeper:
    """The interpreter's gate, kept by nodewatch: it renews the address while this node's lease runs."""

    def __init__(self, nodewatch: NodeWatchClient, wait_s: float) -> None:
        self._nodewatch = nodewatch
        self._wait_s = wait_s
        self._changed = asyncio.Event()

    def note(self) -> None:
        """The view changed: whoever waits looks again."""
        self._changed.set()

    async def open(self, volume: str, gate: tuple[int, bytes, bytes]) -> None:
        self._nodewatch.gate(volume, *gate)
        await self._until(volume, "open")

    async def shut(self, volume: str) -> None:
        self._nodewatch.ungate(volume)
        await self._until(volume, "")

    def doubt(self, volume: str) -> None:
        self._nodewatch.ungate(volume)

    def _seen(self, volume: str) -> str:
        view = self._nodewatch.view
        return view.gates.get(volume, "") if view is not None else ""

    async def _until(self, volume: str, wanted: str) -> None:
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while (seen := self._seen(volume)) != wanted:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise HaError(f"nodewatch says that the gate of {volume} is {seen or 'gone'!r}, not {wanted!r}")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)


def _exerciser(daemon: Daemon) -> Exerciser | None:
    """Raises HaError for a time zone that this host does not know."""
    config = daemon.config.cluster.exercise
    if config is None:
        return None
    try:
        zone = UTC if config.zone == "UTC" else ZoneInfo(config.zone)
    except (ZoneInfoNotFoundError, ValueError) as unknown:
        raise HaError(
            f"[exercise] zone {config.zone!r} is not known on this host; is the package tzdata installed?"
        ) from unknown
    return Exerciser(
        config=config,
        path=daemon.paths.stable / "exercise.json",
        local=lambda: datetime.fromtimestamp(daemon.clock.unix_ms() / 1000, zone),
        unix_ms=daemon.clock.unix_ms,
        read=_reads.read_path,
        paths=_reads.paths_of,
        move=daemon.move_for,
        history=lambda: daemon.records.history(200),
        log=daemon.journal.say,
    )


async def shut_orphans(gate: Gate, open_gates: Iterable[str], known: Container[str]) -> None:
    """Shut the gates that an earlier hactld left for volumes whose disk is not seen now. To be done BEFORE the first
    report: what it does not name counts as not held, and another node may then serve at once."""
    for volume in open_gates:
        if volume not in known:
            await gate.shut(volume)


class Daemon:
    """One hactld. `run` returns when told to stop."""

    def __init__(self, config: Config, paths: Paths, clock: Clock, log: Callable[[str], None]) -> None:
        self.config = config
        self.clock = clock
        self.paths = paths
        self.journal = Journal(log, clock.unix_ms)
        self.records = Records(paths.stable, paths.boot)
        self.members = Members(me=config.me, overdue_ms=config.cluster.silence_ms)
        self.nodewatch = NodeWatchClient()
        self.fencer = Fencer(
            config=config.cluster.fencing,
            reset_after_ms=config.timing.reset_after_ms if config.cluster.watchdog_fences else None,
            switch=_power.switch_off,
            switch_on=_power.switch_on,
            now_ms=clock.now_ms,
            log=self.journal.say,
            changed=self._changed,
        )
        self.leader = Leader(
            bar=self.nodewatch.bar,
            lift=self.nodewatch.lift,
            tell=self._tell_assign,
            log=self.journal.say,
            fencer=self.fencer,
        )
        self.gate = GateKeeper(self.nodewatch, wait_s=config.timing.lease_ms / 1000 * 2)
        self.volumes = VolumeSet(
            config=config,
            records=self.records,
            gate=self.gate,
            clock=clock,
            log=self.journal.say,
            changed=self._changed,
            finished=self._finished,
        )
        self.changes = Changes(
            files=ConfigFile(config, paths.config, paths.stable),
            watch=self.nodewatch,
            send=self._send,
            taken=self._configured,
            log=self.journal.say,
        )
        self.witness = Witness(
            config=config,
            records=self.records,
            tell=self.nodewatch.witness,
            devices=lambda: self.volumes.devices,
            log=self.journal.say,
            changed=self._changed,
        )
        self.fence_watch = FenceWatch(self.volumes.running, self.journal.say)
        self.trials = Trials(
            me=config.me,
            argv=lambda: helper_argv(config.identity.tag, config.number),
            judgements=Judgements(paths.stable),
            send=self._send,
            log=self.journal.say,
            clock=clock.monotonic_s,
        )
        self.exerciser = _exerciser(self)
        self.boot = uuid.uuid4().hex[:12]
        self._assign: Assign | None = None
        self._assign_at_ms = 0
        self._resumed = (0, 0)
        self._seen_ms = 0
        self._lease = False
        self._gates: dict[str, str] = {}
        self._replies: dict[str, asyncio.Future[Reply]] = {}
        self._parcels = Parcels()
        self._sent = 0
        self._dirty = asyncio.Event()
        self._scan_now = asyncio.Event()
        self._stop = asyncio.Event()
        self.failed = ""
        self.standby = False

    @property
    def view(self) -> View:
        """What nodewatch says; there is one from `connect` on."""
        view = self.nodewatch.view
        if view is None:
            raise HaError("nodewatch has not said anything yet; see `systemctl status hactl-nodewatch`")
        return view

    # -- what comes in ------------------------------------------------------------------------------------------

    def on_view(self, view: View) -> None:
        self._seen_ms = self.clock.now_ms()
        self.gate.note()
        self._note_gates(view)
        # The lease decides, not whom this node hears: while the witness is claimed it hears no majority.
        lease = view.lease_left_ms > 0 and not view.barred
        if lease != self._lease:
            self._lease = lease
            self.journal.say(f"lease {'held' if lease else 'lost'}: quorum={view.quorum} barred={view.barred}")
            for runtime in self.volumes.running():
                runtime.feed(controller.LeaseChanged(held=lease))
        if view.leader != self.config.me:
            self.leader.step_down()
        else:
            self.fencer.observe(view.nodes, self._seen_ms)
        self.changes.seen(view)
        self._dirty.set()

    def _configured(self, config: Config) -> None:
        """Another node, or another key: nothing that is served depends on it."""
        self.fencer.config = config.cluster.fencing
        self.config = self.volumes.config = self.witness.config = config

    def _note_gates(self, view: View) -> None:
        """nodewatch opened a gate again by itself (a short lapse): neighbours and clients must hear of it."""
        opened = [name for name, state in view.gates.items() if state == "open" and self._gates.get(name) == "closed"]
        self._gates = dict(view.gates)
        for runtime in self.volumes.running():
            if runtime.name in opened and runtime.machine.phase in (Phase.SERVING, Phase.RECLAIMING):
                runtime.wake()

    def on_message(self, sender: str, body: Any) -> None:
        try:
            whole = self._parcels.take(sender, body)
            message = None if whole is None else messages.decode(whole)
        except messages.MessageError as wrong:
            self.journal.say(f"message from {sender} dropped: {wrong}")
            return
        if message is not None:
            self._handle(sender, message)

    def _handle(self, sender: str, message: Message) -> None:
        match message:
            case Report():
                node = self.view.nodes.get(sender)
                if node is not None and self.members.reported(sender, node.generation, message):
                    self._dirty.set()
            case Assign():
                self._take_word(sender, message)
            case Request():
                self._answer(sender, message)
            case Reply():
                waiting = self._replies.pop(message.ident, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case Rescan():
                self._scan_now.set()
            case messages.Offer() | messages.Known() | messages.Ask():
                self.changes.take(sender, message, self.view)
            case messages.Trial() | messages.Tried():
                self.trials.take(sender, message)
            case messages.Finished():
                self.records.append_foreign(message.takeover)

    def _take_word(self, sender: str, assign: Assign) -> None:
        """The leader's table. One of an older term is an old leader's: the new one builds on our not following it."""
        known = self._assign
        if assign.term < self.view.term:
            return
        if known is not None and (assign.term, assign.base) < (known.term, known.base):
            return
        if sender != self.config.me:
            self.leader.heard(assign)
        self._assign = assign
        self._dirty.set()  # a leader that began again waits for a report that says so
        self._follow(assign)

    def _follow(self, assign: Assign) -> None:
        for runtime in self.volumes.running():
            word = assign.volumes.get(runtime.name)
            if word is not None:
                runtime.told(word, word.node == self.config.me)

    def _changed(self) -> None:
        self._dirty.set()
        if self.config.cluster.watchdog_fences:
            self._say_in_hand()  # before a step that begins now: W5 of nodewatch/watchdog.py

    def _say_in_hand(self) -> None:
        held, lost = self.volumes.in_hand()
        if self.config.cluster.watchdog_fences:
            # Taken by an earlier life, and its disk is not seen now: perhaps mounted.
            held += len(self.records.held().keys() - self.volumes.seen.keys())
        self.nodewatch.beat(held=held, lost=lost)

    def _finished(self, takeover: Takeover) -> None:
        self.records.append(takeover)
        self.journal.say(
            f"takeover volume={takeover.volume} from={takeover.source or '-'} to={takeover.target} "
            f"epoch={takeover.epoch} verdict={takeover.verdict} cause={takeover.cause!r}"
        )
        self._send("*", messages.Finished(takeover=takeover.as_json()))

    # -- what goes out ------------------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        self._sent += 1
        try:
            parts = parcel.pack(messages.encode(message), ident=self._sent)
        except messages.MessageError as wrong:
            self.journal.say(f"{type(message).__name__.lower()} not sent: {wrong}")
            return
        for part in parts:
            self.nodewatch.send(to, part)

    def _tell_assign(self, assign: Assign) -> None:
        self._send("*", assign)
        self._handle(self.config.me, assign)

    def report(self) -> Report:
        term, word = self.view.term, self._assign
        base = word.base if word is not None and word.term == term else 0
        return Report(boot=self.boot, term=term, base=base, standby=self.standby, volumes=self.volumes.reports())

    def _base(self, term: int) -> int:
        """Where the orders of this hactld begin, if it leads the term."""
        resumed, base = self._resumed
        return base if term == resumed else 0

    def facts(self) -> Facts:
        view = self.view
        seen = self.members.facts(
            {name: node for name, node in view.nodes.items() if name not in self.config.voters},
            term=view.term,
            base=self._base(view.term),
            seen_ms=self._seen_ms,
            now_ms=self.clock.now_ms(),
            now_unix_ms=int(self.clock.unix_ms()),
        )
        return self.fencer.facts(seen)

    @property
    def fenced(self) -> dict[str, str]:
        """What the leader says of each barred node."""
        return dict(self._assign.fenced) if self._assign is not None and self.view.leader else {}

    def _forbid(self, volume: str, step: Step) -> str:
        """L6 of levels.py: where the disk refuses nobody, only who has a lease at this moment may begin to write.

        By this node's own reading of the label, not by reports: in a new term there may be none yet."""
        distrusted = volume in self.config.cluster.fencing.distrust
        risk = self.volumes.seen[volume].label.risk
        if step not in (Step.ACQUIRE, Step.MOUNT) or (levels.reservations_hold(risk) and not distrusted):
            return ""
        view, now_ms = self.view, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        left_ms = 0 if view.barred else view.made_ms + view.lease_left_ms - now_ms
        return "" if left_ms > 0 else "this node has no lease, and the storage of the volume would stop nobody"

    def view_age_ms(self) -> int:
        """How old the picture is: node watch gives one on each change and once a second."""
        return int(self.clock.now_ms()) - self._seen_ms

    def leads(self) -> bool:
        return self.view.leader == self.config.me

    # -- commands -----------------------------------------------------------------------------------------------

    async def command(self, verb: str, args: dict[str, str]) -> dict[str, str]:
        """Have the leader carry out a command, wherever it is. Raises RequestRefused, or HaError without leader."""
        leader = self.view.leader
        if not leader:
            raise HaError("there is no leader now, so nothing can be changed; see `hactl status`")
        request = Request(ident=uuid.uuid4().hex, verb=verb, args=args)
        if leader == self.config.me:
            return self._carry_out(request)
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[request.ident] = waiting
        self._send(leader, request)
        try:
            reply = await asyncio.wait_for(waiting, REQUEST_S)
        except TimeoutError:
            raise OutcomeUnknown(
                f"the leader {leader} did not answer; whether it acted is unknown: see `hactl status`"
            ) from None
        finally:
            self._replies.pop(request.ident, None)
        if reply.error:
            raise RequestRefused(reply.error)
        return dict(reply.result)

    def _answer(self, sender: str, request: Request) -> None:
        try:
            if not self.leads():
                raise RequestRefused(f"{self.config.me} is not the leader (any more); try again")
            reply = Reply(ident=request.ident, error="", result=self._carry_out(request))
        except RequestRefused as refused:
            reply = Reply(ident=request.ident, error=str(refused), result={})
        self._send(sender, reply)

    def _carry_out(self, request: Request) -> dict[str, str]:
        """This node leads. Raises RequestRefused."""
        facts = self.facts()
        if request.verb not in CHANGES:
            return self.leader.request(request, facts)
        holding = {
            name: [volume for volume, report in node.report.volumes.items() if report.holding]
            for name, node in facts.nodes.items()
            if node.report is not None
        }
        new_key = secrets.token_bytes(KEY_BYTES)
        return self.changes.request(request.verb, request.args, self.view, holding, new_key)

    def stand_by(self, wanted: bool) -> None:
        """Let the leader move this node's volumes away and give it none, until told otherwise or started anew."""
        self.standby = wanted
        self.journal.say(f"standby {'wanted: volumes are moved away' if wanted else 'ended'}")
        self._dirty.set()

    def rescan(self) -> None:
        """Look at the disks again, here and everywhere."""
        self._scan_now.set()
        self._send("*", Rescan())

    # -- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until SIGTERM. Raises HaError if nodewatch cannot be reached or the API's socket is taken."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self.nodewatch.on_view(self.on_view)
        self.nodewatch.on_message(self.on_message)
        self.nodewatch.on_witness(self.witness.on_order)
        self.nodewatch.on_lost(self._lost_nodewatch)
        await self.nodewatch.connect(str(self.paths.nodewatch))
        if self.leads():
            # An earlier hactld of this host led the term. A clock gives numbers above all of its own.
            self._resumed = (self.view.term, self.clock.now_ms() * 1000)
        await self._scan()  # before the first report: what is not reported counts as not held
        await shut_orphans(self.gate, list(self.view.gates), self.volumes.seen)
        verbs = Verbs(self)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._end)
            server = await verbs.api().listen(self.paths.api)
            stack.callback(server.close)
            verbs.serve_metrics()
            self.fence_watch.open()
            stack.callback(self.fence_watch.close)
            self.journal.say(f"hactld of {self.config.me} is up, cluster {self.config.cluster.name}")
            tasks = [loop.create_task(work()) for work in (self._beat, self._decide, self._tell, self._look)]
            tasks.append(loop.create_task(self._until_stopped()))
            if self.config.cluster.fencing.agents:
                tasks.append(loop.create_task(self._inspect_agents()))
            if self.exerciser is not None:
                tasks.append(loop.create_task(self._exercise(self.exerciser)))
            if self.witness.luns:
                tasks.append(loop.create_task(self.witness.watch()))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            for task in done:
                task.result()
        if self.failed:
            raise HaError(self.failed)

    def _lost_nodewatch(self) -> None:
        """Without nodewatch there is no lease and no leader. Start anew: what serves is adopted, or is shut by then."""
        self.journal.say("nodewatch hung up; starting anew")
        self.failed = "nodewatch hung up"
        self._stop.set()

    async def _until_stopped(self) -> None:
        await self._stop.wait()

    async def _end(self) -> None:
        await self.trials.close()
        self.fencer.close()
        self.volumes.close()
        self.witness.close()
        self.nodewatch.close()

    async def _beat(self) -> None:
        while True:
            self._say_in_hand()
            for runtime in self.volumes.running():
                runtime.tick()
            await asyncio.sleep(BEAT_S)

    async def _decide(self) -> None:
        """React to changes: report what changed here, place what changed anywhere. One pass for a burst of them."""
        last: Report | None = None
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            report = self.report()
            if report != last:
                last = report
                self.members.reported(self.config.me, 0, report)
                self._send("*", report)
            if self.leads():
                self.leader.decide(self.facts())

    async def _tell(self) -> None:
        """Say everything again once a second: a lost message costs time, never meaning."""
        while True:
            await asyncio.sleep(TELL_S)
            self._send("*", self.report())
            if self.leads():
                self.leader.decide(self.facts(), tell_anyway=True)
                self._lift_voters()
            self.changes.tend(self.view)
            await self.volumes.tend()

    def _lift_voters(self) -> None:
        """A node that only votes reports nothing, and has nothing to give up: it is let in as soon as it is heard."""
        for name in self.config.voters:
            node = self.view.nodes.get(name)
            if node is not None and node.barred and node.state == "alive":
                self.nodewatch.lift(name)

    async def _look(self) -> None:
        """Find volumes that came or changed: now and then, and at once when somebody says so."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._scan_now.wait(), SCAN_S)
            self._scan_now.clear()
            await self._scan()

    async def _inspect_agents(self) -> None:
        while True:
            await self.fencer.inspect(_power.unfit)
            await asyncio.sleep(INSPECT_S)

    async def _exercise(self, exerciser: Exerciser) -> None:
        exerciser.load()
        reading: asyncio.Task[None] | None = None
        while True:
            await asyncio.sleep(EXERCISE_S)
            exerciser.standing_by = self.volumes.standing_by()
            if reading is None or reading.done():
                reading = asyncio.get_running_loop().create_task(exerciser.read_due())
            if self.leads():
                exerciser.lead(self.facts(), self.leader.plan)
            else:
                exerciser.step_down()

    def move_for(self, volume: str, cause: str) -> str:
        """This node leads: move the volume to the best other node. Which it is. Raises RequestRefused."""
        request = Request(ident=uuid.uuid4().hex, verb="move", args={"volume": volume, "cause": cause})
        return self.leader.request(request, self.facts())["target"]

    async def _scan(self) -> None:
        for runtime in await self.volumes.scan():
            runtime.forbid = self._forbid
            runtime.feed(controller.LeaseChanged(held=self._lease))
            known = self._assign
            if known is not None and known.term >= self.view.term and runtime.name in known.volumes:
                self._follow(known)
        self._dirty.set()


def main() -> None:
    """`python -m hactl.daemon --config FILE`: exit code 2 for a configuration that is refused, `NOT_NEEDED` on a node
    that only votes."""
    parser = argparse.ArgumentParser(prog="hactld", description="hactl's recovery controller")
    parser.add_argument("--config", type=Path, default=Path("/etc/hactl/hactl.toml"))
    parser.add_argument("--stable", type=Path, default=Path("/var/lib/hactl"))
    parser.add_argument("--boot", type=Path, default=Path("/run/hactl"))
    options = parser.parse_args()
    paths = Paths(config=options.config, stable=options.stable, boot=options.boot)
    clock = Clock(monotonic_s=time.monotonic, unix_ms=lambda: time.time() * 1000, pause_s=time.sleep)
    try:
        config = load(paths.config, hostname=os.uname().nodename)
    except HaError as wrong:
        print(f"hactld: {wrong}", file=sys.stderr)
        raise SystemExit(2) from wrong
    if config.me in config.voters:
        print(f"hactld: {config.me} only votes (votes_only): it needs hactl-nodewatch alone", file=sys.stderr)
        raise SystemExit(NOT_NEEDED)
    try:
        asyncio.run(Daemon(config, paths, clock, log=lambda line: print(line, flush=True)).run())
    except (HaError, NodeWatchUnreachable) as failed:
        print(f"hactld: {failed}", file=sys.stderr)
        raise SystemExit(1) from failed


if __name__ == "__main__":
    main()
