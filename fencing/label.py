"""The label: what a volume knows of itself, on its own disk.

Two copies, written in turn, so that a torn write costs one copy and never both. A new epoch is written to both:
losing either copy later cannot take the epoch back. docs/fencing.md has the format byte by byte.

A volume on several LUNs has a label on each. All of them name the whole set (`wwids`, in WWID order); each says which
member it is, so that a LUN that is a copy of another one, or that got another identity, or that lost some of its
bytes, is found out before anything is written to any of them.

Format 1 knows no `member`, `sizes`, `stack` and `risk`. A label without them is written as format 1, so that an older
hactl on another node can still read it; they come with the first label that is made with them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NoReturn

from fencing.errors import LabelError
from fencing.model import EPOCH_MAX, Identity

BLOCK_BYTES = 4096
LABEL_BYTES_MAX = 16384
"""What a copy may take: room for the names of 128 LUNs. Format 1 has one block."""
COPIES = 2
MEMBERS_MAX = 128
MAGIC = b"HACTL-LABEL\r\n\x1a\n\x00"
FORMAT = 2

# magic, format version, bytes of JSON, reserved; then the checksum of this header and the JSON
_HEADER = struct.Struct("<16sIIQ")
_SUM_BYTES = 32
PAYLOAD_OFFSET = _HEADER.size + _SUM_BYTES
PAYLOAD_BYTES_MAX = {1: BLOCK_BYTES - PAYLOAD_OFFSET, 2: LABEL_BYTES_MAX - PAYLOAD_OFFSET}
_SINCE_2 = ("member", "sizes", "stack", "risk")

NO_MEMBER = -1
DAMAGED = "damaged"
NEWER_FORMAT = "newer format"
BLANK = "blank"
WRONG_CLUSTER = "wrong cluster"
WRONG_SET = "wrong set"
TWO_OWNERS = "two owners"
COPIED = "copied"
SHRANK = "shrank"
TOO_LONG = "too long"
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One volume. `wanted` is "started" or "stopped"; `owner` a node's name or ""; empty `nodes` means all
    nodes.

    `seq` grows with every write, `epoch` with every new owner. Times in seconds. `address` is CIDR.

    `wwids` names all LUNs of the volume, `sizes` how many bytes each had when it was made (empty: not recorded),
    `member` which of them carries this label (NO_MEMBER: not recorded). `stack` says what joins them (`fs/stack.py`);
    "" is one LUN without anything in between. `risk` names what its storage was known not to keep when it was made, and
    somebody accepted ("" = nothing).
    """

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
    member: int = NO_MEMBER
    sizes: tuple[int, ...] = ()
    stack: str = ""
    risk: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.epoch <= EPOCH_MAX:
            raise ValueError(f"epoch {self.epoch} is outside 0..{EPOCH_MAX}")
        if self.wanted not in ("started", "stopped"):
            raise ValueError(f'wanted is "{self.wanted}", not "started" or "stopped"')
        if self.seq < 0 or self.lease_s < 1 or self.grace_s < 1:
            raise ValueError("seq, lease_s or grace_s is too small")
        if not self.volume or not self.volume_uuid or not self.wwids:
            raise ValueError("volume, volume_uuid and wwids must not be empty")
        if not 1 <= len(self.wwids) <= MEMBERS_MAX or len(set(self.wwids)) < len(self.wwids):
            raise ValueError(f"a volume has 1 to {MEMBERS_MAX} LUNs, each once")
        if not NO_MEMBER <= self.member < len(self.wwids):
            raise ValueError(f"member {self.member} of {len(self.wwids)} LUNs")
        if len(self.sizes) not in (0, len(self.wwids)) or any(size < 1 for size in self.sizes):
            raise ValueError("sizes must be one for each LUN, each positive, or none")

    @property
    def format(self) -> int:
        """The lowest version that can say all of this."""
        return 2 if self.sizes or self.stack or self.risk or self.member != NO_MEMBER else 1

    def on(self, wwid: str) -> Label:
        """The same label as that LUN of the set carries it. ValueError if it is none of the set."""
        member = self.wwids.index(wwid)
        return self if self.format == 1 else replace(self, member=member)


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
    """One copy, whole blocks. LabelError (too long) if the lists do not fit."""
    version = label.format
    members = {name: getattr(label, name) for name in _fields_of(version)} | {"format": version}
    payload = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if len(payload) > PAYLOAD_BYTES_MAX[version]:
        raise LabelError(
            f"the label would have {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX[version]} fit",
            device=f"volume {label.volume}",
            kind=TOO_LONG,
            next_action="name fewer clients, for example one network instead of its hosts",
        )
    header = _HEADER.pack(MAGIC, version, len(payload), 0)
    copy = header + hashlib.sha256(header + payload).digest() + payload
    return copy.ljust(_whole_blocks(len(copy)), b"\0")


def bytes_needed(head: bytes) -> int:
    """How much of a copy must be read to decode it, from its first block."""
    if not head.startswith(MAGIC) or len(head) < PAYLOAD_OFFSET:
        return BLOCK_BYTES
    _, version, length, _ = _HEADER.unpack_from(head)
    return _whole_blocks(PAYLOAD_OFFSET + min(length, PAYLOAD_BYTES_MAX.get(version, 0)))


