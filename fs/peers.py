"""The clients' TCP ends, as the kernel shows them and as the volume remembers them (pure).

The file moves with the volume: the node that takes over has never seen these connections.
Source of the format: Linux Documentation/networking/proc_net_tcp.rst. Addresses there are words of the
machine's own byte order.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterable

Peer = tuple[str, int]

_ESTABLISHED = "01"
_VERSION = 1
# More would be a flood rather than a wake-up; the rest finds out by its own retransmits.
MOST = 4096


def connected(table: str, port: int) -> frozenset[Peer]:
    """Peers of established connections to local `port` in the text of /proc/net/tcp or tcp6."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == _ESTABLISHED and int(words[1].split(":")[1], 16) == port:
            found.add(_peer(words[2]))
    return frozenset(found)


def _peer(word: str) -> Peer:
    address, port = word.split(":")
    raw = bytes.fromhex(address)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    ip = ipaddress.ip_address(raw)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return str(ip), int(port, 16)


def encode(peers: Iterable[Peer]) -> bytes:
    return (json.dumps({"version": _VERSION, "peers": sorted(peers)[:MOST]}) + "\n").encode()


def decode(data: bytes) -> frozenset[Peer]:
    """A file that makes no sense is an empty one: tickles only speed up."""
    try:
        found = json.loads(data)
        if found["version"] != _VERSION:
            return frozenset()
        return frozenset((str(ipaddress.ip_address(host)), int(port)) for host, port in found["peers"])
    except (ValueError, KeyError, TypeError):
        return frozenset()
