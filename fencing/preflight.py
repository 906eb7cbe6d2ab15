"""The preflight of one device: which node does what in which order, and what the answers say of each promise. Pure.

`Preflight.plan` is a coroutine without I/O: it yields steps (those of one tuple may be done at the same time), a wait
or a line for the administrator, gets the answers back, and returns the findings. `trial.py` is what a node does for a
step, and what it refuses to do.

Theory. A promise is about what *another* node can do, so every act of one node is looked at from all of them, through
every path. A refusal proves something only if the same write passes when nobody stands against it, so that comes first.
What lands late can be told from what landed in time only by order: the old owner floods the scratch area with writes
until it is refused; the new one overwrites the area the moment its preempt-and-abort returned; whatever is not its own
stamp when the old owner's last write has ended, landed late. A stage whose preparation fails proves nothing: its
promise is then "not tested". Each stage begins with a device that nobody has registered with.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from fencing.asking import NEVER_REFUSED, Answer, Asking, Nexus, Part, Say, Unprepared, Yielded
from fencing.nodefacts import NodeFacts, judge_names, judge_same
from fencing.promises import Finding, Promise, promise_of
from fencing.stamp import BLANK
from fencing.verdict import ABSENT_NODE

FLOOD_WRITES_MIN = 32
"""So many writes of the old owner must have been acknowledged before it is fenced: the rest is in flight."""
FLOOD_POLLS = 40
POLL_S = 0.1
FLOOD_END_S = 20
RESTART_POLL_S = 1.0
RESTART_STEADY = 3
"""So many polls in a row must be answered on all paths: one that just came back may fail once more (seen on iSCSI)."""
FREE_IT = "mend or free the device, or try another LUN of the same storage, which stands for it"
ASK_ALL = "start hactld on every node, and run the preflight again"
SHOW_IT = "make the LUN visible to the other nodes, and run the preflight again"
RESTART = "run it with --restart-target at a time when the target may be restarted"
READ_ONLY = "asked to change nothing"
CHANGING = (
    Promise.OPERATIONS,
    Promise.ROOM,
    Promise.CONFLICT,
    Promise.FENCE,
    Promise.LATE_WRITES,
    Promise.PERSISTENCE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`rounds` of the late-write trial for each pair of nodes; `read_mib` for each path; `restart_s`: how long to
    wait for a restart of the target, 0 = none is asked for; `read_only`: no act that changes anything."""

    rounds: int = 3
    read_mib: int = 64
    restart_s: int = 0
    read_only: bool = False


Plan = Generator[Yielded, list[Answer], tuple[Finding, ...]]


