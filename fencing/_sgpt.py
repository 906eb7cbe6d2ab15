"""SCSI commands through libsgutils2's pass-through interface (scsi/sg_pt.h), by ctypes.

Not through its ready-made `sg_ll_persistent_reserve_*`: those of 1.46 return 0, success, for a command that the
transport lost (seen with a cut iSCSI session: "nobody is registered").
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
from typing import Any, Protocol

COMMAND_TIMEOUT_S = 60

_LIBRARY_PATTERN = re.compile(r"libsgutils2(?:-(\d+)\.(\d+))?\.so\.\d+")
_LIBRARY_DIRECTORIES = (
    "/usr/lib/*-linux-gnu",
    "/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)

_OBJECT, _BYTES, _INT = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "construct_scsi_pt_obj_with_fd": (_OBJECT, (_INT, _INT)),
    "destruct_scsi_pt_obj": (None, (_OBJECT,)),
    "set_scsi_pt_cdb": (None, (_OBJECT, _BYTES, _INT)),
    "set_scsi_pt_sense": (None, (_OBJECT, _BYTES, _INT)),
    "set_scsi_pt_data_in": (None, (_OBJECT, _BYTES, _INT)),
    "set_scsi_pt_data_out": (None, (_OBJECT, _BYTES, _INT)),
    "do_scsi_pt": (_INT, (_OBJECT, _INT, _INT, _INT)),
    "get_scsi_pt_status_response": (_INT, (_OBJECT,)),
    "get_scsi_pt_sense_len": (_INT, (_OBJECT,)),
    "get_scsi_pt_transport_err": (_INT, (_OBJECT,)),
    "sg_err_category_sense": (_INT, (_BYTES, _INT)),
}

# SG_LIB_CAT_* (sg_lib.h), which all of sg3_utils exit with.
NO_SENSE, RECOVERED, TIMEOUT, TRANSPORT_ERROR, OS_ERRORS, OTHER = 20, 21, 33, 35, 50, 99
_CHECK_CONDITION = 0x02
_STATUSES = {0x08: 26, 0x18: 24, 0x28: 27, 0x30: 28, 0x40: 29}
"""SCSI status (SAM-5 table 48) -> category; 0x18 is RESERVATION CONFLICT."""
_DO_TIMEOUT = 2
_SENSE_BYTES = 64


class Commands(Protocol):
    """Sends one SCSI command and waits for it. Returns 0 for success, else a category (SG_LIB_CAT_*)."""

    def receive(self, fd: int, cdb: bytes, buffer: Any, length: int) -> int: ...

    def send(self, fd: int, cdb: bytes, buffer: Any, length: int) -> int: ...


def find_library(directories: tuple[str, ...] = _LIBRARY_DIRECTORIES) -> str:
    """Path of the newest libsgutils2. Its name has the version inside, so ctypes.util cannot find it.

    FileNotFoundError names the package.
    """
    found: list[tuple[tuple[int, int], str]] = []
    for directory in directories:
        for path in glob.glob(f"{directory}/libsgutils2*.so.*"):
            match = _LIBRARY_PATTERN.fullmatch(os.path.basename(path))
            if match:
                found.append(((int(match[1] or 0), int(match[2] or 0)), path))
    if not found:
        raise FileNotFoundError("libsgutils2 is not installed; install the package sg3-utils")
    return max(found)[1]


class SgCommands:
    """`Commands` for sd, sg and bsg devices."""

    def __init__(self, library: Any = None) -> None:
        """FileNotFoundError, or AttributeError if the library lacks a function."""
        self._library = library or ctypes.CDLL(find_library())
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def receive(self, fd: int, cdb: bytes, buffer: Any, length: int) -> int:
        return self._run(fd, cdb, self._library.set_scsi_pt_data_in, buffer, length)

    def send(self, fd: int, cdb: bytes, buffer: Any, length: int) -> int:
        return self._run(fd, cdb, self._library.set_scsi_pt_data_out, buffer, length)

    def _run(self, fd: int, cdb: bytes, set_data: Any, buffer: Any, length: int) -> int:
        command = self._library.construct_scsi_pt_obj_with_fd(fd, 0)
        if not command:
            raise MemoryError("libsgutils2 could not make a command")
        try:
            sense = ctypes.create_string_buffer(_SENSE_BYTES)
            self._library.set_scsi_pt_cdb(command, cdb, len(cdb))
            self._library.set_scsi_pt_sense(command, sense, _SENSE_BYTES)
            set_data(command, buffer, length)
            started = self._library.do_scsi_pt(command, -1, COMMAND_TIMEOUT_S, 0)
            return _not_started(started) if started else self._category(command, sense)
        finally:
            self._library.destruct_scsi_pt_obj(command)

    def _category(self, command: int, sense: Any) -> int:
        """What the device said counts first: with a conflict kernels before 6.0 report a transport error, too."""
        status = self._library.get_scsi_pt_status_response(command)
        if status == _CHECK_CONDITION:
            found = int(self._library.sg_err_category_sense(sense, self._library.get_scsi_pt_sense_len(command)))
            return 0 if found in (NO_SENSE, RECOVERED) else found or OTHER
        if status:
            return _STATUSES.get(status, OTHER)
        return TRANSPORT_ERROR if self._library.get_scsi_pt_transport_err(command) else 0


def _not_started(result: int) -> int:
    """do_scsi_pt: below 0 an errno of the ioctl, above 0 what the library refused."""
    if result < 0:
        return OS_ERRORS - result
    return TIMEOUT if result == _DO_TIMEOUT else OTHER
