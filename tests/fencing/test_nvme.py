import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencing import nvme
from fencing.errors import CONFLICT, NotDelivered, OutcomeUnknown, PortError, Refused
from fencing.model import OUR_TYPE, PrType, Registrant, ReservationState
from fencing.nvme import AcquireAction, RegisterAction, ReleaseAction

HOSTS = tuple(bytes([number]) * 16 for number in range(1, 4))


def entry(key: int, host: bytes, *, holder: bool = False, controller: int = 0xFFFF) -> bytes:
    return struct.pack("<HB5xQ", controller, int(holder), key) + host + bytes(32)


def report(*entries: bytes, type: int = 0, generation: int = 7, count: int | None = None, ptpls: int = 0) -> bytes:
    head = struct.pack("<IBHxxB", generation, type, len(entries) if count is None else count, ptpls)
    return head.ljust(64, b"\0") + b"".join(entries)


def short_report(*entries: tuple[int, bytes, bool], type: int = 0) -> bytes:
    body = b"".join(
        struct.pack("<HB5x", 1, int(holder)) + host + struct.pack("<Q", key) for key, host, holder in entries
    )
    return struct.pack("<IBHxxB", 7, type, len(entries), 0).ljust(24, b"\0") + body


def test_the_kernels_structure_is_as_a_c_program_prints_it() -> None:
    command = nvme.acquire(AcquireAction.PREEMPT_AND_ABORT, 1, 2, OUR_TYPE)
    packed = nvme.passthrough(command, nsid=1, address=0x7F0011223344, timeout_ms=180_000)
    assert packed.hex() == (
        "110000000100000000000000000000000000000000000000"  # opcode, nsid, cdw2, cdw3, metadata
        "44332211007f0000" "00000000" "10000000"  # address, metadata length, data length
        "02030000" "00000000" "00000000000000000000000000000000"  # cdw10 .. cdw15
        "20bf0200" "00000000"  # timeout, result
    )  # fmt: skip
    assert len(packed) == nvme.PASSTHROUGH_BYTES == 72


@pytest.mark.parametrize(
    ("command", "opcode", "cdw10", "cdw11", "data"),
    [
        (nvme.register(RegisterAction.REGISTER, 0, 0x11), 0x0D, 0xC0000000, 0, "00" * 8 + "11" + "00" * 7),
        (nvme.register(RegisterAction.UNREGISTER, 0x11, 0), 0x0D, 0xC0000001, 0, "11" + "00" * 15),
        (
            nvme.register(RegisterAction.REPLACE, 0, 0x22, ignore_key=True),
            0x0D,
            0xC000000A,
            0,
            "00" * 8 + "22" + "00" * 7,
        ),
        (nvme.acquire(AcquireAction.ACQUIRE, 1, 0, OUR_TYPE), 0x11, 0x300, 0, "01" + "00" * 15),
        (nvme.acquire(AcquireAction.PREEMPT, 1, 2, PrType(8)), 0x11, 0x601, 0, "01" + "00" * 7 + "02" + "00" * 7),
        (nvme.release(ReleaseAction.RELEASE, 1, PrType(6)), 0x15, 0x400, 0, "01" + "00" * 7),
        (nvme.release(ReleaseAction.CLEAR, 1, OUR_TYPE), 0x15, 0x001, 0, "01" + "00" * 7),
        (nvme.report(4096), 0x0E, 1023, 1, ""),
        (nvme.report(4096, extended=False), 0x0E, 1023, 0, ""),
        (nvme.notification_log(), 0x02, 0x000F0080, 0, ""),
    ],
)
def test_each_command_has_its_opcode_action_and_data(
    command: nvme.Command, opcode: int, cdw10: int, cdw11: int, data: str
) -> None:
    assert (command.opcode, command.cdw10, command.cdw11, command.data.hex()) == (opcode, cdw10, cdw11, data)


