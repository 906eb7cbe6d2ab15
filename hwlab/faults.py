"""What a drill or an operator can do to a host, by name. `undo` names the kind that reverses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hwlab import hostfaults
from hwlab.errors import LabError
from hwlab.protocols import Host, Link
from hwlab.topology import LAN, SAN, Role

DAEMON = "hactld.service"
NODEWATCH = "hactl-nodewatch.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault or repair."""

    kind: str
    description: str
    apply: Callable[[Host], None]
    undo: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """A fault that was injected: between which times of this machine's clocks it took effect.

    `wall_*`: seconds since the epoch; `monotonic_*`: seconds of the monotonic clock.
    """

    kind: str
    host: str
    wall_before: float
    wall_after: float
    monotonic_before: float
    monotonic_after: float


def inject(kind: str, host: Host) -> Injected:
    """Do it. LabError for an unknown kind, or where the host has nothing that it could hit."""
    fault = FAULTS.get(kind)
    if fault is None:
        raise LabError(f"unknown fault {kind!r}: take one of {', '.join(FAULTS)}")
    wall_before, monotonic_before = time.time(), time.monotonic()
    fault.apply(host)
    return Injected(
        kind=kind,
        host=host.name,
        wall_before=wall_before,
        wall_after=time.time(),
        monotonic_before=monotonic_before,
        monotonic_after=time.monotonic(),
    )


def _cut(network: str) -> Callable[[Host], None]:
    def apply(host: Host) -> None:
        _link(host, network).cut()

    return apply


def _heal(network: str) -> Callable[[Host], None]:
    def apply(host: Host) -> None:
        _link(host, network).heal()

    return apply


def _sans(host: Host) -> list[str]:
    """The host's storage networks, in the topology's order."""
    return [network for network in host.links if network.startswith(SAN)]


def _second_path(host: Host) -> str:
    """The network of the path that is lost: the last one."""
    sans = _sans(host)
    if len(sans) < 2:
        raise LabError(f"{host.name} has one path to the storage at most: take a topology with two")
    return sans[-1]


def _cut_storage(host: Host) -> None:
    for network in _sans(host) or [SAN]:
        _cut(network)(host)


def _heal_storage(host: Host) -> None:
    for network in _sans(host) or [SAN]:
        _heal(network)(host)


def _renew_path(host: Host) -> None:
    host.command.run(["sh", "-c", hostfaults.renewed_session(_second_path(host))], timeout_s=60)


def _heal_service(host: Host) -> None:
    _heal(LAN)(host)
    _script(hostfaults.unfiltered)(host)


def _script(make: Callable[[str], str]) -> Callable[[Host], None]:
    """A script of `hwlab.hostfaults` for the host's interface on the service network."""

    def apply(host: Host) -> None:
        _link(host, LAN)
        host.command.run(["sh", "-c", make(host.interfaces.get(LAN, LAN))])

    return apply


def _script_on_target(make: Callable[[], str]) -> Callable[[Host], None]:
    def apply(host: Host) -> None:
        if host.role is not Role.TARGET:
            raise LabError(f"{host.name} is no target")
        host.command.run(["sh", "-c", make()])

    return apply


def _cut_from_nodes(host: Host) -> None:
    if not host.peers:
        raise LabError(f"{host.name} has no other nodes to be cut from")
    _script(lambda interface: hostfaults.cut_from(interface, host.peers))(host)


def _link(host: Host, network: str) -> Link:
    if network not in host.links:
        raise LabError(f"{host.name} is not on network {network!r}")
    return host.links[network]


def _on_host(*argv: str) -> Callable[[Host], None]:
    def apply(host: Host) -> None:
        host.command.run(argv)

    return apply


def _reboot(host: Host) -> None:
    # The connection may end before the command's status arrives.
    host.command.run(["systemctl", "--no-block", "reboot"], check=False)
    host.command.forget()


