"""The commands as an administrator types them: exit codes by class, and one clear line for each refusal."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hactl.cli import client, clustercmd, nodecmd
from hactl.cli.main import main
from hactl.errors import OutcomeUnknown
from hactl.nodestatus import node_status
from nodewatch.config import parse_config
from nodewatch.corosync import recommended, violations
from nodewatch.engine import EngineUnreachable

from .test_nodestatus import VIEW


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A socket that answers each verb with what the test puts in, as hactld would."""
    answers: dict[str, Any] = {}
    path = str(tmp_path / "s")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            with link, link.makefile("rwb") as lines:
                verb = json.loads(lines.readline())["verb"]
                lines.write(json.dumps(answers[verb]).encode() + b"\n")

    threading.Thread(target=serve, daemon=True).start()
    monkeypatch.setattr(client.stream, "__defaults__", (path, None))
    return answers


def run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


STATE: dict[str, Any] = {
    "cluster": "demo",
    "me": "n1",
    "leader": "n1",
    "term": 3,
    "quorum": True,
    "problems": [],
    "evidence": {"n1": "this node"},
    "links": {"n1": ["up", "down"]},
    "nodes": [{"name": "n1", "number": 1, "state": "alive", "daemon": "ok", "ready": True, "reasons": []}],
    "volumes": [
        {
            "name": "v1",
            "state": "serving",
            "server": "n1",
            "epoch": 4,
            "key": "0x1",
            "next": "n2",
            "wanted": "started",
            "address": "192.0.2.50/24",
            "owner": "n1",
            "devices": {"n1": "/dev/sda"},
            "phases": {"n1": "serving"},
            "problems": [],
        }
    ],
}


NODE = node_status(VIEW, "n2", number=2, seen_ms_ago=40, reasons=["not heard"], phases={"v1": "backup"})


