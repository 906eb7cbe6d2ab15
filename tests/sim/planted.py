"""Five faults planted on purpose, each one rule of the shipped code broken. The simulation must catch every one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

from fencing import acquisition
from fencing.model import Key
from fencing.ownership import Preempt
from hactl.daemon import GateKeeper
from nodewatch.core import NodeWatch
from nodewatch.lease import OwnLease
from tests.nodewatch.broken_cores import VotesBeforeTheDisk

Plant = Callable[[], contextlib.AbstractContextManager[dict[str, Any]]]
"""While it lasts the fault is there; gives what `run_seed` must be told."""


class LeaseOffByOne(NodeWatch):
    """R3: the lease is taken to last one heartbeat longer than it does, so that gates are renewed past it."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        timing = self._timing
        nodes = len(rest["config"].nodes)
        self._lease = OwnLease(nodes=nodes, lease_ms=timing.lease_ms + timing.heartbeat_ms)


@contextlib.contextmanager
def lease_off_by_one() -> Iterator[dict[str, Any]]:
    yield {"make_watch": LeaseOffByOne}


@contextlib.contextmanager
def vote_not_persisted() -> Iterator[dict[str, Any]]:
    """E1: a vote is told before it is on stable storage."""
    yield {"make_watch": VotesBeforeTheDisk}


@contextlib.contextmanager
def preempt_not_read_back() -> Iterator[dict[str, Any]]:
    """Whatever a preempt says, even that nobody knows, is taken for success, and nothing is read after it."""

    class Credulous(acquisition.Contest):
        def _try(self, step: Any, state: Any) -> None:
            super()._try(step, state)
            if isinstance(step, Preempt):
                raise _Believed

        def run(self) -> None:
            with contextlib.suppress(_Believed):
                super().run()

    with (
        patch("fencing.acquisition.Contest", Credulous),
        patch("fencing.acquisition.must_be_good", lambda handle: None),
    ):
        yield {}


class _Believed(Exception):
    pass


@contextlib.contextmanager
def epoch_reused() -> Iterator[dict[str, Any]]:
    """The new epoch is the highest known one, not one more. The label and the record refuse it, so nobody is served."""

    def highest(seen: Iterable[int], *, cluster_tag: int, floor: int) -> int:
        return max([floor, *(Key.parse(key).epoch for key in seen)])

    with patch("fencing.acquisition.next_epoch", highest):
        yield {}


@contextlib.contextmanager
def gate_left_open() -> Iterator[dict[str, Any]]:
    """Who leaves a volume does not take its gate back from node watch."""

    async def shut(self: GateKeeper, volume: str) -> None:
        pass

    with patch.object(GateKeeper, "shut", shut):
        yield {}


PLANTED: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (lease_off_by_one, vote_not_persisted, preempt_not_read_back, epoch_reused, gate_left_open)
}
