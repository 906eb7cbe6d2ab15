"""Who else speaks as the owner of the served address is answered with an announcement, while it is ours.

A former owner that was frozen and runs again still has TCP connections under the address. In the moment before its
kernel lets the address expire it may ask the network for a client's hardware address, as the owner of ours: the client
then sends to the wrong station until it has asked anew, 5 to 15 s. The one who really has the address hears that
question too, and defends it (RFC 5227, 2.4).
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address

from fs import frames
from fs._attendant import Attendant

_log = logging.getLogger(__name__)

EVERY_S = 0.05
"""However often somebody claims the address, announcements are no closer than this."""
AGAIN_MS = 300
"""Told once more so much later: the claim may have gone on after the first answer."""
_FRAME_BYTES = 128
_FRAMES_MAX = 64
"""Read in one go; the rest wakes the thread again."""


class Defence:
    """`mine` tells, of the kernel itself, whether the address is here now; both functions are called on the attendant's
    thread. Nothing is announced that is not ours: the rightful owner may be the one who spoke."""

    def __init__(
        self,
        volume: str,
        attendant: Attendant,
        *,
        mine: Callable[[], bool],
        announce: Callable[[], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._volume = volume
        self._attendant = attendant
        self._mine = mine
        self._announce = announce
        self._now_s = now_s
        self._last_s = float("-inf")

    def listen(self, link: socket.socket, mac: bytes, address: IPv4Address) -> None:
        """`link` hears the ARP packets of the served network, and does not block. May be called again."""
        self._attendant.watch(link.fileno(), lambda: self._hear(link, mac, address))

    def _hear(self, link: socket.socket, mac: bytes, address: IPv4Address) -> None:
        claimed = b""
        for _ in range(_FRAMES_MAX):
            try:
                frame = link.recv(_FRAME_BYTES)
            except OSError:
                break  # all are read, or the link went down
            if frames.answers_probe(frame, mac, address):
                claimed = frame[22:28]
        if claimed and self._now_s() - self._last_s >= EVERY_S:
            self._answer(f"{claimed.hex(':')} speaks as {address}")
            self._attendant.later(AGAIN_MS, lambda: self._answer(""))

    def _answer(self, why: str) -> None:
        if not self._mine():
            return
        self._last_s = self._now_s()
        self._announce()
        if why:
            _log.warning("volume=%s %s, which is here: announced again", self._volume, why)
