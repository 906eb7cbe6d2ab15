"""A lab as a stage for drills: hosts over ssh, faults by name, the strategy that makes everything well."""

import ipaddress
import subprocess
from collections.abc import Callable

from hwlab import faults
from hwlab.errors import LabError, LabLost, TopologyError
from hwlab.protocols import Host, Lab
from hwlab.ssh import SSH_FAILED
from hwlab.stage import Done, HostSilent, Share
from hwlab.topology import LAN, Role

NODE_MOUNTS = "/srv"
MOUNT_OPTIONS = "vers=4.2"


class LabStage:
    """`hwlab.stage.Stage` on any lab that has a target, nodes, one client and a volume."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.driver = lab.driver
        self.transport = lab.topology.transport
        self.target = self._one(Role.TARGET)
        self.client = self._one(Role.CLIENT)
        # A node's number is its place in the topology: the strategy numbers them so in hactl.toml.
        self.nodes = {number: spec.name for number, spec in enumerate(lab.topology.with_role(Role.NODE), start=1)}
        self.share = self._share()

    def _one(self, role: Role) -> str:
        found = self._lab.topology.with_role(role)
        if not found:
            raise TopologyError(f"topology {self._lab.topology.name} has no {role}: drills need one")
        return found[0].name

    def _share(self) -> Share:
        topology = self._lab.topology
        volume = topology.volume
        if volume is None:
            raise TopologyError(f"topology {topology.name} has no [volume]: drills need one")
        client = next(spec for spec in topology.hosts if spec.name == self.client)
        return Share(
            volume=volume.name,
            # for the witness: where there are several, a pattern for all of them (v1a, v1b)
            lun=f"{volume.lun[:-1]}?" if volume.more else volume.lun,
            mount_point=volume.mount_point,
            source=f"{volume.address.partition('/')[0]}:/",
            options=MOUNT_OPTIONS,
            node_mount=f"{NODE_MOUNTS}/{volume.name}",
            thief_link=client.interfaces.get(LAN, LAN),
            thief_address=self._free_address(1),
            reader_address=self._free_address(2),
            asker_address=self._free_address(3),
        )

    def _free_address(self, nth: int) -> str:
        """The nth address after the highest host's on the service's network, without the served one."""
        topology = self._lab.topology
        served = topology.volume.address.partition("/")[0] if topology.volume else ""
        taken = [spec.addresses[LAN] for spec in topology.hosts if LAN in spec.addresses]
        highest = max(ipaddress.IPv4Address(address) for address in taken)
        free = [highest + n for n in range(1, nth + 2) if str(highest + n) != served]
        return f"{free[nth - 1]}/{topology.networks[LAN].prefixlen}"

    def _host(self, name: str) -> Host:
        return self._lab.hosts[name]

    def exec(self, host: str, argv: list[str], *, input: bytes | None = None, timeout_s: float = 30.0) -> Done:
        """See `Stage.exec`."""
        try:
            ended = self._host(host).command.run(argv, input=input, timeout_s=timeout_s, check=False)
        except LabLost as error:
            raise HostSilent(str(error)) from error
        if ended.status == SSH_FAILED:
            said = ended.stderr.decode(errors="replace").strip()
            raise HostSilent(f"{host} cannot be reached by ssh: {said[-300:]}")
        return Done(returncode=ended.status, stdout=ended.stdout, stderr=ended.stderr)

    def stream(self, host: str, argv: list[str]) -> "subprocess.Popen[bytes]":
        """See `Stage.stream`."""
        pipe = subprocess.PIPE
        return self._host(host).command.start(argv, stdin=pipe, stdout=pipe, stderr=pipe)

    def console(self, host: str) -> str:
        """See `Stage.console`."""
        try:
            return self._host(host).console.text()
        except LabError:
            return ""

    def fault(self, kind: str, host: str) -> None:
        """See `Stage.fault`."""
        try:
            faults.inject(kind, self._host(host))
        except LabError as error:
            raise HostSilent(f"{kind} {host}: {error}") from error

    def heal(self, say: Callable[[str], None]) -> None:
        """See `Stage.heal`."""
        from hwlab.strategy import serve

        try:
            serve(self._lab, say)
        except LabError as error:
            raise HostSilent(str(error)) from error
