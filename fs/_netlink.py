"""One rtnetlink socket, driven synchronously: send a message, read its answer.

The messages are pyroute2's classes. Its IPRoute is not used: since 0.9 it runs an asyncio loop per socket,
while here a socket belongs to the namespace of the one thread that opened it, and the bytes of a renewal
must be handed to another process.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=LHHLL")
_TIMEOUT_S = 5.0


def open_socket() -> socket.socket:
    """A route socket in the calling thread's network namespace."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    sock.bind((0, 0))
    return sock


def encode(message: Any, kind: int, flags: int, sequence: int = 1) -> bytes:
    """The bytes of a pyroute2 message."""
    message["header"]["type"] = kind
    message["header"]["flags"] = flags | NLM_F_REQUEST
    message["header"]["sequence_number"] = sequence
    message["header"]["pid"] = 0
    message.encode()
    return bytes(message.data)


class Route:
    """Request and answer on one socket. Errors of the kernel are OSError with its errno."""

    def __init__(self) -> None:
        self.socket = open_socket()
        self.socket.settimeout(_TIMEOUT_S)
        self._sequence = 0

    def close(self) -> None:
        self.socket.close()

    def ask(self, message: Any, kind: int, flags: int = 0) -> None:
        """Changes something; returns when the kernel has confirmed it."""
        self._sequence += 1
        self.socket.send(encode(message, kind, flags | NLM_F_ACK, self._sequence))
        for _, error, _ in self._answers():
            if error:
                raise OSError(error, os.strerror(error))

    def dump(self, message: Any, kind: int) -> list[Any]:
        """All objects of a kind, decoded into the class of `message`."""
        self._sequence += 1
        self.socket.send(encode(message, kind, NLM_F_DUMP, self._sequence))
        return [self._decode(type(message), data) for _, _, data in self._answers() if data]

    def get(self, message: Any, kind: int) -> Any | None:
        """One object, or None if there is none."""
        self._sequence += 1
        self.socket.send(encode(message, kind, NLM_F_ACK, self._sequence))
        found = None
        for _, error, data in self._answers():
            if error in (errno.ENODEV, errno.ENOENT):
                return None
            if error:
                raise OSError(error, os.strerror(error))
            found = self._decode(type(message), data) if data else found
        return found

    @staticmethod
    def _decode(kind: type[Any], data: bytes) -> Any:
        message = kind(data)
        message.decode()
        return message

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """(type, errno, bytes) of the current request's answers; ends after the ack, the error or DONE."""
        while True:
            packet = self.socket.recv(1 << 17)
            for kind, sequence, data in split(packet):
                if sequence != self._sequence:
                    continue  # the late answer of a request that was given up
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    yield kind, error_of(data), b""
                    return
                yield kind, 0, data


def split(packet: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, whole message) of each message in a packet."""
    at = 0
    while at + _HEADER.size <= len(packet):
        length, kind, _, sequence, _ = _HEADER.unpack_from(packet, at)
        if length < _HEADER.size:
            return
        yield kind, sequence, packet[at : at + length]
        at += (length + 3) & ~3


def error_of(message: bytes) -> int:
    """The errno of an NLMSG_ERROR message, positive; 0 is an acknowledgement."""
    return -int(struct.unpack_from("=i", message, _HEADER.size)[0])
