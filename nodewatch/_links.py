"""What this host's kernel knows of the heartbeat links: carrier, address, route. A change is told at once.

A process of its own looks (`python -m nodewatch._links`, started by node watch, ends with it): loading pyroute2 takes a
second on a slow machine and 20 MB, and no heartbeat shall wait for it.

An event on the bound socket is only a doorbell: it says "look again", and what is looked at is the present state. So a
lost or coalesced event (ENOBUFS) costs nothing, and the events' order does not matter.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from typing import Any

from nodewatch.config import ClusterConfig, NodeConfig

_GROUPS = 0x1 | 0x10 | 0x100 | 0x40 | 0x400
"""RTMGRP_ LINK, IPV4_IFADDR, IPV6_IFADDR, IPV4_ROUTE, IPV6_ROUTE."""
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_RTN_LOCAL = 2
_PAUSE_S = 0.02
"""Between two looks: events come in bursts, and a router's table may change all the time."""
_NOT_HERE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV, errno.EINVAL))


class LinkMonitor:
    """Node watch's end: a readable descriptor, and what was told."""

    def __init__(self, config: ClusterConfig, me: NodeConfig) -> None:
        """Raises OSError: the process cannot be started."""
        self._links = len(me.addresses)
        others = [node for node in config.nodes if node.number != me.number]
        links = [[address, *(node.addresses[link] for node in others)] for link, address in enumerate(me.addresses)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nodewatch._links", json.dumps(links)],
            stdin=subprocess.PIPE,  # its end tells the process that we ended
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._told = self._process.stdout
        os.set_blocking(self._told.fileno(), False)
        self._rest = b""

    def fileno(self) -> int:
        return self._told.fileno()

    def take(self) -> dict[int, str] | None:
        """By link, what keeps it from working, "" = nothing; empty = no news. None = the process ended: nothing is
        known any more."""
        try:
            data = os.read(self._told.fileno(), 65536)
        except BlockingIOError:
            return {}
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return dict(enumerate(json.loads(lines[-1]))) if lines else {}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    """Write the state of every link, one JSON list a line, now and at each change, until the other end hangs up."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # node watch's own priority is not for this
    from pyroute2 import IPRoute

    links: list[list[str]] = json.loads(sys.argv[1])
    bell = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    bell.bind((0, _GROUPS))
    bell.setblocking(False)
    told: list[str] = []
    with IPRoute() as route:
        while True:
            found = [trouble_of(route, address, peers) for address, *peers in links]
            if found != told:
                told = found
                print(json.dumps(found), flush=True)
            readable, _, _ = select.select([bell, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            time.sleep(_PAUSE_S)
            while _rang(bell):
                pass


def _rang(bell: socket.socket) -> bool:
    try:
        bell.recv(65536)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
    return True


def trouble_of(route: Any, address: str, peers: list[str]) -> str:
    """Why nothing can be heard at `address` or sent to any of `peers`; "" = nothing is known against it. `route` is a
    pyroute2.IPRoute. Raises NetlinkError for what is none of the link's business."""
    from pyroute2.netlink.exceptions import NetlinkError

    holders = [each["index"] for each in route.get_addr() if address in (each.get("address"), each.get("local"))]
    try:
        if not holders:
            # An address of the loopback network need not be listed.
            local = any(found["type"] == _RTN_LOCAL for found in route.route("get", dst=address))
            return "" if local else f"no interface has the address {address}"
        flags, name = 0, ""
        for interface in route.get_links(holders[0]):
            flags, name = interface["flags"], interface.get("ifname")
    except NetlinkError as error:
        if error.code in _NOT_HERE:
            return f"no interface has the address {address}"
        raise
    if not flags & _IFF_UP:
        return f"{name} is down"
    if not flags & _IFF_LOWER_UP:
        return f"{name} has no carrier"
    if peers and not any(_has_route(route, peer) for peer in peers):
        return f"no route to {', '.join(peers)}"
    return ""


def _has_route(route: Any, address: str) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        return bool(list(route.route("get", dst=address)))
    except NetlinkError:
        return False


if __name__ == "__main__":
    main()
