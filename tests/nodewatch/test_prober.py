"""Probes: nothing while nothing is silent, first-hand answers, hearsay for people only, and what loss they bridge."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodewatch import events as ev
from nodewatch.detector import Detector
from nodewatch.heartbeat import ASKING, REQUEST, kind_of
from nodewatch.lease import Timing
from nodewatch.prober import Ask, Help, Prober, Tell
from nodewatch.wire import Cipher, parse_header

from .cluster_sim import KEY, UUID, SimNode, Simulation

TIMING = Timing()
FAR = 1 << 40


def prober(peers: tuple[int, ...] = (2, 3, 4, 5)) -> tuple[Prober, Detector]:
    detector = Detector(peers, heartbeat_ms=200, overdue_ms=800, now_ms=0)
    for peer in peers:
        detector.heard(peer, 0)
    return Prober(peers, TIMING, detector), detector


def settled(seed: int = 3, nodes: int = 3, links: int = 1) -> Simulation:
    sim = Simulation(seed, nodes=nodes, links=links)
    sim.run_until(5000)
    assert sim.settled() is None, sim.settled()
    return sim


class Wiretap:
    """Counts what kinds of packets are sent."""

    def __init__(self, sim: Simulation) -> None:
        self.kinds: list[tuple[int, int, int]] = []
        self._sent = sim.transmit
        sim.transmit = self.transmit  # type: ignore[method-assign]

    def transmit(self, sender: SimNode, receiver: SimNode, datagram: bytes, link: int = 0) -> None:
        header = parse_header(datagram)
        assert not isinstance(header, str)
        body = Cipher(KEY, UUID, header.sender, header.generation).open(datagram, header.seq)
        assert body is not None
        self.kinds.append((sender.number, receiver.number, kind_of(body)))
        self._sent(sender, receiver, datagram, link)

    def count(self, kind: int) -> int:
        return sum(each[2] == kind for each in self.kinds)


# --- the rules ----------------------------------------------------------------------------------------------------


def test_nothing_is_asked_before_half_of_the_limit_and_then_again_and_again() -> None:
    asks, detector = prober((2,))
    assert asks.deadline_ms(0, FAR) == 400
    assert asks.due(399) == []
    assert asks.due(400) == [Ask(2, True)]
    assert asks.due(449) == []
    assert asks.deadline_ms(0, FAR) == 450
    assert asks.due(450) == [Ask(2, True)]
    detector.heard(2, 460)
    asks.heard(2, 460)
    assert asks.due(500) == []
    assert asks.deadline_ms(0, FAR) == 860
    assert asks.silences[2].answered_ms == 460


def test_who_is_heard_again_after_a_long_time_is_watched_again() -> None:
    asks, detector = prober((2, 3))
    for now in range(0, 3000, 100):
        detector.heard(3, now)
        detector.newly_overdue(now)
        asks.due(now)
    assert not detector.alive(2)
    detector.heard(2, 3000)
    asks.heard(2, 3000)
    sent = []
    for now in range(3000, 3500, 10):
        detector.heard(3, now)
        sent += [now] if Ask(2, True) in asks.due(now) else []
    assert sent == [3400, 3450]


def test_two_others_are_asked_once_per_silence_and_not_always_the_same() -> None:
    asks, detector = prober()
    helped = []
    for begin in (0, 1000, 2000):
        for peer in (3, 4, 5):
            detector.heard(peer, begin + 400)
        found = [*asks.due(begin + 400), *asks.due(begin + 450)]
        helpers = [probe.to for probe in found if isinstance(probe, Help)]
        assert len(helpers) == 2
        assert 2 not in helpers
        helped.append(tuple(helpers))
        detector.heard(2, begin + 460)
        asks.heard(2, begin + 460)
        detector.heard(2, begin + 1000)
    assert len(set(helped)) == 3


def test_who_is_overdue_said_goodbye_or_was_never_heard_is_not_asked() -> None:
    asks, detector = prober((2, 3))
    detector.said_goodbye(2)
    detector.heard(3, 0)
    assert detector.newly_overdue(900) == [3]
    assert asks.due(900) == []
    assert asks.deadline_ms(0, FAR) is None
    unheard = Detector((2,), heartbeat_ms=200, overdue_ms=800, now_ms=0)
    assert Prober((2,), TIMING, unheard).due(5000) == []


def test_a_complaint_is_answered_again_until_it_ends_and_not_for_ever() -> None:
    asks, detector = prober((2,))
    detector.heard(2, 1000)
    asks.asked(2, 1000, misses_me_ms=500, overdue=False, wants=False)
    sent = [now for now in range(1000, 2000) if (detector.heard(2, now) or True) and Ask(2, False) in asks.due(now)]
    assert sent == [1000, 1050, 1100, 1150, 1200, 1250]
    asks.asked(2, 2000, misses_me_ms=500, overdue=False, wants=False)
    asks.due(2000)
    asks.asked(2, 2010, misses_me_ms=10, overdue=False, wants=False)
    assert asks.due(2060) == []


def test_a_wish_is_answered_once_and_a_flood_of_wishes_not_each() -> None:
    asks, detector = prober((2,))
    answers = 0
    for now in range(1000, 1100):
        detector.heard(2, now)
        asks.asked(2, now, misses_me_ms=5, overdue=False, wants=True)
        answers += len(asks.due(now))
    assert 1 < answers <= 5


def test_who_has_me_overdue_gets_no_storm() -> None:
    asks, detector = prober((2,))
    detector.heard(2, 1000)
    asks.asked(2, 1000, misses_me_ms=5000, overdue=True, wants=False)
    assert asks.due(1000) == []


def test_a_favour_is_done_at_once_when_the_node_was_just_heard_else_when_it_is_heard() -> None:
    asks, detector = prober()
    detector.heard(3, 1000)
    assert asks.favour(2, 3, 77, 1010) == [Tell(2, 3, 77, 10)]
    assert asks.favour(2, 3, 78, 1300) == [Ask(3, True)]
    assert asks.heard(4, 1310) == []
    assert asks.heard(3, 1320) == [Tell(2, 3, 78, 0)]
    assert asks.heard(3, 1330) == []
    assert asks.favour(2, 3, 79, 1500) == [Ask(3, True)]
    assert asks.heard(3, 1500 + 800) == [], "too late to matter"


def test_an_answer_to_nothing_is_dropped() -> None:
    asks, detector = prober((2, 3))
    detector.heard(3, 400)
    assert asks.due(400) == [Ask(2, True), Help(3, 2, 1)]
    assert not asks.told(3, 2, 9, 0, 420)
    assert not asks.told(2, 2, 1, 0, 420)
    assert not asks.told(3, 4, 1, 0, 420)
    assert asks.told(3, 2, 1, 5, 420)
    assert asks.silences[2].told == {3: 415}


def test_missing_acknowledgements_ask_everybody() -> None:
    asks, detector = prober((2, 3))
    for peer in (2, 3):
        detector.heard(peer, 300)
    asks.short_of_acks(350)
    assert asks.deadline_ms(0, FAR) == 350
    assert asks.due(350) == [Ask(2, True), Ask(3, True)]
    assert asks.deadline_ms(0, FAR) == 400
    asks.short_of_acks(None)
    assert asks.due(400) == []


# --- among others -------------------------------------------------------------------------------------------------


def test_a_quiet_cluster_sends_no_probe() -> None:
    sim = settled()
    tap = Wiretap(sim)
    sim.run_until(sim.now + 10_000)
    assert len(tap.kinds) > 200
    assert tap.count(ASKING) == tap.count(REQUEST) == 0


def test_a_node_that_only_one_does_not_hear_is_shown_as_reachable_through_the_other() -> None:
    sim = settled()
    assert sim.nodes[1].watch is not None
    sim.network.cuts.update({(3, 1), (1, 3)})
    sim.run_until(sim.now + 550)
    seen = sim.nodes[1].watch.view(sim.nodes[1].clock()).nodes["n3"]
    assert seen.state == "alive"
    assert seen.probe is not None
    assert (seen.probe.through, list(seen.probe.told_by), seen.probe.answered) == (("n2",), ["n2"], False)
    sim.run_until(sim.now + 1500)
    seen = sim.nodes[1].watch.view(sim.nodes[1].clock()).nodes["n3"]
    assert (seen.state, seen.reachable_from, seen.confirmed) == ("overdue", ("n2",), False)
    assert "n2 says that it hears it" in seen.why


def test_hearsay_changes_neither_who_is_overdue_nor_a_lease() -> None:
    """n3 hears nobody's acknowledgements but is heard by n2, which tells n1 so."""
    sim = settled()
    sim.network.cuts.update({(3, 1), (1, 3), (2, 3)})
    sim.run_until(sim.now + 3000)
    watch = sim.nodes[1].watch
    assert watch is not None
    assert watch.view(sim.nodes[1].clock()).nodes["n3"].state == "overdue"
    three = sim.nodes[3].watch
    assert three is not None
    assert three.view(sim.nodes[3].clock()).lease_left_ms == 0


