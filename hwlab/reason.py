"""Why a run is not valid: the two kinds of reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from hwlab.history import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    verdict: Verdict
    what: str


def invalid(what: str) -> Reason:
    return Reason(verdict=Verdict.INVALID, what=what)


def unknown(what: str) -> Reason:
    return Reason(verdict=Verdict.UNKNOWN, what=what)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Invalid before unknown before valid."""
    seen = set(verdicts)
    if Verdict.INVALID in seen:
        return Verdict.INVALID
    return Verdict.UNKNOWN if Verdict.UNKNOWN in seen else Verdict.VALID
