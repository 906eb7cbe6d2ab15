"""NVMe reservations: bytes <-> model (NVM Express Base Specification 2.0, 7.2 to 7.6, and figure 93).

The data are little-endian. Types are numbered otherwise than SCSI's; only here. A report comes as the device filled
the buffer, with its own count inside, which is not to be trusted: ValueError names what does not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from fencing.errors import CONFLICT, NotDelivered, OutcomeUnknown, PortError, Refused
from fencing.model import KEY_MAX, Capabilities, PrType, Registrant, ReservationState

TYPES = {
    1: PrType.WRITE_EXCLUSIVE,
    2: PrType.EXCLUSIVE_ACCESS,
    3: PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    4: PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    5: PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    6: PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
}
"""The reservation types of NVMe, as SCSI calls them."""
_CODES = {kind: code for code, kind in TYPES.items()}

HOST_ID_BYTES = 16
REPORT_BYTES_MAX = 1 << 20
"""Room for some 16,000 registrants; the count has 16 bits, so a device could ask for four times as much."""


class Opcode(IntEnum):
    """Commands of the I/O queue, and two of the admin queue."""

    REGISTER = 0x0D
    REPORT = 0x0E
    ACQUIRE = 0x11
    RELEASE = 0x15
    ADMIN_GET_LOG_PAGE = 0x02
    ADMIN_IDENTIFY = 0x06


class RegisterAction(IntEnum):
    REGISTER = 0
    UNREGISTER = 1
    REPLACE = 2


class AcquireAction(IntEnum):
    ACQUIRE = 0
    PREEMPT = 1
    PREEMPT_AND_ABORT = 2


class ReleaseAction(IntEnum):
    RELEASE = 0
    CLEAR = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. `data` is what it takes along; `reads` how many bytes it brings back, 0 if none."""

    opcode: Opcode
    cdw10: int
    cdw11: int = 0
    data: bytes = b""
    reads: int = 0


_IGNORE_KEY = 1 << 3
_PERSIST = 3 << 30
_EXTENDED = 1
_PASSTHROUGH = struct.Struct("=BBHIIIQQII6III")
PASSTHROUGH_BYTES = _PASSTHROUGH.size
_HEADER = struct.Struct("<IBHxxB")
_HEADER_BYTES = {True: 64, False: 24}
_ENTRY_BYTES = {True: 64, False: 24}
_NOTIFICATION = struct.Struct("<QBB2xI")

LOG_RESERVATION = 0x80
NOTIFICATION_BYTES = 64
IDENTIFY_BYTES = 4096
_RESCAP_BYTE = 31
_RESCAP_PERSISTS = 1 << 0
_RESCAP_TYPES = {
    1 << 1: PrType.WRITE_EXCLUSIVE,
    1 << 2: PrType.EXCLUSIVE_ACCESS,
    1 << 3: PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    1 << 4: PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    1 << 5: PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    1 << 6: PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
}


def register(action: RegisterAction, current: int, new: int, *, ignore_key: bool = False) -> Command:
    """REGISTER, REPLACE or UNREGISTER; always asks that it persist through power loss (CPTPL), as our SCSI does."""
    cdw10 = action | (_IGNORE_KEY if ignore_key else 0) | _PERSIST
    return Command(opcode=Opcode.REGISTER, cdw10=cdw10, data=_keys(current, new))


def acquire(action: AcquireAction, key: int, victim: int, kind: PrType) -> Command:
    """ACQUIRE, PREEMPT or PREEMPT AND ABORT. Victim 0 is for ACQUIRE, and for all-registrants types."""
    return Command(opcode=Opcode.ACQUIRE, cdw10=action | _CODES[kind] << 8, data=_keys(key, victim))


def release(action: ReleaseAction, key: int, kind: PrType) -> Command:
    """RELEASE, or CLEAR (which has no use for the type)."""
    code = _CODES[kind] if action is ReleaseAction.RELEASE else 0
    return Command(opcode=Opcode.RELEASE, cdw10=action | code << 8, data=_keys(key))


