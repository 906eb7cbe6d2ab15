"""The kernel's export questions and our answers."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs import export
from fs.export import Export

EXPORT = Export(
    path="/srv/v1/export",
    networks=(ipaddress.ip_network("10.77.1.0/24"), ipaddress.ip_network("fd00:1::/64")),
    root_squash=False,
)


def test_client_of_an_allowed_network_gets_the_domain() -> None:
    assert export.answer("auth.unix.ip", b"nfsd 10.77.1.21\n", EXPORT) == b"nfsd 10.77.1.21 2147483647 clients\n"


def test_client_of_another_network_gets_a_negative_answer() -> None:
    assert export.answer("auth.unix.ip", b"nfsd 10.99.0.1\n", EXPORT) == b"nfsd 10.99.0.1 2147483647\n"


def test_mapped_ipv4_address_counts_as_ipv4() -> None:
    assert EXPORT.admits("::ffff:10.77.1.21")
    assert not EXPORT.admits("::ffff:10.99.0.1")


def test_ipv6_client_is_admitted_by_its_network() -> None:
    assert EXPORT.admits("fd00:1::21")
    assert not EXPORT.admits("fd00:2::21")


@pytest.mark.parametrize("text", ["", "nonsense", "10.77.1", "10.77.1.21/24"])
def test_what_is_no_address_is_not_admitted(text: str) -> None:
    assert not EXPORT.admits(text)


def test_file_system_id_zero_is_the_export() -> None:
    answer = export.answer("nfsd.fh", b"clients 1 \\x00000000\n", EXPORT)
    assert answer == b"clients 1 \\x00000000 2147483647 /srv/v1/export\n"


def test_any_other_file_system_id_gets_a_negative_answer() -> None:
    answer = export.answer("nfsd.fh", b"clients 7 \\x0123456789abcdef\n", EXPORT)
    assert answer == b"clients 7 \\x0123456789abcdef 2147483647\n"


def test_exported_path_gets_its_flags_and_fsid() -> None:
    answer = export.answer("nfsd.export", b"clients /srv/v1/export\n", EXPORT)
    assert answer == b"clients /srv/v1/export 2147483647 9216 65534 65534 0\n"


def test_root_squash_is_one_flag_more() -> None:
    squashed = Export(path="/e", networks=EXPORT.networks, root_squash=True)
    assert b" 9220 " in export.answer("nfsd.export", b"clients /e\n", squashed)


def test_directory_below_the_export_is_not_an_export_of_its_own() -> None:
    answer = export.answer("nfsd.export", b"clients /srv/v1/export/sub\n", EXPORT)
    assert answer == b"clients /srv/v1/export/sub 2147483647\n"


def test_unknown_cache_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="does not know"):
        export.answer("auth.unix.gid", b"1000\n", EXPORT)


def test_domain_is_made_before_the_export_that_needs_it() -> None:
    caches = [cache for cache, _ in export.opening_lines(EXPORT, ["10.77.1.21", "10.77.1.22"])]
    assert caches == ["auth.unix.ip", "auth.unix.ip", "nfsd.export", "nfsd.fh"]


def test_without_a_known_peer_the_domain_is_made_all_the_same() -> None:
    lines = export.opening_lines(EXPORT, [])
    assert lines[0] == ("auth.unix.ip", b"nfsd 10.77.1.0 2147483647 clients\n")


def test_remembered_peer_that_may_not_mount_any_more_is_not_let_in() -> None:
    lines = export.opening_lines(EXPORT, ["10.99.0.1", "10.77.1.21"])
    assert [line for cache, line in lines if cache == "auth.unix.ip"] == [b"nfsd 10.77.1.21 2147483647 clients\n"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(lambda word: "/" + word))
def test_quoted_path_is_read_back_as_it_was(path: str) -> None:
    quoted = export.quote(path)
    assert not set(quoted) & set(" \n\t")
    assert export.split(quoted.encode()) == [path]
