"""What a drill needs of the place where it is played, and nothing more.

A lab of emulated kernels and a rack of real hosts both give this; drills, load and checker know no driver.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that ran on a host to its end."""

    returncode: int
    stdout: bytes
    stderr: bytes


class HostSilent(Exception):
    """A host did not answer in time: the lab's fault or the drill's, nobody knows yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The volume under test and how the client sees it."""

    volume: str
    mount_point: str
    """Where the client has it mounted."""
    source: str
    """ADDRESS:/ as a client mounts it."""
    options: str
    node_mount: str
    """Where the serving node has the file system mounted."""
    thief_link: str
    """Interface of the client on the service's network."""
    thief_address: str
    """A free address with prefix length there, for the second client."""
    reader_address: str = ""
    """One more, for the reader."""
    asker_address: str = ""
    """One more, for the asker."""
    lun: str = ""
    """The volume's LUN on the target; "" = watch every LUN there."""


class Stage(Protocol):
    @property
    def driver(self) -> str: ...

    @property
    def transport(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def client(self) -> str: ...

    @property
    def nodes(self) -> dict[int, str]:
        """Node number (as in its registration keys) to host name."""
        ...

    @property
    def share(self) -> Share: ...

    def exec(self, host: str, argv: list[str], *, input: bytes | None = None, timeout_s: float = 30.0) -> Done:
        """Run a command to its end; HostSilent if the host does not answer in time."""
        ...

    def stream(self, host: str, argv: list[str]) -> subprocess.Popen[bytes]:
        """Start a command that is talked to over pipes (stdin, stdout, stderr)."""
        ...

    def console(self, host: str) -> str:
        """Everything that the host wrote to its console since the lab came up; "" where nobody keeps that."""
        ...

    def fault(self, kind: str, host: str) -> None:
        """Do it, and return when it is done."""
        ...

    def heal(self, say: Callable[[str], None]) -> None:
        """Undo all faults and bring everything up: cluster running, volume mounted by the client."""
        ...