_ALL = (
    Fault(
        kind="kill",
        description="power loss: the host is gone at once, nothing is flushed",
        apply=lambda host: host.power.off(),
        undo="power-on",
    ),
    Fault(kind="power-on", description="start a host that is off", apply=lambda host: host.power.on()),
    Fault(
        kind="pause",
        description="freeze the whole host with everything it has in flight",
        apply=lambda host: host.power.pause(),
        undo="resume",
    ),
    Fault(kind="resume", description="thaw a frozen host", apply=lambda host: host.power.resume()),
    Fault(
        kind="cut",
        description="the host loses the service network (heartbeats and clients), not its storage",
        apply=_cut(LAN),
        undo="heal",
    ),
    Fault(
        kind="cut-in",
        description="nothing reaches the host on the service network; what it sends still leaves",
        apply=_script(hostfaults.cut_in),
        undo="heal",
    ),
    Fault(
        kind="cut-out",
        description="nothing that the host sends on the service network leaves; it still receives",
        apply=_script(hostfaults.cut_out),
        undo="heal",
    ),
    Fault(
        kind="cut-from-nodes",
        description="the host and the other nodes lose each other on the service network, but not the clients",
        apply=_cut_from_nodes,
        undo="heal",
    ),
    Fault(
        kind="lossy",
        description=f"{hostfaults.LOSS_PERCENT} % of the host's frames on the service network are lost, both ways",
        apply=_script(hostfaults.lossy),
        undo="heal",
    ),
    Fault(kind="heal", description="undo cut and the other faults of the service network", apply=_heal_service),
    Fault(
        kind="busy",
        description="every CPU of the host has more to do than it can",
        apply=_script(lambda _: hostfaults.busy()),
        undo="idle",
    ),
    Fault(kind="idle", description="undo busy", apply=_script(lambda _: hostfaults.idle())),
    Fault(
        kind="clock-fast",
        description=f"all clocks of the host run {hostfaults.DRIFT_PERCENT} % fast",
        apply=_script(lambda _: hostfaults.clock_rate(hostfaults.DRIFT_PERCENT)),
        undo="clock-true",
    ),
    Fault(
        kind="clock-slow",
        description=f"all clocks of the host run {hostfaults.DRIFT_PERCENT} % slow",
        apply=_script(lambda _: hostfaults.clock_rate(-hostfaults.DRIFT_PERCENT)),
        undo="clock-true",
    ),
    Fault(
        kind="clock-true",
        description="undo clock-fast and clock-slow",
        apply=_script(lambda _: hostfaults.clock_rate(0)),
    ),
    Fault(
        kind="cut-storage",
        description="the host loses every storage network, not the service network",
        apply=_cut_storage,
        undo="heal-storage",
    ),
    Fault(kind="heal-storage", description="undo cut-storage and cut-path", apply=_heal_storage),
    Fault(
        kind="cut-path",
        description="the host loses one of its paths to the storage, the last storage network",
        apply=lambda host: _cut(_second_path(host))(host),
        undo="heal-storage",
    ),
    Fault(
        kind="renew-path",
        description="the session on the last storage network is logged out and in again, with another ISID",
        apply=_renew_path,
    ),
    Fault(
        kind="volatile",
        description="the target will forget all reservations when it loses its power: as if it had no APTPL",
        apply=_script_on_target(hostfaults.volatile),
        undo="persistent",
    ),
    Fault(kind="persistent", description="undo volatile", apply=_script_on_target(hostfaults.persistent)),
    Fault(
        kind="stop-daemon",
        description="stop hactld in the orderly way",
        apply=_on_host("systemctl", "stop", DAEMON),
        undo="start-daemon",
    ),
    Fault(
        kind="stop-node",
        description="stop the node watch and hactld in the orderly way, as a shutdown does",
        # In this order: `systemctl stop` makes a job for each in turn, and the node watch's brings hactl-drain first.
        apply=_on_host("systemctl", "stop", NODEWATCH, DAEMON),
        undo="start-daemon",
    ),
    Fault(
        kind="kill-controller",
        description="hactld is killed at once (SIGKILL); the node watch goes on",
        apply=_on_host("systemctl", "kill", "--kill-who=main", "--signal=KILL", DAEMON),
    ),
    Fault(
        kind="start-daemon",
        description="start hactld and the node watch",
        apply=_on_host("systemctl", "start", NODEWATCH, DAEMON),
    ),
    Fault(
        kind="hang-daemon",
        description="all processes of hactld and of the node watch stop executing (SIGSTOP)",
        apply=_on_host("systemctl", "kill", "--signal=STOP", DAEMON, NODEWATCH),
        undo="thaw-daemon",
    ),
    Fault(
        kind="hang-controller",
        description="hactld alone stops executing; the node watch goes on",
        apply=_on_host("systemctl", "kill", "--kill-who=main", "--signal=STOP", DAEMON),
        undo="thaw-daemon",
    ),
    Fault(
        kind="thaw-daemon",
        description="undo hang-daemon and hang-controller",
        apply=_on_host("systemctl", "kill", "--signal=CONT", NODEWATCH, DAEMON),
    ),
    Fault(kind="reboot", description="orderly reboot of the host", apply=_reboot),
)

UNDO_COMMANDS = hostfaults.idle() + hostfaults.clock_rate(0)
"""Undoes on a host what its own commands may have left behind, apart from `heal`."""

FAULTS: Mapping[str, Fault] = {fault.kind: fault for fault in _ALL}
