"""The reservation port over libsgutils2, by ctypes: SCSI devices (`/dev/sdX`, `/dev/sgN`), one nexus each.

The descriptor is opened read-only and kept: opening a disk for writing makes udev scan it again, with its
partitions gone for a moment (ClusterLabs/fence-agents#284), and every open is a chance to meet a device that
just went.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import partial

from fencing import scsi
from fencing._sgpt import OS_ERRORS, TIMEOUT, TRANSPORT_ERROR, Commands, SgCommands
from fencing.deviceerrors import DeviceErrors
from fencing.errors import CONFLICT, NotDelivered, OutcomeUnknown, PortError, Refused
from fencing.model import Capabilities, PrType, ReservationState

ATTENTIONS_MAX = 3
"""UNIT ATTENTIONs in a row for one command (LIO reports one, arrays queue a few); the command did not run
each time.
"""

READS_MAX = 8
"""So often are keys and reservation read again because registrations changed in between."""

LIST_BYTES = 2048
"""Room for some twenty iSCSI registrants; longer lists are asked for again."""

_UNTOUCHED = b"\xff"
_HEADER_BYTES = 8
"""Every answer to PERSISTENT RESERVE IN begins with so many bytes, and never with all bits set."""

# What libsgutils2 returns (SG_LIB_CAT_*, sg_lib.h), in the words of SPC, and what each says of a command that
# changes something. NOT READY counts as unknown: LIO answers it to a REGISTER that it carried out, if it
# could not save it. Everything not listed is unknown, too.
UNIT_ATTENTION = 6
_MEANINGS: dict[int, tuple[str, type[PortError]]] = {
    2: ("not ready", OutcomeUnknown),
    3: ("medium or hardware error", OutcomeUnknown),
    5: ("illegal request", Refused),
    UNIT_ATTENTION: ("unit attention", NotDelivered),
    7: ("data protect", Refused),
    9: ("invalid command operation code", Refused),
    11: ("aborted command", OutcomeUnknown),
    17: ("illegal request", Refused),
    24: (CONFLICT, Refused),
    26: ("busy", NotDelivered),
    27: ("task set full", NotDelivered),
    28: ("ACA active", NotDelivered),
    29: ("task aborted", OutcomeUnknown),
    TIMEOUT: ("timeout", OutcomeUnknown),
    TRANSPORT_ERROR: ("transport error", OutcomeUnknown),
}
_NEVER_SENT = frozenset((errno.ENODEV, errno.ENXIO, errno.EBADF, errno.ENOTTY, errno.EPERM, errno.EACCES))


class SgPort(DeviceErrors):
    """One SCSI device: a ReservationPort. Used by one thread at a time; a call may block for a minute
    (SG_IO).
    """

    def __init__(self, device: str, commands: Commands | None = None) -> None:
        """Open a whole disk. OSError if that fails; nothing is sent to the device yet."""
        super().__init__(device)
        self._commands = commands or SgCommands()
        # not blocking: an open must not wait for a medium or a path
        self._fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._lists_keys_only = False

    def read(self) -> ReservationState:
        if not self._lists_keys_only:
            try:
                return self._seen(self.parse(scsi.parse_full_status, self._read_list(scsi.IN_READ_FULL_STATUS)))
            except Refused as error:
                if error.conflict:
                    raise
                self._lists_keys_only = True
        return self._seen(self._read_in_two())

    def capabilities(self) -> Capabilities:
        return self.parse(scsi.parse_capabilities, self._in(scsi.IN_REPORT_CAPABILITIES, 8))

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        action = scsi.OUT_REGISTER_AND_IGNORE_EXISTING_KEY if ignore_existing else scsi.OUT_REGISTER
        key = 0 if ignore_existing else old
        self._out("register", action, PrType(1), scsi.out_parameters(key, new, aptpl=True), new or old)

    def reserve(self, key: int, type: PrType) -> None:
        self._out("reserve", scsi.OUT_RESERVE, type, scsi.out_parameters(key, 0), key)

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        action = scsi.OUT_PREEMPT_AND_ABORT if abort else scsi.OUT_PREEMPT
        self._out("preempt", action, type, scsi.out_parameters(key, victim), key)

    def release(self, key: int, type: PrType) -> None:
        self._out("release", scsi.OUT_RELEASE, type, scsi.out_parameters(key, 0), key)

    def clear(self, key: int) -> None:
        self._out("clear", scsi.OUT_CLEAR, PrType(1), scsi.out_parameters(key, 0), key)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_in_two(self) -> ReservationState:
        """READ KEYS and READ RESERVATION, again until both are of one generation."""
        for _ in range(READS_MAX):
            before, keys = self.parse(scsi.parse_keys, self._read_list(scsi.IN_READ_KEYS))
            answer = self._read_list(scsi.IN_READ_RESERVATION)
            generation, reservation = self.parse(scsi.parse_reservation, answer)
            if before == generation:
                return self.parse(partial(scsi.combine, generation, keys), reservation)
        raise self.error("read", "registrations changed during every read", NotDelivered, None)

    def _read_list(self, action: int) -> bytes:
        """The complete answer, asked for with more room until there was room to spare.

        A length that fits is no proof: LIO counts only the descriptors that found room (target_core_pr.c,
        core_scsi3_pri_read_full_status, seen in 6.1), so a full buffer may hide registrants.
        """
        length = LIST_BYTES
        while True:
            answer = self._in(action, length)
            needed = self.parse(scsi.needed, answer)
            if needed + scsi.DESCRIPTOR_BYTES_MAX <= length:
                return answer[:needed]
            if length == scsi.LENGTH_MAX:
                raise self.garbled(f"a list of {needed} bytes, longer than can be asked for")
            length = min(max(needed + scsi.DESCRIPTOR_BYTES_MAX, 2 * length), scsi.LENGTH_MAX)

    def _in(self, action: int, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(_UNTOUCHED * length, length)
        cdb = scsi.in_cdb(action, length)
        result = self._repeated(lambda: self._commands.receive(self._fd, cdb, buffer, length))
        if result:
            # nothing can have changed, whatever went wrong
            sense, kind = _meaning(result)
            raise self.error("read", sense, Refused if kind is Refused else NotDelivered, None)
        if buffer.raw[:_HEADER_BYTES] == _UNTOUCHED * _HEADER_BYTES:
            # with zeros in the buffer it would look like a device that nobody is registered with
            raise self.garbled("success, and no data")
        return buffer.raw

    def _out(self, operation: str, action: int, type: PrType, parameters: bytes, own_key: int) -> None:
        buffer = ctypes.create_string_buffer(parameters, len(parameters))
        cdb = scsi.out_cdb(action, type, len(parameters))
        result = self._repeated(lambda: self._commands.send(self._fd, cdb, buffer, len(parameters)))
        if result:
            sense, kind = _meaning(result)
            raise self.error(operation, sense, kind, own_key)

    def _repeated(self, call: Callable[[], int]) -> int:
        """A UNIT ATTENTION says that the command did not run, and is told once for each thing to be told."""
        if self._fd < 0:
            return OS_ERRORS + errno.EBADF
        result = call()
        for _ in range(ATTENTIONS_MAX):
            if result != UNIT_ATTENTION:
                break
            result = call()
        return result

    def _seen(self, state: ReservationState) -> ReservationState:
        self.generation = state.generation
        return state


def _meaning(category: int) -> tuple[str, type[PortError]]:
    if category in _MEANINGS:
        return _MEANINGS[category]
    if OS_ERRORS < category <= OS_ERRORS + 46:
        number = category - OS_ERRORS
        return os.strerror(number).lower(), NotDelivered if number in _NEVER_SENT else OutcomeUnknown
    return f"unnamed failure (libsgutils2 category {category})", OutcomeUnknown
