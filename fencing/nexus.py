"""Under what this node registers at a device, and whether another node does so, too.

An NVMe device knows hosts, not paths: whoever presents the same host identifier is the same host, shares one
registration, and can be fenced by nobody. Images that are copied with their /etc/nvme/hostid make such twins. Seen
from a twin, its own host is registered with a key that another node made.
"""

from __future__ import annotations

from fencing.errors import SharedNexus
from fencing.model import Key, ReservationState
from fencing.port import Lun


def own_key(state: ReservationState, nexus: bytes) -> int:
    """The key that is registered under this nexus; 0 = none."""
    return next((registrant.key for registrant in state.registrants if registrant.nexus == nexus), 0)


def refuse_shared(lun: Lun, state: ReservationState, mine: Key) -> None:
    """SharedNexus if another node of the cluster of `mine` registered as this one; nothing is told of a nexus that is
    not known. `mine` is any key of this node."""
    if not lun.nexus:
        return
    key = Key.parse(own_key(state, lun.nexus))
    if key.belongs_to(mine.cluster_tag) and key.node != mine.node:
        raise SharedNexus(key.value, key.node, nexus=lun.nexus, device=lun.wwid)
