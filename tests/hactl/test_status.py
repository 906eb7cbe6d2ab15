"""What `hactl status` and `hactl keys` tell, and how they look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fencing.model import Key
from hactl import placement
from hactl.cli import render
from hactl.explain import explain_key
from hactl.messages import Order
from hactl.placement import NodeFacts, Plan
from hactl.status import cluster_status
from tests.hactl.test_placement import SERVED, facts, gone, node, volume


def told(plan: Plan | None = None, **nodes: NodeFacts) -> dict[str, Any]:
    seen = facts(**nodes)
    return cluster_status(
        cluster="demo",
        leader="n2",
        quorum=True,
        facts=seen,
        numbers={"n1": 1, "n2": 2, "n3": 3},
        plan=plan,
        blocked={},
        problems=(),
    )


def test_a_healthy_cluster_has_nothing_wrong_and_a_next_node() -> None:
    state = told(**SERVED)
    (one,) = state["volumes"]
    assert (one["state"], one["server"], one["next"], one["problems"]) == ("serving", "n1", "n2", [])
    assert all(each["ready"] for each in state["nodes"])
    assert "Nothing is wrong." in render.status(state)


def test_a_node_that_could_not_take_over_is_not_ready_and_says_why() -> None:
    state = told(n1=SERVED["n1"], n2=node(volume(ready=False, why="no PR OUT")), n3=gone())
    ready = {each["name"]: each["ready"] for each in state["nodes"]}
    assert ready == {"n1": True, "n2": False, "n3": False}
    text = render.status(state)
    assert "node n2: v1: no PR OUT" in text
    assert "node n3: not heard" in text
    assert "volume v1: no other node could take it now" in text


def test_a_volume_that_nobody_could_take_says_what_each_attempt_met() -> None:
    """The disk decides: a node may be ready by all that it can see, and fail."""
    key = "acquire: /dev/sda: in use by somebody outside this cluster: 0x00000000abcd0001"
    failed = node(volume(why=key, failed=Order(term=3, number=7)))
    text = render.status(told(n1=gone(), n2=failed, n3=node()))
    assert f"volume v1: n2: {key}" in text
    served = told(n1=SERVED["n1"], n2=failed, n3=node())
    assert served["volumes"][0]["problems"] == [], "an old attempt is no problem once another node serves"


def test_a_volume_that_nobody_serves_is_down() -> None:
    state = told(n1=gone(), n2=node(), n3=node())
    assert (state["volumes"][0]["state"], state["volumes"][0]["server"]) == ("down", None)


def test_a_barred_node_is_not_shown_as_the_server() -> None:
    barred = replace(SERVED["n1"], barred=True, confirmed=True)
    state = told(n1=barred, n2=node(volume("mounting")), n3=node())
    assert (state["volumes"][0]["server"], state["volumes"][0]["state"]) == ("n2", "starting")


def test_a_volume_wanted_stopped_is_stopped_and_no_problem() -> None:
    seen = facts(**{name: node(volume(wanted="stopped")) for name in ("n1", "n2", "n3")})
    state = told(placement.decide(Plan(), seen).plan, **seen.nodes)
    assert (state["volumes"][0]["state"], state["volumes"][0]["problems"]) == ("stopped", [])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Key(cluster_tag=7, node=1, epoch=4).value, "n1, epoch 4: the present handle"),
        (Key(cluster_tag=7, node=1, epoch=3).value, "old handle"),
        (Key(cluster_tag=7, node=9, epoch=5).value, "node number 9"),
        (Key(cluster_tag=8, node=1, epoch=4).value, "another cluster"),
        (0xD8E50002, "fence_scsi"),
        (0x1000000000010001, "LVM"),
    ],
)
def test_every_key_is_explained(value: int, words: str) -> None:
    assert words in explain_key(value, 7, {1: "n1"}, 4)


def test_a_history_shows_each_step_with_its_duration() -> None:
    step = {"name": "fence", "node": "n2", "start_unix_ms": 1500.0, "end_unix_ms": 1512.0, "detail": "lun"}
    first = {"name": "detect", "node": "n3", "start_unix_ms": 1000.0, "end_unix_ms": 1500.0, "detail": ""}
    line = {
        "volume": "v1",
        "from": "n1",
        "to": "n2",
        "epoch": 5,
        "key": "0x1",
        "verdict": "serving",
        "cause": "c",
        "steps": [first, step],
    }
    text = render.history([line])
    assert "v1  n1 -> n2" in text
    assert ["fence", "500", "12", "n2", "lun"] in [row.split() for row in text.splitlines()]
