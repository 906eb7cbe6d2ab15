"""The view: what hactld and people are shown of what the parts know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nodewatch.admission import Admission
from nodewatch.barring import Barring
from nodewatch.config import NodeConfig
from nodewatch.detector import Detector
from nodewatch.election import Election
from nodewatch.gates import Gates
from nodewatch.heartbeat import Daemon, EntryFlag, Role
from nodewatch.links import Links
from nodewatch.membership import Membership
from nodewatch.peers import Peer
from nodewatch.prober import Prober
from nodewatch.view import ConfigView, DaemonState, LinkState, LinkView, NodeView, ProbeView, RoleName, View

DAEMON_NAMES: dict[int, DaemonState] = {
    Daemon.OK: "ok",
    Daemon.HUNG: "hung",
    Daemon.GONE: "gone",
    Daemon.ABSENT: "absent",
}
ROLE_NAMES: dict[int, RoleName] = {
    Role.FOLLOWER: "follower",
    Role.ASPIRANT: "candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The parts of a NodeWatch that live as long as it does."""

    me: NodeConfig
    nodes: tuple[NodeConfig, ...]
    generation: int
    start_ms: int
    overdue_ms: int
    peers: dict[int, Peer]
    admission: Admission
    detector: Detector
    barring: Barring
    gates: Gates
    links: Links
    prober: Prober

    def name(self, number: int) -> str | None:
        return next((node.name for node in self.nodes if node.number == number), None)


def show(
    scene: Scene,
    now_ms: int,
    *,
    election: Election,
    quorum: bool,
    lease_left_ms: int,
    yielded: bool,
    gave_up: bool,
    daemon: Daemon,
    membership: Membership,
    witness: dict[str, Any],
    watchdog: str | None = None,
) -> View:
    """The picture at `now_ms`."""
    ordered = sorted(scene.nodes, key=lambda node: node.number)
    leads = election.role == Role.LEADER
    nodes = {
        node.name: _me(scene, now_ms, leads=leads, gave_up=gave_up, daemon=daemon, version=membership.config.version)
        if node.number == scene.me.number
        else _peer(scene, scene.peers[node.number], now_ms, leads=leads)
        for node in ordered
    }
    return View(
        me=scene.me.name,
        generation=scene.generation,
        at_ms=now_ms,
        term=election.term,
        role=ROLE_NAMES[election.role],
        leader=scene.name(election.leader),
        quorum=quorum,
        lease_left_ms=lease_left_ms,
        barred=bool(scene.barring.barred_mark),
        yielded=yielded,
        config_mismatch=tuple(peer.config.name for peer in scene.peers.values() if peer.mismatch),
        conflict=scene.admission.conflicts(now_ms),
        nodes=nodes,
        gates=scene.gates.states(now_ms),
        drops=dict(scene.admission.drops),
        config=_config(scene, membership, now_ms),
        witness=witness,
        watchdog=watchdog,
        made_ms=now_ms,
    )


def _config(scene: Scene, membership: Membership, now_ms: int) -> ConfigView:
    accepted, must_take = membership.accepted, membership.must_take
    return ConfigView(
        version=membership.config.version,
        digest=membership.digest.hex(),
        accepted=None
        if accepted is None
        else {"term": accepted.term, "digest": accepted.digest, "change": accepted.change.to_plain()},
        accepted_by=tuple(scene.name(number) or "?" for number in membership.accepted_by),
        safe_in_ms=membership.safe_in_ms(now_ms),
        blocked=membership.blocked,
        must_take=None if must_take is None else (scene.name(must_take[0]) or "?", must_take[1].hex()),
    )


def _bar(scene: Scene, number: int, now_ms: int, *, leads: bool) -> tuple[bool, int | None]:
    """(barred, safe_in_ms): only the leader knows of the majority."""
    if not leads:
        return number in scene.barring.promises.held, None
    table = scene.barring.table
    safe_at_ms = table.safe_at_ms(number)
    return table.barred(number) is not None, None if safe_at_ms is None else max(0, safe_at_ms - now_ms)


def _me(scene: Scene, now_ms: int, *, leads: bool, gave_up: bool, daemon: Daemon, version: int) -> NodeView:
    barred, safe_in_ms = _bar(scene, scene.me.number, now_ms, leads=leads)
    return NodeView(
        state="alive",
        generation=scene.generation,
        heard_ms_ago=0,
        daemon=DAEMON_NAMES[daemon],
        barred=barred or bool(scene.barring.barred_mark),
        confirmed=safe_in_ms is not None,
        safe_in_ms=safe_in_ms,
        gave_up=gave_up,
        why=_own_condition(scene),
        rtt_ms=None,
        links=tuple(_own_link(scene, link, address) for link, address in enumerate(scene.me.addresses)),
        promised_by=_promisers(scene, scene.me.number, leads=leads),
        config_version=version,
    )


def _own_condition(scene: Scene) -> str:
    if scene.links.cut_off:
        return "this node, cut off: " + "; ".join(scene.links.down[link] for link in sorted(scene.links.down))
    return "this node"


def _own_link(scene: Scene, link: int, address: str) -> LinkView:
    trouble = scene.links.down.get(link, "")
    return LinkView(address=address, state="down" if trouble else "up", why=trouble)


