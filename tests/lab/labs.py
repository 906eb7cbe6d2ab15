"""A lab of a test's own: made for it, gone when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hwlab.errors import LabError
from hwlab.lab import open_lab, remove_lab
from hwlab.labstage import LabStage
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


def healed(lab: Lab) -> LabStage:
    """The lab as a stage on which everything is well: hosts up, the volume served and mounted."""
    stage = LabStage(lab)
    stage.heal(print)
    return stage
