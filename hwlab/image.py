"""The disk image that every lab host starts from: built once, cached by a hash of all that goes into it.

Two layers, since their inputs change at different speeds:

base    a Debian tree: packages (from the apt sources of this machine), UML's modules, Python dependencies
image   base + the files of hwlab/guest, as one ext4 file; every host runs on a copy-on-write layer above it

The code under test is not in it: `hwlab.strategy` installs that into running hosts.

A build happens in a directory of its own and is renamed into place when it is complete, so a cache entry
either does not exist or is whole. One lock serialises builders; children inherit it, so that a builder that was
killed keeps the next one waiting until its last child is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwlab import record
from hwlab.errors import LabError
from hwlab.paths import PACKAGE_DIR, PROJECT_DIR, cache_dir
from hwlab.preconditions import preconditions

Progress = Callable[[str], None]

GUEST_DIR = PACKAGE_DIR / "guest"
SITE_DIR = "opt/hactl/site"
ROOT_SIZE = "2G"

# Where files of hwlab/guest go, and their modes. Units (*.service) all go to etc/systemd/system.
PLACES: Mapping[str, tuple[str, int]] = {
    "boot.sh": ("usr/lib/hwlab/boot.sh", 0o755),
    "iscsi-login.sh": ("usr/lib/hwlab/iscsi-login.sh", 0o755),
    "nvme-connect.sh": ("usr/lib/hwlab/nvme-connect.sh", 0o755),
    "nvmet.py": ("usr/lib/hwlab/nvmet.py", 0o644),
    "target.py": ("usr/lib/hwlab/target.py", 0o755),
    "multipath.conf": ("etc/multipath.conf", 0o644),
    "iscsid.conf": ("etc/iscsi/iscsid.conf", 0o600),
    "mdadm.conf": ("etc/mdadm/mdadm.conf", 0o644),
    "journald.conf": ("etc/systemd/journald.conf.d/hwlab.conf", 0o644),
    "system.conf": ("etc/systemd/system.conf.d/hwlab.conf", 0o644),
    "sshd.conf": ("etc/ssh/sshd_config.d/hwlab.conf", 0o644),
}
ENABLED = ("hwlab-boot", "hwlab-modules", "hwlab-node", "hwlab-nvme", "hwlab-target", "multipathd", "ssh")

# Parts of the keys: raise one when the code below builds something else from the same inputs.
_BASE_RECIPE = 1
_IMAGE_RECIPE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A complete image. `root` is never written to; `key_file` is the private ssh key its hosts accept."""

    key: str
    root: Path
    key_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that decides what an image contains."""

    suite: str
    kernel_version: str
    packages: tuple[str, ...]
    dependencies: tuple[str, ...]
    guest_files: Mapping[str, bytes]

    @property
    def base_key(self) -> str:
        """Hash of what the slow layer depends on."""
        return _digest([_BASE_RECIPE, self.suite, self.kernel_version, self.packages, self.dependencies])

    @property
    def key(self) -> str:
        """Hash of what the whole image depends on."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.guest_files.items()}
        return _digest([_IMAGE_RECIPE, self.base_key, sorted(hashes.items()), ROOT_SIZE, PLACES, ENABLED])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def words_of(text: str) -> tuple[str, ...]:
    """The non-comment lines of a list file."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def project_dependencies() -> tuple[str, ...]:
    """What pyproject.toml says the code under test needs at run time."""
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])


def gather_inputs() -> Inputs:
    """Read the inputs from the source tree and from this machine's package database."""
    version = _output(["dpkg-query", "--show", "--showformat=${Version}", "user-mode-linux"])
    files = {path.name: path.read_bytes() for path in sorted(GUEST_DIR.iterdir()) if path.is_file()}
    return Inputs(
        suite=host_suite(),
        kernel_version=version,
        packages=words_of(files["packages.txt"].decode()),
        dependencies=project_dependencies(),
        guest_files=files,
    )


def ensure_image(progress: Progress) -> Image:
    """The image for the present inputs, building it if the cache has none.

    Takes one to two minutes the first time, some seconds when only files of hwlab/guest changed, nothing
    otherwise. LabError if a step fails, with the place of its full output.
    """
    preconditions()
    inputs = gather_inputs()
    directory = cache_dir() / "images" / inputs.key
    if not directory.exists():
        with _build_lock(progress) as lock:
            if not directory.exists():
                _Builder(inputs, progress, lock).build(directory)
    image = cached_image(inputs.key)
    assert image is not None
    return image


