"""The label's blocks on a file with O_DIRECT; on real disks: tests/lab/test_fencing.py."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fencing import FencingError, Label, LabelError, NotDelivered, OutcomeUnknown, Refused, _disk
from fencing._disk import LABEL_AREA_END, LABEL_OFFSETS, DiskLabels, block_name, in_use, wwid
from fencing.label import BLOCK_BYTES


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "sda"
    path.write_bytes(bytes(LABEL_AREA_END))
    monkeypatch.setattr(_disk, "wwid", lambda device: "naa.1")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary directory knows no O_DIRECT")
    yield path


def test_each_copy_is_written_to_its_place_and_nothing_else(disk: Path, label: Callable[..., Label]) -> None:
    labels = DiskLabels(str(disk), "naa.1")
    assert labels.read() is None
    first, second = label("naa.1", epoch=1), label("naa.1", epoch=2, seq=2)
    labels.write(first, 0)
    labels.write(second, 1)
    found = labels.read()
    assert found is not None and found.copies == (first, second) and found.label == second
    content = bytearray(disk.read_bytes())
    for offset in LABEL_OFFSETS:
        content[offset : offset + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    assert not any(content)
    labels.close()


def test_erased_copies_are_blank(disk: Path, label: Callable[..., Label]) -> None:
    labels = DiskLabels(str(disk), "naa.1")
    labels.write(label("naa.1"), 0)
    labels.erase()
    assert labels.read() is None
    labels.close()


def test_a_label_on_a_disk_that_became_another_is_not_touched(disk: Path, label: Callable[..., Label]) -> None:
    labels = DiskLabels(str(disk), "naa.2")
    for act in (labels.read, lambda: labels.write(label("naa.2"), 0)):
        with pytest.raises(NotDelivered, match=r"naa\.1 now"):
            act()
    assert not any(disk.read_bytes())


def test_a_label_that_is_too_long_is_not_written(disk: Path, label: Callable[..., Label]) -> None:
    labels = DiskLabels(str(disk), "naa.1")
    with pytest.raises(LabelError, match="at most"):
        labels.write(replace(label("naa.1"), clients=("10.0.0.0/8",) * 1000), 0)
    assert not any(disk.read_bytes())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EBADE, Refused),
        (errno.EIO, OutcomeUnknown),
        (errno.ETIMEDOUT, OutcomeUnknown),
        (errno.ENODEV, NotDelivered),
        (errno.EROFS, NotDelivered),
    ],
)
def test_what_a_failed_write_says(
    disk: Path, label: Callable[..., Label], monkeypatch, number: int, kind: type[FencingError]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    labels = DiskLabels(str(disk), "naa.1")
    monkeypatch.setattr(_disk.os, "pwrite", fail)
    with pytest.raises(kind):
        labels.write(label("naa.1"), 0)
    labels.close()


def test_a_medium_error_in_one_copy_leaves_the_other(disk: Path, label: Callable[..., Label], monkeypatch) -> None:
    labels = DiskLabels(str(disk), "naa.1")
    labels.write(label("naa.1"), 1)
    preadv = os.preadv

    def fail(descriptor: int, buffers, offset: int) -> int:
        if offset == LABEL_OFFSETS[0]:
            raise OSError(errno.EIO, "medium error")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(_disk.os, "preadv", fail)
    found = labels.read()
    assert found is not None and found.slot == 1 and "cannot be read" in found.damage
    labels.close()


def test_a_disk_that_gives_neither_copy_is_out_of_reach_and_not_damaged(disk: Path, monkeypatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "no path")

    labels = DiskLabels(str(disk), "naa.1")
    monkeypatch.setattr(_disk.os, "preadv", fail)
    with pytest.raises(NotDelivered, match="both copies"):
        labels.read()
    labels.close()


def test_what_is_no_block_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for act in (block_name, wwid):
        with pytest.raises(OSError, match="not a block device"):
            act(str(path))


def test_a_disk_that_cannot_be_opened_is_not_called_busy(tmp_path: Path) -> None:
    assert in_use(str(tmp_path / "gone")) == ""
