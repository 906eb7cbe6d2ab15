"""Who may reclaim, and when grace may end early."""

import pytest

from fs import clients
from fs.clients import Client, Recorded
from fs.model import GraceStatus

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


A, B = b"a", b"b"
BOTH = frozenset({A, B})


def client(name: bytes, confirmed: bool = True) -> Client:
    return Client(number="3", name=name, address="", confirmed=confirmed, opens=1, locks=0)


def status(done: set[bytes], gone: set[str] | None = None, active: bool | None = True) -> GraceStatus:
    """Clients a and b may reclaim and both are back."""
    recorded = Recorded(may_reclaim=BOTH, done=frozenset(done))
    return clients.status(active, recorded, [client(A), client(B)], frozenset(gone or ()))


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


def test_grace_goes_on_while_a_client_has_not_said_that_it_is_done() -> None:
    found = status(done={A})
    assert (found.known, found.returned, found.reclaimed) == (2, 2, 1)
    assert (found.waiting, found.may_end) == (("b",), False)


def test_grace_may_end_when_the_missing_client_is_known_to_be_gone() -> None:
    assert status(done={A}, gone={"b"}).may_end


def test_grace_goes_on_while_one_of_two_missing_clients_is_not_known_to_be_gone() -> None:
    assert not status(done=set(), gone={"b"}).may_end


def test_grace_may_end_when_everybody_is_done() -> None:
    found = status(done={A, B})
    assert (found.waiting, found.may_end) == ((), True)


def test_unconfirmed_client_is_not_back() -> None:
    recorded = Recorded(may_reclaim=BOTH, done=frozenset())
    found = clients.status(True, recorded, [client(A), client(B, confirmed=False)], frozenset())
    assert found.returned == 1


def test_unreadable_database_never_ends_grace() -> None:
    found = clients.status(True, None, [client(A)], frozenset({"a", "b"}))
    assert (found.known, found.may_end) == (0, False)


@pytest.mark.parametrize("active", [False, None])
def test_nothing_is_to_be_ended_outside_grace(active: bool | None) -> None:
    assert not status(done={A, B}, active=active).may_end


def test_client_that_is_new_in_this_epoch_does_not_count_as_reclaimed() -> None:
    found = status(done={A, b"new"})
    assert (found.known, found.reclaimed, found.waiting) == (2, 1, ("b",))
