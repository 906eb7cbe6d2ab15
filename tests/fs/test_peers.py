"""The clients' TCP ends: read from the kernel, kept on the volume."""

import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs import peers
from fs._tickle import PeerFile

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: 32014D0A:0801 15014D0A:0348 {state} 00000000:00000000 00:00000000 00000000     0        0 1\n"


def test_established_peer_of_the_port_is_found() -> None:
    assert peers.connected(HEAD + LINE.format(state="01"), 2049) == {("10.77.1.21", 840)}


@pytest.mark.parametrize("state", ["0A", "06", "08"])
def test_connection_that_is_not_established_is_no_peer(state: str) -> None:
    assert peers.connected(HEAD + LINE.format(state=state), 2049) == frozenset()


def test_other_port_is_not_ours() -> None:
    assert peers.connected(HEAD + LINE.format(state="01"), 2050) == frozenset()


def test_real_connection_of_this_machine_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            found = peers.connected(Path("/proc/self/net/tcp").read_text(), port)
            assert client.getsockname() in found


def test_mapped_ipv4_peer_of_the_ipv6_table_is_an_ipv4_peer() -> None:
    line = "   0: 0000000000000000FFFF000032014D0A:0801 0000000000000000FFFF000015014D0A:0348 01 0 0\n"
    assert peers.connected(HEAD + line, 2049) == {("10.77.1.21", 840)}


@given(st.frozensets(st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))))
def test_what_is_kept_is_read_back(some: frozenset[peers.Peer]) -> None:
    assert peers.decode(peers.encode(some)) == some


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"version": 2, "peers": []}', b'{"version": 1, "peers": [["x", 1]]}', b"\xff"],
)
def test_file_that_makes_no_sense_is_an_empty_one(data: bytes) -> None:
    assert peers.decode(data) == frozenset()


def test_only_changes_are_written(tmp_path: Path) -> None:
    some = frozenset({("10.77.1.21", 840)})
    file = PeerFile(tmp_path)
    assert file.save(some)
    assert not file.save(some)
    assert not PeerFile(tmp_path).save(some)
    assert PeerFile(tmp_path).load() == some


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    some = frozenset({("10.77.1.21", 840)})
    PeerFile(tmp_path).save(some)
    (tmp_path / "peers.new").write_bytes(b"half a fi")
    assert PeerFile(tmp_path).load() == some


def test_flood_of_peers_is_cut() -> None:
    many = frozenset((f"10.0.{n >> 8}.{n & 255}", 1) for n in range(peers.MOST + 10))
    assert len(json.loads(peers.encode(many))["peers"]) == peers.MOST
