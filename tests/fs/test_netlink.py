"""The bytes that go to another process, and the answers that come back."""

import errno
import struct

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from fs import VolumeSpec, _netlink
from fs._address import ServedAddress
from fs._namespace import LINK, Namespace, mac_of


class NamespaceWithLink(Namespace):
    """As far as the messages are concerned: a link number."""

    def link_index(self) -> int | None:
        return 5


def gate_messages(address: str, lifetime_s: int = 1) -> tuple[bytes, bytes]:
    spec = VolumeSpec(
        name="v1", device="/dev/null", fstype="ext4", address_cidr=address, clients=(), gate_lifetime_s=lifetime_s
    )
    served = ServedAddress(spec, NamespaceWithLink("v1"))
    gate = served.gate()
    served.close()
    return gate.renew, gate.close


def attributes(message: bytes) -> dict[int, bytes]:
    found, at = {}, 24
    while at < len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        found[kind] = message[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def test_renewal_gives_the_address_one_lifetime() -> None:
    renew, _ = gate_messages("10.77.1.50/24", lifetime_s=2)
    length, kind, flags = struct.unpack_from("=IHH", renew)
    assert (length, kind) == (len(renew), 20)
    assert flags == 0x1 | 0x4 | 0x100 | 0x400  # REQUEST, ACK, REPLACE, CREATE
    assert struct.unpack_from("=BBBBI", renew, 16) == (2, 24, 0, 0, 5)
    found = attributes(renew)
    assert found[1] == found[2] == bytes([10, 77, 1, 50])
    assert struct.unpack("=IIII", found[6]) == (2, 2, 0, 0)


def test_close_deletes_the_same_address() -> None:
    _, close = gate_messages("10.77.1.50/24")
    assert struct.unpack_from("=HH", close, 4) == (21, 0x1 | 0x4)
    assert attributes(close)[2] == bytes([10, 77, 1, 50])


def test_ipv6_address_comes_without_duplicate_detection() -> None:
    renew, _ = gate_messages("fd00:1::50/64")
    assert struct.unpack_from("=BBBBI", renew, 16) == (10, 64, 2, 0, 5)


def test_kernels_refusal_is_an_oserror_with_its_number() -> None:
    route = _netlink.Route()
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", "lo"), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "no-such")]})]
    with pytest.raises(OSError) as refused:
        route.ask(message, _netlink.RTM_NEWLINK, _netlink.NLM_F_CREATE | _netlink.NLM_F_EXCL)
    assert refused.value.errno in (errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP)
    route.close()


def test_link_that_is_not_there_is_none() -> None:
    route = _netlink.Route()
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", "nolink")]
    assert route.get(message, _netlink.RTM_GETLINK) is None
    route.close()


def test_loopback_is_seen() -> None:
    route = _netlink.Route()
    names = [link.get_attr("IFLA_IFNAME") for link in route.dump(ifinfmsg(), _netlink.RTM_GETLINK)]
    assert "lo" in names
    route.close()


def test_mac_is_steady_and_differs_by_volume_and_by_node() -> None:
    first = mac_of("v1", "aa:bb:cc:dd:ee:01")
    assert first == mac_of("v1", "aa:bb:cc:dd:ee:01")
    assert len({first, mac_of("v2", "aa:bb:cc:dd:ee:01"), mac_of("v1", "aa:bb:cc:dd:ee:02")}) == 3
    assert int(first[:2], 16) & 3 == 2  # locally administered, unicast


def test_link_has_a_name_that_fits() -> None:
    assert len(LINK) < 16
