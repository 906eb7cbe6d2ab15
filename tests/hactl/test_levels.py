"""Which level of fencing answers for a lost node, and who is kept waiting for it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from hactl import placement
from hactl.levels import NO_PROOF, Level, Power, Proof, confirms, judge, words
from hactl.placement import Decision, Facts, NodeFacts, Plan

from .test_placement import SERVED, facts, gone, node, volume

R, P, W = Level.RESERVATION, Level.POWER, Level.WATCHDOG
OFF = Proof(power=Power.OFF)
FAILED = Proof(power=Power.FAILED, tries=1, retry_in_ms=4000, text="no answer in 60 s")
WAITING = Proof(reset_in_ms=9000)
PASSED = Proof(reset_in_ms=0)
ORDERS = [order for size in (1, 2, 3) for order in itertools.permutations(Level, size) if R in order]
PROOFS = [
    Proof(power=power, tries=tries, retry_in_ms=retry_ms, reset_in_ms=reset_ms)
    for power in Power
    for tries in (0, 1)
    for retry_ms in (0, 5)
    for reset_ms in (None, 0, 5)
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order))
def test_storage_without_reservations_is_given_away_only_after_a_stop_was_proved(order: tuple[Level, ...]) -> None:
    for proof, refused in itertools.product(PROOFS, (True, False)):
        verdict = judge(order, proof, reserves=False, refused=refused)
        if proof.reset_in_ms is not None and W not in order:
            continue
        stopped = proof.power is Power.OFF or proof.reset_in_ms == 0
        assert (verdict.level is not None) == stopped, proof
        assert verdict.level is not R
        assert stopped or verdict.why
        assert not verdict.power or (P in order and proof.power is not Power.OFF)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order))
def test_storage_that_holds_reservations_waits_for_a_level_that_may_still_prove_something_and_no_longer(
    order: tuple[Level, ...],
) -> None:
    for proof, refused in itertools.product(PROOFS, (True, False)):
        verdict = judge(order, proof, reserves=True, refused=refused)
        if verdict.level is None and (proof.reset_in_ms is None or W in order):
            assert (P in order and not proof.tries) or (W in order and proof.reset_in_ms)
        if order[0] is R and not refused:
            assert verdict.level is not None and not verdict.power


def test_the_reservation_comes_first_and_power_only_once_it_failed() -> None:
    order = (R, P, W)
    assert judge(order, WAITING, reserves=True, refused=False).level is R
    assert judge(order, WAITING, reserves=True, refused=True).power
    assert judge(order, replace(FAILED, reset_in_ms=50), reserves=True, refused=True).level is None
    assert judge((R, P), FAILED, reserves=True, refused=True).level is R, "the disk decides, again"


def test_a_level_that_failed_gives_way_to_the_next_and_is_tried_again_later() -> None:
    failed = replace(FAILED, reset_in_ms=9000)
    verdict = judge((R, P, W), failed, reserves=False, refused=False)
    assert verdict.level is None and not verdict.power and "watchdog" in verdict.why
    assert judge((R, P, W), replace(failed, retry_in_ms=0), reserves=False, refused=False).power
    assert judge((R, P, W), replace(failed, reset_in_ms=0), reserves=False, refused=False).level is W
    alone = judge((R, P), FAILED, reserves=False, refused=False)
    assert "holds no reservations" in alone.why and "no answer in 60 s" in alone.why


def test_the_words_confirm_what_they_say_and_nothing_else() -> None:
    for proof in PROOFS:
        told = words(replace(proof, text="status: off and away"))
        assert confirms(told, P) == (proof.power is Power.OFF)
        assert confirms(told, W) == (proof.reset_in_ms == 0)
    assert confirms(words(NO_PROOF), R) and not confirms("", R)
    # an agent may say anything
    told = words(replace(FAILED, text="no; power off; watchdog's time passed", reset_in_ms=50))
    assert confirms(told, R) and not confirms(told, P) and not confirms(told, W)


# --- in the placement --------------------------------------------------------------------------------------------


def lost(
    proof: Proof = NO_PROOF, *, order: tuple[Level, ...] = (R, P), distrust: str = "v1", **more: NodeFacts
) -> Facts:
    nodes = {"n1": replace(gone(), proof=proof), "n2": node(), "n3": node(), **more}
    return replace(facts(**nodes), levels=order, distrust=frozenset({distrust} if distrust else ()))


def begun() -> Plan:
    return placement.decide(Plan(), facts(**SERVED)).plan


def decided(seen: Facts) -> Decision:
    return placement.decide(begun(), seen)


def test_a_volume_without_reservations_waits_for_the_power() -> None:
    waiting = decided(lost())
    assert waiting.plan.table["v1"].node == "n1", "the old word stands"
    assert waiting.plan.power == {"n1"}
    assert "n1: its power is being switched off" in waiting.blocked["v1"]
    given = decided(lost(OFF)).plan
    assert (given.table["v1"].node, given.table["v1"].fenced, given.power) == ("n2", "power", frozenset())
    assert given.table["v1"].wait_ms == 0, "what has no power has no lease either"


def test_what_the_label_says_of_its_storage_counts_as_what_the_configuration_says() -> None:
    for risk, holds in (("", True), ("persistence, room", True), ("late-writes", False), ("paths, conflict", False)):
        seen = lost(distrust="", n2=node(volume(risk=risk)))
        assert placement.reserves("v1", seen) == holds
        assert (decided(seen).plan.table["v1"].node == "n2") == holds


def test_an_agent_that_fails_leaves_the_volume_where_it_is() -> None:
    stays = decided(lost(FAILED))
    assert stays.plan.table["v1"].node == "n1" and "no answer in 60 s" in stays.blocked["v1"]
    assert decided(lost(replace(FAILED, reset_in_ms=0), order=(R, P, W))).plan.table["v1"].fenced == "watchdog"


def test_a_volume_with_reservations_waits_for_nothing_else() -> None:
    plan = decided(lost(distrust="")).plan
    assert (plan.table["v1"].node, plan.table["v1"].fenced, plan.table["v1"].wait_ms) == ("n2", "reservation", 900)
    assert plan.power == frozenset()


def test_power_follows_when_every_taker_failed_on_the_disk() -> None:
    plan = decided(lost(distrust="")).plan
    word = plan.table["v1"]
    failed = {"n2": node(volume(order=word.order, failed=word.order)), "n3": node(volume(ready=False))}
    assert placement.decide(plan, lost(distrust="", **failed)).plan.power == {"n1"}


def test_a_lost_backup_of_a_volume_without_reservations_must_have_stopped_too() -> None:
    seen = lost(OFF, n2=gone())
    assert decided(seen).plan.power == {"n2"} and "n2" in decided(seen).blocked["v1"]


def test_a_barred_node_that_reports_well_and_holds_nothing_needs_no_proof() -> None:
    back = replace(node(), barred=True, confirmed=True, safe_in_ms=700)
    given = decided(lost(n1=back)).plan
    assert (given.table["v1"].node, given.table["v1"].fenced) == ("n2", "")
    hung = replace(back, daemon="hung")
    assert decided(lost(n1=hung)).plan.power == {"n1"}, "its report may be older than what it does next"


def test_a_taker_that_waits_for_a_lease_goes_on_once_its_owner_has_no_power() -> None:
    plan = decided(lost(distrust="")).plan
    order = plan.table["v1"].order
    taking = {"n2": node(volume("waiting", order=order))}
    after = placement.decide(plan, lost(OFF, distrust="", **taking)).plan.table["v1"]
    assert (after.order, after.node, after.wait_ms) == (order, "n2", 0)
    other = {**taking, "n3": gone(500)}
    assert placement.decide(plan, lost(OFF, distrust="", **other)).plan.table["v1"].wait_ms == 900
