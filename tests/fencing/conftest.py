"""Nodes, units and labels for the tests of fencing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from fencing import Handle, Identity, Label, Lun, acquire
from fencing.acquisition import Settle
from fencing.fake import FakeLogicalUnit, fake_lun, seed_label
from fencing.faulty import Chooser, Fault, faulty_lun

CLUSTER = "5d0c9a52-0000-4000-8000-000000000001"


def label_for(*wwids: str, epoch: int = 0, seq: int = 1, cluster: str = CLUSTER) -> Label:
    return Label(
        cluster_uuid=cluster,
        cluster_name="demo",
        volume="v1",
        volume_uuid="77777777-0000-4000-8000-000000000001",
        epoch=epoch,
        wwids=tuple(sorted(wwids)),
        fstype="ext4",
        address="10.77.1.50/24",
        clients=("10.77.1.0/24",),
        lease_s=10,
        grace_s=10,
        seq=seq,
    )


def at_once() -> None:
    """For `settle`: these units have nothing under way when a command has returned."""


def counting_clock() -> Callable[[], float]:
    ticks = count()
    return lambda: float(next(ticks))


@dataclass
class Node:
    """One node: its number, its durable record of epochs, its initiator name."""

    number: int
    units: tuple[FakeLogicalUnit, ...]
    floor: int = 0
    nexus: bytes = b""
    intents: list[int] = field(default_factory=list)
    busy: str = ""

    @property
    def identity(self) -> Identity:
        return Identity(cluster_uuid=CLUSTER, node=self.number, node_name=f"n{self.number}")

    def luns(self, choose: Chooser = lambda operation, changes: Fault.NONE) -> list[Lun]:
        nexus = self.nexus or f"n{self.number}".encode()
        return [faulty_lun(fake_lun(unit, nexus, lambda: self.busy), choose) for unit in self.units]

    def record(self, epoch: int) -> None:
        self.intents.append(epoch)
        self.floor = max(self.floor, epoch)

    def acquire(
        self,
        choose: Chooser = lambda operation, changes: Fault.NONE,
        force: bool = False,
        settle: Settle | None = at_once,
    ) -> Handle:
        return acquire(
            self.luns(choose),
            self.identity,
            floor=self.floor,
            intent=self.record,
            clock=counting_clock(),
            settle=settle,
            force=force,
        )


@dataclass
class Cluster:
    """Units that carry one volume, and the nodes that see them all."""

    units: tuple[FakeLogicalUnit, ...]
    nodes: tuple[Node, ...]


@pytest.fixture
def new_cluster() -> Callable[..., Cluster]:
    def make(units: int = 1, nodes: int = 3, **options: Any) -> Cluster:
        made = tuple(FakeLogicalUnit(name=f"naa.{index}", **options) for index in range(units))
        for unit in made:
            seed_label(unit, label_for(*(each.name for each in made)))
        return Cluster(units=made, nodes=tuple(Node(number, made) for number in range(1, nodes + 1)))

    return make


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    yield new_cluster()


@pytest.fixture
def label() -> Callable[..., Label]:
    return label_for
