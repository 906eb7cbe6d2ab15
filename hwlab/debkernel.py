"""Kernels of Debian for the driver `qemu`: fetched by suite, since single versions come and go in an archive.

A topology asks for a kernel by the beginning of its version (`kernel = "6.18"`), or takes the newest of the suite,
which must then be one whose NVMe target keeps the promise that fencing rests on.

What a guest needs of it is made once and cached by version: the kernel, a small first file system (busybox and the
modules of the root disk), and a disk with the modules that hosts of a lab load. These are listed by name and come with
all that they need; decompressed, since an emulated processor would take a second for each.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwlab.errors import LabError
from hwlab.image import apt_options, host_suite, mirror
from hwlab.paths import PACKAGE_DIR, cache_dir
from hwlab.protocols import Progress

SUITE = "trixie-backports"
HOST_SUITE_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
INIT = PACKAGE_DIR / "initrd.sh"

# Of 6.18 it is known that its nvmet reports a preempt as done that did nothing, and does not wait for writes in flight.
MINIMUM = "7.3"

ROOT_MODULES = ("virtio_blk", "ext4", "virtio_net")
HOST_MODULES = (
    # NVMe, target and host
    "nvmet", "nvmet-tcp", "nvme-loop", "nvme-tcp", "nvme-fabrics",
    # a served volume
    "macvlan", "nfsd", "xfs", "softdog", "dm-mod", "dm-multipath", "dm-service-time", "dm-delay", "md-mod", "raid1",
    # gate and faults
    "ip_tables", "iptable_filter", "ip_set_hash_ip", "xt_set", "sch_netem", "sch_ingress", "sch_prio", "cls_u32",
    "cls_matchall", "cls_flower", "act_gact", "act_mirred",
    # a client
    "nfs", "nfsv4",
    # SCSI
    "sd_mod", "sg", "iscsi_tcp", "target_core_mod", "target_core_iblock", "target_core_file", "iscsi_target_mod",
)  # fmt: skip

_RECIPE = 1
_IMAGE = re.compile(r"linux-image-(?P<version>[0-9][0-9.]*\+deb[0-9]+-amd64)")
_SIGNED = b"~Module signature appended~\n"
_MODULE_FILE = re.compile(r"(?P<name>[^/]+)\.ko(\.xz)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianKernel:
    """A kernel in the cache. `version` as `uname -r` says it; `modules` is the image of a disk."""

    version: str
    vmlinuz: Path
    initrd: Path
    modules: Path


def numbers(version: str) -> tuple[int, ...]:
    """The numbers before Debian's own part, for comparison: 7.3.4+deb13-amd64 -> (7, 3, 4)."""
    return tuple(int(number) for number in re.match(r"[0-9.]*", version)[0].strip(".").split(".") if number)  # type: ignore[index]


def choose(available: Sequence[str], wanted: str) -> str | None:
    """The newest of the versions that begin with `wanted`; without it, the newest if it is not below MINIMUM."""
    lowest = numbers(wanted or MINIMUM)
    if wanted:
        fitting = [version for version in available if numbers(version)[: len(lowest)] == lowest]
    else:
        fitting = [version for version in available if numbers(version) >= lowest]
    return max(fitting, key=numbers, default=None)


def with_needed(names: Sequence[str], dependencies: Mapping[str, Sequence[str]], builtin: set[str]) -> list[str]:
    """The modules of these names and all that they need, each after what it needs; LabError if there is none."""
    ordered: list[str] = []

    def add(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in dependencies:
            raise LabError(f"this kernel has no module {name}: correct the list in hwlab/debkernel.py")
        for needed in dependencies[name]:
            add(needed)
        ordered.append(name)

    for name in names:
        add(name.replace("-", "_"))
    return ordered


def module_name(path: str) -> str:
    """Name of the module in a file, as the kernel has it: with underscores."""
    found = _MODULE_FILE.search(path)
    if found is None:
        raise LabError(f"{path} is no module")
    return found["name"].replace("-", "_")


def unsigned(module: bytes) -> bytes:
    """A module without the signature that Debian appended: checking it is much work for an emulated processor.

    The end of a signed module: signature, 12 bytes of which the last 4 are the signature's length, magic.
    """
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED)
    return module[: end - 12 - int.from_bytes(module[end - 4 : end], "big")]


def parse_dependencies(text: str) -> dict[str, list[str]]:
    """Module -> the modules that it needs, from the text of `modules.dep`."""
    lines = (line.partition(":") for line in text.splitlines() if line)
    return {module_name(path): [module_name(word) for word in needed.split()] for path, _, needed in lines}


def cached_debian_kernel(version: str) -> DebianKernel | None:
    """The kernel of exactly that version if the cache has it."""
    directory = _root() / version
    if not version or not directory.exists():
        return None
    return DebianKernel(
        version=version,
        vmlinuz=directory / "vmlinuz",
        initrd=directory / "initrd",
        modules=directory / "modules.img",
    )


