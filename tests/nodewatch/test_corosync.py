"""The corosync engine's arithmetic, its checks, and its edge on a stand-in for a connection."""

from __future__ import annotations

import os
import re
import select
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nodewatch import _cpg, corosync
from nodewatch._corosync import CorosyncEngine
from nodewatch._cpg import Delivered, GroupChanged, QuorumChanged
from nodewatch.corosync import Facts, Totem
from nodewatch.engine import COROSYNC, Arrival, EngineRefused, EngineUnreachable, Members, Note, Packet
from nodewatch.lease import Timing

from .cluster_sim import cluster
from .ring_sim import TIMING, FakeRing, facts_of

CONFIG = replace(cluster(3, TIMING), engine=COROSYNC)
ME = CONFIG.nodes[0]
FACTS = facts_of(CONFIG, 1)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def test_the_default_lease_does_not_bridge_the_recommended_token_and_the_refusal_shows_why() -> None:
    [line] = corosync.violations(Timing(), corosync.recommended())
    assert line.startswith("lease_ms = 1700 < ")
    assert "400 + 480 + 100 + 400 + 650 = 2030" in line
    token = int(line.split("token to at most ")[1].split(",")[0])
    assert not corosync.violations(Timing(), corosync.recommended(token))
    assert corosync.violations(Timing(), corosync.recommended(token + 5))


def test_the_recommended_values_go_together() -> None:
    assert corosync.recommended_timing().lease_ms == TIMING.lease_ms == 2050
    assert not corosync.recommended_timing().violations()
    assert not corosync.violations(corosync.recommended_timing(), corosync.recommended())


