"""The strategy's commands, and that it looks before it acts."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hwlab import payload, strategy
from hwlab.errors import LabError
from hwlab.protocols import Completed, Disk, Host, Lab, Progress
from hwlab.topology import Role, Topology, load
from tests.hwlab.test_faults import FakeCommand, fake_host

TOPOLOGY, _ = load("default")


@dataclass
class FakeLab:
    """Only what the strategy's single steps look at."""

    name: str = "fake"
    driver: str = "fake"
    topology: Topology = TOPOLOGY
    hosts: Mapping[str, Host] = field(default_factory=dict)
    disks: Mapping[str, Disk] = field(default_factory=dict)

    def up(self, progress: Progress) -> None:
        raise NotImplementedError

    def down(self, progress: Progress) -> None:
        raise NotImplementedError

    def exists(self) -> bool:
        return True


class ScriptedCommand(FakeCommand):
    """Answers by the first words of a command; everything else succeeds silently."""

    def __init__(self, calls: list[str], answers: dict[str, tuple[int, bytes]]) -> None:
        super().__init__(calls, "run")
        self.answers = answers

    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout_s: float = 30, check: bool = True
    ) -> Completed:
        super().run(argv)
        line = " ".join(argv)
        status, output = next((answer for start, answer in self.answers.items() if line.startswith(start)), (0, b""))
        return Completed(status=status, stdout=output, stderr=b"")

    def put(self, files: Mapping[str, bytes | Path], *, mode: int = 0o644, timeout_s: float = 60) -> None:
        for path in files:
            self.calls.append(f"put {path} {mode:o}")


def node(name: str, calls: list[str], answers: dict[str, tuple[int, bytes]]) -> Host:
    number = int(name[1:])
    return replace(
        fake_host(calls),
        name=name,
        addresses={"lan": f"10.77.1.1{number}"},
        command=ScriptedCommand(calls, answers),
    )


def disk(lab_disk: str = "v1") -> dict[str, Disk]:
    return {lab_disk: Disk(name=lab_disk, device="/dev/disk/by-id/wwn-0x6", wwid="naa.6", size_mb=1)}


def quiet(line: str) -> None:
    pass


def test_nodes_are_numbered_by_their_place_in_the_topology() -> None:
    nodes = [node(name, [], {}) for name in ("n1", "n2")]
    argv = strategy.init_argv(nodes)
    assert argv[:2] == ["hactl", "init"]
    assert [word for word in argv if word.startswith("n")] == ["n1=1,10.77.1.11", "n2=2,10.77.1.12"]


def test_the_volume_is_made_as_the_topology_says() -> None:
    volume = TOPOLOGY.volume
    assert volume is not None
    lab: Lab = FakeLab(disks=disk())
    line = " ".join(strategy.add_argv(lab, volume))
    assert line == (
        "hactl volume add v1 /dev/disk/by-id/wwn-0x6 --fs ext4 --address 10.77.1.50/24 "
        "--clients 10.77.1.0/24 --lease-s 10 --grace-s 10 --format"
    )


def test_a_volume_on_several_luns_is_made_of_all_of_them() -> None:
    topology, _ = load("md")
    assert topology.volume is not None and topology.volume.luns == ("v1a", "v1b")
    lab: Lab = FakeLab(disks={name: replace(disk(name)[name], device=f"/dev/{name}") for name in topology.volume.luns})
    assert strategy.add_argv(lab, topology.volume)[2:8] == ["add", "v1", "/dev/v1a", "/dev/v1b", "--stack", "md"]


def test_a_namespace_of_nvmet_becomes_a_volume_only_at_an_accepted_risk() -> None:
    topology, _ = load("nvme")
    assert topology.volume is not None
    assert "--accept-risk" in strategy.add_argv(FakeLab(topology=topology, disks=disk()), topology.volume)


def test_a_volume_that_was_added_is_not_formatted_again() -> None:
    calls: list[str] = []
    volume = TOPOLOGY.volume
    assert volume is not None
    strategy.add_volume(FakeLab(disks=disk()), volume, [node("n1", calls, {"test -e": (0, b"")})], quiet)
    assert not any("volume add" in call for call in calls)


@pytest.mark.parametrize("timing", [{}, {"heartbeat_ms": 400, "overdue_ms": 2000}])
def test_a_new_cluster_is_made_on_the_first_node_and_copied_to_the_others(timing: dict[str, int]) -> None:
    first: list[str] = []
    second: list[str] = []
    one = node("n1", first, {"cat": (1, b"")})
    made = {"cat /etc/hactl/hactl.toml": (0, b"config"), "cat /etc/hactl/cluster.key": (0, b"key")}

    class InitCommand(ScriptedCommand):
        def run(
            self, argv: Sequence[str], *, input: bytes | None = None, timeout_s: float = 30, check: bool = True
        ) -> Completed:
            done = super().run(argv, input=input, timeout_s=timeout_s, check=check)
            if argv[:2] == ["hactl", "init"]:
                self.answers = made
            return done

    one = replace(one, command=InitCommand(first, {"cat": (1, b"")}))
    strategy.configure(
        [one, node("n2", second, {"cat": (1, b"")})], quiet, further=strategy.timing_section(timing) if timing else b""
    )
    assert any("cat >>/etc/hactl/hactl.toml" in call for call in first) == bool(timing)
    assert not any(call.startswith("put") for call in first)
    assert "put /etc/hactl/hactl.toml 644" in second
    assert "put /etc/hactl/cluster.key 600" in second
    assert not any("hactl init" in call for call in second)


