"""Nodewatch's view and the reports, joined: what makes a node deaf."""

from dataclasses import dataclass

import pytest

from hactl.members import Members


@dataclass(frozen=True)
class Link:
    hears_us: bool | None


@dataclass(frozen=True)
class Seen:
    links: tuple[Link, ...]
    state: str = "alive"
    generation: int = 7
    heard_ms_ago: int | None = 10
    daemon: str = "ok"
    barred: bool = False
    confirmed: bool = False
    safe_in_ms: int | None = None


def deaf(members: Members, seen: Seen, now_ms: int) -> bool:
    return members.facts({"n1": seen}, term=3, seen_ms=now_ms, now_ms=now_ms, now_unix_ms=0).nodes["n1"].deaf


def test_a_node_is_deaf_once_it_has_said_so_for_as_long_as_another_may_be_silent() -> None:
    members = Members(me="n2", overdue_ms=800)
    silent = Seen(links=(Link(hears_us=False),))
    assert not deaf(members, silent, 1000)
    assert not deaf(members, silent, 1799)
    assert deaf(members, silent, 1800)


def test_one_heartbeat_that_says_otherwise_begins_anew() -> None:
    members = Members(me="n2", overdue_ms=800)
    silent = Seen(links=(Link(hears_us=False),))
    deaf(members, silent, 1000)
    assert not deaf(members, Seen(links=(Link(hears_us=True),)), 1700)
    assert not deaf(members, silent, 1800)


@pytest.mark.parametrize(
    "seen",
    [
        Seen(links=()),
        Seen(links=(Link(hears_us=None),)),
        Seen(links=(Link(hears_us=False), Link(hears_us=True))),
        Seen(links=(Link(hears_us=False),), state="overdue"),
    ],
)
def test_who_hears_us_somewhere_or_said_nothing_or_is_not_heard_is_not_deaf(seen: Seen) -> None:
    members = Members(me="n2", overdue_ms=800)
    deaf(members, seen, 1000)
    assert not deaf(members, seen, 9000)
