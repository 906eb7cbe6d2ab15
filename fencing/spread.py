"""One work for each LUN of a set: one after the other, or at once (`_threads.py`), to the same end.

Who hands works to a `Spread` answers for it that they may run in any order, and at the same time. It returns when all
of them have ended: nothing of an attempt goes on behind the back of the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fencing.errors import FencingError, LostRace, PortError

Work = Callable[[], None]
Spread = Callable[[Sequence[Work]], None]
"""Runs works. Once one has raised, those that have not begun are left out; when all that began have ended, the `worst`
of what they raised is raised."""


def in_turn(works: Sequence[Work]) -> None:
    """One after the other; the first that raises is the last."""
    for work in works:
        work()


def worst(raised: Sequence[BaseException]) -> BaseException:
    """Which of several errors decides what happens next: the end of the process, a bug, a lost race, a verdict on a
    device, and last a command that did not succeed. Among equals the first one."""
    return min(raised, key=_rank)


def _rank(error: BaseException) -> int:
    if not isinstance(error, FencingError):
        return 0
    if isinstance(error, LostRace):
        return 1
    return 3 if isinstance(error, PortError) else 2
