"""What a reservation key means, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fencing.model import Key

FENCE_SCSI_DIGITS = 8


def explain_key(value: int, tag: int, names: Mapping[int, str], epoch: int) -> str:
    """One line for one registered key: whose it is and whether it is the volume's present handle.

    `tag` is our cluster's, `names` the configured nodes by number, `epoch` the one on the volume's label.
    """
    key = Key.parse(value)
    if key.belongs_to(tag):
        node = names.get(key.node, f"node number {key.node}, which is not configured any more")
        return f"this cluster, {node}, epoch {key.epoch}: {_standing(key.epoch, epoch)}"
    text = f"{value:x}"
    if len(text) == FENCE_SCSI_DIGITS:
        return f"not this cluster's; it has the form of fence_scsi (cluster {text[:4]}, node {text[4:]})"
    if value >> 40 == 0x100000:
        return "not this cluster's; it may be LVM's (lvmpersist)"
    return "not this cluster's: another cluster or an unknown tool"


def _standing(key_epoch: int, label_epoch: int) -> str:
    if key_epoch == label_epoch:
        return "the present handle"
    if key_epoch < label_epoch:
        return "an old handle that should be gone"
    return "newer than the label: an acquisition under way, or one that ended half-way"
