"""What can go wrong, by who can mend it.

Every error carries a text that says what happened, to which volume or device, and what to do next. The three
packages below have families of their own (`fencing.errors`, `nodewatch.errors`, `fs.errors`); the interpreter
turns those into `StepFailed` values, so that the cores never see an exception.
"""

from __future__ import annotations


class HaError(Exception):
    """The root of what hactl raises on purpose."""


class ConfigError(HaError):
    """The operator can mend it: a wrong file, name or argument. Nothing was changed."""


class RequestRefused(HaError):
    """The daemon understood and said no (wrong state, unknown volume, not permitted)."""


class OutcomeUnknown(HaError):
    """A command was sent and not answered: it may have been carried out."""


class InvariantBroken(HaError):
    """Something that must never happen did. Stop serving."""
