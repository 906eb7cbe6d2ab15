"""Frames and segments, taken apart by hand."""

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from fs import frames

MAC = bytes.fromhex("02be41c0d5ae")
V4, V6 = IPv4Address("10.77.1.50"), IPv6Address("fd00:1::50")


def test_gratuitous_request_asks_for_its_own_address() -> None:
    request, _ = frames.gratuitous_arp(MAC, V4)
    assert request[:14] == b"\xff" * 6 + MAC + b"\x08\x06"
    assert request[14:22] == bytes.fromhex("0001080006040001")
    assert request[22:] == MAC + V4.packed + b"\0" * 6 + V4.packed


def test_gratuitous_reply_names_its_own_mac_twice() -> None:
    _, reply = frames.gratuitous_arp(MAC, V4)
    assert reply[14:22] == bytes.fromhex("0001080006040002")
    assert reply[22:] == MAC + V4.packed + MAC + V4.packed


def test_advertisement_overrides_and_carries_the_mac() -> None:
    frame = frames.neighbour_advertisement(MAC, V6)
    ip, icmp = frame[14:54], frame[54:]
    assert frame[:6] == bytes.fromhex("333300000001")
    assert ip[7] == 255  # RFC 4861: others are dropped by the receiver
    assert icmp[0] == 136
    assert icmp[4] & 0x20
    assert icmp[8:24] == V6.packed
    assert icmp[24:] == b"\x02\x01" + MAC
    pseudo = ip[8:40] + struct.pack("!IHBB", len(icmp), 0, 0, 58)
    assert frames.checksum(pseudo + icmp) == 0


def test_tickle_is_a_bare_ack_with_a_good_checksum() -> None:
    packet = frames.tickle((V4, 2049), (IPv4Address("10.77.1.21"), 840))
    ip, tcp = packet[:20], packet[20:]
    assert (ip[0], ip[9], ip[12:16], ip[16:20]) == (0x45, 6, V4.packed, bytes([10, 77, 1, 21]))
    assert struct.unpack("!HHIIBB", tcp[:14]) == (2049, 840, 0, 0, 0x50, 0x10)
    assert frames.checksum(ip[12:20] + struct.pack("!BBH", 0, 6, len(tcp)) + tcp) == 0


def test_tickle_over_ipv6_has_the_header_of_ipv6() -> None:
    packet = frames.tickle((V6, 2049), (IPv6Address("fd00:1::21"), 840))
    assert packet[0] >> 4 == 6
    assert packet[6] == 6
    assert len(packet) == 60
    pseudo = packet[8:40] + struct.pack("!IHBB", 20, 0, 0, 6)
    assert frames.checksum(pseudo + packet[40:]) == 0


@given(st.binary(min_size=1, max_size=99))
def test_data_with_its_checksum_sums_to_zero(data: bytes) -> None:
    padded = data + b"\0" * (len(data) % 2)
    assert frames.checksum(padded + struct.pack("!H", frames.checksum(data))) == 0


def test_a_probe_claims_nothing_and_only_the_owners_arp_answers_it() -> None:
    address, mine, other = IPv4Address("192.0.2.50"), b"\x02" + b"\1" * 5, b"\x02" + b"\2" * 5
    probe = frames.arp_probe(mine, address)
    assert probe[28:32] == b"\0\0\0\0"  # sender address: none
    assert probe[38:42] == address.packed
    assert not frames.answers_probe(probe, mine, address)
    _, reply = frames.gratuitous_arp(other, address)
    assert frames.answers_probe(reply, mine, address)
    assert not frames.answers_probe(reply, mine, IPv4Address("192.0.2.51"))
    assert not frames.answers_probe(frames.gratuitous_arp(mine, address)[1], mine, address)
    for end in range(42):
        assert not frames.answers_probe(reply[:end], mine, address)
