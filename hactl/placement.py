"""Which node gets the leader's word for which volume. Pure; runs on the leader only.

Theory. The table starts empty in every term and is rebuilt from what the nodes report, so a new leader needs no
log. A node is *cleared* for a volume when it cannot serve it: it reports that it holds nothing, or it is barred by
a majority (its lease then has a known end, which the taker waits out). A volume is given to a node only when every
other configured node is cleared, or barred with a known wait. The word is no right to write: should two leaders
ever give it twice, the disk lets one of them through (`fencing/`).

What must be known of a barred node beyond the bar before its volume goes on, `levels.py` says.

A planned move is two words: nobody (the holder leaves), then the target. In the same way a volume leaves a node that is
on standby, once another is ready for it. A node that failed is not asked again for the same volume until the others
were tried and `RETRY_MS` passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hactl import levels
from hactl.levels import NO_PROOF, Level, Proof, Verdict
from hactl.messages import ORDER_NONE, Assign, Assignment, Order, Report, VolumeReport

RETRY_MS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One configured node as nodewatch and its own last report show it.

    `report` is None until the hactld of this boot of the node was heard. `barred`, `confirmed`, `safe_in_ms`: a
    majority promised not to renew its lease, which ends in so many milliseconds at the latest. `daemon` is what
    nodewatch there says of hactld: "ok", "hung", "gone" (it may come back) or "absent". `deaf`: it is heard, and says
    that it does not hear this node: a cut in one direction.
    """

    alive: bool
    barred: bool = False
    confirmed: bool = False
    safe_in_ms: int = 0
    daemon: str = "ok"
    deaf: bool = False
    report: Report | None = None
    heard_unix_ms: int = 0
    overdue_unix_ms: int = 0
    proof: Proof = NO_PROOF
    """Since it was barred (`fencer.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`base` as in `messages.Assign`; reports of an older one are left out. `levels`: of fencing, in their order.
    `distrust`: volumes whose storage does not hold reservations."""

    me: str
    term: int
    base: int = 0
    now_ms: int
    now_unix_ms: int
    nodes: Mapping[str, NodeFacts]
    levels: tuple[Level, ...] = (Level.RESERVATION,)
    distrust: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The leader's memory for one term; `count` numbers its orders, from `base` on. `tried` holds who failed a volume
    since it last served, and when. `power` is of the newest decision alone: nodes whose power is to be switched off.
    """

    term: int = 0
    base: int = 0
    begun_ms: int = 0
    count: int = 0
    table: Mapping[str, Assignment] = field(default_factory=dict)
    prefer: Mapping[str, str] = field(default_factory=dict)
    wanted: Mapping[str, str] = field(default_factory=dict)
    tried: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    kept_out: frozenset[str] = frozenset()
    power: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`bars` and `lifts` are for nodewatch; `blocked` says per volume, in words, why nobody serves it."""

    plan: Plan
    bars: tuple[str, ...] = ()
    lifts: tuple[str, ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)

    def assign(self) -> Assign:
        plan = self.plan
        return Assign(term=plan.term, base=plan.base, volumes=dict(plan.table), kept_out=tuple(sorted(plan.kept_out)))


def begin(term: int, facts: Facts, kept_out: frozenset[str]) -> Plan:
    """The plan of a new term: whoever holds a volume keeps it."""
    plan = Plan(term=term, base=facts.base, count=facts.base, begun_ms=facts.now_ms, kept_out=kept_out)
    for volume in volumes(facts):
        holder = _holder(volume, facts)
        if holder:
            plan = _put(plan, volume, holder, cause="kept by the new leader")
    return plan


def decide(plan: Plan, facts: Facts) -> Decision:
    """The next table. Called on every change of the facts and on a tick; the same facts give the same table."""
    if plan.term != facts.term:
        plan = begin(facts.term, facts, plan.kept_out)
    plan = replace(plan, power=frozenset()) if plan.power else plan
    blocked: dict[str, str] = {}
    for volume in volumes(facts):
        plan, why = _place(plan, volume, facts)
        if why:
            blocked[volume] = why
    return Decision(plan=plan, bars=_bars(plan, facts), lifts=_lifts(plan, facts), blocked=blocked)


def volumes(facts: Facts) -> list[str]:
    """Every volume that any node reports, in order of name."""
    return sorted({v for node in facts.nodes.values() if node.report for v in node.report.volumes})


