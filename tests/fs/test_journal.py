"""Superblocks of file systems that mkfs really made."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fs import journal


def make(path: Path, fstype: str, size_mib: int) -> bytes:
    tool = shutil.which(f"mkfs.{fstype}")
    if tool is None:
        pytest.skip(f"mkfs.{fstype} is not installed")
    with open(path, "wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run([tool, "-q", path], check=True, capture_output=True)
    return path.read_bytes()[: journal.BYTES_NEEDED]


def test_fresh_ext4_is_clean(tmp_path: Path) -> None:
    found = journal.parse(make(tmp_path / "disk", "ext4", 16))
    assert found is not None
    assert (found.fstype, found.dirty, found.had_errors) == ("ext4", False, False)


def test_ext4_that_was_not_unmounted_needs_its_journal(tmp_path: Path) -> None:
    head = bytearray(make(tmp_path / "disk", "ext4", 16))
    incompatible = struct.unpack_from("<I", head, 1024 + 96)[0]
    struct.pack_into("<I", head, 1024 + 96, incompatible | 4)
    found = journal.parse(bytes(head))
    assert found is not None
    assert found.dirty is True


def test_fresh_xfs_is_known_but_its_log_is_not(tmp_path: Path) -> None:
    found = journal.parse(make(tmp_path / "disk", "xfs", 320))
    assert found is not None
    assert (found.fstype, found.dirty) == ("xfs", None)


def test_uuid_is_the_one_that_the_tools_print(tmp_path: Path) -> None:
    head = make(tmp_path / "disk", "ext4", 16)
    dumped = subprocess.run(["dumpe2fs", "-h", tmp_path / "disk"], check=True, capture_output=True, text=True).stdout
    found = journal.parse(head)
    assert found is not None
    assert str(found.uuid) in dumped


@pytest.mark.parametrize("head", [b"", b"\0" * 4096, b"XFS", b"\xff" * 4096])
def test_anything_else_is_no_file_system(head: bytes) -> None:
    assert journal.parse(head) is None
