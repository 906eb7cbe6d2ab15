"""A User-Mode Linux kernel that starts on this machine's processor.

Why a kernel may need a change
------------------------------
Before it returns to a guest process, UML 6.1 sets that process's floating-point registers with
ptrace(PTRACE_SETREGSET, NT_X86_XSTATE) from a buffer of 2696 bytes, enough for AVX-512. A host kernel takes
nothing but its *whole* state area there, and on a processor with AMX that has 11008 bytes: the call fails
with EFAULT and the guest dies before its first instruction ("userspace - ptrace set fp regs failed, errno =
14"). Linux 6.13 ("um: switch to regset API and depend on XSTATE") asks the host for the size.

So the length in that one call is raised to the host's size in a copy of the kernel. Reading beyond the
buffer is harmless: it lies in the guest kernel's memory, and the state's header says which components are
valid; those of AMX never are, since a guest process has no permission to use AMX. Reading registers
(GETREGSET) takes any length and stays as it is. On a processor whose state fits, nothing is changed.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from hwlab.errors import LabError

# Bytes of UML 6.1's buffer: FP_SIZE in arch/x86/um.
UML_XSTATE_BYTES = 2696

# movl $2696, -8(%rbp) (iov_len) followed by mov $0x4205, %edi (PTRACE_SETREGSET).
_SET_REGSET = bytes.fromhex("c745f8880a0000bf05420000")
_LENGTH_AT = slice(3, 7)

_PTRACE_ATTACH = 16
_PTRACE_GETREGSET = 0x4204
_NT_X86_XSTATE = 0x202


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def host_xstate_bytes() -> int:
    """Size of a process's extended state on this machine, asked from the kernel through a traced child."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc.ptrace.restype = ctypes.c_long
    buffer = ctypes.create_string_buffer(1 << 16)
    vector = _IoVec(ctypes.addressof(buffer), len(buffer))
    child = subprocess.Popen(["sleep", "60"])
    try:
        if libc.ptrace(_PTRACE_ATTACH, child.pid, 0, 0) != 0:
            raise LabError(f"cannot trace a process: {os.strerror(ctypes.get_errno())}; UML needs ptrace")
        os.waitpid(child.pid, 0)
        if libc.ptrace(_PTRACE_GETREGSET, child.pid, _NT_X86_XSTATE, ctypes.addressof(vector)) != 0:
            raise LabError(f"cannot read a process's registers: {os.strerror(ctypes.get_errno())}")
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    return int(vector.length)


def adapted(kernel: bytes, xstate_bytes: int) -> bytes:
    """The kernel with the length of its SETREGSET call raised to `xstate_bytes` if that is needed.

    LabError if this build of the kernel does not look as expected.
    """
    if xstate_bytes <= UML_XSTATE_BYTES:
        return kernel
    at = kernel.find(_SET_REGSET)
    if at < 0 or kernel.find(_SET_REGSET, at + 1) >= 0:
        raise LabError(
            f"this processor's register state has {xstate_bytes} bytes, the installed UML kernel copes with "
            f"{UML_XSTATE_BYTES}, and it is not the build whose call can be adapted: use Debian 12's "
            "user-mode-linux, or a machine without AMX"
        )
    patched = bytearray(kernel)
    patched[at + _LENGTH_AT.start : at + _LENGTH_AT.stop] = xstate_bytes.to_bytes(4, "little")
    return bytes(patched)


def ensure_kernel(cache: Path) -> Path:
    """Path of a kernel that runs here, made once per kernel build and processor kind below `cache`."""
    found = shutil.which("linux.uml")
    if found is None:
        raise LabError("no UML kernel: apt-get install user-mode-linux")
    kernel = Path(found).read_bytes()
    xstate_bytes = host_xstate_bytes()
    key = hashlib.sha256(kernel + str(xstate_bytes).encode()).hexdigest()[:16]
    path = cache / "kernels" / f"linux-{key}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(adapted(kernel, xstate_bytes))
        partial.chmod(0o755)
        partial.replace(path)
    return path
