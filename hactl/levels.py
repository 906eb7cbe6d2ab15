"""Levels of fencing: what must be known of a lost node before its volume goes to another. Pure.

Theory. The disk decides who may write, so the reservation is the first level and, where the storage holds
reservations, the last word: the taker makes it whatever the other levels said. What each level proves:

reservation  the disk refuses the lost node. Proves nothing where the storage is known not to hold reservations.
power        the node's power was read back as off: it neither writes nor serves. It also ends the wait for its lease
             (R10 of nodewatch/lease.py).
watchdog     so much time passed since its last possible lease (`Timing.reset_after_ms`) that its watchdog reset it,
             or that it had let go of every volume before.

Rules
  L1  Levels are asked in the configured order; the first that proves enough decides. One that failed gives way to the
      next. What is proved already counts, whatever its place, also what an administrator had done by hand.
  L2  A volume whose storage holds reservations is never kept from a taker by a level that failed: the disk decides.
  L3  A volume whose storage does not hold them goes to nobody before another level proved that the node stopped.
  L4  "Off" is read back. An agent that fails, hangs or says anything else than "off" proved nothing.
  L5  An agent is run against a node that a majority barred, and no other: who lost the quorum shoots nobody.
  L6  On storage that holds no reservations a node begins to write (takes the disk, mounts) only while its lease runs:
      a word that was held up in a frozen process must not come true after the node was taken for stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

BARRED = "barred by a majority"
RETRY_MS = 10_000
"""An agent that failed is run again after so long."""


class Level(StrEnum):
    RESERVATION = "reservation"
    POWER = "power"
    WATCHDOG = "watchdog"


NEEDED_TO_FENCE = frozenset({"capabilities", "operations", "conflict", "fence", "late-writes"})
"""Promises of storage, by the words of the preflight: one that is broken, and the reservation proves nothing."""


def reservations_hold(risk: str) -> bool:
    """`risk`: the broken promises that were accepted when the volume was made, as its label names them."""
    return not NEEDED_TO_FENCE & {word.strip() for word in risk.split(",")}


class Power(StrEnum):
    """What is known of the attempt to switch a node off."""

    UNTRIED = "untried"
    RUNNING = "running"
    OFF = "off"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What is known of one node since a majority barred it.

    `tries`: runs of its agent that ended without "off". `retry_in_ms`: until the next may begin. `text`: the last
    outcome, for people. `reset_in_ms`: when its watchdog must have reset it; None = the watchdog is no level.
    """

    power: Power = Power.UNTRIED
    tries: int = 0
    retry_in_ms: int = 0
    text: str = ""
    reset_in_ms: int | None = None

    @property
    def stopped_by(self) -> Level | None:
        """Which level proved that the node can neither write nor serve."""
        if self.power is Power.OFF:
            return Level.POWER
        return Level.WATCHDOG if self.reset_in_ms == 0 else None


NO_PROOF = Proof()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`level` is what decided; None = the volume must wait, for the reason `why`. `power`: its agent is to be run."""

    level: Level | None
    power: bool = False
    why: str = ""


def judge(order: Sequence[Level], proof: Proof, *, reserves: bool, refused: bool) -> Verdict:
    """May a volume of this lost node be given away? `reserves`: its storage holds reservations. `refused`: takers tried
    to fence it on the disk, and all failed."""
    if proof.stopped_by is not None:
        return Verdict(level=proof.stopped_by)
    failures: list[str] = []
    power = False
    for level in order:
        match level:
            case Level.RESERVATION:
                if reserves and not refused:
                    return Verdict(level=level, power=power)
                failures.append("the fence on its disk failed" if reserves else "its storage holds no reservations")
            case Level.POWER:
                if not proof.tries:
                    return Verdict(level=None, power=True, why="its power is being switched off")
                power = proof.power is Power.FAILED and proof.retry_in_ms == 0
                failures.append(f"its power is not known to be off: {proof.text}")
            case Level.WATCHDOG if proof.reset_in_ms is not None:
                return Verdict(level=None, power=power, why="its watchdog has not had the time to reset it yet")
            case Level.WATCHDOG:
                failures.append("its watchdog proves nothing")
            case _ as unreachable:
                assert_never(unreachable)
    if reserves:
        return Verdict(level=Level.RESERVATION, power=power)
    return Verdict(level=None, power=power, why="; ".join(failures))


def words(proof: Proof) -> str:
    """What is known of a node that a majority barred, for `hactl status`; `confirms` reads it."""
    parts = [BARRED]
    if proof.power is not Power.UNTRIED:
        parts.append(f"power {proof.power}" + (f" ({proof.text})" if proof.text else ""))
    if proof.reset_in_ms is not None:
        parts.append("watchdog's time passed" if proof.reset_in_ms == 0 else "watchdog's time runs")
    return "; ".join(parts)


def confirms(told: str, level: Level) -> bool:
    """Do these words say that the node was fenced by that level? By place: in between stands what an agent said."""
    match level:
        case Level.RESERVATION:
            return told.startswith(BARRED)
        case Level.POWER:
            return told.startswith(f"{BARRED}; power {Power.OFF}")
        case Level.WATCHDOG:
            return told.endswith("; watchdog's time passed")
        case _ as unreachable:
            assert_never(unreachable)
