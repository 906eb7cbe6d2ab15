"""The reservation port over the kernel's PR ioctls (linux/pr.h): any whole block device, sd, NVMe or dm-multipath.

The second choice. It reads keys but not who has them, cannot tell whether registrations persist, swallows UNIT
ATTENTIONs, and one word ("conflict" or not) is all that it says of a failure. Kernels before 7.x cannot read through
it at all; `capabilities` says so, and nothing that cannot be read back may be owned.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from functools import partial

from fencing import scsi
from fencing.deviceerrors import DeviceErrors
from fencing.errors import CONFLICT, NotDelivered, OutcomeUnknown, Refused
from fencing.model import Capabilities, PrType, ReservationState

_REGISTER = struct.Struct("=QQII")
_KEY_AND_TYPE = struct.Struct("=QII")
_PREEMPT = struct.Struct("=QQII")
_CLEAR = struct.Struct("=QII")
_READ_KEYS = struct.Struct("=IIQ")
_READ_RESERVATION = struct.Struct("=QII")

IOC_PR_REGISTER = 0x401870C8
IOC_PR_RESERVE = 0x401070C9
IOC_PR_RELEASE = 0x401070CA
IOC_PR_PREEMPT = 0x401870CB
IOC_PR_PREEMPT_ABORT = 0x401870CC
IOC_PR_CLEAR = 0x401070CD
IOC_PR_READ_KEYS = 0xC01070CE
IOC_PR_READ_RESERVATION = 0x801070CF
_IGNORE_KEY = 1

# enum pr_type numbers the types in this order from 1 on
_TYPES = (
    PrType.WRITE_EXCLUSIVE,
    PrType.EXCLUSIVE_ACCESS,
    PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
)

CANNOT_READ = "this kernel cannot read reservations through its PR ioctls"
KEYS = 64
KEYS_MAX = 1 << 16
READS_MAX = 8
ATTENTIONS_MAX = 3
"""CHECK CONDITIONs in a row for one command to a SCSI device that are taken for UNIT ATTENTIONs."""

_STATUS_CHECK_CONDITION = 0x02
_STATUS_CONFLICT = 0x18
_MESSAGE_BYTE = 0x0100
_NOT_SUPPORTED = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL))
_NEVER_SENT = frozenset((errno.EAGAIN, errno.ENODEV, errno.ENXIO, errno.EBADF, errno.EPERM, errno.EACCES))

Ioctl = Callable[[int, int, bytearray], int]


def _ioctl(fd: int, request: int, argument: bytearray) -> int:
    # a mutable buffer: with `bytes`, fcntl.ioctl hides a positive return value, which is the verdict
    return int(fcntl.ioctl(fd, request, argument, True))


class PrIoctlPort(DeviceErrors):
    """One block device: a ReservationPort whose registrants have no nexus. Used by one thread at a time."""

    def __init__(self, device: str, ioctl: Ioctl = _ioctl) -> None:
        """Open a whole disk. OSError if that fails; nothing is sent to the device yet."""
        super().__init__(device)
        self._ioctl = ioctl
        self._fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._nvme = os.path.basename(os.path.realpath(device)).startswith("nvme")

    def read(self) -> ReservationState:
        """Two commands, again until both are of one generation. Refused (CANNOT_READ) on kernels that cannot.

        Of nexuses that share the holder's key, all seem to hold.
        """
        for _ in range(READS_MAX):
            before, keys = self._keys()
            generation, reservation = self._reservation()
            if before == generation:
                self.generation = generation
                return self.parse(partial(scsi.combine, generation, keys), reservation)
        raise self.error("read", "registrations changed during every read", NotDelivered, None)

    def capabilities(self) -> Capabilities:
        """Persistence is asked for and not told of: so none is claimed."""
        try:
            self._keys()
        except Refused as error:
            return Capabilities(persists=False, persistence_active=False, types=frozenset(), unreadable=error.what)
        return Capabilities(persists=False, persistence_active=False, types=frozenset())

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        """Refuses to unregister on NVMe, where the kernel would leave a registrant with key 0."""
        if not self._nvme:
            self._register(old, new, _IGNORE_KEY if ignore_existing else 0)
        elif new == 0:
            raise self.error("unregister", "the kernel would register key 0 (NVMe)", Refused, old)
        elif ignore_existing:
            self._register_over(new)
        else:
            self._register(old, new, 0)

    def reserve(self, key: int, type: PrType) -> None:
        self._change("reserve", IOC_PR_RESERVE, _KEY_AND_TYPE.pack(key, _code(type), 0), key)

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        request = IOC_PR_PREEMPT_ABORT if abort else IOC_PR_PREEMPT
        self._change("preempt", request, _PREEMPT.pack(key, victim, _code(type), 0), key)

    def release(self, key: int, type: PrType) -> None:
        self._change("release", IOC_PR_RELEASE, _KEY_AND_TYPE.pack(key, _code(type), 0), key)

    def clear(self, key: int) -> None:
        self._change("clear", IOC_PR_CLEAR, _CLEAR.pack(key, 0, 0), key)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _register(self, old: int, new: int, flags: int) -> None:
        self._change("register", IOC_PR_REGISTER, _REGISTER.pack(old, new, flags, 0), new or old)

    def _register_over(self, new: int) -> None:
        """On NVMe: an old key other than 0 becomes REPLACE, which ignores it; without a registration, REGISTER."""
        try:
            self._register(new, new, _IGNORE_KEY)
        except Refused as error:
            if not error.conflict:
                raise
            self._register(0, new, 0)

    def _keys(self) -> tuple[int, tuple[int, ...]]:
        """Generation, and one key per registrant, with more room until all had room."""
        room = KEYS
        while room <= KEYS_MAX:
            keys = (ctypes.c_uint64 * room)()
            argument = bytearray(_READ_KEYS.pack(0, room, ctypes.addressof(keys)))
            self._read("read", IOC_PR_READ_KEYS, argument)
            generation, count, _ = _READ_KEYS.unpack(argument)
            if count <= room:
                return generation, tuple(keys[:count])
            room = max(count, 2 * room)
        raise self.garbled(f"a list of {room} keys, longer than any that makes sense")

    def _reservation(self) -> tuple[int, tuple[int, PrType] | None]:
        argument = bytearray(_READ_RESERVATION.size)
        self._read("read", IOC_PR_READ_RESERVATION, argument)
        key, generation, code = _READ_RESERVATION.unpack(argument)
        if code == 0:
            return generation, None
        if code > len(_TYPES):
            raise self.garbled(f"a reservation of type {code}, which is not defined")
        return generation, (key, _TYPES[code - 1])

    def _read(self, operation: str, request: int, argument: bytearray) -> None:
        try:
            status = self._call(operation, request, argument, None)
        except OutcomeUnknown as error:
            raise self.error(operation, error.sense, NotDelivered, None) from error
        if status:
            raise self.error(operation, _sense(status), NotDelivered, None)

    def _change(self, operation: str, request: int, argument: bytes, own_key: int) -> None:
        status, repeated = self._sent(operation, request, argument, own_key)
        if status:
            # A conflict of a repeated command may be with what the first one did. All other statuses stand for many
            # causes: 0x2 for any sense, 0x10000 and more for paths that failed at any time.
            kind = Refused if _means(status, _STATUS_CONFLICT) and not repeated else OutcomeUnknown
            raise self.error(operation, _sense(status), kind, own_key)

    def _sent(self, operation: str, request: int, argument: bytes, own_key: int) -> tuple[int, bool]:
        """PR status, and whether the command was sent more than once.

        CHECK CONDITION of a SCSI device is most often a UNIT ATTENTION, told once for each thing to be told, of a
        command that did not run; the kernel keeps the sense to itself.
        """
        status = self._call(operation, request, bytearray(argument), own_key)
        repeats = 0
        while _means(status, _STATUS_CHECK_CONDITION) and repeats < ATTENTIONS_MAX and not self._nvme:
            status = self._call(operation, request, bytearray(argument), own_key)
            repeats += 1
        return status, repeats > 0

    def _call(self, operation: str, request: int, argument: bytearray, own_key: int | None) -> int:
        if self._fd < 0:
            raise self.error(operation, "the port is closed", NotDelivered, own_key)
        try:
            return self._ioctl(self._fd, request, argument)
        except OSError as error:
            number = error.errno or 0
            sense = (error.strerror or str(error)).lower()
            if number in _NOT_SUPPORTED:
                reading = request in (IOC_PR_READ_KEYS, IOC_PR_READ_RESERVATION)
                what = CANNOT_READ if reading else f"not supported ({sense})"
                raise self.error(operation, what, Refused, own_key) from error
            kind = NotDelivered if number in _NEVER_SENT else OutcomeUnknown
            raise self.error(operation, sense, kind, own_key) from error


def _code(kind: PrType) -> int:
    return _TYPES.index(kind) + 1


def _means(status: int, code: int) -> bool:
    """sd of Linux 6.1 hands up the whole SCSI result: the status is its low byte; 0x118 was seen as well as 0x18."""
    return status & ~_MESSAGE_BYTE == code


def _sense(status: int) -> str:
    return CONFLICT if _means(status, _STATUS_CONFLICT) else f"failed (PR status 0x{status:x})"
