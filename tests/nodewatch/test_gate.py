"""The gates' edge: netlink messages that somebody else prepared, and what the kernel answers."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from nodewatch._gate import BadGate, Gate

HEADER = struct.Struct("=LHHLL")


def netlink(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def answer(sequence: int, error: int) -> bytes:
    return netlink(2, 0, sequence, struct.pack("=l", -error) + bytes(16))


RENEW, CLOSE = netlink(20, 5, 11, b"renew"), netlink(21, 5, 12, b"close")


class Kernel:
    """Answers with the errors that it was told to."""

    def __init__(self) -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gate = Gate(ours.detach(), RENEW, CLOSE)
        self.errors: list[int] = []
        self.seen: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while message := self.end.recv(4096):
            self.seen.append(message)
            sequence = HEADER.unpack_from(message)[3]
            self.end.send(answer(sequence + 1000, 0))  # a late answer to something else
            self.end.send(answer(sequence, self.errors.pop(0) if self.errors else 0))


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    fake = Kernel()
    yield fake
    fake.gate.release()


def test_the_prepared_bytes_are_sent_and_the_answer_read(kernel: Kernel) -> None:
    assert kernel.gate.renew() == 0
    assert kernel.gate.close() == 0
    assert kernel.seen == [RENEW, CLOSE]


def test_an_error_is_given_back(kernel: Kernel) -> None:
    kernel.errors = [errno.ENODEV, errno.EPERM]
    assert kernel.gate.renew() == errno.ENODEV
    assert kernel.gate.close() == errno.EPERM


def test_closing_what_is_away_already_is_closed(kernel: Kernel) -> None:
    kernel.errors = [errno.EADDRNOTAVAIL, errno.ENODEV]
    assert kernel.gate.close() == 0
    assert kernel.gate.close() == 0


def test_no_answer_is_an_error_and_does_not_block() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate = Gate(ours.detach(), RENEW, CLOSE)
    assert gate.renew() == errno.ETIMEDOUT
    theirs.close()
    assert gate.close() != 0
    gate.release()


@pytest.mark.parametrize("message", [b"", b"short", RENEW[:-1], RENEW + b"x"])
def test_what_is_not_one_whole_message_is_refused(message: bytes) -> None:
    with pytest.raises(BadGate):
        Gate(os.dup(0), message, CLOSE)


def test_what_is_no_socket_is_refused() -> None:
    with pytest.raises(BadGate, match="no socket"):
        Gate(os.open("/dev/null", os.O_RDONLY), RENEW, CLOSE)


@pytest.mark.skipif(os.geteuid() != 0, reason="adding an address needs root")
def test_a_real_address_is_opened_renewed_and_closed() -> None:
    """In a network namespace of this thread's own."""
    verdicts: list[object] = []

    def run() -> None:
        try:
            os_unshare_net()
            verdicts.extend(_address_round())
        except PermissionError as error:
            verdicts.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(verdicts[0], PermissionError):
        pytest.skip(f"no network namespace here: {verdicts[0]}")
    assert verdicts == [0, True, 0, 0, False, 0, 0, True]


def os_unshare_net() -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise PermissionError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


def _address_message(kind: int, flags: int, sequence: int) -> bytes:
    """127.9.9.9/32 on lo (interface 1), valid for 1 s."""
    address = socket.inet_aton("127.9.9.9")
    payload = struct.pack("=BBBBL", socket.AF_INET, 32, 0, 0, 1)
    for attribute, data in ((1, address), (2, address), (6, struct.pack("=LLLL", 1, 1, 0, 0))):
        payload += struct.pack("=HH", 4 + len(data), attribute) + data
    return netlink(kind, flags, sequence, payload)


def _bindable() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.9.9.9", 0))
        except OSError:
            return False
    return True


def _address_round() -> list[object]:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.bind((0, 0))
    renew = _address_message(20, 0x1 | 0x4 | 0x100 | 0x400, 1)  # NEWADDR: REQUEST ACK REPLACE CREATE
    gate = Gate(link.detach(), renew, _address_message(21, 0x1 | 0x4, 2))
    seen: list[object] = [gate.renew(), _bindable(), gate.renew(), gate.close(), _bindable(), gate.close()]
    seen += [gate.renew(), _bindable()]
    gate.release()
    return seen
