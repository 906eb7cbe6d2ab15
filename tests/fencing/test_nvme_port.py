"""The edge to NVMe with a kernel that answers from a list."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fencing import Garbled, NotDelivered, OutcomeUnknown, PortError, Refused
from fencing._nvme import (
    CHANGE_TIMEOUT_MS,
    NVME_IOCTL_ADMIN_CMD,
    NVME_IOCTL_ID,
    NVME_IOCTL_IO_CMD,
    REPORT_BYTES,
    NvmePort,
)
from fencing._nvmehost import controllers, host_id
from fencing.model import OUR_TYPE

CONFLICT = 0x4083
HOST = bytes(range(16))


def report(*keys: int, generation: int = 7, count: int | None = None) -> bytes:
    head = struct.pack("<IBHxxB", generation, 3 if keys else 0, len(keys) if count is None else count, 0)
    entries = [
        struct.pack("<HB5xQ", 0xFFFF, int(not number), key) + bytes([number]) * 16 + bytes(32)
        for number, key in enumerate(keys)
    ]
    return head.ljust(64, b"\0") + b"".join(entries)


class Kernel:
    """ioctl(2) that answers from a list: a status, an errno, or bytes; and keeps what it was asked."""

    def __init__(self, *answers: int | bytes | OSError) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, int, bytes]] = []
        self.timeouts: list[int] = []
        self.requests: list[int] = []

    def __call__(self, fd: int, request: int, argument: bytearray) -> int:
        if request == NVME_IOCTL_ID:
            return 3
        opcode, nsid = argument[0], struct.unpack_from("=I", argument, 4)[0]
        address, length = struct.unpack_from("=Q4xI", argument, 24)
        cdw10, timeout_ms = struct.unpack_from("=I", argument, 40)[0], struct.unpack_from("=I", argument, 64)[0]
        assert nsid == 3 and len(argument) == 72
        answer = self.answers.pop(0)
        self.requests.append(request)
        self.timeouts.append(timeout_ms)
        self.asked.append((opcode, cdw10, ctypes.string_at(address, length)))
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, int):
            return answer
        ctypes.memmove(address, answer, min(len(answer), length))
        return 0


Make = Callable[..., tuple[NvmePort, Kernel]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    device = tmp_path / "nvme0n1"
    device.touch()
    made: list[NvmePort] = []

    def making(*answers: int | bytes | OSError) -> tuple[NvmePort, Kernel]:
        kernel = Kernel(*answers)
        made.append(NvmePort(str(device), kernel))
        return made[-1], kernel

    yield making
    for port in made:
        port.close()


def keys(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def test_ioctl_numbers_are_those_of_the_kernels_header() -> None:
    assert (NVME_IOCTL_ID, NVME_IOCTL_ADMIN_CMD, NVME_IOCTL_IO_CMD) == (0x4E40, 0xC0484E41, 0xC0484E43)


def test_each_call_has_its_command(make: Make) -> None:
    port, kernel = make(*[0] * 9)
    port.register(0, 1)
    port.register(1, 2)
    port.register(2, 0)
    port.reserve(1, OUR_TYPE)
    port.preempt(1, 2, OUR_TYPE)
    port.preempt(1, 2, OUR_TYPE, abort=False)
    port.release(1, OUR_TYPE)
    port.clear(1)
    assert kernel.asked == [
        (0x0D, 0xC0000000, keys(0, 1)),
        (0x0D, 0xC0000002, keys(1, 2)),
        (0x0D, 0xC0000001, keys(2, 0)),  # a real unregister, not a key of 0
        (0x11, 0x300, keys(1, 0)),
        (0x11, 0x302, keys(1, 2)),
        (0x11, 0x301, keys(1, 2)),
        (0x15, 0x300, keys(1)),
        (0x15, 0x001, keys(1)),
    ]
    assert set(kernel.requests) == {NVME_IOCTL_IO_CMD}


def test_no_change_has_a_timeout_that_a_draining_device_could_reach(make: Make) -> None:
    port, kernel = make(0, 0)
    port.preempt(1, 2, OUR_TYPE)
    port.register(0, 1)
    assert kernel.timeouts == [CHANGE_TIMEOUT_MS] * 2 and CHANGE_TIMEOUT_MS >= 150_000


def test_whatever_key_this_host_has_is_replaced_in_one_command(make: Make) -> None:
    port, kernel = make(0)
    port.register(0, 5, ignore_existing=True)
    assert kernel.asked == [(0x0D, 0xC000000A, keys(0, 5))]


def test_without_a_key_to_replace_it_is_registered(make: Make) -> None:
    port, kernel = make(CONFLICT, 0)
    port.register(0, 5, ignore_existing=True)
    assert kernel.asked[1] == (0x0D, 0xC0000000, keys(0, 5))


@pytest.mark.parametrize("first", [0x4002, OSError(errno.EINTR, "interrupted")])
def test_a_replacement_that_failed_otherwise_is_not_tried_in_another_way(make: Make, first: int | OSError) -> None:
    port, kernel = make(first, 0)
    with pytest.raises((Refused, OutcomeUnknown)):
        port.register(0, 5, ignore_existing=True)
    assert len(kernel.asked) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (CONFLICT, Refused),
        (0x0370, OutcomeUnknown),
        (0x0371, OutcomeUnknown),
        (OSError(errno.EINTR, "interrupted system call"), OutcomeUnknown),
        (OSError(errno.EIO, "input/output error"), OutcomeUnknown),
        (OSError(errno.ENOMEM, "out of memory"), OutcomeUnknown),
        (OSError(errno.EAGAIN, "try again"), NotDelivered),
        (OSError(errno.ENODEV, "no such device"), NotDelivered),
        (OSError(errno.ENXIO, "no such device"), NotDelivered),
        (OSError(errno.ENOTTY, "not a typewriter"), NotDelivered),
    ],
)
def test_what_a_failure_says_of_a_change(make: Make, answer: int | OSError, kind: type[PortError]) -> None:
    with pytest.raises(kind) as caught:
        make(answer)[0].preempt(0x11, 0x22, OUR_TYPE)
    assert type(caught.value) is kind
    assert caught.value.own_key == 0x11 and caught.value.operation == "preempt"


@pytest.mark.parametrize("answer", [0x371, OSError(errno.EINTR, "interrupted"), OSError(errno.EAGAIN, "try again")])
def test_a_read_that_failed_changed_nothing(make: Make, answer: int | OSError) -> None:
    with pytest.raises(NotDelivered):
        make(answer, answer)[0].read()


def test_a_read_that_was_given_up_with_its_path_is_sent_down_another_one_and_no_change_is(make: Make) -> None:
    given_up = OSError(errno.EINTR, "interrupted system call")
    port, kernel = make(given_up, report(1), given_up)
    assert port.read().keys == (1,)
    with pytest.raises(OutcomeUnknown):
        port.reserve(1, OUR_TYPE)
    assert len(kernel.asked) == 3


def test_an_error_has_the_generation_that_was_read_before(make: Make) -> None:
    port, _ = make(report(1), CONFLICT)
    port.read()
    with pytest.raises(Refused, match="generation was 7") as caught:
        port.reserve(1, OUR_TYPE)
    assert caught.value.conflict


def test_a_report_longer_than_the_buffer_is_asked_for_again(make: Make) -> None:
    many = report(*range(1, 101))
    port, kernel = make(many[:REPORT_BYTES], many)
    assert len(port.read().registrants) == 100
    assert [cdw10 for _, cdw10, _ in kernel.asked] == [REPORT_BYTES // 4 - 1, 2 * REPORT_BYTES // 4 - 1]


def test_a_report_that_grows_while_it_is_read_is_read_whole(make: Make) -> None:
    port, _ = make(report(*range(1, 80))[:REPORT_BYTES], report(*range(1, 151))[: 2 * REPORT_BYTES], report(1, 2))
    assert len(port.read().registrants) == 2


@pytest.mark.parametrize("answer", [report(count=0xFFFF), b"\xff" * REPORT_BYTES])
def test_a_report_without_an_end_is_garbage(make: Make, answer: bytes) -> None:
    with pytest.raises(Garbled, match="vendor"):
        make(*[answer] * 5)[0].read()


def test_a_host_with_a_short_identifier_is_asked_for_a_short_report_from_then_on(make: Make) -> None:
    short = struct.pack("<IBHxxB", 7, 0, 1, 0).ljust(24, b"\0") + struct.pack("<HB5x8sQ", 1, 0, b"abcdefgh", 9)
    port, kernel = make(0x6018, short, short)
    for _ in range(2):
        assert port.read().keys == (9,)
    assert len(kernel.asked) == 3


def test_capabilities_are_asked_of_the_namespace(make: Make) -> None:
    port, kernel = make(report(), bytes(31) + b"\xfe" + bytes(4064))
    assert OUR_TYPE in port.capabilities().types
    assert kernel.requests == [NVME_IOCTL_IO_CMD, NVME_IOCTL_ADMIN_CMD]
    with pytest.raises(Garbled, match="no reservations"):
        make(report(), bytes(4096))[0].capabilities()


def test_a_closed_port_sends_nothing(make: Make) -> None:
    port, kernel = make()
    port.close()
    port.close()
    for act in (port.read, lambda: port.register(0, 1)):
        with pytest.raises(NotDelivered):
            act()
    assert kernel.asked == []


def test_a_device_that_is_no_namespace_is_not_left_open(tmp_path: Path) -> None:
    def ioctl(fd: int, request: int, argument: bytearray) -> int:
        raise OSError(errno.ENOTTY, "inappropriate ioctl for device")

    device = tmp_path / "nvme0n1"
    device.touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="inappropriate"):
        NvmePort(str(device), ioctl)
    assert len(os.listdir("/proc/self/fd")) == before


def tree(sysfs: Path, hosts: dict[str, str], *, native: bool) -> None:
    """A namespace below one controller, or below the subsystem of several, as Linux shows it."""
    for name, host in hosts.items():
        controller = sysfs / "devices/fabrics/ctl" / name
        controller.mkdir(parents=True)
        (controller / "cntlid").write_text("1\n")
        (controller / "subsysnqn").write_text("nqn\n")
        if host:
            (controller / "hostid").write_text(f"{host}\n")
        (sysfs / "class/nvme").mkdir(parents=True, exist_ok=True)
        (sysfs / "class/nvme" / name).symlink_to(controller)
    above = sysfs / "devices/fabrics/ctl" / next(iter(hosts))
    if native:
        above = sysfs / "devices/subsystem/nvme-subsys0"
        above.mkdir(parents=True)
        (above / "subsysnqn").write_text("nqn\n")
        for name in hosts:
            (above / name).symlink_to(sysfs / "class/nvme" / name)
    block = above / "nvme0n1"
    block.mkdir()
    (block / "device").symlink_to(above)
    (sysfs / "class/block").mkdir(parents=True)
    (sysfs / "class/block/nvme0n1").symlink_to(block)


ONE, TWO = "00010203-0405-0607-0809-0a0b0c0d0e0f", "ffffffff-0000-4000-8000-000000000001"


@pytest.mark.parametrize("native", [False, True])
def test_the_host_identifier_is_that_of_the_namespaces_controllers(tmp_path: Path, native: bool) -> None:
    tree(tmp_path, {"nvme0": ONE, "nvme1": ONE} if native else {"nvme0": ONE}, native=native)
    assert host_id("/dev/nvme0n1", tmp_path) == HOST
    assert controllers("/dev/nvme0n1", tmp_path) == (["nvme0", "nvme1"] if native else ["nvme0"])


def test_paths_with_different_host_identifiers_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, {"nvme0": ONE, "nvme1": TWO}, native=True)
    with pytest.raises(OSError, match="different NVMe host identifiers"):
        host_id("/dev/nvme0n1", tmp_path)


def test_a_controller_that_does_not_tell_its_host_identifier_leaves_it_unknown(tmp_path: Path) -> None:
    tree(tmp_path, {"nvme0": ""}, native=False)
    assert host_id("/dev/nvme0n1", tmp_path) == b""
