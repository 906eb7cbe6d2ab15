"""libsgutils2's pass-through interface: what the library reports of a command, and what is made of it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fencing._sgpt import OTHER, RECOVERED, TIMEOUT, TRANSPORT_ERROR, SgCommands, find_library


class Library:
    """The functions of sg_pt.h for one command, whose end is given."""

    def __init__(self, *, started: int = 0, status: int = 0, category: int = 0, transport: int = 0) -> None:
        self.made = self.destroyed = 0
        self.cdb = b""
        self.went: list[str] = []
        end = SimpleNamespace(started=started, status=status, category=category, transport=transport)
        self.construct_scsi_pt_obj_with_fd = lambda fd, verbose: self._make()
        self.destruct_scsi_pt_obj = lambda made: self._destroy()
        self.set_scsi_pt_cdb = lambda made, cdb, length: setattr(self, "cdb", cdb)
        self.set_scsi_pt_sense = lambda made, buffer, length: None
        self.set_scsi_pt_data_in = lambda made, buffer, length: self.went.append("in")
        self.set_scsi_pt_data_out = lambda made, buffer, length: self.went.append("out")
        self.do_scsi_pt = lambda made, fd, timeout_s, verbose: end.started
        self.get_scsi_pt_status_response = lambda made: end.status
        self.get_scsi_pt_sense_len = lambda made: 18
        self.get_scsi_pt_transport_err = lambda made: end.transport
        self.sg_err_category_sense = lambda sense, length: end.category

    def _make(self) -> int:
        self.made += 1
        return 1

    def _destroy(self) -> None:
        self.destroyed += 1


def sent(**end: Any) -> int:
    library = Library(**end)
    try:
        return SgCommands(library).send(3, bytes(10), ctypes.create_string_buffer(24), 24)
    finally:
        assert library.made == library.destroyed == 1


def test_a_command_that_the_transport_lost_is_no_success() -> None:
    """Status 0, no sense, no errno: libsgutils2's own wrapper calls that a success."""
    assert sent(transport=0x0E) == TRANSPORT_ERROR


def test_what_the_device_said_counts_before_what_the_transport_made_of_it() -> None:
    """Kernels before 6.0 report DID_NEXUS_FAILURE with a conflict."""
    assert sent(status=0x18, transport=0x11) == 24


@pytest.mark.parametrize(
    ("end", "category"),
    [
        ({}, 0),
        ({"status": 0x02, "category": 6}, 6),
        ({"status": 0x02, "category": RECOVERED}, 0),
        ({"status": 0x02, "category": 0}, OTHER),
        ({"status": 0x08}, 26),
        ({"status": 0x28}, 27),
        ({"status": 0x40}, 29),
        ({"status": 0x22}, OTHER),
        ({"started": -5}, 50 + 5),
        ({"started": 2}, TIMEOUT),
        ({"started": 1}, OTHER),
    ],
)
def test_each_end_of_a_command_has_its_category(end: dict[str, int], category: int) -> None:
    assert sent(**end) == category


def test_data_go_the_way_they_should() -> None:
    library = Library()
    commands = SgCommands(library)
    commands.receive(3, b"\x5e" + bytes(9), ctypes.create_string_buffer(8), 8)
    commands.send(3, b"\x5f" + bytes(9), ctypes.create_string_buffer(24), 24)
    assert library.went == ["in", "out"] and library.cdb[0] == 0x5F


def test_the_newest_library_is_found_whatever_its_version(tmp_path: Path) -> None:
    for name in ("libsgutils2-1.46.so.2", "libsgutils2-1.48.so.2", "libsgutils2-1.46.so.2.0.0", "libc.so.6"):
        (tmp_path / name).touch()
    assert find_library((str(tmp_path),)).endswith("libsgutils2-1.48.so.2")


def test_a_missing_library_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sg3-utils"):
        find_library((str(tmp_path),))
