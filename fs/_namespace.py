"""The volume's network namespace and its macvlan link, and the thread that lives in there.

Only the *network* and *UTS* namespaces are the volume's own. There is no private mount namespace on purpose:
it would copy every other volume's mount, and their umount would then "succeed" while the device stays held.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import socket
import threading
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from fs import _libc
from fs._netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWLINK,
    Route,
)
from fs.errors import NotPossible
from fs.model import Interface

LINK = "service"
_RUN_NETNS = Path("/run/netns")
_THREAD_NET = "/proc/thread-self/ns/net"
_IFF_UP = 1


class Namespace:
    """The namespace `hactl-VOLUME`. Every method must be called by the volume's worker thread."""

    def __init__(self, volume: str) -> None:
        self.volume = volume
        self.name = f"hactl-{volume}"
        self.path = _RUN_NETNS / self.name
        # Opened before the thread moves: the host's links are looked at and used through this one.
        self.host: Route | None = None
        self.route: Route | None = None
        self._thread: int | None = None

    def enter(self) -> None:
        """Moves the calling thread into the namespace (made if missing) and a UTS namespace of the volume.

        The host name there is the NFS server's scope: the same on every node, or clients drop their state.
        """
        if self._thread == threading.get_ident():
            return
        if self._thread is not None or threading.current_thread() is threading.main_thread():
            raise RuntimeError(f"volume {self.volume}: call from the one worker thread of this volume only")
        self._thread = threading.get_ident()
        self.host = Route()
        if is_namespace(self.path):
            self._join()
        else:
            _libc.unshare(_libc.CLONE_NEWNET)
            self.pin()
        _libc.unshare(_libc.CLONE_NEWUTS)
        socket.sethostname(self.name)
        self.route = Route()

    def _join(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _libc.setns(fd, _libc.CLONE_NEWNET)
        finally:
            os.close(fd)

    def pin(self) -> bool:
        """Like `ip netns add` does, so that `ip netns exec` works for the operator and the next daemon finds it.
        Returns whether it had to be done."""
        if is_namespace(self.path):
            return False
        _RUN_NETNS.mkdir(exist_ok=True)
        self.path.touch()
        _libc.mount(_THREAD_NET, str(self.path), "none", _libc.MS_BIND)
        return True

    def leave(self) -> None:
        """Closes this process's sockets; the namespace stays."""
        for route in (self.host, self.route):
            if route is not None:
                route.close()
        self.host = self.route = None

    def remove(self) -> None:
        """Unpins the namespace: it ends with its last socket and thread, the macvlan with it."""
        self.delete_link()
        if is_namespace(self.path):
            _libc.umount(str(self.path), _libc.MNT_DETACH)
        self.path.unlink(missing_ok=True)

    # -- the link ------------------------------------------------------------------------------------------

    def link_index(self) -> int | None:
        link = self._get_link(LINK)
        return None if link is None else int(link["index"])

    def link_up(self) -> bool:
        link = self._get_link(LINK)
        return link is not None and bool(link["flags"] & _IFF_UP)

    def link_address(self) -> bytes:
        link = self._get_link(LINK)
        text = "" if link is None else str(link.get_attr("IFLA_ADDRESS") or "")
        return bytes.fromhex(text.replace(":", ""))

    def make_link(self, interface: Interface) -> bool:
        """lo up, macvlan there and up. Returns whether something was changed."""
        self.set_up("lo")
        created = self.link_index() is None
        if created:
            self._create_link(interface)
            _quiet_ipv6(LINK)
        return self.set_up(LINK) or created

    def set_up(self, name: str, up: bool = True) -> bool:
        """Returns whether it had to be changed."""
        assert self.route is not None
        link = self._get_link(name)
        if link is None or bool(link["flags"] & _IFF_UP) is up:
            return False
        message = ifinfmsg()
        message["index"] = link["index"]
        message["flags"] = _IFF_UP if up else 0
        message["change"] = _IFF_UP
        self.route.ask(message, RTM_NEWLINK)
        return True

    def delete_link(self) -> None:
        assert self.route is not None
        if (index := self.link_index()) is not None:
            message = ifinfmsg()
            message["index"] = index
            self.route.ask(message, RTM_DELLINK)

    def _get_link(self, name: str) -> Any | None:
        assert self.route is not None
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name)]
        return self.route.get(message, RTM_GETLINK)

    def _create_link(self, interface: Interface) -> None:
        assert self.host is not None
        parent = self._parent(interface)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", LINK),
            ("IFLA_LINK", parent),
            ("IFLA_ADDRESS", mac_of(self.volume, self._host_mac(parent))),
            ("IFLA_NET_NS_FD", fd),
            (
                "IFLA_LINKINFO",
                {
                    "attrs": [
                        ("IFLA_INFO_KIND", "macvlan"),
                        ("IFLA_INFO_DATA", {"attrs": [("IFLA_MACVLAN_MODE", "bridge")]}),
                    ]
                },
            ),
        ]
        try:
            self.host.ask(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
        finally:
            os.close(fd)

    def _parent(self, interface: Interface) -> int:
        """Index of the host's interface that carries the served address's network."""
        assert self.host is not None
        for found in self.host.dump(ifaddrmsg(), RTM_GETADDR):
            text = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
            address = ipaddress.ip_address(str(text))
            if address in interface.network and address != interface.ip:
                return int(found["index"])
        raise NotPossible(
            self.volume,
            f"no interface of this node carries the network {interface.network} of its address",
            "give this node an address in that network, or give the volume another address",
        )

    def host_gateway(self, interface: Interface) -> str | None:
        """The host's default gateway, if it is in the served network: the way to clients further away."""
        assert self.host is not None
        message = rtmsg()
        message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        for found in self.host.dump(message, RTM_GETROUTE):
            gateway = found.get_attr("RTA_GATEWAY")
            if found["dst_len"] == 0 and gateway and ipaddress.ip_address(str(gateway)) in interface.network:
                return str(gateway)
        return None

    def _host_mac(self, index: int) -> str:
        assert self.host is not None
        message = ifinfmsg()
        message["index"] = index
        link = self.host.get(message, RTM_GETLINK)
        return str(link.get_attr("IFLA_ADDRESS")) if link is not None else ""


def is_namespace(path: Path) -> bool:
    """Whether a namespace is pinned there (and not just the file left that it was mounted on)."""
    try:
        return path.stat().st_dev != _RUN_NETNS.stat().st_dev
    except FileNotFoundError:
        return False


def mac_of(volume: str, parent_mac: str) -> str:
    """One MAC per volume per node, the same at every start: locally administered, unicast."""
    digest = hashlib.sha256(f"{volume}@{parent_mac}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([0x02]) + digest[:5])


def _quiet_ipv6(link: str) -> None:
    """No addresses but the served one: no link-local made from the MAC, no router advertisements."""
    base = Path("/proc/sys/net/ipv6/conf") / link  # shows the namespace of the thread that opens it
    for name, value in (("accept_ra", "0"), ("addr_gen_mode", "1"), ("accept_dad", "0")):
        try:
            (base / name).write_text(value)
        except OSError:
            continue  # a kernel without IPv6
