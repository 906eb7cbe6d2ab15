"""The edge to the kernel's PR ioctls with a kernel that answers from a list."""

import ctypes
import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fencing import Garbled, NotDelivered, OutcomeUnknown, PortError, Refused, check_device
from fencing import _prioctl as pr
from fencing._prioctl import PrIoctlPort
from fencing.model import OUR_TYPE, Key, PrType

CHECK_CONDITION = 0x02
CONFLICT = 0x18


class Kernel:
    """ioctl(2): PR OUT answers from a list; what is read are `keys` and `reservation`."""

    def __init__(self, *answers: int | OSError) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, bytes]] = []
        self.generations: list[int] = []
        self.keys: list[int] = []
        self.reservation = (0, 0)
        self.cannot_read = 0

    def __call__(self, fd: int, request: int, argument: bytearray) -> int:
        if request in (pr.IOC_PR_READ_KEYS, pr.IOC_PR_READ_RESERVATION):
            return self._read(request, argument)
        self.asked.append((request, bytes(argument)))
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _read(self, request: int, argument: bytearray) -> int:
        if self.cannot_read:
            raise OSError(self.cannot_read, "no")
        generation = self.generations.pop(0) if self.generations else 7
        if request == pr.IOC_PR_READ_RESERVATION:
            struct.pack_into("=QII", argument, 0, self.reservation[0], generation, self.reservation[1])
            return 0
        _, room, pointer = struct.unpack("=IIQ", argument)
        for number, key in enumerate(self.keys[:room]):
            ctypes.memmove(pointer + 8 * number, struct.pack("=Q", key), 8)
        struct.pack_into("=II", argument, 0, generation, len(self.keys))
        return 0


Make = Callable[..., tuple[PrIoctlPort, Kernel]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[PrIoctlPort] = []

    def making(*answers: int | OSError, name: str = "sda") -> tuple[PrIoctlPort, Kernel]:
        device = tmp_path / name
        device.touch()
        kernel = Kernel(*answers)
        made.append(PrIoctlPort(str(device), kernel))
        return made[-1], kernel

    yield making
    for port in made:
        port.close()


def test_numbers_and_structures_are_as_a_c_program_prints_them(make: Make) -> None:
    port, kernel = make(*[0] * 6)
    port.register(1, 2)
    port.reserve(1, OUR_TYPE)
    port.release(1, OUR_TYPE)
    port.preempt(1, 2, OUR_TYPE, abort=False)
    port.preempt(1, 2, OUR_TYPE)
    port.clear(1)
    assert [request for request, _ in kernel.asked] == [
        0x401870C8, 0x401070C9, 0x401070CA, 0x401870CB, 0x401870CC, 0x401070CD,
    ]  # fmt: skip
    assert [len(argument) for _, argument in kernel.asked] == [24, 16, 16, 24, 24, 16]
    assert kernel.asked[4][1].hex() == "010000000000000002000000000000000300000000000000"


def test_types_are_numbered_as_in_the_kernels_header(make: Make) -> None:
    port, kernel = make(*[0] * 6)
    for kind in PrType:
        port.reserve(1, kind)
    assert [struct.unpack("=QII", argument)[1] for _, argument in kernel.asked] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (CONFLICT, Refused),
        (0x2, OutcomeUnknown),
        (0x10000, OutcomeUnknown),
        (0xE0000, OutcomeUnknown),
        (0xF0000, OutcomeUnknown),
        (OSError(errno.EINTR, "interrupted"), OutcomeUnknown),
        (OSError(errno.EAGAIN, "again"), NotDelivered),
        (OSError(errno.EPERM, "not permitted"), NotDelivered),
        (OSError(errno.ENODEV, "no device"), NotDelivered),
        (OSError(errno.EOPNOTSUPP, "not supported"), Refused),
    ],
)
def test_what_a_failure_says_of_a_change(make: Make, answer: int | OSError, kind: type[PortError]) -> None:
    with pytest.raises(kind) as caught:
        make(*[answer] * (1 + pr.ATTENTIONS_MAX))[0].preempt(0x11, 0x22, OUR_TYPE)
    assert type(caught.value) is kind and caught.value.own_key == 0x11


