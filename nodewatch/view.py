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

RoleName = Literal["leader", "candidate", "follower"]
GateState = Literal["open", "closed"]


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
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    gates: Mapping[str, GateState] = field(default_factory=dict)
    drops: Mapping[str, int] = field(default_factory=dict)


def to_json(view: View) -> dict[str, Any]:
    """The `view` message of the socket between node watch and hactld."""
    plain: dict[str, Any] = {"t": "view"}
    for name in View.__dataclass_fields__:
        plain[name] = getattr(view, name)
    plain["nodes"] = {
        name: {key: getattr(node, key) for key in NodeView.__dataclass_fields__} for name, node in view.nodes.items()
    }
    return plain


def from_json(message: Mapping[str, Any]) -> View:
    """The inverse of `to_json`. Raises KeyError or TypeError for anything else."""
    known = {name: message[name] for name in View.__dataclass_fields__}
    known["config_mismatch"] = tuple(known["config_mismatch"])
    known["conflict"] = tuple(known["conflict"])
    nodes = cast("Mapping[str, Mapping[str, Any]]", known["nodes"])
    known["nodes"] = {
        name: NodeView(**{key: node[key] for key in NodeView.__dataclass_fields__}) for name, node in nodes.items()
    }
    return View(**known)
