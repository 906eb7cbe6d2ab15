"""Topologies: what comes with hwlab is sound, and a wrong file is refused with the place of the mistake."""

import pytest

from hwlab.errors import TopologyError
from hwlab.topology import Role, available, load, parse

GOOD = """
name = "t"
driver = "uml"
[networks]
mgmt = "10.0.0.0/24"
san = "10.0.2.0/24"
[[host]]
name = "s1"
role = "target"
addresses = { mgmt = "10.0.0.10", san = "10.0.2.10" }
[[host]]
name = "n1"
role = "node"
addresses = { mgmt = "10.0.0.11", san = "10.0.2.11" }
[[lun]]
name = "v"
size_mb = 64
serial = "00c0ffee0000"
"""


@pytest.mark.parametrize("name", available())
def test_every_topology_that_comes_with_hwlab_loads(name: str) -> None:
    topology, text = load(name)
    assert topology.name == name
    assert parse(text, "again") == topology


def test_the_default_topology_has_what_the_drills_need() -> None:
    topology, _ = load("default")
    assert [host.name for host in topology.with_role(Role.NODE)] == ["n1", "n2", "n3"]
    assert len(topology.with_role(Role.TARGET)) == len(topology.with_role(Role.CLIENT)) == 1
    assert topology.volume is not None
    assert topology.lun(topology.volume.lun).device.startswith("/dev/disk/by-id/wwn-0x6001405")


def test_a_lun_is_known_by_the_identity_that_the_target_derives_from_its_serial() -> None:
    lun = parse(GOOD, "t").luns[0]
    assert lun.wwid == "naa.600140500c0ffee00000000000000000"
    assert lun.device == "/dev/disk/by-id/wwn-0x600140500c0ffee00000000000000000"


def test_an_interface_carries_the_prefix_length_of_its_network() -> None:
    assert parse(GOOD, "t").interface("n1", "san") == "10.0.2.11/24"


def test_a_namespace_is_known_by_a_uuid_made_of_its_serial() -> None:
    text = GOOD.replace('"uml"', '"qemu"\ntransport = "nvme"').replace("00c0ffee0000", "00c0ffee0000" + "1" * 21)
    lun = parse(text, "t").luns[0]
    assert lun.wwid == "uuid.00c0ffee-0000-1111-1111-111111111111"
    assert lun.device == f"/dev/disk/by-id/nvme-{lun.wwid}"


def test_a_node_that_only_votes_needs_no_nvme_and_is_cut_off_with_the_others() -> None:
    topology, _ = load("nvme")
    [voter] = topology.with_role(Role.VOTER)
    assert voter.driver == "uml" and set(voter.addresses).isdisjoint(topology.sans)
    assert voter.addresses["lan"] in topology.peers("n1")


def test_hosts_of_one_topology_may_have_different_emulators() -> None:
    text = GOOD.replace('name = "n1"', 'name = "n1"\ndriver = "qemu"')
    assert [host.driver for host in parse(text, "t").hosts] == ["uml", "qemu"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('driver = "uml"', 'driver = "uml"\ncolour = "red"', "unknown key `colour`"),
        ('role = "node"', 'role = "spare"', "role 'spare' is none of target, node, voter, client"),
        ('role = "node"', 'role = "node"\nmemory = 3', "host 2: unknown key `memory`"),
        ('role = "node"', 'role = "node"\ndriver = "ssh"', "driver 'ssh' does not mix with 'uml'"),
        ('driver = "uml"', 'driver = "uml"\n[timing]\noverdue_ms = "long"', "`overdue_ms` must be of type int"),
        (
            'driver = "uml"',
            'driver = "uml"\nengine = "corosync"\n[timing]\noverdue_ms = 9',
            "writes that section itself",
        ),
        ('driver = "uml"', 'driver = "uml"\ntransport = "fc"', "transport 'fc' is none of iscsi, nvme"),
        ('driver = "uml"', 'driver = "uml"\ntransport = "nvme"', "host s1: driver 'uml' has no NVMe"),
        ('driver = "uml"', 'driver = "qemu"\nkernel = "latest"', "kernel 'latest' is not the beginning of a version"),
        ('name = "n1"', 'name = "s1"', "host name 's1' is used twice"),
        ('name = "n1"', 'name = "Node-1"', "name 'Node-1' must be"),
        ("10.0.0.11", "10.0.0.10", "address '10.0.0.10' is used twice"),
        ("10.0.2.11", "10.9.2.11", "n1's 10.9.2.11 is not in 10.0.2.0/24"),
        ("10.0.2.11", "10.0.2.x", "n1: Only decimal digits"),
        ('mgmt = "10.0.0.11", ', "", "host n1 has no address on `mgmt`"),
        ("10.0.2.0/24", "10.0.2.1/24", "network san"),
        ('san = "10.0.2.0/24"', "", "host s1 is on network 'san', which is not listed"),
        ('role = "target"', 'role = "client"', "exactly one host with role target"),
        ("size_mb = 64", 'size_mb = "64"', "`size_mb` must be of type int"),
        ("00c0ffee0000", "disk-number-1", "hexadecimal"),
        ('name = "t"', "", "`name` is missing"),
        ('name = "t"', "name =", "t.toml"),
    ],
)
def test_a_wrong_topology_is_refused_with_the_place_of_the_mistake(old: str, new: str, complaint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        parse(GOOD.replace(old, new, 1), "t.toml")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("t.toml")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TopologyError, match="default"):
        load("no-such-topology")
