"""Knows the connected clients, and wakes them up after a takeover."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path

from fs import frames, peers
from fs._nfsd import PORT
from fs.model import VolumeSpec
from fs.peers import Peer

_TABLES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")


class PeerFile:
    """`/srv/VOLUME/.ha/peers.json`: on the volume, so that it is where the next owner needs it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "peers.json"
        self._last: frozenset[Peer] | None = None

    def load(self) -> frozenset[Peer]:
        try:
            return peers.decode(self._path.read_bytes())
        except OSError:
            return frozenset()

    def save(self, now: frozenset[Peer]) -> bool:
        """Durable before it returns. Writes only changes."""
        if now == (self.load() if self._last is None else self._last):
            self._last = now
            return False
        new = self._path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, peers.encode(now))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, self._path)
        self._last = now
        return True


def connected() -> frozenset[Peer]:
    """Clients connected to nfsd in the calling thread's namespace."""
    found: frozenset[Peer] = frozenset()
    for table in _TABLES:
        with contextlib.suppress(OSError):
            found |= peers.connected(Path(table).read_text(), PORT)
    return found


class Tickler:
    def __init__(self, spec: VolumeSpec) -> None:
        self.spec = spec
        self._socket: socket.socket | None = None

    def open_socket(self) -> None:
        """In the namespace, in advance. IPPROTO_RAW: we write the IP header, so the address need not be there
        yet, and the socket receives nothing (a TCP one would get a copy of every segment of the clients)."""
        if self._socket is None:
            family = socket.AF_INET if self.spec.interface.version == 4 else socket.AF_INET6
            self._socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, targets: frozenset[Peer]) -> int:
        """Returns how many went out. An unreachable peer is skipped: it will find out by itself."""
        assert self._socket is not None
        own, sent = self.spec.interface.ip, 0
        for host, port in sorted(targets):
            address = ipaddress.ip_address(host)
            if address.version != own.version:
                continue
            packet = frames.tickle((own, PORT), (address, port))
            with contextlib.suppress(OSError):
                self._socket.sendto(packet, (host, 0))
                sent += 1
        return sent
