"""What a verdict on a node rests on, in words and as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hactl.nodestatus import link_states, node_status, verdicts
from nodewatch.view import LinkView, NodeView, ProbeView, View

ME = NodeView(
    state="alive",
    generation=7,
    heard_ms_ago=0,
    daemon="ok",
    barred=False,
    confirmed=False,
    safe_in_ms=None,
    gave_up=False,
    why="this node",
    rtt_ms=None,
    links=(LinkView(address="192.0.2.11", state="up"), LinkView(address="198.51.100.11", state="down", why="no cable")),
)
SILENT = replace(
    ME,
    state="overdue",
    heard_ms_ago=900,
    barred=True,
    confirmed=True,
    safe_in_ms=700,
    why="silent for 900 ms, limit 800 ms",
    rtt_ms=1.0,
    links=(
        LinkView(address="192.0.2.12", state="silent", heard_ms_ago=900, rtt_ms=1.0, loss_percent=25, hears_us=False),
        LinkView(address="198.51.100.12", state="down", why="no cable"),
    ),
    probe=ProbeView(asked_ms_ago=150, times=8, through=("n3",), told_by={"n3": 12}, answered=False),
    reachable_from=("n3",),
    promised_by=("n1", "n3"),
)
VIEW = View(
    me="n1",
    generation=7,
    at_ms=0,
    term=3,
    role="leader",
    leader="n1",
    quorum=True,
    lease_left_ms=1000,
    barred=False,
    yielded=False,
    nodes={"n1": ME, "n2": SILENT},
)


def said(role: str = "leader", **changes: Any) -> str:
    view = replace(VIEW, role=role, nodes={"n1": ME, "n2": replace(SILENT, **changes)})  # type: ignore[arg-type]
    return "\n".join(verdicts(view, "n2"))


def test_the_data_hold_the_evidence_by_link_and_the_hearsay_apart() -> None:
    told = node_status(VIEW, "n2", number=2, seen_ms_ago=40, reasons=["not heard"], phases={"v1": "backup"})
    first, second = told["links"]
    assert (first["link"], first["from"], first["address"], first["hears_us"]) == (1, "192.0.2.11", "192.0.2.12", False)
    assert second["why"] == "no cable"
    assert told["probe"]["told_by"] == {"n3": 12}
    assert told["reachable_from"] == ["n3"]
    assert told["bar"]["promised_by"] == ["n1", "n3"]
    assert (told["ready"], told["seen_ms_ago"], told["volumes"]) == (False, 40, {"v1": "backup"})
    assert link_states(VIEW) == {"n1": ["up", "down"], "n2": ["silent", "down"]}


def test_a_silent_node_is_explained_from_the_silence_to_the_end_of_its_lease() -> None:
    words = said()
    assert "overdue: silent for 900 ms" in words
    assert "asked 8 times, last 150 ms ago, and through n3 (n3 heard it 12 ms ago): no answer" in words
    assert "barred by a majority (promised by n1, n3): its last lease ends within 700 ms" in words
    assert "hactld ok: it beats, when it was last heard" in words


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"safe_in_ms": 0}, "its last lease has ended"),
        ({"confirmed": False, "safe_in_ms": None}, "not yet by a majority (promised by n1, n3): it may still hold"),
        ({"barred": False}, "not barred: the cluster acknowledges"),
        ({"barred": False, "role": "follower"}, "not barred: this node acknowledges"),
        ({"role": "follower"}, "ask the leader"),
        ({"daemon": "gone"}, "in case it comes back"),
        ({"daemon": "absent"}, "the node serves nothing"),
    ],
)
def test_each_verdict_says_what_it_means(changes: dict[str, Any], expected: str) -> None:
    assert expected in said(**changes)


def test_a_node_that_only_votes_and_one_that_uses_the_witness_say_so() -> None:
    witness = {
        "state": "idle",
        "used_by": ["n2"],
        "luns": [{"wwid": "naa.1", "epoch": 4, "claimed_by": "n2"}],
        "problem": "",
        "waits_for": "",
    }
    view = replace(VIEW, witness=witness)
    told = node_status(view, "n2", number=2, seen_ms_ago=0, reasons=[], phases={}, votes_only=True)
    assert told["witness"] == {"uses": True, "claimed_last": ["naa.1"]}
    assert any("it only votes" in line for line in told["verdicts"])
    assert any("it uses the witness" in line for line in told["verdicts"])
    assert node_status(VIEW, "n2", number=2, seen_ms_ago=0, reasons=[], phases={})["witness"] is None
