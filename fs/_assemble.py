"""Assembling and taking apart what joins a volume's LUNs (`fs/stack.py`), with the tools that everybody has for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from fs import stack as stacks
from fs._mount import device_number, ensure_partition, held, is_free
from fs.errors import Busy, FsError, NotPossible, OutcomeUnknown
from fs.stack import KINDS, Stack

_MDADM_CONF = ("/etc/mdadm.conf", "/etc/mdadm/mdadm.conf", "/etc/mdadm.conf.d/*.conf", "/etc/mdadm/mdadm.conf.d/*.conf")
_ERROR_BYTES_MAX = 300
_TOOL_S = 60.0
_BUSY_WITHIN_S = 1.0
_POLL_S = 0.05


class Assembly:
    """The stack of one volume on this node. What there is, is asked of the kernel each time."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._ready = not stack.kind

    # -- looking -------------------------------------------------------------------------------------------

    def assembled(self) -> bool:
        """Is it there now, under its name, and made by this stack? Always, where nothing is to be assembled."""
        if not self.stack.kind:
            return True
        return device_number(self.stack.device) is not None

    def prepare(self) -> bool:
        """What can be asked long before a takeover: tools, modules, and that nobody else would assemble it here."""
        if self._ready:
            return False
        kind, volume = KINDS[self.stack.kind], self.stack.volume
        missing = [tool for tool in kind.tools if shutil.which(tool, path=_path()) is None]
        if missing:
            raise NotPossible(volume, f"{missing[0]} is not installed, which its disks need", "install lvm2 or mdadm")
        if self.stack.lvm:
            _check_lvm(volume)
        elif stacks.assembles_by_itself(_mdadm_conf()):
            raise NotPossible(
                volume,
                "mdadm.conf on this node lets udev assemble any mirror that it sees, also one of another node",
                "put the line `AUTO -all` into it, and name arrays of this node there by ARRAY lines",
            )
        _run(volume, ("modprobe", "-a", *kind.modules))
        self._ready = True
        return True

    # -- making, assembling, taking apart --------------------------------------------------------------------

    def create(self) -> str:
        """Makes the stack on blank members that the caller owns; returns the device that joins them."""
        for command in self.stack.create():
            _run(self.stack.volume, command)
        return self.stack.device

    def assemble(self) -> str:
        """The caller holds the handle on every member. Returns a note, "" if there is nothing to say."""
        if not self.stack.kind:
            return ""
        if self.assembled():
            return "was assembled"
        self.prepare()
        for member in self.stack.members:
            ensure_partition(member)
        self._check_free()
        for command in self.stack.assemble():
            _run(self.stack.volume, command)
        if not self.assembled():
            raise FsError(
                self.stack.volume,
                f"{self.stack.device} did not appear when its disks were joined",
                "see the kernel log (dmesg), and `lvm pvs` or `mdadm --examine` of its partitions",
            )
        note = f"{KINDS[self.stack.kind].about} assembled"
        return note + self._rejoin() if KINDS[self.stack.kind].copies else note

    def disassemble(self) -> bool:
        """Returns whether there was something; afterwards no member is in use here. Busy, OutcomeUnknown otherwise."""
        if not self.stack.kind:
            return False
        there = self.assembled()
        if there:
            self._take_apart()
        self._prove_free()
        return there

    def _take_apart(self) -> None:
        """A device that was just unmounted is let go a moment later."""
        deadline = time.monotonic() + _BUSY_WITHIN_S
        while True:
            try:
                for command in self.stack.disassemble():
                    _run(self.stack.volume, command)
            except FsError as error:
                if not self.assembled():
                    return
                if time.monotonic() > deadline:
                    if is_free(self.stack.device) is False:
                        raise held(self.stack.volume, self.stack.device, Path("/srv") / self.stack.volume) from error
                    raise
                time.sleep(_POLL_S)
            else:
                return

    def _check_free(self) -> None:
        """Whoever else assembled the members may have written to them since, or will."""
        taken = [member for member in self.stack.members if is_free(member) is False]
        if taken:
            raise Busy(
                self.stack.volume,
                f"{taken[0]} is in use by {_users(taken[0]) or 'the kernel'}, not by {self.stack.device}",
                "find out who assembled it (lsblk), and take that apart",
                (),
            )

    def _prove_free(self) -> None:
        for member in self.stack.members:
            if is_free(member) is False:
                raise OutcomeUnknown(
                    self.stack.volume,
                    f"{member} is still in use by {_users(member) or 'the kernel'}",
                    "take that apart (lsblk shows it); else reboot this node",
                )

    def _rejoin(self) -> str:
        """A mirror that ran without a member takes it back; that it must be looked at is said either way."""
        detail = _run(self.stack.volume, ("mdadm", "--detail", "--export", self.stack.device))
        absent = stacks.rejoinable(detail, self.stack.members)
        if not absent:
            return ""
        failed = []
        for member in absent:
            try:
                _run(self.stack.volume, self.stack.rejoin(member))
            except FsError:
                failed.append(member)
        if failed:
            return f"; DEGRADED: without {', '.join(failed)}"
        return f"; {', '.join(absent)} taken back and catching up"


def _check_lvm(volume: str) -> None:
    version = stacks.lvm_version(_run(volume, ("lvm", "version")))
    if version and version < stacks.LVM_VERSION_MIN:
        least = ".".join(map(str, stacks.LVM_VERSION_MIN))
        raise NotPossible(volume, f"LVM {'.'.join(map(str, version))} is too old", f"install lvm2 {least} or newer")


def _mdadm_conf() -> str:
    texts = []
    for pattern in _MDADM_CONF:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            texts.append(path.read_text(errors="replace"))
    return "\n".join(texts)


def _users(member: str) -> str:
    holders = Path("/sys/class/block") / os.path.basename(os.path.realpath(member)) / "holders"
    try:
        return ", ".join(sorted(each.name for each in holders.iterdir()))
    except OSError:
        return ""


def _run(volume: str, command: Sequence[str]) -> str:
    """The tool's output. FsError with its own words if it fails; OutcomeUnknown if it does not end."""
    shown = " ".join(command[:2])
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TOOL_S,
            env={**os.environ, "PATH": _path(), "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise OutcomeUnknown(
            volume, f"{shown} did not end within {_TOOL_S:.0f} s", "check the paths to the disks"
        ) from error
    except OSError as error:
        raise NotPossible(volume, f"{shown}: {error.strerror}", "install lvm2, mdadm and kmod") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-_ERROR_BYTES_MAX:]
        raise FsError(volume, f"{shown} failed ({done.returncode}): {words}", "see the tool's words and the kernel log")
    return done.stdout


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
