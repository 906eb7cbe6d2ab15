"""What the lab says of its management controllers is what hactl reads."""

from __future__ import annotations

from hwlab import bmc
from hwlab.topology import load
from nodewatch.config import parse_config
from tests.nodewatch.test_config import GOOD


def test_the_configuration_for_topology_power_is_one_that_hactl_takes() -> None:
    topology, _ = load("power")
    fencing = parse_config(GOOD + bmc.configuration(topology)).fencing
    assert (fencing.levels, fencing.distrust) == (("reservation", "power"), ("v1",))
    assert [(agent.node, agent.options["ipport"]) for agent in fencing.agents] == [
        ("n1", "6231"),
        ("n2", "6232"),
        ("n3", "6233"),
    ]
    assert {agent.options["ip"] for agent in fencing.agents} == {"10.77.0.1"}
    assert {agent.secret_file for agent in fencing.agents} == {bmc.SECRET}


def test_other_topologies_say_nothing() -> None:
    assert bmc.configuration(load("default")[0]) == ""