def ensure_debian_kernel(wanted: str, progress: Progress) -> DebianKernel:
    """A kernel that fits the topology's word, from the cache or from Debian's archive. LabError if neither has one."""
    _root().mkdir(parents=True, exist_ok=True)
    with _lock():
        version = choose([path.name for path in _root().iterdir() if not path.name.startswith(".")], wanted)
        if version is None:
            # Of a fetch that was killed: under the lock nobody is at work on it.
            for leftover in _root().glob(".fetching-*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=_root()) as work:
                version = _Fetch(Path(work), progress).kernel(wanted)
    found = cached_debian_kernel(version)
    assert found is not None
    return found


def _root() -> Path:
    """One directory per version. Its name holds a hash of what else decides the contents."""
    recipe = repr((_RECIPE, ROOT_MODULES, HOST_MODULES)).encode() + INIT.read_bytes()
    return cache_dir() / "debian-kernels" / hashlib.sha256(recipe).hexdigest()[:12]


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    fd = os.open(_root().parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class _Fetch:
    """One kernel from the archive into the cache, in a directory of its own until it is whole."""

    def __init__(self, work: Path, progress: Progress) -> None:
        self._work = work
        self._progress = progress
        self._lists = work / "apt"
        (self._lists / "lists").mkdir(parents=True)
        (self._lists / "cache").mkdir()
        source = f"deb [signed-by={HOST_SUITE_KEYRING}] {mirror(host_suite())} {SUITE} main\n"
        (self._lists / "sources.list").write_text(source)

    def kernel(self, wanted: str) -> str:
        """Fetch and unpack; the version that it became."""
        self._progress(f"kernel: asking Debian's {SUITE} for its kernels")
        self._apt("apt-get", "update")
        packages = self._apt("apt-cache", "pkgnames", "linux-").split()
        available = [found["version"] for name in packages if (found := _IMAGE.fullmatch(name))]
        version = choose(available, wanted)
        if version is None:
            raise LabError(_gone(wanted, available))
        # Since 6.19 the kernel and its modules are packages of their own.
        parts = [f"linux-{part}-{version}" for part in ("image", "base", "binary", "modules")]
        self._progress(f"kernel: fetching {version}")
        debs = self._work / "debs"
        debs.mkdir()
        self._apt("apt-get", "download", *(part for part in parts if part in packages), cwd=debs)
        tree = self._work / "tree"
        for deb in debs.iterdir():
            _run(["dpkg-deb", "--extract", str(deb), str(tree)])
        made = self._work / "made"
        made.mkdir()
        self._progress(f"kernel: preparing {version}")
        _prepare(tree, version, made)
        made.rename(_root() / version)
        return version

    def _apt(self, *words: str, cwd: Path | None = None) -> str:
        options = [
            f"Dir::Etc::SourceList={self._lists / 'sources.list'}",
            "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::Lists={self._lists / 'lists'}",
            f"Dir::Cache={self._lists / 'cache'}",
            "APT::Sandbox::User=root",
            'Acquire::Languages "none"',
            *apt_options(),
        ]
        return _run([words[0], *(f"--option={_assignment(option)}" for option in options), *words[1:]], cwd)


def _assignment(option: str) -> str:
    """`Name "value";`, as apt-config prints it, in the form that the command line takes."""
    name, _, value = option.partition(" ")
    bare = value.strip('";')
    return f"{name}={bare}" if value else option


def _gone(wanted: str, available: Sequence[str]) -> str:
    shown = ", ".join(sorted({".".join(map(str, numbers(version)[:2])) for version in available}, key=numbers))
    asked = f"kernel {wanted}" if wanted else f"kernel {MINIMUM} or newer, which NVMe fencing needs,"
    return (
        f"{asked} is not in Debian's {SUITE}: it has {shown or 'none'}; name one of these as `kernel` in the topology"
    )


def _prepare(tree: Path, version: str, made: Path) -> None:
    """Make the three files that guests start from out of the unpacked packages."""
    modules = tree / "usr/lib/modules"
    if not (modules / version).exists():
        modules = tree / "lib/modules"
    _run(["depmod", "--basedir", str(modules.parent.parent), version])
    here = modules / version
    dependencies = parse_dependencies((here / "modules.dep").read_text())
    builtin = {module_name(line) for line in (here / "modules.builtin").read_text().split()}
    files = {module_name(path.name): path for path in here.rglob("*.ko*")}
    kernel = here / "vmlinuz" if (here / "vmlinuz").exists() else tree / "boot" / f"vmlinuz-{version}"
    shutil.copy(kernel, made / "vmlinuz")
    _make_initrd(made / "initrd", [files[name] for name in with_needed(ROOT_MODULES, dependencies, builtin)])

    kept = made / "tree" / "lib/modules" / version
    for name in with_needed((*ROOT_MODULES, *HOST_MODULES), dependencies, builtin):
        _decompress(files[name], kept / files[name].relative_to(here).parent)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (here / name).exists():
            shutil.copy(here / name, kept / name)
    _run(["depmod", "--basedir", str(made / "tree"), version])
    _run(
        [
            "mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^metadata_csum,^has_journal", "-E", "root_owner=0:0",
            "-d", str(kept.parent), str(made / "modules.img"), f"{_size_mb(kept) * 5 // 4 + 8}M",
        ]
    )  # fmt: skip
    shutil.rmtree(made / "tree")


def _make_initrd(path: Path, modules: Sequence[Path]) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise LabError("no busybox for the first file system of a guest: apt-get install busybox-static")
    tree = path.with_name("initrd-tree")
    for name in ("bin", "dev", "modules.d", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(INIT, tree / "init")
    (tree / "init").chmod(0o755)
    for module in modules:
        _decompress(module, tree / "modules.d")
    order = [f"/modules.d/{module.name.removesuffix('.xz')}\n" for module in modules]
    (tree / "modules").write_text("".join(order))
    names = "".join(f"{file.relative_to(tree)}\n" for file in sorted(tree.rglob("*")))
    with path.open("wb") as out:
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"],
            input=names.encode(),
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=tree,
            check=True,
        )
    shutil.rmtree(tree)


def _decompress(module: Path, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    data = module.read_bytes()
    plain = lzma.decompress(data) if module.suffix == ".xz" else data
    (directory / module.name.removesuffix(".xz")).write_bytes(unsigned(plain))


def _size_mb(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) >> 20


def _run(argv: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise LabError(f"`{argv[0]} … {argv[-1]}` failed: {done.stderr.strip()[-600:]}")
    return done.stdout
