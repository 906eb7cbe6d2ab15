"""From the labels that a node sees to the volumes that it may use."""

from dataclasses import dataclass, replace

import pytest

from fencing.errors import FencingError, LabelError
from fencing.label import Label
from hactl.sets import LunSet, gather, some

CLUSTER = "5d0c9a52-0000-4000-8000-000000000001"
SIZE = 1 << 30


@dataclass(frozen=True)
class Seen:
    device: str
    wwid: str
    label: Label | FencingError | None
    size_bytes: int = SIZE
    problem: str = ""


def label(*wwids: str, **changes: object) -> Label:
    whole = Label(
        cluster_uuid=CLUSTER, cluster_name="demo", volume="v1", volume_uuid="u1", epoch=4, wwids=wwids, fstype="ext4",
        address="10.77.1.50/24", lease_s=10, grace_s=10, seq=1, member=0, sizes=(SIZE,) * len(wwids),
        stack="lvm" if len(wwids) > 1 else "",
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


def disks(*wwids: str, **changes: object) -> list[Seen]:
    """sdz first: devices come in any order."""
    whole = label(*wwids, **changes)
    names = [f"/dev/sd{chr(ord('z') - index)}" for index in range(len(wwids))]
    return [Seen(name, wwid, whole.on(wwid)) for name, wwid in zip(names, wwids, strict=True)]


def test_a_whole_set_is_its_devices_in_the_order_of_their_wwids() -> None:
    sets, strange = gather(reversed(disks("naa.1", "naa.2", "naa.3")), CLUSTER)
    assert strange == {} and sets["v1"].gone == ""
    assert list(sets["v1"].devices.items()) == [("naa.1", "/dev/sdz"), ("naa.2", "/dev/sdy"), ("naa.3", "/dev/sdx")]


def test_the_newest_label_of_the_set_counts() -> None:
    first, second = disks("naa.1", "naa.2")
    newer = replace(second.label, epoch=9, wanted="started")
    sets, strange = gather([first, replace(second, label=newer)], CLUSTER)
    assert strange == {} and (sets["v1"].label.epoch, sets["v1"].label.wanted) == (9, "started")


def test_a_set_of_which_a_disk_is_not_seen_is_known_and_says_which() -> None:
    sets, _ = gather(disks("naa.1", "naa.2", "naa.3")[:2], CLUSTER)
    assert sets["v1"].missing == ("naa.3",)
    assert "1 of its 3 disks" in sets["v1"].gone and "naa.3" in sets["v1"].gone
    assert LunSet(label=label("naa.1"), devices={}).gone == "its disk is not seen on this node"


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (Seen("/dev/sdb", "naa.2", label("naa.1", "naa.2").on("naa.1")), "a copy"),
        (Seen("/dev/sdb", "naa.9", label("naa.1", "naa.2").on("naa.2")), "written for naa.2, but is naa.9"),
        (Seen("/dev/sdb", "naa.2", label("naa.1", "naa.2").on("naa.2"), SIZE - 1), "shrank"),
        (Seen("/dev/sdb", "naa.2", label("naa.1", "naa.2", volume_uuid="u2").on("naa.2")), "both claim volume v1"),
        (Seen("/dev/sdb", "naa.2", label("naa.2", "naa.3").on("naa.2")), "otherwise than /dev/sda"),
        (Seen("/dev/sdb", "naa.2", label("naa.1", "naa.2", stack="md").on("naa.2")), "otherwise than /dev/sda"),
        (Seen("/dev/sdb", "naa.1", label("naa.1", "naa.2")), "are the same LUN"),
        (Seen("/dev/sdb", "naa.2", LabelError("damaged", device="x", kind="damaged", next_action="y")), "damaged"),
        (Seen("/dev/sdb", "", None, problem="the disk gives no unique name"), "no unique name"),
    ],
)
def test_a_disk_that_does_not_fit_is_told_and_its_volume_is_not_whole(odd: Seen, words: str) -> None:
    sets, strange = gather([Seen("/dev/sda", "naa.1", label("naa.1", "naa.2")), odd], CLUSTER)
    assert words in strange["/dev/sdb"]
    assert sets["v1"].gone and sets["v1"].devices == {"naa.1": "/dev/sda"}


def test_disks_of_others_are_neither_ours_nor_strange() -> None:
    seen = [
        Seen("/dev/sda", "naa.1", label("naa.1", cluster_uuid="theirs")),
        Seen("/dev/sdb", "naa.2", None),
        Seen("/dev/sdc", "naa.3", label("naa.3", fstype="witness", volume="witness")),
    ]
    assert gather(seen, CLUSTER) == ({}, {})


def test_many_names_are_shortened() -> None:
    assert some(("a", "b")) == "a, b"
    assert some(tuple("abcdefg")) == "a, b, c, d and 3 more"
