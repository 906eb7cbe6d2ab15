"""Who may reclaim, and when grace may end early."""

from dataclasses import replace

import pytest

from fs import clients
from fs.clients import Client, Look

INFO = """clientid: 0x13bf10636b01d2d5
address: "10.77.1.21:840"
status: confirmed
seconds from last renew: 0
name: "Linux NFSv4.2 c1"
minor version: 2
Implementation domain: "kernel.org"
callback state: UP
callback address: 10.77.1.21:0
"""
STATES = """\
- 0x01: { type: open, access: -w, deny: --, superblock: "fe:00:16", filename: "export/x", owner: "open id:" }
- 0x02: { type: lock, superblock: "fe:00:16", filename: "export/x", owner: "lock id:\\x00" }
"""


def client(name: str, confirmed: bool = True, opens: int = 1, locks: int = 0) -> Client:
    return Client(number="3", name=name.encode(), address="", confirmed=confirmed, opens=opens, locks=locks)


def look(*present: Client, known: frozenset[bytes] | None = frozenset({b"a", b"b"})) -> Look:
    return Look(active=True, known=known, clients=present)


def test_client_is_read_from_the_kernels_text() -> None:
    found = clients.parse_client("3", INFO, STATES)
    assert found == Client(
        number="3", name=b"Linux NFSv4.2 c1", address="10.77.1.21:840", confirmed=True, opens=1, locks=1
    )


def test_superblock_is_not_counted_as_a_lock() -> None:
    assert clients.parse_client("3", INFO, STATES.splitlines()[0]).locks == 0


def test_escaped_name_is_the_name_of_the_database() -> None:
    info = 'name: "a\\040b\\134"\nstatus: unconfirmed\n'
    found = clients.parse_client("4", info, "")
    assert found.name == b"a b\\"
    assert not found.confirmed


def test_info_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no name"):
        clients.parse_client("3", "status: confirmed\n", "")


def test_grace_goes_on_while_a_known_client_is_missing() -> None:
    now = look(client("a"))
    found = clients.status(now, now, frozenset())
    assert (found.known, found.returned, found.waiting, found.may_end) == (2, 1, ("b",), False)


def test_grace_may_end_when_the_missing_client_is_known_to_be_gone() -> None:
    now = look(client("a"))
    assert clients.status(now, now, frozenset({"b"})).may_end


def test_grace_may_not_end_at_the_first_look() -> None:
    now = look(client("a"), client("b"))
    assert not clients.status(None, now, frozenset()).may_end


def test_grace_goes_on_while_a_client_still_takes_its_locks_back() -> None:
    before, now = look(client("a"), client("b")), look(client("a"), client("b", locks=1))
    assert not clients.status(before, now, frozenset()).may_end
    assert clients.status(now, now, frozenset()).may_end


def test_unconfirmed_client_is_not_back() -> None:
    now = look(client("a"), client("b", confirmed=False))
    assert clients.status(now, now, frozenset()).waiting == ("b",)


def test_unreadable_database_never_ends_grace() -> None:
    now = look(client("a"), known=None)
    assert not clients.status(now, now, frozenset({"a", "b"})).may_end


@pytest.mark.parametrize("active", [False, None])
def test_nothing_is_to_be_ended_outside_grace(active: bool | None) -> None:
    now = replace(look(client("a"), client("b")), active=active)
    assert not clients.status(now, now, frozenset()).may_end


def test_client_that_is_new_in_this_epoch_does_not_count_as_returned() -> None:
    now = look(client("a"), client("new"))
    assert clients.status(now, now, frozenset()).returned == 1
