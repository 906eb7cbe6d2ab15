"""Who may reclaim, who did, and when grace may end early (pure).

Theory. After a takeover the new server holds nothing; for `grace_s` it lets clients take back what the
tracking database says they had, and gives nothing new away. Ending grace while a client still reclaims
steals its locks; waiting for one that will not come stalls everybody. The kernel ends grace by itself when
every client of the database said RECLAIM_COMPLETE. What it cannot know is that a client is gone; that is
told from outside (`gone`).

Rules:
- A client is never presumed gone because it is silent.
- `may_end` needs every known client that is not gone to be back and confirmed, and its state to be the same
  in two looks, since RECLAIM_COMPLETE itself is not shown by the kernel (6.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fs.export import unquote_octal
from fs.model import GraceStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One entry of `clients/`: its `name` is what the tracking database calls id; `opens` and `locks` count
    the states it holds; `address` is "host:port" as the kernel prints it."""

    number: str
    name: bytes
    address: str
    confirmed: bool
    opens: int
    locks: int

    @property
    def label(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at the server: the clients it has, and those of the recovery database (None: unreadable)."""

    active: bool | None
    known: frozenset[bytes] | None
    clients: tuple[Client, ...]


def parse_client(number: str, info: str, states: str) -> Client:
    """From `clients/N/info` and `clients/N/states`. Raises ValueError if `info` has no name."""
    fields = dict(_fields(info))
    if "name" not in fields:
        raise ValueError(f"clients/{number}/info has no name: {info!r}")
    kinds = [found.group(1) for found in _STATE.finditer(states)]
    return Client(
        number=number,
        name=_quoted(fields["name"]),
        address=fields.get("address", "").strip('"'),
        confirmed=fields.get("status") == "confirmed",
        opens=kinds.count("open"),
        locks=kinds.count("lock"),
    )


# Exactly "type: lock": the word "superblock" in the same line contains "lock" too.
_STATE = re.compile(r"^- \S+: \{ type: (\w+)[,\s]", re.MULTILINE)


def _fields(info: str) -> Iterable[tuple[str, str]]:
    for line in info.splitlines():
        key, found, value = line.partition(":")
        if found:
            yield key.strip(), value.strip()


def _quoted(text: str) -> bytes:
    inner = text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text
    return unquote_octal(inner)


def status(before: Look | None, now: Look, gone: frozenset[str]) -> GraceStatus:
    """Progress of reclaim. `gone` are names (as in `Client.label`) that the caller knows to be gone."""
    back = {client.name for client in now.clients if client.confirmed}
    known = now.known or frozenset()
    missing = known - back
    waiting = tuple(sorted(name.decode("utf-8", "backslashreplace") for name in missing))
    settled = before is not None and _held(before) == _held(now)
    return GraceStatus(
        active=now.active,
        known=len(known),
        returned=len(known & back),
        waiting=waiting,
        may_end=now.active is True and now.known is not None and settled and all(name in gone for name in waiting),
    )


def _held(look: Look) -> Mapping[bytes, tuple[int, int]]:
    return {client.name: (client.opens, client.locks) for client in look.clients if client.confirmed}
