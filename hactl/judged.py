"""What the preflights said of a device, kept on every node: no volume is made unasked on one that failed.

A promise that was found broken stays so until a later preflight finds it kept: one that did not try it (no restart of
the target, a device in use) takes nothing back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fencing.promises import Promise, Verdict
from hactl.errors import HaError, RequestRefused
from hactl.record import write_atomic

RISK_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """`verdict` of the whole device (`promises.worst`), `risk` the broken promises ("" = none), when, and by which
    node. `untested`: the promises that it says nothing of. Both lists as in "fence, persistence"."""

    wwid: str
    verdict: str
    risk: str
    unix_s: str
    by: str
    untested: str = ""

    @classmethod
    def parse(cls, words: Mapping[str, object]) -> Judged:
        """RequestRefused if these are not the words of a judgement."""
        words = {"untested": "", **words}  # earlier builds knew none
        if words.keys() != cls.__dataclass_fields__.keys() or not all(type(word) is str for word in words.values()):
            raise RequestRefused("a judgement has wwid, verdict, risk, unix_s, by and untested, all of them text")
        judged = cls(**{name: str(word) for name, word in words.items()})
        long = max(len(judged.risk), len(judged.untested)) > RISK_CHARS_MAX
        if judged.verdict not in list(Verdict) or not judged.wwid or long:
            raise RequestRefused("a judgement with an unknown verdict, without a WWID, or too long")
        if not (judged.unix_s.isascii() and judged.unix_s.isdigit()):
            raise RequestRefused(f"a judgement made at {judged.unix_s!r}")
        return judged

    def after(self, earlier: Judged | None) -> Judged:
        """This one, with what an earlier one found broken and this one did not try."""
        stays = set(_names(earlier.risk)) & set(_names(self.untested)) if earlier else set()
        if not stays:
            return self
        names = [each.value for each in Promise if each.value in stays | set(_names(self.risk))]
        return replace(self, verdict=Verdict.BROKEN, risk=", ".join(names))


class Judgements:
    """One file for each device below the stable directory."""

    def __init__(self, stable: Path) -> None:
        self._directory = stable / "preflight"

    def keep(self, judged: Judged) -> Judged:
        """On stable storage when this returns: `judged`, after what was known. What cannot be read is replaced."""
        known = None
        with contextlib.suppress(HaError):
            known = self.of(judged.wwid)
        kept = judged.after(known)
        write_atomic(self._path(judged.wwid), json.dumps(asdict(kept), indent=1) + "\n", stable=True)
        return kept

    def of(self, wwid: str) -> Judged | None:
        """The last one; None if there was none. HaError if it is garbled: it is not taken for a good one."""
        path = self._path(wwid)
        try:
            judged = Judged.parse(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError, HaError) as wrong:
            raise HaError(f"{path} is garbled ({wrong}): run `hactl preflight` on the device again") from wrong
        if judged.wwid != wwid:
            raise HaError(f"{path} is about {judged.wwid}: run `hactl preflight` on the device again")
        return judged

    def _path(self, wwid: str) -> Path:
        # a WWID may have any characters
        return self._directory / f"{hashlib.sha256(wwid.encode()).hexdigest()[:32]}.json"


def _names(line: str) -> list[str]:
    return [name for name in line.split(", ") if name]
