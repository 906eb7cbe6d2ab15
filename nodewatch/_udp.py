"""One heartbeat link: a UDP socket bound to this node's own address, and where the peers listen."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from nodewatch.wire import MAX_DATAGRAM

_PRIORITY_INTERACTIVE = 6
_CLASS_NETWORK_CONTROL = 0xC0


class UdpLink:
    """Raises OSError when the address is not this host's, or the port is taken."""

    def __init__(self, address: str, port: int, peers: Mapping[int, str]) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        # Heartbeats go before bulk data in the queues of this host and of switches that look at the class.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY_INTERACTIVE)
        if family == socket.AF_INET:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _CLASS_NETWORK_CONTROL)
        else:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _CLASS_NETWORK_CONTROL)
        try:
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self._port = port
        self.configure(peers)
        self.send_errors = 0
        self.last_error = ""

    def fileno(self) -> int:
        return self._socket.fileno()

    def configure(self, peers: Mapping[int, str]) -> None:
        """Where the peers listen, from now on."""
        self._peers = {number: (peer, self._port) for number, peer in peers.items()}

    def send(self, to: tuple[int, ...], datagram: bytes) -> None:
        """A datagram that cannot be sent now is a lost datagram."""
        for number in to:
            try:
                self._socket.sendto(datagram, self._peers[number])
            except OSError as error:
                self.send_errors += 1
                self.last_error = f"to {self._peers[number][0]}: {error.strerror}"

    def receive(self) -> tuple[bytes, str] | None:
        """(datagram, the sender's address); None when there is none."""
        try:
            datagram, source = self._socket.recvfrom(MAX_DATAGRAM + 1)
        except OSError:
            return None
        return datagram, source[0].partition("%")[0]

    def close(self) -> None:
        self._socket.close()
