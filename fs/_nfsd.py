"""knfsd of one volume, driven by the files of its control file system. No rpc.nfsd, exportfs or rpc.mountd.

`nfsd` and `rpc_pipefs` show the network namespace of whoever mounted them, so the worker thread mounts them
below /run/hactl/nfs/VOLUME, and everybody on the node may look at them there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from pathlib import Path

from fs import _libc, clients, mounts
from fs.clients import Client
from fs.errors import FsError, NotPossible
from fs.model import VolumeSpec

RUN = Path("/run/hactl/nfs")
PORT = 2049
_BACKLOG = 64
# 4.0 is off: its clients have no sessions, and their state recovery was never tried here.
_VERSIONS = "-3 +4 -4.0 +4.1 +4.2"
_MODULES = ("nfsd", "macvlan")
# Of the whole host; nfsd asks it each time that it could give a delegation.
_LEASES = Path("/proc/sys/fs/leases-enable")


class Server:
    """The NFS server in the volume's namespace. Worker thread only."""

    def __init__(self, spec: VolumeSpec) -> None:
        self.spec = spec
        self.run = RUN / spec.name
        self.control = self.run / "nfsd"
        self.pipefs = self.run / "pipefs"

    # -- in advance ----------------------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Modules loaded, control file systems mounted. Returns whether something was changed."""
        if self.mounted():
            return False
        load_modules(self.spec)
        self._mount("sunrpc", self.pipefs, "rpc_pipefs")
        self._mount("nfsd", self.control, "nfsd")
        return True

    def mounted(self) -> bool:
        found = mounts.parse(Path("/proc/thread-self/mountinfo").read_text())
        return all(mounts.at(found, str(path)) for path in (self.control, self.pipefs))

    def _mount(self, source: str, path: Path, fstype: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        found = mounts.parse(Path("/proc/thread-self/mountinfo").read_text())
        if not mounts.at(found, str(path)):
            _libc.mount(source, str(path), fstype, _libc.MS_NOSUID | _libc.MS_NODEV | _libc.MS_NOEXEC)

    def dismantle(self) -> None:
        for path in (self.control, self.pipefs):
            with contextlib.suppress(OSError):
                _libc.umount(str(path), _libc.MNT_DETACH)
            with contextlib.suppress(OSError):
                path.rmdir()

    # -- looking -------------------------------------------------------------------------------------------

    def threads(self) -> int:
        text = self._read("threads")
        return int(text) if text else 0

    def listening(self) -> bool:
        return "tcp" in self._read("portlist")

    def in_grace(self) -> bool | None:
        """None: nfsd is down."""
        return self._read("v4_end_grace") == "N" if self.threads() else None

    def clients(self) -> tuple[Client, ...]:
        found = []
        try:
            entries = sorted((self.control / "clients").iterdir())
        except OSError:
            return ()
        for entry in entries:
            with contextlib.suppress(OSError, ValueError):  # it left between the two reads
                info, states = (entry / "info").read_text(), (entry / "states").read_text()
                found.append(clients.parse_client(entry.name, info, states))
        return tuple(found)

    def _read(self, name: str) -> str:
        try:
            return (self.control / name).read_text().strip()
        except OSError:
            return ""

    # -- changing ------------------------------------------------------------------------------------------

    def configure(self) -> None:
        """Versions and times, before the first thread: afterwards the kernel refuses them."""
        self._write("versions", _VERSIONS)
        self._set_number("nfsv4leasetime", self.spec.lease_s)
        self._set_number("nfsv4gracetime", self.spec.grace_s)
        refuse_delegations()

    def _set_number(self, name: str, value: int) -> None:
        if self._read(name) == str(value):
            return
        try:
            self._write(name, str(value))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise FsError(
                self.spec.name,
                f"{name} cannot be changed while nfsd is set up",
                "stop nfsd, then start it again",
            ) from error

    def listen(self) -> None:
        """The kernel takes the listening socket over; the address need not be there yet."""
        if self.listening():
            return
        family = socket.AF_INET if self.spec.interface.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", PORT))
            sock.listen(_BACKLOG)
            self._write("portlist", str(sock.fileno()))

    def set_threads(self, count: int) -> None:
        """The first threads start the server and its grace period; 0 ends it and frees all NFSv4 state."""
        self._write("threads", str(count))

    def end_grace(self) -> None:
        self._write("v4_end_grace", "Y")

    def expire(self, client: Client) -> None:
        """Takes away all state of a client that is known to be gone."""
        self._write(f"clients/{client.number}/ctl", "expire")

    def _write(self, name: str, text: str) -> None:
        """In one write(2): these files take one per open, and a buffered file that failed would try again
        on close and hide the first error behind EBUSY. `versions` wants the newline."""
        fd = os.open(self.control / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)


def refuse_delegations() -> None:
    """No NFSv4 delegations: after a takeover they would let one client take what another is about to reclaim.

    Of two clients with one file open the first to reclaim is the only one for that moment, and is given a delegation;
    its locks are then its own business, also one that the other is about to reclaim. Seen with Linux 7.3; since 6.6
    there are delegations for writing.
    """
    if _LEASES.read_text().strip() != "0":
        _LEASES.write_text("0\n")


def load_modules(spec: VolumeSpec) -> None:
    """By modprobe: this is done on the standby, long before a takeover."""
    needed = [name for name in (*_MODULES, spec.fstype) if not _loaded(name)]
    for name in needed:
        try:
            done = subprocess.run(["modprobe", name], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise NotPossible(spec.name, "modprobe is not installed", "apt-get install kmod") from None
        if done.returncode and not _loaded(name):
            raise NotPossible(
                spec.name,
                f"kernel module {name}: {done.stderr.strip()}",
                "install the module for this kernel",
            )


def _loaded(name: str) -> bool:
    if Path(f"/sys/module/{name}").exists():
        return True
    return f"\t{name}\n" in Path("/proc/filesystems").read_text()
