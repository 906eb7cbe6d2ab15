import ctypes
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fencing import Garbled, NotDelivered, OutcomeUnknown, PortError, Refused, scsi
from fencing._sgpt import TRANSPORT_ERROR
from fencing._sgutils import ATTENTIONS_MAX, SgPort
from fencing.model import OUR_TYPE

CONFLICT, ATTENTION = 24, 6


def registrant(key: int, *, holder: bool = False, name: bytes = b"iqn.x:n1") -> bytes:
    return struct.pack(">Q4xBB4xHI", key, int(holder), 5 if holder else 0, 1, len(name)) + name


def listed(*bodies: bytes, generation: int = 7) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">II", generation, len(body)) + body


class Library:
    """libsgutils2 that answers from a list, and keeps what it was asked."""

    def __init__(self, *answers: int | bytes) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, ...]] = []
        self.parameters = b""

    def receive(self, fd: int, cdb: bytes, buffer: Any, length: int) -> int:
        assert cdb[0] == 0x5E and len(cdb) == 10
        self.asked.append((cdb[1], int.from_bytes(cdb[7:9], "big")))
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            return answer
        ctypes.memmove(buffer, answer, min(len(answer), length))
        return 0

    def send(self, fd: int, cdb: bytes, buffer: Any, length: int) -> int:
        assert cdb[0] == 0x5F and len(cdb) == 10 and int.from_bytes(cdb[5:9], "big") == length
        self.asked.append((cdb[1], cdb[2] >> 4, cdb[2] & 0xF))
        self.parameters = buffer.raw[:length]
        answer = self.answers.pop(0)
        assert isinstance(answer, int)
        return answer


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Callable[..., SgPort]]:
    device = tmp_path / "sda"
    device.touch()
    made: list[SgPort] = []

    def make(*answers: int | bytes) -> SgPort:
        made.append(SgPort(str(device), Library(*answers)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def library_of(port: SgPort) -> Library:
    library = port._commands
    assert isinstance(library, Library)
    return library


def test_a_unit_attention_is_answered_by_asking_again(port) -> None:
    made = port(ATTENTION, 0)
    made.register(0, 0x11)
    assert library_of(made).asked == [(scsi.OUT_REGISTER, 0, 1)] * 2


def test_a_device_that_only_gives_unit_attentions_was_not_told(port) -> None:
    made = port(*[ATTENTION] * (ATTENTIONS_MAX + 1))
    with pytest.raises(NotDelivered, match="unit attention"):
        made.register(0, 0x11)


def test_register_asks_for_persistence_and_others_do_not(port) -> None:
    made = port(0, 0)
    made.register(0x22, 0x11)
    assert library_of(made).parameters == scsi.out_parameters(0x22, 0x11, aptpl=True)
    made.preempt(0x11, 0x33, OUR_TYPE)
    assert library_of(made).parameters == scsi.out_parameters(0x11, 0x33)


def test_each_call_has_its_service_action(port) -> None:
    made = port(*[0] * 8)
    made.register(1, 2)
    made.register(1, 2, ignore_existing=True)
    made.reserve(1, OUR_TYPE)
    made.release(1, OUR_TYPE)
    made.clear(1)
    made.preempt(1, 2, OUR_TYPE, abort=False)
    made.preempt(1, 2, OUR_TYPE, abort=True)
    assert [asked[0] for asked in library_of(made).asked] == [0, 6, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("category", "kind"),
    [
        (CONFLICT, Refused),
        (5, Refused),
        (9, Refused),
        (26, NotDelivered),
        (27, NotDelivered),
        (2, OutcomeUnknown),
        (11, OutcomeUnknown),
        (33, OutcomeUnknown),
        (TRANSPORT_ERROR, OutcomeUnknown),
        (99, OutcomeUnknown),
        (-1, OutcomeUnknown),
        (50 + 19, NotDelivered),  # ENODEV
        (50 + 5, OutcomeUnknown),  # EIO
    ],
)
def test_what_a_failure_says_of_a_change(port, category: int, kind: type[PortError]) -> None:
    with pytest.raises(kind) as caught:
        port(category).preempt(0x11, 0x22, OUR_TYPE)
    assert type(caught.value) is kind
    assert caught.value.own_key == 0x11 and caught.value.operation == "preempt"


@pytest.mark.parametrize("category", [2, 11, 33, 99, -1, 50 + 5, TRANSPORT_ERROR])
def test_a_read_that_failed_changed_nothing(port, category: int) -> None:
    with pytest.raises(NotDelivered):
        port(category).read()


def test_an_error_has_the_generation_that_was_read_before(port) -> None:
    made = port(listed(), CONFLICT)
    made.read()
    with pytest.raises(Refused, match="generation was 7") as caught:
        made.reserve(0x11, OUR_TYPE)
    assert caught.value.generation == 7 and caught.value.conflict


def test_full_status_is_one_command(port) -> None:
    made = port(listed(registrant(1, holder=True), registrant(2)))
    state = made.read()
    assert (state.keys, state.holders) == ((1, 2), (1,))
    assert len(library_of(made).asked) == 1


def test_a_list_that_nearly_fills_the_buffer_is_asked_for_again(port) -> None:
    """LIO counts only the descriptors that found room, so a full buffer says nothing about the rest."""
    many = [registrant(key, name=b"iqn.2026-11.org.hactl:n" + bytes(40)) for key in range(1, 41)]
    made = port(listed(*many[:21]), listed(*many))
    assert len(made.read().registrants) == 40
    lengths = [asked[1] for asked in library_of(made).asked]
    assert lengths == sorted(set(lengths)) and len(lengths) >= 2


def test_a_list_without_an_end_is_garbage(port) -> None:
    made = port(*[struct.pack(">II", 1, 0x7FFFFFFF)] * 10)
    with pytest.raises(Garbled, match="longer than can be asked for"):
        made.read()


@pytest.mark.parametrize("answer", [listed(b"\xff" * 47), listed(registrant(0)), b"\xff" * 4096])
def test_garbage_is_an_error_of_the_port(port, answer: bytes) -> None:
    with pytest.raises(Garbled, match="vendor"):
        port(*[answer] * 10).read()


@pytest.mark.parametrize("read", [SgPort.read, SgPort.capabilities])
def test_success_without_data_is_not_a_device_that_nobody_is_registered_with(
    port, read: Callable[[SgPort], object]
) -> None:
    with pytest.raises(Garbled, match="no data"):
        read(port(*[b""] * 4))


def test_a_device_without_full_status_is_asked_for_keys_and_reservation(port) -> None:
    keys, reservation = struct.pack(">QQ", 1, 2), struct.pack(">Q4xxB2x", 2, 5)
    made = port(9, listed(keys), listed(reservation), listed(keys), listed(reservation))
    for _ in range(2):
        state = made.read()
        assert (state.keys, state.holders, state.type) == ((1, 2), (2,), OUR_TYPE)
    assert [asked[0] for asked in library_of(made).asked] == [3, 0, 1, 0, 1]


def test_keys_and_reservation_of_two_generations_are_read_again(port) -> None:
    key, reservation = struct.pack(">Q", 1), struct.pack(">Q4xxB2x", 1, 5)
    made = port(
        5,
        listed(key, generation=1),
        listed(reservation, generation=2),
        listed(key, generation=2),
        listed(reservation, generation=2),
    )
    assert made.read().generation == 2


def test_a_closed_port_sends_nothing(port) -> None:
    made = port()
    made.close()
    made.close()
    with pytest.raises(NotDelivered):
        made.read()
    with pytest.raises(NotDelivered):
        made.register(0, 1)
