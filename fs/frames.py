"""The frames and segments that wake a network and its clients up after a takeover (pure bytes).

ARP: RFC 826, gratuitous forms as in RFC 5227. Neighbour advertisement: RFC 4861, 4.4. TCP: RFC 9293.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = IPv6Address("ff02::1")
_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ICMPV6, _TCP = 58, 6
_ACK = 0x10


def gratuitous_arp(mac: bytes, address: IPv4Address) -> tuple[bytes, bytes]:
    """(request, reply), both broadcast: some neighbours believe only the one, some only the other."""
    own = mac + address.packed
    head = struct.pack("!6s6sHHHBB", _BROADCAST, mac, _ETH_ARP, 1, 0x0800, 6, 4)
    request = head + struct.pack("!H", 1) + own + b"\0" * 6 + address.packed
    reply = head + struct.pack("!H", 2) + own + mac + address.packed
    return request, reply


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """RFC 5227, 1.1: asks who has the address and claims nothing, so no neighbour's table changes."""
    head = struct.pack("!6s6sHHHBB", _BROADCAST, mac, _ETH_ARP, 1, 0x0800, 6, 4)
    return head + struct.pack("!H", 1) + mac + b"\0" * 4 + b"\0" * 6 + address.packed


def answers_probe(frame: bytes, mac: bytes, address: IPv4Address) -> bool:
    """Does this Ethernet frame say that another station has the address? Any ARP of its owner does."""
    if len(frame) < 42 or frame[12:14] != struct.pack("!H", _ETH_ARP) or frame[14:20] != b"\0\1\x08\0\6\4":
        return False
    return frame[28:32] == address.packed and frame[22:28] != mac


def neighbour_advertisement(mac: bytes, address: IPv6Address) -> bytes:
    """Unsolicited, with the override flag, to all nodes."""
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + address.packed + struct.pack("!BB", 2, 1) + mac
    check = checksum(_pseudo(address, _ALL_NODES, len(body), _ICMPV6) + body)
    body = body[:2] + struct.pack("!H", check) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, 255) + address.packed + _ALL_NODES.packed
    return struct.pack("!6s6sH", _ALL_NODES_MAC, mac, _ETH_IPV6) + header + body


def tickle(source: tuple[IPv4Address | IPv6Address, int], target: tuple[IPv4Address | IPv6Address, int]) -> bytes:
    """A bare TCP ACK with sequence and acknowledgement 0, as an IP packet: the peer answers with what it
    expects, gets an RST from a kernel that knows no such connection, and connects anew at once."""
    (from_address, from_port), (to_address, to_port) = source, target
    segment = struct.pack("!HHIIBBHHH", from_port, to_port, 0, 0, 5 << 4, _ACK, 0, 0, 0)
    check = checksum(_pseudo(from_address, to_address, len(segment), _TCP) + segment)
    segment = segment[:16] + struct.pack("!H", check) + segment[18:]
    ends = from_address.packed + to_address.packed
    if from_address.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(segment), _TCP, 64) + ends + segment
    # Length, identification and header checksum are filled in by the kernel (raw(7)).
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, _TCP, 0) + ends + segment


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: IPv4Address | IPv6Address, target: IPv4Address | IPv6Address, length: int, protocol: int) -> bytes:
    if source.version == 4:
        return source.packed + target.packed + struct.pack("!BBH", 0, protocol, length)
    return source.packed + target.packed + struct.pack("!IHBB", length, 0, 0, protocol)
