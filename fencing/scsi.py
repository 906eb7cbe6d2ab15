"""PERSISTENT RESERVE IN and OUT: bytes <-> model (SPC-4 6.15, 6.16).

Every parser takes the buffer as the device filled it, with its own lengths inside, which are not to be
trusted: ValueError names what does not fit. `needed` says how long a buffer the device would have wanted.
"""

from __future__ import annotations

import struct

from fencing.model import KEY_MAX, Capabilities, PrType, Registrant, ReservationState

IN_READ_KEYS = 0x00
IN_READ_RESERVATION = 0x01
IN_REPORT_CAPABILITIES = 0x02
IN_READ_FULL_STATUS = 0x03

OUT_REGISTER = 0x00
OUT_RESERVE = 0x01
OUT_RELEASE = 0x02
OUT_CLEAR = 0x03
OUT_PREEMPT = 0x04
OUT_PREEMPT_AND_ABORT = 0x05
OUT_REGISTER_AND_IGNORE_EXISTING_KEY = 0x06

SCOPE_LU = 0
LENGTH_MAX = 0xFFFF
"""The allocation length of PERSISTENT RESERVE IN has 16 bits."""
DESCRIPTOR_BYTES_MAX = 24 + 4 + 244
"""READ FULL STATUS: a descriptor with the longest iSCSI TransportID (a name of 223 bytes, ISID, padding)."""

_IN, _OUT = 0x5E, 0x5F
_IN_CDB = struct.Struct(">BB5xHx")
_OUT_CDB = struct.Struct(">BBB2xIx")
_LIST_HEADER = struct.Struct(">II")
_OUT_PARAMETERS = struct.Struct(">QQ4xB3x")
_APTPL = 0x01
_FULL_STATUS = struct.Struct(">Q4xBB4xHI")
_RESERVATION = struct.Struct(">Q4xxB2x")
_CAPABILITIES = struct.Struct(">HBBH2x")

# bits of the type mask of REPORT CAPABILITIES, both bytes read as one big-endian number
_TYPE_BITS = {
    1 << 15: PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    1 << 14: PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    1 << 13: PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    1 << 11: PrType.EXCLUSIVE_ACCESS,
    1 << 9: PrType.WRITE_EXCLUSIVE,
    1 << 0: PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
}


def in_cdb(action: int, length: int) -> bytes:
    """PERSISTENT RESERVE IN (SPC-4 6.15): room for `length` bytes."""
    return _IN_CDB.pack(_IN, action, length)


def out_cdb(action: int, type: PrType, length: int) -> bytes:
    """PERSISTENT RESERVE OUT (SPC-4 6.16), of the whole unit, with a parameter list of `length` bytes."""
    return _OUT_CDB.pack(_OUT, action, SCOPE_LU << 4 | type, length)


def out_parameters(key: int, service_action_key: int, *, aptpl: bool = False) -> bytes:
    """The 24 bytes of PERSISTENT RESERVE OUT. `aptpl` is for the two REGISTER actions only (else invalid
    field).
    """
    for value in (key, service_action_key):
        if not 0 <= value <= KEY_MAX:
            raise ValueError(f"{value:#x} is not a 64-bit key")
    return _OUT_PARAMETERS.pack(key, service_action_key, _APTPL if aptpl else 0)


def needed(answer: bytes) -> int:
    """How many bytes the complete answer to READ KEYS, READ RESERVATION or READ FULL STATUS has."""
    return _LIST_HEADER.size + _list_header(answer)[1]


