"""What can go wrong with a volume's file system, export and address. Every error names the next action."""

from __future__ import annotations


class FsError(Exception):
    """A step on a volume did not succeed.

    `volume` is its name, `what` the fact, `next_action` what the operator (or the controller) does now.
    """

    def __init__(self, volume: str, what: str, next_action: str) -> None:
        super().__init__(f"{volume}: {what}; {next_action}")
        self.volume = volume
        self.what = what
        self.next_action = next_action


class NotPossible(FsError):
    """Refused before anything was changed: a precondition does not hold. Mend it, then call again."""


class Busy(FsError):
    """Somebody still holds what the step wants to give up. `holders` says precisely who.

    Nothing was forced. The step may be repeated after the holders let go.
    """

    def __init__(self, volume: str, what: str, next_action: str, holders: tuple[str, ...]) -> None:
        super().__init__(volume, what, next_action)
        self.holders = holders


class OutcomeUnknown(FsError):
    """The kernel neither confirmed nor refused in time. Call observe() and decide from what is seen."""
