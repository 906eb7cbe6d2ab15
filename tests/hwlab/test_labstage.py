"""A lab as a stage: what the drills' own clients get."""

from hwlab.lab import open_lab
from hwlab.labstage import LabStage


def test_the_transport_of_a_drill_is_its_topologys() -> None:
    assert [LabStage(open_lab("unit-stage", name)).transport for name in ("default", "nvme")] == ["iscsi", "nvme"]


def test_every_client_of_a_drill_has_an_address_that_is_nobody_else_s() -> None:
    lab = open_lab("unit-stage", "default")
    share = LabStage(lab).share
    own = [share.thief_address, share.reader_address, share.asker_address]
    hosts = [address for host in lab.topology.hosts for address in host.addresses.values()]
    taken = [*hosts, share.source.partition(":")[0]]
    addresses = [address.partition("/")[0] for address in own]
    assert len(set(addresses) | set(taken)) == len(addresses) + len(taken)
    assert {address.partition("/")[2] for address in own} == {"24"}