def false_overdue(timing: Timing, loss: float) -> float:
    """How probably a healthy node becomes overdue after any one heartbeat of it was heard, packets being lost
    independently, as docs/nodewatch.md derives it."""
    beats = (timing.overdue_ms - 1) // timing.heartbeat_ms
    asks = (timing.overdue_ms - timing.overdue_ms // 2 - 1) // (timing.overdue_ms // 16) + 1
    return loss**beats * loss**asks * (1 + asks * (1 - loss))


def test_the_document_states_the_computed_chance_of_a_false_verdict() -> None:
    text = Path(__file__).parents[2].joinpath("docs/nodewatch.md").read_text(encoding="utf-8")
    assert f"{false_overdue(TIMING, 0.2):.1e}" in text


@pytest.mark.parametrize("seed", range(2))
def test_a_fifth_of_all_packets_lost_makes_nobody_overdue_and_shuts_no_gate(seed: int) -> None:
    sim = settled(seed)
    sim.network.drop = 0.2
    said = len(sim.transcript)
    while sim.now < 125_000:
        sim.run_until(sim.now + 50)
        assert sim.nodes[sim.owner].gate_open()
    assert not [line for line in sim.transcript[said:] if "overdue" in line or "lease lost" in line]
    assert sim.takeovers == 0


def test_without_probes_the_same_loss_does_make_nodes_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prober, "due", lambda self, now_ms: [])
    monkeypatch.setattr(Prober, "deadline_ms", lambda self, now_ms, before_ms: None)
    sim = settled(0)
    sim.network.drop = 0.2
    sim.run_until(125_000)
    assert any("alive->overdue" in line for line in sim.transcript)


def test_a_request_of_a_confused_peer_is_dropped() -> None:
    asks, _ = prober((2, 3))
    assert asks.favour(2, 99, 1, 500) == []
    assert asks.favour(2, 2, 1, 500) == []
    sim = settled()
    watch = sim.nodes[1].watch
    assert watch is not None
    session = watch._admission.session(2)
    assert session is not None
    cut_short = session.ciphers[0].seal(session.window.newest + 1, bytes([REQUEST]) + b"xx")
    watch.step(ev.Datagram(now_ms=sim.nodes[1].clock(), source="10.0.0.2", data=cut_short))
    assert watch.view(sim.nodes[1].clock()).drops == {"authentic, but not understood": 1}