def test_types_are_those_of_the_specification() -> None:
    assert [int(nvme.TYPES[code]) for code in range(1, 7)] == [1, 3, 5, 6, 7, 8]
    assert nvme.TYPES[3] is OUR_TYPE


@pytest.mark.parametrize("key", [-1, 1 << 64])
def test_keys_beyond_64_bits_do_not_reach_a_device(key: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        nvme.register(RegisterAction.REGISTER, 0, key)


@pytest.mark.parametrize("length", [0, 60, 66])
def test_a_report_of_a_length_that_cannot_be_asked_for_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="report"):
        nvme.report(length)


def test_a_report_gives_registrants_by_host_with_holder_and_type() -> None:
    answer = report(entry(1, HOSTS[0], holder=True), entry(2, HOSTS[1]), type=3) + bytes(1000)
    assert nvme.parse_report(answer) == ReservationState(
        generation=7,
        registrants=(
            Registrant(key=1, holder=True, nexus=HOSTS[0]),
            Registrant(key=2, holder=False, nexus=HOSTS[1]),
        ),
        type=OUR_TYPE,
    )


def test_a_report_of_an_unused_namespace_is_empty() -> None:
    assert nvme.parse_report(report()) == ReservationState(generation=7, registrants=(), type=None)


def test_a_host_with_several_controllers_is_one_registrant() -> None:
    answer = report(*[entry(1, HOSTS[0], holder=True, controller=number) for number in (1, 2)], type=3)
    assert len(nvme.parse_report(answer).registrants) == 1


def test_a_short_report_has_host_identifiers_of_8_bytes() -> None:
    state = nvme.parse_report(short_report((9, b"abcdefgh", True), type=1), extended=False)
    assert state.registrants == (Registrant(key=9, holder=True, nexus=b"abcdefgh"),)
    assert state.type is PrType.WRITE_EXCLUSIVE


def test_all_registrants_may_hold_where_the_type_says_so() -> None:
    answer = report(*[entry(key, HOSTS[key], holder=True) for key in (1, 2)], type=5)
    assert nvme.parse_report(answer).holders == (1, 2)