def reports_of(volume: str, facts: Facts) -> dict[str, VolumeReport]:
    return {
        name: node.report.volumes[volume]
        for name, node in facts.nodes.items()
        if node.report is not None and volume in node.report.volumes
    }


def latest(volume: str, facts: Facts) -> VolumeReport:
    """The report that read the newest label. A tie goes to the node whose name sorts last: they agree then."""
    return max(sorted(reports_of(volume, facts).items()), key=lambda item: item[1].epoch)[1]


def candidates(plan: Plan, volume: str, facts: Facts) -> list[str]:
    """Who could take the volume now, best first: asked for, last owner, the volume's own list, then by name."""
    reports = reports_of(volume, facts)
    label = latest(volume, facts)
    listed = label.nodes or tuple(sorted(facts.nodes))

    def fit(name: str) -> bool:
        node, report = facts.nodes.get(name), reports.get(name)
        if node is None or report is None or node.report is None:
            return False
        usable = node.alive and not node.barred and node.daemon == "ok" and not node.report.standby
        return usable and report.ready and not report.holding and name not in plan.kept_out

    def rank(name: str) -> tuple[bool, bool, int]:
        return (name != plan.prefer.get(volume), name != label.owner, listed.index(name))

    return sorted((name for name in listed if fit(name)), key=rank)


def _holder(volume: str, facts: Facts) -> str:
    """Who holds it by its own report: of several, the one that followed the newest word."""
    holders = [(r.order, n) for n, r in reports_of(volume, facts).items() if r.holding]
    return max(holders)[1] if holders else ""


def _put(plan: Plan, volume: str, node: str, *, cause: str, **more: object) -> Plan:
    word = Assignment(order=Order(term=plan.term, number=plan.count + 1), node=node, cause=cause)
    word = replace(word, **more)  # type: ignore[arg-type]
    return replace(plan, count=plan.count + 1, table={**plan.table, volume: word})


def _place(plan: Plan, volume: str, facts: Facts) -> tuple[Plan, str]:
    plan = _note_failures(plan, volume, facts)
    word = plan.table.get(volume)
    wanted = plan.wanted.get(volume) or latest(volume, facts).wanted
    if wanted == "stopped":
        return _stop(plan, volume, facts), ""
    if word is not None and word.node and not _vacant(plan, volume, word, facts):
        if _on_standby(word.node, facts) and candidates(plan, volume, facts):
            return _put(plan, volume, "", cause=f"{word.node} is on standby", source=word.node), ""
        return _waited_enough(plan, volume, word, facts), ""
    holder = _holder(volume, facts)
    if (word is None or not word.node) and holder and not facts.nodes[holder].barred:
        if word is None:
            return _put(plan, volume, holder, cause="found serving"), ""
        return plan, f"waiting for {holder} to leave"
    return _give(plan, volume, facts)


def _on_standby(name: str, facts: Facts) -> bool:
    """It asks for its volumes to be moved away, and is there to let them go in order."""
    node = facts.nodes.get(name)
    return node is not None and node.alive and not node.barred and node.report is not None and node.report.standby


def _vacant(plan: Plan, volume: str, word: Assignment, facts: Facts) -> bool:
    """True when the node that has the word cannot be expected to serve."""
    node = facts.nodes.get(word.node)
    if node is None or (node.barred and node.confirmed):
        return True
    if node.alive and node.report is not None and volume not in node.report.volumes:
        return True  # it lost sight of the disk
    return word.node in plan.tried.get(volume, {}) and not _holds(word.node, volume, facts)


def _holds(name: str, volume: str, facts: Facts) -> bool:
    report = reports_of(volume, facts).get(name)
    return report is not None and report.holding