def test_a_token_that_grew_by_its_coefficient_is_refused() -> None:
    grown = Totem(token=400 + 650, consensus=(400 + 650) * 12 // 10)
    assert corosync.violations(TIMING, grown)


def test_the_table_bounds_detection_by_token_and_consensus() -> None:
    rows = {row.phase: row for row in corosync.table(TIMING, corosync.recommended())}
    assert (rows["detect a node that is lost"].best_ms, rows["detect a node that is lost"].worst_ms) == (480, 980)
    assert (rows["detect"].best_ms, rows["detect"].worst_ms) == (480, TIMING.lease_ms)
    assert rows["its lease must have ended"].worst_ms == TIMING.guard_ms
    for phase in ("gate of a hung daemon closes", "watchdog resets who cannot stop"):
        assert rows[phase] in TIMING.table()
    assert rows["gate of a cut-off node closes"].worst_ms == TIMING.shut_ms == 1650
    assert len(rows) == len(corosync.table(TIMING, corosync.recommended())), "no phase twice"


def test_a_healthy_node_does_not_shut_its_gates_while_a_ring_is_formed() -> None:
    longest = corosync.recommended().blackout_ms + 13 * TIMING.heartbeat_ms // 4
    assert TIMING.shut_ms >= longest > Timing().shut_ms


def test_silence_counts_by_the_engine() -> None:
    assert (cluster(3).silence_ms, CONFIG.silence_ms) == (800, TIMING.lease_ms)


# --- corosync.conf against hactl.toml -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(FACTS, node=2), "nodeid 2 in corosync.conf"),
        (replace(FACTS, nodes={**FACTS.nodes, 4: ("n4", ("10.0.0.4",))}), "node 4 is in corosync.conf but"),
        (replace(FACTS, nodes={1: FACTS.nodes[1], 2: FACTS.nodes[2]}), "node 3 is in hactl.toml but not in corosync"),
        (replace(FACTS, nodes={**FACTS.nodes, 3: ("x3", ("10.0.0.3",))}), "called n3 in hactl.toml and x3"),
        (replace(FACTS, nodes={**FACTS.nodes, 3: ("n3", ("10.9.9.9",))}), "n3 (number 3) has 10.0.0.3"),
        (replace(FACTS, expected_votes=0), "no votequorum"),
        (replace(FACTS, totem=Totem(token=1000, consensus=1200)), "healthy nodes would stop serving"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides_named(facts: Facts, words: str) -> None:
    [line] = corosync.refusals(CONFIG, ME, facts)
    assert words in line
    with pytest.raises(EngineRefused, match=re.escape(line)):
        CorosyncEngine(CONFIG, ME, patience_s=0, opened=lambda group: FakeRing(facts, lambda message: True))


def test_a_corosync_that_fits_is_accepted_and_oddities_are_told() -> None:
    assert corosync.refusals(CONFIG, ME, FACTS) == []
    assert corosync.warnings(CONFIG, FACTS) == []
    two_node, votes = corosync.warnings(CONFIG, replace(FACTS, two_node=True, expected_votes=5))
    assert "two_node" in two_node and "expects 5 votes" in votes


def test_each_address_is_a_link_of_corosync() -> None:
    nodes = tuple(replace(node, further=(f"10.8.0.{node.number}",)) for node in CONFIG.nodes)
    config = replace(CONFIG, nodes=nodes)
    text = corosync.render_conf("demo", nodes, "/etc/corosync/authkey")
    assert "ring0_addr: 10.0.0.3\n        ring1_addr: 10.8.0.3" in text
    both = {node.number: (node.name, node.addresses) for node in nodes}
    assert corosync.mismatches(config, nodes[0], replace(FACTS, nodes=both)) == []
    assert "10.0.0.1, 10.8.0.1 in hactl.toml and 10.0.0.1 in" in corosync.mismatches(config, nodes[0], FACTS)[0]
    assert config.links == 1


def test_only_our_own_file_and_debians_sample_may_be_replaced() -> None:
    ours = corosync.render_conf("demo", CONFIG.nodes, "/etc/corosync/authkey")
    assert corosync.replaceable(ours)
    assert not corosync.replaceable(ours.removeprefix("# Written"))
    sample = "totem {\n\tcluster_name: debian\n}\nnodelist {\n\t\t# ring0_addr: x\n\t\tring0_addr: 127.0.0.1\n"
    assert corosync.replaceable(sample)
    assert not corosync.replaceable(sample.replace("127.0.0.1", "10.0.0.1"))


def test_corosyncs_key_is_long_enough_and_not_ours() -> None:
    key = corosync.auth_key(bytes(range(32)), CONFIG.uuid)
    assert len(key) == 128 and bytes(range(32)) not in key
    assert key == corosync.auth_key(bytes(range(32)), CONFIG.uuid) != corosync.auth_key(bytes(32), CONFIG.uuid)


# --- frames -------------------------------------------------------------------------------------------------------


def test_a_frame_is_for_the_nodes_that_it_names_or_for_all() -> None:
    assert corosync.unpack(corosync.pack((), b"x"), 3) == b"x"
    assert corosync.unpack(corosync.pack((2, 3), b"x"), 3) == b"x"
    assert corosync.unpack(corosync.pack((2,), b"x"), 3) is None


@pytest.mark.parametrize("message", [b"", b"h", b"hC\x02\x00x", b"hC\x01\x09\x00\x01", b"other words", bytes(2000)])
def test_what_is_no_frame_of_ours_goes_to_the_door_as_it_is(message: bytes) -> None:
    assert corosync.unpack(message, 1) == message


# --- the edge -----------------------------------------------------------------------------------------------------


class Rig:
    """An engine on connections that the test makes and breaks."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.takes = True
        self.away = False
        self.facts = FACTS
        self.rings: list[FakeRing] = []
        self.engine = CorosyncEngine(CONFIG, ME, patience_s=0, opened=self.open)

    def open(self, group: str) -> FakeRing:
        assert group == f"hactl-{CONFIG.uuid[:8]}"
        if self.away:
            raise EngineUnreachable("not there")
        self.rings.append(FakeRing(self.facts, self.take))
        return self.rings[-1]

    def take(self, message: bytes) -> bool:
        self.sent.append(message)
        return self.takes

    def wait(self) -> list[Arrival]:
        """What comes next; the engine's descriptor says when."""
        ready, _, _ = select.select([self.engine], [], [], 30)
        assert ready, "nothing came"
        return self.engine.receive()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_messages_come_in_order_with_their_senders_address_and_not_back_to_their_sender(rig: Rig) -> None:
    ring = rig.rings[0]
    for item in (
        Delivered(node=2, message=corosync.pack((), b"a")),
        Delivered(node=1, message=corosync.pack((), b"own")),
        Delivered(node=3, message=corosync.pack((2,), b"not for me")),
        Delivered(node=3, message=corosync.pack((1,), b"b")),
        Delivered(node=9, message=b"stranger"),
    ):
        ring.give(item)
    assert rig.wait() == [
        Packet(data=b"a", source="10.0.0.2"),
        Packet(data=b"b", source="10.0.0.3"),
        Packet(data=b"stranger", source="corosync nodeid 9"),
    ]
    assert rig.engine.receive() == []


def test_one_message_goes_out_whoever_it_is_for(rig: Rig) -> None:
    rig.engine.send((2, 3), b"all")
    rig.engine.send((3,), b"one")
    rig.engine.send((), b"nobody")
    assert rig.sent == [corosync.pack((), b"all"), corosync.pack((3,), b"one")]


def test_membership_and_quorum_are_told_together(rig: Rig) -> None:
    rig.rings[0].give(QuorumChanged(quorate=True))
    rig.rings[0].give(GroupChanged(nodes=frozenset({1, 2})))
    rig.rings[0].give(QuorumChanged(quorate=True))
    assert rig.wait() == [
        Members(present=frozenset(), quorate=True),
        Members(present=frozenset({1, 2}), quorate=True),
    ]


def test_a_message_that_is_not_taken_is_counted_as_lost(rig: Rig) -> None:
    rig.takes = False
    rig.engine.send((2, 3), b"x")
    assert rig.engine.send_errors == 1 and "no messages now" in rig.engine.last_error


def test_without_corosync_nobody_is_there_and_it_is_found_again(rig: Rig) -> None:
    rig.rings[0].give(GroupChanged(nodes=frozenset({1, 2, 3})))
    rig.rings[0].give(QuorumChanged(quorate=True))
    rig.wait()
    rig.away = True
    rig.rings[0].lose()
    lost, members = rig.wait()
    assert isinstance(lost, Note) and lost.serious
    assert members == Members(present=frozenset(), quorate=False)
    assert rig.rings[0].closed
    rig.engine.send((2, 3), b"x")
    assert rig.engine.send_errors == 1
    [still] = rig.wait()
    assert isinstance(still, Note) and "not there" in still.text
    rig.away = False
    found = rig.wait()
    assert any(isinstance(each, Note) and "there again" in each.text for each in found)
    rig.rings[1].give(GroupChanged(nodes=frozenset({1, 2})))
    assert rig.wait()[-1] == Members(present=frozenset({1, 2}), quorate=False)
    rig.engine.close()
    assert rig.rings[1].closed


def test_a_corosync_that_comes_back_with_other_values_is_not_used(rig: Rig) -> None:
    rig.facts = replace(FACTS, totem=Totem(token=3000, consensus=3600))
    rig.rings[0].lose()
    rig.wait()
    [refused] = rig.wait()
    assert isinstance(refused, Note) and "token" in refused.text
    assert all(ring.closed for ring in rig.rings)
    rig.engine.close()


def test_a_corosync_that_never_comes_is_an_error_with_a_remedy() -> None:
    def away(group: str) -> FakeRing:
        raise EngineUnreachable("does corosync run here?")

    with pytest.raises(EngineUnreachable, match="no corosync after 0 s: does corosync run here"):
        CorosyncEngine(CONFIG, ME, patience_s=0, opened=away)


# --- layouts ------------------------------------------------------------------------------------------------------

LAYOUT = """
#include <stdio.h>
#include <stddef.h>
#include <corosync/cpg.h>
#include <corosync/quorum.h>
#include <corosync/votequorum.h>
int main(void) {
  printf("%zu %zu %zu %zu %zu %zu %zu %d %d %d %d\\n", sizeof(struct cpg_name), offsetof(struct cpg_name, value),
    sizeof(struct cpg_address), sizeof(cpg_callbacks_t), sizeof(quorum_callbacks_t), sizeof(struct votequorum_info),
    offsetof(struct votequorum_info, flags), CPG_TYPE_AGREED, CS_DISPATCH_ALL,
    CS_TRACK_CURRENT | CS_TRACK_CHANGES, VOTEQUORUM_INFO_TWONODE);
  return 0;
}
"""
PRINTED = [132, 4, 12, 16, 8, 292, 28, 2, 2, 3, 1]
"""By the program above, with corosync 3.1.7 of Debian 12, x86_64."""


def test_structures_are_laid_out_as_in_the_headers() -> None:
    sizes = [_cpg.c.sizeof(each) for each in (_cpg.Name, _cpg.Address, _cpg.CpgCallbacks, _cpg.QuorumCallbacks)]
    values = [_cpg._TYPE_AGREED, _cpg._DISPATCH_ALL, _cpg._TRACK_CURRENT_AND_CHANGES, _cpg._FLAG_TWO_NODE]
    info = [_cpg.c.sizeof(_cpg.VoteInfo), _cpg.VoteInfo.flags.offset]
    assert [sizes[0], _cpg.Name.value.offset, *sizes[1:], *info, *values] == PRINTED


@pytest.mark.skipif(not os.path.exists("/usr/include/corosync/cpg.h"), reason="corosync's headers are not installed")
def test_the_headers_here_say_the_same(tmp_path: Path) -> None:
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(LAYOUT)
    subprocess.run(["cc", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert [int(word) for word in printed.split()] == PRINTED
