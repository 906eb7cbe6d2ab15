"""The socket that hactld talks to: one JSON object per packet (SOCK_SEQPACKET), descriptors by SCM_RIGHTS.

Whoever said `hello` last is the daemon; others are observers, who get views and may command nothing. Only root, or the
user that node watch runs as, may connect.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections import deque
from typing import Any

_MAX_PACKET = 262_144
_MAX_CONNECTIONS = 8
_MAX_QUEUE = 512
_UCRED = struct.Struct("3i")
_MAX_FDS = 4
_FD_SPACE = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_VIEW_START = b'{"t":"view"'
_BEAT = b'{"t":"beat"}'

# One buffer for all: a fresh one of this size for every packet would cost more than everything else about a beat.
_buffer = bytearray(_MAX_PACKET)


class Connection:
    """One client. What it does not read at once waits in a queue; of the views only the newest waits."""

    def __init__(self, link: socket.socket) -> None:
        self._socket = link
        self._queue: deque[bytes] = deque()
        self.is_daemon = False
        self.overflowed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        return bool(self._queue)

    def send(self, packet: bytes) -> None:
        if packet.startswith(_VIEW_START):
            self._queue = deque(waiting for waiting in self._queue if not waiting.startswith(_VIEW_START))
        if len(self._queue) >= _MAX_QUEUE:
            self.overflowed = True
            return
        self._queue.append(packet)
        self.flush()

    def flush(self) -> None:
        while self._queue:
            try:
                self._socket.send(self._queue[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self._queue.clear()
                return
            self._queue.popleft()

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """One message and the descriptors that came with it. None = the client hung up.

        Raises ValueError for what is not a JSON object; its descriptors are closed."""
        try:
            size, rights, flags, _ = self._socket.recvmsg_into([_buffer], _FD_SPACE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return {}, []
        except OSError:
            return None
        packet = bytes(_buffer[:size])
        fds = _descriptors(rights) if rights else []
        if packet == _BEAT and not fds:
            return {"t": "beat"}, fds
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("message too long, or too many descriptors")
            if not packet:
                self.close_all(fds)
                return None
            message = json.loads(packet)
            if not isinstance(message, dict):
                raise ValueError("not a JSON object")
        except ValueError:
            self.close_all(fds)
            raise
        return message, fds

    @staticmethod
    def close_all(fds: list[int]) -> None:
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def close(self) -> None:
        self._socket.close()


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


class Listener:
    def __init__(self, path: str) -> None:
        """Raises OSError. The caller holds the state directory's lock, so a socket file found here is a dead one's."""
        self._path = path
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        previous = os.umask(0o177)
        try:
            self._socket.bind(path)
        finally:
            os.umask(previous)
        self._socket.listen(8)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self, connected: int) -> Connection | str | None:
        """A new connection; a sentence if it was refused; None if there was none."""
        try:
            link, _ = self._socket.accept()
        except OSError:
            return None
        _, uid, _ = _UCRED.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            link.close()
            return f"refused a connection of uid {uid}: only root may"
        if connected >= _MAX_CONNECTIONS:
            link.close()
            return f"refused a connection: {connected} are open already"
        link.setblocking(False)
        return Connection(link)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()
