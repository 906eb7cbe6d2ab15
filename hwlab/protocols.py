"""What a lab offers to drills, whatever is below: User-Mode Linux, or machines in a rack.

Drill code imports this file and `hwlab.lab.open_lab`, never a driver.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Protocol

from hwlab.topology import Role, Topology

Progress = Callable[[str], None]


class PowerState(StrEnum):
    """Of the host's power, not of its operating system."""

    ON = "on"
    OFF = "off"
    PAUSED = "paused"
    UNKNOWN = "unknown"


class LinkState(StrEnum):
    """Of a host's attachment to one network."""

    UP = "up"
    CUT = "cut"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that ended. Output as bytes; `text` is standard output decoded and stripped."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text without surrounding white space."""
        return self.stdout.decode(errors="replace").strip()


class Command(Protocol):
    """Commands on a host as root, over ssh."""

    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout_s: float = 30, check: bool = True
    ) -> Completed:
        """Run to the end. CommandFailed on a status other than 0 if `check`, CommandTimeout after `timeout_s`."""
        ...

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a long-running command; the caller ends it. Killing the returned process leaves the remote one."""
        ...

    def put(self, files: Mapping[str, bytes | Path], *, mode: int = 0o644, timeout_s: float = 60) -> None:
        """Write files (absolute path on the host -> contents, or a local file or directory) in one go."""
        ...

    def wait_reachable(self, timeout_s: float) -> None:
        """Return once a command runs; LabLost after `timeout_s`."""
        ...

    def forget(self) -> None:
        """Drop the cached connection: the host lost its power, the old connection is of no use."""
        ...


class Power(Protocol):
    """The power switch."""

    def on(self) -> None:
        """Start the host; returns before it is reachable. No effect if it is on."""
        ...

    def off(self) -> None:
        """Power loss: nothing is flushed, nobody is told. Returns when nothing of the host runs any more."""
        ...

    def pause(self) -> None:
        """Freeze the whole host with all it has in memory and in flight."""
        ...

    def resume(self) -> None:
        """Thaw a paused host: it goes on where it was."""
        ...

    def state(self) -> PowerState:
        """What can be told from outside."""
        ...


class Console(Protocol):
    """The host's kernel log and journal as seen from outside: survives a power loss to the last line."""

    def text(self) -> str:
        """Everything since the lab came up, over all boots."""
        ...


class Link(Protocol):
    """A host's attachment to one network."""

    def cut(self) -> None:
        """No frame passes any more, in either direction."""
        ...

    def heal(self) -> None:
        """Undo `cut`."""
        ...

    def state(self) -> LinkState:
        """Present state."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk that all nodes share. `device`: its path on every node. `wwid` as in sysfs."""

    name: str
    device: str
    wwid: str
    size_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host and its controls. `addresses`: network -> address; `links` has an entry per network.

    `interfaces`: network -> name of the interface on the host, where it is not the network's own name.
    `peers`: what other nodes send from on the service network: their addresses, and those of volumes.
    """

    name: str
    role: Role
    addresses: Mapping[str, str]
    command: Command
    power: Power
    console: Console
    links: Mapping[str, Link]
    interfaces: Mapping[str, str] = field(default_factory=dict)
    peers: tuple[str, ...] = ()


class Lab(Protocol):
    """A set of hosts, known by name. Opening one changes nothing."""

    name: str
    driver: str
    topology: Topology
    hosts: Mapping[str, Host]
    disks: Mapping[str, Disk]

    def up(self, progress: Progress) -> None:
        """Start every host that is off and return when all are reachable. What runs already is left alone."""
        ...

    def down(self, progress: Progress) -> None:
        """Remove everything of this lab from this machine, whatever state it is in. Idempotent."""
        ...

    def exists(self) -> bool:
        """Whether anything of this lab is left on this machine."""
        ...
