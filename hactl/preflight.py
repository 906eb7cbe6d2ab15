"""`hactl preflight` over all nodes: begins a session on each, carries out the plan of each device, tells the report.

The plan (`fencing/preflight.py`) decides; `carry` brings one act to one node. The report's JSON form is documented in
docs/preflight.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fencing.asking import Answer, Say, Step, Wait
from fencing.nodefacts import NodeFacts, parse_facts
from fencing.preflight import Options, Plan, Preflight
from fencing.promises import Finding, Verdict, risk, untested, worst
from hactl.errors import HaError

ACT_S = 40.0
ACTS_S = {"read": 90.0, "flood-end": 120.0, "check": 90.0, "begin": 60.0, "end": 60.0, "leave": 90.0}
"""How long an answer may take: a SCSI command on a dying path takes half a minute, and a node may be busy."""

Carry = Callable[[str, str, str, Mapping[str, str], float], Mapping[str, Any]]
"""(node, act, wwid, args, timeout in seconds) -> the node's answer. HaError: there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflighted:
    """One device, judged."""

    device: str
    wwid: str
    findings: tuple[Finding, ...]
    paths: tuple[Mapping[str, Any], ...]
    left: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        return worst(self.findings)

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "wwid": self.wwid,
            "verdict": self.verdict.value,
            "risk": risk(self.findings),
            "untested": untested(self.findings),
            "paths": [dict(path) for path in self.paths],
            "promises": [
                {
                    "promise": each.promise.value,
                    "says": each.promise.words.promise,
                    "verdict": each.verdict.value,
                    "found": list(each.found),
                    "means": each.means,
                    "to_do": each.to_do,
                }
                for each in self.findings
            ],
            "left": list(self.left),
        }


@dataclass(slots=True)
class Run:
    """One preflight: `devices` by WWID -> how the administrator named it, `nodes` and `silent` of the cluster."""

    carry: Carry
    tag: int
    numbers: Mapping[str, int]
    options: Options
    say: Callable[[str], None]
    sleep: Callable[[float], None]
    now_s: Callable[[], float]
    silent: dict[str, str] = field(default_factory=dict)
    _begun: list[str] = field(default_factory=list)

    def all(self, devices: Mapping[str, str], nodes: Sequence[str]) -> list[Preflighted]:
        """Every device in turn. The sessions are ended whatever happens, which takes back what they did."""
        try:
            facts = self._begin(devices, nodes)
            return [self._one(wwid, device, facts) for wwid, device in devices.items()]
        finally:
            for answer in self._each([Step(node=node, wwid="", act="end", args={}) for node in self._begun]):
                if answer.error:
                    self.say(f"a session did not end in order: {answer.error}")

    def _begin(self, devices: Mapping[str, str], nodes: Sequence[str]) -> dict[str, NodeFacts]:
        facts: dict[str, NodeFacts] = {}
        answers = self._each([Step(node=node, wwid="", act="begin", args={}) for node in nodes])
        self._begun = [node for node, answer in zip(nodes, answers, strict=True) if not answer.error]
        self.silent |= {node: answer.error for node, answer in zip(nodes, answers, strict=True) if answer.error}
        wanted = {"wwids": " ".join(devices)}
        answers = self._each([Step(node=node, wwid="", act="facts", args=wanted) for node in self._begun])
        for node, answer in zip(self._begun, answers, strict=True):
            try:
                if answer.error:
                    raise ValueError(answer.error)
                facts[node] = parse_facts(dict(answer.result))
            except ValueError as wrong:
                self.silent[node] = str(wrong)
        return facts

    def _one(self, wwid: str, device: str, facts: Mapping[str, NodeFacts]) -> Preflighted:
        self.say(f"{device} ({wwid}) on {', '.join(facts) or 'no node'}")
        preflight = Preflight(
            wwid, nodes=facts, silent=self.silent, tag=self.tag, numbers=self.numbers, options=self.options
        )
        findings = self._play(preflight.plan())
        return Preflighted(
            device=device,
            wwid=wwid,
            findings=findings,
            paths=tuple(_paths(wwid, facts, preflight.speeds)),
            left=tuple(preflight.left),
        )

    def _play(self, plan: Plan) -> tuple[Finding, ...]:
        try:
            wanted = next(plan)
            while True:
                wanted = plan.send(self._carried_out(wanted))
        except StopIteration as done:
            findings: tuple[Finding, ...] = done.value
            return findings

    def _carried_out(self, wanted: tuple[Step, ...] | Wait | Say) -> list[Answer]:
        match wanted:
            case Say(text=text):
                self.say(text)
                return [Answer()]
            case Wait(seconds=seconds):
                self.sleep(seconds)
                return [Answer(result={"now_s": self.now_s()})]
            case steps:
                return self._each(steps)

    def _each(self, steps: Sequence[Step]) -> list[Answer]:
        if len(steps) == 1:
            return [self._carry(steps[0])]
        with ThreadPoolExecutor(max(1, len({step.node for step in steps}))) as pool:
            return list(pool.map(self._carry, steps))

    def _carry(self, step: Step) -> Answer:
        try:
            told = self.carry(step.node, step.act, step.wwid, step.args, ACTS_S.get(step.act, ACT_S))
        except HaError as lost:
            return Answer(error=f"{step.node}: {lost}", silent=True)
        if "ok" in told:
            return Answer(result=told["ok"])
        return Answer(error=str(told.get("error", "an answer that is not understood")))


def _paths(wwid: str, facts: Mapping[str, NodeFacts], speeds: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "node": node,
            "path": path.name,
            "disk": each.devices[wwid].head,
            "via": path.via,
            "state": path.state,
            "mb_per_s": round(speeds[f"{node} {path.name}"] / 1e6, 1) if f"{node} {path.name}" in speeds else None,
        }
        for node, each in facts.items()
        if wwid in each.devices
        for path in each.devices[wwid].paths
    ]
