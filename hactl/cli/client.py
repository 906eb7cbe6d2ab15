"""How a command asks the local hactld: one line out, one or more lines back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from hactl.cli.exits import Exit
from hactl.errors import HaError, OutcomeUnknown

SOCKET = "/run/hactl/hactl.sock"


def fail(text: str, code: Exit) -> NoReturn:
    """Say what is wrong on one line of stderr, and leave with the code of its class."""
    click.echo(f"hactl: {text}", err=True)
    raise SystemExit(int(code))


def stream(verb: str, path: str = SOCKET, timeout_s: float | None = None, **args: str) -> Iterator[Any]:
    """The answers of a verb, one by one. Ends the process with a clear line when there is no daemon."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout_s)
            sock.connect(path)
            sock.sendall(json.dumps({"verb": verb, "args": args}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                for line in lines:
                    yield _result(line)
    except PermissionError:
        fail(f"no permission to use {path}: run it as root", Exit.USAGE)
    except TimeoutError:
        fail(f"hactld did not answer within {timeout_s} s; see `journalctl -u hactld`", Exit.UNKNOWN)
    except OSError as unreachable:
        fail(
            f"hactld does not answer at {path} ({unreachable.strerror}); start it with `systemctl start hactld`",
            Exit.UNREACHABLE,
        )


def _result(line: bytes) -> Any:
    answer = json.loads(line)
    if not answer["ok"]:
        fail(answer["error"], Exit.UNKNOWN if answer.get("kind") == "OutcomeUnknown" else Exit.REFUSED)
    return answer["result"]


def request(verb: str, wait_s: float, **args: str) -> Any:
    """As `ask`, but raises: HaError if it was refused, there is no daemon, or it did not answer in time."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(wait_s)
            sock.connect(SOCKET)
            sock.sendall(json.dumps({"verb": verb, "args": args}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                answer = json.loads(lines.readline())
    except (OSError, ValueError) as lost:
        raise OutcomeUnknown(f"hactld on this node did not answer ({lost})") from lost
    if not answer["ok"]:
        raise HaError(str(answer["error"]))
    return answer["result"]


def ask(verb: str, timeout_s: float = 30, **args: str) -> Any:
    """The one answer of a verb."""
    for result in stream(verb, timeout_s=timeout_s, **args):
        return result
    fail("hactld hung up without an answer; see `journalctl -u hactld`", Exit.UNKNOWN)