def report(length: int, *, extended: bool = True) -> Command:
    """REPORT into `length` bytes, a multiple of 4. `extended`: with host identifiers of 16 bytes, not 8."""
    if length % 4 or length < _HEADER_BYTES[True]:
        raise ValueError(f"a report of {length} bytes")
    return Command(opcode=Opcode.REPORT, cdw10=length // 4 - 1, cdw11=_EXTENDED if extended else 0, reads=length)


def identify_namespace() -> Command:
    return Command(opcode=Opcode.ADMIN_IDENTIFY, cdw10=0, reads=IDENTIFY_BYTES)


def notification_log() -> Command:
    """The oldest notification that was not read yet; reading takes it off the device's list."""
    cdw10 = (NOTIFICATION_BYTES // 4 - 1) << 16 | LOG_RESERVATION
    return Command(opcode=Opcode.ADMIN_GET_LOG_PAGE, cdw10=cdw10, reads=NOTIFICATION_BYTES)


def passthrough(command: Command, *, nsid: int, address: int, timeout_ms: int) -> bytes:
    """`struct nvme_passthru_cmd` (linux/nvme_ioctl.h), 72 bytes, native. `address`: a buffer as long as the data."""
    length = command.reads or len(command.data)
    return _PASSTHROUGH.pack(
        *(command.opcode, 0, 0, nsid, 0, 0, 0, address, 0, length),
        *(command.cdw10, command.cdw11, 0, 0, 0, 0, timeout_ms, 0),
    )


def needed(answer: bytes, *, extended: bool = True) -> int:
    """How many bytes the complete report has. nvmet counts all registrants, also those that found no room."""
    _, _, count, _ = _header(answer)
    return _HEADER_BYTES[extended] + count * _ENTRY_BYTES[extended]


def parse_report(answer: bytes, *, extended: bool = True) -> ReservationState:
    """REPORT: registrants by host identifier, holder and type, all of one moment.

    A host that is connected through several controllers has one entry for each of them; here they are one registrant.
    Without `extended`, host identifiers have 8 bytes. A key of 0 is possible (the kernel's PR_REGISTER leaves one
    where it should unregister), and is nobody's of ours.
    """
    generation, code, count, _ = _header(answer)
    if code and code not in TYPES:
        raise ValueError(f"a reservation of type {code}, which is not defined")
    kind = TYPES[code] if code else None
    if needed(answer, extended=extended) > len(answer):
        raise ValueError(f"a report of {len(answer)} bytes that says to have {count} registrants")
    registrants: dict[bytes, Registrant] = {}
    for number in range(count):
        entry = _entry(answer, number, extended)
        known = registrants.setdefault(entry.nexus, entry)
        if known != entry:
            raise ValueError(f"host {entry.nexus.hex()} with two keys, or holding and not holding")
    found = tuple(registrants[nexus] for nexus in sorted(registrants))
    holders = sum(entry.holder for entry in found)
    if kind is not None and not kind.all_registrants and holders > 1:
        raise ValueError(f"{holders} holders of a reservation of type {code}")
    return ReservationState(generation=generation, registrants=found, type=kind)


def persists(answer: bytes) -> bool:
    """Does a report say that what is registered now will survive a power loss (PTPLS)?"""
    return bool(_header(answer)[3])


def parse_capabilities(identify: bytes, *, active: bool) -> Capabilities:
    """RESCAP of Identify Namespace. ValueError if the namespace has no reservations at all."""
    if len(identify) <= _RESCAP_BYTE:
        raise ValueError(f"a description of {len(identify)} bytes")
    bits = identify[_RESCAP_BYTE]
    types = frozenset(kind for bit, kind in _RESCAP_TYPES.items() if bits & bit)
    if not types:
        raise ValueError("this namespace has no reservations (RESCAP is 0)")
    return Capabilities(persists=bool(bits & _RESCAP_PERSISTS), persistence_active=active, types=types)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One entry of the log: what happened to this host's reservation on which namespace, and how many more wait."""

    count: int
    what: str
    more: int
    nsid: int


_NOTIFIED = {1: "registration preempted", 2: "reservation released", 3: "reservation preempted"}


def parse_notification(answer: bytes) -> Notification | None:
    """None: nothing (more) was noted."""
    if len(answer) < _NOTIFICATION.size:
        raise ValueError(f"a notification of {len(answer)} bytes")
    count, kind, more, nsid = _NOTIFICATION.unpack_from(answer)
    if kind == 0:
        return None
    what = _NOTIFIED.get(kind)
    if what is None:
        raise ValueError(f"a notification of type {kind}, which is not defined")
    return Notification(count=count, what=what, more=more, nsid=nsid)


def must_verify(properties: Mapping[str, str]) -> str:
    """Why a uevent of SUBSYSTEM=nvme is a reason to look at the registrations now; "" if it is none.

    A reservation notice is asynchronous event type 6 (I/O command specific) with log page 0x80. It is lost while the
    host is disconnected, and a target that lost its power forgot everything: so a new connection is a reason, too.
    """
    if properties.get("NVME_EVENT") == "connected":
        return "connected"
    try:
        event = int(properties.get("NVME_AEN", "0"), 16)
    except ValueError:
        return ""
    return "reservation notice" if event & 0x7 == 6 and event >> 16 & 0xFF == LOG_RESERVATION else ""


# Status codes (type and code: 11 bits; figure 93), and what each says of a command that changes something.
# Everything not listed is unknown. So are 0x370 and 0x371, which Linux makes up itself for a command that it could not
# send or gave up (NVME_SC_HOST_PATH_ERROR, NVME_SC_HOST_ABORTED_CMD): nvme-tcp gives the first also to a command that
# went out in part.
_STATUS_MASK = 0x7FF
OTHER_HOST_ID = "host identifier of another length"
_STATUS: dict[int, tuple[str, type[PortError]]] = {
    0x001: ("invalid command operation code", Refused),
    0x002: ("illegal request", Refused),
    0x006: ("internal error", OutcomeUnknown),
    0x007: ("aborted command", OutcomeUnknown),
    0x008: ("aborted command", OutcomeUnknown),
    0x00B: ("invalid namespace", Refused),
    0x018: (OTHER_HOST_ID, Refused),
    0x020: ("data protect", Refused),
    0x082: ("not ready", OutcomeUnknown),
    0x083: (CONFLICT, Refused),
    0x301: ("no access through this path (persistent loss)", NotDelivered),
    0x302: ("no access through this path", NotDelivered),
    0x303: ("no access through this path for now", NotDelivered),
}


def status_meaning(status: int) -> tuple[str, type[PortError]]:
    """What a positive return value of a passthrough ioctl says: words, and the class of the error."""
    code = status & _STATUS_MASK
    return _STATUS.get(code, (f"NVMe status 0x{code:03x}", OutcomeUnknown))


def _keys(*keys: int) -> bytes:
    for key in keys:
        if not 0 <= key <= KEY_MAX:
            raise ValueError(f"{key:#x} is not a 64-bit key")
    return struct.pack(f"<{len(keys)}Q", *keys)


def _header(answer: bytes) -> tuple[int, int, int, int]:
    """Generation, type, count, PTPLS."""
    if len(answer) < _HEADER_BYTES[False]:
        raise ValueError(f"a report of {len(answer)} bytes")
    generation, kind, count, ptpls = _HEADER.unpack_from(answer)
    return generation, kind, count, ptpls


def _entry(answer: bytes, number: int, extended: bool) -> Registrant:
    size = _ENTRY_BYTES[extended]
    entry = answer[_HEADER_BYTES[extended] + number * size :][:size]
    holder = bool(entry[2] & 1)
    if extended:
        key = int.from_bytes(entry[8:16], "little")
        host = entry[16 : 16 + HOST_ID_BYTES]
    else:
        host, key = entry[8:16], int.from_bytes(entry[16:24], "little")
    return Registrant(key=key, holder=holder, nexus=host)
