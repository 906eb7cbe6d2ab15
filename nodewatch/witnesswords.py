"""What node watch and hactld say to each other of the witness, as JSON objects on their socket.

node watch -> hactld   {"t":"race","id":3,"expected":{"naa.6…":4},"forced":false}   {"t":"watch","epoch":5}
hactld -> node watch   {"t":"raced","id":3,"outcome":"won","epoch":5,"claimed":["naa.6…"],"why":""}
                       {"t":"held","epoch":5,"at_ms":81234,"good":true}
                       {"t":"witness","luns":{"naa.6…":[5,1]},"problem":""}         {"t":"force-witness"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from nodewatch import events as ev
from nodewatch.arbitration import Word

_OUTCOMES: dict[str, Literal["won", "lost", "unknown"]] = {"won": "won", "lost": "lost", "unknown": "unknown"}
EPOCH_MAX = (1 << 32) - 1
OWNER_MAX = 4095


def witness_order(effect: ev.Race | ev.WatchWitness) -> dict[str, Any]:
    """For hactld."""
    if isinstance(effect, ev.WatchWitness):
        return {"t": "watch", "epoch": effect.epoch}
    call = effect.call
    return {"t": "race", "id": call.ident, "expected": dict(call.expected), "forced": call.forced}


def witness_event(
    message: Mapping[str, Any], now_ms: int
) -> ev.Raced | ev.WitnessChecked | ev.WitnessRead | ev.WitnessForced | None:
    """From hactld. None: of another kind. Raises KeyError, TypeError, ValueError for what is not valid."""
    match message["t"]:
        case "raced":
            claimed = tuple(str(wwid) for wwid in message["claimed"])
            return ev.Raced(
                now_ms=now_ms,
                ident=int(message["id"]),
                outcome=_OUTCOMES[message["outcome"]],
                epoch=_within(message["epoch"], EPOCH_MAX),
                claimed=claimed,
                why=str(message["why"]),
            )
        case "held":
            began_ms, good = _within(message["at_ms"], now_ms), message["good"]
            if not isinstance(good, bool):
                raise ValueError(f"good is {good!r}")
            return ev.WitnessChecked(
                now_ms=now_ms, epoch=_within(message["epoch"], EPOCH_MAX), began_ms=began_ms, good=good
            )
        case "witness":
            luns = {
                str(wwid): Word(_within(epoch, EPOCH_MAX), _within(owner, OWNER_MAX))
                for wwid, (epoch, owner) in message["luns"].items()
            }
            return ev.WitnessRead(now_ms=now_ms, luns=luns, problem=str(message["problem"]))
        case "force-witness":
            return ev.WitnessForced(now_ms=now_ms)
    return None


def _within(value: object, most: int) -> int:
    """A check from the future, or an epoch that fits no key, would poison what follows."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number from 0 to {most}")
    return value
