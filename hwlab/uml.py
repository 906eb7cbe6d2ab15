"""Driver `uml`: every host is a User-Mode Linux kernel in the network namespace of its lab.

What there is of a lab on this machine, and so what `down` has to remove:

- one network namespace (bridges and taps go with it);
- processes, all of them inside that namespace: that is how they are found, whatever became of whoever
  started them;
- two directories (state: disks, logs, records; runtime: sockets). No mounts.

A guest is one kernel process, which leads a session, a few helpers (disk I/O), and one traced process per guest
process. All of them show the words that the kernel was started with: that is how one guest's are told from another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from hwlab import netns, procs, record
from hwlab.errors import LabError, LabLost
from hwlab.image import cached_image, ensure_image
from hwlab.paths import cache_dir, runtime_dir, state_dir
from hwlab.preconditions import preconditions
from hwlab.protocols import Command, Disk, Host, LinkState, PowerState, Progress
from hwlab.ssh import SshCommand, in_parallel
from hwlab.topology import MGMT, HostSpec, Role, Topology
from hwlab.umlkernel import ensure_kernel

# A whole lab boots in about 12 s on two idle cores; a busy machine may take several times as long.
BOOT_TIMEOUT_S = 120.0
KILL_TIMEOUT_S = 20.0

# A guest that reboots runs its own argv[0] again, in the same process and with all its descriptors, so that its
# own taps would be busy. argv[0] is therefore this script, which closes them.
_STARTER = """#!/bin/bash
for path in /proc/self/fd/*; do
    fd=${path##*/}
    [ "$fd" -le 2 ] || eval "exec $fd>&-"
