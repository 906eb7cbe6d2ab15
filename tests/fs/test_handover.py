"""Taking and giving, decided from what is observed: walked exhaustively, cut anywhere."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fs import Mounted, Observed, Step, Tracking, Wanted, next_step

NOTHING = Observed(
    namespace=False,
    link_up=False,
    control=False,
    mounted=Mounted.NO,
    damaged=False,
    device_free=True,
    tracking=Tracking.ABSENT,
    nfsd_threads=0,
    listening=False,
    responder=False,
    address_left_s=None,
)
MOST_STEPS = 12


def do(step: Step, seen: Observed) -> Observed:
    """What a step leaves, if it works. A stand-in for the kernel."""
    match step:
        case Step.PREPARE:
            return replace(seen, namespace=True, link_up=True, control=True)
        case Step.MOUNT:
            return replace(seen, mounted=Mounted.OURS)
        case Step.START_TRACKING:
            return replace(seen, tracking=Tracking.ATTACHED if seen.nfsd_threads else Tracking.STARTING)
        case Step.START_NFSD:
            threads = seen.nfsd_threads or 8
            return replace(seen, nfsd_threads=threads, listening=True, responder=True, tracking=Tracking.ATTACHED)
        case Step.ADD_ADDRESS:
            return replace(seen, address_left_s=1, link_up=True)
        case Step.REMOVE_ADDRESS:
            return replace(seen, address_left_s=None, link_up=False)
        case Step.STOP_NFSD:
            return replace(seen, nfsd_threads=0, listening=False, responder=False)
        case Step.STOP_TRACKING:
            return replace(seen, tracking=Tracking.ABSENT)
        case Step.UNMOUNT:
            return replace(seen, mounted=Mounted.NO, damaged=False)


def plan(seen: Observed, wanted: Wanted) -> list[tuple[Step, Observed]]:
    """The steps, each with what was seen before it."""
    steps: list[tuple[Step, Observed]] = []
    while step := next_step(seen, wanted):
        steps.append((step, seen))
        assert len(steps) <= MOST_STEPS, f"no end: {steps}"
        seen = do(step, seen)
    return steps


def end(seen: Observed, wanted: Wanted) -> Observed:
    while step := next_step(seen, wanted):
        seen = do(step, seen)
    return seen


def everything() -> Iterator[Observed]:
    """Every combination of what can be seen, also those that no step leaves."""
    flags = itertools.product([False, True], repeat=6)
    for namespace, link_up, control, damaged, listening, responder in flags:
        for mounted, tracking in itertools.product(Mounted, Tracking):
            for threads, left in itertools.product([0, 8], [None, 1]):
                yield Observed(
                    namespace=namespace,
                    link_up=link_up,
                    control=control,
                    mounted=mounted,
                    damaged=damaged and mounted is not Mounted.NO,
                    device_free=mounted is Mounted.NO,
                    tracking=tracking,
                    nfsd_threads=threads,
                    listening=listening,
                    responder=responder,
                    address_left_s=left,
                )


def test_taking_builds_bottom_up() -> None:
    assert [step for step, _ in plan(NOTHING, Wanted.SERVING)] == [
        Step.PREPARE,
        Step.MOUNT,
        Step.START_TRACKING,
        Step.START_NFSD,
        Step.ADD_ADDRESS,
    ]


def test_giving_takes_down_top_down_and_prepares_again() -> None:
    serving = end(NOTHING, Wanted.SERVING)
    assert [step for step, _ in plan(serving, Wanted.STANDBY)] == [
        Step.REMOVE_ADDRESS,
        Step.STOP_NFSD,
        Step.STOP_TRACKING,
        Step.UNMOUNT,
        Step.PREPARE,
    ]


def test_from_anything_seen_the_plan_ends_and_serves() -> None:
    for seen in everything():
        last = end(seen, Wanted.SERVING) if plan(seen, Wanted.SERVING) else seen
        assert last.serving, seen
        assert last.address_left_s is not None


def test_from_anything_seen_the_plan_ends_in_standby() -> None:
    for seen in everything():
        plan(seen, Wanted.STANDBY)
        last = end(seen, Wanted.STANDBY)
        assert last.prepared, seen
        assert (last.mounted, last.tracking) == (Mounted.NO, Tracking.ABSENT)
        assert (last.nfsd_threads, last.listening, last.address_left_s) == (0, False, None)


@pytest.mark.parametrize("wanted", list(Wanted))
def test_plan_cut_after_any_step_ends_as_if_it_had_not_been_cut(wanted: Wanted) -> None:
    start = NOTHING if wanted is Wanted.SERVING else end(NOTHING, Wanted.SERVING)
    goal = end(start, wanted)
    for _, seen in plan(start, wanted):
        restarted = replace(seen, responder=False)  # a new daemon: its descriptors are gone
        assert replace(end(restarted, wanted), responder=goal.responder) == goal


def test_adoption_of_a_serving_volume_only_opens_the_responder() -> None:
    adopted = replace(end(NOTHING, Wanted.SERVING), responder=False)
    assert [step for step, _ in plan(adopted, Wanted.SERVING)] == [Step.START_NFSD]


def test_address_never_comes_before_an_attached_server() -> None:
    for seen in everything():
        if next_step(seen, Wanted.SERVING) is Step.ADD_ADDRESS:
            assert seen.serving, seen


def test_nothing_is_stopped_or_unmounted_below_an_address() -> None:
    for wanted, seen in itertools.product(Wanted, everything()):
        if seen.address_left_s is not None:
            assert next_step(seen, wanted) not in (Step.STOP_NFSD, Step.STOP_TRACKING, Step.UNMOUNT), seen


def test_damaged_or_foreign_mount_is_never_built_upon() -> None:
    for seen in everything():
        if seen.damaged or seen.mounted is Mounted.FOREIGN:
            assert next_step(seen, Wanted.SERVING) in (
                Step.REMOVE_ADDRESS,
                Step.STOP_NFSD,
                Step.STOP_TRACKING,
                Step.UNMOUNT,
            ), seen


def test_server_whose_tracking_ended_gets_a_new_one_and_is_not_interrupted() -> None:
    broken = replace(end(NOTHING, Wanted.SERVING), tracking=Tracking.ABSENT)
    assert [step for step, _ in plan(broken, Wanted.SERVING)] == [Step.START_TRACKING]


def test_server_that_was_started_without_tracking_is_started_anew() -> None:
    untracked = replace(end(NOTHING, Wanted.SERVING), tracking=Tracking.READY)
    assert [step for step, _ in plan(untracked, Wanted.SERVING)] == [
        Step.REMOVE_ADDRESS,
        Step.PREPARE,
        Step.STOP_NFSD,
        Step.START_NFSD,
        Step.ADD_ADDRESS,
    ]
