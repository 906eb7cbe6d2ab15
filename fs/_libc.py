"""The few system calls that Python 3.11 lacks. One table of signatures; failure raises OSError."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20

MNT_FORCE = 1
MNT_DETACH = 2

_c_str = ctypes.c_char_p
_SIGNATURES: dict[str, list[type]] = {
    "mount": [_c_str, _c_str, _c_str, ctypes.c_ulong, _c_str],
    "umount2": [_c_str, ctypes.c_int],
    "setns": [ctypes.c_int, ctypes.c_int],
    "unshare": [ctypes.c_int],
}


def _load() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    for name, arguments in _SIGNATURES.items():
        function = getattr(libc, name)
        function.argtypes = arguments
        function.restype = ctypes.c_int
    return libc


_libc = _load()


def _call(name: str, *arguments: object, path: str = "") -> None:
    ctypes.set_errno(0)
    if getattr(_libc, name)(*arguments) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path or name)


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _call("mount", source.encode(), target.encode(), fstype.encode(), flags, data.encode(), path=target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _call("umount2", target.encode(), flags, path=target)


def setns(fd: int, kind: int) -> None:
    """Moves the calling *thread* into a namespace."""
    _call("setns", fd, kind)


def unshare(flags: int) -> None:
    """Gives the calling *thread* new namespaces."""
    _call("unshare", flags)
