"""What can go wrong with a lab, told apart by what the operator can do about it."""

from __future__ import annotations


class LabError(Exception):
    """A lab operation did not do its work. The text names the next action."""


class PreconditionError(LabError):
    """This machine cannot run a lab. Raised before anything was changed."""


class TopologyError(LabError):
    """A topology file is wrong; nothing was started."""


class LabLost(LabError):
    """The lab itself broke (a host that should be up does not answer): says nothing about the code under test."""


class CommandFailed(LabError):
    """A command on a host ended with a status other than 0.

    `status` is the exit status (255: ssh itself failed), `stderr` its decoded error output.
    """

    def __init__(self, host: str, argv: str, status: int, stderr: str) -> None:
        self.host = host
        self.argv = argv
        self.status = status
        self.stderr = stderr
        super().__init__(f"{host}: `{argv}` ended with status {status}: {stderr.strip()[-2000:]}")


class CommandTimeout(LabLost):
    """A command on a host did not end in time; it may still be running there."""

    def __init__(self, host: str, argv: str, timeout_s: float) -> None:
        self.host = host
        self.argv = argv
        self.timeout_s = timeout_s
        super().__init__(f"{host}: `{argv}` did not end within {timeout_s:g} s")
