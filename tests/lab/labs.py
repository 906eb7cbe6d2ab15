"""A lab of a test's own: made for it, gone when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hwlab.errors import LabError
from hwlab.lab import open_lab, remove_lab
from hwlab.preconditions import preconditions
from hwlab.protocols import Lab


@contextmanager
def fresh_lab(name: str, topology: str = "default") -> Iterator[Lab]:
    """Hosts are off yet. On a machine that cannot have a lab the test is skipped, with what is missing."""
    try:
        preconditions()
    except LabError as error:
        pytest.skip(str(error))
    remove_lab(name, lambda _: None)
    lab = open_lab(name, topology)
    try:
        yield lab
    finally:
        remove_lab(name, print)
