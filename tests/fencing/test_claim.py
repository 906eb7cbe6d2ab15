"""Claims of a witness: at most one from the same epoch, in every order of the commands, whatever goes wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fencing import OUR_TYPE, FencingError, ForeignOwner, Key, LabelError, LostRace, PortError
from fencing.claim import NOBODY, WITNESS_FS, Standing, holds, may_take, survey, take, tally
from fencing.fake import FakeLogicalUnit, fake_lun, seed_label
from fencing.faulty import Crash, Fault
from tests.fencing.test_races import Contender, Stop, Tape, copied, known, taped, visible

NUMBERS = {"n1": 1, "n2": 2, "n3": 3}
MADE = 1
"""The epoch that formatting leaves."""


def witness_label(make, epoch: int = MADE, owner: str = ""):
    return replace(make("naa.0"), epoch=epoch, owner=owner, fstype=WITNESS_FS, volume="witness", address="", clients=())


@pytest.fixture
def witness(new_cluster, label):
    """A cluster whose one unit is a witness that nobody claimed."""
    cluster = new_cluster()
    unit = cluster.units[0]
    unit.blocks.clear()
    seed_label(unit, witness_label(label))
    return cluster


def claim(node, unit: FakeLogicalUnit, expected: int | None, *, forced: bool = False, luns=None) -> Standing | int:
    """What `hactl/witness.py` does with one LUN: the epoch won, or the standing that forbade it."""
    (lun,) = luns or node.luns()
    standing = survey(lun, node.identity, NUMBERS)
    if not may_take(standing, expected, node.number, forced=forced):
        return standing
    epoch = max(standing.highest, node.floor) + 1
    node.record(epoch)
    take(lun, standing, node.identity, epoch, lambda: 0.0)
    return epoch


def test_a_claim_from_the_expected_epoch_wins_and_is_seen_by_everybody(witness) -> None:
    n1, n2, _ = witness.nodes
    assert claim(n1, witness.units[0], MADE) == 2
    seen = survey(n2.luns()[0], n2.identity, NUMBERS)
    assert (seen.epoch, seen.owner) == (2, 1)
    assert holds(witness.units[0].state(), n1.identity.key(2))


def test_a_claim_is_refused_when_the_epoch_is_beyond_the_expected_one_and_changes_nothing(witness) -> None:
    n1, n2, _ = witness.nodes
    claim(n1, witness.units[0], MADE)
    before = visible(witness.units[0])
    standing = claim(n2, witness.units[0], MADE)
    assert isinstance(standing, Standing)
    assert standing.owner == 1
    assert visible(witness.units[0]) == before
    assert isinstance(claim(n2, witness.units[0], None), Standing), "nothing is expected: nothing may be taken"


def test_who_heard_of_a_claim_may_follow_it_and_its_owner_may_claim_again(witness) -> None:
    n1, n2, _ = witness.nodes
    claim(n1, witness.units[0], MADE)
    assert claim(n1, witness.units[0], MADE) == 3
    assert claim(n2, witness.units[0], 3) == 4
    assert not holds(witness.units[0].state(), n1.identity.key(3))


def test_a_forced_claim_takes_whatever_is_there(witness) -> None:
    n1, n2, _ = witness.nodes
    claim(n1, witness.units[0], MADE)
    assert claim(n2, witness.units[0], None, forced=True) == 3


def test_a_device_that_lost_its_reservations_still_shows_the_newest_claim(witness) -> None:
    n1, n2, _ = witness.nodes
    unit = witness.units[0]
    claim(n1, unit, MADE)
    unit.registrations.clear()
    unit.holder, unit.type = None, None
    assert not holds(unit.state(), n1.identity.key(2))
    assert isinstance(claim(n2, unit, MADE), Standing)
    assert claim(n1, unit, MADE) == 3


def test_a_claim_of_which_only_the_reservation_was_done_counts_as_a_claim(witness) -> None:
    n1, n2, _ = witness.nodes
    unit = witness.units[0]
    choices = iter([Fault.NONE] * 200)

    def until_label(operation: str, changes: bool) -> Fault:
        next(choices)
        return Fault.CRASH_BEFORE if operation == "write label" else Fault.NONE

    with pytest.raises(Crash):
        claim(n1, unit, MADE, luns=n1.luns(until_label))
    standing = claim(n2, unit, MADE)
    assert isinstance(standing, Standing)
    assert (standing.epoch, standing.owner) == (2, 1)
    assert claim(n1, unit, MADE) == 3


def test_what_is_no_witness_of_this_cluster_is_refused(witness, new_cluster, label) -> None:
    n1 = witness.nodes[0]
    volume = new_cluster()
    with pytest.raises(LabelError, match="it is volume v1"):
        survey(volume.nodes[0].luns()[0], n1.identity, NUMBERS)
    with pytest.raises(LabelError, match="n9, which is not configured"):
        seed_label(witness.units[0], witness_label(label, epoch=9, owner="n9"))
        survey(n1.luns()[0], n1.identity, NUMBERS)
    other = n1.identity.__class__(cluster_uuid="0" * 8 + n1.identity.cluster_uuid[8:], node=1, node_name="n1")
    with pytest.raises((LabelError, ForeignOwner)):
        survey(n1.luns()[0], other, NUMBERS)


@pytest.mark.parametrize(
    ("luns", "taken", "beaten", "outcome"),
    [
        (1, 1, 0, "won"),
        (1, 0, 1, "lost"),
        (1, 0, 0, "unknown"),
        (3, 2, 1, "won"),
        (3, 1, 2, "lost"),
        (3, 1, 1, "unknown"),
        (5, 2, 0, "unknown"),
    ],
)
def test_more_than_half_decides(luns: int, taken: int, beaten: int, outcome: str) -> None:
    assert tally(luns, taken=taken, beaten=beaten) == outcome


# --- races, in every order of the commands


class Claimant(Contender):
    """A node somewhere in its claim from the epoch MADE. `handle` stands for "won"."""

    limit = True

    def step(self, units: Sequence[FakeLogicalUnit], fault: Fault = Fault.NONE) -> Claimant:
        tape = Tape(self.answers, fault)
        after = type(self)(self.node)
        lun = taped(fake_lun(units[0], f"n{self.node.number}".encode()), tape)
        try:
            standing = survey(lun, self.node.identity, NUMBERS)
            if may_take(standing, MADE, self.node.number, forced=not self.limit):
                epoch = max(standing.highest, self.node.floor) + 1
                take(lun, standing, self.node.identity, epoch, lambda: 0.0)
                after.epoch = epoch
                after.handle = self.node.identity.key(epoch)  # type: ignore[assignment]
            else:
                after.error = LostRace("beyond", device=lun.wwid, rival=None)
        except Stop:
            pass
        except Crash:
            after.crashed = True
        except FencingError as error:
            after.error = error
        after.answers = tuple(tape.answers)
        after.knows = (*self.knows, *map(known, tape.answers[len(self.answers) :]))
        return after

    @property
    def won(self) -> bool:
        return self.handle is not None


class Comparing(Claimant):
    """A claim without the comparison: any epoch may be taken."""

    limit = False


def winners_of(unit: FakeLogicalUnit, claimants: tuple[Claimant, ...]) -> set[int]:
    """How many claimants won, over every order of their commands; the walk visits each state once."""
    seen: set[object] = set()
    counts: set[int] = set()
    todo = [(unit, claimants)]
    while todo:
        unit, present = todo.pop()
        state = (visible(unit), *(claimant.knows for claimant in present))
        if state in seen:
            continue
        seen.add(state)
        if all(claimant.ended for claimant in present):
            counts.add(sum(claimant.won for claimant in present))
            for claimant in present:
                if claimant.won:
                    assert holds(unit.state(), claimant.node.identity.key(claimant.epoch)), "won, and gone"
                else:
                    assert isinstance(claimant.error, LostRace), claimant.error
        for index, claimant in enumerate(present):
            if not claimant.ended:
                then = copied(unit)
                todo.append((then, (*present[:index], claimant.step([then]), *present[index + 1 :])))
    assert len(seen) > 100
    return counts


@pytest.mark.parametrize("held_by", [None, 1, 3])
def test_of_two_claims_from_the_same_epoch_one_wins_in_every_order(witness, held_by: int | None) -> None:
    """Before: nobody holds it; one of the two does (its own old claim); a third node does."""
    unit = witness.units[0]
    if held_by is not None:
        key = witness.nodes[held_by - 1].identity.key(MADE)
        port = unit.connect(f"n{held_by}".encode())
        port.register(0, key.value)
        port.reserve(key.value, OUR_TYPE)
    assert winners_of(unit, tuple(Claimant(node) for node in witness.nodes[:2])) == {1}


@pytest.mark.parametrize("floors", [(0, 7), (7, 0)])
def test_claims_with_different_epochs_of_their_own_do_not_both_win(witness, floors: tuple[int, int]) -> None:
    """A higher number does not beat a claim that stands: that is the difference from `acquire`."""
    for node, floor in zip(witness.nodes, floors, strict=False):
        node.floor = floor
    assert winners_of(witness.units[0], tuple(Claimant(node) for node in witness.nodes[:2])) == {1}


def test_without_the_comparison_two_claims_may_win(witness) -> None:
    """The walk would notice."""
    with pytest.raises(AssertionError, match="won, and gone"):
        winners_of(witness.units[0], tuple(Comparing(node) for node in witness.nodes[:2]))


@pytest.mark.parametrize("seed", range(150))
def test_whatever_goes_wrong_no_two_claims_from_one_epoch_stand(witness, seed: int) -> None:
    dice = random.Random(seed)
    unit = witness.units[0]
    faults = [Fault.LOST, Fault.UNANSWERED, Fault.TWICE, Fault.CRASH_BEFORE, Fault.CRASH_AFTER]
    claimants = [Claimant(node) for node in witness.nodes]
    ever: set[int] = set()
    while running := [index for index, claimant in enumerate(claimants) if not claimant.ended]:
        chosen = dice.choice(running)
        fault = dice.choice(faults) if dice.random() < 0.08 else Fault.NONE
        claimants[chosen] = claimants[chosen].step([unit], fault)
        ever |= {Key.parse(key).node for key in unit.state().holders if Key.parse(key).epoch > MADE}
    assert len(ever) <= 1, "two claims held it, one after the other"
    won = [claimant for claimant in claimants if claimant.won]
    assert len(won) <= 1
    for claimant in claimants:
        assert claimant.error is None or isinstance(claimant.error, LostRace | PortError), claimant.error
    assert not won or {won[0].node.number} == ever
    assert NOBODY not in ever