def _whole_blocks(count: int) -> int:
    return -(-count // BLOCK_BYTES) * BLOCK_BYTES


def decode(block: bytes, *, device: str = "label") -> Label | None:
    """One copy; None if no label was ever written there. LabelError: damaged, or of a newer format."""
    if not block.startswith(MAGIC):
        return None if not any(block[: len(MAGIC)]) else _damaged(device, "it does not begin with the label's magic")
    if len(block) < PAYLOAD_OFFSET:
        return _damaged(device, f"only {len(block)} bytes could be read")
    _, version, length, _ = _HEADER.unpack_from(block)
    if version < 1:
        _damaged(device, "it has format 0")
    if version > FORMAT:
        raise LabelError(
            f"the label has format {version}, this hactl knows up to {FORMAT}",
            device=device,
            kind=NEWER_FORMAT,
            next_action="use the newer hactl on this node, too",
        )
    payload = block[PAYLOAD_OFFSET : PAYLOAD_OFFSET + length]
    if length > PAYLOAD_BYTES_MAX[version] or len(payload) < length:
        return _damaged(device, f"its length says {length} bytes")
    if hashlib.sha256(block[: _HEADER.size] + payload).digest() != block[_HEADER.size : PAYLOAD_OFFSET]:
        return _damaged(device, "its checksum does not match")
    try:
        return _from_json(payload, version)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return _damaged(device, f"its checksum is good, its content is not: {error}")


def newest(copies: Sequence[bytes | None], *, device: str = "label") -> FoundLabel | None:
    """The label of a device from its two blocks (None: that block cannot be read); None if both are blank.

    LabelError if a copy is of a newer format (that hactl wrote last), if the copies are of two clusters or volumes, or
    if none is valid and one is damaged.
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
    _check_one_owner([label for label in valid if label is not None], device)
    slot = max(ranked)[2]
    label = valid[slot]
    assert label is not None
    return FoundLabel(label=label, slot=slot, copies=tuple(valid), damage=damage[0].what if damage else "")


def _check_one_owner(valid: Sequence[Label], device: str) -> None:
    """Whoever formats a LUN blanks both copies first; so copies that differ in this were written by two at a time."""
    named = {(label.cluster_uuid, label.volume_uuid): label for label in valid}
    if len(named) > 1:
        said = " and ".join(
            f'volume {label.volume} ({label.volume_uuid}) of cluster "{label.cluster_name}" ({label.cluster_uuid})'
            for label in named.values()
        )
        raise LabelError(
            f"two claim it: its copies of the label are of {said}",
            device=device,
            kind=TWO_OWNERS,
            next_action="find out to whom it belongs, and let the other one let go; nothing is written to it before",
        )


def check_member(label: Label, wwid: str, size_bytes: int = 0) -> None:
    """Is this label on the LUN for which it was written, and is that still all there? `size_bytes` 0: not known.

    LabelError otherwise."""
    if wwid not in label.wwids or label.member not in (NO_MEMBER, label.wwids.index(wwid)):
        meant = label.wwids[label.member] if label.member != NO_MEMBER else _names(label.wwids)
        raise LabelError(
            f"it has the label of volume {label.volume}, written for {meant}, but is {wwid}: a copy (snapshot, clone), "
            "or the LUN got another identity",
            device=wwid,
            kind=COPIED,
            next_action="take the copy away from the nodes, or give the LUN its identity back; it is not used",
        )
    made = label.sizes[label.wwids.index(wwid)] if label.sizes else 0
    if size_bytes and size_bytes < made:
        raise LabelError(
            f"it has {size_bytes} bytes; when volume {label.volume} was made on it, it had {made}: it shrank",
            device=wwid,
            kind=SHRANK,
            next_action="make the LUN as large as it was; what was beyond its end is missing until then",
        )


def common_label(
    found: Mapping[str, FoundLabel | None], identity: Identity, sizes: Mapping[str, int] | None = None
) -> Label:
    """The newest label of a set of devices (by WWID), once they are known to be one volume of ours, and all
    of it. `sizes`: their bytes, where known.

    LabelError: a blank device, another cluster's, another volume's, a copy, one that shrank, or a set that is not
    complete.
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
        check_member(label, wwid, (sizes or {}).get(wwid, 0))
        _check_set(label, wwid, found)
        if labels and label.volume_uuid != labels[0].volume_uuid:
            raise _wrong_set(wwid, f"it belongs to volume {label.volume}, the one before to {labels[0].volume}")
        if labels and (label.wwids, label.stack) != (labels[0].wwids, labels[0].stack):
            raise _wrong_set(wwid, f"its label tells of volume {label.volume} otherwise than the one before")
        labels.append(label)
    return max(labels, key=lambda label: (label.epoch, label.seq))


def _check_set(label: Label, wwid: str, found: Iterable[str]) -> None:
    missing, more = set(label.wwids) - set(found), set(found) - set(label.wwids)
    if missing:
        count = f"{len(missing)} of its {len(label.wwids)} LUNs"
        raise _wrong_set(wwid, f"volume {label.volume} is not complete, {count} are missing: {_names(missing)}")
    if more:
        raise _wrong_set(wwid, f"volume {label.volume} is on {_names(label.wwids)}, not on {_names(more)}")


def _wrong_set(wwid: str, what: str) -> LabelError:
    return LabelError(
        what, device=wwid, kind=WRONG_SET, next_action="make all disks of the volume visible to this node"
    )


def _names(wwids: Iterable[str]) -> str:
    return ", ".join(sorted(wwids))


def _fields_of(version: int) -> dict[str, object]:
    """Name -> type of each field, without `format`."""
    return {each.name: each.type for each in fields(Label) if version > 1 or each.name not in _SINCE_2}


def _from_json(payload: bytes, version: int) -> Label:
    members = json.loads(payload)
    if not isinstance(members, dict):
        raise ValueError("not a JSON object")
    known = _fields_of(version)
    if members.pop("format", None) != version:
        raise ValueError("no field 'format' that repeats the header's")
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
    for items, of in (("tuple[str, ...]", str), ("tuple[int, ...]", int)):
        if kind == items and type(value) is list and all(type(item) is of for item in value):
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
