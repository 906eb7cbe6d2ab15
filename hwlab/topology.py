"""A topology: which hosts a lab has, on which networks, and what they share. Read from TOML.

Every key is checked: an unknown one is an error, because a mistyped fault domain or address would otherwise
be found out by a drill that proves nothing.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hwlab.errors import TopologyError
from hwlab.paths import PACKAGE_DIR

TOPOLOGY_DIR = PACKAGE_DIR / "topologies"
MGMT = "mgmt"
LAN = "lan"
SAN = "san"
ISCSI = "iscsi"
NVME = "nvme"

# Drivers whose hosts are guests of this machine: one lab may have several.
LOCAL_DRIVERS = frozenset({"uml", "qemu"})

# A tap device is named HOST-NETWORK and an interface's name may have 15 bytes.
_NAME = re.compile(r"[a-z][a-z0-9]{0,7}")


class Role(StrEnum):
    """What a host is for."""

    TARGET = "target"
    NODE = "node"
    VOTER = "voter"
    """A node that only votes: it runs node watch alone, and reaches no storage."""
    CLIENT = "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """One host. `addresses`: network name -> address. `ssh`, `interfaces`: only for hosts that exist already.

    `driver`: what makes this host; a topology's hosts may differ.
    """

    name: str
    role: Role
    addresses: Mapping[str, str]
    driver: str = ""
    memory_mb: int = 384
    ssh: str | None = None
    interfaces: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LunSpec:
    """One logical unit that all nodes share. `serial`: hexadecimal; the device's identity is made of it."""

    name: str
    size_mb: int
    serial: str
    transport: str = ISCSI

    @property
    def uuid(self) -> uuid.UUID:
        """Of an NVMe namespace: the first 32 digits of the serial."""
        return uuid.UUID(self.serial[:32].ljust(32, "0"))

    @property
    def wwid(self) -> str:
        """As in sysfs: of SCSI NAA 6, LIO's company id 001405, then 25 digits of the serial; of NVMe the UUID."""
        if self.transport == NVME:
            return f"uuid.{self.uuid}"
        return f"naa.6001405{self.serial.lower()[:25].ljust(25, '0')}"

    @property
    def device(self) -> str:
        """The path at which every node sees it."""
        if self.transport == NVME:
            return f"/dev/disk/by-id/nvme-{self.wwid}"
        return f"/dev/disk/by-id/wwn-0x{self.wwid.removeprefix('naa.')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """The volume that the strategy creates, and how the client mounts it. `address`: with prefix length.

    `lun` names its logical unit, `more` further ones, which `stack` joins to one volume."""

    name: str
    lun: str
    fs: str
    address: str
    clients: tuple[str, ...]
    lease_s: int
    grace_s: int
    mount_point: str
    more: tuple[str, ...] = ()
    stack: str = ""

    @property
    def luns(self) -> tuple[str, ...]:
        return (self.lun, *self.more)


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcSpec:
    """Each node has a management controller (`bmc.py`). `levels`, `distrust`: of hactl's `[fencing]`."""

    levels: tuple[str, ...]
    distrust: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """A whole lab. `networks`: name -> subnet. `power`: templates of commands, for hosts that exist already."""

    name: str
    driver: str
    networks: Mapping[str, ipaddress.IPv4Network]
    hosts: tuple[HostSpec, ...]
    luns: tuple[LunSpec, ...]
    volume: VolumeSpec | None = None
    transport: str = ISCSI
    """How nodes reach the target: iscsi or nvme (over TCP)."""
    kernel: str = ""
    """Beginning of the version of the Debian kernel that QEMU hosts boot; empty = newest that keeps the promise."""
    power: Mapping[str, str] = field(default_factory=dict)
    engine: str = ""
    """What hactl's node watch runs on; empty = its default."""
    token_ms: int = 0
    """Of corosync, where it is the engine; 0 = what hactl recommends."""
    spare: tuple[str, ...] = ()
    """Nodes that have everything installed, and are in no cluster at first."""
    timing: Mapping[str, int] = field(default_factory=dict)
    """Values for the section `[timing]` of hactl.toml; empty = hactl's own."""
    sections: str = ""
    """More of hactl.toml, as it stands there."""
    witness: tuple[str, ...] = ()
    """Names of the LUNs that are the cluster's witness."""
    bmc: BmcSpec | None = None
    slow_stamps_ms: int = 0
    """How long the target takes for each write to the stamps' area; other writes are not slowed."""
    keep_alive_s: int = 5
    """Of NVMe connections: after so long a silence either end takes the other for lost."""
    multipath: bool = False
    """Whether nodes run multipathd, so that the paths to a LUN become one dm device."""

    @property
    def sans(self) -> tuple[str, ...]:
        """The storage networks, those whose names begin with `san`: the target has a portal on each that it is on."""
        return tuple(network for network in self.networks if network.startswith(SAN))

    def portals(self) -> tuple[str, ...]:
        """The target's addresses on the storage networks."""
        targets = self.with_role(Role.TARGET)
        return tuple(host.addresses[san] for host in targets for san in self.sans if san in host.addresses)

    def with_role(self, role: Role) -> tuple[HostSpec, ...]:
        """The hosts of one kind, in the file's order."""
        return tuple(host for host in self.hosts if host.role is role)

    def lun(self, name: str) -> LunSpec:
        """The logical unit of that name, or TopologyError."""
        for lun in self.luns:
            if lun.name == name:
                return lun
        raise TopologyError(f"topology {self.name} has no lun {name!r}")

    def peers(self, host: str) -> tuple[str, ...]:
        """What other nodes than `host` send from on the service network: their addresses, and the volume's."""
        nodes = [*self.with_role(Role.NODE), *self.with_role(Role.VOTER)]
        nodes = [spec for spec in nodes if spec.name != host and LAN in spec.addresses]
        volume = [self.volume.address.partition("/")[0]] if self.volume else []
        return (*(spec.addresses[LAN] for spec in nodes), *volume)

    def interface(self, host: str, network: str) -> str:
        """`address/prefix` of a host on a network."""
        spec = next(spec for spec in self.hosts if spec.name == host)
        return f"{spec.addresses[network]}/{self.networks[network].prefixlen}"


