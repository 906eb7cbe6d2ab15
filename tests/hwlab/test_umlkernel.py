"""Adapting the UML kernel to a processor with a large register state."""

import pytest

from hwlab.errors import LabError
from hwlab.umlkernel import _SET_REGSET, adapted

KERNEL = b"before" + _SET_REGSET + b"after"


def test_a_kernel_is_left_alone_where_the_state_fits() -> None:
    assert adapted(KERNEL, 2696) is KERNEL
    assert adapted(b"any other build", 832) == b"any other build"


def test_only_the_length_of_the_one_call_is_raised() -> None:
    changed = adapted(KERNEL, 11008)
    assert len(changed) == len(KERNEL)
    different = [index for index in range(len(KERNEL)) if changed[index] != KERNEL[index]]
    assert different == [9, 10]
    assert changed[9:13] == (11008).to_bytes(4, "little")


@pytest.mark.parametrize("kernel", [b"no such call", KERNEL + KERNEL])
def test_an_unexpected_build_is_refused_and_not_guessed_at(kernel: bytes) -> None:
    with pytest.raises(LabError, match="11008 bytes"):
        adapted(kernel, 11008)
