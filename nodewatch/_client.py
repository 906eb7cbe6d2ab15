"""hactld's end of the socket to node watch (asyncio).

    client = NodeWatchClient()
    client.on_view(self.new_view)
    await client.connect("/run/hactl/nodewatch.sock")     # says hello and waits for the first view
    client.gate("v1", netlink_fd, renew_bytes, close_bytes)
    while True: client.beat(); await asyncio.sleep(0.25)

No call blocks: what the socket does not take at once is queued, in order.
"""

from __future__ import annotations

import array
import asyncio
import base64
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from nodewatch.view import View, from_json

DEFAULT_SOCKET = "/run/hactl/nodewatch.sock"
MAX_BODY_BYTES = 60_000
_MAX_PACKET = 262_144
_MAX_QUEUE = 1024


class NodeWatchUnreachable(Exception):
    """Node watch does not answer on its socket. Next action: `systemctl status hactl-nodewatch`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"node watch does not answer on {path}: {reason}; see `systemctl status hactl-nodewatch`")
        self.path = path
        self.reason = reason


class NodeWatchClient:
    def __init__(self) -> None:
        self.view: View | None = None
        self._path = DEFAULT_SOCKET
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._view_callbacks: list[Callable[[View], None]] = []
        self._message_callbacks: list[Callable[[str, dict[str, Any]], None]] = []
        self._witness_callbacks: list[Callable[[dict[str, Any]], None]] = []
        self._lost_callbacks: list[Callable[[], None]] = []
        self._first_view: asyncio.Future[None] | None = None
        self._buffer = bytearray(_MAX_PACKET)

    @property
    def connected(self) -> bool:
        return self._socket is not None

    async def connect(self, path: str = DEFAULT_SOCKET, timeout_s: float = 5.0) -> View:
        """Connect, say hello, wait for the first view. Raises NodeWatchUnreachable. May be called again when
        lost."""
        self.close()
        self._path = path
        self._loop = asyncio.get_running_loop()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.setblocking(False)
        try:
            link.connect(path)
        except OSError as error:
            link.close()
            raise NodeWatchUnreachable(path, str(error)) from error
        self._socket = link
        self._first_view = self._loop.create_future()
        self._loop.add_reader(link.fileno(), self._readable)
        self._put({"t": "hello"})
        try:
            await asyncio.wait_for(self._first_view, timeout_s)
        except (TimeoutError, ConnectionError) as error:
            self.close()
            raise NodeWatchUnreachable(path, str(error) or f"no view within {timeout_s} s") from error
        assert self.view is not None
        return self.view

    def on_view(self, callback: Callable[[View], None]) -> None:
        """Called on every view: at once when something changed, and at least each second."""
        self._view_callbacks.append(callback)

    def on_message(self, callback: Callable[[str, dict[str, Any]], None]) -> None:
        """Called with (sender's node name, body) for every message that a peer's hactld sent."""
        self._message_callbacks.append(callback)

    def on_witness(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Called with every order about the witness, see `witnesswords.py`."""
        self._witness_callbacks.append(callback)

    def witness(self, message: dict[str, Any]) -> None:
        """An answer about the witness, see `witnesswords.py`."""
        self._put(message)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Called when node watch closed the connection (it ended, or another hactld said hello)."""
        self._lost_callbacks.append(callback)

    def send(self, to: str, body: dict[str, Any]) -> None:
        """To the hactld of node `to`, or of every other node for "*". Retried for 5 s while the peer is
        heard, in order, never twice; dropped when the peer is silent, restarts, or has no hactld. So: time
        out and ask again."""
        size = len(json.dumps(body, separators=(",", ":")).encode())
        if size > MAX_BODY_BYTES:
            raise ValueError(f"a message body may have {MAX_BODY_BYTES} bytes, this one has {size}: send it in parts")
        self._put({"t": "send", "to": to, "body": body})

    def beat(self, *, held: int = 0, lost: int = 0) -> None:
        """Must be called every 500 ms; see Timing.daemon_hang_ms. `held`: volumes in hand whose disk is our own;
        `lost`: volumes that were lost and could not be let go yet. Only the watchdog asks for them."""
        self._put({"t": "beat", "held": held, "lost": lost})

    def gate(self, volume: str, fd: int, renew: bytes, close: bytes) -> None:
        """Hand over a gate: `renew` and `close` are whole netlink messages that node watch writes to `fd` (a
        netlink socket inside the volume's network namespace). The descriptor is duplicated; the caller may
        close its own."""
        message = {
            "t": "gate",
            "volume": volume,
            "renew": base64.b64encode(renew).decode(),
            "close": base64.b64encode(close).decode(),
        }
        self._put(message, os.dup(fd))

    def ungate(self, volume: str) -> None:
        """Close that gate and forget it."""
        self._put({"t": "ungate", "volume": volume})

    def bar(self, node: str) -> None:
        """Leader only: bar that node although it may be heard (`hactl fence`, a hung daemon)."""
        self._put({"t": "bar", "node": node})

    def lift(self, node: str) -> None:
        """Leader only: end the bar. Ignored until that node is heard again and says that it shut its gates
        for it."""
        self._put({"t": "lift", "node": node})

    def propose(self, change: dict[str, Any], digest: str) -> None:
        """Leader only: have the cluster agree on this change of the configuration. The view's `config` shows how far
        it is."""
        self._put({"t": "propose", "change": change, "digest": digest})

    def accept(self, term: int, change: dict[str, Any], digest: str) -> None:
        """The leader of `term` offered this change, and it can be made here."""
        self._put({"t": "accept", "term": term, "change": change, "digest": digest})

    def reconfigure(self, change: dict[str, Any]) -> None:
        """The change was chosen, and the configuration that it makes is on this node's disk."""
        self._put({"t": "reconfigure", "change": change})

    def yield_(self) -> None:
        """Close all gates and give the lease up until `unyield`."""
        self._put({"t": "yield"})

    def unyield(self) -> None:
        self._put({"t": "unyield"})

    def close(self) -> None:
        """Hang up. Node watch goes on renewing the gates for daemon_restart_ms."""
        link, self._socket = self._socket, None
        while self._queue:
            _, fd = self._queue.popleft()
            if fd is not None:
                os.close(fd)
        if link is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(link.fileno())
                self._loop.remove_writer(link.fileno())
            link.close()

    def _put(self, message: dict[str, Any], fd: int | None = None) -> None:
        if self._socket is None or len(self._queue) >= _MAX_QUEUE:
            if fd is not None:
                os.close(fd)
            raise NodeWatchUnreachable(self._path, "not connected" if self._socket is None else "it takes no messages")
        self._queue.append((json.dumps(message, separators=(",", ":")).encode(), fd))
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        assert self._loop is not None
        while self._socket is not None and self._queue:
            payload, fd = self._queue[0]
            rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                self._socket.sendmsg([payload], rights)
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError:
                self._lost()
                return
            self._queue.popleft()
            if fd is not None:
                os.close(fd)
        if self._socket is not None:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            packet = self._buffer[: self._socket.recv_into(self._buffer)]
        except BlockingIOError:
            return
        except OSError:
            packet = bytearray()
        if not packet:
            self._lost()
            return
        message = json.loads(packet)
        if message["t"] == "view":
            self.view = from_json(message)
            if self._first_view is not None and not self._first_view.done():
                self._first_view.set_result(None)
            for on_view in self._view_callbacks:
                on_view(self.view)
        elif message["t"] == "recv":
            for on_message in self._message_callbacks:
                on_message(message["from"], message["body"])
        elif message["t"] in ("race", "watch"):
            for on_witness in self._witness_callbacks:
                on_witness(message)

    def _lost(self) -> None:
        self.close()
        if self._first_view is not None and not self._first_view.done():
            with contextlib.suppress(asyncio.InvalidStateError):
                self._first_view.set_exception(ConnectionError("node watch hung up"))
            return
        for on_lost in self._lost_callbacks:
            on_lost()