def available() -> list[str]:
    """Names of the topologies that come with hwlab."""
    return sorted(path.stem for path in TOPOLOGY_DIR.glob("*.toml"))


def load(name_or_path: str) -> tuple[Topology, str]:
    """The topology of that name, or in that file, and its text. TopologyError if there is none or it is wrong."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = TOPOLOGY_DIR / f"{name_or_path}.toml"
    try:
        text = path.read_text()
    except OSError as error:
        raise TopologyError(
            f"no topology {name_or_path!r}: take one of {', '.join(available())}, or a path that ends in .toml"
        ) from error
    return parse(text, str(path)), text


def parse(text: str, where: str) -> Topology:
    """Topology from TOML text; TopologyError names `where`, the place in it, and what is wrong."""
    try:
        table = _Table(tomllib.loads(text), where)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError(f"{where}: {error}") from error
    networks = {name: _network(where, name, value) for name, value in table.take("networks", dict).items()}
    driver = table.take("driver", str)
    transport = table.take("transport", str, ISCSI)
    topology = Topology(
        name=table.take("name", str),
        driver=driver,
        transport=transport,
        kernel=table.take("kernel", str, "") or "",
        networks=networks,
        hosts=tuple(_host(item, driver) for item in table.take_tables("host")),
        luns=tuple(_lun(item, transport) for item in table.take_tables("lun")),
        volume=_volume(table.take_table("volume")),
        power=table.take("power", dict, {}),
        engine=table.take("engine", str, "") or "",
        token_ms=table.take("token_ms", int, 0) or 0,
        timing=_timing(table.take_table("timing")),
        spare=tuple(table.take("spare", list, [])),
        sections=table.take("sections", str, "") or "",
        witness=tuple(table.take("witness", list, [])),
        slow_stamps_ms=table.take("slow_stamps_ms", int, 0) or 0,
        keep_alive_s=table.take("keep_alive_s", int, 5),
        multipath=table.take_flag("multipath"),
        bmc=_bmc(table.take_table("bmc")),
    )
    table.finish()
    _check(topology, where)
    return topology


class _Table:
    """A TOML table that knows where it is and which of its keys were not asked for."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self.where = where

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        if key not in self._values:
            if default is not None:
                return default
            raise TopologyError(f"{self.where}: `{key}` is missing")
        value = self._values.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TopologyError(f"{self.where}: `{key}` must be of type {kind.__name__}")
        return value

    def take_flag(self, key: str) -> bool:
        value = self._values.pop(key, False)
        if not isinstance(value, bool):
            raise TopologyError(f"{self.where}: `{key}` must be true or false")
        return value

    def take_tables(self, key: str) -> list[_Table]:
        items = self.take(key, list, [])
        return [_Table(item, f"{self.where}: {key} {number}") for number, item in enumerate(items, 1)]

    def take_table(self, key: str) -> _Table | None:
        values = self.take(key, dict, {})
        return _Table(values, f"{self.where}: {key}") if values else None

    def take_all(self, kind: type) -> dict[str, Any]:
        return {key: self.take(key, kind) for key in list(self._values)}

    def finish(self) -> None:
        if self._values:
            raise TopologyError(f"{self.where}: unknown key `{min(self._values)}`: remove or correct it")


def _network(where: str, name: str, value: Any) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(value)
    except ValueError as error:
        raise TopologyError(f"{where}: network {name}: {error}") from error


def _timing(table: _Table | None) -> dict[str, int]:
    """Which words there are, and which values fit together, is for hactl to say: it checks its file."""
    return table.take_all(int) if table is not None else {}


