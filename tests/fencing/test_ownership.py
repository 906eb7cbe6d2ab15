import random
from itertools import product

import pytest

from fencing import Key, PrType, Registrant, ReservationState
from fencing.model import OUR_TYPE
from fencing.ownership import (
    ALL_OTHERS,
    Done,
    Foreign,
    Lost,
    Preempt,
    Register,
    Reserve,
    Step,
    Unregister,
    next_epoch,
    plan,
)

TAG = 0xABCDE
FOREIGN = 0x1234


def key(node: int, epoch: int) -> int:
    return Key(cluster_tag=TAG, node=node, epoch=epoch).value


WANTED = Key(cluster_tag=TAG, node=2, epoch=8)
MINE = WANTED.value
OLD = key(1, 7)
EQUAL = key(3, 8)
NEWER = key(3, 9)


def device(*keys: int, holder: int | None = None, type: PrType = OUR_TYPE) -> ReservationState:
    return ReservationState(
        generation=1,
        registrants=tuple(
            Registrant(key=each, holder=holder is not None and (each == holder or type >= 7), nexus=b"")
            for each in keys
        ),
        type=None if holder is None else type,
    )


@pytest.mark.parametrize(
    ("observed", "entered", "step"),
    [
        # the way of an undisturbed takeover
        (device(OLD, holder=OLD), False, Register()),
        (device(OLD, MINE, holder=OLD), True, Preempt(victim=OLD)),
        (device(MINE, holder=MINE), True, Done()),
        # a fresh device, or one that lost its reservation
        (device(), False, Register()),
        (device(MINE), True, Reserve()),
        (device(OLD, MINE), True, Reserve()),
        (device(OLD, MINE, holder=MINE), True, Preempt(victim=OLD)),
        # own registrations of an earlier life go like anybody's
        (device(key(2, 5), MINE, holder=key(2, 5)), True, Preempt(victim=key(2, 5))),
        # a newer right wins, whoever was first
        (device(OLD, NEWER, holder=OLD), False, Lost(rival=NEWER, reason="epoch 9 of node 3 is newer")),
        (device(OLD, NEWER, MINE, holder=OLD), True, Unregister()),
        (
            device(NEWER, MINE, holder=MINE),
            True,
            Lost(rival=NEWER, reason="epoch 9 of node 3 is newer"),
        ),
        # between equal rights the device decides
        (device(OLD, EQUAL, MINE, holder=OLD), True, Preempt(victim=OLD)),
        (device(EQUAL, MINE), True, Reserve()),
        (device(EQUAL, MINE, holder=MINE), True, Preempt(victim=EQUAL)),
        (device(EQUAL, MINE, holder=EQUAL), True, Unregister()),
        (
            device(EQUAL, holder=EQUAL),
            True,
            Lost(rival=EQUAL, reason="node 3 was first with the same epoch"),
        ),
        # a key that was removed does not come back
        (device(), True, Lost(rival=None, reason="my registration was removed")),
        (device(OLD, holder=OLD), True, Lost(rival=None, reason="my registration was removed")),
        # what is not ours is left alone
        (
            device(FOREIGN, holder=FOREIGN),
            False,
            Foreign(keys=(FOREIGN,), reason="keys that this cluster did not make"),
        ),
        (device(FOREIGN, OLD, MINE, holder=OLD), True, Unregister()),
        (
            device(OLD, holder=OLD, type=PrType.WRITE_EXCLUSIVE),
            False,
            Foreign(keys=(OLD,), reason="a reservation of type WRITE_EXCLUSIVE"),
        ),
    ],
)
def test_plan_takes_the_next_step_from_what_is_observed(observed: ReservationState, entered: bool, step: Step) -> None:
    assert plan(observed, WANTED, entered=entered) == step


