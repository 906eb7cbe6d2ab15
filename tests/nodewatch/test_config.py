from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodewatch.config import NODES_MAX, ConfigError, parse_config
from nodewatch.heartbeat import Entry, Order, Pulse, Said, encode_heartbeat, encode_said
from nodewatch.lease import Timing
from nodewatch.wire import MAX_BODY

GOOD = """\
[cluster]
name = "demo"
uuid = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
key_file = "/etc/hactl/cluster.key"

[[node]]
name = "n1"
number = 1
address = "10.77.1.11"
[[node]]
name = "n2"
number = 2
address = "10.77.1.12"
[[node]]
name = "n3"
number = 7
address = "10.77.1.13"
"""


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return caught.value


def test_a_good_file_gives_its_values_and_defaults() -> None:
    config = parse_config(GOOD)
    assert [(node.name, node.number) for node in config.nodes] == [("n1", 1), ("n2", 2), ("n3", 7)]
    assert config.timing == Timing()
    assert (config.port, config.metrics_listen, config.warnings()) == (7747, None, [])


def test_all_sections_are_read() -> None:
    text = GOOD + '[timing]\noverdue_ms = 900\n[network]\nport = 99\n[metrics]\nlisten = "10.77.1.11:9747"\n'
    config = parse_config(text)
    assert (config.timing.overdue_ms, config.port, config.metrics_listen) == (900, 99, "10.77.1.11:9747")


def test_this_node_is_the_one_named_like_the_host_or_like_this() -> None:
    assert parse_config(GOOD).me("n2.example.org").number == 2
    assert parse_config(GOOD.replace('name = "demo"', 'name = "demo"\nthis = "n3"')).me("n2").number == 7
    with pytest.raises(ConfigError, match="this host is called 'other'"):
        parse_config(GOOD).me("other")


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("number = 7", "number = 7\nweight = 3", 17, "[[node]] weight"),
        ('name = "demo"', 'name = "demo"\nnmae = "x"', 3, "[cluster] nmae"),
        ("number = 2", "number = 1", 12, "[[node]] number"),
        ('name = "n3"', 'name = "n1"', 15, "[[node]] name"),
        ("10.77.1.13", "10.77.1.11", 17, "[[node]] address"),
        ("number = 7", "number = 4096", 16, "[[node]] number"),
        ("number = 7", "number = 0", 16, "[[node]] number"),
        ("number = 7", 'number = "7"', 16, "[[node]] number"),
        ("number = 7", "", 14, "[[node]] number"),
        ("10.77.1.13", "n3.example.org", 17, "[[node]] address"),
        ('address = "10.77.1.13"', 'addresses = ["10.77.1.13", "10.77.2.13"]', 17, "[[node]] addresses"),
        ('address = "10.77.1.13"', 'addresses = ["10.77.1.11"]', 17, "[[node]] addresses"),
        ('address = "10.77.1.13"', "addresses = []", 17, "[[node]] addresses"),
        ('address = "10.77.1.13"', 'addresses = ["n3"]', 17, "[[node]] addresses"),
        ('address = "10.77.1.13"', "addresses = [7]", 17, "[[node]] addresses"),
        ('address = "10.77.1.13"', 'addresses = "10.77.1.13"', 17, "[[node]] addresses"),
        ("number = 7", 'number = 7\naddresses = ["10.77.1.13"]', 18, "[[node]] address"),
        ("10.77.1.13", "fe80::1", 17, "[[node]] address"),
        ("10.77.1.13", "0.0.0.0", 17, "[[node]] address"),
        ("5b0c7a4e-3a55", "5b0c7a4e", 3, "[cluster] uuid"),
        ('key_file = "/etc/hactl/cluster.key"', "", 1, "[cluster] key_file"),
        ('"/etc/hactl/cluster.key"', '"cluster.key"', 4, "[cluster] key_file"),
        ("[cluster]", "[clutser]", 1, "[clutser]"),
        ('name = "demo"', 'name = "demo"\nthis = "n9"', 3, "[cluster] this"),
        ('name = "demo"', "name = demo", 2, "file"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_field(old: str, new: str, line: int, field: str) -> None:
    assert old in GOOD
    error = refused(GOOD.replace(old, new))
    assert (error.line, error.field) == (line, field)
    assert error.action


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("[timing]\nlease_ms = 900\n", "[timing] lease_ms"),
        ("[timing]\nheartbeat_ms = true\n", "[timing] heartbeat_ms"),
        ("[timing]\nleas_ms = 3\n", "[timing] leas_ms"),
        ("[network]\nport = 0\n", "[network] port"),
        ("[network]\nports = 1\n", "[network] ports"),
        ('[metrics]\nlisten = "everywhere"\n', "[metrics] listen"),
        ('[metrics]\nlisten = "10.0.0.1:0"\n', "[metrics] listen"),
        ("[volumes]\n", "[volumes]"),
        ("[[timing]]\n", "[timing]"),
    ],
)
def test_wrong_values_in_other_sections_are_refused(section: str, field: str) -> None:
    error = refused(GOOD + section)
    assert error.field == field
    assert error.line >= 18


