"""What every port that sends commands to a device shares: its errors name the device and what was read of it before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fencing.errors import Garbled, PortError

A = TypeVar("A")
T = TypeVar("T")


class DeviceErrors:
    """The errors of one device. `generation` is the last that was read from it, None if none was."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.generation: int | None = None

    def error(self, operation: str, sense: str, kind: type[PortError], own_key: int | None = None) -> PortError:
        """An error to raise; `sense` says in the words of SPC what the device answered."""
        return kind(
            sense,
            device=self.device,
            operation=operation,
            own_key=own_key,
            sense=sense,
            generation=self.generation,
        )

    def garbled(self, what: str) -> Garbled:
        return Garbled(what, device=self.device, operation="read", generation=self.generation)

    def parse(self, parse: Callable[[A], T], answer: A) -> T:
        """`parse(answer)`; its ValueError becomes Garbled."""
        try:
            return parse(answer)
        except ValueError as error:
            raise self.garbled(str(error)) from error
