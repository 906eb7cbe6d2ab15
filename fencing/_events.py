"""What the kernel says of NVMe reservations by itself, from udev: no polling, no I/O.

A host that is fenced gets an asynchronous event within milliseconds; the kernel passes it on as a uevent of the
controller. It is a hint and never a proof: it can be lost, so hactld's own checks go on. SCSI has no such event.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyudev

from fencing import nvme


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceEvent:
    """A reason to verify the handles of what is reached through an NVMe controller ("nvme0") now."""

    controller: str
    why: str


class FenceEvents:
    """NVMe controllers that have something to say. `fileno` becomes readable; `drain` never blocks."""

    def __init__(self) -> None:
        # "kernel", not "udev": the hint is worth most without udevd's queue before it
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.filter_by("nvme")
        self._monitor.start()

    def fileno(self) -> int:
        return int(self._monitor.fileno())

    def drain(self) -> list[FenceEvent]:
        """Everything since the last call that is a reason to look."""
        events: list[FenceEvent] = []
        while (event := self._monitor.poll(timeout=0)) is not None:
            why = nvme.must_verify(event.properties)
            if why:
                events.append(FenceEvent(controller=event.sys_name, why=why))
        return events
