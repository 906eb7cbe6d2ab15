"""Whose a reservation key may be that this cluster did not make. Pure; a guess that names its ground, never a proof.

Keys are 64 bits that their owner chooses. What is recognised, and where the form is written down:

- another hactl cluster: its tag is that of a cluster that we know from the device's label (`Key`, `cluster_tag`);
- fence_scsi (ClusterLabs/fence-agents, agents/scsi/fence_scsi.py, `generate_key`): eight hexadecimal digits, four of
  the MD5 of the cluster's name, then the node's index in four decimal digits or four digits of the MD5 of its name;
  leading zeros fall away. It reserves with Write Exclusive - Registrants Only;
- LVM (lvm2, lib/device/persist.c, `get_our_key`): 0x100000, six digits of the generation that sanlock gives the host,
  four of the host's number. With lvmlockd and sanlock the generation counts from 1, else it is 0;
- Veritas (Cluster Server Administrator's Guide, "About the I/O fencing registration key format"): eight ASCII
  characters, `VF`, cluster number, node number on coordinator disks; "A" + node number and `VCS` or `PGR` on data
  disks.

mpathpersist and sg_persist register what their user types; sanlock alone registers nothing: it rests on watchdogs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fencing.model import Key, show_key

HACTL = "hactl"
FENCE_SCSI = "fence_scsi"
LVM = "LVM"
VERITAS = "Veritas"
UNKNOWN = "unknown"

_LVM_PREFIX = 0x100000
_VERITAS = re.compile(
    rb"VF(?P<cluster>[0-9A-F]{4})(?P<node>[0-9A-F]{2})|(?P<letter>[A-Z`a-z])(?P<kind>VCS|PGR)[ -~\0]{4}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who may have made a key: one of the constants above, and what can be said of it in words."""

    tool: str
    detail: str

    def __str__(self) -> str:
        return f"{self.tool}, {self.detail}" if self.tool != UNKNOWN else self.detail


def recognise(value: int, clusters: Mapping[int, str] | None = None) -> Owner:
    """`clusters`: tag -> name of other hactl clusters that are known (from a label on the device)."""
    key = Key.parse(value)
    if clusters and key.cluster_tag in clusters and key.node:
        where = f'cluster "{clusters[key.cluster_tag]}", node number {key.node}, epoch {key.epoch}'
        return Owner(tool=HACTL, detail=where)
    if value >> 40 == _LVM_PREFIX:
        host, generation = value & 0xFFFF, value >> 16 & 0xFFFFFF
        with_what = f"host {host} of a shared volume group, generation {generation}" if generation else f"host {host}"
        return Owner(tool=LVM, detail=with_what)
    return _veritas(value) or _fence_scsi(value) or Owner(tool=UNKNOWN, detail="another cluster or an unknown tool")


def describe(value: int, clusters: Mapping[int, str] | None = None) -> str:
    """A key and its owner, for messages: `0x00000000abcd0001 (it has the form of fence_scsi, ...)`."""
    owner = recognise(value, clusters)
    return f"{show_key(value)} ({owner if owner.tool in (UNKNOWN, HACTL) else f'it has the form of {owner}'})"


def _veritas(value: int) -> Owner | None:
    match = _VERITAS.fullmatch(value.to_bytes(8, "big"))
    if match is None:
        return None
    if match["cluster"]:
        where = f"coordinator disk of cluster {int(match['cluster'], 16)}, node {int(match['node'], 16)}"
    else:
        where = f"data disk, node {match['letter'][0] - ord('A')}"
    return Owner(tool=VERITAS, detail=where)


def _fence_scsi(value: int) -> Owner | None:
    """Of a key with fewer digits no more can be said than that it might be; keys typed by hand are short, too."""
    text = f"{value:x}"
    if len(text) != 8:
        return None
    cluster, node = text[:4], text[4:]
    who = f"node {int(node)}, if by number" if node.isdigit() else f"node with the hash {node}"
    return Owner(tool=FENCE_SCSI, detail=f"cluster with the hash {cluster}, {who}")
