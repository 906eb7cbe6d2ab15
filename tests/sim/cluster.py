"""A whole simulated cluster: hosts, network, shared disks, clients, checker; and the seams where the shipped code
meets simulated hosts instead of real ones."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cryptography.exceptions import InvalidTag

from fencing._discover import Disk
from fencing.errors import FencingError
from fencing.fake import own, seed_label
from fencing.label import Label
from fencing.model import Identity
from hactl.config import Config
from hactl.record import Held, Records
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.core import NodeWatch
from nodewatch.lease import Timing
from nodewatch.stable import Stable

from . import files
from .checker import Checker
from .clients import Clients
from .disk import Path, SimLabels, Unit, open_lun
from .host import Host
from .kernel import Kernel, SimVolumeService
from .network import Network
from .process import KEY, DaemonProcess, SimClient, WatchProcess
from .world import World

if TYPE_CHECKING:
    from .process import Process

UUID = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
FIRST_EPOCH = 3


def cluster_config(count: int, timing: Timing | None = None, links: int = 1) -> ClusterConfig:
    """Nodes n1, n2, ... as the parser would give them (which allows fewer of them)."""
    return ClusterConfig(
        name="sim",
        uuid=UUID,
        key_file="/nonexistent",
        this=None,
        nodes=tuple(
            NodeConfig(
                name=f"n{number}",
                number=number,
                address=f"10.0.{number >> 8}.{number & 255}",
                further=tuple(f"10.{link}.{number >> 8}.{number & 255}" for link in range(1, links)),
            )
            for number in range(1, count + 1)
        ),
        timing=timing or Timing(),
        port=7747,
        metrics_listen=None,
    )


class Cluster:
    """`make_watch` is the class of the core, for tests that break it."""

    def __init__(
        self,
        world: World,
        *,
        nodes: int = 3,
        links: int = 1,
        volumes: int = 1,
        writers: int = 2,
        persists: bool = True,
        timing: Timing | None = None,
        make_watch: type[NodeWatch] = NodeWatch,
    ) -> None:
        self.world = world
        self.config = cluster_config(nodes, timing, links)
        self.make_watch = make_watch
        self.writers = writers
        self.volumes = [f"v{index}" for index in range(1, volumes + 1)]
        self.numbers = {node.name: node.number for node in self.config.nodes}
        self.checker = Checker(self)
        self.network = Network(self)
        self.units = {f"/dev/sd{chr(96 + i)}": self._unit(f"lun{i}", persists) for i in range(1, volumes + 1)}
        drift = self.config.timing.drift_percent / 100
        self.hosts = {node.number: self._host(node.number, drift) for node in self.config.nodes}
        for index, volume in enumerate(self.volumes):
            self._format(volume, list(self.units.values())[index], self.hosts[index % nodes + 1])
        self.clients = Clients(self)

    def _unit(self, name: str, persists: bool) -> Unit:
        return Unit(self.world, self.checker, name, persists=persists)

    def _host(self, number: int, drift: float) -> Host:
        host = Host(self.world, number, drift)
        host.cluster = self  # type: ignore[attr-defined]
        host.kernel = Kernel(host)
        host.paths = {device: Path(host, unit) for device, unit in self.units.items()}
        host.watch = WatchProcess(host)
        host.daemon = DaemonProcess(host)
        return host

    def _format(self, volume: str, unit: Unit, owner: Host) -> None:
        """As an earlier life of the cluster left it: owned, wanted, clean."""
        seed_label(unit, self._label(volume, unit.name, owner.name))
        key = Identity(cluster_uuid=UUID, node=owner.number, node_name=owner.name).key(FIRST_EPOCH)
        own(unit, owner.paths[self.device_of(unit)].nexus, key.value)
        self.checker.add_disk(unit, volume, FIRST_EPOCH)

    def _label(self, volume: str, wwid: str, owner: str) -> Label:
        return Label(
            cluster_uuid=UUID,
            cluster_name="sim",
            volume=volume,
            volume_uuid=f"uuid-{volume}",
            epoch=FIRST_EPOCH,
            owner=owner,
            wanted="started",
            wwids=(wwid,),
            fstype="ext4",
            address="10.9.0.1/24",
            lease_s=10,
            grace_s=10,
            seq=1,
        )

    def device_of(self, unit: Unit) -> str:
        return next(device for device, each in self.units.items() if each is unit)

    def units_of(self, volume: str) -> list[Unit]:
        return [list(self.units.values())[self.volumes.index(volume)]]

    def config_of(self, host: Host) -> Config:
        return Config(cluster=self.config, me=host.name, number=host.number)

    def make_core(self, host: Host, restored: Stable) -> NodeWatch:
        me = self.config.nodes[host.number - 1]
        return self.make_watch(config=self.config, me=me, key=KEY, restored=restored, now_ms=host.clock_ms())

    def start(self) -> None:
        for host in self.hosts.values():
            self.world.after(self.world.random.uniform(0, 200), host.watch.start)
            self.world.after(self.world.random.uniform(100, 500), host.daemon.start)
        self.clients.start()

    def leader(self) -> Host | None:
        """Whom its own node watch calls the leader; of several the one with the newest term."""
        found = [
            (host.watch.core.view(host.clock_ms()).term, host.number, host)
            for host in self.hosts.values()
            if host.watch.alive and host.watch.core.view(host.clock_ms()).role == "leader"
        ]
        return max(found)[2] if found else None

    def server(self, volume: str) -> Host | None:
        return next((host for host in self.hosts.values() if host.kernel.gate_open(volume)), None)

    def unsettled(self, since: float) -> str | None:
        """None when everybody follows one leader, nobody is barred, and every client was served since then; else what
        is missing."""
        views = [host.watch.core.view(host.clock_ms()) for host in self.hosts.values() if host.watch.alive]
        leaders = {view.leader for view in views}
        if len(views) < len(self.hosts) or len(leaders) != 1 or None in leaders:
            return f"leaders {sorted(map(str, leaders))} of {len(views)} nodes"
        barred = [(view.me, name) for view in views for name, node in view.nodes.items() if node.barred]
        if barred:
            return f"barred {barred}"
        without = [view.me for view in views if not view.lease_left_ms]
        if without:
            return f"no lease: {without}"
        hungry = [client.name for client in self.clients.all if client.answered_at <= since]
        return f"not served: {hungry}" if hungry else None

    def bury(self) -> None:
        """The run is over: end everything, so that nothing of it lives on."""
        self.world.over = True
        for host in self.hosts.values():
            host.watch.kill()
            host.daemon.kill()


# -- where the shipped code meets the simulation ---------------------------------------------------------------------


class FastSeal:
    """Stands in for ChaCha20-Poly1305: detects what was changed or sealed under another key, and hides nothing."""

    def __init__(self, key: bytes) -> None:
        self._start = zlib.crc32(key)

    def encrypt(self, nonce: bytes, body: bytes, header: bytes) -> bytes:
        return body + self._tag(nonce, body, header)

    def decrypt(self, nonce: bytes, sealed: bytes, header: bytes) -> bytes:
        body = sealed[:-16]
        if sealed[-16:] != self._tag(nonce, body, header):
            raise InvalidTag
        return body

    def _tag(self, nonce: bytes, body: bytes, header: bytes) -> bytes:
        return b"%016x" % zlib.crc32(body, zlib.crc32(header, zlib.crc32(nonce, self._start)))


class SimRecords(Records):
    """The shipped records on simulated files; tells the checker, and keeps no history."""

    def __init__(self, stable: Any, boot: Any) -> None:
        super().__init__(stable, boot)
        self._host: Host = stable.files.world.current.host

    def intend(self, volume: str, epoch: int) -> None:
        super().intend(volume, epoch)
        self._host.cluster.checker.meant(self._host, volume, epoch)

    def hold(self, volume: str, held: Held) -> None:
        super().hold(volume, held)
        self._host.cluster.checker.acquired(self._host, volume, held)

    def forget(self, volume: str) -> None:
        super().forget(volume)
        self._host.cluster.checker.forgotten(self._host, volume)

    def _append(self, body: dict[str, Any]) -> None:
        pass


class NoApi:
    """No socket for administrators; they call `Daemon.command`."""

    def __init__(self, daemon: object) -> None:
        pass

    def api(self) -> NoApi:
        return self

    async def listen(self, path: object) -> NoApi:
        return self

    def close(self) -> None:
        pass

    def serve_metrics(self) -> None:
        pass


class NoNotices:
    """The simulated disks are SCSI: their kernel says nothing of reservations by itself."""

    def __init__(self, runtimes: object, log: object) -> None:
        pass

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextlib.contextmanager
def seams(world: World) -> Iterator[None]:
    """While this lasts, what the shipped code would ask of a real host goes to the host whose process runs."""

    def process() -> Process:
        assert world.current is not None, "shipped code runs outside a process"
        return world.current

    def scan() -> list[Disk]:
        return [look_at(process().host, device) for device in process().host.paths]

    with contextlib.ExitStack() as stack:
        for target, stand_in in {
            "nodewatch.wire.ChaCha20Poly1305": FastSeal,
            "hactl.daemon.NodeWatchClient": lambda: SimClient(process()),
            "hactl.daemon.FenceWatch": NoNotices,
            "hactl.daemon.Records": SimRecords,
            "hactl.daemon.Verbs": NoApi,
            "hactl.record.write_atomic": files.write,
            "hactl.volumes.bring_back": lambda *wanted: (),
            "hactl.volumes.scan": scan,
            "hactl.volumes.open_lun": lambda device: open_lun(process().host, device),
            "hactl.volumes.VolumeService": lambda spec: SimVolumeService(process().host, spec),
            "hactl.volumes.partition": lambda device, number: device,
        }.items():
            stack.enter_context(patch(target, stand_in))
        try:
            yield
        finally:
            world.over = True


def look_at(host: Host, device: str) -> Disk:
    wwid = host.paths[device].unit.name
    try:
        found = SimLabels(host.paths[device]).read()
    except FencingError as error:
        return Disk(device=device, wwid=wwid, size_bytes=0, label=error)
    label = found.label if found else None
    return Disk(device=device, wwid=wwid, size_bytes=0, label=label, problem=found.damage if found else "")
