"""Mounting and unmounting the data partition, and proving that nobody holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

from fs import _libc, journal, mounts
from fs.errors import Busy, FsError, NotPossible, OutcomeUnknown
from fs.model import Mounted, VolumeSpec

SRV = Path("/srv")

_OPTIONS = {
    # A journal that cannot be written must stop the file system, never be skipped.
    "ext4": "errors=remount-ro",
    # An earlier mount that hangs detached in this kernel must not refuse the new one by uuid: O_EXCL on the
    # device is the proof that we use.
    "xfs": "nouuid",
}
_FLAGS = _libc.MS_NOATIME | _libc.MS_NOSUID | _libc.MS_NODEV

_BUSY_WITHIN_S = 0.6
_BUSY_POLL_S = 0.02

_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
# XFS_IOC_GOINGDOWN, which ext4 understands as EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
_GOINGDOWN = 0x8004587D
_GOING_FLAGS_NOLOGFLUSH = 2


class MountPoint:
    """`/srv/VOLUME` with the data partition of the volume on it."""

    def __init__(self, spec: VolumeSpec, run: Path) -> None:
        self.spec = spec
        self.path = SRV / spec.name
        self.export = self.path / "export"
        self.private = self.path / ".ha"
        self.database = self.private / "nfsdcld"
        self._errors_note = run / "errors_at_mount"
        self._last_holders: tuple[str, ...] = ()

    # -- looking -------------------------------------------------------------------------------------------

    def mounted(self) -> Mounted:
        found = self._find()
        if found is None:
            return Mounted.NO
        return Mounted.OURS if found.device == device_number(self.spec.device) else Mounted.FOREIGN

    def damaged(self) -> bool:
        """Whether the mounted file system turned read-only or shut itself down after an error. No disk I/O."""
        found = self._find()
        if found is None:
            return False
        if found.options & {"ro", "shutdown", "emergency_ro"}:
            return True
        if self._errors() > self._errors_at_mount():
            return True
        try:
            os.close(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EIO  # how a file system that was shut down answers
        return False

    def _errors(self) -> int:
        """ext4's own count. Since "ext4: don't set SB_RDONLY after filesystem errors" (6.12, and 6.1 stable)
        an aborted journal is not shown in the mount options any more; "emergency_ro" came with 6.15."""
        name = os.path.basename(os.path.realpath(f"/sys/dev/block/{device_number(self.spec.device)}"))
        try:
            return int(Path(f"/sys/fs/ext4/{name}/errors_count").read_text())
        except (OSError, ValueError):
            return 0

    def _errors_at_mount(self) -> int:
        """Older errors stay counted in the superblock; without a note of ours none is taken for new."""
        try:
            return int(self._errors_note.read_text())
        except (OSError, ValueError):
            return self._errors()

    def _find(self) -> mounts.Mount | None:
        return mounts.at(mounts.parse(Path("/proc/thread-self/mountinfo").read_text()), str(self.path))

    # -- mounting ------------------------------------------------------------------------------------------

    def mount(self) -> str:
        """Mounts with journal replay; returns a note. The caller has fenced everybody else."""
        match self.mounted():
            case Mounted.OURS:
                self._lay_out()
                return "was mounted"
            case Mounted.FOREIGN:
                raise NotPossible(
                    self.spec.name, f"something else is mounted on {self.path}", f"umount {self.path} first"
                )
        note = self._check_device()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            _libc.mount(self.spec.device, str(self.path), self.spec.fstype, _FLAGS, _OPTIONS[self.spec.fstype])
        except OSError as error:
            raise self._mount_failed(error) from error
        self._errors_note.parent.mkdir(parents=True, exist_ok=True)
        self._errors_note.write_text(str(self._errors()))
        self._lay_out()
        return note

    def _check_device(self) -> str:
        """Nobody here may hold it (an earlier instance of us, say), and it must be what the label says."""
        device = self.spec.device
        if self.spec.fstype not in _OPTIONS:
            raise NotPossible(self.spec.name, f"file system {self.spec.fstype!r} is not known", "use ext4 or xfs")
        ensure_partition(device)
        try:
            head = _read_head(device)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise held(self.spec.name, device, self.path) from error
            raise FsError(
                self.spec.name, f"cannot read {device}: {error.strerror}", "check the paths to the disk"
            ) from error
        found = journal.parse(head)
        if found is None or found.fstype != self.spec.fstype:
            seen = found.fstype if found else "no file system"
            raise NotPossible(
                self.spec.name,
                f"{device} carries {seen}, not {self.spec.fstype}",
                "check that it is the right disk; nothing was mounted",
            )
        replay = {True: "journal replayed", False: "clean", None: "log checked"}[found.dirty]
        return replay + ("; marked as damaged: plan a check" if found.had_errors else "")

    def _mount_failed(self, error: OSError) -> FsError:
        what = f"mount of {self.spec.device} failed: {error.strerror}"
        if error.errno == errno.EBUSY:
            return held(self.spec.name, self.spec.device, self.path)
        if error.errno == errno.EBADE:
            return FsError(self.spec.name, what, "the disk refused the journal's write: fence anew")
        return FsError(self.spec.name, what, "see the kernel log (dmesg) and the paths to the disk")

    def _lay_out(self) -> None:
        """The volume's own directories. Its root is closed to local users: grace binds NFS clients only, a
        local process could take a lock that a client is about to reclaim."""
        for path, mode in ((self.path, 0o700), (self.private, 0o700), (self.database, 0o700)):
            path.mkdir(exist_ok=True)
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
        if not self.export.exists():
            self.export.mkdir(mode=0o755)

    # -- unmounting ----------------------------------------------------------------------------------------

    def unmount(self, force: bool) -> bool:
        """Returns whether something had to be unmounted; afterwards nobody on this node holds the device.

        `force` is for a disk that was taken away: the file system is shut down first, so that no write and
        no stale read comes through any more, whoever still has files open.
        """
        was_mounted = self.mounted() is not Mounted.NO
        self._last_holders = ()
        if was_mounted and force:
            shut_down(self.path)
        while self.mounted() is not Mounted.NO:
            self._unmount_once(force)
        self._prove_free(force)
        return was_mounted

    def _unmount_once(self, force: bool) -> None:
        error = _retry_busy(lambda: _libc.umount(str(self.path)))
        if error is None or error.errno == errno.EINVAL:  # EINVAL: was unmounted in the meantime
            return
        if error.errno != errno.EBUSY:
            raise FsError(
                self.spec.name, f"umount {self.path}: {error.strerror}", "see the kernel log (dmesg)"
            ) from error
        if not force:
            raise held(self.spec.name, self.spec.device, self.path) from error
        # Looked up now: detached, their files have no path in /srv any more, and a file of a file system
        # that was shut down cannot even be asked for its device.
        self._last_holders = holders(self.spec.device, self.path)
        _libc.umount(str(self.path), _libc.MNT_DETACH)

    def _prove_free(self, force: bool) -> None:
        error = _retry_busy(lambda: _open_exclusive(self.spec.device))
        if error is None:
            return
        if error.errno == errno.EBUSY:
            raise held(self.spec.name, self.spec.device, self.path, self._last_holders)
        if not force:
            raise OutcomeUnknown(
                self.spec.name,
                f"{self.spec.device} cannot be opened to prove that it is free: {error.strerror}",
                "check the paths to the disk; don't let this node take the volume again before that",
            )


def _read_head(device: str) -> bytes:
    """The first bytes as the *disk* has them now. If anything here kept the partition open while another node
    owned it, its buffers are stale, and mount(2) would read its superblock and journal from them."""
    error = _retry_busy(lambda: _open_exclusive(device))  # a check of somebody else takes a moment
    if error is not None:
        raise error
    with exclusive(device) as fd:
        fcntl.ioctl(fd, _BLKFLSBUF)
        return os.pread(fd, journal.BYTES_NEEDED, 0)


def _retry_busy(action: Callable[[], None]) -> OSError | None:
    """Tries again for a moment while the answer is EBUSY: the kernel drops its last references (of nfsd's
    file cache, of a process that just ended) a little after the call that caused it returned."""
    deadline = time.monotonic() + _BUSY_WITHIN_S
    while True:
        try:
            action()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return error
            time.sleep(_BUSY_POLL_S)
        else:
            return None


# -- the device ---------------------------------------------------------------------------------------------


class exclusive:
    """The block device opened with O_EXCL: fails with EBUSY while anybody here holds or mounts it."""

    def __init__(self, device: str) -> None:
        self._fd = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _open_exclusive(device: str) -> None:
    with exclusive(device):
        pass


def is_free(device: str) -> bool | None:
    """None: the device does not answer (gone, or no path), so nothing is proven."""
    try:
        _open_exclusive(device)
        return True
    except OSError as error:
        return False if error.errno == errno.EBUSY else None


def device_number(device: str) -> str | None:
    """MAJOR:MINOR as in mountinfo."""
    try:
        return _number(os.stat(device).st_rdev)
    except OSError:
        return None


def whole_disk(partition: str) -> str | None:
    """/dev/sda2 -> /dev/sda, /dev/nvme0n1p2 -> /dev/nvme0n1, .../wwn-1-part2 -> .../wwn-1."""
    for pattern in (r"(.+)-part\d+", r"(.+\d)p\d+", r"(.*[a-z])\d+"):
        if found := re.fullmatch(pattern, partition):
            return found.group(1)
    return None


def ensure_partition(device: str) -> None:
    """Lets the kernel read the partition table again if the partition is not there yet."""
    whole = whole_disk(device)
    if os.path.exists(device) or whole is None:
        return
    try:
        fd = os.open(whole, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(fd, _BLKRRPART)
    except OSError:
        pass  # busy: then its partitions are known
    finally:
        os.close(fd)


def shut_down(path: Path) -> None:
    """Ends all I/O of a mounted ext4 or xfs at once, without writing its log."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # shut down already
    try:
        fcntl.ioctl(fd, _GOINGDOWN, struct.pack("=I", _GOING_FLAGS_NOLOGFLUSH))
    except OSError:
        pass  # a kernel that cannot: umount follows
    finally:
        os.close(fd)


