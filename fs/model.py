"""The values that the rest of fs/ speaks: what a volume should be, and what was seen of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum

from fs.stack import Stack

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """One served volume. Comes from the label on its disk and the node's configuration.

    `device` is the data partition (`/dev/sda2`), `address_cidr` the served address with its prefix length,
    `clients` the networks that may mount (CIDR). Lease and grace are NFSv4's, in seconds.
    `gate_lifetime_s` is the lifetime that every renewal gives the address: the kernel removes it by itself.
    `stack` is what makes `device` of several LUNs; None where it is a partition.
    """

    name: str
    device: str
    fstype: str
    address_cidr: str
    clients: tuple[str, ...]
    lease_s: int = 10
    grace_s: int = 10
    threads: int = 8
    gate_lifetime_s: int = 1
    root_squash: bool = False
    stack: Stack | None = None

    @property
    def interface(self) -> Interface:
        return ipaddress.ip_interface(self.address_cidr)

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        return tuple(ipaddress.ip_network(each, strict=False) for each in self.clients)


class Mounted(Enum):
    """What the mount point of the volume carries."""

    NO = "no"
    OURS = "ours"
    # Another device (or the same one under an old number) is mounted there: never build on it.
    FOREIGN = "foreign"


class Tracking(Enum):
    """nfsdcld, which remembers on the volume who may reclaim."""

    ABSENT = "absent"
    # Alive, but without its inotify watch: threads started now would silently track nothing.
    STARTING = "starting"
    READY = "ready"
    # It holds the kernel's upcall pipe: what clients are granted is being recorded.
    ATTACHED = "attached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is there now, whoever made it. Seen by reading /proc, netlink and the nfsd file system only.

    `device_free` is whether nobody on this node has the data partition open or mounted (an O_EXCL open
    succeeds); None if the device is not there. `damaged` is a mounted file system that shut itself down or
    went read-only. `responder` is whether *this* process answers the kernel's export questions: False right
    after a restart of the daemon while `nfsd_threads` > 0 means: adopt. `address_left_s` is the rest of the
    address's life (None: no address; the kernel counts whole seconds).
    """

    namespace: bool
    link_up: bool
    control: bool
    mounted: Mounted
    damaged: bool
    device_free: bool | None
    tracking: Tracking
    nfsd_threads: int
    listening: bool
    responder: bool
    address_left_s: int | None

    @property
    def prepared(self) -> bool:
        return self.namespace and self.link_up and self.control

    @property
    def serving(self) -> bool:
        return (
            self.mounted is Mounted.OURS
            and not self.damaged
            and self.tracking is Tracking.ATTACHED
            and self.nfsd_threads > 0
            and self.responder
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The served address as a gate that another process holds open.

    Write `renew` on `fd` (a netlink socket in the volume's namespace): the address lives for another
    `gate_lifetime_s`. Write `close`: it is gone at once. Each write is answered on `fd` by one NLMSG_ERROR
    message: errno 0 is success; for `close` EADDRNOTAVAIL (-99) means it was gone already. The socket does
    not block; it stays the property of VolumeService (pass it by SCM_RIGHTS, don't close it).
    A renewal after a close, or after the address expired, puts the address back: whoever renews must own
    the lease *now*.
    """

    fd: int
    renew: bytes
    close: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceStatus:
    """How far the clients are with taking their state back.

    `known` clients may reclaim (from the tracking database); `returned` of them are connected and confirmed
    again, `reclaimed` of them are done (RECLAIM_COMPLETE), `waiting` names those that are not. `active` is
    whether the server is (still) in grace, None if nfsd is down. `may_end`: all that are waited for are
    known to be gone. Numbers are 0 while the database cannot be read.
    """

    active: bool | None
    known: int
    returned: int
    reclaimed: int
    waiting: tuple[str, ...]
    may_end: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Did:
    """What one step did: `changed` False = it found everything as wanted. `took_ms` is monotonic."""

    step: str
    changed: bool
    took_ms: float
    note: str = ""
