"""Drivers `uml` and `qemu`: every host is an emulated machine in the network namespace of its lab.

What there is of a lab on this machine, and so what `down` has to remove:

- one network namespace (bridges and taps go with it);
- processes, all of them inside that namespace: that is how they are found, whatever became of whoever
  started them;
- two directories (state: disks, logs, records; runtime: sockets). No mounts.

A User-Mode Linux guest is one kernel process, which leads a session, a few helpers (disk I/O), and one traced process
per guest process; a QEMU guest is one process. All of them show the words that the guest was started with: that is how
one guest's are told from another's. What those words are is `hwlab.uml`'s and `hwlab.qemu`'s to say.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from hwlab import bmc, netns, procs, qemu, record, ssh, uml
from hwlab.debkernel import ensure_debian_kernel
from hwlab.errors import LabError, LabLost
from hwlab.guests import Guest, host_dir, key_file, lun_file
from hwlab.image import ensure_image
from hwlab.paths import runtime_dir, state_dir
from hwlab.preconditions import preconditions
from hwlab.protocols import Command, Disk, Host, LinkState, PowerState, Progress
from hwlab.ssh import SshCommand, in_parallel
from hwlab.topology import MGMT, HostSpec, Topology

# What starts a guest: the program, and the words after its name.
EMULATORS: Mapping[str, Callable[[Guest], tuple[Path, list[str]]]] = {
    uml.DRIVER: uml.command,
    qemu.DRIVER: qemu.command,
}

# A whole lab boots in about 12 s on two idle cores, and in a minute if QEMU emulates its processors; a busy machine may
# take several times as long.
BOOT_TIMEOUT_S = {uml.DRIVER: 120.0, qemu.DRIVER: 580.0}
# A key exchange takes an emulated processor a second, if it has nothing else to do and gets its turn.
HANDSHAKE_S = {uml.DRIVER: ssh.HANDSHAKE_S, qemu.DRIVER: 30}
KILL_TIMEOUT_S = 20.0

# A User-Mode Linux guest that reboots runs its own argv[0] again, in the same process and with all its descriptors, so
# that its own taps would be busy. argv[0] is therefore this script, which closes them.
_STARTER = """#!/bin/bash
for path in /proc/self/fd/*; do
    fd=${path##*/}
    [ "$fd" -le 2 ] || eval "exec $fd>&-"
done
exec -a "$0" PROGRAM "$@"
"""


class LocalLab:
    """`hwlab.protocols.Lab` on this machine alone."""

    def __init__(self, name: str, topology: Topology, text: str) -> None:
        self.name = name
        self.driver = topology.driver
        self.topology = topology
        self._text = text
        self.disks: Mapping[str, Disk] = {
            lun.name: Disk(name=lun.name, device=lun.device, wwid=lun.wwid, size_mb=lun.size_mb)
            for lun in topology.luns
        }
        self.hosts: Mapping[str, Host] = {spec.name: self._host(spec) for spec in topology.hosts}

    def up(self, progress: Progress) -> None:
        """See `Lab.up`. Builds the image and fetches the kernel first if there is none."""
        preconditions()
        with record.locked(self.name):
            self._claim(progress)
            netns.create(self.name, self.topology)
            bmc.ensure(self.name, self.topology)
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
            kernel = ""
            if any(spec.driver == qemu.DRIVER for spec in self.topology.hosts):
                kernel = ensure_debian_kernel(self.topology.kernel, progress).version
            record.write(self.name, record.Record(topology=self._text, image=image.key, kernel=kernel))
            shutil.copy(image.key_file, key_file(self.name))
        elif existing.topology != self._text:
            raise LabError(
                f"lab {self.name} exists with another topology: run `hwlab --lab {self.name} down` first, "
                "or choose another --lab"
            )

    def _wait_for(self, host: Host) -> None:
        try:
            host.command.wait_reachable(BOOT_TIMEOUT_S[self.driver])
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
            handshake_s=HANDSHAKE_S[spec.driver],
        )
        return Host(
            name=spec.name,
            role=spec.role,
            addresses=spec.addresses,
            command=command,
            power=GuestPower(Guest(lab=self.name, spec=spec, topology=self.topology), command),
            console=ConsoleFile(self.name, spec.name),
            links={network: TapLink(self.name, spec.name, network) for network in spec.addresses},
            peers=self.topology.peers(spec.name),
        )


class GuestPower:
    """`hwlab.protocols.Power`: a kernel is a process, so losing power is SIGKILL and freezing is SIGSTOP."""

    def __init__(self, guest: Guest, command: Command) -> None:
        self._guest = guest
        self._command = command
        self._dir = host_dir(guest.lab, guest.spec.name)

    def on(self) -> None:
        """See `Power.on`."""
        if self.state() is not PowerState.OFF:
            return
        self._reap()
        self._dir.mkdir(parents=True, exist_ok=True)
        program, words = EMULATORS[self._guest.spec.driver](self._guest)
        self._starter.write_text(_STARTER.replace("PROGRAM", str(program)))
        self._starter.chmod(0o755)
        argv = [*netns.entering(self._guest.lab), str(self._starter), *words]
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
        procs.stop_untraced(self._members, KILL_TIMEOUT_S, f"host {self._guest.spec.name} of lab {self._guest.lab}")

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
    def _starter(self) -> Path:
        return self._dir / "start"

    def _members(self) -> list[int]:
        """All processes of the guest, the kernel's own first; also those that outlived their kernel."""
        return procs.started_by(self._starter)

    def _reap(self) -> None:
        """SIGKILL until nothing is left: a tap stays busy until the last process of a kernel is gone."""
        procs.kill_all(self._members, KILL_TIMEOUT_S, f"host {self._guest.spec.name} of lab {self._guest.lab}")


class ConsoleFile:
    """`hwlab.protocols.Console`: what the guest wrote to its console, kept by this machine."""

    def __init__(self, lab: str, host: str) -> None:
        self._path = host_dir(lab, host) / "console.log"

    def text(self) -> str:
        """See `Console.text`."""
        try:
            return self._path.read_text(errors="replace")
        except FileNotFoundError:
            return ""


class TapLink:
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
