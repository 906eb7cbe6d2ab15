"""Defending the served address against a station that speaks as its owner."""

import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from fs import frames
from fs._defence import AGAIN_MS, Defence

ADDRESS = IPv4Address("10.77.1.50")
OWN, OTHER = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


class Hand:
    """An attendant that does what a test tells it to."""

    def __init__(self) -> None:
        self.readable: Callable[[], None] = lambda: None
        self.due: list[tuple[float, Callable[[], None]]] = []

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        self.readable = readable

    def later(self, delay_ms: float, action: Callable[[], None]) -> None:
        self.due.append((delay_ms, action))


class World:
    def __init__(self, link: socket.socket, wire: socket.socket) -> None:
        self.wire, self.hand, self.announced, self.here, self.now_s = wire, Hand(), 0, True, 0.0
        defence = Defence("v1", self.hand, mine=lambda: self.here, announce=self.announce, now_s=lambda: self.now_s)
        defence.listen(link, OWN, ADDRESS)

    def announce(self) -> None:
        self.announced += 1

    def hear(self, *heard: bytes) -> int:
        for frame in heard:
            self.wire.send(frame)
        self.hand.readable()
        return self.announced


@pytest.fixture
def world() -> Iterator[World]:
    link, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    link.setblocking(False)
    with link, wire:
        yield World(link, wire)


def asks(mac: bytes, address: IPv4Address) -> bytes:
    """As a station that has the address asks for another's."""
    return frames.gratuitous_arp(mac, address)[0]


def test_who_speaks_as_the_owner_is_answered_at_once_and_once_more(world: World) -> None:
    assert world.hear(asks(OTHER, ADDRESS)) == 1
    [(delay_ms, again)] = world.hand.due
    assert delay_ms == AGAIN_MS
    again()
    assert world.announced == 2


def test_what_is_not_ours_is_not_announced(world: World) -> None:
    """It may be the rightful owner who spoke."""
    world.here = False
    assert world.hear(asks(OTHER, ADDRESS)) == 0
    world.here = True
    world.now_s = 1.0
    world.hear(asks(OTHER, ADDRESS))
    world.here = False
    for _, again in world.hand.due:
        again()
    assert world.announced == 1


@pytest.mark.parametrize(
    "frame",
    [
        asks(OWN, ADDRESS),
        asks(OTHER, IPv4Address("10.77.1.51")),
        frames.arp_probe(OTHER, ADDRESS),
        b"\0" * 60,
        b"short",
    ],
)
def test_other_packets_are_no_claim(world: World, frame: bytes) -> None:
    assert world.hear(frame) == 0 and world.hand.due == []


def test_a_claimant_that_never_stops_is_not_answered_packet_by_packet(world: World) -> None:
    for now_s in (0.0, 0.01, 0.02, 0.1):
        world.now_s = now_s
        world.hear(*[asks(OTHER, ADDRESS)] * 5)
    assert world.announced == 2
