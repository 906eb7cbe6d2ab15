"""The door, and what hostile or confused senders can do to a whole node: nothing, and it is told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nodewatch import events as ev
from nodewatch import wire
from nodewatch.admission import CONFLICT_SHOWN_MS, Admission, Admitted
from nodewatch.config import NodeConfig
from nodewatch.heartbeat import Entry, Letter, Pulse, Said, encode_heartbeat, encode_letter, encode_said
from nodewatch.wire import Cipher

from .cluster_sim import KEY, UUID, Simulation

ME, PEER = NodeConfig(name="n1", number=1, address="10.0.0.1"), NodeConfig(name="n2", number=2, address="10.0.0.2")
MY_GENERATION, MY_SEQ = 100, 50


def door() -> Admission:
    return Admission(keys=(KEY,), uuid=UUID, me=ME, generation=MY_GENERATION, peers=[PEER], now_ms=0)


def heartbeat(named_generation: int, named_seq: int) -> bytes:
    said = Said(
        0, 0, 0, bytes(8), 1, bytes(8), 0, 0, bytes(8), 0, 0, 0, 0, 0, (Entry(1, 0, named_generation, 0, 0, 0, 0),), ()
    )
    return encode_heartbeat(encode_said(said), [Pulse(named_seq, 0, 0)])


def frame(seq: int, *, generation: int = 7, names: tuple[int, int] = (MY_GENERATION, 10), sender: int = 2) -> bytes:
    return Cipher(KEY, UUID, sender, generation).seal(seq, heartbeat(*names))


def knock(at: Admission, datagram: bytes, *, source: str = "10.0.0.2", my_seq: int = MY_SEQ) -> Admitted | None:
    return at.admit(source, datagram, now_ms=10_000, my_seq=my_seq)


def test_a_process_is_believed_once_it_names_ours() -> None:
    entrance = door()
    assert knock(entrance, frame(1, names=(0, 0))) is None
    assert entrance.unproven(2)
    newest = entrance.newest(2)
    assert newest is not None and (newest.generation, newest.beat_seq) == (7, 1), "so that it learns of us"
    admitted = knock(entrance, frame(2))
    assert admitted is not None and admitted.reborn
    again = knock(entrance, frame(3))
    assert again is not None and not again.reborn


def test_a_recording_of_an_earlier_process_is_not_believed_by_a_fresh_one() -> None:
    entrance = door()
    assert knock(entrance, frame(1, names=(MY_GENERATION - 1, 10))) is None, "it names a process before ours"
    assert knock(entrance, frame(2, names=(MY_GENERATION, MY_SEQ + 1))) is None, "it names what we never sent"
    assert entrance.session(2) is None


def test_a_replayed_frame_is_dropped_and_counted() -> None:
    entrance = door()
    knock(entrance, frame(1))
    assert knock(entrance, frame(1)) is None
    assert entrance.drops == {wire.REPLAYED: 1}


def test_a_frame_of_an_earlier_generation_is_dropped() -> None:
    entrance = door()
    knock(entrance, frame(1, generation=8))
    assert knock(entrance, frame(9, generation=7)) is None
    assert entrance.drops == {wire.OLD_GENERATION: 1}
    assert not entrance.conflicts(10_000), "a late packet of a process that ended is no conflict"


def test_two_live_processes_of_one_node_are_a_conflict() -> None:
    entrance = door()
    knock(entrance, frame(1, generation=8))
    assert knock(entrance, frame(9, generation=7, names=(MY_GENERATION, MY_SEQ + 5)), my_seq=MY_SEQ + 5) is None
    [sentence] = entrance.conflicts(10_000)
    assert "two processes at 10.0.0.2 call themselves n2" in sentence


def test_a_known_number_from_another_address_is_a_conflict() -> None:
    entrance = door()
    assert knock(entrance, frame(1), source="10.0.0.99") is None
    assert entrance.drops == {wire.WRONG_SOURCE: 1}
    [sentence] = entrance.conflicts(10_000)
    assert "come from 10.0.0.99, configured is 10.0.0.2" in sentence
    assert not entrance.conflicts(10_000 + CONFLICT_SHOWN_MS), "it was mended"


def test_our_own_number_from_elsewhere_is_a_conflict_but_our_own_echo_is_not() -> None:
    entrance = door()
    assert knock(entrance, frame(1, sender=1, generation=MY_GENERATION)) is None
    assert not entrance.conflicts(10_000)
    assert knock(entrance, frame(1, sender=1, generation=MY_GENERATION + 1)) is None
    [sentence] = entrance.conflicts(10_000)
    assert "also calls itself n1" in sentence


def test_a_wrong_key_is_counted_and_logged_once_a_minute_per_source() -> None:
    entrance = door()
    stranger = Cipher(bytes(32), UUID, 2, 7)
    for seq in range(1, 10):
        assert entrance.admit("10.0.0.9", stranger.seal(seq, b""), now_ms=10_000, my_seq=MY_SEQ) is None
    assert entrance.drops == {wire.WRONG_KEY: 9}
    assert len(entrance.warnings) == 1
    entrance.admit("10.0.0.9", stranger.seal(99, b""), now_ms=80_000, my_seq=1)
    assert len(entrance.warnings) == 2


def test_many_sources_of_garbage_do_not_fill_the_memory_or_the_log() -> None:
    entrance = door()
    for number in range(5000):
        entrance.admit(f"10.{number // 256}.0.{number % 256}", b"garbage", now_ms=100, my_seq=1)
    assert entrance.drops == {wire.NOT_OURS: 5000}
    assert len(entrance.warnings) <= 64


def test_an_unknown_number_with_our_key_is_told_apart_from_a_wrong_key() -> None:
    entrance = door()
    assert knock(entrance, frame(1, sender=9)) is None
    assert entrance.drops == {wire.UNKNOWN_SENDER: 1}


def test_an_authentic_body_that_means_nothing_is_dropped() -> None:
    entrance = door()
    knock(entrance, frame(1))
    assert knock(entrance, Cipher(KEY, UUID, 2, 7).seal(2, b"\x09")) is None
    assert entrance.drops == {wire.MALFORMED: 1}


def test_a_letter_alone_makes_nobody_believed() -> None:
    letter = encode_letter(Letter(MY_GENERATION, 1, 0, 1, b"{}"))
    assert knock(door(), Cipher(KEY, UUID, 2, 7).seal(1, letter)) is None


def settled_cluster() -> Simulation:
    sim = Simulation(1)
    sim.run_until(5000)
    assert sim.settled() is None
    return sim


SETTLED = settled_cluster()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1500), st.sampled_from(["10.0.0.2", "10.0.0.3", "10.9.9.9"]), st.booleans())
def test_garbage_changes_nothing_but_the_counters(data: bytes, source: str, dressed: bool) -> None:
    node = SETTLED.nodes[1]
    assert node.watch is not None
    before = node.watch.view(node.clock())
    datagram = b"hN\x01\x00\x00\x02" + data if dressed else data
    effects = node.watch.step(ev.Datagram(now_ms=node.clock(), source=source, data=datagram))
    after = node.watch.view(node.clock())
    assert sum(after.drops.values()) == sum(before.drops.values()) + 1
    assert (after.term, after.role, after.nodes) == (before.term, before.role, before.nodes)
    # What comes from a node's own address and cannot be opened may be sealed with another key: people are told.
    assert all("a key that does not count here" in told for told in set(after.conflict) - set(before.conflict))
    assert not any(isinstance(effect, ev.Persist | ev.Deliver | ev.CloseGates) for effect in effects)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.integers(1, 2))
def test_an_authentic_peer_that_talks_nonsense_cannot_crash_the_node(body: bytes, believed: bool, kind: int) -> None:
    node = SETTLED.nodes[1]
    peer = SETTLED.nodes[3]
    assert node.watch is not None and peer.watch is not None
    generation = peer.watch._generation if believed else peer.watch._generation + 7
    seal = Cipher(KEY, UUID, 3, generation)
    seq = NONSENSE_SEQS.pop()
    node.watch.step(
        ev.Datagram(now_ms=node.clock(), source="10.0.0.3", data=seal.seal(seq, bytes([kind]) + body)),
    )
    node.watch.view(node.clock())


NONSENSE_SEQS = list(range(1_000_000, 1_010_000))[::-1]


def test_a_key_that_does_not_count_is_told_with_the_remedy_when_it_comes_from_a_known_address() -> None:
    entrance = door()
    foreign = Cipher(bytes(32), UUID, 2, 7).seal(1, heartbeat(MY_GENERATION, 10))
    assert entrance.admit("10.77.1.99", foreign, now_ms=5, my_seq=20) is None
    assert entrance.conflicts(5) == ()
    assert entrance.admit(PEER.address, foreign, now_ms=5, my_seq=20) is None
    assert "copy hactl.toml and cluster.key" in entrance.conflicts(5)[0]


def test_either_of_two_keys_opens_and_a_dropped_one_does_not() -> None:
    new = bytes(32)
    entrance = door()
    entrance.configure((KEY, new), [PEER])
    assert entrance.admit(PEER.address, frame(1), now_ms=5, my_seq=20) is not None
    sealed_anew = Cipher(new, UUID, 2, 7)
    assert (
        entrance.admit(PEER.address, sealed_anew.seal(2, heartbeat(MY_GENERATION, 10)), now_ms=6, my_seq=20) is not None
    )
    entrance.configure((new,), [PEER])
    assert entrance.admit(PEER.address, frame(3), now_ms=7, my_seq=20) is None
    assert (
        entrance.admit(PEER.address, sealed_anew.seal(4, heartbeat(MY_GENERATION, 10)), now_ms=8, my_seq=20) is not None
    )
