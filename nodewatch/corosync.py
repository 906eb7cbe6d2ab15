"""The corosync engine's arithmetic and words: what must be true of a running corosync, and what a message looks like.

While corosync forms a new membership nothing is delivered: from the loss of the token (`token`) over the time for
which it waits for the missing (`consensus`) to the first messages of the new ring. Leases of healthy nodes must outlive
that silence, so the values that corosync really runs with (it derives them from the file's, and only its map of keys
tells) are checked together with node watch's own.

Frames: magic 2 | version 1 | count 1 | count node numbers of 2 each | a sealed datagram of `wire.py`. The group gets
everything; a frame that names nodes is for them alone, one that names none is for all.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.lease import STAGGER_MS, PatientTiming, Timing, TimingRow

MAGIC = b"hC"
VERSION = 1
_HEADER = struct.Struct(">2sBB")
_NUMBERS_MAX = 255

REFORM_MS = 100
"""Beyond token and consensus: join messages, the commit of the new ring, the synchronisation of its services.
corosync.conf(5) says about 50, docs/measurements.md what was seen."""

TOKEN_MS = 400
"""What `hactl init --engine corosync` writes: see docs/corosync.md."""
TOKEN_MIN_MS = 130
"""Below it corosync would retransmit the token more often than every 30 ms, and refuses to start."""
LEASE_STEP_MS = 50
AUTH_KEY_BYTES = 128
"""The least that corosync takes (TOTEM_PRIVATE_KEY_LEN_MIN, 1024 bits)."""
_OURS = "# Written by hactl"


def group_name(uuid: str) -> str:
    """The process group of one cluster's node watches."""
    return f"hactl-{uuid[:8]}"


def pack(to: Sequence[int], datagram: bytes) -> bytes:
    """A message for these nodes; none = for all."""
    return _HEADER.pack(MAGIC, VERSION, len(to)) + struct.pack(f">{len(to)}H", *to) + datagram


