"""The reservation port over NVMe passthrough ioctls: whole namespaces (`/dev/nvme0n1`, with native multipath the
head), one host identifier each.

A registration belongs to the host identifier, not to a path: it survives disconnects, and with multipath any path
that works will do. Passthrough on a partition would act on the whole namespace, so partitions are refused.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from typing import TypeVar

from fencing import nvme
from fencing.deviceerrors import DeviceErrors
from fencing.errors import NotDelivered, OutcomeUnknown, Refused
from fencing.model import Capabilities, PrType, ReservationState
from fencing.nvme import AcquireAction, Command, RegisterAction, ReleaseAction

NVME_IOCTL_ID = 0x4E40
NVME_IOCTL_ADMIN_CMD = 0xC0484E41
NVME_IOCTL_IO_CMD = 0xC0484E43

CHANGE_TIMEOUT_MS = 180_000
"""A preempt-and-abort waits for the victim's commands, at worst until its keep-alive ran out (nvme-cli's default is
5 s, targets allow 120 s and more), and other changes wait behind it. A command that times out is worse than a slow one:
the kernel resets this host's own controller, and the victim may be gone from the report with nothing drained (seen
with 1 s on Linux 7.3)."""
REPORT_BYTES = 4096
"""Room for 63 hosts; longer lists are asked for again."""

# Never sent: EAGAIN is the head without a path (nvme_ns_head_ioctl), EINVAL what the kernel itself refuses. EINTR is a
# command that was given up with the controller (NVME_REQ_CANCELLED).
_NEVER_SENT = frozenset(
    (errno.EAGAIN, errno.EINVAL, errno.ENODEV, errno.ENXIO, errno.EBADF, errno.ENOTTY, errno.EPERM, errno.EACCES)
)

Ioctl = Callable[[int, int, bytearray], int]
"""(descriptor, request, argument) -> what the kernel returned. OSError if that was negative."""
T = TypeVar("T")


def _ioctl(fd: int, request: int, argument: bytearray) -> int:
    # a mutable buffer: with `bytes`, fcntl.ioctl hides a positive return value, which is the NVMe status
    return int(fcntl.ioctl(fd, request, argument, True))


class Passthrough(DeviceErrors):
    """Commands to one NVMe device, each waited for."""

    def __init__(self, device: str, ioctl: Ioctl = _ioctl) -> None:
        """OSError if it cannot be opened; no command is sent yet."""
        super().__init__(device)
        self._ioctl = ioctl
        self._fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def namespace(self) -> int:
        """OSError if the device is no namespace, or has no path now."""
        return self._ioctl(self._fd, NVME_IOCTL_ID, bytearray(8))

    def read(self, command: Command, nsid: int, *, admin: bool = False) -> bytes:
        """What the command brings back, in full length. Never OutcomeUnknown: whatever went wrong, nothing changed.

        One that was given up with its controller is sent again, once: a namespace may have another path, and without
        one the answer comes at once. For passthrough the kernel does not do that itself (REQ_FAILFAST_DRIVER)."""
        buffer = ctypes.create_string_buffer(command.reads)
        request = NVME_IOCTL_ADMIN_CMD if admin else NVME_IOCTL_IO_CMD
        try:
            try:
                self._send("read", command, nsid, buffer, request, 0, None)
            except OutcomeUnknown:
                self._send("read", command, nsid, buffer, request, 0, None)
        except OutcomeUnknown as error:
            raise self.error("read", error.sense, NotDelivered, None) from error
        return buffer.raw

    def change(self, operation: str, command: Command, nsid: int, own_key: int) -> None:
        buffer = ctypes.create_string_buffer(command.data, len(command.data))
        self._send(operation, command, nsid, buffer, NVME_IOCTL_IO_CMD, CHANGE_TIMEOUT_MS, own_key)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(
        self,
        operation: str,
        command: Command,
        nsid: int,
        buffer: ctypes.Array[ctypes.c_char],
        request: int,
        timeout_ms: int,
        own_key: int | None,
    ) -> None:
        """The kernel is given the buffer's address, and is done with it on return. Timeout 0: the kernel's own."""
        address = ctypes.addressof(buffer)
        argument = bytearray(nvme.passthrough(command, nsid=nsid, address=address, timeout_ms=timeout_ms))
        if self._fd < 0:
            raise self.error(operation, "the port is closed", NotDelivered, own_key)
        try:
            status = self._ioctl(self._fd, request, argument)
        except OSError as error:
            kind = NotDelivered if error.errno in _NEVER_SENT else OutcomeUnknown
            raise self.error(operation, (error.strerror or str(error)).lower(), kind, own_key) from error
        if status:
            sense, meaning = nvme.status_meaning(status)
            raise self.error(operation, sense, meaning, own_key)


class NvmePort:
    """One NVMe namespace: a ReservationPort. Used by one thread at a time, but for `read`; a call may block for
    minutes."""

    def __init__(self, device: str, ioctl: Ioctl = _ioctl) -> None:
        """Open a whole namespace. OSError if that fails or if it is none; no command is sent yet."""
        if os.path.exists(f"/sys/class/block/{os.path.basename(os.path.realpath(device))}/partition"):
            raise OSError(errno.EINVAL, "a partition; reservations are of whole namespaces", device)
        self._commands = Passthrough(device, ioctl)
        self._extended = True
        try:
            self._nsid = self._commands.namespace()
        except OSError:
            self.close()
            raise

    @property
    def device(self) -> str:
        return self._commands.device

    def read(self) -> ReservationState:
        answer = self._report()
        state = self._commands.parse(lambda got: nvme.parse_report(got, extended=self._extended), answer)
        self._commands.generation = state.generation
        return state

    def capabilities(self) -> Capabilities:
        active = self._commands.parse(nvme.persists, self._report())
        identify = self._commands.read(nvme.identify_namespace(), self._nsid, admin=True)
        return self._commands.parse(lambda got: nvme.parse_capabilities(got, active=active), identify)

    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        if new == 0:
            # the kernel's PR_REGISTER would leave a registrant with key 0
            self._register(RegisterAction.UNREGISTER, old, 0, ignore_existing)
        elif ignore_existing:
            self._register_over(new)
        else:
            self._register(RegisterAction.REPLACE if old else RegisterAction.REGISTER, old, new)

    def reserve(self, key: int, type: PrType) -> None:
        self._change("reserve", nvme.acquire(AcquireAction.ACQUIRE, key, 0, type), key)

    def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
        action = AcquireAction.PREEMPT_AND_ABORT if abort else AcquireAction.PREEMPT
        self._change("preempt", nvme.acquire(action, key, victim, type), key)

    def release(self, key: int, type: PrType) -> None:
        self._change("release", nvme.release(ReleaseAction.RELEASE, key, type), key)

    def clear(self, key: int) -> None:
        self._change("clear", nvme.release(ReleaseAction.CLEAR, key, PrType(1)), key)

    def close(self) -> None:
        self._commands.close()

    def _change(self, operation: str, command: Command, own_key: int) -> None:
        self._commands.change(operation, command, self._nsid, own_key)

    def _register(self, action: RegisterAction, old: int, new: int, ignore_key: bool = False) -> None:
        self._change("register", nvme.register(action, old, new, ignore_key=ignore_key), new or old)

    def _register_over(self, new: int) -> None:
        """Replace this host's key, whatever it is; without one, register. Replaced, the holder goes on holding.

        Two commands: REPLACE works for registrants only, and REGISTER for all others only (nvmet; the specification
        leaves REGISTER with IEKEY open).
        """
        try:
            self._register(RegisterAction.REPLACE, 0, new, True)
        except Refused as error:
            if not error.conflict:
                raise
            self._register(RegisterAction.REGISTER, 0, new)

    def _report(self) -> bytes:
        """The complete report, asked for with more room until all had room."""
        length = REPORT_BYTES
        while True:
            answer = self._report_of(length)
            needed = self._commands.parse(lambda got: nvme.needed(got, extended=self._extended), answer)
            if needed <= length:
                return answer
            if needed > nvme.REPORT_BYTES_MAX:
                raise self._commands.garbled(f"a report of {needed} bytes, longer than any that makes sense")
            length = (needed + REPORT_BYTES - 1) // REPORT_BYTES * REPORT_BYTES

    def _report_of(self, length: int) -> bytes:
        try:
            return self._commands.read(nvme.report(length, extended=self._extended), self._nsid)
        except Refused as error:
            # a host with an identifier of 8 bytes (PCIe) must ask for it so, one with 16 (fabrics) must not
            if not self._extended or error.sense != nvme.OTHER_HOST_ID:
                raise
            self._extended = False
        return self._commands.read(nvme.report(length, extended=False), self._nsid)
