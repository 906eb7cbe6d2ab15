"""Changes of the configuration as hactld carries them: on the files, in messages, and all of it on simulated nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hactl import changes, messages
from hactl.changes import Changes, addition, progress
from hactl.config import Config
from hactl.configfile import ConfigFile
from hactl.configtext import changed, for_node
from hactl.errors import ConfigError, RequestRefused
from nodewatch import events as ev
from nodewatch import keyring
from nodewatch.config import ClusterConfig, NodeConfig, parse_config
from nodewatch.membership import Change, change_from
from nodewatch.view import View
from tests.nodewatch.change_sim import ChangingNode, ChangingSimulation
from tests.nodewatch.cluster_sim import KEY

TEXT = """\
# one file
[cluster]
name = "demo"   # ours
uuid = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
key_file = "/KEYFILE"
version = 1
this = "n1"

[[node]]
name = "n1"
number = 1
address = "10.0.0.1"

[[node]]  # the second
name = "n2"
number = 2
address = "10.0.0.2"

[[node]]
name = "n3"
number = 3
address = "10.0.0.3"

[metrics]
# an empty host
listen = ":9747"
"""
N4 = NodeConfig(name="n4", number=4, address="10.0.0.4")
A, B = bytes(32), bytes([1] * 32)


def change(config: ClusterConfig, **what: Any) -> Change:
    return Change(version=config.version + 1, previous=config.digest().hex(), **what)


# --- the text -----------------------------------------------------------------------------------------------------


def test_a_change_keeps_comments_and_what_is_this_hosts_own() -> None:
    before = parse_config(TEXT)
    text, config = changed(TEXT, change(before, add=N4))
    assert [node.number for node in config.nodes] == [1, 2, 3, 4] and config.version == 2
    text, config = changed(text, change(config, remove=3))
    text, config = changed(text, change(config, keys=("a" * 16, "b" * 16)))
    assert parse_config(text) == config
    assert (config.version, config.this, [node.name for node in config.nodes]) == (4, "n1", ["n1", "n2", "n4"])
    kept = [line for line in TEXT.splitlines() if "#" in line]
    assert [line for line in text.splitlines() if "#" in line] == kept
    head = [line.partition(" =")[0] for line in text.split("[[node]]")[0].splitlines()[2:] if line]
    assert head == ["name", "uuid", "key_file", "version", "keys", "previous", "this"]


def test_a_node_that_only_votes_is_written_as_one() -> None:
    before = parse_config(TEXT)
    text, config = changed(TEXT, change(before, add=replace(N4, votes_only=True)))
    assert config.nodes[-1].votes_only and "votes_only = true" in text


def test_a_file_without_a_version_gets_one_at_the_head() -> None:
    plain = TEXT.replace("version = 1\n", "")
    text, config = changed(plain, change(parse_config(plain), remove=3))
    assert "[cluster]\nversion = 2\nprevious = " in text and config.version == 2


def test_the_file_for_a_new_host_says_that_it_is_that_host() -> None:
    text, _ = changed(TEXT, change(parse_config(TEXT), add=N4))
    assert parse_config(for_node(text, "n4")).this == "n4"


@pytest.mark.parametrize(
    "wrong",
    [
        {"add": replace(N4, name="n 4")},
        {"add": replace(N4, address="10.0.0.1")},
        {"add": replace(N4, address="fe80::1")},
        {"add": replace(N4, further=("10.1.0.4",))},
        {"add": replace(N4, number=5000)},
        {"remove": 1},
        {"keys": ("short", "b" * 16)},
    ],
)
def test_a_change_that_would_make_a_wrong_file_is_refused(wrong: dict[str, Any]) -> None:
    """Removing n1: this very file says that it is n1's."""
    with pytest.raises(ConfigError):
        changed(TEXT, change(parse_config(TEXT), **wrong))


# --- the files ----------------------------------------------------------------------------------------------------


