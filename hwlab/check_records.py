"""Records: what was acknowledged against what another client read back, and the client's stall. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hwlab.history import History, Write
from hwlab.reason import Reason, invalid, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    acknowledged: int
    unknown_outcome: int
    lost: int
    duplicates: int
    garbled: int
    reasons: tuple[Reason, ...]


def longest_gap(writes: Sequence[Write], fault_ms: float) -> tuple[float, float] | None:
    """(start, end) of the client's stall: the longest gap between acknowledgements ending after the fault."""
    acks = sorted(write.done_ms for write in writes if not write.error)
    gaps = [(before, after) for before, after in pairwise(acks) if after > fault_ms]
    return max(gaps, key=lambda gap: gap[1] - gap[0], default=None)


def judge_records(history: History) -> Records:
    """Compare what was acknowledged with what another client read back."""
    writes = history.writes
    if writes is None:
        return Records(
            acknowledged=0,
            unknown_outcome=0,
            lost=0,
            duplicates=0,
            garbled=0,
            reasons=(unknown("the load's log is missing: what was acknowledged is not known"),),
        )
    acknowledged = {write.seq for write in writes if not write.error}
    failed = [write for write in writes if write.error]
    reasons = []
    if not acknowledged:
        reasons.append(unknown("the client never had a record acknowledged"))
    if failed:
        reasons.append(invalid(f"the application saw an error: record {failed[0].seq}: {failed[0].error}"))
    if history.found is None:
        reasons.append(unknown("the records were never read back"))
        return Records(
            acknowledged=len(acknowledged),
            unknown_outcome=len(failed),
            lost=0,
            duplicates=0,
            garbled=0,
            reasons=tuple(reasons),
        )
    last = max((write.seq for write in writes), default=0)
    lost, duplicates, more = compare(acknowledged, history.found.runs, last)
    garbled = history.found.garbled
    if garbled:
        reasons.append(invalid(f"{garbled} damaged records in the file"))
    return Records(
        acknowledged=len(acknowledged),
        unknown_outcome=len(failed),
        lost=lost,
        duplicates=duplicates,
        garbled=garbled,
        reasons=(*reasons, *more),
    )


def compare(
    acknowledged: set[int], runs: tuple[tuple[int, int], ...], last: int
) -> tuple[int, int, tuple[Reason, ...]]:
    """(lost, duplicates, reasons) from the numbers acknowledged and the runs of numbers in the file."""
    there: list[int] = [seq for low, high in runs for seq in range(low, high + 1)]
    present = set(there)
    missing = sorted(acknowledged - present)
    duplicates = len(there) - len(present)
    reasons = []
    if missing:
        shown = ", ".join(map(str, missing[:5]))
        reasons.append(invalid(f"{len(missing)} acknowledged records are lost: {shown}"))
    if duplicates:
        reasons.append(invalid(f"{duplicates} records are in the file twice"))
    elif any(after < before for before, after in pairwise(there)):
        reasons.append(invalid("records are out of order in the file"))
    # One more than the last in the log may be there: it was on its way when the load ended.
    ghosts = [seq for seq in present if seq > last + 1]
    if ghosts:
        reasons.append(invalid(f"record {min(ghosts)} is in the file and was never written"))
    return len(missing), duplicates, tuple(reasons)