def parse_full_status(answer: bytes) -> ReservationState:
    """READ FULL STATUS: registrants with their nexus, holder and type, all of one moment."""
    generation, body = _list_body(answer)
    registrants: list[Registrant] = []
    types: set[PrType] = set()
    while body:
        if len(body) < _FULL_STATUS.size:
            raise ValueError(f"{len(body)} bytes left for a descriptor of at least {_FULL_STATUS.size}")
        key, flags, scope_type, port, length = _FULL_STATUS.unpack_from(body)
        if key == 0:
            raise ValueError("a registrant with key 0")
        transport_id = body[_FULL_STATUS.size : _FULL_STATUS.size + length]
        if len(transport_id) < length:
            raise ValueError(f"a TransportID of {length} bytes where {len(transport_id)} are left")
        holder = bool(flags & 1)
        if holder:
            types.add(_lu_type(scope_type))
        nexus = port.to_bytes(2, "big") + transport_id
        registrants.append(Registrant(key=key, holder=holder, nexus=nexus))
        body = body[_FULL_STATUS.size + length :]
    if len(types) > 1:
        raise ValueError("two holders with different types")
    return ReservationState(generation=generation, registrants=tuple(registrants), type=types.pop() if types else None)


def parse_keys(answer: bytes) -> tuple[int, tuple[int, ...]]:
    """READ KEYS: generation, and one key per registered nexus."""
    generation, body = _list_body(answer)
    if len(body) % 8:
        raise ValueError(f"a list of keys of {len(body)} bytes")
    keys = struct.unpack(f">{len(body) // 8}Q", body)
    if 0 in keys:
        raise ValueError("a registrant with key 0")
    return generation, keys


def parse_reservation(answer: bytes) -> tuple[int, tuple[int, PrType] | None]:
    """READ RESERVATION: generation, and (holder's key, type) or None. All-registrants types give key 0."""
    generation, body = _list_body(answer)
    if not body:
        return generation, None
    if len(body) != _RESERVATION.size:
        raise ValueError(f"a reservation of {len(body)} bytes")
    key, scope_type = _RESERVATION.unpack(body)
    return generation, (key, _lu_type(scope_type))


def combine(generation: int, keys: tuple[int, ...], reservation: tuple[int, PrType] | None) -> ReservationState:
    """The same model from READ KEYS and READ RESERVATION of one generation; nexuses stay unknown."""
    if reservation is None:
        registrants = tuple(Registrant(key=key, holder=False, nexus=b"") for key in keys)
        return ReservationState(generation=generation, registrants=registrants, type=None)
    holder, kind = reservation
    if not kind.all_registrants and holder not in keys:
        raise ValueError("the reservation's holder is not among the registered keys")
    registrants = tuple(Registrant(key=key, holder=kind.all_registrants or key == holder, nexus=b"") for key in keys)
    return ReservationState(generation=generation, registrants=registrants, type=kind)


def parse_capabilities(answer: bytes) -> Capabilities:
    """REPORT CAPABILITIES. Without the type mask valid bit, `types` is empty: the device does not say."""
    if len(answer) < _CAPABILITIES.size:
        raise ValueError(f"capabilities of {len(answer)} bytes")
    length, can, does, mask = _CAPABILITIES.unpack_from(answer)
    if length < _CAPABILITIES.size:
        raise ValueError(f"capabilities that say to have {length} bytes")
    types = frozenset(kind for bit, kind in _TYPE_BITS.items() if mask & bit) if does & 0x80 else frozenset()
    return Capabilities(persists=bool(can & 0x01), persistence_active=bool(does & 0x01), types=types)


def _list_header(answer: bytes) -> tuple[int, int]:
    if len(answer) < _LIST_HEADER.size:
        raise ValueError(f"an answer of {len(answer)} bytes")
    generation, length = _LIST_HEADER.unpack_from(answer)
    return generation, length


def _list_body(answer: bytes) -> tuple[int, bytes]:
    generation, length = _list_header(answer)
    body = answer[_LIST_HEADER.size : _LIST_HEADER.size + length]
    if len(body) < length:
        raise ValueError(f"an answer of {len(answer)} bytes that says to have {length} more than its header")
    return generation, body


def _lu_type(scope_type: int) -> PrType:
    if scope_type >> 4 != SCOPE_LU:
        raise ValueError(f"a reservation of scope {scope_type >> 4}, not of the whole unit")
    try:
        return PrType(scope_type & 0x0F)
    except ValueError:
        raise ValueError(f"a reservation of type {scope_type & 0x0F}, which is not defined") from None
