"""The speed of this machine's counter, which its guests are told."""

from hwlab import qemu
from hwlab.counter import counter_khz
from tests.hwlab.test_qemu import guest


def test_the_counter_is_measured_to_far_less_than_what_a_guest_would_refuse() -> None:
    """A guest corrects up to 1 % by itself, and drops a larger difference."""
    first = counter_khz()
    counter_khz.cache_clear()
    assert abs(counter_khz() - first) < first / 1000


def test_a_guest_is_told_it_and_does_not_measure() -> None:
    assert f"tsc_early_khz={counter_khz()}" in qemu.kernel_words(guest("n1"))