def _host(table: _Table, driver: str) -> HostSpec:
    role = table.take("role", str)
    if role not in list(Role):
        raise TopologyError(f"{table.where}: role {role!r} is none of {', '.join(Role)}")
    host = HostSpec(
        name=table.take("name", str),
        role=Role(role),
        addresses=table.take("addresses", dict),
        driver=table.take("driver", str, driver),
        memory_mb=table.take("memory_mb", int, 384),
        ssh=table.take("ssh", str, "") or None,
        interfaces=table.take("interfaces", dict, {}),
    )
    table.finish()
    return host


def _lun(table: _Table, transport: str) -> LunSpec:
    lun = LunSpec(
        name=table.take("name", str),
        size_mb=table.take("size_mb", int),
        serial=table.take("serial", str),
        transport=transport,
    )
    table.finish()
    if not re.fullmatch(r"[0-9a-fA-F]{12,}", lun.serial):
        raise TopologyError(f"{table.where}: serial must be 12 or more hexadecimal digits")
    return lun


def _volume(table: _Table | None) -> VolumeSpec | None:
    if table is None:
        return None
    volume = VolumeSpec(
        name=table.take("name", str),
        lun=table.take("lun", str),
        fs=table.take("fs", str),
        address=table.take("address", str),
        clients=tuple(table.take("clients", list)),
        lease_s=table.take("lease_s", int),
        grace_s=table.take("grace_s", int),
        mount_point=table.take("mount_point", str),
        more=tuple(table.take("more", list, [])),
        stack=table.take("stack", str, "") or "",
    )
    table.finish()
    return volume


def _bmc(table: _Table | None) -> BmcSpec | None:
    if table is None:
        return None
    bmc = BmcSpec(levels=tuple(table.take("levels", list)), distrust=tuple(table.take("distrust", list, [])))
    table.finish()
    return bmc


def _check(topology: Topology, where: str) -> None:
    """What no single table shows."""
    _unique(where, "host name", [host.name for host in topology.hosts])
    _unique(where, "lun name", [lun.name for lun in topology.luns])
    _unique(where, "lun identity", [lun.wwid for lun in topology.luns])
    _unique(where, "address", [address for host in topology.hosts for address in host.addresses.values()])
    for name in (*topology.networks, *(host.name for host in topology.hosts)):
        if not _NAME.fullmatch(name):
            raise TopologyError(f"{where}: name {name!r} must be 1 to 8 of a-z and 0-9, a letter first")
    for host in topology.hosts:
        if MGMT not in host.addresses:
            raise TopologyError(f"{where}: host {host.name} has no address on `{MGMT}`: ssh needs it")
        for network, address in host.addresses.items():
            if network not in topology.networks:
                raise TopologyError(f"{where}: host {host.name} is on network {network!r}, which is not listed")
            if _address(where, host.name, address) not in topology.networks[network]:
                raise TopologyError(f"{where}: {host.name}'s {address} is not in {topology.networks[network]}")
    nodes = [host.name for host in topology.with_role(Role.NODE)]
    for name in topology.spare:
        if name not in nodes:
            raise TopologyError(f"{where}: spare {name!r} is no host with role node")
    _check_drivers(topology, where)
    if topology.luns and len(topology.with_role(Role.TARGET)) != 1:
        raise TopologyError(f"{where}: logical units need exactly one host with role target")
    if topology.timing and topology.engine:
        raise TopologyError(f"{where}: [timing] with an engine: `hactl init --engine` writes that section itself")
    if topology.volume is not None:
        for name in topology.volume.luns:
            topology.lun(name)
    for name in topology.witness:
        topology.lun(name)
        if topology.volume is not None and name in topology.volume.luns:
            raise TopologyError(f"{where}: lun {name!r} is the volume's; the witness needs its own")


def _check_drivers(topology: Topology, where: str) -> None:
    """What emulates a host must have its storage: User-Mode Linux knows no NVMe."""
    if topology.transport not in (ISCSI, NVME):
        raise TopologyError(f"{where}: transport {topology.transport!r} is none of {ISCSI}, {NVME}")
    if topology.kernel and not re.fullmatch(r"[0-9]+(\.[0-9]+)*", topology.kernel):
        raise TopologyError(f"{where}: kernel {topology.kernel!r} is not the beginning of a version such as 7.3")
    for host in topology.hosts:
        local = {topology.driver, host.driver} <= LOCAL_DRIVERS
        if host.driver != topology.driver and not local:
            raise TopologyError(
                f"{where}: host {host.name}: driver {host.driver!r} does not mix with {topology.driver!r}: "
                f"only {', '.join(sorted(LOCAL_DRIVERS))} do with each other"
            )
        if topology.transport == NVME and host.driver == "uml" and host.role in (Role.TARGET, Role.NODE):
            raise TopologyError(f"{where}: host {host.name}: driver 'uml' has no NVMe; use 'qemu'")


def _address(where: str, host: str, address: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(address)
    except ValueError as error:
        raise TopologyError(f"{where}: {host}: {error}") from error


def _unique(where: str, what: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise TopologyError(f"{where}: {what} {value!r} is used twice")
