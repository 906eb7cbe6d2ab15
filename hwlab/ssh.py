"""Commands on hosts over ssh, with one kept connection per host: 0.1 s per command instead of 0.65 s."""

from __future__ import annotations

import contextlib
import io
import shlex
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from hwlab.errors import CommandFailed, CommandTimeout, LabLost
from hwlab.protocols import Completed

T = TypeVar("T")
R = TypeVar("R")

# ssh's own status for "no connection"; a remote command can return it too, but ours do not.
SSH_FAILED = 255

# For a host whose processor is a real one; key exchange takes most of it.
HANDSHAKE_S = 3
CONNECT_TIMEOUT_S = 10.0


def ssh_argv(
    destination: str,
    *,
    key_file: Path | None,
    control: Path,
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
    handshake_s: int = HANDSHAKE_S,
) -> list[str]:
    """The command line of ssh up to (without) the remote command.

    `prefix` comes before ssh (a lab in a network namespace puts its nsenter there). Host keys are not checked
    in a lab that was made a minute ago (`key_file` given); on real hosts the user's ssh configuration decides.
    """
    argv = [*prefix, "ssh", "-T", "-S", str(control), "-o", "BatchMode=yes", "-o", f"ConnectTimeout={handshake_s}"]
    if key_file is not None:
        argv += [
            "-F", "none", "-i", str(key_file), "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        ]  # fmt: skip
    return [*argv, *options, destination]


class SshCommand:
    """`hwlab.protocols.Command` by the system's ssh."""

    def __init__(
        self,
        host: str,
        destination: str,
        *,
        key_file: Path | None,
        control: Path,
        prefix: Sequence[str] = (),
        handshake_s: int = HANDSHAKE_S,
    ) -> None:
        self._host = host
        self._connect_timeout_s = max(CONNECT_TIMEOUT_S, 2.0 * handshake_s)
        self._control = control
        self._lock = threading.Lock()
        self._argv = ssh_argv(
            destination,
            key_file=key_file,
            control=control,
            prefix=prefix,
            handshake_s=handshake_s,
            options=["-o", "ControlMaster=no"],
        )
        # The kept connection gets no pipe of ours: whoever reads one would wait for its end.
        self._master_argv = ssh_argv(
            destination,
            key_file=key_file,
            control=control,
            prefix=prefix,
            handshake_s=handshake_s,
            options=[
                "-M", "-N", "-f", "-o", "ControlPersist=yes",
                # Streams of a paused host must go on after the thaw; `forget` is for a host that lost its power.
                "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=30",
            ],
        )  # fmt: skip

    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout_s: float = 30, check: bool = True
    ) -> Completed:
        """See `Command.run`."""
        deadline = time.monotonic() + timeout_s
        self._connect(timeout_s)
        text = shlex.join(argv)
        process = subprocess.Popen(
            [*self._argv, "--", text],
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            stdout, stderr = process.communicate(input, timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired as error:
            raise CommandTimeout(self._host, text, timeout_s) from error
        finally:
            _end(process)
        if check and process.returncode != 0:
            raise CommandFailed(self._host, text, process.returncode, stderr.decode(errors="replace"))
        return Completed(status=process.returncode, stdout=stdout, stderr=stderr)

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """See `Command.start`."""
        self._connect()
        return subprocess.Popen([*self._argv, "--", shlex.join(argv)], stdin=stdin, stdout=stdout, stderr=stderr)

    def put(self, files: Mapping[str, bytes | Path], *, mode: int = 0o644, timeout_s: float = 60) -> None:
        """See `Command.put`. Parent directories are made; a directory's contents are merged."""
        self.run(
            ["tar", "--extract", "--no-same-owner", "--directory=/"],
            input=_archive(files, mode),
            timeout_s=timeout_s,
        )

    def wait_reachable(self, timeout_s: float) -> None:
        """See `Command.wait_reachable`."""
        deadline = time.monotonic() + timeout_s
        while not self._connect():
            if time.monotonic() > deadline:
                raise LabLost(f"{self._host} cannot be reached by ssh within {timeout_s:g} s")
            time.sleep(0.2)

    def forget(self) -> None:
        """See `Command.forget`."""
        with self._lock:
            if self._control.exists():
                subprocess.run([*self._argv, "-O", "exit"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
                self._control.unlink(missing_ok=True)

    def _connect(self, timeout_s: float | None = None) -> bool:
        """Make sure of the kept connection; without one, ssh itself tries anew for each command."""
        with self._lock:
            if _listens(self._control):
                return True
            self._control.unlink(missing_ok=True)
            self._control.parent.mkdir(parents=True, exist_ok=True)
            try:
                made = subprocess.run(
                    self._master_argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=min(timeout_s or self._connect_timeout_s, self._connect_timeout_s),
                )
            except subprocess.TimeoutExpired:
                return False
            return made.returncode == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a client of the kept connection without waiting for the end of its output.

    The kept connection has copies of the client's pipes and keeps them open for as long as the host is silent.
    """
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _listens(path: Path) -> bool:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _archive(files: Mapping[str, bytes | Path], mode: int) -> bytes:
    """A tar archive with absolute paths made relative to /."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            name = path.lstrip("/")
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                info.mode = mode
                info.mtime = int(time.time())
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.add(content, arcname=name, filter=_as_root)
    return buffer.getvalue()


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of every item, at the same time; results in order, the first error raised when all ended.

    Daemon threads and not a pool: Ctrl-C must not wait for a host that does not answer.
    """
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    def work(number: int, item: T) -> None:
        try:
            results[number] = function(item)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number, item), daemon=True) for number, item in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(threads))]
