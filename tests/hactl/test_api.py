"""The local socket: real sockets, hostile lines, and the kernel's word for who asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hactl import api
from hactl.api import Api, Args
from hactl.errors import HaError, RequestRefused


async def hello(args: Args) -> dict[str, str]:
    return {"hello": args.get("name", "")}


async def refuse(args: Args) -> None:
    raise RequestRefused("no, because")


async def count(args: Args) -> AsyncIterator[int]:
    for number in range(3):
        yield number


VERBS: dict[str, Any] = {"hello": hello, "refuse": refuse}


async def ask(path: Path, line: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line)
    writer.write_eof()
    answers = [json.loads(each) async for each in reader]
    writer.close()
    return answers


def serve_and_ask(path: Path, line: bytes) -> list[dict[str, Any]]:
    async def go() -> list[dict[str, Any]]:
        server = await Api(VERBS, {"count": count}, frozenset({"refuse"})).listen(path)
        try:
            return await asyncio.wait_for(ask(path, line), 10)
        finally:
            server.close()

    return asyncio.run(go())


def request(verb: str, **args: str) -> bytes:
    return json.dumps({"verb": verb, "args": args}).encode() + b"\n"


def test_a_verb_is_answered(tmp_path: Path) -> None:
    assert serve_and_ask(tmp_path / "s", request("hello", name="x")) == [{"ok": True, "result": {"hello": "x"}}]


def test_a_stream_answers_until_its_end(tmp_path: Path) -> None:
    assert [each["result"] for each in serve_and_ask(tmp_path / "s", request("count"))] == [0, 1, 2]


def test_a_refusal_carries_its_reason_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "peer_uid", lambda sock: 0)
    (answer,) = serve_and_ask(tmp_path / "s", request("refuse"))
    assert (answer["ok"], answer["error"], answer["kind"]) == (False, "no, because", "RequestRefused")


def test_only_root_may_change_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "peer_uid", lambda sock: 1000)
    (answer,) = serve_and_ask(tmp_path / "s", request("refuse"))
    assert "needs root (you are uid 1000)" in answer["error"]
    assert serve_and_ask(tmp_path / "s", request("hello"))[0]["ok"]


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"[]\n", b"\xff\xfe\n", b'{"verb": 3}\n', b'{"verb": "hello", "args": {"a": 1}}\n', b"[" * 9000],
)
def test_a_hostile_line_gets_one_clear_error(tmp_path: Path, line: bytes) -> None:
    (answer,) = serve_and_ask(tmp_path / "s", line)
    assert not answer["ok"]


def test_an_endless_line_is_hung_up_on(tmp_path: Path) -> None:
    assert serve_and_ask(tmp_path / "s", b"x" * 200_000) == []


def test_a_request_must_be_strings(tmp_path: Path) -> None:
    with pytest.raises(HaError):
        api.parse_request(b'{"verb": "x", "args": []}')