def test_a_registrant_with_key_0_is_shown_as_it_is() -> None:
    assert nvme.parse_report(report(entry(0, HOSTS[0]))).keys == (0,)


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        (b"", "a report of 0 bytes"),
        (bytes(23), "a report of 23 bytes"),
        (bytes(63), "a report of 63 bytes"),
        (report(count=0xFFFF), "says to have 65535 registrants"),
        (report(entry(1, HOSTS[0])[:-1]), "says to have 1 registrants"),
        (report(type=7), "type 7"),
        (report(type=0xFF), "type 255"),
        (report(entry(1, HOSTS[0], holder=True)), "a holder without a reservation"),
        (report(entry(1, HOSTS[0], holder=True), entry(2, HOSTS[1], holder=True), type=3), "2 holders"),
        (report(entry(1, HOSTS[0]), entry(2, HOSTS[0])), "with two keys"),
    ],
)
def test_a_report_that_makes_no_sense_is_named(bytes_: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        nvme.parse_report(bytes_)


def identify(rescap: int) -> bytes:
    return bytes(31) + bytes([rescap]) + bytes(4096 - 32)


def test_capabilities_tell_persistence_and_types() -> None:
    # nvmet of 7.3 has all types, and bit 7 (IEKEY of revision 1.3), but no persistence
    told = nvme.parse_capabilities(identify(0xFE), active=False)
    assert (told.persists, told.persistence_active, told.types) == (False, False, frozenset(PrType))
    assert nvme.parse_capabilities(identify(0x09), active=True).types == {OUR_TYPE}


@pytest.mark.parametrize("bytes_", [b"", bytes(31), identify(0), identify(0x80), identify(0x01)])
def test_a_namespace_without_reservations_is_named(bytes_: bytes) -> None:
    with pytest.raises(ValueError, match=r"no reservations|description"):
        nvme.parse_capabilities(bytes_, active=False)


def test_a_notification_says_what_happened_where_and_how_much_more_there_is() -> None:
    answer = struct.pack("<QBB2xI", 5, 1, 2, 9).ljust(64, b"\0")
    assert nvme.parse_notification(answer) == nvme.Notification(count=5, what="registration preempted", more=2, nsid=9)
    assert nvme.parse_notification(bytes(64)) is None


@pytest.mark.parametrize("bytes_", [b"", bytes(15), struct.pack("<QBB2xI", 1, 4, 0, 1)])
def test_a_notification_that_makes_no_sense_is_named(bytes_: bytes) -> None:
    with pytest.raises(ValueError, match="notification"):
        nvme.parse_notification(bytes_)


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({"NVME_AEN": "0x800006"}, "reservation notice"),
        ({"NVME_AEN": "0x01800106"}, "reservation notice"),
        ({"NVME_AEN": "0x040002"}, ""),  # namespaces changed
        ({"NVME_AEN": "0x810006"}, ""),  # another log page
        ({"NVME_AEN": "garbage"}, ""),
        ({"NVME_AEN": ""}, ""),
        ({"NVME_EVENT": "connected"}, "connected"),
        ({"NVME_EVENT": "rediscover"}, ""),
        ({}, ""),
    ],
)
def test_which_events_are_a_reason_to_look(properties: dict[str, str], why: str) -> None:
    assert nvme.must_verify(properties) == why


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0x083, Refused),
        (0x4083, Refused),  # DNR
        (0x6083, Refused),  # DNR, MORE
        (0x002, Refused),
        (0x001, Refused),
        (0x018, Refused),
        (0x302, NotDelivered),
        (0x303, NotDelivered),
        (0x082, OutcomeUnknown),
        (0x006, OutcomeUnknown),
        (0x007, OutcomeUnknown),
        (0x370, OutcomeUnknown),
        (0x371, OutcomeUnknown),
        (0x7FF, OutcomeUnknown),
    ],
)
def test_what_a_status_says_of_a_change(status: int, kind: type[PortError]) -> None:
    assert nvme.status_meaning(status)[1] is kind
    assert (nvme.status_meaning(status)[0] == CONFLICT) == (status & 0x7FF == 0x083)


def parsers() -> list[object]:
    return [
        nvme.parse_report,
        lambda answer: nvme.parse_report(answer, extended=False),
        nvme.needed,
        nvme.persists,
        nvme.parse_notification,
        lambda answer: nvme.parse_capabilities(answer, active=False),
    ]


@given(st.binary(max_size=400))
def test_no_bytes_crash_a_parser(bytes_: bytes) -> None:
    for parse in parsers():
        try:
            parse(bytes_)
        except ValueError:
            pass


def test_no_damage_to_a_good_report_crashes_a_parser() -> None:
    dice = random.Random(1)
    good = report(entry(1, HOSTS[0], holder=True), entry(2, HOSTS[1]), type=3)
    for _ in range(5000):
        damaged = bytearray(good[: dice.randrange(len(good) + 1)])
        for _ in range(dice.randrange(4)):
            if damaged:
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        for parse in parsers():
            try:
                parse(bytes(damaged))
            except ValueError:
                pass


@given(
    st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, (1 << 64) - 1), max_size=20),
    st.integers(0, 6),
    st.integers(0, (1 << 32) - 1),
)
def test_a_report_reads_as_it_was_written(keys: dict[bytes, int], type: int, generation: int) -> None:
    hosts = sorted(keys)
    holding = set(hosts[:1]) if 0 < type < 5 else set(hosts) if type else set()
    answer = report(
        *[entry(keys[host], host, holder=host in holding) for host in hosts], type=type, generation=generation
    )
    state = nvme.parse_report(answer)
    assert state.generation == generation
    assert [(r.nexus, r.key, r.holder) for r in state.registrants] == [(h, keys[h], h in holding) for h in hosts]
    assert nvme.needed(answer) == len(answer)
