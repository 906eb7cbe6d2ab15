"""The gates' other end: netlink messages prepared by hactld, written to the descriptor that it handed over.

Node watch knows nothing of what they say. It reads the kernel's answer (NLMSG_ERROR of the same sequence number).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

_NLMSGHDR = struct.Struct("=LHHLL")
_NLMSG_ERROR = 2
_ANSWER_MS = 50
_MAX_ANSWERS = 16
# There is nothing (left) to close: the address ran out, the interface or its namespace is away.
_CLOSED_ALREADY = frozenset((errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO, errno.ENOENT))


class BadGate(Exception):
    """hactld handed over something that is not a gate."""


class Gate:
    def __init__(self, fd: int, renew: bytes, close: bytes) -> None:
        """Takes the descriptor over."""
        for message in (renew, close):
            if len(message) < _NLMSGHDR.size or _NLMSGHDR.unpack_from(message)[0] != len(message):
                os.close(fd)
                raise BadGate(f"not one whole netlink message: {message[:32].hex()}")
        try:
            self._socket = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise BadGate(f"the descriptor is no socket: {error.strerror}") from error
        self.last_error = 0
        """What the last renewal or closing answered: only a change is worth a line in the log."""
        self._renew = renew
        self._close = close

    def renew(self) -> int:
        """0, or the errno."""
        return self._ask(self._renew)

    def close(self) -> int:
        """0 when it is surely closed, or the errno."""
        error = self._ask(self._close)
        return 0 if error in _CLOSED_ALREADY else error

    def release(self) -> None:
        self._socket.close()

    def _ask(self, message: bytes) -> int:
        sequence = _NLMSGHDR.unpack_from(message)[3]
        try:
            self._socket.send(message, socket.MSG_DONTWAIT)
            for _ in range(_MAX_ANSWERS):
                answer = self._answer()
                if len(answer) < _NLMSGHDR.size + 4:
                    return errno.EPROTO
                _, kind, _, answered, _ = _NLMSGHDR.unpack_from(answer)
                if kind == _NLMSG_ERROR and answered == sequence:
                    return -int(struct.unpack_from("=l", answer, _NLMSGHDR.size)[0])
        except OSError as error:
            return error.errno or errno.EIO
        return errno.EPROTO

    def _answer(self) -> bytes:
        """The kernel answers before `send` returns; a short wait is for whatever else stands at the other end."""
        try:
            return self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(_ANSWER_MS):
                raise OSError(errno.ETIMEDOUT, "no answer") from None
            return self._socket.recv(65536, socket.MSG_DONTWAIT)