def test_without_a_daemon_every_command_says_so_with_its_own_exit_code(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(client.stream, "__defaults__", (str(tmp_path / "none"), None))
    for args in (
        ["status"],
        ["volume", "list"],
        ["node", "list"],
        ["node", "show", "n1"],
        ["keys"],
        ["history"],
        ["events"],
    ):
        result = run(*args)
        assert result.exit_code == 4
        assert "systemctl start hactld" in result.output


def test_status_shows_the_cluster_and_checks_it_when_asked(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    assert "Nothing is wrong." in run("status").output
    assert json.loads(run("status", "--json").output) == STATE
    assert run("status", "--check").exit_code == 0
    daemon["status"] = {"ok": True, "result": {**STATE, "problems": ["no quorum"]}}
    assert run("status").exit_code == 0
    assert run("status", "--check").exit_code == 5


def test_a_refusal_is_one_line_and_exit_code_1(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    daemon["move"] = {"ok": False, "error": "n2 is not ready to take v1", "kind": "RequestRefused"}
    result = run("volume", "move", "v1", "n2")
    assert (result.exit_code, result.output.strip()) == (1, "hactl: n2 is not ready to take v1")


def test_an_unknown_volume_or_node_is_a_usage_error(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    for args in (["volume", "move", "v9"], ["volume", "show", "v9"], ["fence", "n9", "--yes"]):
        result = run(*args)
        assert result.exit_code == 2
        assert "9" in result.output


def test_a_node_list_shows_the_state_of_each_link(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    assert "up down" in run("node", "list").output
    assert json.loads(run("node", "list", "--json").output)[0]["links"] == ["up", "down"]


def test_a_node_show_has_its_verdicts_and_links(daemon: dict[str, Any]) -> None:
    daemon["nodes"] = {"ok": True, "result": [NODE]}
    output = run("node", "show", "n2").output
    for text in ("n3 heard it 12 ms ago", "promised by n1, n3", "silent", "192.0.2.12", "volume v1: backup"):
        assert text in output
    assert json.loads(run("node", "show", "n2", "--json").output) == json.loads(json.dumps(NODE))


def test_a_node_show_of_an_unknown_node_is_a_usage_error(daemon: dict[str, Any]) -> None:
    daemon["nodes"] = {"ok": True, "result": [NODE]}
    result = run("node", "show", "n9")
    assert result.exit_code == 2
    assert "there are n2" in result.output


def served(server: str, following: str | None) -> dict[str, Any]:
    phases = {"n1": "serving" if server == "n1" else "standby", "n2": "serving" if server == "n2" else "standby"}
    volume = {**STATE["volumes"][0], "server": server, "next": following, "phases": phases}
    return {"ok": True, "result": {**STATE, "volumes": [volume]}}


def test_a_drain_ends_when_this_node_has_nothing_in_hand(daemon: dict[str, Any]) -> None:
    daemon.update(drain={"ok": True, "result": {}}, status=served("n2", None))
    result = run("node", "drain")
    assert result.exit_code == 0, result.output
    assert "n1 is on standby and has no volume" in result.output


def test_a_drain_that_nobody_can_take_over_is_refused_and_undone(
    daemon: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodecmd, "HOPELESS_S", 0.2)
    daemon.update(drain={"ok": True, "result": {}}, resume={"ok": True, "result": {}}, status=served("n1", None))
    result = run("node", "drain")
    assert result.exit_code == 1
    assert "no other node is ready to take v1; n1 goes on" in result.output
    assert run("node", "resume").exit_code == 0


def test_a_drain_that_takes_too_long_says_what_is_left(daemon: dict[str, Any]) -> None:
    daemon.update(drain={"ok": True, "result": {}}, status=served("n1", "n2"))
    result = run("node", "drain", "--timeout", "0.2")
    assert result.exit_code == 3
    assert "n1 still has v1" in result.output


def test_fencing_shows_its_plan_and_asks_first(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    result = CliRunner().invoke(main, ["fence", "n1"], input="n\n")
    assert result.exit_code == 1
    assert "volume v1 goes to n2" in result.output


@pytest.mark.parametrize(
    ("level", "fenced"),
    [
        ("reservation", "barred by a majority"),
        ("power", "barred by a majority; power off"),
        ("watchdog", "barred by a majority; watchdog's time passed"),
    ],
)
def test_a_level_is_given_by_its_word_and_waited_for(daemon: dict[str, Any], level: str, fenced: str) -> None:
    barred = {**STATE["nodes"][0], "state": "barred", "fenced": fenced}
    daemon.update(status={"ok": True, "result": {**STATE, "nodes": [barred]}}, fence={"ok": True, "result": {}})
    done = run("fence", "n1", "--level", level, "--yes")
    assert done.exit_code == 0 and f"n1: {fenced}" in done.output, done.output
    assert ("switched OFF" in done.output) == (level == "power")
    barred["fenced"] = None
    daemon["status"]["result"]["nodes"] = [{**barred, "state": "alive"}]
    late = run("fence", "n1", "--level", level, "--yes", "--timeout", "0.1")
    assert late.exit_code == 3 and "not known to be fenced" in late.output


def test_a_volume_show_has_every_member(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    output = run("volume", "show", "v1").output
    assert all(name in output for name in STATE["volumes"][0])


INIT = ["init", "--cluster", "demo", "--node", "n1=1,192.0.2.11", "--node", "n2=2,192.0.2.12"]


def test_init_writes_a_configuration_that_is_accepted_and_a_secret_key(tmp_path: Path) -> None:
    result = run(*INIT, "--metrics-port", "9747", "--dir", str(tmp_path / "etc"))
    assert result.exit_code == 0, result.output
    config = parse_config((tmp_path / "etc/hactl.toml").read_text())
    assert [(node.name, node.number, node.address) for node in config.nodes] == [
        ("n1", 1, "192.0.2.11"),
        ("n2", 2, "192.0.2.12"),
    ]
    key = tmp_path / "etc/cluster.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(key.read_text().strip())) == 32


def test_init_names_the_luns_of_the_witness_and_refuses_two(tmp_path: Path) -> None:
    result = run(*INIT, "--witness", "naa.6001", "--dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "hactl witness add" in result.output
    assert parse_config((tmp_path / "hactl.toml").read_text()).witness == ("naa.6001",)
    result = run(*INIT, "--witness", "naa.1", "--witness", "naa.2", "--dir", str(tmp_path / "other"))
    assert result.exit_code == 2
    assert "each may get half" in result.output
    assert not (tmp_path / "other").exists()


def test_force_asks_first_and_says_what_it_means(daemon: dict[str, Any]) -> None:
    daemon["force-witness"] = {"ok": True, "result": {}}
    result = CliRunner().invoke(main, ["witness", "force"], input="n\n")
    assert result.exit_code == 1
    assert "Make sure that every silent node is off" in result.output
    assert run("witness", "force", "--yes").exit_code == 0


def test_witness_show_says_who_uses_it(daemon: dict[str, Any]) -> None:
    lun = {"wwid": "naa.6001", "device": "/dev/sdb", "reachable": True, "epoch": 4, "claimed_by": "n2", "why": ""}
    daemon["status"] = {"ok": True, "result": {"witness": {"state": "idle", "used_by": ["n2"], "luns": [lun]}}}
    result = run("witness", "show")
    assert result.exit_code == 0, result.output
    assert "used by n2" in result.output
    daemon["status"] = {"ok": True, "result": {"witness": None}}
    assert run("witness", "show").exit_code == 2


def test_init_takes_an_address_for_each_link(tmp_path: Path) -> None:
    nodes = ("--node", "n1=1,192.0.2.11,198.51.100.11", "--node", "n2=2,192.0.2.12,198.51.100.12")
    result = run("init", "--cluster", "demo", *nodes, "--dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    config = parse_config((tmp_path / "hactl.toml").read_text())
    assert [node.addresses for node in config.nodes] == [
        ("192.0.2.11", "198.51.100.11"),
        ("192.0.2.12", "198.51.100.12"),
    ]


def test_init_never_overwrites(tmp_path: Path) -> None:
    assert run(*INIT, "--dir", str(tmp_path)).exit_code == 0
    before = [path.read_text() for path in sorted(tmp_path.iterdir())]
    result = run(*INIT, "--dir", str(tmp_path))
    assert result.exit_code == 2
    assert "Nothing was written" in result.output
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize(
    "nodes",
    [["n1"], ["n1=x,192.0.2.1"], ["n1=1,192.0.2.1", "n1=2,192.0.2.2"], ["n1=0,192.0.2.1"], ["n1=1,no"], ['"=1,a']],
)
def test_init_refuses_wrong_nodes_and_writes_nothing(tmp_path: Path, nodes: list[str]) -> None:
    options = [part for each in nodes for part in ("--node", each)]
    result = run("init", "--cluster", "demo", *options, "--dir", str(tmp_path / "etc"))
    assert result.exit_code == 2
    assert not (tmp_path / "etc").exists()


def test_timing_is_printed_from_the_configuration_alone(tmp_path: Path) -> None:
    assert run(*INIT, "--dir", str(tmp_path)).exit_code == 0
    config = tmp_path / "hactl.toml"
    rows = json.loads(run("timing", "--config", str(config), "--json").output)
    assert {"detect", "bar confirmed"} <= {row["phase"] for row in rows}
    assert all(0 <= row["best_ms"] <= row["worst_ms"] for row in rows)
    config.write_text(config.read_text() + "\n[timing]\nlease_ms = 300\n")
    result = run("timing", "--config", str(config))
    assert result.exit_code == 2
    assert "300" in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["V1", "--address", "192.0.2.50/24", "--clients", "192.0.2.0/24"], "lower-case"),
        (["v1", "--address", "192.0.2.50", "--clients", "192.0.2.0/24"], "prefix length"),
        (["v1", "--address", "192.0.2.500/24", "--clients", "192.0.2.0/24"], "192.0.2.500"),
        (["v1", "--address", "192.0.2.50/24", "--clients", "192.0.2.1/24"], "host bits"),
        (["v1", "--address", "192.0.2.50/24", "--clients", "192.0.2.0/24", "--node", "n9"], "no node 'n9'"),
        (["v1", "--address", "192.0.2.50/24", "--clients", "192.0.2.0/24"], "--format"),
    ],
)
def test_a_volume_with_wrong_words_is_refused_before_a_disk_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="n1"))
    assert run(*INIT, "--dir", str(tmp_path)).exit_code == 0
    config = ["--config", str(tmp_path / "hactl.toml")]
    result = run("volume", "add", *words, "--device", str(tmp_path / "none"), *config)
    assert result.exit_code == 2
    assert told in result.output


def test_a_check_of_something_that_is_no_disk_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="n1"))
    assert run(*INIT, "--dir", str(tmp_path)).exit_code == 0
    for device in ("/dev/null", str(tmp_path / "none"), str(tmp_path / "hactl.toml")):
        result = run("check", device, "--config", str(tmp_path / "hactl.toml"))
        assert result.exit_code == 2
        assert device in result.output


def test_a_host_that_is_no_node_is_told_which_there_are(tmp_path: Path) -> None:
    assert run(*INIT, "--dir", str(tmp_path)).exit_code == 0
    result = run("check", "/dev/null", "--config", str(tmp_path / "hactl.toml"))
    assert result.exit_code == 2
    assert "n1, n2" in result.output


def test_a_command_whose_outcome_is_unknown_has_an_exit_code_of_its_own(daemon: dict[str, Any]) -> None:
    daemon["status"] = {"ok": True, "result": STATE}
    kind = OutcomeUnknown.__name__
    daemon["move"] = {"ok": False, "error": "the leader n1 did not answer", "kind": kind}
    assert run("volume", "move", "v1", "n2").exit_code == 3


def test_init_for_corosync_writes_both_configurations_and_they_fit(tmp_path: Path) -> None:
    own, theirs = tmp_path / "hactl", tmp_path / "corosync"
    nodes = ["--node", "n1=1,192.0.2.11", "--node", "n2=2,192.0.2.12", "--node", "n3=7,192.0.2.13"]
    init = ["init", "--cluster", "demo", *nodes, "--engine", "corosync", "--dir", str(own)]
    result = run(*init, "--corosync-dir", str(theirs))
    assert result.exit_code == 0, result.output
    config = parse_config((own / "hactl.toml").read_text())
    assert config.engine == "corosync"
    assert violations(config.timing, recommended()) == []
    text = (theirs / "corosync.conf").read_text()
    assert "nodeid: 7\n        name: n3\n        ring0_addr: 192.0.2.13" in text and "token_coefficient: 0" in text
    key = (theirs / "authkey").read_bytes()
    assert len(key) == 128 and (theirs / "authkey").stat().st_mode & 0o777 == 0o400

    again = run("corosync-conf", "--config", str(own / "hactl.toml"), "--dir", str(theirs))
    assert again.exit_code == 0, again.output
    assert (theirs / "authkey").read_bytes() == key
    assert (theirs / "corosync.conf").read_text() == text


def test_a_longer_token_gets_a_longer_lease(tmp_path: Path) -> None:
    init = ["init", "--cluster", "demo", "--node", "n1=1,192.0.2.11", "--engine", "corosync", "--token", "1000"]
    assert run(*init, "--dir", str(tmp_path / "hactl"), "--corosync-dir", str(tmp_path)).exit_code == 0
    config = parse_config((tmp_path / "hactl" / "hactl.toml").read_text())
    assert config.timing.lease_ms == 3350 and "token: 1000" in (tmp_path / "corosync.conf").read_text()
    again = run("corosync-conf", "--config", str(tmp_path / "hactl" / "hactl.toml"), "--dir", str(tmp_path))
    assert again.exit_code == 0 and "token: 1000" in (tmp_path / "corosync.conf").read_text()


def test_a_foreign_corosync_conf_is_kept(tmp_path: Path) -> None:
    own, theirs = tmp_path / "hactl", tmp_path / "corosync"
    theirs.mkdir()
    (theirs / "corosync.conf").write_text("totem {\n  cluster_name: other\n}\n")
    init = ["init", "--cluster", "demo", "--node", "n1=1,192.0.2.11", "--engine", "corosync", "--dir", str(own)]
    refused = run(*init, "--corosync-dir", str(theirs))
    assert refused.exit_code == 2 and "hactl did not write it" in refused.output
    assert not own.exists() and "other" in (theirs / "corosync.conf").read_text()
    assert run(*init, "--corosync-dir", str(theirs), "--force").exit_code == 0
    assert "Written by hactl" in (theirs / "corosync.conf").read_text()


def test_a_token_that_the_lease_cannot_bridge_is_refused(tmp_path: Path) -> None:
    own, theirs = tmp_path / "hactl", tmp_path / "corosync"
    init = ["init", "--cluster", "demo", "--node", "n1=1,192.0.2.11", "--engine", "corosync", "--dir", str(own)]
    assert run(*init, "--corosync-dir", str(theirs)).exit_code == 0
    before = (theirs / "corosync.conf").read_text()
    refused = run("corosync-conf", "--config", str(own / "hactl.toml"), "--dir", str(theirs), "--token", "1000")
    assert refused.exit_code == 2 and "1000 + 1200 + 100" in refused.output
    assert (theirs / "corosync.conf").read_text() == before


def test_timing_of_the_corosync_engine_has_its_own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise EngineUnreachable("no corosync here")

    monkeypatch.setattr(clustercmd, "read_facts", away)
    own = tmp_path / "hactl"
    init = ["init", "--cluster", "demo", "--node", "n1=1,192.0.2.11", "--engine", "corosync", "--dir", str(own)]
    assert run(*init, "--corosync-dir", str(tmp_path)).exit_code == 0
    result = CliRunner().invoke(main, ["timing", "--json", "--config", str(own / "hactl.toml")])
    assert result.exit_code == 0 and "no corosync here" in result.stderr
    rows = {row["phase"]: row for row in json.loads(result.stdout)}
    assert rows["detect a node that is lost"]["worst_ms"] == 980


CONFIG_STATE: dict[str, Any] = {
    "version": 2,
    "digest": "00",
    "change": None,
    "accepted_by": [],
    "chosen": False,
    "versions": {"n1": 2, "n4": 0},
    "behind": [],
    "keys": [],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c"
    assert run("init", "--cluster", "demo", "--node", "n1=1,192.0.2.11", "--dir", str(path)).exit_code == 0
    return path / "hactl.toml"


ADD = ("node", "add", "n4", "--number", "4", "--address", "192.0.2.14")


def test_a_new_nodes_configuration_is_printed_and_nothing_is_changed(config: Path) -> None:
    before = config.read_text()
    result = run(*ADD, "--prepare", "--config", str(config))
    made = parse_config(result.output)
    assert (made.version, made.previous) == (2, parse_config(before).digest().hex())
    assert [node.name for node in made.nodes] == ["n1", "n4"]
    assert config.read_text() == before


def test_adding_a_node_tells_the_steps_and_what_to_do_on_the_new_host(daemon: dict[str, Any], config: Path) -> None:
    daemon["node-add"] = {"ok": True, "result": {"version": "2", "what": "add n4 (number 4)"}}
    daemon["status"] = {"ok": True, "result": {**STATE, "config": CONFIG_STATE}}
    result = run(*ADD, "--config", str(config))
    assert result.exit_code == 0, result.output
    assert "version 2 is in force" in result.output and "systemctl enable --now" in result.output
    told = CliRunner().invoke(main, [*ADD, "--config", str(config), "--json"])
    assert json.loads(told.stdout)["unheard"] == ["n4"]


def test_a_change_that_takes_too_long_is_neither_done_nor_refused(daemon: dict[str, Any], config: Path) -> None:
    daemon["node-add"] = {"ok": True, "result": {"version": "2", "what": "add n4 (number 4)"}}
    slow = {**CONFIG_STATE, "version": 1, "change": "add n4 (number 4)", "accepted_by": ["n1"]}
    daemon["status"] = {"ok": True, "result": {**STATE, "config": slow}}
    result = run(*ADD, "--config", str(config), "--timeout", "0")
    assert result.exit_code == 3
    assert "accepted by n1" in result.output and "goes on by itself" in result.output


def test_a_new_key_is_done_when_only_it_counts(daemon: dict[str, Any]) -> None:
    daemon["key-rotate"] = {"ok": True, "result": {"version": "2", "what": "keys a (seals) and b"}}
    between = {**CONFIG_STATE, "version": 4, "keys": ["b", "a"]}
    daemon["status"] = {"ok": True, "result": {**STATE, "config": between}}
    assert run("key", "rotate", "--timeout", "0").exit_code == 3
    daemon["status"]["result"]["config"] = {**between, "keys": ["b"]}
    assert run("key", "rotate", "--timeout", "0").exit_code == 0


def test_wrong_input_for_a_new_node_is_a_usage_error(config: Path) -> None:
    for wrong in (
        ("n1", "4", "192.0.2.14"),
        ("n4", "1", "192.0.2.14"),
        ("n4", "4", "here"),
        ("n 4", "4", "192.0.2.14"),
    ):
        name, number, address = wrong
        words = ["node", "add", name, "--number", number, "--address", address, "--config", str(config)]
        assert run(*words).exit_code == 2, wrong
