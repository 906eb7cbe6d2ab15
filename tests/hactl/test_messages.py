"""Messages between daemons: what is sent comes back the same, and nothing else is ever accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl import messages
from hactl.messages import (
    Ask,
    Assign,
    Assignment,
    Finished,
    Known,
    Message,
    Offer,
    Order,
    Reply,
    Report,
    Request,
    Rescan,
    Trial,
    Tried,
    VolumeReport,
)

WORD = Assignment(order=Order(term=3, number=4), node="n2", wait_ms=900, cause="x", source="n1", leader="n3")
SEEN = VolumeReport(
    phase="serving",
    holding=True,
    ready=True,
    why="",
    order=Order(term=3, number=4),
    epoch=7,
    owner="n2",
    wanted="started",
    nodes=("n1", "n2"),
    key=5,
)
EACH: list[Message] = [
    Report(boot="b", term=3, standby=False, volumes={"v1": SEEN}),
    Assign(term=3, volumes={"v1": WORD}, kept_out=("n9",)),
    Request(ident="i", verb="move", args={"volume": "v1"}),
    Reply(ident="i", error="", result={"target": "n2"}),
    Rescan(),
    Finished(takeover={"volume": "v1"}),
    Offer(term=3, change={"version": 2}, digest="d", secret="s"),
    Known(change={"version": 2}, digest="d", secret="", chosen=True),
    Ask(digest="d"),
    Trial(ident="i", session="s", act="state", wwid="naa.1", args={"path": "/dev/sda"}),
    Tried(ident="i", answer="{}"),
]


@pytest.mark.parametrize("message", EACH, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert messages.decode(json.loads(json.dumps(messages.encode(message)))) == message


@pytest.mark.parametrize("message", EACH[:4], ids=lambda m: type(m).__name__)
def test_a_message_with_a_member_missing_added_or_of_another_type_is_refused(message: Message) -> None:
    body = json.loads(json.dumps(messages.encode(message)))
    for name in body:
        for wrong in ({k: v for k, v in body.items() if k != name}, {**body, name: 1.5}, {**body, "extra": 1}):
            with pytest.raises(messages.MessageError):
                messages.decode(wrong)


def test_a_broken_volume_in_a_report_refuses_the_whole_report() -> None:
    body: dict[str, Any] = json.loads(json.dumps(messages.encode(EACH[0])))
    for name, wrong in (("epoch", -1), ("epoch", True), ("holding", 1), ("order", 3), ("nodes", "n1"), ("why", None)):
        broken = {**body, "volumes": {"v1": {**body["volumes"]["v1"], name: wrong}}}
        with pytest.raises(messages.MessageError):
            messages.decode(broken)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
KINDS = st.sampled_from(["report", "assign", "request", "reply", "rescan", "finished", "other"])


@given(JSON, KINDS, st.dictionaries(st.sampled_from(["volumes", "term", "kept_out", "boot", "standby", "args"]), JSON))
def test_anything_else_is_refused_with_one_kind_of_error(body: object, kind: str, fields: dict[str, object]) -> None:
    for each in (body, {"kind": kind, **fields}):
        try:
            messages.decode(each)
        except messages.MessageError:
            continue
        assert isinstance(each, dict)
        assert each["kind"] in ("rescan", "report", "assign")
