"""What `hactl status` tells, as data. Pure: made from the placement's facts, rendered elsewhere.

The form of `cluster_status` is relied on by other tools; it is documented in docs/administration.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hactl import placement
from hactl.messages import ORDER_NONE, VolumeReport
from hactl.placement import Facts, NodeFacts, Plan

_STATES = {
    "serving": "serving",
    "reclaiming": "reclaiming",
    "suspended": "suspended",
    "leaving": "leaving",
    "stuck": "stuck",
}


def cluster_status(
    *,
    cluster: str,
    leader: str,
    quorum: bool,
    facts: Facts,
    numbers: Mapping[str, int],
    plan: Plan | None,
    blocked: Mapping[str, str],
    problems: tuple[str, ...],
) -> dict[str, Any]:
    """One object for the whole cluster as this node sees it. `plan` and `blocked` are known on the leader only."""
    volumes = [_volume(name, facts, plan, blocked) for name in placement.volumes(facts)]
    nodes = [
        _node(name, numbers.get(name, 0), facts) for name in sorted(facts.nodes, key=lambda n: (numbers.get(n, 0), n))
    ]
    return {
        "schema": 1,
        "cluster": cluster,
        "me": facts.me,
        "leader": leader or None,
        "term": facts.term,
        "quorum": quorum,
        "nodes": nodes,
        "volumes": volumes,
        "problems": [*_wide(leader, quorum), *problems],
    }


def _wide(leader: str, quorum: bool) -> list[str]:
    if not quorum:
        return ["no quorum: this node hears no majority of the configured nodes, so it may serve nothing"]
    return [] if leader else ["no leader elected yet: nothing can be taken over until there is one"]


def _node(name: str, number: int, facts: Facts) -> dict[str, Any]:
    node = facts.nodes[name]
    reasons = node_reasons(node)
    state = "barred" if node.barred else "alive" if node.alive else "overdue"
    return {
        "name": name,
        "number": number,
        "state": state,
        "daemon": node.daemon,
        "ready": not reasons,
        "reasons": reasons,
    }


def node_reasons(node: NodeFacts) -> list[str]:
    """Why this node could not take a volume now, in words; empty when it could take all of them."""
    if not node.alive:
        return ["not heard"]
    reasons = []
    if node.barred:
        reasons.append("barred: a majority does not renew its lease until it gave up what it held")
    if node.daemon != "ok":
        reasons.append(f"its hactld is {node.daemon}; see `journalctl -u hactld` there")
    if node.report is None:
        return [*reasons, "its hactld has not reported yet"]
    if node.report.standby:
        reasons.append("on standby")
    for volume, report in sorted(node.report.volumes.items()):
        if not report.ready and not report.holding and report.wanted == "started":
            reasons.append(f"{volume}: {report.why or 'not ready'}")
    return reasons


def _server(volume: str, facts: Facts) -> tuple[str, VolumeReport | None]:
    """Who has the volume in hand: the holder that followed the newest word and is still heard."""
    held = [
        (report.order, name, report)
        for name, report in placement.reports_of(volume, facts).items()
        if report.holding and facts.nodes[name].alive and not facts.nodes[name].barred
    ]
    if not held:
        return "", None
    _, name, report = max(held, key=lambda each: each[:2])
    return name, report


def _volume(volume: str, facts: Facts, plan: Plan | None, blocked: Mapping[str, str]) -> dict[str, Any]:
    label = placement.latest(volume, facts)
    server, report = _server(volume, facts)
    wanted = label.wanted
    if plan is not None:
        wanted = plan.wanted.get(volume) or wanted
    state = _STATES.get(report.phase, "starting") if report else "stopped" if wanted == "stopped" else "down"
    fit = placement.candidates(plan or Plan(), volume, facts)
    problems = _problems(volume, facts, wanted, server, fit, blocked.get(volume, ""))
    return {
        "name": volume,
        "state": state,
        "server": server or None,
        "epoch": label.epoch,
        "key": f"0x{report.key:016x}" if report and report.key else None,
        "next": next((name for name in fit if name != server), None),
        "wanted": wanted,
        "address": label.address,
        "risk": label.risk,
        "owner": label.owner or None,
        "devices": {n: r.device for n, r in sorted(placement.reports_of(volume, facts).items()) if r.device},
        "phases": {n: r.phase for n, r in sorted(placement.reports_of(volume, facts).items())},
        "problems": problems,
    }


def _problems(volume: str, facts: Facts, wanted: str, server: str, fit: list[str], blocked: str) -> list[str]:
    problems = [blocked] if blocked else []
    risk = placement.latest(volume, facts).risk
    if risk:
        problems.append(f"its storage does not keep what it should ({risk}), which was accepted: docs/preflight.md")
    if wanted == "started" and not [name for name in fit if name != server]:
        problems.append("no other node could take it now")
    for name, report in sorted(placement.reports_of(volume, facts).items()):
        if not facts.nodes[name].alive:
            continue
        failed = wanted == "started" and not server and report.failed != ORDER_NONE
        if report.phase in ("stuck", "suspended") or (report.why and (failed or not report.ready)):
            problems.append(f"{name}: {report.why or report.phase}")
    return problems
