"""What the daemon does with the kernel's word about NVMe reservations."""

import asyncio
from collections.abc import Iterator

import pytest

from fencing._events import FenceEvent
from fencing.errors import NotDelivered
from fencing.nvme import Notification
from hactl import controller, fencewatch
from hactl.fencewatch import FenceWatch
from hactl.runtime import Clock


class Runtime:
    """A volume's runtime: keeps what it was fed."""

    def __init__(self) -> None:
        self.fed: list[object] = []
        self.clock = Clock(monotonic_s=lambda: 7.5, unix_ms=lambda: 0, pause_s=lambda seconds: None)

    def feed(self, event: object) -> None:
        self.fed.append(event)


class Events:
    """FenceEvents over a list."""

    def __init__(self, *events: FenceEvent) -> None:
        self.events = list(events)

    def drain(self) -> list[FenceEvent]:
        found, self.events = self.events, []
        return found


@pytest.fixture
def notices(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[Notification | Exception]]]:
    waiting: dict[str, list[Notification | Exception]] = {}

    def read(name: str) -> Iterator[Notification]:
        for notice in waiting.pop(name, []):
            if isinstance(notice, Exception):
                raise notice
            yield notice

    monkeypatch.setattr(fencewatch, "read_notifications", read)
    yield waiting


async def told(events: Events) -> tuple[Runtime, list[str]]:
    runtime, lines = Runtime(), list[str]()
    watch = FenceWatch(lambda: [runtime], lines.append)  # type: ignore[arg-type]
    watch._events = events  # type: ignore[assignment]
    watch._ready()
    await asyncio.gather(*watch._tasks)
    watch._ready()
    assert watch._reading == set()
    return runtime, lines


def test_a_notice_verifies_every_handle_and_is_read_off_the_controller(notices) -> None:
    notices["nvme0"] = [Notification(count=1, what="registration preempted", more=0, nsid=7)]
    runtime, lines = asyncio.run(told(Events(FenceEvent(controller="nvme0", why="reservation notice"))))
    assert runtime.fed == [controller.Noticed(now_ms=7500)]
    assert "nvme0: reservation notice" in lines[0] and "nsid=7 registration preempted" in lines[1]
    assert notices == {}


def test_notices_that_cannot_be_read_are_told_and_change_nothing(notices) -> None:
    notices["nvme1"] = [NotDelivered("no such device", device="/dev/nvme1", operation="read")]
    runtime, lines = asyncio.run(told(Events(FenceEvent(controller="nvme1", why="connected"))))
    assert runtime.fed == [controller.Noticed(now_ms=7500)] and "cannot be read" in lines[1]


def test_without_an_event_nothing_is_done(notices) -> None:
    runtime, lines = asyncio.run(told(Events()))
    assert runtime.fed == [] and lines == []