@pytest.mark.parametrize(
    ("observed", "step"),
    [
        (device(FOREIGN, holder=FOREIGN), Register()),
        (device(FOREIGN, MINE, holder=FOREIGN), Preempt(victim=FOREIGN)),
        (device(FOREIGN, MINE, holder=FOREIGN, type=PrType.EXCLUSIVE_ACCESS), Preempt(victim=FOREIGN)),
        (
            device(FOREIGN, MINE, holder=FOREIGN, type=PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS),
            Preempt(victim=ALL_OTHERS),
        ),
        (device(NEWER, holder=NEWER), Lost(rival=NEWER, reason="epoch 9 of node 3 is newer")),
    ],
)
def test_force_drops_foreign_keys_and_still_respects_newer_rights(observed: ReservationState, step: Step) -> None:
    assert plan(observed, WANTED, entered=MINE in observed.keys, force=True) == step


def test_a_reservation_that_nobody_registered_holds_is_not_taken() -> None:
    headless = ReservationState(generation=1, registrants=(), type=OUR_TYPE)
    assert isinstance(plan(headless, WANTED, entered=False, force=True), Foreign)


def all_states() -> list[ReservationState]:
    keys = (MINE, OLD, EQUAL, NEWER, FOREIGN, key(2, 3))
    states = []
    for chosen in product((False, True), repeat=len(keys)):
        present = [each for each, taken in zip(keys, chosen, strict=True) if taken]
        states.append(device(*present))
        states += [device(*present, holder=holder, type=kind) for holder in present for kind in PrType]
    return states


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("entered", [False, True])
def test_no_step_from_any_state_breaks_a_rule(entered: bool, force: bool) -> None:
    for observed in all_states():
        step = plan(observed, WANTED, entered=entered, force=force)
        match step:
            case Preempt(victim=victim):
                assert MINE in observed.keys
                assert NEWER not in observed.keys
                assert victim != EQUAL or EQUAL not in observed.holders
                assert victim != FOREIGN or force
                assert victim != ALL_OTHERS or (force and observed.type is not OUR_TYPE)
            case Unregister():
                assert MINE not in observed.holders  # the disk never opens by a loser's hand
            case Register():
                assert MINE not in observed.keys and not entered
            case Reserve():
                assert observed.type is None and MINE in observed.keys
            case Done():
                assert observed.exclusive_to(MINE)
        if observed.exclusive_to(MINE):
            assert step == Done()


def test_a_lonely_contender_reaches_done_from_every_state_that_it_may_take() -> None:
    """A dumb twin of the device carries each step out; without rivals every plan ends, and soon."""
    dice = random.Random(1)
    for observed in all_states():
        if {NEWER, FOREIGN, MINE} & set(observed.keys) or EQUAL in observed.holders:
            continue
        if observed.type not in (None, OUR_TYPE):
            continue
        state, entered = observed, False
        for _ in range(10):
            step = plan(state, WANTED, entered=entered)
            if step == Done():
                break
            state = carried_out(state, step)
            entered = entered or isinstance(step, Register)
            if dice.random() < 0.3:
                entered = entered or MINE in state.keys  # observed twice: no difference
        assert step == Done()


def carried_out(state: ReservationState, step: Step) -> ReservationState:
    keys, holder = list(state.keys), state.holders[0] if state.holders else None
    match step:
        case Register():
            keys.append(MINE)
        case Reserve():
            holder = MINE
        case Preempt(victim=victim):
            keys.remove(victim)
            holder = MINE if holder == victim else holder
        case _:
            raise AssertionError(step)
    return device(*keys, holder=holder)


def test_the_next_epoch_is_above_labels_records_and_our_keys() -> None:
    assert next_epoch([OLD, FOREIGN], cluster_tag=TAG, floor=3) == 8
    assert next_epoch([OLD], cluster_tag=TAG, floor=11) == 12
    assert next_epoch([0xFFFFFFFFFFFFFFFF], cluster_tag=TAG, floor=0) == 1


def test_used_up_epochs_are_an_error() -> None:
    with pytest.raises(ValueError, match="epoch"):
        next_epoch([], cluster_tag=TAG, floor=(1 << 32) - 1)