# -- who holds it -------------------------------------------------------------------------------------------


def held(volume: str, device: str, path: Path, last_seen: tuple[str, ...] = ()) -> Busy:
    """The error that says precisely who has the file system open or mounted."""
    who = holders(device, path) or last_seen
    if who:
        return Busy(volume, f"{device} is held by {', '.join(who)}", "end these, then call again", who)
    return Busy(
        volume,
        f"{device} is held by the kernel",
        "look for another export, swap file, loop or dm device on it (lsblk); else reboot this node",
        (),
    )


def holders(device: str, path: Path) -> tuple[str, ...]:
    """Every process with a file, directory or mount of the device, as `command[pid] why`."""
    number = device_number(device)
    if number is None:
        return ()
    search = _Search(number, path)
    found = [
        f"{_command(process)}[{process.name}] {why}"
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and (why := search.why(process))
    ]
    return tuple(sorted(found))


class _Search:
    """Looks for uses of one device in the processes of this node."""

    def __init__(self, number: str, path: Path) -> None:
        self._number = number
        self._path = str(path)
        own = mounts.parse(Path("/proc/thread-self/mountinfo").read_text())
        # A stat of a file on a dead NFS server never returns: such paths are left alone.
        self._remote = tuple(each.path for each in own if each.fstype.startswith(("nfs", "cifs", "fuse")))
        self._own_namespace = os.stat("/proc/thread-self/ns/mnt").st_ino
        self._namespaces: set[int] = set()

    def why(self, process: Path) -> str:
        for link in ("cwd", "root"):
            if target := self._uses(process / link):
                return f"has its {link} in {target}"
        try:
            for fd in (process / "fd").iterdir():
                if target := self._uses(fd):
                    return f"has {target} open"
            return self._mounts(process)
        except OSError:
            return ""  # it ended meanwhile

    def _mounts(self, process: Path) -> str:
        """Another mount of the device: elsewhere, or in a private mount namespace (each looked at once)."""
        namespace = (process / "ns/mnt").stat().st_ino
        if namespace in self._namespaces:
            return ""
        self._namespaces.add(namespace)
        own = namespace == self._own_namespace
        for mount in mounts.parse((process / "mountinfo").read_text()):
            if mount.device == self._number and not (own and mount.path == self._path):
                return f"has it mounted on {mount.path}" + ("" if own else " in its private mount namespace")
        return ""

    def _uses(self, link: Path) -> str:
        try:
            target = os.readlink(link)
            if not target.startswith("/") or any(target.startswith(path) for path in self._remote):
                return ""
            if target == self._path or target.startswith(self._path + "/"):
                return target
            found = link.stat()
        except OSError:
            return ""
        numbers = [found.st_dev] + ([found.st_rdev] if stat.S_ISBLK(found.st_mode) else [])
        return target if any(self._number == _number(each) for each in numbers) else ""


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"
