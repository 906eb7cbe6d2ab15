"""The served address: given for a second at a time, announced, and taken away.

The lifetime is a lease that the kernel itself ends: if everything in user space hangs, the address is gone
all the same, and with it every connection. See docs/nfs.md for how soon.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from fs import frames
from fs._defence import Defence
from fs._namespace import LINK, Namespace
from fs._netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
    RTM_NEWROUTE,
    Route,
    encode,
    open_socket,
)
from fs.errors import NotPossible
from fs.model import Gate, VolumeSpec

_NO_DAD = 0x02
_ETH_P_ARP = 0x0806
_PROBES = 2
_PROBE_S = 0.04
_FRAME_BYTES = 128
_FOREVER = 0xFFFFFFFF
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1


class ServedAddress:
    """Worker thread only, but for `announce_once` and `is_here`, for one other thread once the sockets are open."""

    def __init__(self, spec: VolumeSpec, namespace: Namespace) -> None:
        self.spec = spec
        self.namespace = namespace
        self._gate: Gate | None = None
        self._gate_socket: socket.socket | None = None
        self._packets: socket.socket | None = None
        self._heard: socket.socket | None = None
        self._asked: Route | None = None
        self._mac = b""
        self._gateway: str | None = None

    def open_sockets(self) -> None:
        """In advance, in the namespace: what the takeover will send on."""
        if self._packets is None:
            self._packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._packets.bind((LINK, 0))
        self._mac = self.namespace.link_address()
        self._gateway = self.namespace.host_gateway(self.spec.interface)
        self.gate()

    def defend(self, defence: Defence) -> None:
        """In advance, in the namespace: from now on whoever else speaks as its owner is heard. IPv4 only."""
        address = self.spec.interface.ip
        if not isinstance(address, ipaddress.IPv4Address):
            return
        if self._heard is None or self._asked is None:
            self._asked = Route()
            self._heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._heard.setblocking(False)
        self._heard.bind((LINK, _ETH_P_ARP))
        defence.listen(self._heard, self._mac, address)

    def is_here(self) -> bool:
        """Does the kernel have the address now? On a socket of its own, so that another thread may ask."""
        return self._asked is not None and self._left_s(self._asked) is not None

    def close(self) -> None:
        for each in (self._gate_socket, self._packets, self._heard, self._asked):
            if each is not None:
                each.close()
        self._gate_socket = self._packets = self._gate = self._heard = self._asked = None

    # -- the gate ------------------------------------------------------------------------------------------

    def gate(self) -> Gate:
        """Made anew if the link was made anew: its number is in the messages."""
        index = self._index()
        if self._gate_socket is None:
            self._gate_socket = open_socket()
            self._gate_socket.setblocking(False)
        renew = encode(self._message(index), RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
        close = encode(self._message(index), RTM_DELADDR, NLM_F_ACK)
        self._gate = Gate(fd=self._gate_socket.fileno(), renew=renew, close=close)
        return self._gate

    def _message(self, index: int) -> Any:
        message, interface = ifaddrmsg(), self.spec.interface
        lifetime = self.spec.gate_lifetime_s
        message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        message["prefixlen"] = interface.network.prefixlen
        message["index"] = index
        message["flags"] = _NO_DAD if interface.version == 6 else 0
        life = {"ifa_preferred": lifetime, "ifa_valid": lifetime, "cstamp": 0, "tstamp": 0}
        attributes: list[tuple[str, object]] = [
            ("IFA_LOCAL", str(interface.ip)),
            ("IFA_ADDRESS", str(interface.ip)),
            ("IFA_CACHEINFO", life),
        ]
        message["attrs"] = attributes
        return message

    def _index(self) -> int:
        index = self.namespace.link_index()
        if index is None:
            raise NotPossible(self.spec.name, f"its link {LINK} is missing", "call prepare() first")
        return index

    # -- here or not ---------------------------------------------------------------------------------------

    def left_s(self) -> int | None:
        """Seconds that it will live without a renewal, None if it is not there."""
        assert self.namespace.route is not None
        return self._left_s(self.namespace.route)

    def _left_s(self, route: Route) -> int | None:
        for found in route.dump(ifaddrmsg(), RTM_GETADDR):
            text = str(found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS"))
            if ipaddress.ip_address(text) == self.spec.interface.ip:
                life = found.get_attr("IFA_CACHEINFO")
                return int(life["ifa_valid"]) if life else _FOREVER
        return None

    def add(self) -> bool:
        """For one lifetime; somebody must renew it. Returns whether it was not there."""
        assert self.namespace.route is not None
        was_there = self.left_s() is not None
        self.namespace.set_up(LINK)
        self.namespace.route.ask(self._message(self._index()), RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        return not was_there

    def route_out(self) -> None:
        """The default route goes with the last address of a link, so it is set again whenever that came."""
        assert self.namespace.route is not None
        if self._gateway is None:
            return
        message = rtmsg()
        message["family"] = socket.AF_INET if self.spec.interface.version == 4 else socket.AF_INET6
        message["table"], message["proto"], message["type"] = _MAIN_TABLE, _STATIC, _UNICAST
        message["attrs"] = [("RTA_GATEWAY", self._gateway), ("RTA_OIF", self._index())]
        self.namespace.route.ask(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)

    def remove(self) -> bool:
        """Takes it away, and the link down: a renewal that is still under way opens nothing then."""
        assert self.namespace.route is not None
        index = self.namespace.link_index()
        if index is None:
            return False
        try:
            self.namespace.route.ask(self._message(index), RTM_DELADDR)
            was_there = True
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            was_there = False
        return self.namespace.set_up(LINK, False) or was_there

    def answered_elsewhere(self) -> bool:
        """Does some station on the served network still have this address? Takes 80 ms when nobody does.

        For IPv6 it is not asked, and the answer is yes: the caller then waits for what it knows for certain.
        """
        address = self.spec.interface.ip
        if not isinstance(address, ipaddress.IPv4Address):
            return True
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_ARP)) as link:
            link.bind((LINK, _ETH_P_ARP))
            return any(self._probe_once(link, address) for _ in range(_PROBES))

    def _probe_once(self, link: socket.socket, address: ipaddress.IPv4Address) -> bool:
        link.send(frames.arp_probe(self._mac, address))
        deadline = time.monotonic() + _PROBE_S
        while (left := deadline - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                frame = link.recv(_FRAME_BYTES)
            except TimeoutError:
                return False
            if frames.answers_probe(frame, self._mac, address):
                return True
        return False

    # -- telling the neighbours ----------------------------------------------------------------------------

    def announce_once(self) -> None:
        """Two frames to everybody on the link: this address is at this MAC now."""
        assert self._packets is not None
        address = self.spec.interface.ip
        if isinstance(address, ipaddress.IPv4Address):
            for frame in frames.gratuitous_arp(self._mac, address):
                self._packets.send(frame)
        else:
            self._packets.send(frames.neighbour_advertisement(self._mac, address))
