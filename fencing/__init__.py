"""Fencing: the disk decides who may write. Pure names only; the edges are in modules with a leading
underscore.
"""

from fencing.acquisition import acquire, fence, stamp
from fencing.errors import (
    DeviceBusy,
    FencingError,
    ForeignOwner,
    FormatFailed,
    FormatRefused,
    Garbled,
    InvariantBroken,
    LabelError,
    LostRace,
    NoEffect,
    NotDelivered,
    OutcomeUnknown,
    PortError,
    Refused,
    SharedNexus,
)
from fencing.handle import Good, Handle, Released, adopt, release, update_label, verify
from fencing.label import FoundLabel, Label
from fencing.model import (
    OUR_TYPE,
    Capabilities,
    Identity,
    Key,
    PrType,
    Registrant,
    ReservationState,
    cluster_tag,
    show_key,
)
from fencing.ownership import Lost
from fencing.port import LabelStore, Lun, ReservationPort
from fencing.timing import Timing
from fencing.verdict import CheckResult, check_device, probe_pr_out

__all__ = [
    "OUR_TYPE",
    "Capabilities",
    "CheckResult",
    "DeviceBusy",
    "FencingError",
    "ForeignOwner",
    "FormatFailed",
    "FormatRefused",
    "FoundLabel",
    "Garbled",
    "Good",
    "Handle",
    "Identity",
    "InvariantBroken",
    "Key",
    "Label",
    "LabelError",
    "LabelStore",
    "Lost",
    "LostRace",
    "Lun",
    "NoEffect",
    "NotDelivered",
    "OutcomeUnknown",
    "PortError",
    "PrType",
    "Refused",
    "Registrant",
    "Released",
    "ReservationPort",
    "ReservationState",
    "SharedNexus",
    "Timing",
    "acquire",
    "adopt",
    "check_device",
    "cluster_tag",
    "fence",
    "probe_pr_out",
    "release",
    "show_key",
    "stamp",
    "update_label",
    "verify",
]
