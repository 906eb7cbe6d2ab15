"""mountinfo as the kernel writes it."""

from fs import mounts

TEXT = r"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 25 8:2 / /srv/v1 rw,nosuid,nodev,noatime shared:5 - ext4 /dev/sda2 rw
38 25 8:18 / /srv/a\040b rw - xfs /dev/sdb2 ro,attr2
39 37 8:34 / /srv/v1 rw - ext4 /dev/sdc2 rw
"""


def test_later_mount_covers_the_earlier_one_on_the_same_path() -> None:
    found = mounts.at(mounts.parse(TEXT), "/srv/v1")
    assert found is not None
    assert found.device == "8:34"


def test_options_of_mount_and_super_block_are_joined() -> None:
    found = mounts.at(mounts.parse(TEXT), "/srv/a b")
    assert found is not None
    assert {"rw", "ro"} <= found.options


def test_optional_fields_are_skipped() -> None:
    first = mounts.parse(TEXT)[0]
    assert (first.root, first.fstype, first.source) == ("/mnt1", "ext3", "/dev/root")


def test_path_that_is_no_mount_point_is_none() -> None:
    assert mounts.at(mounts.parse(TEXT), "/srv") is None
