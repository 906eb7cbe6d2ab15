"""The local API: one JSON object a line on a Unix socket, answered with one or more JSON objects.

A request is `{"verb": NAME, "args": {…}}`. An answer is `{"ok": true, "result": …}` or `{"ok": false, "error":
TEXT, "code": N}`; verbs that stream (`watch`, `events`) send answers until the client hangs up. Who may ask is
decided by the kernel's word for the peer (SO_PEERCRED): everybody with access to the socket may read, only root
may change anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from hactl.errors import HaError

Args = dict[str, str]
Verb = Callable[[Args], Awaitable[Any]]
Stream = Callable[[Args], AsyncIterator[Any]]
REQUEST_BYTES_MAX = 65536


class Api:
    """Serves the verbs it is given. `changing` names those that only root may ask for."""

    def __init__(self, verbs: dict[str, Verb], streams: dict[str, Stream], changing: frozenset[str]) -> None:
        self._verbs = verbs
        self._streams = streams
        self._changing = changing

    async def listen(self, path: Path) -> asyncio.AbstractServer:
        """Listen at `path`, readable for its group. A socket left over from an earlier run is replaced."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        server = await asyncio.start_unix_server(self._serve, path=str(path), limit=REQUEST_BYTES_MAX)
        os.chmod(path, 0o660)
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(await reader.readline(), writer)
        except (ConnectionError, ValueError):
            pass  # the client went away, or sent an endless line
        finally:
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            verb, args = parse_request(line)
            self._permit(verb, peer_uid(writer.get_extra_info("socket")))
            if verb in self._streams:
                async for item in self._streams[verb](args):
                    await _send(writer, {"ok": True, "result": item})
                return
            if verb not in self._verbs:
                raise HaError(f"this hactld knows no verb {verb!r}: are hactl and hactld of one version?")
            await _send(writer, {"ok": True, "result": await self._verbs[verb](args)})
        except HaError as refused:
            await _send(writer, {"ok": False, "error": str(refused), "kind": type(refused).__name__})

    def _permit(self, verb: str, uid: int) -> None:
        if verb in self._changing and uid != 0:
            raise HaError(f"{verb} changes the cluster and needs root (you are uid {uid})")


async def _send(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()


def parse_request(line: bytes) -> tuple[str, Args]:
    """The verb and its arguments in one line. Raises HaError for anything else."""
    try:
        body = json.loads(line)
        verb, args = body["verb"], body.get("args", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
        raise HaError("the request is not a JSON object with a verb") from wrong
    if not isinstance(verb, str) or not isinstance(args, dict):
        raise HaError("the request is not a JSON object with a verb and arguments")
    if not all(isinstance(word, str) for pair in args.items() for word in pair):
        raise HaError("arguments are strings")
    return verb, args


def peer_uid(sock: Any) -> int:
    """The user id at the other end of a Unix socket, by the kernel's word."""
    size = struct.calcsize("3i")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])