done
exec -a "$0" KERNEL "$@"
"""

IQN_PREFIX = "iqn.2026-11.org.hactl"


class UmlLab:
    """`hwlab.protocols.Lab` on this machine alone."""

    def __init__(self, name: str, topology: Topology, text: str) -> None:
        self.name = name
        self.driver = "uml"
        self.topology = topology
        self._text = text
        self.disks: Mapping[str, Disk] = {
            lun.name: Disk(name=lun.name, device=lun.device, wwid=lun.wwid, size_mb=lun.size_mb)
            for lun in topology.luns
        }
        self.hosts: Mapping[str, Host] = {spec.name: self._host(spec) for spec in topology.hosts}

    def up(self, progress: Progress) -> None:
        """See `Lab.up`. Builds the image first if there is none."""
        preconditions()
        with record.locked(self.name):
            self._claim(progress)
            netns.create(self.name, self.topology)
            for lun in self.topology.luns:
                _make_sparse(lun_file(self.name, lun.name), lun.size_mb)
            started = time.monotonic()
            off = [host for host in self.hosts.values() if host.power.state() is PowerState.OFF]
            names = ", ".join(host.name for host in off)
            progress(f"lab {self.name}: starting {names or 'nothing, all hosts are on'}")
            for host in off:
                host.power.on()
            in_parallel(self._wait_for, self.hosts.values())
            progress(f"lab {self.name}: {len(self.hosts)} hosts reachable [{time.monotonic() - started:.1f} s]")

    def down(self, progress: Progress) -> None:
        """See `Lab.down`."""
        remove(self.name, progress)

    def exists(self) -> bool:
        """See `Lab.exists`."""
        return bool(leftovers(self.name))

    def _claim(self, progress: Progress) -> None:
        """Record the lab, with the image that its disks will lie above, before anything of it exists."""
        existing = record.read(self.name)
        if existing is None:
            image = ensure_image(progress)
            record.write(self.name, record.Record(topology=self._text, image=image.key))
            shutil.copy(image.key_file, key_file(self.name))
        elif existing.topology != self._text:
            raise LabError(
                f"lab {self.name} exists with another topology: run `hwlab --lab {self.name} down` first, "
                "or choose another --lab"
            )

    def _wait_for(self, host: Host) -> None:
        try:
            host.command.wait_reachable(BOOT_TIMEOUT_S)
        except LabLost as error:
            tail = "\n".join(host.console.text().splitlines()[-5:])
            raise LabLost(f"{error}; the end of its console:\n{tail}") from error

    def _host(self, spec: HostSpec) -> Host:
        command = SshCommand(
            spec.name,
            f"root@{spec.addresses[MGMT]}",
            key_file=key_file(self.name),
            control=runtime_dir(self.name) / f"ssh-{spec.name}",
            prefix=netns.entering(self.name),
        )
        return Host(
            name=spec.name,
            role=spec.role,
            addresses=spec.addresses,
            command=command,
            power=UmlPower(self.name, spec, self.topology, command),
            console=UmlConsole(self.name, spec.name),
            links={network: UmlLink(self.name, spec.name, network) for network in spec.addresses},
            peers=self.topology.peers(spec.name),
        )


class UmlPower:
    """`hwlab.protocols.Power`: a kernel is a process, so losing power is SIGKILL and freezing is SIGSTOP."""

    def __init__(self, lab: str, spec: HostSpec, topology: Topology, command: Command) -> None:
        self._lab = lab
        self._spec = spec
        self._topology = topology
        self._command = command
        self._dir = state_dir(lab) / "hosts" / spec.name

    def on(self) -> None:
        """See `Power.on`."""
        if self.state() is not PowerState.OFF:
            return
        self._reap()
        shutil.rmtree(self._uml_dir, ignore_errors=True)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._uml_dir.parent.mkdir(parents=True, exist_ok=True)
        kernel = ensure_kernel(cache_dir())
        self._starter.write_text(_STARTER.replace("KERNEL", str(kernel)))
        self._starter.chmod(0o755)
        argv = [*netns.entering(self._lab), str(self._starter), *kernel_words(self._lab, self._spec, self._topology)]
        with (self._dir / "console.log").open("ab") as console:
            console.write(f"\n=== power on at {time.time():.3f} ===\n".encode())
            console.flush()
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd="/",
                # Without TMPDIR and its like, UML finds a tmpfs for the guest's memory by itself.
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )

    def used_ns(self) -> dict[int, int]:
        """By process of this guest: how long it ran on this machine's processors, by the scheduler's account."""
        found = {}
        for pid in self._members():
            with contextlib.suppress(OSError):
                tasks = Path(f"/proc/{pid}/task").iterdir()
                found[pid] = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
        return found

    def off(self) -> None:
        """See `Power.off`."""
        self._reap()
        self._command.forget()

    def pause(self) -> None:
        """See `Power.pause`.

        Only the kernel's own processes are stopped. Guest processes are traced by the kernel and cannot do
        anything without it; a SIGSTOP of their own would, after the thaw, look to the kernel like a fault.
        """
        procs.signal_untraced(self._members(), procs.STOP)

    def resume(self) -> None:
        """See `Power.resume`."""
        procs.signal_untraced(self._members(), procs.CONTINUE)

    def state(self) -> PowerState:
        """See `Power.state`."""
        kernel = next((pid for pid in self._members() if procs.is_session_leader(pid)), None)
        if kernel is None:
            return PowerState.OFF
        return PowerState.PAUSED if procs.is_stopped(kernel) else PowerState.ON

    @property
    def _uml_dir(self) -> Path:
        return runtime_dir(self._lab) / "uml" / self._spec.name

    @property
    def _starter(self) -> Path:
        return self._dir / "start"

    def _members(self) -> list[int]:
        """All processes of the guest, the kernel's own first; also those that outlived their kernel."""
        return procs.started_by(self._starter)

    def _reap(self) -> None:
        """SIGKILL until nothing is left: a tap stays busy until the last process of a kernel is gone."""
        procs.kill_all(self._members, KILL_TIMEOUT_S, f"host {self._spec.name} of lab {self._lab}")


class UmlConsole:
    """`hwlab.protocols.Console`: what the guest wrote to its console, kept by this machine."""

    def __init__(self, lab: str, host: str) -> None:
        self._path = state_dir(lab) / "hosts" / host / "console.log"

    def text(self) -> str:
        """See `Console.text`."""
        try:
            return self._path.read_text(errors="replace")
        except FileNotFoundError:
            return ""


class UmlLink:
    """`hwlab.protocols.Link`: a tap in or out of its bridge."""

    def __init__(self, lab: str, host: str, network: str) -> None:
        self._lab = lab
        self._host = host
        self._network = network

    def cut(self) -> None:
        """See `Link.cut`."""
        netns.set_link(self._lab, self._host, self._network, up=False)

    def heal(self) -> None:
        """See `Link.heal`."""
        netns.set_link(self._lab, self._host, self._network, up=True)

    def state(self) -> LinkState:
        """See `Link.state`."""
        return netns.link_state(self._lab, self._host, self._network)