class Preflight(Asking):
    """One device. `speeds` (bytes per second, by nexus) and `left` (what could not be taken back) are filled by the
    plan."""

    def __init__(
        self,
        wwid: str,
        *,
        nodes: Mapping[str, NodeFacts],
        silent: Mapping[str, str],
        tag: int,
        numbers: Mapping[str, int],
        options: Options,
    ) -> None:
        """`silent`: nodes that did not tell their facts, and why."""
        nexuses = [
            Nexus(node=node, path=path.name)
            for node, each in nodes.items()
            if wwid in each.devices
            for path in each.devices[wwid].paths
        ]
        super().__init__(wwid, nexuses, tag=tag, numbers=numbers)
        self.speeds: dict[str, float] = {}
        self.left: list[str] = []
        self._facts = nodes
        self._silent = silent
        self._options = options

    def plan(self) -> Plan:
        judge_same(self.wwid, self._facts, self.evidence)
        judge_names(self._facts, self.evidence)
        for node, why in self._silent.items():
            for promise in Promise:
                self.evidence.skipped(promise, f"{node} was not asked: {why}", ASK_ALL)
        if not self._nexuses:
            return self.evidence.findings()
        hindrance = READ_ONLY if self._options.read_only else (yield from self._claim())
        if not hindrance:
            # an interrupted preflight may have left keys, and the probe takes none to be there
            yield from self._stage(Promise.CAPABILITIES, self._fresh())
        yield from self._stage(Promise.CAPABILITIES, self._capabilities())
        yield from self._stage(Promise.PATHS, self._reads())
        if hindrance:
            to_do = "run it without --read-only" if self._options.read_only else FREE_IT
            for promise in CHANGING:
                self.evidence.skipped(promise, hindrance, to_do)
            return self.evidence.findings()
        yield from self._changing()
        return self.evidence.findings()

    def _changing(self) -> Part:
        yield from self._stage(Promise.PATHS, self._writes_pass())
        yield from self._stage(Promise.OPERATIONS, self._operations())
        yield from self._stage(Promise.ROOM, self._room())
        if len(self._nodes) > 1:
            yield from self._stage(Promise.CONFLICT, self._conflict())
            yield from self._stage(Promise.FENCE, self._fence())
            yield from self._stage(Promise.LATE_WRITES, self._late_writes())
        else:
            for promise in (Promise.CONFLICT, Promise.FENCE, Promise.LATE_WRITES):
                self.evidence.skipped(promise, "takes two nodes that see the device", SHOW_IT)
        if self._options.restart_s:
            yield from self._stage(Promise.PERSISTENCE, self._persistence())
        else:
            self.evidence.skipped(Promise.PERSISTENCE, "no restart of the target was asked for", RESTART)
        yield from self._tidy()

    def _stage(self, promise: Promise, part: Part) -> Part:
        yield Say(text=f"{self.wwid}: trying {promise.value}")
        try:
            yield from part
        except Unprepared as why:
            self.evidence.skipped(promise, str(why))
        except (KeyError, TypeError, ValueError, IndexError) as wrong:
            self.evidence.skipped(promise, f"a node's answer is not understood ({wrong!r})")

    # -- without changing anything ------------------------------------------------------------------------------

    def _capabilities(self) -> Part:
        promise = Promise.CAPABILITIES
        for nexus in self._nexuses:
            found = yield from self._ask(nexus, "capabilities")
            if found.error:
                self.evidence.bad(promise, f"{nexus}: {found.error}")
                continue
            fit, persists = found.result["fit"], found.result["persists"]
            told = f"{nexus}: {'knows' if fit else 'does not know'} the type Write Exclusive - Registrants Only"
            self.evidence.note(promise, fit, told)
            said = "says that it keeps" if persists else "says that it does not keep"
            told = f"{nexus}: {said} registrations through a power loss (PTPL)"
            self.evidence.note(Promise.PERSISTENCE, persists, told)
            probe = yield from self._ask(nexus, "probe")
            ok = not probe.error and probe.result["ok"]
            what = probe.error or ("it refuses a wrong key, as it should" if ok else probe.result["detail"])
            self.evidence.note(promise, ok, f"{nexus}: a reservation command reaches the device: {what}")

    def _reads(self) -> Part:
        for index in range(max(len(self._paths(node)) for node in self._nodes)):
            batch = [self._paths(node)[index] for node in self._nodes if index < len(self._paths(node))]
            args = {"mib": str(self._options.read_mib)}
            answers = yield tuple(self._step(nexus, "read", args) for nexus in batch)
            for nexus, answer in zip(batch, answers, strict=True):
                self._heard(answer)
                error = answer.error or answer.result["error"]
                if error:
                    self.evidence.bad(Promise.PATHS, f"{nexus}: {error}")
                    continue
                speed = answer.result["bytes"] / max(answer.result["seconds"], 1e-6)
                self.speeds[str(nexus)] = speed
                told = f"{nexus}: {answer.result['bytes'] >> 20} MiB, {speed / 1e6:.1f} MB/s"
                self.evidence.good(Promise.PATHS, told)

    def _claim(self) -> Generator[Yielded, list[Answer], str]:
        """Why nothing may be changed; "" if every node finds the device unused."""
        first = [self._paths(node)[0] for node in self._nodes]
        answers = yield tuple(self._step(nexus, "claim") for nexus in first)
        told = list(zip(first, answers, strict=True))
        errors = [f"{nexus.node}: {answer.error}" for nexus, answer in told if answer.error]
        whys = [
            f"{nexus.node}: {answer.result.get('why', 'an answer that is not understood')}"
            for nexus, answer in told
            if not answer.error and answer.result.get("why") != ""
        ]
        if errors:
            return f"whether the device is free is not known ({'; '.join(errors + whys)})"
        return f"the device is not free to be tried ({'; '.join(whys)})" if whys else ""

    # -- trials -------------------------------------------------------------------------------------------------

    def _writes_pass(self) -> Part:
        """Without it a refusal later would prove nothing."""
        yield from self._fresh()
        for nexus in self._nexuses:
            said = yield from self._write(nexus)
            told = f"{nexus}: a write while nobody is registered: {said or 'done'}"
            self.evidence.note(Promise.PATHS, said == "", told)

    def _operations(self) -> Part:
        yield from self._fresh()
        for nexus in self._nexuses:
            answer = yield from self._ask(nexus, "check")
            if answer.error:
                self.evidence.bad(Promise.OPERATIONS, f"{nexus}: {answer.error}")
                continue
            for name, ok, detail in answer.result["checks"]:
                if not ok:
                    self.evidence.bad(promise_of(name), f"{nexus}: {name}: {detail}")
            yield from self._fresh()
        for node in self._nodes:
            yield from self._fresh()
            yield from self._seen_by_all(node)

    def _seen_by_all(self, node: str) -> Part:
        """Each operation by one node, each looked at through every nexus."""
        one, mine = self._paths(node)[0], self._key(node)
        other = self._key_of(ABSENT_NODE if self._numbers[node] != ABSENT_NODE else ABSENT_NODE - 1)
        acts: tuple[tuple[str, dict[str, str], Sequence[str], Sequence[str]], ...] = (
            ("register", {}, [mine], []),
            ("reserve", {}, [mine], [mine]),
            ("rekey", {"old": mine, "new": other}, [other], [other]),
            ("rekey", {"old": other, "new": mine}, [mine], [mine]),
            ("release", {}, [mine], []),
            ("reserve", {}, [mine], [mine]),
            ("clear", {}, [], []),
            ("register", {}, [mine], []),
            ("unregister", {}, [], []),
        )
        for act, args, keys, holders in acts:
            done = yield from self._ask(one, act, args)
            if done.error or not done.result["ok"]:
                self.evidence.bad(Promise.OPERATIONS, f"{one}: {act}: {done.error or done.result['said']}")
                return
            if not (yield from self._all_read(Promise.OPERATIONS, f"{act} by {one}", keys, holders)):
                return
        self.evidence.good(
            Promise.OPERATIONS, f"{one}: register, reserve, change of key, release, clear: all nodes read the same"
        )

    def _room(self) -> Part:
        yield from self._fresh()
        for nexus in self._nexuses:
            done = yield from self._ask(nexus, "register")
            if done.error or not done.result["ok"]:
                self.evidence.bad(
                    Promise.ROOM, f"{nexus} could not be registered beside others: {done.error or done.result['said']}"
                )
                return
        expected = [self._key(nexus.node) for nexus in self._nexuses]
        if (yield from self._all_read(Promise.ROOM, "registering all", expected, [])):
            count, nodes = len(self._nexuses), len(self._nodes)
            self.evidence.good(Promise.ROOM, f"{count} registrants of {nodes} nodes at the same time")

    def _conflict(self) -> Part:
        for owner in self._nodes:
            yield from self._fresh()
            yield from self._own(owner)
            for nexus in self._nexuses:
                yield from self._judge_write(Promise.CONFLICT, nexus, allowed=nexus.node == owner, owner=owner)

    def _fence(self) -> Part:
        for turn in range(max(2, len(self._nodes))):
            owner, taker = (self._nodes[(turn + each) % len(self._nodes)] for each in (0, 1))
            abort = "yes" if turn % 2 == 0 else "no"
            yield from self._fresh()
            yield from self._own(owner)
            for bystander in self._nodes:
                if bystander != owner:
                    yield from self._register(bystander)
            how = f"{taker} preempts {owner}{' and aborts' if abort == 'yes' else ''}"
            for victim in [owner, *[node for node in self._nodes if node not in (owner, taker)]]:
                args = {"victim": self._key(victim), "abort": abort}
                done = yield from self._ask(self._paths(taker)[0], "preempt", args)
                if done.error or not done.result["ok"]:
                    self.evidence.bad(Promise.FENCE, f"{how}: {done.error or done.result['said']}")
                    return
            alone = [self._key(taker)] * len(self._paths(taker))
            if not (yield from self._all_read(Promise.FENCE, how, alone, [self._key(taker)])):
                return
            for nexus in self._nexuses:
                yield from self._judge_write(Promise.FENCE, nexus, allowed=nexus.node == taker, owner=taker)
            if not (yield from self._holder_preempts(taker, owner, abort)):
                return

    def _holder_preempts(self, holder: str, other: str, abort: str) -> Generator[Yielded, list[Answer], bool]:
        """The holder preempts one who is only registered, as an acquisition does with keys found beside its own.
        nvmet of Linux 6.18 reports success and does nothing."""
        yield from self._register(other)
        args = {"victim": self._key(other), "abort": abort}
        done = yield from self._ask(self._paths(holder)[0], "preempt", args)
        how = f"{holder}, which holds the device, preempts {other}, which is registered beside it"
        if done.error or not done.result["ok"]:
            return self.evidence.note(Promise.FENCE, False, f"{how}: {done.error or done.result['said']}")
        alone = [self._key(holder)] * len(self._paths(holder))
        if not (yield from self._all_read(Promise.FENCE, how, alone, [self._key(holder)])):
            return False
        for nexus in self._paths(other):
            yield from self._judge_write(Promise.FENCE, nexus, allowed=False, owner=holder)
        return True

    def _late_writes(self) -> Part:
        promise, total, sectors = Promise.LATE_WRITES, 0, 0
        takeovers = 0
        for turn in range(len(self._nodes) * self._options.rounds):
            owner, taker = (self._nodes[(turn + each) % len(self._nodes)] for each in (0, 1))
            yield from self._fresh()
            yield from self._own(owner)
            yield from self._register(taker)
            counted = yield from self._flood(owner)
            number, one = self._next_round(), self._paths(taker)[0]
            done = yield from self._ask(one, "overrun", {"victim": self._key(owner), "round": str(number)})
            ended = yield from self._ask(self._paths(owner)[0], "flood-end", {"wait_s": str(FLOOD_END_S)})
            after = yield from self._ask(one, "stamps")
            if done.error or not done.result["ok"] or done.result["filled"]:
                said = done.error or done.result["filled"] or done.result["said"]
                raise Unprepared(f"{taker} could not take over from {owner} while it wrote: {said}")
            if ended.error or after.error:
                raise Unprepared(f"how the writes of {owner} ended is not known: {ended.error or after.error}")
            if NEVER_REFUSED in ended.result["ended"]:
                self.evidence.bad(Promise.FENCE, f"{owner} went on writing for {FLOOD_END_S} s after {taker} fenced it")
            mine = [self._numbers[taker], number]
            late = sum(count for node, round, count in after.result["stamps"] if [node, round] != mine)
            total, sectors, takeovers = total + counted, sectors + late, takeovers + 1
            if late:
                told = f"{late} sectors written by {owner} landed after {taker} had fenced it and overwritten them"
                self.evidence.bad(promise, told)
        if not sectors:
            told = f"{takeovers} takeovers from a node that was writing ({total} writes before them): none landed later"
            self.evidence.good(promise, told)

    def _flood(self, owner: str) -> Generator[Yielded, list[Answer], int]:
        one = self._paths(owner)[0]
        began = yield from self._ask(one, "flood", {"round": str(self._next_round())})
        if began.error:
            raise Unprepared(f"{owner} could not write: {began.error}")
        count = 0
        for _ in range(FLOOD_POLLS):
            told = yield from self._ask(one, "flooded")
            count = int(told.result["count"])
            if count >= FLOOD_WRITES_MIN:
                return count
            yield from self._wait(POLL_S)
        yield from self._ask(one, "flood-end", {"wait_s": "0"})
        raise Unprepared(f"{owner} got only {count} writes through in {FLOOD_POLLS * POLL_S:.0f} s")

    def _persistence(self) -> Part:
        owner = self._nodes[0]
        yield from self._fresh()
        yield from self._own(owner)
        [before] = yield from self._states([self._paths(owner)[0]])
        limit = self._options.restart_s
        yield Say(text=f"{self.wwid}: restart the target now; waiting up to {limit} s until it is back")
        generation, gone, steady = before.result["state"]["generation"], False, 0
        began = yield from self._wait(0)
        while True:
            answers = yield tuple(self._step(nexus, "state") for nexus in self._nexuses)
            away = [answer for answer in answers if answer.error]
            back = [answer.result["state"]["generation"] for answer in answers if not answer.error]
            gone = gone or bool(away) or any(each < generation for each in back)
            steady = steady + 1 if gone and not away else 0
            if steady == RESTART_STEADY:
                break
            if (yield from self._wait(RESTART_POLL_S)) - began >= limit:
                why = "did not come back on all paths" if gone else "was not seen to restart"
                raise Unprepared(f"the target {why} within {limit} s")
        yield Say(text=f"{self.wwid}: the target is back")
        keys = [self._key(owner)] * len(self._paths(owner))
        if not self._judge_read(Promise.PERSISTENCE, "after the restart", keys, [self._key(owner)], answers):
            return
        for nexus in self._nexuses:
            yield from self._judge_write(Promise.PERSISTENCE, nexus, allowed=nexus.node == owner, owner=owner)

    def _tidy(self) -> Part:
        """Nobody registered, the scratch area zeros again, the nodes' sessions at their end."""
        # a flood that is still on would go on as soon as nobody is registered
        ended = yield tuple(self._step(self._paths(node)[0], "flood-end", {"wait_s": "0"}) for node in self._nodes)
        self.left += [answer.error for answer in ended if answer.error]
        try:
            yield from self._fresh()
            one = self._nexuses[0]
            blank = yield from self._ask(one, "blank")
            after = yield from self._ask(one, "stamps")
            if blank.error or after.error or any((node, n) != BLANK for node, n, _ in after.result["stamps"]):
                self.left.append(f"stamps in the scratch area ({blank.error or after.error or blank.result})")
        except (Unprepared, KeyError, TypeError, ValueError) as why:
            self.left.append(str(why))
        for node in self._nodes:
            answer = (yield (self._step(self._paths(node)[0], "leave"),))[0]
            self.left += [answer.error] if answer.error else list(answer.result.get("left", []))
