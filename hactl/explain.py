"""What a reservation key means, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fencing.foreign import HACTL, UNKNOWN, recognise
from fencing.label import Label
from fencing.model import PROBE_EPOCH, Key, cluster_tag


def explain_key(
    value: int, tag: int, names: Mapping[int, str], epoch: int | None, clusters: Mapping[int, str] | None = None
) -> str:
    """One line for one registered key: whose it is and whether it is the volume's present handle.

    `tag` is our cluster's, `names` the configured nodes by number, `epoch` the one on the volume's label, None if there
    is no label of ours. `clusters`: tag -> name of other clusters (`other_clusters`).
    """
    key = Key.parse(value)
    if key.belongs_to(tag):
        node = names.get(key.node, f"node number {key.node}, which is not configured any more")
        return f"this cluster, {node}, epoch {key.epoch}: {_standing(key.epoch, epoch)}"
    owner = recognise(value, clusters)
    if owner.tool in (UNKNOWN, HACTL):
        return f"not this cluster's: {owner}"
    return f"not this cluster's; it has the form of {owner}"


def other_clusters(label: Label | None, tag: int) -> dict[int, str]:
    """The other hactl cluster that a device's label names, if it does."""
    if label is None or cluster_tag(label.cluster_uuid) == tag:
        return {}
    return {cluster_tag(label.cluster_uuid): label.cluster_name}


def _standing(key_epoch: int, label_epoch: int | None) -> str:
    if key_epoch == PROBE_EPOCH:
        return "the scratch key of a check that did not end"
    if label_epoch is None:
        return "but there is no label of this cluster"
    if key_epoch == label_epoch:
        return "the present handle"
    if key_epoch < label_epoch:
        return "an old handle that should be gone"
    return "newer than the label: an acquisition under way, or one that ended half-way"
