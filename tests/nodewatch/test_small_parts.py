"""Detector, gates, daemon watch, letters, stable state."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nodewatch._stable import FILE, StableFile, StableUnusable
from nodewatch.daemonwatch import DaemonWatch
from nodewatch.detector import Detector
from nodewatch.gates import Gates
from nodewatch.heartbeat import Daemon
from nodewatch.lease import Timing
from nodewatch.letters import GIVE_UP_MS, MAX_MESSAGE, RESEND_MS, Inbox, Outbox
from nodewatch.stable import Stable, StableCorrupt, from_text, next_generation, to_text

TIMING = Timing(heartbeat_ms=200, overdue_ms=800, gate_lifetime_s=1, gate_slack_ms=250)


# --- detector


def detector() -> Detector:
    fresh = Detector([1, 3], heartbeat_ms=200, overdue_ms=800, now_ms=0)
    fresh.running(0)
    return fresh


def run_to(watched: Detector, now_ms: int) -> None:
    """The process runs all the time."""
    for at_ms in range(watched._last_run, now_ms + 1, 100):
        watched.running(at_ms)
    watched.running(now_ms)


def test_a_node_is_overdue_after_its_silence_and_alive_when_heard_again() -> None:
    watched = detector()
    assert watched.state(1) == "unheard"
    assert watched.heard(1, 0)
    run_to(watched, 799)
    assert watched.newly_overdue(799) == []
    run_to(watched, 800)
    assert watched.newly_overdue(800) == [1]
    assert watched.newly_overdue(900) == []
    assert watched.heard(1, 1000)
    assert watched.state(1) == "alive"


def test_silence_while_we_did_not_run_ourselves_is_excused() -> None:
    watched = detector()
    watched.heard(1, 0)
    assert watched.running(5000) == 5000 - 400
    assert watched.newly_overdue(5000) == []
    run_to(watched, 5400)
    assert watched.newly_overdue(5400) == [1]


def test_a_goodbye_counts_at_once_and_until_a_new_process_speaks() -> None:
    watched = detector()
    watched.heard(1, 0)
    assert watched.said_goodbye(1)
    assert not watched.said_goodbye(1)
    assert not watched.heard(1, 10)
    assert watched.state(1) == "overdue"
    watched.reborn(1)
    assert watched.heard(1, 20)


def test_an_unheard_node_never_becomes_overdue_by_itself() -> None:
    watched = detector()
    run_to(watched, 100_000)
    assert watched.newly_overdue(100_000) == []
    assert watched.deadline_ms() is None


# --- gates


def gates(*volumes: str, latched: bool = False) -> Gates:
    fresh = Gates(TIMING)
    for volume in volumes:
        fresh.register(volume, now_ms=0, latched=latched)
    return fresh


def test_all_gates_are_renewed_together() -> None:
    mine = gates("v1", "v2")
    assert mine.due(10) == ("v1", "v2")
    mine.renewed({"v1": True, "v2": True}, 10, 9999)
    assert mine.due(100) == ()
    assert mine.due(160) == ("v1", "v2")
    mine.register("v3", now_ms=100, latched=False)
    assert mine.due(100) == ("v1", "v2", "v3")


def test_a_gate_is_open_for_its_lifetime_after_a_renewal() -> None:
    mine = gates("v1")
    assert mine.states(0) == {"v1": "closed"}
    mine.renewed({"v1": True}, 10, 9999)
    assert mine.states(1009) == {"v1": "open"}
    assert mine.states(1010) == {"v1": "closed"}
    assert not mine.all_shut(1259)
    assert mine.all_shut(1260)


def test_a_gate_registered_just_now_may_be_open_already() -> None:
    assert not gates("v1").all_shut(1249)
    assert gates("v1").all_shut(1250)


def test_a_renewal_that_came_too_late_is_named() -> None:
    mine = gates("v1")
    assert mine.renewed({"v1": True}, 1000, lease_end_ms=2250) == ()
    assert mine.renewed({"v1": True}, 1001, lease_end_ms=2250) == ("v1",)


def test_a_renewal_keeps_every_other_gate_open_in_the_kernel() -> None:
    mine = gates("v1", "v2")
    mine.renewed({"v1": True, "v2": False}, 1000, 9999)
    mine.closed({"v1": True}, 1000)
    assert not mine.all_shut(2249)


def test_a_latched_gate_is_not_renewed_and_is_closed() -> None:
    mine = gates("v1")
    mine.renewed({"v1": True}, 0, 9999)
    mine.latch()
    assert mine.due(5000) == ()
    assert mine.closing(10) == ("v1",)
    mine.closed({"v1": True}, 10)
    assert mine.closing(11) == ()
    assert mine.all_shut(11)


def test_a_gate_that_could_not_be_closed_is_tried_again_and_not_called_shut() -> None:
    mine = gates("v1")
    mine.renewed({"v1": True}, 0, 9999)
    mine.closed({"v1": False}, 10)
    assert not mine.all_shut(20)
    assert mine.closing(20) == ()
    assert mine.closing(110) == ("v1",)


def test_a_gate_taken_back_unclosed_counts_until_its_lifetime_ended() -> None:
    mine = gates("v1")
    mine.renewed({"v1": True}, 0, 9999)
    mine.forget("v1", closed=False)
    assert not mine.all_shut(1249)
    assert mine.all_shut(1250)


# --- daemon watch


def test_a_daemon_that_stops_beating_is_hung_and_one_that_hangs_up_is_gone() -> None:
    watch = DaemonWatch(TIMING)
    assert watch.state(0) == Daemon.ABSENT
    watch.beat(0)
    assert watch.state(1999) == Daemon.OK
    assert watch.deadline_ms(1999) == 2000
    assert watch.state(2000) == Daemon.HUNG
    assert watch.deadline_ms(2000) is None
    watch.beat(3000)
    watch.gone(3500)
    assert watch.state(13_499) == Daemon.GONE
    assert watch.state(13_500) == Daemon.ABSENT


def test_beats_that_wait_while_we_do_not_run_are_excused() -> None:
    watch = DaemonWatch(TIMING)
    watch.beat(0)
    watch.excuse(5000)
    assert watch.state(6000) == Daemon.OK


# --- letters


def exchange(messages: list[bytes], *, loss: float, seed: int = 1, until_ms: int = 4000) -> list[bytes]:
    """Both ends over a network that loses and reorders; acknowledgements come with every heartbeat."""
    draw, received, now = random.Random(seed), list[bytes](), 0
    outbox, inbox = Outbox(), Inbox()
    outbox.open(9)
    assert all(outbox.put(message, 0) for message in messages)
    while now < until_ms:
        letters, _ = outbox.due(now)
        draw.shuffle(letters)
        for letter in letters:
            if draw.random() >= loss:
                received += inbox.receive(letter)
        if draw.random() >= loss:
            outbox.acked(inbox.stream, inbox.expected)
        now += 100
    return received


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_messages_arrive_once_and_in_order(loss: float) -> None:
    messages = [b"x" * size for size in (0, 1, 1199, 1200, 1201, 5000)] + [str(n).encode() for n in range(20)]
    for seed in range(20):
        assert exchange(messages, loss=loss, seed=seed) == messages


def test_a_message_of_the_largest_size_arrives() -> None:
    message = random.Random(1).randbytes(MAX_MESSAGE)
    assert exchange([message], loss=0.0) == [message]


def test_what_is_never_acknowledged_is_given_up_and_a_new_stream_begins() -> None:
    outbox, inbox = Outbox(), Inbox()
    outbox.open(9)
    outbox.put(b"one", 0)
    assert len(outbox.due(0)[0]) == 1
    assert len(outbox.due(RESEND_MS)[0]) == 1
    assert outbox.due(GIVE_UP_MS) == ([], 1)
    outbox.put(b"two", GIVE_UP_MS)
    [letter] = outbox.due(GIVE_UP_MS)[0]
    assert inbox.receive(letter) == [b"two"]
    assert letter.place == 0


def test_letters_to_a_process_that_ended_are_dropped() -> None:
    outbox = Outbox()
    assert not outbox.put(b"nobody is there yet", 0)
    outbox.open(9)
    outbox.put(b"one", 0)
    assert outbox.open(10) == 1
    assert outbox.due(1)[0] == []


def test_an_acknowledgement_of_another_stream_means_nothing() -> None:
    outbox = Outbox()
    outbox.open(9)
    outbox.put(b"one", 0)
    outbox.due(0)
    outbox.acked(99, 5)
    assert outbox.deadline_ms() is not None
    outbox.acked(1, 1)
    assert outbox.deadline_ms() is None


# --- stable state


def test_stable_state_survives_its_text() -> None:
    stable = Stable(generation=7, term=3, voted_for=2, promises=((1, 10, 11), (3, 4, 5)))
    assert from_text(to_text(stable)) == stable


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', to_text(Stable())[:-5]])
def test_a_damaged_stable_file_is_refused(text: str) -> None:
    with pytest.raises(StableCorrupt):
        from_text(text)


def test_generations_grow_even_when_the_file_or_the_clock_is_lost() -> None:
    assert next_generation(Stable(generation=500), 100) == 501
    assert next_generation(Stable(), 1_700_000_000_000) == 1_700_000_000_000


def test_the_stable_file_is_kept_and_locked(tmp_path: Path) -> None:
    file = StableFile(str(tmp_path))
    assert file.load() == Stable()
    file.save(Stable(generation=3))
    assert file.load().generation == 3
    with pytest.raises(StableUnusable, match="another node watch"):
        StableFile(str(tmp_path))


def test_a_damaged_stable_file_stops_the_start_with_advice(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("garbage")
    with pytest.raises(StableUnusable, match="move the file away"):
        StableFile(str(tmp_path)).load()
