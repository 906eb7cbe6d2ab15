"""Devices and their holders, as far as a machine without spare disks can tell."""

from pathlib import Path

import pytest

from fs import FsError, Mounted, NotPossible, VolumeSpec
from fs._mount import MountPoint, device_number, holders, is_free, whole_disk


def spec(device: str = "/dev/null", fstype: str = "ext4") -> VolumeSpec:
    return VolumeSpec(name="nosuchvolume", device=device, fstype=fstype, address_cidr="10.77.1.50/24", clients=())


@pytest.mark.parametrize(
    ("partition", "whole"),
    [
        ("/dev/sda2", "/dev/sda"),
        ("/dev/sdab12", "/dev/sdab"),
        ("/dev/nvme0n1p2", "/dev/nvme0n1"),
        ("/dev/disk/by-id/wwn-0x60014055-part2", "/dev/disk/by-id/wwn-0x60014055"),
        ("/dev/mapper/mpatha-part2", "/dev/mapper/mpatha"),
        ("/dev/sda", None),
    ],
)
def test_whole_disk_of_a_partition(partition: str, whole: str | None) -> None:
    assert whole_disk(partition) == whole


def test_device_that_is_not_there_proves_nothing() -> None:
    assert is_free("/dev/no-such-disk2") is None
    assert device_number("/dev/no-such-disk2") is None
    assert holders("/dev/no-such-disk2", Path("/srv/nosuchvolume")) == ()


def test_unknown_file_system_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    point = MountPoint(spec(fstype="btrfs"), tmp_path)
    with pytest.raises(NotPossible, match="use ext4 or xfs"):
        point.mount()
    assert not point.path.exists()


def test_what_is_no_disk_is_refused(tmp_path: Path) -> None:
    point = MountPoint(spec(device="/dev/zero"), tmp_path)
    with pytest.raises(FsError, match="cannot read /dev/zero"):
        point.mount()
    assert point.mounted() is Mounted.NO