def key_file(lab: str) -> Path:
    """The private key that the lab's hosts accept."""
    return state_dir(lab) / "id_ed25519"


def lun_file(lab: str, lun: str) -> Path:
    """What the target's logical unit is made of. A write that the guest saw completed is in this machine's
    page cache, so killing the guest loses none."""
    return state_dir(lab) / "luns" / f"{lun}.img"


def kernel_words(lab: str, spec: HostSpec, topology: Topology) -> list[str]:
    """The kernel command line of a host; hwlab/guest reads the words that begin with `hwlab.`"""
    existing = record.read(lab)
    image = cached_image(existing.image) if existing is not None else None
    if image is None:
        raise LabError(f"the image below lab {lab}'s disks is gone: run `hwlab --lab {lab} down`, then up")
    networks = list(spec.addresses)
    target = next(iter(topology.with_role(Role.TARGET)), None)
    words = [
        f"mem={spec.memory_mb}M",
        f"ubd0={state_dir(lab) / 'hosts' / spec.name / 'root.cow'},{image.root}",
        "root=/dev/ubda",
        "rw",
        "panic=1",
        # Nearly a second of each boot goes into finding the fastest RAID-6 code, which nothing here uses.
        "initcall_blacklist=raid6_select_algo",
        "con=null",
        "con0=null,fd:1",
        f"uml_dir={runtime_dir(lab) / 'uml'}",
        f"umid={spec.name}",
        f"systemd.hostname={spec.name}",
        f"systemd.machine_id={uuid.uuid5(uuid.NAMESPACE_DNS, f'{spec.name}.{lab}.hwlab').hex}",
        f"hwlab.role={spec.role}",
        "hwlab.net=" + ";".join(f"{network},{topology.interface(spec.name, network)}" for network in networks),
        f"hwlab.initiator={initiator_name(spec.name)}",
    ]
    words += [
        f"vec{index}:transport=tap,ifname={netns.tap_name(spec.name, network)},depth=64,gro=1"
        f",mac={mac_address(spec.name, network)}"
        for index, network in enumerate(networks)
    ]
    # "nompath" is the word of multipath-tools' udev rules for leaving every disk alone.
    words.append("hwlab.multipath" if topology.multipath else "nompath")
    if target is not None:
        words.append(f"hwlab.target={','.join([f'{IQN_PREFIX}:{target.name}', *topology.portals()])}")
    if spec.role is Role.TARGET:
        initiators = [initiator_name(node.name) for node in topology.with_role(Role.NODE)]
        words.append(f"hwlab.initiators={','.join(initiators)}")
        words.append(f"hwlab.slow={topology.slow_stamps_ms}")
        for number, lun in enumerate(topology.luns, start=1):
            words.append(f"ubd{number}={lun_file(lab, lun.name)}")
            words.append(f"hwlab.lun={lun.name},{lun.serial},/dev/ubd{chr(ord('a') + number)}")
    return words


def initiator_name(host: str) -> str:
    """iSCSI name of a node."""
    return f"{IQN_PREFIX}:{host}"


def mac_address(host: str, network: str) -> str:
    """A host keeps its hardware addresses over reboots, as a real one does: ARP caches elsewhere rely on it."""
    digest = hashlib.sha256(f"{host}.{network}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def leftovers(lab: str) -> list[str]:
    """What there is of a lab on this machine, in words."""
    found = [f"process {pid}" for pid in netns.pids(lab)]
    paths = (netns.path_of(lab), state_dir(lab), runtime_dir(lab))
    return found + [str(path) for path in paths if path.exists()]


def remove(lab: str, progress: Progress) -> None:
    """End and delete all there is of a lab, found by what exists and not by what was recorded. Idempotent."""
    with record.locked(lab):
        if not leftovers(lab):
            progress(f"lab {lab}: nothing there")
            return
        procs.kill_all(lambda: netns.pids(lab), KILL_TIMEOUT_S, f"lab {lab}")
        netns.remove(lab)
        for directory in (runtime_dir(lab), state_dir(lab)):
            if directory.exists():
                shutil.rmtree(directory)
        progress(f"lab {lab}: removed")


def _make_sparse(path: Path, size_mb: int) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size_mb * 1_048_576)
