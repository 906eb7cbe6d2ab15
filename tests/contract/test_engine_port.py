"""What hactl expects of an engine, asked of each: `nodewatch/engine.py` says what they are.

Simulated clusters answer in `make check`; real processes in network namespaces (corosync's own among them) need root
and answer in `make test`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodewatch.engine import BUILTIN, COROSYNC

from .engine_clusters import NAMES, Cluster, Processes, Simulated, builtin_simulation, corosync_simulation


def make(kind: str, home: Path) -> Cluster:
    if kind.startswith("simulated"):
        return Simulated(builtin_simulation if kind.endswith(BUILTIN) else corosync_simulation)
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if kind.endswith(COROSYNC) and shutil.which("corosync") is None:
        pytest.skip("corosync is not installed; `deploy/scripts/setup lab` does that")
    return Processes(home, kind.rpartition("-")[2])


@pytest.fixture(
    params=[
        f"simulated-{BUILTIN}",
        f"simulated-{COROSYNC}",
        pytest.param(f"processes-{BUILTIN}", marks=pytest.mark.lab),
        pytest.param(f"processes-{COROSYNC}", marks=pytest.mark.lab),
    ]
)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    found = make(request.param, tmp_path)
    try:
        settle(found)
        yield found
    finally:
        found.end()


def settle(cluster: Cluster) -> None:
    cluster.until("one leader for all", lambda: leaders(cluster, *NAMES) not in (set(), {None}))
    cluster.until("leases", lambda: all(cluster.view(name).lease_left_ms for name in NAMES))


def leaders(cluster: Cluster, *among: str) -> set[str | None]:
    """The leader that these agree on, alone in a set; empty if they do not."""
    found = {cluster.view(name).leader for name in among}
    return found if len(found) == 1 else set()


def state(cluster: Cluster, by: str, of: str) -> str:
    return cluster.view(by).nodes[of].state


def test_everybody_sees_everybody_and_one_leader(cluster: Cluster) -> None:
    assert all(state(cluster, by, of) == "alive" for by in NAMES for of in NAMES)
    assert all(cluster.view(name).quorum for name in NAMES)


def test_a_lost_node_is_seen_by_all_that_are_left_and_confirmed_by_their_leader(cluster: Cluster) -> None:
    cluster.power_off("n3")
    cluster.until("n3 is overdue", lambda: all(state(cluster, by, "n3") == "overdue" for by in ("n1", "n2")))
    cluster.until("a leader", lambda: leaders(cluster, "n1", "n2") not in (set(), {None}))
    [leader] = leaders(cluster, "n1", "n2")
    assert leader in ("n1", "n2")
    cluster.until("confirmed", lambda: cluster.view(leader).nodes["n3"].confirmed)
    assert state(cluster, "n1", "n2") == state(cluster, "n2", "n1") == "alive"
    assert cluster.view("n1").quorum and cluster.view("n2").quorum
    cluster.until("safe", lambda: cluster.view(leader).nodes["n3"].safe_in_ms == 0)


def test_an_ended_process_is_overdue_although_its_host_lives(cluster: Cluster) -> None:
    cluster.end_process("n2")
    cluster.until("n2 is overdue", lambda: all(state(cluster, by, "n2") == "overdue" for by in ("n1", "n3")))


def test_a_node_that_comes_back_is_a_new_generation_of_itself(cluster: Cluster) -> None:
    before = cluster.view("n1").nodes["n3"].generation
    cluster.power_off("n3")
    cluster.until("n3 is overdue", lambda: state(cluster, "n1", "n3") == "overdue")
    cluster.power_on("n3")
    cluster.until("n3 is back", lambda: all(state(cluster, by, "n3") == "alive" for by in NAMES))
    assert cluster.view("n1").nodes["n3"].generation > before
    cluster.until("it sees the others", lambda: state(cluster, "n3", "n1") == state(cluster, "n3", "n2") == "alive")


def test_a_node_sees_its_own_isolation_and_stops_leading_and_serving(cluster: Cluster) -> None:
    cluster.isolate("n1")
    cluster.until("alone", lambda: not cluster.view("n1").quorum)
    cluster.until("others gone", lambda: state(cluster, "n1", "n2") == state(cluster, "n1", "n3") == "overdue")
    assert cluster.view("n1").role != "leader"
    cluster.until("no lease", lambda: cluster.view("n1").lease_left_ms == 0)
    cluster.until("the others go on", lambda: leaders(cluster, "n2", "n3") not in (set(), {None}, {"n1"}))
    assert cluster.view("n2").quorum and cluster.view("n3").quorum
    cluster.heal()
    cluster.until("quorum again", lambda: cluster.view("n1").quorum and state(cluster, "n1", "n2") == "alive")
    cluster.until("one leader for all", lambda: leaders(cluster, *NAMES) not in (set(), {None}))


def test_quorum_is_lost_with_the_majority_and_comes_back_with_it(cluster: Cluster) -> None:
    cluster.power_off("n2")
    cluster.power_off("n3")
    cluster.until("no quorum", lambda: not cluster.view("n1").quorum)
    cluster.until("no leader", lambda: cluster.view("n1").leader is None)
    cluster.power_on("n2")
    cluster.until("quorum", lambda: cluster.view("n1").quorum and cluster.view("n2").quorum)
    cluster.until("a leader", lambda: leaders(cluster, "n1", "n2") not in (set(), {None}))


def test_messages_come_in_order_and_once(cluster: Cluster) -> None:
    wanted = [("n1", {"number": number, "long": "x" * (number % 7 * 900)}) for number in range(60)]
    for _, body in wanted:
        cluster.send("n1", "*", body)
    cluster.send("n3", "n2", {"to": "n2 alone"})
    cluster.until("n3 has all", lambda: len(cluster.inbox("n3")) >= 60)
    cluster.until("n2 has all", lambda: len(cluster.inbox("n2")) >= 61)
    assert cluster.inbox("n3") == wanted
    assert [message for message in cluster.inbox("n2") if message[0] == "n1"] == wanted
    assert [message for message in cluster.inbox("n2") if message[0] == "n3"] == [("n3", {"to": "n2 alone"})]
    assert cluster.inbox("n1") == []


def test_garbage_is_counted_and_changes_nothing(cluster: Cluster) -> None:
    before = cluster.view("n1")
    cluster.garbage("n1")
    cluster.until("counted", lambda: sum(cluster.view("n1").drops.values()) >= sum(before.drops.values()) + 3)
    after = cluster.view("n1")
    assert (after.leader, after.term, after.quorum) == (before.leader, before.term, True)
    assert all(state(cluster, "n1", of) == "alive" for of in NAMES)
