"""Several heartbeat links: one that fails costs nothing but its copies, and is told."""

from __future__ import annotations

import pytest

from nodewatch import events as ev
from nodewatch.links import COUNTED, Links, Route
from nodewatch.view import LinkView, View
from nodewatch.wire import REPLAYED, WRONG_SOURCE

from .cluster_sim import SimNode, Simulation


def settled(links: int = 2) -> Simulation:
    sim = Simulation(5, links=links)
    sim.run_until(5000)
    assert sim.settled() is None, sim.settled()
    return sim


def view(node: SimNode) -> View:
    assert node.watch is not None
    return node.watch.view(node.clock())


def link_of(sim: Simulation, number: int, peer: str, link: int) -> LinkView:
    return view(sim.nodes[number]).nodes[peer].links[link]


# --- what is counted ----------------------------------------------------------------------------------------------


def test_loss_is_the_share_of_the_last_heartbeats_that_did_not_come() -> None:
    route = Route()
    for number in range(1, 201):
        if number % 4:
            route.came(number)
    assert route.loss_percent(200) == 25
    assert route.loss_percent(200 + COUNTED) == 100
    late = Route()
    for number in range(2, 102):
        late.came(number ^ 1)  # every two in the wrong order
    assert late.loss_percent(101) == 0


def test_loss_is_not_told_from_a_handful_of_packets_and_a_new_process_counts_anew() -> None:
    route = Route()
    for number in range(1000, 1010):
        route.came(number)
    assert route.loss_percent(1009) is None
    for number in range(1, 40):
        route.came(number)
    assert route.loss_percent(39) == 0


def test_a_letter_takes_the_link_that_works_both_ways_and_then_the_other() -> None:
    links = Links((2,), count=3, fresh_ms=800)
    for link, late in ((0, 0), (1, 0), (2, 9)):
        links.heard(2, link, 1000, late_ms=late)
    assert links.best(2, 1001, 0b111) == 0
    assert links.best(2, 1001, 0b111, attempt=1) == 1
    assert links.best(2, 1001, 0b110) == 1, "it does not hear us on the first"
    assert links.best(2, 1001, 0b110, attempt=3) == 1
    links.changed(1, "no carrier")
    assert links.best(2, 1001, 0b110) == 2
    assert Links((2,), count=1, fresh_ms=800).best(2, 0, 1) is None


# --- among others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [0, 1])
def test_a_link_that_fails_everywhere_moves_nothing_and_is_shown(broken: int) -> None:
    sim = settled()
    said = len(sim.transcript)
    sim.network.link_cuts.update((a, b, broken) for a in sim.nodes for b in sim.nodes)
    for _ in range(100):
        sim.run_until(sim.now + 100)
        assert sim.settled() is None
    assert not [line for line in sim.transcript[said:] if "overdue" in line or "lease" in line]
    dead, live = link_of(sim, 1, "n2", broken), link_of(sim, 1, "n2", 1 - broken)
    assert (dead.state, dead.hears_us) == ("silent", False)
    assert dead.loss_percent is not None
    assert dead.loss_percent > 60
    assert (live.state, live.hears_us, live.loss_percent) == ("up", True, 0)
    assert f"10.0.{broken}.2 silent" in view(sim.nodes[1]).nodes["n2"].why


def test_a_link_that_is_dead_in_one_direction_is_told_by_the_other_end() -> None:
    sim = settled()
    sim.network.link_cuts.add((1, 2, 0))
    sim.run_until(sim.now + 2000)
    assert link_of(sim, 1, "n2", 0).state == "up"
    assert link_of(sim, 1, "n2", 0).hears_us is False
    assert link_of(sim, 2, "n1", 0).state == "silent"


def test_messages_find_the_link_that_works() -> None:
    sim = settled()
    got: list[bytes] = []
    two = sim.nodes[2]
    deliver = two.act

    def act(effect: ev.Effect) -> ev.Event | None:
        if isinstance(effect, ev.Deliver):
            got.append(effect.message)
        return deliver(effect)

    two.act = act  # type: ignore[method-assign]
    sim.network.link_cuts.add((1, 2, 0))
    for place in range(3):
        one = sim.nodes[1]
        one.feed(ev.MessageWanted(now_ms=one.clock(), to="n2", message=b"%d" % place))
    sim.run_until(sim.now + 330)
    assert got == [b"0", b"1", b"2"], "the first attempt was lost, the second went over the other link"
    sim.run_until(sim.now + 2000)
    one.feed(ev.MessageWanted(now_ms=one.clock(), to="n2", message=b"quick"))
    sim.run_until(sim.now + 20)
    assert got[-1] == b"quick", "by now n2 has told that it does not hear n1 on the first link"


