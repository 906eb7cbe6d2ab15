"""Every rule of the checker, each broken alone, and each observation taken away alone."""

from dataclasses import replace
from typing import Any

import pytest

from hwlab.check_disk import count_holders
from hwlab.check_records import longest_gap
from hwlab.checker import judge
from hwlab.history import (
    Attempt,
    Condition,
    DiskWrite,
    End,
    Epoch,
    Found,
    History,
    Lock,
    Owner,
    Reservation,
    StampSeen,
    StampWrite,
    Verdict,
    Wanted,
    Write,
)

LUN = "iblock_0/lun0"
OLD, NEW = 0xABCDE << 44 | 1 << 32 | 4, 0xABCDE << 44 | 2 << 32 | 5


def why(history: History) -> str:
    return " | ".join(reason.what for reason in judge(history).reasons)


def test_a_run_in_which_all_went_well_is_valid(history: Any) -> None:
    result = judge(history())
    assert result.reasons == ()
    assert result.verdict is Verdict.VALID
    assert result.stall_ms == pytest.approx(12_000 - 9_980)
    assert (result.lost, result.late_writes, result.holders_max, result.lock) == (0, 0, 1, Lock.KEPT)
    assert result.refused_writes == 1
    assert result.blind_ms == pytest.approx(15.0)
    assert result.epochs == (4, 5)
    assert result.registrants_max == 2
    assert result.overlap_ms == pytest.approx(32.0)


def test_phases_lead_from_the_fault_to_the_first_acknowledged_write(history: Any) -> None:
    phases = judge(history()).phases
    assert [phase.name for phase in phases] == [
        "detect",
        "decide",
        "fence",
        "replay",
        "mount",
        "export",
        "address",
        "client",
    ]
    assert phases[0].start_ms == 10_000
    assert phases[-1].end_ms == 12_000


@pytest.mark.parametrize(
    "hole",
    [
        "writes",
        "found",
        "attempts",
        "distinct_clients",
        "owner",
        "kernel_complaints",
        "witness",
        "recoveries",
        "end",
    ],
)
def test_a_run_in_which_something_was_not_observed_is_unknown(history: Any, hole: str) -> None:
    assert judge(history(**{hole: None})).verdict is Verdict.UNKNOWN


def test_a_witness_that_died_makes_the_run_unknown(history: Any) -> None:
    witness = replace(history().witness, ended_ms=None)
    assert judge(history(witness=witness)).verdict is Verdict.UNKNOWN


def test_a_witness_that_slept_makes_the_run_unknown(history: Any) -> None:
    witness = replace(history().witness, gap_ms_max=1500.0)
    assert judge(history(witness=witness)).verdict is Verdict.UNKNOWN


def test_a_broken_lab_makes_the_run_unknown_not_invalid(history: Any) -> None:
    assert judge(history(lost=("c1 does not answer",))).verdict is Verdict.UNKNOWN


def test_a_violation_outweighs_a_hole_in_the_evidence(history: Any) -> None:
    result = judge(history(end=None, found=Found(runs=((2, 900),))))
    assert result.verdict is Verdict.INVALID


def test_an_acknowledged_record_that_is_not_there_is_lost(history: Any) -> None:
    last = len(history().writes)
    result = judge(history(found=Found(runs=((1, 500), (503, last)))))
    assert result.lost == 2
    assert result.verdict is Verdict.INVALID


def test_a_record_of_unknown_outcome_may_be_there_or_not(history: Any) -> None:
    writes = history().writes
    last = len(writes)
    on_its_way = replace(history(), found=Found(runs=((1, last + 1),)))
    assert judge(on_its_way).verdict is Verdict.VALID
    failed = (*writes, Write(seq=last + 1, submit_ms=20_000, done_ms=20_010, error="Input/output error"))
    result = judge(history(writes=failed))
    assert result.lost == 0
    assert result.unknown_outcome == 1