def test_timing_that_breaks_a_promise_is_refused_with_the_arithmetic() -> None:
    message = str(refused(GOOD + "[timing]\noverdue_ms = 500\n"))
    assert "overdue_ms = 500 < 3 * heartbeat_ms = 600" in message


def test_no_nodes_or_too_many_are_refused() -> None:
    assert refused(GOOD[: GOOD.index("[[node]]")]).field == "[[node]]"
    many = "".join(f'[[node]]\nname = "m{n}"\nnumber = {n}\naddress = "10.1.0.{n}"\n' for n in range(1, NODES_MAX + 2))
    assert "at most" in str(refused(GOOD[: GOOD.index("[[node]]")] + many))


def two_links() -> str:
    return re.sub(r'address = "10.77.1.(\d+)"', r'addresses = ["10.77.1.\1", "10.77.2.\1"]', GOOD)


def test_several_addresses_of_a_node_are_links_and_part_of_the_digest() -> None:
    config = parse_config(two_links())
    assert config.links == 2
    assert config.nodes[2].addresses == ("10.77.1.13", "10.77.2.13")
    assert config.digest() != parse_config(GOOD).digest()
    one = parse_config(re.sub(r'address = "([^"]+)"', r'addresses = ["\1"]', GOOD))
    assert (one.links, one.digest()) == (1, parse_config(GOOD).digest())


def test_an_address_is_used_once_on_all_links_together_and_a_link_has_one_family() -> None:
    assert "already used at line 9" in str(refused(two_links().replace("10.77.2.13", "10.77.1.11")))
    assert "mixed" in str(refused(two_links().replace("10.77.2.13", "fe80::1")))
    every = parse_config(re.sub(r"10\.77\.2\.", "fe80::", two_links()))
    assert every.nodes[0].addresses == ("10.77.1.11", "fe80::11")


def test_an_even_number_of_nodes_is_allowed_with_a_warning() -> None:
    [warning] = parse_config(GOOD[: GOOD.rindex("[[node]]")]).warnings()
    assert "2 nodes survive the loss of 0" in warning


def test_the_digest_covers_what_must_be_equal_and_nothing_else() -> None:
    digest = parse_config(GOOD).digest()
    assert parse_config("# a comment\n" + GOOD).digest() == digest
    assert parse_config(GOOD + '[metrics]\nlisten = "10.0.0.1:1"\n').digest() == digest
    assert parse_config(GOOD.replace('name = "demo"', 'name = "demo"\nthis = "n1"')).digest() == digest
    assert parse_config(GOOD + "[timing]\nlease_ms = 3000\n").digest() != digest
    assert parse_config(GOOD.replace("10.77.1.13", "10.77.1.14")).digest() != digest


@given(st.text(max_size=300))
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    for candidate in (text, GOOD + text):
        try:
            parse_config(candidate)
        except ConfigError as error:
            assert error.action


def test_the_largest_cluster_fits_a_datagram() -> None:
    many = "".join(f'[[node]]\nname = "m{n}"\nnumber = {n}\naddress = "10.1.0.{n}"\n' for n in range(1, NODES_MAX + 1))
    assert len(parse_config(GOOD[: GOOD.index("[[node]]")] + many).nodes) == NODES_MAX
    entries = tuple(Entry(number, 0, 0, 0, 0, 0, 0, 1) for number in range(NODES_MAX))
    orders = tuple(Order(number, 1, 0, 0) for number in range(NODES_MAX) for _ in range(2))
    said = encode_said(Said(0, 0, 0, bytes(8), 1, bytes(8), 0, 0, bytes(8), 0, 0, 0, 0, 0, entries, orders))
    assert len(encode_heartbeat(said, [Pulse(0, 0, 0)] * NODES_MAX)) <= MAX_BODY


def test_the_engine_is_one_line_and_an_unknown_one_is_refused() -> None:
    assert parse_config(GOOD).engine == "builtin"
    chosen = parse_config(GOOD.replace("[cluster]\n", '[cluster]\nengine = "corosync"\n'))
    assert chosen.engine == "corosync" and chosen.digest() != parse_config(GOOD).digest()
    with pytest.raises(ConfigError, match=r"engine: 'heartbeat' is not valid; it must be one of builtin, corosync"):
        parse_config(GOOD.replace("[cluster]\n", '[cluster]\nengine = "heartbeat"\n'))


def test_corosync_and_witness_luns_exclude_each_other() -> None:
    text = GOOD.replace("[cluster]\n", '[cluster]\nengine = "corosync"\n')
    text += '[witness]\nwwids = ["naa.60014055fa1c0de00000000000000000"]\n'
    with pytest.raises(ConfigError, match="knows nothing of witness LUNs"):
        parse_config(text)
