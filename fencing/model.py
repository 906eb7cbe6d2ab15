"""The nouns of fencing: keys, registrants, and what one device says of its reservation.

A key is 64 bits: | cluster tag 20 | node 12 | epoch 32 |. The tag tells our keys from those of other clusters
and tools, the node tells whom we would fence, the epoch makes every acquisition's key a new one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

TAG_BITS = 20
NODE_BITS = 12
EPOCH_BITS = 32

TAG_MAX = (1 << TAG_BITS) - 1
NODE_MAX = (1 << NODE_BITS) - 1
EPOCH_MAX = (1 << EPOCH_BITS) - 1
KEY_MAX = (1 << 64) - 1

PROBE_EPOCH = 0
"""Never given to an owner: keys of this epoch are for probes and for the scratch registrations of `check`."""


class PrType(IntEnum):
    """Types of a persistent reservation, with the codes of SPC-4 table 155."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8

    @property
    def all_registrants(self) -> bool:
        """Every registrant holds the reservation together."""
        return self >= PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS

    @property
    def registrants_write(self) -> bool:
        """Registrants that do not hold the reservation may write, too."""
        return self >= PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY

    @property
    def others_read(self) -> bool:
        """Nexuses without a registration may read."""
        return self in (
            PrType.WRITE_EXCLUSIVE,
            PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
            PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        )


OUR_TYPE = PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Key:
    """One acquisition by one node: the value that the device compares."""

    cluster_tag: int
    node: int
    epoch: int

    def __post_init__(self) -> None:
        for name, value, most in (
            ("cluster_tag", self.cluster_tag, TAG_MAX),
            ("node", self.node, NODE_MAX),
            ("epoch", self.epoch, EPOCH_MAX),
        ):
            if not 0 <= value <= most:
                raise ValueError(f"{name} {value} is outside 0..{most}")

    @property
    def value(self) -> int:
        return self.cluster_tag << (NODE_BITS + EPOCH_BITS) | self.node << EPOCH_BITS | self.epoch

    @classmethod
    def parse(cls, value: int) -> Key:
        """Split any 64-bit key; whether it is one of ours is `belongs_to`'s question. ValueError beyond 64
        bits.
        """
        if not 0 <= value <= KEY_MAX:
            raise ValueError(f"{value:#x} is not a 64-bit key")
        return cls(
            cluster_tag=value >> (NODE_BITS + EPOCH_BITS),
            node=value >> EPOCH_BITS & NODE_MAX,
            epoch=value & EPOCH_MAX,
        )

    def belongs_to(self, cluster_tag: int) -> bool:
        """Was this key made by a node of that cluster (nodes are numbered from 1)?"""
        return self.cluster_tag == cluster_tag and self.node > 0

    def __str__(self) -> str:
        return show_key(self.value)


def show_key(value: int) -> str:
    """The one way in which keys are printed."""
    return f"0x{value:016x}"


def cluster_tag(uuid: str) -> int:
    """20 bits of the cluster's UUID, never 0 (small keys of other tools have a tag of 0)."""
    digest = hashlib.sha256(uuid.strip().lower().encode()).digest()
    return int.from_bytes(digest[:3], "big") >> 4 or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Registrant:
    """One I_T nexus that registered a key; with NVMe one host, whatever its paths.

    `nexus` is the relative target port (2 bytes, big-endian) and the initiator's TransportID (SPC-4 7.6.4), or the
    NVMe host identifier (16 bytes), as the device gives them; empty where the device only lists keys.
    """

    key: int
    holder: bool
    nexus: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationState:
    """What one device says: its counter of registration changes, its registrants, the type of the
    reservation.

    `type` is None while there is no reservation. With an all-registrants type every registrant is a holder.
    """

    generation: int
    registrants: tuple[Registrant, ...]
    type: PrType | None

    def __post_init__(self) -> None:
        if self.type is None and any(registrant.holder for registrant in self.registrants):
            raise ValueError("a holder without a reservation")

    @property
    def keys(self) -> tuple[int, ...]:
        """Registered keys in ascending order, each once however many nexuses share it."""
        return tuple(sorted({registrant.key for registrant in self.registrants}))

    @property
    def holders(self) -> tuple[int, ...]:
        """Keys that hold the reservation, ascending, each once; one at most but for all-registrants types."""
        return tuple(sorted({registrant.key for registrant in self.registrants if registrant.holder}))

    def exclusive_to(self, key: int) -> bool:
        """Is the device written by this key's nexuses and by nobody else?"""
        return self.type is OUR_TYPE and self.keys == (key,) and self.holders == (key,)

    def describe(self) -> str:
        """One line for logs: type, generation, every key, `*` behind holders."""
        held = self.holders
        keys = " ".join(show_key(key) + ("*" if key in held else "") for key in self.keys) or "no keys"
        kind = "no reservation" if self.type is None else self.type.name
        return f"{kind}, generation {self.generation}, {keys}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a device says it can do (SCSI: REPORT CAPABILITIES, NVMe: RESCAP). `types` is empty where it does not say.

    `unreadable` is why registrations cannot be read back through this port ("" = they can): then nothing may be
    owned through it.
    """

    persists: bool
    persistence_active: bool
    types: frozenset[PrType]
    unreadable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who acquires: a cluster and one of its nodes (number 1..4095, permanent)."""

    cluster_uuid: str
    node: int
    node_name: str

    def __post_init__(self) -> None:
        if not 1 <= self.node <= NODE_MAX:
            raise ValueError(f"node number {self.node} is outside 1..{NODE_MAX}")

    @property
    def tag(self) -> int:
        return cluster_tag(self.cluster_uuid)

    def key(self, epoch: int) -> Key:
        return Key(cluster_tag=self.tag, node=self.node, epoch=epoch)
