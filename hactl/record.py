"""What must outlive the daemon: intents before acting, handles of this boot, and the history of takeovers.

Three kinds, by how long they must live:
- `Floor`: the highest epoch that this node ever meant to use, per volume, on stable storage. It is written, and
  flushed, BEFORE the disk hears of the epoch: so an epoch is never used twice, also when label and reservation
  were lost together.
- `Held`: the handle of this boot (`/run`): after a restart of the daemon it is adopted; a reboot forgets it.
- `Takeover`: one finished recovery with its steps, appended to `history.jsonl`.

Reading refuses what is garbled: a floor that cannot be read is an error, not zero.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hactl.errors import HaError
from hactl.messages import Order

HISTORY_BYTES_MAX = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A handle held in this boot: its key, and the leader's word that it followed.

    `wait_until_ms`: not before then, on this host's monotonic clock, may the address be opened: the old primary's lease
    may run until then, whatever becomes of the daemon that was told so."""

    key: int
    epoch: int
    order: Order
    wwids: tuple[str, ...]
    wait_until_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """One step of a recovery on one node's wall clock, milliseconds since the epoch."""

    name: str
    node: str
    start_unix_ms: float
    end_unix_ms: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """One line of the history. `verdict` is "serving", or "failed" with the reason in `cause`. `fenced`: the level by
    which the old node was fenced; "" = it gave the volume up."""

    volume: str
    source: str
    target: str
    epoch: int
    key: int
    cause: str
    verdict: str
    leader: str = ""
    fenced: str = ""
    steps: tuple[TimedStep, ...] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """The documented form: `from` and `to` name the nodes, `key` is printed as the disk's tools print it."""
        body = asdict(self)
        body["from"], body["to"] = body.pop("source"), body.pop("target")
        body["key"] = f"0x{self.key:016x}"
        return body


def write_atomic(path: Path, text: str, *, stable: bool, mode: int = 0o644) -> None:
    """Replace a file as a whole; with `stable`, on disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        if stable:
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if stable:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class Records:
    """The three kinds of record below two directories (`stable` survives a reboot, `boot` does not)."""

    def __init__(self, stable: Path, boot: Path) -> None:
        self._stable = stable
        self._boot = boot

    def _floor_path(self, volume: str) -> Path:
        return self._stable / "record" / f"{volume}.json"

    def _held_path(self, volume: str) -> Path:
        return self._boot / "volumes" / f"{volume}.json"

    def floor(self, volume: str) -> int:
        """The highest epoch ever meant for the volume here; 0 if none. Raises HaError if the file is garbled."""
        path = self._floor_path(volume)
        try:
            value = json.loads(path.read_text())["epoch"]
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as wrong:
            raise HaError(
                f"{path} is garbled ({wrong}). It holds the highest epoch used on this node. Mend it by hand with "
                f'{{"epoch": N}}, N at least the epoch that `hactl keys {volume}` shows.'
            ) from wrong
        if type(value) is not int or value < 0:
            raise HaError(f"{path}: epoch {value!r} is not a count")
        return value

    def intend(self, volume: str, epoch: int) -> None:
        """Note that `epoch` is about to be used. On stable storage when this returns."""
        if epoch <= self.floor(volume):
            raise HaError(f"volume {volume}: epoch {epoch} was used already; nothing was sent to the disk")
        write_atomic(self._floor_path(volume), json.dumps({"epoch": epoch}), stable=True)

    def hold(self, volume: str, held: Held) -> None:
        write_atomic(self._held_path(volume), json.dumps(asdict(held)), stable=False)

    def forget(self, volume: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._held_path(volume).unlink()

    def held(self) -> dict[str, Held]:
        """The handles of this boot. A garbled one is left out: its volume is then left, not adopted."""
        found = {}
        for path in sorted((self._boot / "volumes").glob("*.json")):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                body = json.loads(path.read_text())
                body["order"] = Order(**body["order"])
                body["wwids"] = tuple(body["wwids"])
                found[path.stem] = Held(**body)
        return found

    def append(self, takeover: Takeover) -> None:
        """Add a takeover to this node's history."""
        self._append(takeover.as_json())

    def append_foreign(self, body: dict[str, Any]) -> None:
        """Add what another node told of its takeover. What lacks a member that the history shows is left out."""
        if {"volume", "from", "to", "epoch", "key", "cause", "verdict", "steps"} <= body.keys():
            self._append(body)

    def _append(self, body: dict[str, Any]) -> None:
        path = self._stable / "history.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > HISTORY_BYTES_MAX:
            os.replace(path, path.with_name("history.jsonl.1"))
        with open(path, "a") as file:
            file.write(json.dumps(body) + "\n")

    def history(self, most: int = 1000) -> list[dict[str, Any]]:
        """The last takeovers, oldest first. A torn last line (power loss) is left out."""
        found = []
        path = self._stable / "history.jsonl"
        if path.exists():
            for line in path.read_text(errors="replace").splitlines()[-most:]:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found
