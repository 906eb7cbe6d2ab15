"""Commands on the cluster as a whole: look at it, follow it, fence a node of it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import click

from hactl.cli import render
from hactl.cli.client import ask, fail, stream
from hactl.cli.exits import Exit
from hactl.cli.options import config_option, json_option
from hactl.levels import Level, confirms
from nodewatch import corosync
from nodewatch._cpg import read_facts
from nodewatch.config import ClusterConfig, ConfigError, parse_config
from nodewatch.engine import COROSYNC, EngineUnreachable
from nodewatch.lease import TimingRow
from nodewatch.sections import POWER

POLL_S = 0.2
LEVELS = [level.value for level in Level]
"""As they are configured: of members of an enum click takes the names, in capitals."""


@click.command()
@json_option
@click.option("--check", "checking", is_flag=True, help="Exit with 5 when anything is wrong.")
def status(json_wanted: bool, checking: bool) -> None:
    """Where each volume is, who would take it next, and what is wrong."""
    state = ask("status")
    render.show(state, render.status(state), json_wanted)
    if checking and render.wrong(state):
        raise SystemExit(int(Exit.DEGRADED))


@click.command()
@json_option
def watch(json_wanted: bool) -> None:
    """The status, live. Ctrl-C ends it."""
    try:
        for state in stream("watch"):
            if json_wanted:
                click.echo(render.as_json(state))
                continue
            click.clear()
            click.echo(render.status(state))
            click.echo("\n" + "\n".join(render.event(entry) for entry in state["events"]))
    except KeyboardInterrupt:
        return


@click.command()
@click.argument("volume", required=False)
@json_option
def history(volume: str | None, json_wanted: bool) -> None:
    """Past takeovers and moves, each with its steps and how long they took."""
    each = ask("history", volume=volume or "")
    render.show(each, render.history(each), json_wanted)


@click.command()
@json_option
@click.option("--follow", is_flag=True, help="Go on as things happen.")
def events(json_wanted: bool, follow: bool) -> None:
    """What hactld of this node noted since it started."""
    try:
        for entry in stream("events", follow="yes" if follow else "no"):
            render.show(entry, render.event(entry), json_wanted)
    except KeyboardInterrupt:
        return


@click.command()
@config_option
@json_option
def timing(config: Path, json_wanted: bool) -> None:
    """Best and worst case of each phase of a takeover, derived from the configuration by the code that runs."""
    try:
        rows = [asdict(row) for row in timing_rows(parse_config(config.read_text()))]
    except (OSError, ConfigError) as wrong:
        fail(f"{config}: {wrong}", Exit.USAGE)
    render.show(rows, render.timing(rows), json_wanted)


def timing_rows(cluster: ClusterConfig) -> list[TimingRow]:
    """The table for the engine in use: what corosync runs with counts, not what its file says."""
    further = cluster.timing.fencing_table() if cluster.watchdog_fences else []
    if POWER in cluster.fencing.levels:
        further += cluster.timing.power_table(max(agent.timeout_s for agent in cluster.fencing.agents))
    if cluster.engine != COROSYNC:
        return cluster.timing.table() + further
    try:
        totem = read_facts().totem
    except EngineUnreachable as away:
        totem = corosync.recommended()
        click.echo(f"{away}. The table is for token {totem.token}, which `hactl corosync-conf` writes.", err=True)
    for broken in corosync.violations(cluster.timing, totem):
        click.echo(f"REFUSED by node watch: {broken}", err=True)
    return corosync.table(cluster.timing, totem) + further


@click.command()
@click.argument("node")
@click.option("--level", type=click.Choice(LEVELS), help="Fence by this level, and wait until it is confirmed.")
@click.option("--timeout", "timeout_s", default=180.0, show_default=True, help="Seconds to wait, with --level.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def fence(node: str, level: str | None, timeout_s: float, yes: bool) -> None:
    """Take everything from NODE and keep it out until `hactl unfence NODE`.

    A majority stops renewing its lease, so its addresses go; its disks are then taken over by others. With
    `--level power` its power is switched off, too, by its fence agent; with `--level watchdog`, wait until it must have
    reset itself.
    """
    state = ask("status")
    if node not in [each["name"] for each in state["nodes"]]:
        fail(f"no node {node!r}; there are {', '.join(each['name'] for each in state['nodes'])}", Exit.USAGE)
    moving = [v for v in state["volumes"] if v["server"] == node]
    click.echo(f"{node} will be barred and kept out until `hactl unfence {node}`.")
    if level == Level.POWER:
        click.echo(f"  its power will be switched OFF, and stays off until `hactl unfence {node} --power-on`")
    for each in moving:
        click.echo(f"  volume {each['name']} goes to {each['next'] or 'NOBODY: no other node is ready'}")
    if not yes:
        click.confirm("Go on?", abort=True)
    ask("fence", node=node, level=level or "")
    if level is None:
        click.echo(f"{node} is being fenced; `hactl status` shows how far it is")
        return
    _follow(node, Level(level), timeout_s)


def _follow(node: str, level: Level, timeout_s: float) -> None:
    """Until the level is confirmed, in the leader's words."""
    deadline, said = time.monotonic() + timeout_s, None
    while time.monotonic() < deadline:
        found = next(each for each in ask("status")["nodes"] if each["name"] == node)
        if found["fenced"] != said:
            said = found["fenced"]
            click.echo(f"{node}: {said}")
        if found["state"] == "barred" and confirms(said or "", level):
            return
        time.sleep(POLL_S)
    fail(f"{node} is not known to be fenced by {level} after {timeout_s:g} s: {said or 'not barred yet'}", Exit.UNKNOWN)


@click.command()
@click.argument("node")
@click.option("--power-on", is_flag=True, help="Also have its fence agent switch its power on.")
def unfence(node: str, power_on: bool) -> None:
    """Let NODE in again after `hactl fence`."""
    ask("unfence", node=node, level=Level.POWER if power_on else "")
    click.echo(f"{node} is let in again once it gave up what it held")
