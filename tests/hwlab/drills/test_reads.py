"""Reads against what was acknowledged: the rules of check_reads, and the reader's own parsing."""

from dataclasses import replace

import pytest

from hwlab import load, reader
from hwlab.checker import judge
from hwlab.clocks import Clock
from hwlab.gather import reads as parse
from hwlab.history import History, Read, Verdict, Write
from tests.hwlab.drills.conftest import Histories, writes


def promised(written: tuple[Write, ...], at_ms: float) -> int:
    return max((write.seq for write in written if write.done_ms < at_ms), default=0)


def good_reads() -> tuple[Read, ...]:
    written = writes()
    return tuple(Read(submit_ms=ms, done_ms=ms + 3, value=promised(written, ms)) for ms in range(50, 19_950, 100))


def with_reads(history: Histories, *reads: Read) -> History:
    good = history()
    return replace(good, wanted=replace(good.wanted, reads=True), reads=reads)


def test_reads_that_show_all_that_was_promised_are_valid(history: Histories) -> None:
    judgement = judge(with_reads(history, *good_reads()))
    assert judgement.verdict is Verdict.VALID, judgement.reasons
    assert (judgement.reads, judgement.stale_reads, judgement.unanswered_reads) == (199, 0, 0)


def test_a_read_that_lacks_the_newest_acknowledged_record_is_stale(history: Histories) -> None:
    *some, last = good_reads()
    judgement = judge(with_reads(history, *some, replace(last, value=last.value - 1)))
    assert judgement.verdict is Verdict.INVALID
    assert judgement.stale_reads == 1
    assert f"showed {last.value - 1}, {last.value} was acknowledged" in judgement.reasons[0].what


def test_a_read_that_began_before_the_acknowledgement_may_miss_it(history: Histories) -> None:
    early = Read(submit_ms=13_000.0, done_ms=18_000.0, value=promised(writes(), 13_000.0))
    assert judge(with_reads(history, *good_reads(), early)).verdict is Verdict.VALID


def test_reads_that_never_ended_are_counted_and_break_nothing(history: Histories) -> None:
    hanging = Read(submit_ms=12_500.0, done_ms=None)
    judgement = judge(with_reads(history, *good_reads(), hanging))
    assert (judgement.verdict, judgement.unanswered_reads) == (Verdict.VALID, 1)


def test_an_error_that_the_reader_saw_is_invalid(history: Histories) -> None:
    error = Read(submit_ms=12_500.0, done_ms=12_600.0, error="Input/output error")
    judgement = judge(with_reads(history, *good_reads(), error))
    assert judgement.verdict is Verdict.INVALID


@pytest.mark.parametrize(
    ("kept", "doubt"),
    [
        (lambda ms: ms > 10_000, "read nothing before the fault"),
        (lambda ms: ms < 10_000, "tried nothing while records were acknowledged"),
    ],
)
def test_a_reader_that_did_not_try_proves_nothing(history: Histories, kept: object, doubt: str) -> None:
    some = [read for read in good_reads() if kept(read.submit_ms)]  # type: ignore[operator]
    judgement = judge(with_reads(history, *some))
    assert judgement.verdict is Verdict.UNKNOWN
    assert doubt in judgement.reasons[0].what


def test_reads_that_are_missing_make_the_run_unknown(history: Histories) -> None:
    good = history()
    judgement = judge(replace(good, wanted=replace(good.wanted, reads=True), reads=None))
    assert judgement.verdict is Verdict.UNKNOWN


def test_the_reader_s_log_is_read_as_it_is_written() -> None:
    clock = Clock(host="c1", boot="b", mono_offset_ms=0, wall_offset_ms=0, uncertainty_ms=1)
    log = "begun 1 1000000\nbegun 2 2000000\ndone 1 1000000 1500000 17\nbegun 3 3000000\n"
    log += "done 3 3000000 3500000 error:Input/output_error\n"
    assert parse(log, clock) == (
        Read(submit_ms=1.0, done_ms=1.5, value=17),
        Read(submit_ms=2.0, done_ms=None),
        Read(submit_ms=3.0, done_ms=3.5, error="Input/output error"),
    )


def test_the_reader_knows_the_writer_s_records_and_nothing_else() -> None:
    records = [load.record("r1", seq, 1, 1) for seq in (7, 8, 9)]
    assert reader.highest("r1", b"".join(records)) == 9
    assert reader.highest("r1", b"".join([*records[:2], records[2][:-2] + b"x\n"])) == 8
    torn = records[2].replace(b"0000000009", b"0000000010")
    assert reader.highest("r1", b"".join(records) + records[0][:60]) == 9
    assert reader.highest("r1", b"".join([*records[:2], torn])) == 8
    assert reader.highest("another", b"".join(records)) == 0
    assert reader.highest("r1", b"") == 0