def _give(plan: Plan, volume: str, facts: Facts) -> tuple[Plan, str]:
    tried = plan.tried.get(volume, {})
    fit = candidates(plan, volume, facts)
    untried = [name for name in fit if name not in tried]
    choice = untried[0] if untried else ""
    if not choice and fit and facts.now_ms - max(tried[name] for name in fit) >= RETRY_MS:
        choice = fit[0]
        plan = replace(plan, tried={**plan.tried, volume: {}})
    uncleared = [n for n in sorted(facts.nodes) if n != choice and not _cleared(n, volume, facts)]
    if uncleared:
        return plan, f"not yet known that {', '.join(uncleared)} cannot serve it"
    verdicts = _fenced(plan, volume, choice, facts)
    plan = replace(plan, power=plan.power | {name for name, verdict in verdicts.items() if verdict.power})
    unproved = [f"{name}: {verdict.why}" for name, verdict in verdicts.items() if verdict.level is None]
    if unproved:
        return plan, f"it may still be written by {'; by '.join(unproved)}"
    if not choice:
        return plan, "no node is ready to take it" if not fit else "every ready node failed; trying again soon"
    before = plan.table.get(volume)
    source = before.node or before.source if before else latest(volume, facts).owner
    fenced = verdicts[source].level if source in verdicts else None
    more = {**_circumstances(before, source, facts), "fenced": str(fenced or "")}
    return _put(plan, volume, choice, **more), ""  # type: ignore[arg-type]


def reserves(volume: str, facts: Facts) -> bool:
    """Does the volume's storage hold reservations? Not if the configuration or its label say otherwise."""
    risks = (report.risk for report in reports_of(volume, facts).values())
    return volume not in facts.distrust and all(levels.reservations_hold(risk) for risk in risks)


def _fenced(plan: Plan, volume: str, choice: str, facts: Facts) -> dict[str, Verdict]:
    """What the levels say of each barred node that may have the volume mounted. One that reports as it should, and
    holds nothing, has not."""

    def clean(node: NodeFacts) -> bool:
        return node.alive and node.daemon == "ok" and node.report is not None

    suspects = {
        name: node
        for name, node in sorted(facts.nodes.items())
        if name != choice and node.barred and node.confirmed and not (clean(node) and not _holds(name, volume, facts))
    }
    holds, refused = reserves(volume, facts), bool(plan.tried.get(volume))
    return {
        name: levels.judge(facts.levels, node.proof, reserves=holds, refused=refused) for name, node in suspects.items()
    }


def _waited_enough(plan: Plan, volume: str, word: Assignment, facts: Facts) -> Plan:
    """A taker waits for leases that may still run. Once every barred node is known to have stopped, none does: the same
    word, without a wait."""
    if not word.wait_ms or _longest_wait(facts):
        return plan
    if not any(node.barred and node.proof.stopped_by for node in facts.nodes.values()):
        return plan
    return replace(plan, table={**plan.table, volume: replace(word, wait_ms=0)})


def _longest_wait(facts: Facts) -> int:
    """In ms: until the last lease that may still run has ended. A node that was stopped has none."""
    running = (node for node in facts.nodes.values() if node.barred and node.confirmed and not node.proof.stopped_by)
    return max((node.safe_in_ms for node in running), default=0)


def _cleared(name: str, volume: str, facts: Facts) -> bool:
    node = facts.nodes[name]
    if node.barred and node.confirmed:
        return True
    return node.alive and node.report is not None and not _holds(name, volume, facts)


def _circumstances(before: Assignment | None, source: str, facts: Facts) -> dict[str, object]:
    """Why, and for how long the taker waits: until the last lease that may still run has ended."""
    old = facts.nodes.get(source)
    barred = old is not None and old.barred
    cause = "nobody serves it"
    if old is not None and old.barred:
        cause = f"{source} hears nobody and is barred" if old.deaf else f"{source} is overdue and barred"
        if old.alive and old.overdue_unix_ms:
            cause = f"{source} was overdue, and is back without it"
    if before is not None and not before.node:
        cause = "started by an administrator" if before.stop else before.cause
    return {
        "cause": cause,
        "source": source,
        "wait_ms": _longest_wait(facts),
        "heard_unix_ms": old.heard_unix_ms if old and barred else 0,
        "overdue_unix_ms": old.overdue_unix_ms if old and barred else 0,
        "decided_unix_ms": facts.now_unix_ms,
        "leader": facts.me,
    }


def _note_failures(plan: Plan, volume: str, facts: Facts) -> Plan:
    """Remember who failed the present word; forget all of it once the volume is served."""
    word = plan.table.get(volume)
    if word is None or not word.node:
        return plan
    report = reports_of(volume, facts).get(word.node)
    if report is None:
        return plan
    tried = dict(plan.tried.get(volume, {}))
    prefer = plan.prefer
    if report.failed == word.order and report.failed != ORDER_NONE:
        tried.setdefault(word.node, facts.now_ms)
    elif report.phase == "serving" and report.order == word.order:
        tried = {}
        prefer = {v: node for v, node in prefer.items() if v != volume} if volume in prefer else prefer
    if tried == plan.tried.get(volume, {}) and prefer is plan.prefer:
        return plan  # nearly always: copying for each of many volumes would cost the square of their number
    return replace(plan, tried={**plan.tried, volume: tried}, prefer=prefer)


