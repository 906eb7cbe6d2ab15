"""Keys of others: each form is recognised by what its own documentation gives as an example, and nothing else is."""

from __future__ import annotations

import hashlib

import pytest

from fencing.errors import ForeignOwner
from fencing.foreign import FENCE_SCSI, HACTL, LVM, UNKNOWN, VERITAS, describe, recognise
from fencing.model import Key, cluster_tag


def fence_scsi_key(cluster: str, node: int | str) -> int:
    """As its generate_key makes it."""
    tail = f"{node:04d}" if isinstance(node, int) else hashlib.md5(node.encode()).hexdigest()[:4]
    return int(hashlib.md5(cluster.encode()).hexdigest()[:4] + tail, 16)


@pytest.mark.parametrize(
    ("key", "tool", "words"),
    [
        (fence_scsi_key("mycluster", 3), FENCE_SCSI, "node 3"),
        (fence_scsi_key("mycluster", "node-a"), FENCE_SCSI, "node with the hash"),
        (0x1000000000000007, LVM, "host 7"),
        (0x1000000000030002, LVM, "host 2 of a shared volume group, generation 3"),
        (int.from_bytes(b"VFDEED00", "big"), VERITAS, "cluster 57069, node 0"),
        (int.from_bytes(b"VF00010A", "big"), VERITAS, "cluster 1, node 10"),
        (int.from_bytes(b"BVCS\0\0\0\0", "big"), VERITAS, "data disk, node 1"),
        (int.from_bytes(b"APGR0001", "big"), VERITAS, "data disk, node 0"),
        (0x123ABC, UNKNOWN, "unknown tool"),
        (0x1, UNKNOWN, "unknown tool"),
        (0xFFFFFFFFFFFFFFFF, UNKNOWN, "unknown tool"),
        (0x1100000000000001, UNKNOWN, "unknown tool"),
        (int.from_bytes(b"VFdeed00", "big"), UNKNOWN, "unknown tool"),
    ],
)
def test_a_key_is_recognised_by_its_form(key: int, tool: str, words: str) -> None:
    owner = recognise(key)
    assert owner.tool == tool and words in str(owner)


def test_another_hactl_cluster_is_known_by_its_label_only() -> None:
    theirs = cluster_tag("11111111-0000-4000-8000-000000000009")
    key = Key(cluster_tag=theirs, node=2, epoch=13).value
    assert recognise(key).tool == UNKNOWN
    owner = recognise(key, {theirs: "archive"})
    assert owner.tool == HACTL and str(owner) == 'hactl, cluster "archive", node number 2, epoch 13'


def test_a_foreign_owner_is_named_in_the_message() -> None:
    text = str(ForeignOwner((0xABCD0001, 0x5), device="naa.1"))
    assert "0x00000000abcd0001 (it has the form of fence_scsi, cluster with the hash abcd, node 1" in text
    assert describe(0x5) in text and "force" in text