def test_a_conflict_is_a_conflict(make: Make) -> None:
    with pytest.raises(Refused) as caught:
        make(CONFLICT)[0].reserve(1, OUR_TYPE)
    assert caught.value.conflict


@pytest.mark.parametrize("status", [CHECK_CONDITION, 0x100 | CHECK_CONDITION])
def test_a_check_condition_of_a_scsi_disk_is_taken_for_a_unit_attention_and_the_command_sent_again(
    make: Make, status: int
) -> None:
    port, kernel = make(status, status, 0)
    port.register(1, 2)
    assert len(kernel.asked) == 3 and len(set(kernel.asked)) == 1


def test_a_conflict_of_a_repeated_command_may_be_with_its_own_first_run(make: Make) -> None:
    with pytest.raises(OutcomeUnknown) as caught:
        make(CHECK_CONDITION, CONFLICT)[0].register(0, 2)
    assert type(caught.value) is OutcomeUnknown


def test_an_io_error_of_a_namespace_is_not_taken_for_a_unit_attention(make: Make) -> None:
    port, kernel = make(CHECK_CONDITION, 0, name="nvme0n1")
    with pytest.raises(OutcomeUnknown):
        port.reserve(1, OUR_TYPE)
    assert len(kernel.asked) == 1


def test_keys_and_reservation_are_read(make: Make) -> None:
    port, kernel = make()
    kernel.keys, kernel.reservation = [1, 2], (2, 3)
    state = port.read()
    assert (state.keys, state.holders, state.type, state.generation) == ((1, 2), (2,), OUR_TYPE, 7)


def test_more_keys_than_room_are_read_again_with_more_room(make: Make) -> None:
    port, kernel = make()
    kernel.keys = list(range(1, 301))
    assert len(port.read().registrants) == 300


def test_keys_and_reservation_of_two_generations_are_read_again(make: Make) -> None:
    port, kernel = make()
    kernel.generations = [1, 2, 3, 3]
    assert port.read().generation == 3


def test_registrations_that_never_rest_are_not_read(make: Make) -> None:
    port, kernel = make()
    kernel.generations = list(range(40))
    with pytest.raises(NotDelivered, match="changed during every read"):
        port.read()


@pytest.mark.parametrize("reservation", [(9, 3), (1, 7), (1, 0xFFFFFFFF)])
def test_a_reservation_that_makes_no_sense_is_garbage(make: Make, reservation: tuple[int, int]) -> None:
    port, kernel = make()
    kernel.keys, kernel.reservation = [1], reservation
    with pytest.raises(Garbled):
        port.read()


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_that_cannot_read_is_said_to_be_unfit_for_ownership(make: Make, number: int) -> None:
    port, kernel = make(CONFLICT)
    kernel.cannot_read = number
    assert "cannot read" in port.capabilities().unreadable
    with pytest.raises(Refused, match="cannot read"):
        port.read()
    failed = [result for result in check_device(port, Key(cluster_tag=1, node=1, epoch=0)) if not result.ok]
    assert failed and "cannot read" in failed[0].detail


def test_a_kernel_that_can_read_claims_no_persistence(make: Make) -> None:
    capabilities = make()[0].capabilities()
    assert (capabilities.unreadable, capabilities.persists) == ("", False)


def test_a_registration_on_nvme_is_never_replaced_by_a_key_of_0(make: Make) -> None:
    port, kernel = make(name="nvme0n1")
    with pytest.raises(Refused, match="key 0"):
        port.register(1, 0)
    assert kernel.asked == []


def test_on_nvme_an_old_key_makes_the_kernel_replace_and_a_conflict_makes_it_register(make: Make) -> None:
    port, kernel = make(CONFLICT, 0, name="nvme0n1")
    port.register(0, 5, ignore_existing=True)
    assert [struct.unpack("=QQII", argument) for _, argument in kernel.asked] == [(5, 5, 1, 0), (0, 5, 0, 0)]


def test_a_closed_port_sends_nothing(make: Make) -> None:
    port, kernel = make()
    port.close()
    with pytest.raises(NotDelivered):
        port.read()
    with pytest.raises(NotDelivered):
        port.register(0, 1)
    assert kernel.asked == []
