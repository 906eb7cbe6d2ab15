"""Kernels of Debian: which version is taken, which modules go along, what is said of one that is gone."""

import re
from pathlib import Path

import pytest

from hwlab import debkernel
from hwlab.debkernel import (
    cached_debian_kernel,
    choose,
    ensure_debian_kernel,
    module_name,
    parse_dependencies,
    unsigned,
    with_needed,
)
from hwlab.errors import LabError

ARCHIVE = ["6.18.9+deb13-amd64", "6.18.15+deb13-amd64", "7.2.12+deb13-amd64", "7.3.4+deb13-amd64"]
MODULES_DEP = """\
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/jbd2/jbd2.ko.xz:
kernel/lib/crc16.ko:
kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-core.ko.xz
kernel/drivers/nvme/host/nvme-core.ko.xz:
"""


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", "7.3.4+deb13-amd64"),
        ("7.3", "7.3.4+deb13-amd64"),
        ("6.18", "6.18.15+deb13-amd64"),
        ("6.18.9", "6.18.9+deb13-amd64"),
        ("6.1", None),
        ("7.4", None),
    ],
)
def test_a_kernel_is_chosen_by_the_beginning_of_its_version(wanted: str, chosen: str | None) -> None:
    assert choose(ARCHIVE, wanted) == chosen


def test_without_a_word_a_kernel_that_breaks_the_promise_is_not_taken() -> None:
    assert choose(ARCHIVE[:2], "") is None
    assert choose(ARCHIVE[:2], "6.18") is not None


def test_a_kernel_that_is_gone_is_said_with_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debkernel, "mirror", lambda suite: "http://archive.invalid")
    monkeypatch.setattr(debkernel, "host_suite", lambda: "bookworm")
    monkeypatch.setattr(debkernel, "apt_options", list)
    names = "linux-image-7.2.12+deb13-amd64 linux-image-6.18.9+deb13-amd64 linux-image-6.18.9+deb13-cloud-amd64"
    asked: list[str] = []

    def apt(argv: list[str], cwd: Path | None = None) -> str:
        asked.append(argv[0])
        return names.replace(" ", "\n")

    monkeypatch.setattr(debkernel, "_run", apt)
    (debkernel._root() / ".fetching-killed" / "debs").mkdir(parents=True)
    with pytest.raises(LabError, match=re.escape("kernel 6.19 is not in Debian's trixie-backports: it has 6.18, 7.2;")):
        ensure_debian_kernel("6.19", print)
    with pytest.raises(LabError, match=re.escape("kernel 7.3 or newer, which NVMe fencing needs, is not in")):
        ensure_debian_kernel("", print)
    assert asked == ["apt-get", "apt-cache"] * 2
    assert cached_debian_kernel("7.2.12+deb13-amd64") is None
    # Nothing half made is left.
    assert [path.name for path in debkernel._root().iterdir()] == []


def test_a_kernel_in_the_cache_is_taken_without_asking_the_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debkernel, "_run", lambda *_: pytest.fail("the archive was asked"))
    (debkernel._root() / "7.3.4+deb13-amd64").mkdir(parents=True)
    assert ensure_debian_kernel("", print).version == "7.3.4+deb13-amd64"


def test_each_module_comes_after_what_it_needs() -> None:
    needed = parse_dependencies(MODULES_DEP)
    assert with_needed(["ext4", "nvme-tcp", "ext4"], needed, set()) == [
        "jbd2",
        "crc16",
        "ext4",
        "nvme_core",
        "nvme_tcp",
    ]
    assert with_needed(["ext4"], needed, {"crc16"}) == ["jbd2", "ext4"]


def test_a_module_that_the_kernel_does_not_have_is_an_error() -> None:
    with pytest.raises(LabError, match="no module nvmet_tcp"):
        with_needed(["nvmet-tcp"], parse_dependencies(MODULES_DEP), set())


def test_a_file_that_is_no_module_is_an_error() -> None:
    with pytest.raises(LabError, match=r"vmlinuz is no module"):
        module_name("boot/vmlinuz")


def test_a_signature_is_cut_off_and_nothing_else() -> None:
    module, signature = b"\x7fELF the module", b"s" * 300
    tail = bytes(8) + len(signature).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert unsigned(module + signature + tail) == module
    assert unsigned(module) == module
