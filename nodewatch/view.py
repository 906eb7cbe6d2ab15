"""What node watch tells its daemon: one picture of the cluster as this node sees it now.

Durations are whole milliseconds. `at_ms` is this host's CLOCK_BOOTTIME when the picture was taken, so a
reader on the same host can turn "in 400 ms" into a point of time that does not move while the message waits
in a queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

NodeState = Literal["alive", "overdue", "unheard"]
"""alive: heard within overdue_ms. overdue: was heard, then fell silent. unheard: not heard since this process
began."""

DaemonState = Literal["ok", "hung", "gone", "absent"]
"""ok: beats. hung: connected, no beat for daemon_hang_ms. gone: socket closed, may come back. absent: not
coming."""

LinkState = Literal["up", "silent", "down", "unheard"]
"""up: heard on it within overdue_ms (of this node itself: nothing is known against it). silent: was heard. down: this
host's kernel says that it cannot work."""

RoleName = Literal["leader", "candidate", "follower"]
GateState = Literal["open", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """One heartbeat link towards one node; of this node itself: what the kernel says of it."""

    address: str
    """Of that node."""
    state: LinkState
    why: str = ""
    """When down."""
    heard_ms_ago: int | None = None
    rtt_ms: float | None = None
    """Over the fastest link, measured; over a slower one that figure and twice its lag, as if both ways were alike."""
    loss_percent: int | None = None
    """Of its last 64 heartbeats; None while too few were sent."""
    hears_us: bool | None = None
    """Does that node say that it hears us on this link? None = it said nothing yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeView:
    """What was asked when that node last fell silent for half of overdue_ms."""

    asked_ms_ago: int
    """The newest time."""
    times: int
    through: tuple[str, ...]
    """Nodes that were asked to ask it."""
    told_by: Mapping[str, int]
    """Which of them heard it, and how many ms ago."""
    answered: bool
    """It was heard again, first hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigView:
    """The configuration that this node is at, and the change that it knows of. See `membership.py`.

    `accepted_by`, `safe_in_ms`, `blocked` and `must_take` are the leader's books; a follower's are empty."""

    version: int = 1
    digest: str = ""
    """In hex."""
    accepted: Mapping[str, Any] | None = None
    """{"term", "digest", "change"}: what this node accepted and has not made yet."""
    accepted_by: tuple[str, ...] = ()
    safe_in_ms: int | None = None
    """Once the change is chosen: how long until nodes may make it; 0 = now. Else None."""
    blocked: str = "this node does not lead"
    """Why no change can be proposed now; "" = one can."""
    must_take: tuple[str, str] | None = None
    """(node, digest): only this change can be proposed: it was accepted there under an earlier leader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One configured node. `confirmed` and `safe_in_ms` are filled in by the leader only."""

    state: NodeState
    generation: int
    """Grows with every start of that node's node watch; 0 while unheard."""
    heard_ms_ago: int | None
    daemon: DaemonState
    barred: bool
    confirmed: bool
    """A majority promised to acknowledge this node no more: no new lease can begin until it is lifted."""
    safe_in_ms: int | None
    """When confirmed: how long until its last lease must have ended, 0 = it has. Else None."""
    gave_up: bool
    """Its newest heartbeat says that it closed its gates itself and holds no lease."""
    why: str
    """What the verdict rests on, for people."""
    rtt_ms: float | None
    links: tuple[LinkView, ...] = ()
    """In the order of the configuration."""
    probe: ProbeView | None = None
    reachable_from: tuple[str, ...] = ()
    """Other nodes that say that they hear it. Hearsay: it lets nobody serve and bars nobody."""
    promised_by: tuple[str, ...] = ()
    """Who promised to acknowledge it no more; on the leader only."""
    config_version: int = 0
    """The version of its configuration; 0 while unheard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    me: str
    generation: int
    at_ms: int
    term: int
    role: RoleName
    leader: str | None
    quorum: bool
    """This node hears a majority of the configured nodes, itself included."""
    lease_left_ms: int
    """0 = this node must not serve."""
    barred: bool
    """The cluster bars this node: its gates are shut until the leader lifts and hactld registers them
    anew."""
    yielded: bool
    config_mismatch: tuple[str, ...] = ()
    """Nodes whose configuration differs from ours; they count for no lease, vote or promise until it is
    equal."""
    conflict: tuple[str, ...] = ()
    """Sentences: two nodes that use one number, name or address."""
    config: ConfigView = field(default_factory=ConfigView)
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    gates: Mapping[str, GateState] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)
    witness: Mapping[str, Any] = field(default_factory=dict)
    """{} = none is configured. state (idle | racing | using | lost), epoch and checked_ms_ago while this node uses it,
    used_by (names), luns ({wwid, epoch, claimed_by}), problem, waits_for; the last two "" = nothing."""
    watchdog: str | None = None
    """Of this host. None = off; "" = armed and patted; else why it is not patted, and when it resets the host."""
    made_ms: int = 0
    """When it was made, on this host's clock since boot: a reader that was held up can tell how old it is."""


def to_json(view: View) -> dict[str, Any]:
    """The `view` message of the socket between node watch and hactld."""
    plain: dict[str, Any] = {"t": "view"}
    for name in View.__dataclass_fields__:
        plain[name] = getattr(view, name)
    plain["nodes"] = {name: _node_to_json(node) for name, node in view.nodes.items()}
    plain["config"] = {name: getattr(view.config, name) for name in ConfigView.__dataclass_fields__}
    return plain


def _node_to_json(node: NodeView) -> dict[str, Any]:
    plain = {key: getattr(node, key) for key in NodeView.__dataclass_fields__}
    plain["links"] = [_fields(link) for link in node.links]
    plain["probe"] = None if node.probe is None else _fields(node.probe)
    return plain


def _fields(part: LinkView | ProbeView) -> dict[str, Any]:
    return {key: getattr(part, key) for key in part.__dataclass_fields__}


def _node_from_json(plain: Mapping[str, Any]) -> NodeView:
    known = {key: plain[key] for key in NodeView.__dataclass_fields__}
    known["links"] = tuple(LinkView(**link) for link in known["links"])
    for key in ("reachable_from", "promised_by"):
        known[key] = tuple(known[key])
    if known["probe"] is not None:
        known["probe"] = ProbeView(**{**known["probe"], "through": tuple(known["probe"]["through"])})
    return NodeView(**known)


def from_json(message: Mapping[str, Any]) -> View:
    """The inverse of `to_json`. Raises KeyError or TypeError for anything else."""
    known = {name: message[name] for name in View.__dataclass_fields__}
    known["config_mismatch"] = tuple(known["config_mismatch"])
    known["conflict"] = tuple(known["conflict"])
    config = {name: known["config"][name] for name in ConfigView.__dataclass_fields__}
    config["accepted_by"] = tuple(config["accepted_by"])
    config["must_take"] = None if config["must_take"] is None else tuple(config["must_take"])
    known["config"] = ConfigView(**config)
    nodes = cast("Mapping[str, Mapping[str, Any]]", known["nodes"])
    known["nodes"] = {name: _node_from_json(node) for name, node in nodes.items()}
    return View(**known)
