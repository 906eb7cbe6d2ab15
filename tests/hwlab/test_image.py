"""The image's key covers its inputs; a build that stops half-way leaves nothing that looks complete."""

from dataclasses import replace
from pathlib import Path

import pytest

from hwlab import image, paths
from hwlab.image import GUEST_DIR, Inputs, words_of

INPUTS = Inputs(
    suite="bookworm",
    kernel_version="6.1",
    packages=("udev",),
    dependencies=("click>=8",),
    guest_files={"boot.sh": b"#!/bin/sh\n"},
)


def test_equal_inputs_have_equal_keys() -> None:
    assert replace(INPUTS).key == INPUTS.key
    assert replace(INPUTS).base_key == INPUTS.base_key


@pytest.mark.parametrize(
    "changed",
    [
        replace(INPUTS, suite="trixie"),
        replace(INPUTS, kernel_version="6.2"),
        replace(INPUTS, packages=("udev", "kmod")),
        replace(INPUTS, dependencies=()),
    ],
)
def test_a_change_of_what_is_in_the_base_changes_both_keys(changed: Inputs) -> None:
    assert changed.base_key != INPUTS.base_key
    assert changed.key != INPUTS.key


def test_a_change_of_a_guest_file_rebuilds_the_image_on_the_same_base() -> None:
    changed = replace(INPUTS, guest_files={"boot.sh": b"#!/bin/dash\n"})
    assert changed.key != INPUTS.key
    assert changed.base_key == INPUTS.base_key


def test_every_file_of_the_guest_directory_has_a_place_in_the_image() -> None:
    lists = {"packages.txt", "masked-units.txt"}
    for path in GUEST_DIR.iterdir():
        assert path.suffix == ".service" or path.name in lists or path.name in image.PLACES, path.name


def test_every_enabled_unit_is_shipped() -> None:
    assert all((GUEST_DIR / f"{unit}.service").exists() for unit in image.ENABLED)


def test_no_unit_is_both_shipped_and_masked() -> None:
    masked = set(words_of((GUEST_DIR / "masked-units.txt").read_text()))
    assert masked.isdisjoint(path.name for path in GUEST_DIR.glob("*.service"))


def test_comments_and_empty_lines_of_a_list_file_are_no_words() -> None:
    assert words_of("# a comment\n\nudev  # why\n kmod\n") == ("udev", "kmod")


def test_an_interrupted_build_leaves_neither_an_entry_nor_its_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths.cache_dir().mkdir()
    builder = image._Builder(INPUTS, lambda line: None, 0)
    with (
        pytest.raises(KeyboardInterrupt),
        builder._atomic(paths.cache_dir() / "images" / "k") as partial,
    ):
        (partial / "root.img").write_text("half")
        raise KeyboardInterrupt
    assert list((paths.cache_dir() / "images").iterdir()) == []


def test_what_a_killed_builder_left_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    leftover = paths.cache_dir() / "images" / ".building-k-123"
    leftover.mkdir(parents=True)
    complete = paths.cache_dir() / "images" / "k"
    complete.mkdir()
    with image._build_lock(lambda line: None):
        assert not leftover.exists()
        assert complete.exists()