def test_a_topologys_timing_is_a_section_that_hactl_reads() -> None:
    text = strategy.timing_section({"heartbeat_ms": 400, "overdue_ms": 2000}).decode()
    assert tomllib.loads("[[node]]\nname = 'n1'" + text)["timing"] == {"heartbeat_ms": 400, "overdue_ms": 2000}


def test_a_cluster_with_several_paths_is_healthy_only_with_all_of_them() -> None:
    multipath, _ = load("multipath")
    [test] = strategy.paths_up(multipath)
    assert test.endswith("-ge 2 ]"), "two portals, one LUN"
    nvme, _ = load("nvmepaths")
    [test] = strategy.paths_up(nvme)
    assert "live" in test and test.endswith("-ge 2 ]"), "two portals: two controllers"
    assert strategy.paths_up(TOPOLOGY) == []


def test_a_node_without_a_configuration_gets_that_of_the_others() -> None:
    first: list[str] = []
    second: list[str] = []
    nodes = [node("n1", first, {"cat": (1, b"")}), node("n2", second, {"cat": (0, b"same")})]
    strategy.configure(nodes, quiet)
    assert "put /etc/hactl/cluster.key 600" in first
    assert not any("hactl init" in call for call in [*first, *second])


def test_a_voter_is_written_down_as_one_and_runs_node_watch_alone() -> None:
    first: list[str] = []
    third: list[str] = []
    made = {"cat /etc/hactl/hactl.toml": (0, b"config"), "cat /etc/hactl/cluster.key": (0, b"key")}
    one = node("n1", first, {"cat": (1, b"")})

    class InitCommand(ScriptedCommand):
        def run(
            self, argv: Sequence[str], *, input: bytes | None = None, timeout_s: float = 30, check: bool = True
        ) -> Completed:
            self.answers = made if argv[0] == "sed" else self.answers
            return super().run(argv, input=input, timeout_s=timeout_s, check=check)

    one = replace(one, command=InitCommand(first, {"cat": (1, b"")}))
    voter = replace(node("n3", third, {"cat": (1, b"")}), role=Role.VOTER)
    strategy.configure([one, voter], quiet)
    assert [call for call in first if "votes_only" in call] == [
        'run.sed -i /^name = "n3"$/a votes_only = true /etc/hactl/hactl.toml'
    ]
    strategy.start_voters([voter])
    assert not any("hactld" in call for call in third) and "hactl-nodewatch" in third[-1]


def test_nodes_that_disagree_are_not_overwritten() -> None:
    calls: list[str] = []
    nodes = [node("n1", calls, {"cat": (0, b"one")}), node("n2", calls, {"cat": (0, b"two")})]
    with pytest.raises(LabError, match="different configurations"):
        strategy.configure(nodes, quiet)
    assert not any(call.startswith("put") for call in calls)


def test_the_status_is_taken_from_the_first_node_that_answers() -> None:
    answer = json.dumps({"leader": "n2"}).encode()
    nodes = [node("n1", [], {"hactl": (4, b"")}), node("n2", [], {"hactl": (0, answer)})]
    assert strategy.status(nodes) == {"leader": "n2"}
    assert strategy.status(nodes[:1]) == {}


def test_waiting_ends_at_its_deadline_and_says_for_what() -> None:
    with pytest.raises(LabError, match="for a miracle"):
        strategy.wait_until(lambda: False, 0, "a miracle")


def test_installing_the_same_code_twice_does_nothing() -> None:
    calls: list[str] = []
    digest = payload.build().digest.encode()
    strategy.install([node("n1", calls, {"cat /opt/hactl/lib/.digest": (0, digest)})], quiet)
    assert calls == ["run.cat /opt/hactl/lib/.digest"]


def test_roles_are_found_in_the_labs_order() -> None:
    hosts = {name: node(name, [], {}) for name in ("n2", "n1")}
    assert [host.name for host in strategy.with_role(FakeLab(hosts=hosts), Role.NODE)] == ["n2", "n1"]


def test_corosync_is_set_up_and_running_only_where_the_topology_wants_it() -> None:
    topology, _ = load("corosync")
    assert topology.engine == "corosync" and TOPOLOGY.engine == ""
    calls: list[str] = []
    nodes = [node("n1", calls, {})]
    strategy.start_engine(nodes, quiet, TOPOLOGY.engine)
    assert calls == []
    strategy.start_engine(nodes, quiet, topology.engine)
    [line] = calls
    assert line.index("hactl corosync-conf") < line.index("systemctl restart") < line.index("systemctl --quiet enable")
    options = strategy.engine_options(topology)
    assert strategy.init_argv(nodes, options)[-4:] == ["--engine", "corosync", "--token", str(topology.token_ms)]
    assert strategy.engine_options(TOPOLOGY) == []