def unpack(message: bytes, me: int) -> bytes | None:
    """The datagram in it; None if it is for others. What is no frame of ours comes back as it is: the door
    (`admission.py`) refuses and counts it."""
    if len(message) < _HEADER.size:
        return message
    magic, version, count = _HEADER.unpack_from(message)
    end = _HEADER.size + 2 * count
    if magic != MAGIC or version != VERSION or len(message) < end:
        return message
    if count and me not in struct.unpack_from(f">{count}H", message, _HEADER.size):
        return None
    return message[end:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totem:
    """The run-time values of corosync's protocol that matter here, in ms."""

    token: int
    consensus: int

    @property
    def detect_ms(self) -> int:
        """From the last token to the announcement of the new membership, without the work itself."""
        return self.token + self.consensus

    @property
    def blackout_ms(self) -> int:
        """The longest time for which nothing is delivered when one node is lost."""
        return self.token + self.consensus + REFORM_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a running corosync says of itself."""

    node: int
    """Its own nodeid."""
    nodes: Mapping[int, tuple[str, tuple[str, ...]]]
    """nodeid -> (name, addresses) of its nodelist; an empty name = none given."""
    totem: Totem
    two_node: bool = False
    expected_votes: int = 0
    """0 = votequorum does not run."""


def recommended(token: int = TOKEN_MS) -> Totem:
    """The values that go with a token: consensus is 1.2 of it, corosync's own minimum."""
    return Totem(token=token, consensus=token * 12 // 10)


def recommended_timing(token: int = TOKEN_MS) -> Timing:
    """The default timing with a lease that bridges a change of corosync's membership."""
    needed = lease_needed_ms(Timing(), recommended(token))
    return PatientTiming(lease_ms=max(Timing().lease_ms, -(-needed // LEASE_STEP_MS) * LEASE_STEP_MS))


def bridged_token(timing: Timing) -> int:
    """The longest token, in steps of 50, that this timing's lease bridges; never below corosync's shortest."""
    longest = _longest_token(timing)
    return max(TOKEN_MIN_MS, longest - longest % LEASE_STEP_MS if longest >= LEASE_STEP_MS else 0)


def _longest_token(timing: Timing) -> int:
    room = timing.lease_ms - timing.gate_slack_ms - _beats_ms(timing) - REFORM_MS
    return max(0, room) * 10 // 22


def lease_needed_ms(timing: Timing, totem: Totem) -> int:
    """The shortest lease that bridges a change of membership: see `violations`."""
    return totem.blackout_ms + timing.gate_slack_ms + _beats_ms(timing)


def _beats_ms(timing: Timing) -> int:
    return timing.heartbeat_ms * 13 // 4


def violations(timing: Timing, totem: Totem) -> list[str]:
    """Every promise that these values break together, with the arithmetic; empty = they are good.

    A healthy node's newest acknowledged heartbeat is up to 2 heartbeats old when the silence begins (its next one
    is acknowledged by the next of others); a new one is acknowledged up to 0.5 after the silence (`NodeWatch` beats
    at once and again); and the gate was renewed up to 0.75 before the lease became too short for that: together
    3.25. The kernel may close the gate gate_lifetime_s after that renewal, which is gate_slack_ms before the lease
    ends; and by then node watch closes it itself (R9, `PatientTiming`). Clocks are taken as true here: one that is
    not costs availability only.
    """
    needed, beats = lease_needed_ms(timing, totem), _beats_ms(timing)
    if timing.lease_ms >= needed:
        return []
    return [
        f"lease_ms = {timing.lease_ms} < token + consensus + {REFORM_MS} + gate_slack_ms + 3.25 * heartbeat_ms = "
        f"{totem.token} + {totem.consensus} + {REFORM_MS} + {timing.gate_slack_ms} + {beats} = {needed}: healthy "
        f"nodes would stop serving while corosync forms a new membership; set lease_ms to at least {needed}, or "
        f"corosync's token to at most {_longest_token(timing)}, coefficient to 0, consensus to 1.2 of the token"
    ]


def mismatches(config: ClusterConfig, me: NodeConfig, facts: Facts) -> list[str]:
    """Where corosync's list of nodes and hactl.toml contradict each other; empty = they agree."""
    found = []
    ours = {node.number: node for node in config.nodes}
    if facts.node != me.number:
        found.append(
            f"this host is {me.name}, number {me.number} in hactl.toml, but nodeid {facts.node} in corosync.conf: "
            "give each node its hactl number as nodeid"
        )
    for number in sorted(ours.keys() ^ facts.nodes.keys()):
        where, other = ("hactl.toml", "corosync.conf") if number in ours else ("corosync.conf", "hactl.toml")
        found.append(f"node {number} is in {where} but not in {other}: list the same nodes in both")
    for number in sorted(ours.keys() & facts.nodes.keys()):
        node, (name, addresses) = ours[number], facts.nodes[number]
        if name and name != node.name:
            found.append(f"node {number} is called {node.name} in hactl.toml and {name} in corosync.conf: use one name")
        if addresses != node.addresses:
            mine, theirs = ", ".join(node.addresses), ", ".join(addresses) or "nothing"
            found.append(
                f"{node.name} (number {number}) has {mine} in hactl.toml and {theirs} in corosync.conf: "
                "use the same addresses"
            )
    return found


def refusals(config: ClusterConfig, me: NodeConfig, facts: Facts) -> list[str]:
    """Why node watch does not start on this corosync; empty = it may."""
    found = mismatches(config, me, facts)
    if not facts.expected_votes:
        found.append("corosync has no votequorum: set `provider: corosync_votequorum` in the quorum section")
    return found + violations(config.timing, facts.totem)


def warnings(config: ClusterConfig, facts: Facts) -> list[str]:
    """What is allowed but worth a sentence."""
    found = []
    if facts.two_node:
        found.append("corosync runs with two_node: node watch wants a majority of its own all the same")
    if facts.expected_votes not in (0, len(config.nodes)):
        found.append(
            f"corosync expects {facts.expected_votes} votes, hactl.toml has {len(config.nodes)} nodes: "
            "both majorities are needed for a leader"
        )
    return found


def table(timing: Timing, totem: Totem) -> list[TimingRow]:
    """`Timing.table` for this engine: what detects is another, what makes safe is the same."""
    best, lost, silent = totem.consensus, totem.blackout_ms, timing.lease_ms
    guard, beat, worst = timing.guard_ms, timing.heartbeat_ms, max(totem.blackout_ms, timing.lease_ms)
    why = f"token = {totem.token} missed, consensus = {totem.consensus} waited for, {REFORM_MS} for the new ring"
    hangs = f"or lease_ms = {silent} of silence of a member whose corosync lives"
    ended = f"lease_ms * (1 + d) / (1 - d) after it was heard = {guard}, d = {timing.drift_percent} %"
    rows = [
        TimingRow("detect", best, worst, f"{why}; {hangs}"),
        TimingRow("detect a node that is lost", best, lost, why),
        TimingRow("elect, if it led", best, worst + STAGGER_MS, f"two rounds, one stagger of {STAGGER_MS}"),
        TimingRow("bar confirmed", best, worst + 2 * STAGGER_MS, "a majority promised: one round trip and one fsync"),
        TimingRow("its lease must have ended", guard - beat, max(guard, worst + 2 * STAGGER_MS), ended),
    ]
    shut = timing.shut_ms
    cut = f"{shut} = lease_ms - gate_slack_ms after the last acknowledged heartbeat left, closed actively"
    rows.append(TimingRow("gate of a cut-off node closes", max(0, shut - 2 * beat), shut, cut))
    known = {row.phase for row in rows}
    return rows + [
        row for row in timing.table() if row.phase.startswith(("gate of ", "watchdog ")) and row.phase not in known
    ]


def render_conf(cluster: str, nodes: Sequence[NodeConfig], key_file: str, token: int = TOKEN_MS) -> str:
    """A whole corosync.conf for these nodes: encrypted, fast, no special rules for two nodes."""
    values = recommended(token)
    lines = [
        f"{_OURS} (`hactl corosync-conf`). nodeid = the node's number in hactl.toml.",
        "totem {",
        "    version: 2",
        f"    cluster_name: {cluster}",
        "    transport: knet",
        "    crypto_cipher: aes256",
        "    crypto_hash: sha256",
        f"    keyfile: {key_file}",
        "    # In ms. Without the coefficient of 0 the token would grow by 650 for each node above two.",
        f"    token: {values.token}",
        "    token_coefficient: 0",
        f"    consensus: {values.consensus}",
        "}",
        "quorum {",
        "    provider: corosync_votequorum",
        "}",
        "logging {",
        "    to_syslog: yes",
        "}",
        "nodelist {",
    ]
    for node in nodes:
        lines += [
            "    node {",
            f"        nodeid: {node.number}",
            f"        name: {node.name}",
            *(f"        ring{link}_addr: {address}" for link, address in enumerate(node.addresses)),
            "    }",
        ]
    return "\n".join([*lines, "}"]) + "\n"


def replaceable(text: str) -> bool:
    """May a corosync.conf be overwritten? One that we wrote, or the sample that Debian's package installs: it names
    one node, which is at 127.0.0.1, so no cluster runs on it."""
    if text.startswith(_OURS):
        return True
    words = [line.split("#")[0].split() for line in text.splitlines()]
    addresses = [line[1] for line in words if len(line) == 2 and line[0].startswith("ring")]
    return ["cluster_name:", "debian"] in words and addresses == ["127.0.0.1"]


def auth_key(cluster_key: bytes, uuid: str) -> bytes:
    """Corosync's key, derived from ours: the same on every node, and it tells nothing of ours."""
    derive = HKDF(algorithm=hashes.SHA256(), length=AUTH_KEY_BYTES, salt=uuid.encode(), info=b"hactl corosync 1")
    return derive.derive(cluster_key)