def _peer_link(scene: Scene, peer: Peer, link: int, address: str, now_ms: int) -> LinkView:
    number, links = peer.config.number, scene.links
    route, bit, trouble = links.route(number, link), 1 << link, links.down.get(link, "")
    heard: LinkState = "unheard" if route.heard_ms is None else "silent"
    state: LinkState = "up" if links.mask(number, now_ms) & bit else heard
    return LinkView(
        address=address,
        state="down" if trouble else state,
        why=trouble,
        heard_ms_ago=None if route.heard_ms is None else now_ms - route.heard_ms,
        rtt_ms=None if peer.rtt_ms is None or route.heard_ms is None else float(peer.rtt_ms + 2 * route.lag_ms),
        loss_percent=route.loss_percent(links.newest(number)),
        hears_us=None if peer.my_entry is None else bool(peer.my_entry.links & bit),
    )


def _probe(scene: Scene, number: int, now_ms: int) -> ProbeView | None:
    silence = scene.prober.silences.get(number)
    if silence is None:
        return None
    return ProbeView(
        asked_ms_ago=now_ms - silence.asked_ms,
        times=silence.times,
        through=tuple(scene.name(helper) or "?" for helper in silence.helpers),
        told_by={scene.name(helper) or "?": now_ms - at_ms for helper, at_ms in silence.told.items()},
        answered=silence.answered_ms is not None,
    )


def _reachable_from(scene: Scene, subject: int) -> tuple[str, ...]:
    """Who says in its newest heartbeat that the subject is not overdue there."""
    found = []
    for number, peer in scene.peers.items():
        if number == subject or peer.said is None or not scene.detector.alive(number):
            continue
        if any(e.number == subject and e.generation and not e.flags & EntryFlag.OVERDUE for e in peer.said.entries):
            found.append(peer.config.name)
    return tuple(found)


def _promisers(scene: Scene, number: int, *, leads: bool) -> tuple[str, ...]:
    if not leads:
        return ()
    return tuple(scene.name(promiser) or "?" for promiser in scene.barring.table.promisers(number))


def _peer(scene: Scene, peer: Peer, now_ms: int, *, leads: bool) -> NodeView:
    number = peer.config.number
    session = scene.admission.session(number)
    barred, safe_in_ms = _bar(scene, number, now_ms, leads=leads)
    links = tuple(_peer_link(scene, peer, link, at, now_ms) for link, at in enumerate(peer.config.addresses))
    elsewhere = _reachable_from(scene, number)
    return NodeView(
        state=scene.detector.state(number),
        generation=session.generation if session is not None else 0,
        heard_ms_ago=scene.detector.silent_ms(number, now_ms),
        daemon=DAEMON_NAMES[peer.said.daemon] if peer.said is not None else "absent",
        barred=barred,
        confirmed=safe_in_ms is not None,
        safe_in_ms=safe_in_ms,
        gave_up=peer.gave_up,
        why="; ".join(_reasons(scene, peer, links, elsewhere, now_ms, leads=leads)),
        rtt_ms=None if peer.rtt_ms is None else float(peer.rtt_ms),
        links=links,
        probe=_probe(scene, number, now_ms),
        reachable_from=elsewhere,
        promised_by=_promisers(scene, number, leads=leads),
        config_version=peer.said.config_version if peer.said is not None else 0,
    )


def _reasons(
    scene: Scene, peer: Peer, links: tuple[LinkView, ...], elsewhere: tuple[str, ...], now_ms: int, *, leads: bool
) -> list[str]:
    number = peer.config.number
    detector = scene.detector
    reasons = [_liveness(scene, number, now_ms)]
    if not detector.alive(number):
        if elsewhere and not detector.gone(number):
            reasons.append(f"but {', '.join(elsewhere)} says that it hears it")
    else:
        mute = [f"{link.address} {link.state}" for link in links if link.state != "up"]
        if mute:
            reasons.append("links " + ", ".join(mute))
    if peer.mismatch:
        reasons.append("its configuration differs from ours")
    if peer.said is not None and detector.alive(number):
        deaf = [scene.name(entry.number) for entry in peer.said.entries if entry.flags & EntryFlag.OVERDUE]
        if deaf:
            reasons.append(f"does not hear {', '.join(name for name in deaf if name)}")
    standing = scene.barring.table.barred(number) if leads else None
    if standing is not None:
        names = [scene.name(promiser) or "?" for promiser in scene.barring.table.promisers(number)]
        reasons.append(f"barred ({standing.why}), promised by {', '.join(names) or 'nobody yet'}")
    return reasons


def _liveness(scene: Scene, number: int, now_ms: int) -> str:
    silence_ms = scene.detector.silent_ms(number, now_ms)
    if scene.detector.gone(number):
        return "said goodbye"
    if scene.links.cut_off and not scene.detector.alive(number):
        return "this node is cut off: no link of its own works"
    if silence_ms is None:
        hint = ", but its packets arrive: it does not hear us" if scene.admission.unproven(number) else ""
        return f"not heard since this process began {now_ms - scene.start_ms} ms ago{hint}"
    if scene.detector.absent(number):
        return f"not in corosync's group, last heard {silence_ms} ms ago"
    if not scene.detector.alive(number):
        return f"silent for {silence_ms} ms, limit {scene.overdue_ms} ms"
    return f"heard {silence_ms} ms ago"