def cached_image(key: str) -> Image | None:
    """The image of that key if the cache still has it."""
    directory = cache_dir() / "images" / key
    if not directory.exists():
        return None
    return Image(key=key, root=directory / "root.img", key_file=directory / "id_ed25519")


def _keys_in_use() -> set[str]:
    """Keys of the images below the disks of labs that exist."""
    records = (record.read(lab) for lab in record.recorded_labs())
    return {found.image for found in records if found is not None}


@contextlib.contextmanager
def _build_lock(progress: Progress) -> Iterator[int]:
    """Hold the builders' lock; remove what a killed builder left, since nobody can be at work on it."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    fd = os.open(cache / "build.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("image: another build is running, waiting for it")
            fcntl.flock(fd, fcntl.LOCK_EX)
        for leftover in cache.glob("*/.building-*"):
            shutil.rmtree(leftover)
        yield fd
    finally:
        os.close(fd)


class _Builder:
    """One build, under the lock."""

    def __init__(self, inputs: Inputs, progress: Progress, lock: int) -> None:
        self._inputs = inputs
        self._lock = lock
        self._progress = progress
        self._started = time.monotonic()
        self._log = cache_dir() / "build.log"
        self._log.unlink(missing_ok=True)

    def build(self, directory: Path) -> None:
        base = cache_dir() / "bases" / self._inputs.base_key
        if not base.exists():
            with self._atomic(base) as partial:
                self._build_base(partial)
        with self._atomic(directory) as partial:
            self._build_image(base, partial)
        self._prune(base, directory)
        self._say("complete")

    def _say(self, text: str) -> None:
        self._progress(f"image: {text} [{time.monotonic() - self._started:.0f} s]")

    @contextlib.contextmanager
    def _atomic(self, target: Path) -> Iterator[Path]:
        partial = target.with_name(f".building-{target.name}-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(target)
        finally:
            # Something that is just being killed may still write here; the next builder removes the rest.
            shutil.rmtree(partial, ignore_errors=True)

    def _build_base(self, tree: Path) -> None:
        self._say(f"installing {len(self._inputs.packages)} Debian packages and what they need")
        # In namespaces of its own it ends with this process, to the last child and mount.
        self._run(
            [
                "setpriv", "--pdeathsig", "KILL",
                "unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child",
                "mmdebstrap", "--mode=root", "--variant=minbase",
                f"--include={','.join(self._inputs.packages)}",
                '--aptopt=Acquire::Languages "none"',
                *(f"--aptopt={option}" for option in apt_options()),
                "--dpkgopt=force-unsafe-io",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                # Descriptions of a cloud's services, which one fence agent of many needs.
                "--dpkgopt=path-exclude=/usr/lib/python3/dist-packages/botocore/data/*",
                "--skip=check/empty",
                self._inputs.suite, str(tree), mirror(self._inputs.suite),
            ]
        )  # fmt: skip
        self._say("copying the kernel's modules")
        [modules] = Path("/usr/lib/uml/modules").iterdir()
        (tree / "lib/modules").mkdir(exist_ok=True)
        shutil.copytree(modules, tree / "lib/modules" / modules.name)
        self._run(["chroot", str(tree), "depmod", modules.name])
        self._say("installing Python dependencies")
        self._install_dependencies(tree)

    def _install_dependencies(self, tree: Path) -> None:
        """With this interpreter's pip, for the guest's Python: the tree itself has no index configured."""
        version = _output(["chroot", str(tree), "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        self._run(
            [
                sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile",
                "--target", str(tree / SITE_DIR), "--only-binary=:all:", "--python-version", version,
                "--platform", "manylinux_2_34_x86_64", "--platform", "manylinux_2_28_x86_64",
                "--platform", "manylinux2014_x86_64", "--platform", "linux_x86_64",
                *self._inputs.dependencies,
            ]
        )  # fmt: skip
        self._run(["chroot", str(tree), "python3", "-m", "compileall", "-q", f"/{SITE_DIR}"])

    def _build_image(self, base: Path, partial: Path) -> None:
        tree = partial / "tree"
        self._say("adding the lab's own files")
        self._run(["cp", "--archive", "--reflink=auto", str(base), str(tree)])
        key_file = partial / "id_ed25519"
        self._run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hwlab", "-f", str(key_file)])
        self._configure(tree, key_file.with_suffix(".pub").read_text())
        self._say("writing the ext4 image")
        self._run(
            [
                "mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^metadata_csum", "-J", "size=16",
                "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
                "-d", str(tree), str(partial / "root.img"), ROOT_SIZE,
            ]
        )  # fmt: skip
        shutil.rmtree(tree)

    def _configure(self, tree: Path, public_key: str) -> None:
        files = self._inputs.guest_files
        for old in (tree / "etc/systemd/system").glob("*.wants/*"):
            old.unlink()
        for name, data in files.items():
            if name.endswith(".service"):
                _install(tree / "etc/systemd/system" / name, data, 0o644)
            elif name in PLACES:
                place, mode = PLACES[name]
                _install(tree / place, data, mode)
        for unit in words_of(files["masked-units.txt"].decode()):
            (tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
        generators = tree / "etc/systemd/system-generators"
        generators.mkdir()
        for generator in (tree / "lib/systemd/system-generators").iterdir():
            (generators / generator.name).symlink_to("/dev/null")
        # A program per interface that would note what iSCSI boot firmware says of it: there is none.
        (tree / "etc/udev/rules.d").mkdir(parents=True, exist_ok=True)
        (tree / "etc/udev/rules.d/70-iscsi-network-interface.rules").symlink_to("/dev/null")
        # The boot unit names the interfaces; udev has nothing to add.
        (tree / "etc/systemd/network/99-default.link").symlink_to("/dev/null")
        self._run(["chroot", str(tree), "systemctl", "--quiet", "enable", *ENABLED])
        shutil.rmtree(tree / "etc/iscsi/nodes", ignore_errors=True)
        (tree / "etc/iscsi/nodes").symlink_to("/run/iscsi/nodes")
        _install(tree / "root/.ssh/authorized_keys", public_key.encode(), 0o600)
        (tree / "root/.ssh").chmod(0o700)
        _install(tree / "etc/hosts", b"127.0.0.1 localhost\n", 0o644)
        (tree / "etc/resolv.conf").unlink(missing_ok=True)

    def _prune(self, base: Path, image: Path) -> None:
        """Remove what was superseded, except the newest few and what a lab's disks still lie above."""
        in_use = _keys_in_use() | {base.name, image.name}
        for directory, newest in ((base.parent, 2), (image.parent, 3)):
            entries = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in entries[newest:]:
                if old.name not in in_use:
                    shutil.rmtree(old)

    def _run(self, argv: Sequence[str]) -> None:
        """Run one step; its output goes to the build log, the end of which is shown if it fails."""
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        with self._log.open("ab") as log:
            log.write(f"+ {' '.join(argv)}\n".encode())
            log.flush()
            status = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(self._lock,),
            ).returncode
        if status != 0:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])
            raise LabError(
                f"building the image failed at `{argv[0]}` (status {status}); all output: {self._log}\n{tail}"
            )


def _install(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _output(argv: Sequence[str]) -> str:
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {result.stderr.strip()}")
    return result.stdout.strip()


def host_suite() -> str:
    """The hosts run the same Debian release as this machine: UML's kernel comes from it too."""
    values = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if values.get("ID") != "debian" or "VERSION_CODENAME" not in values:
        raise LabError(f"a lab is built on Debian, this is {values.get('PRETTY_NAME', 'something else')}")
    return values["VERSION_CODENAME"].strip('"')


def mirror(suite: str) -> str:
    """The archive that this machine's apt takes the release from."""
    lines = _output(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"]
    ).splitlines()
    for line in lines:
        uri, release, component = line.split("|")
        if release == suite and component == "main":
            return uri
    raise LabError(f"apt knows no source for {suite} main: check /etc/apt and run apt-get update")


def apt_options() -> list[str]:
    """Options of this machine's apt that decide whether it can reach and accept its mirror."""
    wanted = ("proxy", "check-valid-until", "check-date")
    dump = _output(["apt-config", "dump", "Acquire"]).splitlines()
    return [line for line in dump if any(word in line.lower() for word in wanted)]
