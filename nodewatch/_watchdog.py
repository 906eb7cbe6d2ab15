"""`/dev/watchdog*`: the ioctls of linux/watchdog.h, nothing more. Who opens the device has armed it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

INFO = struct.Struct("=II32s")
"""struct watchdog_info: options, firmware_version, identity."""
WDIOC_GETSUPPORT = 0x80285700
WDIOC_SETTIMEOUT = 0xC0045706
WDIOC_GETTIMEOUT = 0x80045707
WDIOF_SETTIMEOUT = 0x0080
WDIOF_MAGICCLOSE = 0x0100
_INT = struct.Struct("=i")
_MAGIC = b"V"


class WatchdogUnusable(Exception):
    """The text says why, and what to do."""


class WatchdogDevice:
    """Armed from the moment it exists until `disarm`, also when the process ends otherwise."""

    def __init__(self, path: str, timeout_s: int) -> None:
        """Raises WatchdogUnusable; the device is then disarmed again."""
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            hint = (
                "another program holds it: is RuntimeWatchdogSec set in /etc/systemd/system.conf?"
                if error.errno == errno.EBUSY
                else "is its driver loaded (`modprobe softdog`), and is it the right one of /dev/watchdog*?"
            )
            raise WatchdogUnusable(f"[watchdog] device {path}: {error.strerror}; {hint}") from error
        try:
            self.identity, self.timeout_s = self._set_up(path, timeout_s)
        except BaseException:
            self.disarm()
            raise

    def _set_up(self, path: str, timeout_s: int) -> tuple[str, int]:
        try:
            options, _, identity = INFO.unpack(fcntl.ioctl(self._fd, WDIOC_GETSUPPORT, bytes(INFO.size)))
            if options & WDIOF_SETTIMEOUT:
                fcntl.ioctl(self._fd, WDIOC_SETTIMEOUT, _INT.pack(timeout_s))
            # The driver may have chosen another value: read back.
            real_s = int(_INT.unpack(fcntl.ioctl(self._fd, WDIOC_GETTIMEOUT, bytes(_INT.size)))[0])
        except OSError as error:
            raise WatchdogUnusable(
                f"[watchdog] device {path} does not take a timeout of {timeout_s} s: {error.strerror}; use another "
                "device, or shorten daemon_restart_ms"
            ) from error
        if real_s < timeout_s:
            raise WatchdogUnusable(
                f"[watchdog] device {path} resets after {real_s} s, but guard_ms + daemon_hang_ms + "
                f"daemon_restart_ms = {timeout_s} s: it would reset a node that recovers; use another device, or "
                "shorten daemon_restart_ms"
            )
        return identity.split(b"\0")[0].decode(errors="replace"), real_s

    def pat(self) -> None:
        """Raises OSError."""
        os.write(self._fd, b"\0")

    def disarm(self) -> None:
        """Drivers with nowayout stay armed whatever is written."""
        try:
            os.write(self._fd, _MAGIC)
        finally:
            os.close(self._fd)
