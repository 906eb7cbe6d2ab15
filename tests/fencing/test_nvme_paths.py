"""Reads of a namespace with several paths: the ports are fakes whose answers a test holds back."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from fencing._nvmepaths import ASKS, WAITING_MAX, NvmePaths, count_paths
from fencing.errors import NotDelivered
from fencing.fakenvme import FakeNamespace, FakeNvmePort
from fencing.model import OUR_TYPE, ReservationState

SHORT_S = 0.02
LONG_S = 60.0
HANGS, FAILS = "hangs", "fails"


class Disk:
    """A namespace; `fates` says what becomes of the next reads, one after the other, whoever sends them."""

    def __init__(self, paths: int, answer_s: float = SHORT_S) -> None:
        self.unit = FakeNamespace()
        self.fates: list[str] = []
        self.asked = 0
        self.let_go = threading.Event()
        self.port = NvmePaths("nvme0n1", lambda device: SlowPort(self), lambda device: paths, answer_s)


class SlowPort(FakeNvmePort):
    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.unit, b"n1")
        self._disk = disk

    def read(self) -> ReservationState:
        self._disk.asked += 1
        fate = self._disk.fates.pop(0) if self._disk.fates else ""
        if fate == FAILS:
            raise NotDelivered("no path", device=self.device, operation="read")
        state = super().read()
        if fate == HANGS:
            assert self._disk.let_go.wait(LONG_S)
        return state


@pytest.fixture
def make() -> Iterator[Callable[..., Disk]]:
    made: list[Disk] = []

    def disk(*fates: str, paths: int = 2, answer_s: float = SHORT_S) -> Disk:
        made.append(Disk(paths, answer_s))
        made[-1].fates[:] = fates
        return made[-1]

    yield disk
    for each in made:
        each.let_go.set()
        each.port.close()


def test_a_read_that_a_silent_path_keeps_is_sent_again_and_the_answer_counts(make: Callable[..., Disk]) -> None:
    disk = make(HANGS)
    disk.port.register(0, 0x11)
    assert disk.port.read().keys == (0x11,)
    assert disk.asked == 2


def test_a_read_that_is_answered_in_time_is_sent_once(make: Callable[..., Disk]) -> None:
    disk = make(answer_s=LONG_S)
    disk.port.read()
    assert disk.asked == 1


def test_an_answer_to_an_earlier_read_never_counts(make: Callable[..., Disk]) -> None:
    """What hung began before the other node took the disk: its answer would be from before the fence."""
    disk = make(HANGS)
    disk.port.register(0, 0x11)
    disk.port.reserve(0x11, OUR_TYPE)
    assert disk.port.read().holders == (0x11,)
    rival = disk.unit.connect(b"n2")
    rival.register(0, 0x22)
    rival.preempt(0x22, 0x11, OUR_TYPE)
    disk.let_go.set()
    assert disk.port.read().holders == (0x22,)


def test_when_every_path_is_silent_the_read_ends_all_the_same(make: Callable[..., Disk]) -> None:
    disk = make(*[HANGS] * 2 * WAITING_MAX)
    for _ in range(WAITING_MAX // ASKS + 2):
        with pytest.raises(NotDelivered, match="no answer"):
            disk.port.read()
    assert disk.asked == WAITING_MAX, "no further command while all of them still wait"


def test_a_read_that_meets_the_silent_path_again_is_sent_once_more(make: Callable[..., Disk]) -> None:
    disk = make(HANGS, HANGS, HANGS)
    assert disk.port.read().keys == ()
    assert disk.asked == 4


def test_paths_that_answer_again_are_asked_again(make: Callable[..., Disk]) -> None:
    disk = make(*[HANGS] * ASKS)
    with pytest.raises(NotDelivered):
        disk.port.read()
    disk.let_go.set()
    wait(disk.port._waiting, LONG_S)
    assert disk.port.read().keys == ()


def test_a_read_that_failed_on_one_path_is_tried_on_the_next(make: Callable[..., Disk]) -> None:
    assert make(FAILS).port.read().keys == ()
    with pytest.raises(NotDelivered, match="no path"):
        make(*[FAILS] * ASKS).port.read()


def test_a_path_that_stays_silent_keeps_one_read_of_each_check_and_the_checks_go_on(make: Callable[..., Disk]) -> None:
    """As with `round-robin` over two paths: every other command meets the silent one."""
    disk = make(*[HANGS, ""] * (WAITING_MAX - 1))
    for check in range(1, WAITING_MAX):
        assert disk.port.read().keys == ()
        assert disk.asked == 2 * check


def test_with_one_path_there_is_nothing_to_send_again_to(make: Callable[..., Disk]) -> None:
    disk = make(FAILS, paths=1)
    with pytest.raises(NotDelivered, match="no path"):
        disk.port.read()
    assert disk.asked == 1


def test_paths_are_the_controllers_below_the_head(tmp_path: Path) -> None:
    for name in ("nvme0", "nvme1"):
        (tmp_path / "nvme0n1/device" / name).mkdir(parents=True)
        (tmp_path / "nvme0n1/device" / name / "state").write_text("live\n")
    (tmp_path / "nvme2n1/device").mkdir(parents=True)
    assert count_paths("/dev/nvme0n1", tmp_path) == 2
    assert count_paths("/dev/nvme2n1", tmp_path) == 1
