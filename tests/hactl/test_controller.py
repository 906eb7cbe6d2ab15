"""The volume's machine: every phase meets every event, and the rules of its docstring hold on every path."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from hactl import controller
from hactl.controller import (
    Assigned,
    Event,
    LeaseChanged,
    Noticed,
    Phase,
    Run,
    Step,
    StepDone,
    StepFailed,
    Tick,
    Volume,
    check,
)
from hactl.messages import Order


def order(number: int, term: int = 1) -> Order:
    return Order(term=term, number=number)


def mine(number: int = 1, wait_until_ms: int = 0) -> Assigned:
    return Assigned(order=order(number), mine=True, wait_until_ms=wait_until_ms)


def others(number: int = 2, *, stop: bool = False) -> Assigned:
    return Assigned(order=order(number), mine=False, stop=stop)


def feed(volume: Volume, *events: Event) -> tuple[Volume, list[Run]]:
    runs: list[Run] = []
    for event in events:
        volume, more = volume.step(event)
        runs.extend(more)
        assert check(volume) == []
    return volume, runs


def run_all(volume: Volume, *, fail: dict[Step, StepFailed] | None = None) -> tuple[Volume, list[Step]]:
    """Answer every step as it is asked, until the machine rests; returns the steps that it asked for."""
    asked = []
    for _ in range(100):
        if volume.running is None:
            return volume, asked
        step = volume.running
        asked.append(step)
        answer = (fail or {}).get(step) or StepDone(step=step)
        volume, _ = volume.step(answer)
        assert check(volume) == []
    raise AssertionError(f"never came to rest: {asked[-10:]}")


def serving() -> Volume:
    volume, _ = feed(controller.standby("v1"), LeaseChanged(held=True), mine(), Tick(now_ms=1000))
    volume, _ = run_all(volume)
    assert volume.phase is Phase.SERVING
    return volume


def test_a_take_fences_first_and_opens_the_address_last() -> None:
    volume, runs = feed(controller.standby("v1"), LeaseChanged(held=True), mine())
    assert runs == [Run(step=Step.ACQUIRE)]
    volume, asked = run_all(volume)
    assert asked[:6] == [Step.ACQUIRE, Step.MOUNT, Step.TRACK, Step.EXPORT, Step.VERIFY, Step.OPEN]
    assert volume.phase is Phase.SERVING


def test_a_taker_waits_for_the_old_lease_with_the_export_ready() -> None:
    waiting = controller.standby("v1", fence_early_ms=829)
    volume, _ = feed(waiting, LeaseChanged(held=True), mine(wait_until_ms=5000), Tick(now_ms=4700))
    volume, asked = run_all(volume)
    assert asked[:2] == [Step.LISTEN, Step.ACQUIRE]
    assert (volume.phase, asked[-1]) == (Phase.WAITING, Step.EXPORT)
    volume, runs = feed(volume, Tick(now_ms=4999))
    assert runs == []
    volume, runs = feed(replace(volume, suspended_ms=4000), Tick(now_ms=5000))
    assert runs == [Run(step=Step.VERIFY)]


def test_a_word_told_again_never_lengthens_the_wait() -> None:
    volume, _ = feed(controller.standby("v1"), mine(wait_until_ms=5000), mine(wait_until_ms=9000))
    assert volume.wait_until_ms == 5000


def test_without_a_lease_the_address_stays_shut() -> None:
    volume, _ = feed(controller.standby("v1"), mine())
    volume, asked = run_all(volume)
    assert volume.phase is Phase.WAITING
    assert Step.OPEN not in asked


def test_a_lease_lost_while_the_handle_is_verified_keeps_the_address_shut() -> None:
    volume, _ = feed(controller.standby("v1"), LeaseChanged(held=True), mine())
    while volume.running is not Step.VERIFY:
        assert volume.running is not None
        volume, _ = feed(volume, StepDone(step=volume.running))
    volume, runs = feed(volume, LeaseChanged(held=False), StepDone(step=Step.VERIFY))
    assert (volume.phase, runs) == (Phase.WAITING, [])


def test_a_lost_lease_suspends_and_resumes_only_through_the_disk() -> None:
    volume, runs = feed(serving(), LeaseChanged(held=False))
    if volume.running is not None:
        volume, runs = feed(volume, StepDone(step=volume.running))
    assert volume.phase is Phase.SUSPENDED
    volume, runs = feed(volume, LeaseChanged(held=True), Tick(now_ms=volume.now_ms + 600))
    assert runs[-1] == Run(step=Step.VERIFY)
    volume, runs = feed(volume, StepDone(step=Step.VERIFY))
    assert runs == [Run(step=Step.OPEN)]


def test_an_adopted_take_waits_on_whatever_a_new_leader_says() -> None:
    """Found by the simulation: leader and taker were one host, and its restarted hactld told itself that it served."""
    volume, _ = controller.adopting(controller.standby("v1"), order(1), wait_until_ms=5000)
    volume, _ = feed(volume, LeaseChanged(held=True), Tick(now_ms=4000), mine(2, wait_until_ms=4000), mine(2, 4100))
    volume, asked = run_all(volume)
    assert Step.OPEN not in asked and volume.phase is Phase.WAITING
    volume, _ = feed(volume, Tick(now_ms=4999), mine(2, wait_until_ms=4999))
    assert volume.phase is Phase.WAITING
    volume, runs = feed(volume, Tick(now_ms=5000))
    assert volume.phase is not Phase.WAITING and runs


def test_a_new_leader_that_finds_a_take_under_way_does_not_shorten_its_wait() -> None:
    """It says "kept by the new leader", and knows of no wait."""
    kept = Assigned(order=order(1, term=2), mine=True, wait_until_ms=4700)
    taking = controller.standby("v1", fence_early_ms=829)
    volume, _ = feed(taking, LeaseChanged(held=True), mine(wait_until_ms=5000), Tick(now_ms=4700), kept)
    volume, asked = run_all(volume)
    assert (volume.phase, asked[-1]) == (Phase.WAITING, Step.EXPORT)
    volume, runs = feed(volume, kept, Tick(now_ms=4999), replace(kept, wait_until_ms=4999))
    assert (volume.phase, runs) == (Phase.WAITING, [])
    volume, runs = feed(replace(volume, suspended_ms=4000), Tick(now_ms=5000))
    assert runs == [Run(step=Step.VERIFY)]


def test_a_lease_that_was_lost_and_held_again_during_one_check_is_not_forgotten() -> None:
    """Found by the simulation: the node was barred and let in meanwhile, so its gate stayed shut until it was handed
    over anew, and the volume called itself served for ever."""
    for phase, step in ((Phase.SERVING, Step.VERIFY), (Phase.RECLAIMING, Step.WATCH_GRACE)):
        volume, runs = feed(replace(serving(), phase=phase), Tick(now_ms=5000))
        assert runs == [Run(step=step)]
        volume, _ = feed(volume, LeaseChanged(held=False), LeaseChanged(held=True))
        assert volume.phase is Phase.SUSPENDED
        volume, _ = feed(volume, StepDone(step=step), Tick(now_ms=volume.now_ms + 1))
        volume, asked = run_all(volume)
        assert asked[:2] == [Step.VERIFY, Step.OPEN]
        assert volume.phase is Phase.SERVING


@pytest.mark.parametrize(("shut_ms", "first"), [(1000, Step.OPEN), (3000, Step.UNEXPORT)])
def test_an_address_that_was_shut_for_long_comes_back_with_a_new_grace(shut_ms: int, first: Step) -> None:
    volume, _ = feed(serving(), LeaseChanged(held=False))
    volume, _ = run_all(volume)
    assert volume.phase is Phase.SUSPENDED
    volume, _ = feed(volume, LeaseChanged(held=True), Tick(now_ms=volume.suspended_ms + shut_ms))
    assert volume.running is Step.VERIFY
    volume, asked = run_all(volume)
    assert asked[1] is first
    assert volume.phase is Phase.SERVING
    if first is Step.UNEXPORT:
        assert asked[1:6] == [Step.UNEXPORT, Step.TRACK, Step.EXPORT, Step.VERIFY, Step.OPEN]


def test_a_taker_that_waited_for_long_begins_a_new_grace_before_it_opens() -> None:
    volume, _ = feed(controller.standby("v1"), mine(), Tick(now_ms=1000))
    volume, _ = run_all(volume)
    assert volume.phase is Phase.WAITING
    volume, runs = feed(volume, Tick(now_ms=20_000), LeaseChanged(held=True))
    assert runs == [Run(step=Step.UNEXPORT)]
    volume, asked = run_all(volume)
    assert asked[:5] == [Step.UNEXPORT, Step.TRACK, Step.EXPORT, Step.VERIFY, Step.OPEN]


def test_a_lost_handle_takes_everything_down_address_first() -> None:
    volume, runs = feed(serving(), Tick(now_ms=9000))
    assert runs == [Run(step=Step.VERIFY)]
    volume, _ = feed(volume, StepFailed(step=Step.VERIFY, text="preempted", lost=True))
    assert volume.lost
    volume, asked = run_all(volume)
    assert asked[:5] == [Step.SHUT, Step.UNEXPORT, Step.UNTRACK, Step.UNMOUNT, Step.FORGET]


def checked_at(now_ms: int) -> Volume:
    """Serving, and checked at that moment."""
    volume, _ = feed(serving(), Tick(now_ms=now_ms), StepDone(step=Step.VERIFY), Tick(now_ms=now_ms))
    return volume


def test_a_notice_verifies_the_handle_at_once_but_only_where_there_is_one() -> None:
    volume, runs = feed(serving(), Tick(now_ms=9000), StepDone(step=Step.VERIFY), Tick(now_ms=9001))
    assert runs == [Run(step=Step.VERIFY)] and volume.running is None
    volume, runs = feed(volume, Noticed(now_ms=9001))
    assert runs == [Run(step=Step.VERIFY)]
    again, runs = feed(volume, Noticed(now_ms=9001))
    assert runs == [], "one check at a time; the next follows this one at once"
    again, runs = feed(again, StepDone(step=Step.VERIFY), Tick(now_ms=9001))
    assert runs == [Run(step=Step.VERIFY)]
    for phase in set(Phase) - controller.CHECKED_PHASES:
        elsewhere = replace(volume, phase=phase, running=Step.LISTEN)
        assert elsewhere.step(Noticed(now_ms=9001)) == (elsewhere, ())
    due, runs = feed(checked_at(9001), Noticed(now_ms=30_000))
    assert runs == [Run(step=Step.VERIFY)] and due.prompted and due.asked_ms == 30_000, "also where a check was due"


def test_a_loss_says_whether_a_notice_led_to_it_or_the_clock() -> None:
    lost = StepFailed(step=Step.VERIFY, text="preempted", lost=True)
    by_clock, _ = feed(serving(), Tick(now_ms=9000), lost)
    assert by_clock.failure == "verify: preempted"
    checked, _ = feed(serving(), Tick(now_ms=9000), StepDone(step=Step.VERIFY), Tick(now_ms=9001))
    by_notice, runs = feed(checked, Noticed(now_ms=9001), lost)
    assert runs[0] == Run(step=Step.VERIFY) and by_notice.failure == "verify: after a notice: preempted"
    # The check ran already when the notice came: the clock had found it.
    overtaken, _ = feed(serving(), Tick(now_ms=9000), Noticed(now_ms=9001), lost)
    assert overtaken.failure == "verify: preempted"
    # A notice that found nothing wrong is used up.
    later, _ = feed(checked, Noticed(now_ms=9001), StepDone(step=Step.VERIFY), Tick(now_ms=11_000), lost)
    assert later.failure == "verify: preempted"


def test_a_lost_file_system_is_unmounted_by_force() -> None:
    volume, _ = feed(serving(), Tick(now_ms=9000), StepFailed(step=Step.VERIFY, text="preempted", lost=True))
    runs: list[Run] = []
    while volume.running not in (Step.UNMOUNT, None):
        volume, more = feed(volume, StepDone(step=volume.running))  # type: ignore[arg-type]
        runs.extend(more)
    assert runs[-1] == Run(step=Step.UNMOUNT, forced=True)


def test_a_primary_that_still_answers_is_not_fenced_before_its_lease_is_over() -> None:
    volume, _ = feed(controller.standby("v1"), LeaseChanged(held=True), Tick(now_ms=1000), mine(wait_until_ms=2000))
    assert volume.running is Step.LISTEN
    for _ in range(5):
        volume, runs = feed(volume, StepDone(step=Step.LISTEN, settled=False))
        assert (volume.phase, runs, volume.holding) == (Phase.LISTENING, [], False)
        volume, runs = feed(volume, Tick(now_ms=volume.next_check_ms))
        assert runs == [Run(step=Step.LISTEN)]
    volume, _ = feed(volume, StepFailed(step=Step.LISTEN, text="no link"))
    volume, runs = feed(volume, Tick(now_ms=2000))
    assert runs == [Run(step=Step.ACQUIRE)]


def test_silence_alone_does_not_fence_a_primary_whose_address_may_still_be_there() -> None:
    """In a split the question does not arrive: the old primary answers its clients, and nobody else."""
    early_ms = 5000 - 829
    waiting = controller.standby("v1", fence_early_ms=829)
    volume, _ = feed(waiting, LeaseChanged(held=True), Tick(now_ms=1000), mine(wait_until_ms=5000))
    volume, runs = feed(volume, StepDone(step=Step.LISTEN))
    assert (volume.phase, runs, volume.holding) == (Phase.LISTENING, [], False)
    assert volume.next_check_ms == early_ms - controller.LISTEN_MS
    volume, runs = feed(volume, Tick(now_ms=volume.next_check_ms))
    assert runs == [Run(step=Step.LISTEN)]
    volume, runs = feed(volume, Tick(now_ms=early_ms), StepDone(step=Step.LISTEN))
    assert runs == [Run(step=Step.ACQUIRE)]


def test_a_taker_that_listens_holds_nothing_and_leaves_at_once() -> None:
    volume, _ = feed(controller.standby("v1"), mine(wait_until_ms=2000))
    volume, runs = feed(volume, others(), StepDone(step=Step.LISTEN, settled=False))
    assert (volume.phase, runs) == (Phase.STANDBY, [])


@pytest.mark.parametrize("silent", [True, False])
def test_a_disk_that_does_not_answer_shuts_the_address_until_it_does(silent: bool) -> None:
    volume, _ = feed(serving(), Tick(now_ms=9000))
    assert volume.running is Step.VERIFY
    if silent:
        volume, runs = feed(volume, Tick(now_ms=9000 + controller.DOUBT_MS))
        assert volume.running is Step.VERIFY
    else:
        volume, runs = feed(volume, StepFailed(step=Step.VERIFY, text="timeout"))
        assert "timeout" in volume.failure
    assert (volume.phase, runs) == (Phase.SUSPENDED, [Run(step=Step.DOUBT)])
    if silent:
        volume, _ = feed(volume, StepDone(step=Step.VERIFY))
    else:
        volume, _ = feed(volume, Tick(now_ms=volume.next_check_ms), StepDone(step=Step.VERIFY))
    assert (volume.doubt_ms, volume.failure) == (None, "")
    volume, asked = run_all(volume)
    assert Step.OPEN in asked
    assert volume.phase is Phase.SERVING


def test_a_doubt_that_lasts_is_reported_as_a_failure() -> None:
    volume, _ = feed(serving(), Tick(now_ms=9000), StepFailed(step=Step.VERIFY, text="timeout"))
    assert volume.failed != volume.order
    volume, _ = feed(volume, Tick(now_ms=volume.next_check_ms))
    volume, _ = feed(volume, Tick(now_ms=9000 + controller.GIVE_UP_MS))
    assert (volume.phase, volume.failed) == (Phase.SUSPENDED, volume.order)


def test_a_planned_move_away_releases_nothing_and_forgets_the_handle() -> None:
    volume, _ = feed(serving(), others())
    if volume.running is Step.VERIFY:
        volume, _ = feed(volume, StepDone(step=Step.VERIFY))
    volume, asked = run_all(volume)
    assert asked == [Step.SHUT, Step.UNEXPORT, Step.UNTRACK, Step.UNMOUNT, Step.FORGET]
    assert volume.phase is Phase.STANDBY


def test_a_stop_marks_the_label_before_the_handle_is_forgotten() -> None:
    volume, _ = feed(serving(), others(stop=True))
    volume, asked = run_all(volume)
    assert asked[-2:] == [Step.RELEASE, Step.FORGET]


def test_a_failed_acquisition_is_reported_and_not_repeated_on_the_same_word() -> None:
    volume, _ = feed(controller.standby("v1"), mine())
    volume, runs = feed(volume, StepFailed(step=Step.ACQUIRE, text="foreign key"))
    assert (volume.phase, volume.failed, runs) == (Phase.STANDBY, order(1), [])
    volume, runs = feed(volume, mine(1), Tick(now_ms=10_000))
    assert runs == []
    volume, runs = feed(volume, mine(2))
    assert runs == [Run(step=Step.ACQUIRE)]


@pytest.mark.parametrize("step", [Step.MOUNT, Step.TRACK, Step.EXPORT, Step.VERIFY])
def test_a_take_that_fails_later_is_taken_down_again(step: Step) -> None:
    volume, _ = feed(controller.standby("v1"), LeaseChanged(held=True), mine())
    volume, asked = run_all(volume, fail={step: StepFailed(step=step, text="broken")})
    assert (volume.phase, volume.failed) == (Phase.STANDBY, order(1))
    assert asked[-5:] == [Step.SHUT, Step.UNEXPORT, Step.UNTRACK, Step.UNMOUNT, Step.FORGET]


def open_fails(volume: Volume) -> Volume:
    volume, _ = run_all(volume, fail={Step.OPEN: StepFailed(step=Step.OPEN, text="gate closed")})
    return volume


def test_an_address_that_will_not_open_is_tried_again_and_then_given_up() -> None:
    volume, _ = feed(controller.standby("v1"), LeaseChanged(held=True), mine())
    for _ in range(controller.OPEN_TRIES - 1):
        volume = open_fails(volume)
        assert volume.phase is Phase.SUSPENDED
        volume, runs = feed(volume, Tick(now_ms=volume.next_check_ms))
        assert runs == [Run(step=Step.VERIFY)]
    volume = open_fails(volume)
    assert (volume.phase, volume.failed) == (Phase.STANDBY, order(1))


def test_an_address_that_stays_shut_without_a_lease_is_never_given_up() -> None:
    volume, _ = feed(controller.standby("v1"), LeaseChanged(held=True), mine())
    for _ in range(controller.OPEN_TRIES + 2):
        while volume.running is not Step.OPEN:
            assert volume.running is not None
            volume, _ = feed(volume, StepDone(step=volume.running))
        volume, _ = feed(volume, LeaseChanged(held=False), StepFailed(step=Step.OPEN, text="gate closed"))
        assert volume.phase is Phase.SUSPENDED
        volume, _ = feed(volume, LeaseChanged(held=True), Tick(now_ms=volume.next_check_ms))


def test_what_cannot_be_taken_down_is_tried_again_and_holds_the_volume() -> None:
    volume, _ = feed(serving(), others())
    volume, _ = run_all(volume, fail={Step.UNMOUNT: StepFailed(step=Step.UNMOUNT, text="busy")})
    assert volume.phase is Phase.STUCK
    assert volume.holding
    volume, runs = feed(volume, Tick(now_ms=volume.next_check_ms))
    assert runs == [Run(step=Step.SHUT)]


def test_a_fenced_node_that_cannot_unmount_does_not_block_the_next_taker() -> None:
    volume, _ = feed(serving(), Tick(now_ms=9000), StepFailed(step=Step.VERIFY, text="preempted", lost=True))
    volume, _ = run_all(volume, fail={Step.UNMOUNT: StepFailed(step=Step.UNMOUNT, text="busy")})
    assert volume.phase is Phase.STUCK
    assert not volume.holding


def test_an_older_leaders_word_is_not_followed() -> None:
    volume = serving()
    after, runs = feed(volume, Assigned(order=Order(term=0, number=9), mine=False))
    assert (after, runs) == (volume, [])


def test_a_new_leaders_word_for_the_holder_interrupts_nothing() -> None:
    volume, runs = feed(serving(), Assigned(order=Order(term=2, number=1), mine=True))
    assert (volume.phase, volume.order) == (Phase.SERVING, Order(term=2, number=1))
    assert Run(step=Step.SHUT) not in runs


def test_a_restarted_daemon_verifies_the_recorded_handle_before_anything_else() -> None:
    volume, runs = controller.adopting(controller.standby("v1"), order(3), wait_until_ms=0)
    assert runs == (Run(step=Step.VERIFY),)
    volume, _ = feed(volume, LeaseChanged(held=True))
    volume, asked = run_all(volume)
    assert Step.ACQUIRE not in asked
    assert volume.phase is Phase.SERVING


def test_a_daemon_killed_in_the_midst_of_a_takeover_goes_on_waiting_for_the_old_lease() -> None:
    """Simulation, seed 362 of 2026-11-21: the new daemon opened the address at once, and two nodes had it."""
    volume, _ = controller.adopting(controller.standby("v1"), order(3), wait_until_ms=3000)
    volume, _ = feed(volume, Tick(now_ms=1000), LeaseChanged(held=True))
    volume, asked = run_all(volume)
    assert (volume.phase, Step.OPEN in asked) == (Phase.WAITING, False)
    again = Assigned(order=order(3), mine=True, wait_until_ms=3300)
    volume, _ = feed(volume, again, Tick(now_ms=2999))
    assert volume.phase is Phase.WAITING
    volume, runs = feed(volume, Tick(now_ms=3000))
    assert runs == [Run(step=Step.VERIFY)]


def test_a_restarted_daemon_whose_handle_is_lost_takes_everything_down() -> None:
    volume, _ = controller.adopting(controller.standby("v1"), order(3), wait_until_ms=0)
    volume, _ = feed(volume, StepFailed(step=Step.VERIFY, text="preempted", lost=True))
    volume, asked = run_all(volume)
    assert asked[0] is Step.SHUT
    assert volume.phase is Phase.STANDBY


EVENTS: list[Event] = [
    mine(1),
    mine(5, wait_until_ms=700),
    others(6),
    others(7, stop=True),
    LeaseChanged(held=True),
    LeaseChanged(held=False),
    Tick(now_ms=100),
    Tick(now_ms=50_000),
    *[StepDone(step=step) for step in Step],
    StepDone(step=Step.WATCH_GRACE, settled=False),
    *[StepFailed(step=step, text="x") for step in Step],
    *[StepFailed(step=step, text="x", lost=True) for step in Step],
]


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_takes_every_event_without_an_error(phase: Phase) -> None:
    for event, running, is_mine, lease in itertools.product(EVENTS, [None, *Step], [True, False], [True, False]):
        volume = replace(
            controller.standby("v1"), phase=phase, running=running, mine=is_mine, lease=lease, order=order(2)
        )
        after, runs = volume.step(event)
        assert len(runs) <= 1
        asked = [run for run in runs if run.step is not Step.DOUBT]
        assert (after.running is not None) == bool(asked) or after.running == running


def test_an_answer_to_a_step_nobody_asked_for_changes_nothing() -> None:
    volume = serving()
    for event in (StepDone(step=Step.ACQUIRE), StepFailed(step=Step.MOUNT, text="x", lost=True)):
        assert volume.step(event) == (volume, ())


class World:
    """The truth behind random histories: what the steps that really ran have built."""

    def __init__(self) -> None:
        self.handle = self.mounted = self.open = False
        self.verified_since_lease = False
        self.looking = False

    def ran(self, step: Step) -> None:
        if step is Step.MOUNT:
            assert self.handle, "mounted without a handle"
            self.mounted = True
        elif step is Step.OPEN:
            assert self.handle, "opened without a handle"
            assert self.mounted, "opened without the file system"
            self.open = True
        elif step is Step.SHUT:
            self.open = False
        elif step is Step.UNMOUNT:
            assert not self.open, "unmounted under an open address"
            self.mounted = False
        elif step is Step.FORGET:
            assert not self.mounted, "forgot the handle of a mounted file system"
            self.handle = False
        elif step is Step.ACQUIRE:
            assert not self.mounted, "a new handle over an old mount"
            self.handle = True
        elif step is Step.VERIFY:
            self.verified_since_lease = self.looking


@pytest.mark.parametrize("seed", range(300))
def test_random_histories_keep_the_order_of_handle_mount_and_address(seed: int) -> None:
    rng = random.Random(seed)
    volume, world, number, now = controller.standby("v1"), World(), 0, 0
    for _ in range(200):
        event: Event
        if volume.running is not None and rng.random() < 0.6:
            step = volume.running
            if rng.random() < 0.85:
                world.ran(step)
                event = StepDone(step=step, settled=rng.random() < 0.7)
            else:
                event = StepFailed(step=step, text="x", lost=step is Step.VERIFY and rng.random() < 0.5)
        elif rng.random() < 0.4:
            number += rng.choice([0, 1])
            event = Assigned(
                order=order(number), mine=rng.random() < 0.7, stop=rng.random() < 0.3, wait_until_ms=now + 300
            )
        elif rng.random() < 0.5:
            held = rng.random() < 0.7
            if not held:
                world.verified_since_lease = False
                world.open = False  # nodewatch shuts the gate by itself
            event = LeaseChanged(held=held)
        else:
            now += rng.randrange(1000)
            event = Tick(now_ms=now)
        volume, runs = volume.step(event)
        if runs and runs[0].step is not Step.DOUBT:
            world.looking = runs[0].step is Step.VERIFY
            if runs[0].step is Step.OPEN:
                assert world.verified_since_lease, "opening without a look at the disk since the lease came back"
        assert check(volume) == []
