"""What a node must not forget: its generation, its vote, its promises. Text in, text out; `_stable.py` puts
it on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nodewatch.membership import Accepted, ChangeRefused, change_from

FORMAT = 1


class StableCorrupt(Exception):
    """The stable file is not what was written. Node watch must not guess: it might vote twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stable:
    generation: int = 0
    """Of this process; grows with every start."""
    term: int = 0
    voted_for: int = 0
    """In `term`; 0 = nobody."""
    promises: tuple[tuple[int, int, int], ...] = ()
    """(node, first mark, newest mark), by node."""
    accepted: Accepted | None = None
    """The newest change of the configuration that this node accepted and has not made yet."""
    barred: int = 0
    """The bar against this node that it accepted, 0 = none: R8 of `lease.py`."""
    witness: tuple[tuple[str, int], ...] = ()
    """(WWID, epoch) from which the witness may be claimed: W6 of `arbitration.py`."""


def to_text(stable: Stable) -> str:
    return json.dumps(
        {
            "format": FORMAT,
            "generation": stable.generation,
            "term": stable.term,
            "voted_for": stable.voted_for,
            "promises": [list(promise) for promise in stable.promises],
            "accepted": _accepted_to_plain(stable.accepted),
            "barred": stable.barred,
            "witness": dict(stable.witness),
        }
    )


def from_text(text: str) -> Stable:
    """Raises StableCorrupt."""
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise StableCorrupt(f"format {plain['format']}, this program reads {FORMAT}")
        promises = tuple((int(node), int(first), int(mark)) for node, first, mark in plain["promises"])
        return Stable(
            generation=int(plain["generation"]),
            term=int(plain["term"]),
            voted_for=int(plain["voted_for"]),
            promises=promises,
            accepted=_accepted_from(plain.get("accepted")),
            barred=int(plain.get("barred", 0)),
            witness=tuple((str(wwid), int(epoch)) for wwid, epoch in plain.get("witness", {}).items()),
        )
    except (ValueError, KeyError, TypeError, ChangeRefused) as error:
        raise StableCorrupt(f"not readable: {error!r}") from error


def _accepted_to_plain(accepted: Accepted | None) -> dict[str, Any] | None:
    if accepted is None:
        return None
    return {"term": accepted.term, "digest": accepted.digest, "change": accepted.change.to_plain()}


def _accepted_from(plain: Mapping[str, Any] | None) -> Accepted | None:
    if plain is None:
        return None
    return Accepted(term=int(plain["term"]), digest=str(plain["digest"]), change=change_from(plain["change"]))


def next_generation(stable: Stable, wall_clock_ms: int) -> int:
    """Greater than any before, also when the stable file was lost but the wall clock is sane."""
    return max(stable.generation + 1, wall_clock_ms)
