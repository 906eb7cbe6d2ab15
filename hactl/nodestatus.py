"""What `hactl node show` tells: everything that the verdict on one node rests on, as data. Pure.

The form is documented in docs/administration.md. Hearsay (`reachable_from`, `probe.told_by`) stands apart from what
this node saw itself, because only the latter counts for leases, votes and bars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nodewatch.view import NodeView, View


def node_status(
    view: View,
    name: str,
    *,
    number: int,
    seen_ms_ago: int,
    reasons: list[str],
    phases: Mapping[str, str],
    votes_only: bool = False,
) -> dict[str, Any]:
    """One node as `view` shows it. `reasons`: why it could take nothing over; `phases`: of its volumes, by name."""
    node = view.nodes[name]
    own = view.nodes[view.me].links
    links = [{"link": place + 1, **asdict(link)} for place, link in enumerate(node.links)]
    for each, mine in zip(links, own, strict=False):
        each["from"] = mine.address
    return {
        "schema": 1,
        "name": name,
        "number": number,
        "seen_from": view.me,
        "seen_ms_ago": seen_ms_ago,
        "state": node.state,
        "why": node.why,
        "generation": node.generation,
        "daemon": node.daemon,
        "heard_ms_ago": node.heard_ms_ago,
        "rtt_ms": node.rtt_ms,
        "links": links,
        "probe": None if node.probe is None else asdict(node.probe),
        "reachable_from": list(node.reachable_from),
        "bar": {
            "barred": node.barred,
            "confirmed": node.confirmed,
            "safe_in_ms": node.safe_in_ms,
            "promised_by": list(node.promised_by),
            "gave_up": node.gave_up,
            "seen_by_leader": view.role == "leader",
        },
        "votes_only": votes_only,
        "witness": _witness_of(view, name),
        "watchdog": view.watchdog if name == view.me else None,
        "ready": not reasons,
        "reasons": reasons,
        "volumes": dict(phases),
        "verdicts": verdicts(view, name, votes_only=votes_only),
    }


def verdicts(view: View, name: str, *, votes_only: bool = False) -> list[str]:
    """Each verdict in a sentence, with what it rests on."""
    node = view.nodes[name]
    return [
        f"{node.state}: {node.why}",
        "it only votes: it runs node watch alone, and is never given a volume" if votes_only else _daemon(node),
        *_probe(node),
        _bar(view, node),
        *_witness(view, name),
        *([_watchdog(view.watchdog)] if name == view.me else []),
    ]


def _witness_of(view: View, name: str) -> dict[str, Any] | None:
    """The node's part in the witness: does it use it, which LUNs did it claim last? None = no witness."""
    if not view.witness:
        return None
    luns = [lun["wwid"] for lun in view.witness["luns"] if lun["claimed_by"] == name]
    return {"uses": name in view.witness["used_by"], "claimed_last": luns}


def _witness(view: View, name: str) -> list[str]:
    part = _witness_of(view, name)
    if part is None:
        return []
    if part["uses"]:
        return ["it uses the witness: it claimed it when it heard half of the nodes, and counts its vote"]
    if name == view.me and view.witness["state"] == "lost":
        return ["it lost the witness, and serves nothing until it hears a majority of nodes"]
    return ["it does not use the witness"] if part["claimed_last"] else []


def link_states(view: View) -> dict[str, list[str]]:
    """The state of each link of each node."""
    return {name: [link.state for link in node.links] for name, node in view.nodes.items()}


def _watchdog(trouble: str | None) -> str:
    if trouble is None:
        return "watchdog off: none is configured in [watchdog] of hactl.toml"
    return f"watchdog not patted: {trouble}" if trouble else "watchdog armed and patted"


def _daemon(node: NodeView) -> str:
    meaning = {
        "ok": "it beats",
        "hung": "connected to its node watch, but it does not beat: the node serves nothing",
        "gone": "its process ended; what it served goes on for daemon_restart_ms, in case it comes back",
        "absent": "its process is away for too long, or never came: the node serves nothing",
    }[node.daemon]
    stale = "" if node.state == "alive" else ", when it was last heard"
    return f"hactld {node.daemon}: {meaning}{stale}"


def _probe(node: NodeView) -> list[str]:
    probe = node.probe
    if probe is None:
        return []
    text = f"probes: asked {probe.times} times, last {probe.asked_ms_ago} ms ago"
    if probe.through:
        told = [f"{name} heard it {ms} ms ago" for name, ms in probe.told_by.items()]
        text += f", and through {', '.join(probe.through)} ({'; '.join(told) or 'no news from there'})"
    return [f"{text}: {'it answered' if probe.answered else 'no answer'}"]


def _bar(view: View, node: NodeView) -> str:
    whose = "the cluster" if view.role == "leader" else "this node"
    if not node.barred:
        return f"not barred: {whose} acknowledges its heartbeats, so it may hold a lease"
    if view.role != "leader":
        return "barred: this node promised to acknowledge it no more; ask the leader whether a majority did"
    by = ", ".join(node.promised_by) or "nobody yet"
    if not node.confirmed:
        return f"barred, not yet by a majority (promised by {by}): it may still hold a lease"
    when = "its last lease has ended" if not node.safe_in_ms else f"its last lease ends within {node.safe_in_ms} ms"
    return f"barred by a majority (promised by {by}): {when}"
