"""The code under test as one archive for a node, made from the source tree that hwlab itself belongs to."""

from __future__ import annotations

import compileall
import functools
import hashlib
import io
import py_compile
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hwlab.paths import PROJECT_DIR

PACKAGES = ("fencing", "fs", "hactl", "nodewatch")
LIB_DIR = "/opt/hactl/lib"
DIGEST_FILE = f"{LIB_DIR}/.digest"
UNIT_DIR = "/etc/systemd/system"
RULES_DIR = "/etc/udev/rules.d"

_WRAPPER = f"""#!/bin/sh
PYTHONPATH={LIB_DIR}:/opt/hactl/site exec python3 -m hactl.cli.main "$@"
"""

_GATE = f"""#!/bin/sh
PYTHONPATH={LIB_DIR} exec python3 -m fencing._pathgate "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """`tar`: to be extracted at / of a node. `digest`: of the sources; also the contents of DIGEST_FILE."""

    tar: bytes
    digest: str


@functools.cache
def build() -> Payload:
    """Read the sources, compile them (compiling is slow in a guest) and pack everything with its digest.

    Once per process: all runs of a drill are of the same code, also while somebody edits it.
    """
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        lib = tree / LIB_DIR.lstrip("/")
        for package in PACKAGES:
            shutil.copytree(PROJECT_DIR / package, lib / package, ignore=shutil.ignore_patterns("__pycache__"))
        units = tree / UNIT_DIR.lstrip("/")
        shutil.copytree(PROJECT_DIR / "deploy" / "systemd", units)
        shutil.copytree(PROJECT_DIR / "deploy" / "udev", tree / RULES_DIR.lstrip("/"))
        for place, text in (("usr/bin/hactl", _WRAPPER), ("usr/lib/hactl/path-gate", _GATE)):
            wrapper = tree / place
            wrapper.parent.mkdir(parents=True)
            wrapper.write_text(text)
            wrapper.chmod(0o755)
        digest = _digest(tree)
        (tree / DIGEST_FILE.lstrip("/")).write_text(digest)
        compileall.compile_dir(
            lib,
            quiet=1,
            stripdir=str(tree),
            prependdir="/",
            # Never compared with the source's time, which the archive would have to keep to the second.
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        return Payload(tar=_tar(tree), digest=digest)


def _digest(tree: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(tree)}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def _tar(tree: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(tree.rglob("*")):
            # Directories exist, or are made; carrying them would change the modes of the host's own.
            if path.is_file():
                archive.add(path, arcname=str(path.relative_to(tree)), filter=_as_root)
    return buffer.getvalue()


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info
