"""Commands that change the configuration of a cluster that serves: nodes that come and go, a new key."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hactl.changes import addition
from hactl.cli import render
from hactl.cli.client import ask, fail
from hactl.cli.exits import Exit
from hactl.cli.nodecmd import node
from hactl.cli.options import config_option, json_option
from hactl.configtext import changed, for_node
from hactl.errors import ConfigError, RequestRefused
from nodewatch.config import ConfigError as ParseError
from nodewatch.config import parse_config

POLL_S = 0.3
_timeout = click.option(
    "--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait until every node made it."
)
_force = click.option("--force", is_flag=True, help="Also what is unwise (never what is unsafe).")
_number = click.option("--number", required=True, type=click.IntRange(1, 4095), help="Its own for good: never reused.")
_address = click.option(
    "--address", "addresses", multiple=True, required=True, help="One per heartbeat link, in the order of the links."
)


@node.command("add")
@click.argument("name")
@_number
@_address
@click.option("--votes-only", is_flag=True, help="It runs hactl-nodewatch alone, and never has a volume.")
@click.option("--prepare", is_flag=True, help="Change nothing: print the hactl.toml for the new node.")
@_force
@_timeout
@config_option
@json_option
def node_add(
    name: str,
    number: int,
    addresses: tuple[str, ...],
    votes_only: bool,
    prepare: bool,
    force: bool,
    timeout_s: float,
    config: Path,
    json_wanted: bool,
) -> None:
    """Add a node while the cluster serves.

    Best in this order: print its hactl.toml with --prepare, put that and cluster.key on the new host (by scp,
    mode 0600), start its daemons, then give this command without --prepare: the new node counts at once.
    """
    args = {"node": name, "number": str(number), "addresses": ",".join(addresses), "votes_only": _word(votes_only)}
    text = _prepared(config, args)
    if prepare:
        click.echo(text, nl=False)
        return
    result = _carry_out("node-add", timeout_s, json_wanted, {**args, "force": _word(force)})
    if name in result["unheard"]:
        _say(json_wanted, f"{name} was not heard yet. On it, as root, with the key file copied by a safe way:")
        _say(json_wanted, f"  scp {config} and cluster.key of this node to /etc/hactl (cluster.key: mode 0600)")
        _say(json_wanted, "  systemctl enable --now hactl-nodewatch hactld")
    _finish(result, json_wanted)


@node.command("remove")
@click.argument("name")
@_force
@_timeout
@json_option
def node_remove(name: str, force: bool, timeout_s: float, json_wanted: bool) -> None:
    """Remove a node while the cluster serves. It must serve nothing; it may be dead.

    Its number stays used up: give another host another number.
    """
    result = _carry_out("node-remove", timeout_s, json_wanted, {"node": name, "force": _word(force)})
    _say(json_wanted, f"if {name} still runs: `systemctl disable --now hactl-nodewatch hactld` there")
    _finish(result, json_wanted)


@node.command("replace")
@click.argument("old")
@click.argument("new")
@_number
@_address
@_timeout
@config_option
@json_option
def node_replace(
    old: str, new: str, number: int, addresses: tuple[str, ...], timeout_s: float, config: Path, json_wanted: bool
) -> None:
    """Put node NEW, with a number of its own, in the place of OLD: two changes, one after the other.

    A node that is heard is removed last, a dead one first, so that as few failures as possible are dangerous meanwhile.
    """
    known = {each["name"]: each for each in ask("status")["nodes"]}
    if old not in known:
        fail(f"no node {old!r}; there are {', '.join(known)}", Exit.USAGE)
    args = {"node": new, "number": str(number), "addresses": ",".join(addresses)}
    _prepared(config, args)
    removal: tuple[str, dict[str, str]] = ("node-remove", {"node": old, "force": "yes"})
    steps = [("node-add", args), removal] if known[old]["state"] == "alive" else [removal, ("node-add", args)]
    began = time.monotonic()
    for verb, each in steps:
        result = _carry_out(verb, timeout_s, json_wanted, each)
    seconds = round(time.monotonic() - began, 1)
    _finish({**result, "what": f"replace {old} by {new} (number {number})", "seconds": seconds}, json_wanted)


@click.group()
def key() -> None:
    """The cluster's secret key."""


@key.command("rotate")
@_timeout
@json_option
def key_rotate(timeout_s: float, json_wanted: bool) -> None:
    """Make a new cluster key and bring it to every node, in three steps, while the cluster serves.

    It travels sealed by the present key: if that one is known to somebody who can listen, stop the cluster and copy a
    new key file by hand instead.
    """

    def done(state: dict[str, Any], target: int) -> bool:
        return state["version"] >= target + 2 and len(state["keys"]) == 1 and state["change"] is None

    _finish(_carry_out("key-rotate", timeout_s, json_wanted, {}, done), json_wanted)


def _prepared(config: Path, args: dict[str, str]) -> str:
    """The new node's hactl.toml. Ends the process with a clear line for wrong input."""
    try:
        text = config.read_text()
        return for_node(changed(text, addition(parse_config(text), args))[0], args["node"])
    except (OSError, ParseError, ConfigError, RequestRefused) as wrong:
        fail(str(wrong), Exit.USAGE)


def _everybody(state: dict[str, Any], target: int) -> bool:
    return state["version"] >= target and state["change"] is None and not state["behind"]


def _carry_out(
    verb: str,
    timeout_s: float,
    quiet: bool,
    args: dict[str, str],
    done: Callable[[dict[str, Any], int], bool] = _everybody,
) -> dict[str, Any]:
    """Have the leader begin, then tell each step until `done`."""
    began = time.monotonic()
    answer = ask(verb, 30, **args)
    target, last = int(answer["version"]), ""
    while True:
        state: dict[str, Any] = ask("status")["config"]
        told = _told(state)
        if told != last:
            _say(quiet, f"  {time.monotonic() - began:4.1f} s  {told}")
            last = told
        if done(state, target):
            break
        if time.monotonic() - began > timeout_s:
            fail(
                f"{answer['what']}: not everywhere within {timeout_s:g} s ({told}). It goes on by itself when "
                f"the nodes that lack are heard; see `hactl status`",
                Exit.UNKNOWN,
            )
        time.sleep(POLL_S)
    unheard = [name for name, version in state["versions"].items() if version == 0]
    seconds = round(time.monotonic() - began, 1)
    return {"what": answer["what"], "version": state["version"], "seconds": seconds, "unheard": unheard}


def _told(state: dict[str, Any]) -> str:
    if state["change"] is not None:
        how = "chosen" if state["chosen"] else f"accepted by {', '.join(state['accepted_by']) or 'nobody yet'}"
        return f"version {state['version'] + 1}: {state['change']}, {how}"
    late = f", {', '.join(state['behind'])} not yet" if state["behind"] else ""
    return f"version {state['version']} is in force{late}"


def _finish(result: dict[str, Any], json_wanted: bool) -> None:
    text = f"{result['what']}: done, version {result['version']} of the configuration, after {result['seconds']:g} s"
    render.show(result, text, json_wanted)


def _say(quiet: bool, line: str) -> None:
    click.echo(line, err=quiet)


def _word(flag: bool) -> str:
    return "yes" if flag else "no"