def files(home: Path, me: str = "n1") -> ConfigFile:
    home.mkdir(exist_ok=True)
    (home / "key").write_text(A.hex() + "\n")
    text = TEXT.replace("/KEYFILE", str(home / "key")).replace('this = "n1"', f'this = "{me}"')
    (home / "hactl.toml").write_text(text)
    return again(home, me)


def again(home: Path, me: str = "n1") -> ConfigFile:
    cluster = parse_config((home / "hactl.toml").read_text())
    node = cluster.node(me)
    assert node is not None
    return ConfigFile(Config(cluster=cluster, me=me, number=node.number), home / "hactl.toml", home)


def test_what_was_made_is_there_after_a_restart(tmp_path: Path) -> None:
    made = files(tmp_path)
    first = change(made.cluster, add=N4)
    made.make(first)
    made.make(change(made.cluster, remove=3))
    found = again(tmp_path)
    assert found.cluster == made.cluster and found.cluster.version == 3
    assert found.changes[2] == first
    assert not list(tmp_path.glob("*.new"))


def test_a_crash_between_any_two_writes_leaves_a_node_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hactl import configfile

    honest = configfile.write_atomic
    for writes in range(3):
        home = tmp_path / str(writes)
        made = files(home)
        left = [writes]

        def dying(path: Path, text: str, left: list[int] = left, **rest: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            honest(path, text, **rest)

        monkeypatch.setattr(configfile, "write_atomic", dying)
        try:
            made.add_key(B)
            made.make(change(made.cluster, keys=(keyring.key_id(A), keyring.key_id(B))))
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(configfile, "write_atomic", honest)
        found = again(home)
        assert found.counting_keys()[0] == A
        assert found.cluster.version == 1


def test_a_key_that_is_not_there_is_no_step_that_can_be_made(tmp_path: Path) -> None:
    made = files(tmp_path)
    with pytest.raises(keyring.BadKeys, match="was changed"):
        made.make(change(made.cluster, keys=(keyring.key_id(A), keyring.key_id(B))))
    assert again(tmp_path).cluster.version == 1


def test_the_key_file_stays_secret(tmp_path: Path) -> None:
    made = files(tmp_path)
    made.add_key(B)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


# --- the key file's format ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "zz" * 32, "00" * 31, "00" * 32 + "\n" + "00" * 32, "00 " * 32])
def test_what_is_no_key_file_is_refused(text: str) -> None:
    with pytest.raises(keyring.BadKeys):
        keyring.parse(text)


def test_a_key_file_holds_one_key_or_two_and_the_configuration_says_which_count() -> None:
    keys = keyring.parse(f"# ours\n{A.hex()}\n\n{B.hex()}\n")
    assert keys == (A, B) == keyring.parse(keyring.to_text(keys))
    assert keyring.choose(keys, ()) == (A,)
    assert keyring.choose(keys, (keyring.key_id(B), keyring.key_id(A))) == (B, A)
    with pytest.raises(keyring.BadKeys, match="the key was changed"):
        keyring.choose((A,), (keyring.key_id(B),))


# --- whole clusters -----------------------------------------------------------------------------------------------


class ShippedNode(ChangingNode):
    """The shipped `Changes` and `ConfigFile` on a simulated node watch; letters travel as the wire carries them."""

    sim: ShippedSimulation

    def open(self, home: Path) -> None:
        self.home = home
        self.keys: tuple[bytes, ...] = (KEY,)
        self.again()

    def again(self) -> None:
        """hactld starts: it knows what is on the disk, and nothing else."""
        self.on_disk = again(self.home, self.config.name)
        self.cluster = self.on_disk.cluster
        self.hactld = Changes(
            files=self.on_disk,
            watch=self,
            send=self.send,
            taken=lambda config: None,
            log=lambda line: self.sim.note(self, line),
        )

    def kill(self) -> None:
        super().kill()
        self.again()

    def tend_change(self, view: View) -> None:
        self.hactld.tend(view)
        if view.role == "leader" and self.sim.requests and not view.config.blocked:
            verb, args = self.sim.requests[0]
            try:
                self.hactld.request(verb, args, view, self.sim.holding, self.sim.random.randbytes(32))
                self.sim.requests.pop(0)
            except RequestRefused as refused:
                self.sim.refusals.append(str(refused))

    def send(self, to: str, message: messages.Message) -> None:
        assert self.watch is not None
        body = json.dumps(messages.encode(message))
        chosen = [node.number for node in self.sim.hosts.values() if to in ("*", node.config.name)]
        for number in chosen:
            if number != self.number:
                self.tell(number, lambda node: node.receive(self.config.name, body))  # type: ignore[attr-defined]

    def receive(self, sender: str, body: str) -> None:
        message = messages.decode(json.loads(body))
        assert isinstance(message, messages.Offer | messages.Known | messages.Ask)
        if self.watch is not None:
            self.hactld.take(sender, message, self.watch.view(self.clock()))

    # what hactld says to its node watch

    def propose(self, change: dict[str, Any], digest: str) -> None:
        self.feed(ev.ChangeProposed(now_ms=self.clock(), change=change_from(change), digest=digest))

    def accept(self, term: int, change: dict[str, Any], digest: str) -> None:
        self.feed(ev.ChangeOffered(now_ms=self.clock(), term=term, change=change_from(change), digest=digest))

    def reconfigure(self, change: dict[str, Any]) -> None:
        step = change_from(change)
        self.sim.moved(self, self.on_disk.cluster)
        self.cluster = self.on_disk.cluster
        keys = keyring.choose(self.on_disk.keys(), step.keys or self.cluster.keys)
        self.feed(ev.ChangeMade(now_ms=self.clock(), change=step, keys=keys))

    def yield_(self) -> None:
        self.feed(ev.YieldWanted(now_ms=self.clock(), yielded=True))


class ShippedSimulation(ChangingSimulation):
    node_type = ShippedNode

    def __init__(self, seed: int, home: Path) -> None:
        super().__init__(seed, members=3, hosts=5)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.refusals: list[str] = []
        self.holding: dict[str, list[str]] = {"n1": ["v1"]}
        for number, host in self.hosts.items():
            own = home / host.config.name
            own.mkdir()
            (own / "key").write_text(KEY.hex())
            text = TEXT.replace("/KEYFILE", str(own / "key")).replace('this = "n1"\n', "")
            text = text.replace('"demo"', f'"{self.config.name}"').replace(UUID, self.config.uuid)
            (own / "hactl.toml").write_text(text)
            if number <= 3:
                host.open(own)  # type: ignore[attr-defined]
            else:
                host.home = own  # type: ignore[attr-defined]
        first = self.hosts[1].cluster
        self.newest, self.chosen = first, {1: first.digest()}

    def join(self, host: ChangingNode) -> None:
        """As `hactl node add` says: the file and the key of a node that is in."""

        def come() -> None:
            source = max(self.hosts.values(), key=lambda other: other.cluster.version).home  # type: ignore[attr-defined]
            home = host.home  # type: ignore[attr-defined]
            text = (source / "hactl.toml").read_text()
            (home / "hactl.toml").write_text(text.replace(str(source), str(home)))
            (home / "key").write_text((source / "key").read_text())
            host.open(home)  # type: ignore[attr-defined]
            host.start()

        if host.watch is None:
            self.after(500, come)

    def until(self, done: Callable[[], bool], within_ms: float = 12_000) -> None:
        end = self.now + within_ms
        while not done():
            assert self.now < end, (self.refusals[-1:], self.transcript[-30:])
            self.run_until(self.now + 10)

    def until_done(self, version: int, within_ms: float = 30_000) -> None:
        until = self.now + within_ms
        while self.newest.version < version or self.settled() is not None:
            assert self.now < until, (self.newest.version, self.settled(), self.transcript[-30:])
            self.run_until(self.now + 100)


UUID = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
ADD_N4 = ("node-add", {"node": "n4", "number": "4", "addresses": "10.0.0.4"})


@pytest.fixture
def sim(tmp_path: Path) -> ShippedSimulation:
    made = ShippedSimulation(3, tmp_path)
    made.run_until(4000)
    assert made.settled() is None, made.settled()
    return made


def test_a_node_comes_another_goes_and_the_volume_is_served_all_the_time(sim: ShippedSimulation) -> None:
    sim.requests = [ADD_N4]
    sim.until_done(2)
    sim.requests = [("node-remove", {"node": "n3"})]
    sim.until_done(3)
    assert [node.name for node in sim.newest.nodes] == ["n1", "n2", "n4"]
    assert sim.takeovers == 0 and not any("n1 lease lost" in line for line in sim.transcript)
    assert "systemctl disable" in sim.hosts[3].hactld.removed  # type: ignore[attr-defined]


def test_a_new_key_comes_in_three_steps_and_the_old_one_goes(sim: ShippedSimulation) -> None:
    sim.requests = [("key-rotate", {})]
    sim.until_done(4)
    sim.run_until(sim.now + 1000)
    found = {(host.home / "key").read_text() for host in list(sim.hosts.values())[:3]}  # type: ignore[attr-defined]
    assert len(found) == 1 and KEY.hex() not in found.pop()
    assert sim.takeovers == 0 and not any("lease lost" in line for line in sim.transcript)


def test_a_new_key_waits_for_a_node_that_is_away_and_reaches_it_when_it_is_back(sim: ShippedSimulation) -> None:
    sim.requests = [("key-rotate", {})]
    sim.until(lambda: sim.newest.version == 2)
    sim.hosts[3].power_off()
    at = sim.hosts[3].cluster.version
    sim.run_until(sim.now + 12_000)
    assert sim.newest.version <= at + 1
    sim.hosts[3].daemon_up = True
    sim.hosts[3].start()
    sim.until_done(4)


def test_a_node_that_was_away_gets_what_it_missed_one_step_at_a_time(sim: ShippedSimulation) -> None:
    sim.hosts[3].power_off()
    sim.run_until(sim.now + 4000)
    sim.requests = [(ADD_N4[0], {**ADD_N4[1], "force": "yes"})]
    sim.until(lambda: sim.newest.version == 2)
    sim.run_until(sim.now + 4000)
    view = sim.hosts[1].watch.view(sim.hosts[1].clock())  # type: ignore[union-attr]
    assert progress(view, sim.newest)["versions"]["n4"] == 2
    sim.hosts[3].daemon_up = True
    sim.hosts[3].start()
    sim.until_done(2)
    assert sim.hosts[3].cluster.version == 2


def test_a_node_that_died_before_the_last_change_can_be_removed(sim: ShippedSimulation) -> None:
    sim.hosts[3].power_off()
    sim.run_until(sim.now + 4000)
    sim.requests = [(ADD_N4[0], {**ADD_N4[1], "force": "yes"})]
    sim.until(lambda: sim.newest.version == 2)
    sim.requests = [("node-remove", {"node": "n3"})]
    sim.until_done(3)
    assert [node.name for node in sim.newest.nodes] == ["n1", "n2", "n4"]


def test_a_new_leader_goes_on_where_the_old_one_was_lost(sim: ShippedSimulation) -> None:
    sim.requests = [ADD_N4]
    sim.until(lambda: not sim.requests)
    sim.run_until(sim.now + 300)  # accepted by others, not chosen for long enough
    assert sim.newest.version == 1
    sim.hosts[1].power_off()
    sim.run_until(sim.now + 15_000)
    assert sim.newest.version == 2
    sim.hosts[1].daemon_up = True
    sim.hosts[1].start()
    sim.until_done(2)


def refused(sim: ShippedSimulation, verb: str, **args: str) -> str:
    sim.requests = [(verb, args)]
    sim.refusals.clear()
    sim.run_until(sim.now + 1000)
    sim.requests = []
    assert sim.newest.version == 1
    return sim.refusals[-1]


def test_what_would_be_unsafe_or_foolish_is_refused_with_the_way_out(sim: ShippedSimulation) -> None:
    sim.holding = {"n1": ["v1"], "n3": ["v2"]}
    assert "leads the cluster" in refused(sim, "node-remove", node="n1")
    assert "move them first" in refused(sim, "node-remove", node="n3")
    assert "survive the loss of none" in refused(sim, "node-remove", node="n2")
    assert "no node 'n9'" in refused(sim, "node-remove", node="n9")
    assert "number" in refused(sim, "node-add", node="n4", addresses="10.0.0.4")
    assert "already" in refused(sim, "node-add", node="n3", number="4", addresses="10.0.0.4")
    assert "not valid" in refused(sim, "node-add", node="n4", number="4", addresses="nowhere")
    sim.hosts[3].power_off()
    sim.run_until(sim.now + 3000)
    assert "locked out" in refused(sim, "key-rotate")
    assert "would stop" in refused(sim, "node-remove", node="n2", force="yes")
    sim.hosts[2].power_off()
    assert "the cluster" in refused_without_quorum(sim)


def refused_without_quorum(sim: ShippedSimulation) -> str:
    view = sim.hosts[1].watch.view(sim.hosts[1].clock())  # type: ignore[union-attr]
    with pytest.raises(RequestRefused) as refusal:
        blocked = replace(view, config=replace(view.config, blocked="this node does not lead the cluster"))
        sim.hosts[1].hactld.request(*ADD_N4, blocked, {}, bytes(32))  # type: ignore[attr-defined]
    return str(refusal.value)


def test_a_number_that_was_another_nodes_is_not_given_again(sim: ShippedSimulation) -> None:
    sim.requests = [ADD_N4]
    sim.until_done(2)
    sim.requests = [("node-remove", {"node": "n3"})]
    sim.until_done(3)
    sim.requests = [("node-add", {"node": "n5", "number": "3", "addresses": "10.0.0.5"})]
    sim.run_until(sim.now + 1000)
    assert "was another node's" in sim.refusals[-1]


def test_an_offer_of_somebody_who_does_not_lead_is_ignored(sim: ShippedSimulation) -> None:
    host: Any = sim.hosts[2]
    view = host.watch.view(host.clock())
    step = addition(host.cluster, ADD_N4[1])
    offer = messages.Offer(term=view.term, change=step.to_plain(), digest="0" * 16, secret="")
    for sender, term in (("n3", view.term), (view.leader, view.term - 1)):
        host.hactld.take(sender, replace(offer, term=term), view)
    assert host.watch._membership.accepted is None and not host.hactld.trouble
    host.hactld.take(view.leader, offer, view)
    assert "it would make" in host.hactld.trouble and host.watch._membership.accepted is None


@pytest.mark.parametrize(
    "garbage", [{}, {"version": 2}, {"version": 2, "previous": "x", "add": 3, "remove": 0, "keys": []}]
)
def test_a_change_that_is_not_understood_changes_nothing(sim: ShippedSimulation, garbage: dict[str, Any]) -> None:
    host: Any = sim.hosts[2]
    host.hactld.take("n1", messages.Known(change=garbage, digest="", secret="zz", chosen=True), host.watch.view(0))
    assert host.cluster.version == 1 and "not a change" in host.hactld.trouble


def test_the_problems_name_what_is_under_way_and_who_is_behind(sim: ShippedSimulation) -> None:
    sim.requests = [ADD_N4]
    sim.until(lambda: not sim.requests)
    host = sim.hosts[1]
    assert host.watch is not None
    view = host.watch.view(host.clock())
    assert changes.problems(view, host.cluster)[0].startswith("the configuration is being changed: add n4 (number 4)")
    old = replace(view.nodes["n2"], config_version=1)
    late = replace(view, config=replace(view.config, version=3, accepted=None), nodes={"n2": old})
    (line,) = changes.problems(late, host.cluster)
    assert "n2 is at version 1" in line