def _stop(plan: Plan, volume: str, facts: Facts) -> Plan:
    word = plan.table.get(volume)
    if word is not None and not word.node and word.stop:
        return plan
    return _put(plan, volume, "", cause="stopped by an administrator", stop=True)


def _bars(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """Nodes to bar by force: fenced by an administrator; heard, but with a daemon that serves or tells nothing; heard,
    but deaf, so that no word reaches them; or suspended for so long that they gave up by themselves (their disk does
    not answer).

    A node that never reported may hold anything. Without a daemon it gets `RETRY_MS` to start one before it is barred;
    a daemon that hangs was there, so there is nothing to wait for.
    """
    owners = {word.node for word in plan.table.values()}
    patient = facts.now_ms - plan.begun_ms < RETRY_MS

    def mute(name: str, node: NodeFacts) -> bool:
        if not node.alive or not (node.deaf or node.daemon in ("hung", "absent")):
            return False
        starting = patient and node.daemon == "absent" and node.report is None
        return node.deaf or name in owners or not starting

    return tuple(
        name
        for name, node in sorted(facts.nodes.items())
        if not node.barred and (name in plan.kept_out or mute(name, node) or _gave_up(plan, name, node))
    )


def _gave_up(plan: Plan, name: str, node: NodeFacts) -> bool:
    """Has the word for a volume, and says that it cannot serve it as long as its disk is silent."""
    reports = node.report.volumes if node.report else {}
    return any(
        word.node == name and volume in reports and reports[volume].phase == "suspended"
        and reports[volume].failed == word.order
        for volume, word in plan.table.items()
    )  # fmt: skip


def _lifts(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """Barred nodes that are back and gave up all that was given to others. Not one that would be barred again at once,
    because its disk is silent and nobody could take its volume."""

    def clean(name: str, node: NodeFacts) -> bool:
        if not (node.alive and node.barred and node.report is not None and node.daemon == "ok"):
            return False
        if _gave_up(plan, name, node):
            return False
        held = [v for v, report in node.report.volumes.items() if report.holding]
        return all(v in plan.table and plan.table[v].node == name for v in held)

    return tuple(n for n, node in sorted(facts.nodes.items()) if n not in plan.kept_out and clean(n, node))


def move(plan: Plan, volume: str, target: str, facts: Facts, *, cause: str = "planned move") -> Plan | str:
    """Begin a planned move to `target` ("" for the best other node). A text is the reason for a refusal."""
    word = plan.table.get(volume)
    if volume not in volumes(facts):
        return f"no node knows a volume {volume!r}; see `hactl volume list`"
    if word is None or not word.node:
        return f"volume {volume} is not being served; start it with `hactl volume start {volume}`"
    others = [name for name in candidates(plan, volume, facts) if name != word.node]
    target = target or (others[0] if others else "")
    if target == word.node:
        return f"volume {volume} is on {target} already"
    if target not in others:
        return f"{target or 'no other node'} is not ready to take {volume}; see `hactl status`"
    plan = replace(plan, prefer={**plan.prefer, volume: target})
    return _put(plan, volume, "", cause=cause, source=word.node)


def want(plan: Plan, volume: str, wanted: str, facts: Facts) -> Plan | str:
    """Note that an administrator wants the volume "started" or "stopped"."""
    if volume not in volumes(facts):
        return f"no node knows a volume {volume!r}; see `hactl volume list`"
    return replace(plan, wanted={**plan.wanted, volume: wanted}, tried={**plan.tried, volume: {}})


def keep_out(plan: Plan, node: str, out: bool, facts: Facts) -> Plan | str:
    """Fence a node until it is let in again, or let it in."""
    if node not in facts.nodes:
        return f"no node {node!r} in the configuration; there are {', '.join(sorted(facts.nodes))}"
    changed = plan.kept_out | {node} if out else plan.kept_out - {node}
    return replace(plan, kept_out=frozenset(changed))
