"""The label: what a volume knows of itself, on its own disk.

Two copies, each one block of 4096 bytes, written in turn, so that a torn write costs one copy and never both.
A new epoch is written to both: losing either copy later cannot take the epoch back. docs/fencing.md has the
format byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NoReturn

from fencing.errors import LabelError
from fencing.model import EPOCH_MAX, Identity

BLOCK_BYTES = 4096
COPIES = 2
MAGIC = b"HACTL-LABEL\r\n\x1a\n\x00"
FORMAT = 1

# magic, format version, bytes of JSON, reserved; then the checksum of this header and the JSON
_HEADER = struct.Struct("<16sIIQ")
_SUM_BYTES = 32
PAYLOAD_OFFSET = _HEADER.size + _SUM_BYTES
PAYLOAD_BYTES_MAX = BLOCK_BYTES - PAYLOAD_OFFSET

DAMAGED = "damaged"
NEWER_FORMAT = "newer format"
BLANK = "blank"
WRONG_CLUSTER = "wrong cluster"
WRONG_SET = "wrong set"
TOO_LONG = "too long"
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One volume. `wanted` is "started" or "stopped"; `owner` a node's name or ""; empty `nodes` means all
    nodes.

    `seq` grows with every write, `epoch` with every new owner. Times in seconds. `address` is CIDR.
    """

    format: int = FORMAT
    cluster_uuid: str
    cluster_name: str
    volume: str
    volume_uuid: str
    epoch: int
    owner: str = ""
    wanted: str = "stopped"
    wwids: tuple[str, ...]
    fstype: str
    address: str = ""
    clients: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    lease_s: int
    grace_s: int
    seq: int

    def __post_init__(self) -> None:
        if not 0 <= self.epoch <= EPOCH_MAX:
            raise ValueError(f"epoch {self.epoch} is outside 0..{EPOCH_MAX}")
        if self.wanted not in ("started", "stopped"):
            raise ValueError(f'wanted is "{self.wanted}", not "started" or "stopped"')
        if self.seq < 0 or self.lease_s < 1 or self.grace_s < 1:
            raise ValueError("seq, lease_s or grace_s is too small")
        if not self.volume or not self.volume_uuid or not self.wwids:
            raise ValueError("volume, volume_uuid and wwids must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLabel:
    """The newest valid copy, in which slot it was, both copies, and what is wrong with the other ("" =
    nothing).
    """

    label: Label
    slot: int
    copies: tuple[Label | None, ...]
    damage: str = ""

    @property
    def next_slot(self) -> int:
        return 1 - self.slot


def encode(label: Label) -> bytes:
    """One block. LabelError (too long) if the client or node lists do not fit."""
    members = {field.name: getattr(label, field.name) for field in fields(label)}
    payload = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise LabelError(
            f"the label would have {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX} fit",
            device=f"volume {label.volume}",
            kind=TOO_LONG,
            next_action="name fewer clients, for example one network instead of its hosts",
        )
    header = _HEADER.pack(MAGIC, FORMAT, len(payload), 0)
    return (header + hashlib.sha256(header + payload).digest() + payload).ljust(BLOCK_BYTES, b"\0")


def decode(block: bytes, *, device: str = "label") -> Label | None:
    """One copy; None if no label was ever written there. LabelError: damaged, or of a newer format."""
    if not block.startswith(MAGIC):
        return None if not any(block[: len(MAGIC)]) else _damaged(device, "it does not begin with the label's magic")
    if len(block) < PAYLOAD_OFFSET:
        return _damaged(device, f"only {len(block)} bytes could be read")
    _, version, length, _ = _HEADER.unpack_from(block)
    if version > FORMAT:
        raise LabelError(
            f"the label has format {version}, this hactl knows up to {FORMAT}",
            device=device,
            kind=NEWER_FORMAT,
            next_action="use the newer hactl on this node, too",
        )
    payload = block[PAYLOAD_OFFSET : PAYLOAD_OFFSET + length]
    if length > PAYLOAD_BYTES_MAX or len(payload) < length:
        return _damaged(device, f"its length says {length} bytes")
    if hashlib.sha256(block[: _HEADER.size] + payload).digest() != block[_HEADER.size : PAYLOAD_OFFSET]:
        return _damaged(device, "its checksum does not match")
    try:
        return _from_json(payload)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return _damaged(device, f"its checksum is good, its content is not: {error}")


def newest(copies: Sequence[bytes | None], *, device: str = "label") -> FoundLabel | None:
    """The label of a device from its two blocks (None: that block cannot be read); None if both are blank.

    LabelError if a copy is of a newer format (that hactl wrote last) or if none is valid and one is damaged.
    """
    valid: list[Label | None] = []
    damage: list[LabelError] = []
    for block in copies:
        try:
            valid.append(_unreadable(device) if block is None else decode(block, device=device))
        except LabelError as error:
            if error.kind == NEWER_FORMAT:
                raise
            damage.append(error)
            valid.append(None)
    ranked = [(label.epoch, label.seq, slot) for slot, label in enumerate(valid) if label is not None]
    if not ranked:
        if damage:
            raise damage[0]
        return None
    slot = max(ranked)[2]
    label = valid[slot]
    assert label is not None
    return FoundLabel(label=label, slot=slot, copies=tuple(valid), damage=damage[0].what if damage else "")


def common_label(found: Mapping[str, FoundLabel | None], identity: Identity) -> Label:
    """The newest label of a set of devices (by WWID), once they are known to be one volume of ours, and all
    of it.

    LabelError: a blank device, another cluster's, another volume's, or a set that is not complete.
    """
    labels: list[Label] = []
    for wwid, each in found.items():
        if each is None:
            raise LabelError(
                "there is no label on it",
                device=wwid,
                kind=BLANK,
                next_action="add a volume with `hactl volume add`",
            )
        label = each.label
        if label.cluster_uuid != identity.cluster_uuid:
            raise LabelError(
                f'it belongs to cluster "{label.cluster_name}" ({label.cluster_uuid})',
                device=wwid,
                kind=WRONG_CLUSTER,
                next_action="check that this node should see that disk, and the configuration's cluster uuid",
            )
        if set(label.wwids) != set(found):
            raise _wrong_set(wwid, f"volume {label.volume} is on {_names(label.wwids)}, not on {_names(found)}")
        if labels and label.volume_uuid != labels[0].volume_uuid:
            raise _wrong_set(wwid, f"it belongs to volume {label.volume}, the one before to {labels[0].volume}")
        labels.append(label)
    return max(labels, key=lambda label: (label.epoch, label.seq))


def _wrong_set(wwid: str, what: str) -> LabelError:
    return LabelError(
        what, device=wwid, kind=WRONG_SET, next_action="make all disks of the volume visible to this node"
    )


def _names(wwids: Iterable[str]) -> str:
    return ", ".join(sorted(wwids))


def _from_json(payload: bytes) -> Label:
    members = json.loads(payload)
    if not isinstance(members, dict):
        raise ValueError("not a JSON object")
    known = {field.name: field.type for field in fields(Label)}
    unknown = sorted(set(members) - set(known))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    for name, kind in known.items():
        if name not in members:
            raise ValueError(f"no field {name!r}")
        members[name] = _typed(name, kind, members[name])
    return Label(**members)


def _typed(name: str, kind: object, value: object) -> object:
    if kind == "int" and type(value) is int:
        return value
    if kind == "str" and type(value) is str:
        return value
    if kind == "tuple[str, ...]" and type(value) is list and all(type(item) is str for item in value):
        return tuple(value)
    raise ValueError(f"field {name!r} is not of type {kind}")


def _unreadable(device: str) -> NoReturn:
    raise LabelError(
        "a copy of the label cannot be read",
        device=device,
        kind=UNREADABLE,
        next_action="check the device: the kernel log has the reason",
    )


def _damaged(device: str, how: str) -> NoReturn:
    raise LabelError(
        f"the label is damaged: {how}",
        device=device,
        kind=DAMAGED,
        next_action="if this device is to be a volume of this cluster, see docs/fencing.md, Damaged labels; "
        "otherwise leave it alone",
    )
