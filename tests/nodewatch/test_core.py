"""A whole node among others: what the simulated misfortunes do not ask."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nodewatch import events as ev
from nodewatch.core import UNDELIVERED, UNHEARD_PATIENCE_MS
from nodewatch.view import View, from_json, to_json

from .cluster_sim import SimNode, Simulation


def settled(nodes: int = 3) -> Simulation:
    sim = Simulation(3, nodes=nodes)
    sim.run_until(5000)
    assert sim.settled() is None, sim.settled()
    return sim


def view(node: SimNode) -> View:
    assert node.watch is not None
    return node.watch.view(node.clock())


def leader(sim: Simulation) -> SimNode:
    return next(node for node in sim.nodes.values() if node.watch is not None and view(node).role == "leader")


def test_a_quiet_cluster_sends_one_packet_per_peer_and_heartbeat() -> None:
    sim = settled()
    before = sim.packets
    sim.run_until(sim.now + 20_000)
    sent = (sim.packets - before) / 3 / 2
    assert sent == pytest.approx(100, rel=0.15)


def test_a_view_survives_json() -> None:
    picture = view(leader(settled()))
    assert from_json(json.loads(json.dumps(to_json(picture)))) == picture


def test_silence_is_noticed_the_leader_replaced_and_the_bar_confirmed_within_the_table() -> None:
    sim = settled()
    worst = {row.phase: row.worst_ms for row in sim.config.timing.table()}
    old = leader(sim)
    before = sim.now
    old.power_off()
    while not any(
        node.watch is not None and view(node).role == "leader" and view(node).nodes[old.config.name].confirmed
        for node in sim.nodes.values()
        if node is not old
    ):
        sim.run_until(sim.now + 5)
        assert sim.now - before < worst["bar confirmed"] * 1.06 + 800, "a disk may be slow, 800 ms in this simulation"
    new = leader(sim)
    safe_in_ms = view(new).nodes[old.config.name].safe_in_ms
    assert safe_in_ms is not None
    waited = (sim.now - before) * new.rate + safe_in_ms
    assert waited <= worst["its lease must have ended"] + 20


def test_a_node_that_says_goodbye_is_barred_and_safe_at_once() -> None:
    sim = settled()
    leaving = sim.nodes[3]
    leaving.feed(ev.Stop(now_ms=leaving.clock()))
    assert leaving.watch is not None
    for effect in leaving.watch.step(ev.Farewell(now_ms=leaving.clock())):
        leaving.act(effect)
    leaving.kill()
    sim.run_until(sim.now + 900)
    seen = view(leader(sim)).nodes["n3"]
    assert (seen.state, seen.confirmed, seen.safe_in_ms, seen.gave_up) == ("overdue", True, 0, True)
    assert "said goodbye" in seen.why


def test_a_goodbye_of_the_leader_makes_another_lead_at_once() -> None:
    sim = settled()
    leaving = leader(sim)
    leaving.feed(ev.Stop(now_ms=leaving.clock()))
    assert leaving.watch is not None
    for effect in leaving.watch.step(ev.Farewell(now_ms=leaving.clock())):
        leaving.act(effect)
    leaving.kill()
    sim.run_until(sim.now + 850)  # two writes to disks that may be slow
    assert leader(sim) is not leaving


def test_yield_shuts_the_gate_and_gives_the_lease_up_until_unyield() -> None:
    sim = settled()
    owner = sim.nodes[1]
    owner.feed(ev.YieldWanted(now_ms=owner.clock(), yielded=True))
    assert not owner.gate_open()
    sim.run_until(sim.now + 600)
    assert view(owner).lease_left_ms == 0
    assert view(sim.nodes[2]).nodes["n1"].gave_up
    owner.feed(ev.YieldWanted(now_ms=owner.clock(), yielded=False))
    sim.run_until(sim.now + 600)
    assert view(owner).lease_left_ms > 0
    assert owner.gate_open()


def test_a_hung_daemon_shuts_the_gate_and_is_told() -> None:
    sim = settled()
    owner = sim.nodes[1]
    owner.daemon_hung = True
    sim.run_until(sim.now + sim.config.timing.daemon_hang_ms * 1.06 + 250)
    assert not owner.gate_open()
    assert view(sim.nodes[2]).nodes["n1"].daemon == "hung"
    assert view(sim.nodes[2]).nodes["n1"].gave_up


@pytest.mark.parametrize("both", [True, False])
def test_a_node_that_nobody_acknowledges_shuts_its_gate_before_the_kernel_would(both: bool) -> None:
    """R9; with a cut of what it sends only, it goes on hearing everybody."""
    sim = settled()
    owner, timing = sim.nodes[1], sim.config.timing
    cuts = {(1, 2), (1, 3)}
    sim.network.cuts |= cuts | {(to, of) for of, to in cuts} if both else cuts
    cut_at = sim.now
    sim.run_until(cut_at + timing.shut_ms * 0.5)
    assert owner.gate_open()
    sim.run_until(cut_at + timing.shut_ms * 1.06 + 50)
    assert not owner.gate_open()
    assert sim.now < cut_at + timing.gate_ms - timing.heartbeat_ms, "the kernel alone would have kept it open"
    sim.network.cuts.clear()
    sim.run_until(sim.now + 8000)
    assert sim.settled() is None


def test_packets_that_always_come_before_the_tick_do_not_hide_a_hung_daemon() -> None:
    sim = Simulation(1, nodes=1)
    sim.run_until(5000)
    watch, now = sim.nodes[1].watch, sim.nodes[1].clock()
    assert watch is not None
    watch.step(ev.DaemonBeat(now_ms=now))
    end = now + sim.config.timing.daemon_hang_ms
    while now < end:
        now += 50
        watch.step(ev.Datagram(now_ms=now, source="192.0.2.99", data=b"x"))
    assert watch.deadline_ms() <= now
    watch.step(ev.Tick(now_ms=now))
    assert watch.view(now).nodes["n1"].daemon == "hung"


def test_a_daemon_that_restarts_disturbs_nothing() -> None:
    sim = settled()
    owner = sim.nodes[1]
    owner.feed(ev.DaemonGone(now_ms=owner.clock()))
    owner.daemon_away_until = sim.now + 5000
    while sim.now < owner.daemon_away_until:
        sim.run_until(sim.now + 100)
        assert owner.gate_open()
    assert view(sim.nodes[2]).nodes["n1"].daemon == "gone"
    sim.run_until(sim.now + 500)
    assert sim.settled() is None


def test_a_leader_whose_daemon_hangs_gives_way() -> None:
    sim = settled()
    old = leader(sim)
    old.daemon_hung = True
    sim.run_until(sim.now + sim.config.timing.daemon_hang_ms * 1.06 + 1200)
    assert leader(sim) is not old


def test_a_node_with_another_configuration_counts_for_nothing() -> None:
    sim = Simulation(3)
    sim.run_until(2000)
    other = sim.nodes[3]
    other.kill()
    other.cluster = replace(sim.config, timing=replace(sim.config.timing, lease_ms=9000))
    other.start()
    sim.run_until(6000)
    assert view(sim.nodes[1]).config_mismatch == ("n3",)
    assert view(other).config_mismatch == ("n1", "n2")
    assert view(other).lease_left_ms == 0
    assert not view(other).quorum
    assert view(sim.nodes[1]).lease_left_ms > 0
    assert "its configuration differs" in view(sim.nodes[1]).nodes["n3"].why


def test_a_node_that_was_never_heard_is_barred_only_after_a_while() -> None:
    sim = Simulation(3)
    sim.network.cuts.update({(3, 1), (3, 2)})
    sim.run_until(UNHEARD_PATIENCE_MS * 0.9)
    assert not view(leader(sim)).nodes["n3"].barred
    sim.run_until(UNHEARD_PATIENCE_MS * 1.1 + 1500)
    seen = view(leader(sim)).nodes["n3"]
    assert (seen.state, seen.barred, seen.confirmed) == ("unheard", True, True)
    assert "not heard since this process began" in seen.why


def test_a_node_that_only_the_leader_does_not_hear_is_not_barred_for_good() -> None:
    sim = settled()
    chief = leader(sim)
    mute = sim.nodes[3] if chief.number != 3 else sim.nodes[2]
    sim.network.cuts.add((mute.number, chief.number))
    sim.run_until(sim.now + 4000)
    seen = view(chief).nodes[mute.config.name]
    assert (seen.state, seen.barred, seen.confirmed) == ("overdue", True, False)
    assert view(mute).lease_left_ms > 0, "the other node still acknowledges it"
    sim.network.cuts.clear()
    sim.run_until(sim.now + 1500)
    assert sim.settled() is None


def test_a_barred_node_knows_it_and_must_register_its_gates_anew() -> None:
    sim = settled()
    chief, owner = leader(sim), sim.nodes[1] if leader(sim).number != 1 else sim.nodes[2]
    sim.owner = owner.number
    sim.daemon_notices = 1.0
    sim.run_until(sim.now + 1000)
    assert owner.gate_open()
    sim.owner = 3  # the stand-in would take over from the owner; here nobody shall
    owner.daemon_hung = True
    chief.feed(ev.BarWanted(now_ms=chief.clock(), node=owner.config.name))
    sim.run_until(sim.now + 100)
    assert view(owner).barred
    assert not owner.gate_open()
    sim.run_until(sim.now + 1500)
    assert not view(owner).barred, "lifted by the leader's hactld, since the node shut its gates"
    owner.daemon_hung = False
    sim.run_until(sim.now + 100)
    owner.gate_given = True  # its hactld does not register the gate again
    sim.run_until(sim.now + 3000)
    assert view(owner).lease_left_ms > 0
    assert not owner.gate_open()


def test_messages_reach_one_or_all_daemons_and_unheard_nodes_are_counted() -> None:
    sim = settled()
    got: list[tuple[str, str, bytes]] = []
    for node in sim.nodes.values():
        act = node.act

        def spy(effect: ev.Effect, node: SimNode = node, act: object = act) -> ev.Event | None:
            if isinstance(effect, ev.Deliver):
                got.append((node.config.name, effect.sender, effect.message))
            return act(effect)  # type: ignore[operator, no-any-return]

        node.act = spy  # type: ignore[method-assign]
    sender = sim.nodes[1]
    long = b"x" * 50_000
    sender.feed(ev.MessageWanted(now_ms=sender.clock(), to="n2", message=long))
    sender.feed(ev.MessageWanted(now_ms=sender.clock(), to="*", message=b"all"))
    sender.feed(ev.MessageWanted(now_ms=sender.clock(), to="n1", message=b"me"))
    sim.run_until(sim.now + 1000)
    assert sorted(got) == sorted([("n1", "n1", b"me"), ("n2", "n1", long), ("n2", "n1", b"all"), ("n3", "n1", b"all")])
    sim.nodes[3].power_off()
    sim.run_until(sim.now + 2000)
    sender.feed(ev.MessageWanted(now_ms=sender.clock(), to="*", message=b"again"))
    assert view(sender).drops[UNDELIVERED] == 1


def test_a_core_never_asks_to_be_called_in_the_past_twice() -> None:
    sim = settled(5)
    for node in sim.nodes.values():
        assert node.watch is not None
        for _ in range(3):
            node.watch.step(ev.Tick(now_ms=node.clock()))
        assert node.watch.deadline_ms() > node.clock()


def test_a_cluster_of_one_serves_by_itself() -> None:
    sim = Simulation(1, nodes=1)
    sim.run_until(5000)
    assert sim.settled() is None
    assert view(sim.nodes[1]).role == "leader"


@pytest.mark.parametrize("seed", range(1, 13))
def test_a_leader_that_was_cut_off_brings_no_bar_back_against_those_who_stayed(seed: int) -> None:
    """It finds the others overdue one by one: until it has found them all, it still believes that it leads."""
    sim = Simulation(seed, nodes=3)
    sim.run_until(5000)
    chief = leader(sim)
    others = [node for node in sim.nodes.values() if node is not chief]
    ways = {(chief.number, node.number) for node in others} | {(node.number, chief.number) for node in others}
    late = {way for way in ways if others[0].number in way}
    sim.network.cuts |= ways - late
    sim.run_until(sim.now + 190)
    sim.network.cuts |= late
    sim.run_until(sim.now + 4000)
    seen = view(chief)
    assert seen.role == "follower"
    assert [seen.nodes[node.config.name].state for node in others] == ["overdue", "overdue"]
    assert not any(seen.nodes[node.config.name].barred for node in others)
