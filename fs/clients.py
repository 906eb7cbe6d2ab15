"""Who may reclaim, who did, and when grace may end early (pure).

Theory. After a takeover the new server holds nothing; for `grace_s` it lets clients take back what the
tracking database says they had, and gives nothing new away. Ending grace while a client still reclaims
steals its locks; waiting for one that will not come stalls everybody. The kernel ends grace by itself when
every client of the database said RECLAIM_COMPLETE. What it cannot know is that a client is gone; that is
told from outside (`gone`).

Who said RECLAIM_COMPLETE is not shown in `clients/`, but on it the kernel has the client recorded in the
current epoch of the tracking database (nfsd4_reclaim_complete, fs/nfsd/nfs4state.c): that row is the proof.

Rules:
- A client is never presumed gone because it is silent.
- `may_end`: every client that may reclaim is recorded in the current epoch, or known to be gone.
- A database that cannot be read says nothing about the clients, and ends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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
        return _label(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The tracking database: who may reclaim (recovery epoch), and who is done with it (current epoch).

    Outside grace there is only the current epoch: both are the same.
    """

    may_reclaim: frozenset[bytes]
    done: frozenset[bytes]


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


def status(
    active: bool | None, recorded: Recorded | None, clients: Iterable[Client], gone: frozenset[str]
) -> GraceStatus:
    """Progress of reclaim. `gone` are names (as in `waiting`) that the caller knows to be gone."""
    known = recorded.may_reclaim if recorded else frozenset()
    done = known & recorded.done if recorded else frozenset()
    back = {client.name for client in clients if client.confirmed}
    waiting = tuple(sorted(_label(name) for name in known - done))
    return GraceStatus(
        active=active,
        known=len(known),
        returned=len(known & back),
        reclaimed=len(done),
        waiting=waiting,
        may_end=active is True and recorded is not None and all(name in gone for name in waiting),
    )


def _label(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
