"""How a preflight asks: steps for nodes, answers back, and what every stage is made of. Pure.

A stage is a coroutine that yields what it wants done and gets the answers. See `preflight.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fencing.errors import CONFLICT
from fencing.model import OUR_TYPE, PROBE_EPOCH, Key, show_key
from fencing.promises import Evidence, Promise
from fencing.stamp import BLOCKS

NEVER_REFUSED = "never refused"
"""How a writer ended that had to be stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One act of `trial.py` on one node; `args` has its path."""

    node: str
    wwid: str
    act: str
    args: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Answered with one answer, whose result has `now_s`: seconds on any clock that only grows."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a step. `silent`: the node did not answer, or is not understood; else `error` is its device's,
    or a refusal of its own."""

    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    silent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Nexus:
    node: str
    path: str

    def __str__(self) -> str:
        return f"{self.node} {self.path}"


Yielded = tuple[Step, ...] | Wait | Say
Part = Generator[Yielded, list[Answer], Any]


class Unprepared(Exception):
    """What a stage needs before it can prove anything could not be had."""


class Asking:
    """The nexuses of one device, by node, and the acts on them. `evidence` collects what is seen."""

    def __init__(self, wwid: str, nexuses: Sequence[Nexus], *, tag: int, numbers: Mapping[str, int]) -> None:
        self.wwid = wwid
        self.evidence = Evidence()
        self._nexuses = list(nexuses)
        self._nodes = list(dict.fromkeys(nexus.node for nexus in nexuses))
        self._tag = tag
        self._numbers = numbers
        self._round = 0

    def _fresh(self) -> Part:
        """Nobody registered. Scratch keys of an interrupted preflight go, too; others end it, on the node itself."""
        one = self._nexuses[0]
        [state] = yield from self._states([one])
        if not state.error and not state.result["state"]["registrants"]:
            return
        yield from self._ask(one, "register")
        yield from self._ask(one, "clear")
        for nexus in self._nexuses:
            [state] = yield from self._states([nexus])
            if not state.error and self._key(nexus.node) in state.result["state"]["registrants"]:
                yield from self._ask(nexus, "unregister")
        [state] = yield from self._states([one])
        if state.error or state.result["state"]["registrants"]:
            left = state.error or state.result["state"]["text"]
            raise Unprepared(f"the device could not be cleared of earlier registrations: {left}")

    def _own(self, node: str) -> Part:
        yield from self._register(node)
        done = yield from self._ask(self._paths(node)[0], "reserve")
        if done.error or not done.result["ok"] or done.result["state"]["holders"] != [self._key(node)]:
            raise Unprepared(f"{node} could not reserve the device: {done.error or done.result['said']}")

    def _register(self, node: str) -> Part:
        for nexus in self._paths(node):
            done = yield from self._ask(nexus, "register")
            if done.error or not done.result["ok"] or self._key(node) not in done.result["state"]["registrants"]:
                raise Unprepared(f"{nexus} could not register: {done.error or done.result['said']}")

    def _all_read(
        self, promise: Promise, after: str, keys: Sequence[str], holders: Sequence[str]
    ) -> Generator[Yielded, list[Answer], bool]:
        """Every nexus reads these registrants (one key each), this holder, and with it our type."""
        return self._judge_read(promise, after, keys, holders, (yield from self._states(self._nexuses)))

    def _judge_read(
        self, promise: Promise, after: str, keys: Sequence[str], holders: Sequence[str], answers: Sequence[Answer]
    ) -> bool:
        """`answers`: what each nexus read."""
        kind = OUR_TYPE.value if holders else 0
        good = True
        for nexus, answer in zip(self._nexuses, answers, strict=True):
            if answer.error:
                good = self.evidence.note(promise, False, f"{nexus}, {after}: {answer.error}")
                continue
            state = answer.result["state"]
            seen = Counter(state["registrants"]), list(state["holders"]), state["type"]
            if seen != (Counter(keys), list(holders), kind):
                wanted = ", ".join(sorted(keys)) or "nobody"
                what = f"{nexus} reads, {after}: {state['text']}; expected: {wanted} registered"
                good = self.evidence.note(promise, False, what + (f", {holders[0]} holding" if holders else ""))
        return good

    def _judge_write(self, promise: Promise, nexus: Nexus, *, allowed: bool, owner: str) -> Part:
        """A write through that nexus: it passes, or is refused and does not land; reading always works."""
        said = yield from self._write(nexus)
        number = self._round
        area = yield from self._ask(nexus, "stamps")
        if area.error:
            self.evidence.bad(promise, f"{nexus} cannot read while {owner} owns the device: {area.error}")
            return
        landed = any([node, n] == [self._numbers[nexus.node], number] for node, n, _ in area.result["stamps"])
        if allowed:
            ok = said == "" and landed
            told = "the owner writes" if ok else f"the owner cannot write: {said or 'nothing landed'}"
            self.evidence.note(promise, ok, f"{nexus}: {told}")
        elif said == CONFLICT and not landed:
            self.evidence.good(promise, f"{nexus}: refused while {owner} owns the device")
        elif said and not landed:
            self.evidence.bad(promise, f"{nexus}: a write ended with {said!r} instead of a reservation conflict")
        else:
            what = f"ended with {said!r} and landed all the same" if said else "was accepted"
            self.evidence.bad(promise, f"{nexus}: a write {what} while {owner} owns the device")

    def _write(self, nexus: Nexus) -> Generator[Yielded, list[Answer], str]:
        """What a write of one block of this nexus' own said: "" = acknowledged."""
        block, number = self._nexuses.index(nexus) % BLOCKS, self._next_round()
        answer = yield from self._ask(nexus, "write", {"block": str(block), "round": str(number)})
        return answer.error or str(answer.result["said"])

    def _ask(
        self, nexus: Nexus, act: str, args: Mapping[str, str] | None = None
    ) -> Generator[Yielded, list[Answer], Answer]:
        answer = (yield (self._step(nexus, act, args),))[0]
        self._heard(answer)
        return answer

    def _states(self, nexuses: Sequence[Nexus]) -> Generator[Yielded, list[Answer], list[Answer]]:
        answers = yield tuple(self._step(nexus, "state") for nexus in nexuses)
        for answer in answers:
            self._heard(answer)
        return answers

    def _wait(self, seconds: float) -> Generator[Yielded, list[Answer], float]:
        answers = yield Wait(seconds=seconds)
        return float(answers[0].result["now_s"])

    def _heard(self, answer: Answer) -> None:
        if answer.silent:
            raise Unprepared(answer.error)

    def _step(self, nexus: Nexus, act: str, args: Mapping[str, str] | None = None) -> Step:
        return Step(node=nexus.node, wwid=self.wwid, act=act, args={"path": nexus.path, **(args or {})})

    def _next_round(self) -> int:
        self._round = self._round % 0xFFFE + 1
        return self._round

    def _paths(self, node: str) -> list[Nexus]:
        return [nexus for nexus in self._nexuses if nexus.node == node]

    def _key(self, node: str) -> str:
        return self._key_of(self._numbers[node])

    def _key_of(self, number: int) -> str:
        return show_key(Key(cluster_tag=self._tag, node=number, epoch=PROBE_EPOCH).value)