def test_copies_are_no_drops_and_a_slow_link_is_shown_as_slow() -> None:
    sim = settled()
    sim.network.link_delay_ms[1] = 50.0
    sim.run_until(sim.now + 5000)
    seen = view(sim.nodes[1])
    assert seen.drops == {}
    quick, slow = seen.nodes["n2"].links
    assert quick.rtt_ms is not None
    assert slow.rtt_ms is not None
    assert quick.rtt_ms < 10 < 80 < slow.rtt_ms < 130


def test_copies_of_probes_are_no_drops_either() -> None:
    sim = settled()
    sim.network.cuts.update({(3, 1), (1, 3)})
    sim.run_until(sim.now + 600)
    sim.network.cuts.clear()
    sim.run_until(sim.now + 500)
    probe = view(sim.nodes[1]).nodes["n3"].probe
    assert probe is not None
    assert probe.told_by
    assert all(view(node).drops == {} for node in sim.nodes.values())


def test_a_copy_on_the_same_link_or_from_another_address_is_dropped_and_a_copy_is_no_sign_of_life() -> None:
    sim = settled()
    caught: list[tuple[bytes, int]] = []
    arrive = sim._arrive

    def tap(sender: SimNode, receiver: SimNode, datagram: bytes, link: int) -> None:
        if (sender.number, receiver.number) == (2, 1):
            caught.append((datagram, link))
        arrive(sender, receiver, datagram, link)

    sim._arrive = tap  # type: ignore[method-assign]
    sim.network.link_cuts.update({(2, 1, 1), (3, 1, 1)})
    sim.run_until(sim.now + 3000)
    sim.network.cuts.update({(2, 1)})
    sim.run_until(sim.now + 500)
    one, (datagram, _) = sim.nodes[1], caught[-1]
    silent = view(one).nodes["n2"].heard_ms_ago

    def inject(source: str, link: int) -> None:
        one.feed(ev.Datagram(now_ms=one.clock(), source=source, data=datagram, link=link))

    inject("10.0.0.2", 0)
    assert view(one).drops == {REPLAYED: 1}
    inject("10.0.0.2", 1)
    inject("10.0.1.2", 7)
    assert view(one).drops == {REPLAYED: 1, WRONG_SOURCE: 2}
    inject("10.0.1.2", 1)
    assert view(one).nodes["n2"].links[1].heard_ms_ago == 0
    assert view(one).nodes["n2"].heard_ms_ago == silent
    inject("10.0.1.2", 1)
    assert view(one).drops == {REPLAYED: 2, WRONG_SOURCE: 2}


# --- what the kernel says -----------------------------------------------------------------------------------------


def change(node: SimNode, link: int, trouble: str) -> None:
    node.feed(ev.LinkChanged(now_ms=node.clock(), link=link, trouble=trouble))


def test_a_link_that_is_down_here_is_known_at_once_and_carries_no_letters() -> None:
    sim = settled()
    one = sim.nodes[1]
    change(one, 0, "eth0 has no carrier")
    seen = view(one)
    assert (seen.nodes["n1"].links[0].state, seen.nodes["n1"].links[0].why) == ("down", "eth0 has no carrier")
    assert seen.nodes["n2"].links[0].state == "down"
    assert one.watch is not None
    one.feed(ev.MessageWanted(now_ms=one.clock(), to="n2", message=b"x"))
    effects = one.watch.step(ev.MessageWanted(now_ms=one.clock(), to="n3", message=b"x"))
    assert [effect.link for effect in effects if isinstance(effect, ev.Transmit) and effect.link is not None] == [1]
    sim.run_until(sim.now + 5000)
    assert sim.settled() is None
    change(one, 0, "")
    assert view(one).nodes["n2"].links[0].state == "up"


def test_a_link_that_comes_back_is_spoken_on_at_once() -> None:
    sim = settled()
    one = sim.nodes[1]
    assert one.watch is not None
    change(one, 1, "eth1 is down")
    sim.run_until(sim.now + 33)
    effects = one.watch.step(ev.LinkChanged(now_ms=one.clock(), link=1, trouble=""))
    assert [effect.to for effect in effects if isinstance(effect, ev.Transmit)] == [(2, 3)]
    again = one.watch.step(ev.LinkChanged(now_ms=one.clock(), link=1, trouble=""))
    assert not [effect for effect in again if isinstance(effect, ev.Transmit)]


def test_a_node_without_any_link_says_that_it_is_cut_off_and_stops_only_when_its_lease_ends() -> None:
    sim = settled()
    one = sim.nodes[1]
    for link in (0, 1):
        change(one, link, f"eth{link} has no carrier")
        sim.network.link_cuts.update((a, b, link) for a in sim.nodes for b in sim.nodes if 1 in (a, b))
    assert "cut off: eth0 has no carrier; eth1 has no carrier" in view(one).nodes["n1"].why
    assert any("cut off" in line for line in sim.transcript)
    assert one.gate_open()
    sim.run_until(sim.now + 3000)
    assert not one.gate_open()
    assert "no link of its own works" in view(one).nodes["n2"].why