def test_an_application_that_saw_an_error_makes_the_run_invalid(history: Any) -> None:
    failed = Write(seq=9_999, submit_ms=12_000, done_ms=12_001, error="Input/output error")
    changed = history(writes=(*history().writes, failed))
    assert judge(changed).verdict is Verdict.INVALID
    assert "Input/output error" in why(changed)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Found(runs=((1, 500), (500, 900))), "twice"),
        (Found(runs=((1, 400), (601, 900), (401, 600))), "out of order"),
        (Found(runs=((1, 900),), garbled=1), "damaged"),
        (Found(runs=((1, 905),)), "never written"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_invalid(history: Any, found: Found, text: str) -> None:
    assert judge(history(found=found)).verdict is Verdict.INVALID
    assert text in why(history(found=found))


def test_the_stall_is_the_longest_gap_that_ends_after_the_fault() -> None:
    def acks(*times: float) -> list[Write]:
        return [Write(seq=n, submit_ms=at - 1, done_ms=at) for n, at in enumerate(times, start=1)]

    assert longest_gap(acks(0, 50, 60, 70, 90), 65) == (70, 90)
    assert longest_gap(acks(0, 50, 60), 65) is None


def test_a_lock_taken_by_the_other_client_before_the_release_is_stolen(history: Any) -> None:
    theft = Attempt(submit_ms=12_100, done_ms=12_105, outcome="took")
    changed = history(attempts=(*history().attempts, theft))
    assert judge(changed).lock is Lock.STOLEN
    assert judge(changed).verdict is Verdict.INVALID


def test_a_lock_that_its_owner_cannot_use_is_lost(history: Any) -> None:
    changed = history(owner=Owner(releasing_ms=20_050, touches=30, trouble="Input/output error"))
    assert judge(changed).lock is Lock.LOST
    assert judge(changed).verdict is Verdict.INVALID


def test_a_kernel_that_failed_to_reclaim_lost_the_lock(history: Any) -> None:
    assert judge(history(kernel_complaints=("NFS: lock reclaim failed!",))).lock is Lock.LOST


def test_a_thief_that_could_never_take_the_lock_proves_nothing(history: Any) -> None:
    refused = tuple(a for a in history().attempts if a.outcome == "refused")
    assert judge(history(attempts=refused)).verdict is Verdict.UNKNOWN


def test_a_thief_that_was_silent_after_the_takeover_proves_nothing(history: Any) -> None:
    early = tuple(a for a in history().attempts if a.done_ms < 11_000 or a.outcome == "took")
    assert judge(history(attempts=early)).verdict is Verdict.UNKNOWN


def test_a_write_of_the_old_owner_that_landed_after_its_thaw_is_seen_on_the_disk(history: Any) -> None:
    seen = (*history().stamps_seen[:-1], replace(history().stamps_seen[-1], n=501))
    result = judge(history(stamps_seen=seen))
    assert result.late_writes == 1
    assert result.verdict is Verdict.INVALID


def test_a_late_write_that_was_overwritten_since_is_known_from_its_writer(history: Any) -> None:
    late = StampWrite(node=1, n=501, submit_ms=9_999, done_ms=16_000)
    writes = (*history().stamp_writes[:-1], late)
    assert judge(history(stamp_writes=writes)).late_writes == 1


def test_without_the_preempt_the_old_owner_goes_on_and_is_caught(history: Any) -> None:
    both = tuple(
        replace(state, registrants=(OLD, NEW), holder=OLD) if state.at_ms == 11_200 else state
        for state in history().reservations
    )
    changed = history(reservations=both)
    assert judge(changed).verdict is Verdict.INVALID
    assert "registrations of n1, n2" in why(changed) or "not reserved by n2" in why(changed)


def test_a_key_that_left_while_its_node_went_on_writing_is_caught_write_by_write(history: Any) -> None:
    more = tuple(StampWrite(node=1, n=n, submit_ms=11_200 + n, done_ms=11_201 + n) for n in range(501, 511))
    seen = (*history().stamps_seen, StampSeen(device=LUN, at_ms=20_001, node=1, n=510))
    changed = history(stamp_writes=(*history().stamp_writes[:-1], *more), stamps_seen=seen)
    assert judge(changed).late_writes == 10


def landed_with_the_label(base: Any, epoch_after: int | None, read_before: bool = False) -> Any:
    """Write 501 landed between the reading after which OLD (epoch 4) had the label still, and the next one; or only
    after that one's stamps were read, whose label was new all the same."""
    seen = list(base.stamps_seen)
    seen[2] = replace(seen[2], epoch_after=4)
    first = 500 if read_before else 501
    seen[3:] = [
        StampSeen(device=LUN, at_ms=seen[2].at_ms + 12, node=1, n=first, epoch_after=epoch_after),
        StampSeen(device=LUN, at_ms=seen[2].at_ms + 15, node=1, n=501, epoch_after=epoch_after and 5),
        StampSeen(device=LUN, at_ms=seen[2].at_ms + 16, node=1, n=501, epoch_after=epoch_after and 5),
    ]
    landed = StampWrite(node=1, n=501, submit_ms=11_190, done_ms=11_210)
    refused = StampWrite(node=1, n=502, submit_ms=11_220, done_ms=16_000, error="Invalid exchange")
    return replace(base, stamps_seen=tuple(seen), stamp_writes=(*base.stamp_writes[:-1], landed, refused))


@pytest.mark.parametrize(
    ("epoch_after", "late", "verdict"), [(4, 0, Verdict.VALID), (5, 0, Verdict.UNKNOWN), (None, 1, Verdict.INVALID)]
)
def test_a_write_under_way_may_land_until_the_new_owner_wrote_its_label(
    history: Any, epoch_after: int | None, late: int, verdict: Verdict
) -> None:
    """OLD has epoch 4: a reading that was followed by a label of epoch 4 came before the new owner's first write."""
    changed = landed_with_the_label(history(), epoch_after)
    assert (judge(changed).late_writes, judge(changed).verdict) == (late, verdict)
    later = StampSeen(device=LUN, at_ms=20_002, node=1, n=502, epoch_after=5)
    assert judge(replace(changed, stamps_seen=(*changed.stamps_seen, later))).verdict is Verdict.INVALID


def noted(done: bool, offset: int, device: str = LUN) -> DiskWrite:
    return DiskWrite(device=device, at_ms=11_206, done=done, offset=offset, length=4096)


LABEL, STAMP = 1 << 20, (3 << 20) + 4096


@pytest.mark.parametrize(
    ("order", "late", "verdict"),
    [
        ((noted(False, STAMP), noted(True, STAMP), noted(False, LABEL), noted(True, LABEL)), 0, Verdict.VALID),
        ((noted(False, STAMP), noted(False, LABEL), noted(True, STAMP), noted(True, LABEL)), 1, Verdict.INVALID),
        ((noted(False, LABEL), noted(True, LABEL)), 0, Verdict.UNKNOWN),
        ((noted(True, STAMP, "another"), noted(False, LABEL)), 0, Verdict.UNKNOWN),
        ((noted(True, STAMP), noted(False, STAMP + (1 << 20))), 0, Verdict.UNKNOWN),
        ((replace(noted(True, STAMP), at_ms=9_000), noted(False, LABEL)), 0, Verdict.UNKNOWN),
    ],
)
@pytest.mark.parametrize("read_before", [False, True])
def test_which_of_write_and_label_was_first_is_known_where_the_kernel_noted_it(
    history: Any, order: tuple[DiskWrite, ...], late: int, verdict: Verdict, read_before: bool
) -> None:
    changed = replace(landed_with_the_label(history(), 5, read_before), disk_writes=order)
    assert (judge(changed).late_writes, judge(changed).verdict) == (late, verdict)


def test_a_write_that_landed_without_a_new_owner_is_not_called_late(history: Any) -> None:
    """The target failed while PREEMPT AND ABORT waited: nobody went on, so nobody was written over."""
    seen = (*history().stamps_seen[:-1], replace(history().stamps_seen[-1], n=501))
    before = tuple(write for write in history().writes if write.done_ms < 11_200.0)
    stopped = history(stamps_seen=seen, epochs=history().epochs[:1], writes=before)
    assert judge(stopped).late_writes == 0
    assert judge(stopped).verdict is not Verdict.VALID
    assert "nobody went on" in why(stopped)
    assert judge(history(stamps_seen=seen, epochs=history().epochs[:1])).late_writes == 1


def with_block(base: Any, *, landed_late: bool, refused: bool) -> dict[str, Any]:
    """Block 17 is node 1's too: one write landed in time, one came after the fence."""
    fenced_ms = 11_200.0
    seen = [
        StampSeen(device=LUN, at_ms=9000, node=17, n=0),
        StampSeen(device=LUN, at_ms=fenced_ms + 3, node=17, n=1),
        StampSeen(device=LUN, at_ms=20_000, node=17, n=2 if landed_late else 1),
    ]
    writes = [StampWrite(node=17, n=1, submit_ms=9000, done_ms=9_800)]
    if refused:
        writes.append(StampWrite(node=17, n=2, submit_ms=9_900, done_ms=16_000, error="Invalid exchange"))
    return {"stamps_seen": (*base.stamps_seen, *seen), "stamp_writes": (*base.stamp_writes, *writes)}


def test_each_block_of_a_node_is_judged_by_itself(history: Any) -> None:
    wanted = replace(history().wanted, old_owner_must_try=True)
    well = history(wanted=wanted, **with_block(history(), landed_late=False, refused=True))
    result = judge(well)
    assert (result.verdict, result.late_writes, result.refused_writes) == (Verdict.VALID, 0, 2)
    late = judge(history(wanted=wanted, **with_block(history(), landed_late=True, refused=True)))
    assert (late.verdict, late.late_writes) == (Verdict.INVALID, 1)


def test_a_block_of_which_nothing_was_refused_was_not_tested(history: Any) -> None:
    wanted = replace(history().wanted, old_owner_must_try=True)
    result = judge(history(wanted=wanted, **with_block(history(), landed_late=False, refused=False)))
    assert result.verdict is Verdict.UNKNOWN
    assert any("block 17" in reason.what for reason in result.reasons)


def test_stamps_of_a_new_lawful_ownership_are_not_late(history: Any) -> None:
    again = 0xABCDE << 44 | 1 << 32 | 6
    back = Reservation(
        device=LUN, since_ms=17_000, at_ms=17_010, generation=12, type=5, holder=again, registrants=(again,)
    )
    lawful = StampWrite(node=1, n=502, submit_ms=18_000, done_ms=18_001)
    changed = history(
        reservations=(*history().reservations, back),
        stamp_writes=(*history().stamp_writes, lawful),
        stamps_seen=(*history().stamps_seen[:-1], StampSeen(device=LUN, at_ms=18_500, node=1, n=502)),
        end=End(server="n1", ready=("n2", "n3")),
        wanted=Wanted(server=("n1",), old_owner_must_try=True),
    )
    assert judge(changed).late_writes == 0
    assert judge(changed).verdict is Verdict.VALID


def test_an_old_owner_that_never_tried_to_write_proves_nothing(history: Any) -> None:
    changed = history(stamp_writes=history().stamp_writes[:-1])
    assert judge(changed).verdict is Verdict.UNKNOWN
    assert "not tested" in why(changed)


def test_stamps_that_were_not_read_after_the_fence_make_the_run_unknown(history: Any) -> None:
    seen = tuple(s for s in history().stamps_seen if s.at_ms < 11_000 or s.at_ms > 15_000)
    assert judge(history(stamps_seen=seen)).verdict is Verdict.UNKNOWN


def test_a_stamper_whose_stamps_the_target_never_saw_makes_the_run_unknown(history: Any) -> None:
    changed = history(stamps_seen=tuple(replace(s, n=0) for s in history().stamps_seen))
    assert judge(changed).verdict is Verdict.UNKNOWN


def test_a_former_holder_that_stays_registered_counts_as_a_second_holder(history: Any) -> None:
    def state(at_ms: float, holder: int, *keys: int) -> Reservation:
        return Reservation(
            device=LUN, since_ms=at_ms - 9, at_ms=at_ms, generation=1, type=5, holder=holder, registrants=keys
        )

    states = (state(0, OLD, OLD), state(10, OLD, OLD, NEW), state(20, NEW, OLD, NEW))
    assert count_holders(states) == [1, 1, 2]
    for written_ms, holders, verdict in ((21, 2, Verdict.INVALID), (25, 1, Verdict.UNKNOWN)):
        written = Epoch(device=LUN, at_ms=written_ms, epoch=5, owner="n2")
        changed = history(reservations=(*states, state(30, NEW, NEW)), epochs=(written,))
        assert (judge(changed).holders_max, judge(changed).verdict) == (holders, verdict)
    assert "may have been registered still" in why(changed)


def test_a_preempt_seen_half_way_is_no_second_holder_if_the_new_one_had_not_written(history: Any) -> None:
    before, both, after = history().reservations
    between = replace(both, holder=NEW, since_ms=both.at_ms, at_ms=both.at_ms + 2)
    changed = history(reservations=(before, both, between, after))
    assert judge(changed).verdict is Verdict.VALID
    lasting = history(reservations=(before, both, between))
    assert judge(lasting).holders_max == 2, "a state that was seen to the end"


def test_an_epoch_that_goes_back_makes_the_run_invalid(history: Any) -> None:
    labels = (*history().epochs, Epoch(device=LUN, at_ms=12_000, epoch=4, owner="n1"))
    assert judge(history(epochs=labels)).verdict is Verdict.INVALID


def test_a_condition_not_met_in_time_makes_the_run_invalid(history: Any) -> None:
    missed = Condition(what="n1 is ready again", met=False, took_ms=60_000, deadline_ms=60_000)
    changed = history(conditions=(missed,))
    assert judge(changed).verdict is Verdict.INVALID
    assert "not within 60 s: n1 is ready again" in why(changed)


def test_an_old_primary_that_is_not_ready_again_makes_the_run_invalid(history: Any) -> None:
    assert judge(history(end=End(server="n2", ready=("n3",)))).verdict is Verdict.INVALID


def test_the_wrong_server_at_the_end_makes_the_run_invalid(history: Any) -> None:
    assert judge(history(end=End(server="n1", ready=("n1", "n3")))).verdict is Verdict.INVALID


def test_a_recorded_fence_that_the_target_did_not_see_then_is_not_believed(history: Any) -> None:
    recovery = history().recoveries[0]
    moved = tuple(replace(step, start_ms=step.start_ms - 900, end_ms=step.end_ms - 900) for step in recovery.steps)
    changed = history(recoveries=(replace(recovery, steps=moved),))
    assert judge(changed).verdict is Verdict.UNKNOWN
    assert "ms off the recorded one" in why(changed)


def test_an_attempt_that_failed_is_neither_a_recovery_nor_a_phase(history: Any) -> None:
    failed = replace(history().recoveries[0], verdict="failed", epoch=9)
    assert judge(history(recoveries=(failed, *history().recoveries))).verdict is Verdict.VALID
    changed = history(recoveries=(failed,))
    assert judge(changed).phases == ()
    assert "recorded 0 of 1 recoveries" in why(changed)


def test_clocks_that_are_hardly_known_make_the_run_unknown(history: Any) -> None:
    assert judge(history(uncertainty_ms=400.0)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("again_ms", [0.0, 3000.0])
@pytest.mark.parametrize(("silent_from", "kept"), [(6_000, False), (1_000, True)])
def test_a_lock_may_go_only_after_its_owner_was_silent_for_a_whole_lease(
    history: Any, silent_from: float, kept: bool, again_ms: float
) -> None:
    theft_ms = 12_500.0
    good = history()
    quiet = tuple(write for write in good.writes if not silent_from < write.done_ms <= theft_ms)
    found = Found(runs=((quiet[0].seq, quiet[-1].seq),))
    thefts = [Attempt(submit_ms=ms - 2, done_ms=ms, outcome="took") for ms in (theft_ms, theft_ms + again_ms)]
    attempts = (*good.attempts, *thefts)
    changed = replace(good, writes=quiet, found=found, attempts=attempts)
    allowed = replace(changed, wanted=replace(good.wanted, lease_lapse_ms=10_000.0))
    assert judge(changed).verdict is Verdict.INVALID
    assert judge(allowed).lock is Lock.STOLEN
    assert (judge(allowed).verdict is Verdict.VALID) == kept
