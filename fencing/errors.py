"""What can go wrong at a device, in the three classes that decide what to do next.

`NotDelivered`: nothing happened, try again. `Refused`: the device understood and said no. `OutcomeUnknown`:
it may have happened, so read back before anything else. Every error carries fields and names the next action.
"""

from __future__ import annotations

from collections.abc import Iterable

from fencing.foreign import describe
from fencing.model import show_key


class FencingError(Exception):
    """Root of this package's errors: what happened, on which device, what to do next."""

    def __init__(self, what: str, *, device: str, next_action: str) -> None:
        super().__init__(what)
        self.what = what
        self.device = device
        self.next_action = next_action

    def __str__(self) -> str:
        return f"{self.device}: {self.what}; next: {self.next_action}"


class PortError(FencingError):
    """A command to a device did not simply succeed.

    `sense` is the category in the words of SPC ("reservation conflict", "not ready", ...); `generation` the
    last one read from this device before the command, None if never; `own_key` the key that the command was
    given.
    """

    DEFAULT_ACTION = "look at the kernel log of this node for the device"

    def __init__(
        self,
        what: str,
        *,
        device: str,
        operation: str,
        own_key: int | None = None,
        sense: str = "",
        generation: int | None = None,
        next_action: str | None = None,
    ) -> None:
        super().__init__(what, device=device, next_action=next_action or self.DEFAULT_ACTION)
        self.operation = operation
        self.own_key = own_key
        self.sense = sense
        self.generation = generation

    def __str__(self) -> str:
        key = "" if self.own_key is None else f" with key {show_key(self.own_key)}"
        seen = "" if self.generation is None else f" (generation was {self.generation})"
        return f"{self.device}: {self.operation}{key}: {self.what}{seen}; next: {self.next_action}"


class NotDelivered(PortError):
    """The command did not reach the device, or the device did not begin it. Nothing changed."""

    DEFAULT_ACTION = "try again; if it stays so, check the path to the device"


class Refused(PortError):
    """The device answered no: a conflict, a wrong key, an unknown operation. Nothing changed."""

    DEFAULT_ACTION = "read the reservation again, and decide anew"

    @property
    def reason(self) -> str:
        return self.sense

    @property
    def conflict(self) -> bool:
        """Somebody else's reservation or registration stands against it (the operation itself is known)."""
        return self.sense == CONFLICT


CONFLICT = "reservation conflict"


class OutcomeUnknown(PortError):
    """The command may have been carried out. Only reading back tells."""

    DEFAULT_ACTION = "read the reservation back before any other command"


class Garbled(PortError):
    """The device answered with bytes that mean nothing. Nothing may be concluded from them."""

    DEFAULT_ACTION = "do not use this device for shared volumes; report the bytes to its vendor"


class NoEffect(PortError):
    """The device keeps reporting success, and reading back shows that it did nothing."""

    DEFAULT_ACTION = "do not use this device for shared volumes: its reservations cannot be relied on"


class LabelError(FencingError):
    """The label of a volume cannot be used. `kind` is one of the constants of `fencing.label`."""

    def __init__(self, what: str, *, device: str, kind: str, next_action: str) -> None:
        super().__init__(what, device=device, next_action=next_action)
        self.kind = kind


class ForeignOwner(FencingError):
    """Keys that this cluster did not make are registered; they are never preempted unasked."""

    def __init__(self, keys: Iterable[int], *, device: str, detail: str = "") -> None:
        self.keys = tuple(keys)
        names = ", ".join(map(describe, self.keys)) or "an unknown holder"
        super().__init__(
            f"in use by somebody outside this cluster: {names}{detail and '; ' + detail}",
            device=device,
            next_action="find who uses the device; repeat with force only when that user is gone for good",
        )


class SharedNexus(FencingError):
    """Another node of this cluster registers under the same NVMe host identifier: neither can be fenced.

    `key` is what is registered, `node` who made it, `nexus` the identifier.
    """

    def __init__(self, key: int, node: int, *, nexus: bytes, device: str) -> None:
        self.key = key
        self.node = node
        self.nexus = nexus
        super().__init__(
            f"node {node} is registered under this node's NVMe host identifier {nexus.hex()} with {show_key(key)}: "
            "two nodes with one identifier cannot be fenced from each other",
            device=device,
            next_action="give each node an /etc/nvme/hostid of its own (uuidgen), and connect anew; if this node had "
            f"number {node} before, `nvme resv-register` with action 1 removes the old key",
        )


class LostRace(FencingError):
    """Another node got the device, or is getting it, with a newer right. `rival` is its key, if seen."""

    def __init__(self, what: str, *, device: str, rival: int | None) -> None:
        super().__init__(what, device=device, next_action="observe the volume again before a new attempt")
        self.rival = rival


class DeviceBusy(FencingError):
    """This node still has the device open from earlier: its stale writes would pass under a new key."""

    def __init__(self, what: str, *, device: str) -> None:
        super().__init__(what, device=device, next_action="unmount what uses the device, or restart this node")


class FormatRefused(FencingError):
    """A disk was not made a volume, and is as it was."""


class FormatFailed(FencingError):
    """A disk is neither what it was nor a volume that is served: it has no label, or one that says "stopped"."""


class InvariantBroken(FencingError):
    """Something that the rules exclude was observed. Stop; the primary fences itself."""

    def __init__(self, what: str, *, device: str) -> None:
        super().__init__(what, device=device, next_action="stop serving the volume on this node and report this")
