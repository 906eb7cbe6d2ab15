"""`hactl volume`: what runs where, and planned changes of that."""

from __future__ import annotations

import time
from typing import Any

import click

from hactl.cli import render
from hactl.cli.client import ask, fail
from hactl.cli.exits import Exit
from hactl.cli.options import json_option

POLL_S = 0.1


@click.group()
def volume() -> None:
    """The volumes of the cluster."""


@volume.command("list")
@json_option
def volume_list(json_wanted: bool) -> None:
    """Every volume: where it is, its epoch and key, and who would take it next."""
    each = ask("status")["volumes"]
    render.show(each, render.volumes(each), json_wanted)


@volume.command("show")
@click.argument("name")
@json_option
def volume_show(name: str, json_wanted: bool) -> None:
    """All that is known of one volume."""
    one = _find(name)
    text = "\n".join(f"{key:9} {render.words(value)}" for key, value in one.items())
    render.show(one, text, json_wanted)


@volume.command("move")
@click.argument("name")
@click.argument("node", required=False)
@click.option("--to", "target", help="The same as NODE.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait for the end.")
def volume_move(name: str, node: str | None, target: str | None, timeout_s: float) -> None:
    """Move a volume to another node (NODE, or the best one), and wait until it serves there."""
    before = _find(name)
    began = time.monotonic()
    goal = ask("move", volume=name, node=node or target or "")["target"]
    click.echo(f"volume {name}: {before['server']} -> {goal}")
    _wait(name, lambda one: one["server"] == goal and one["state"] in ("serving", "reclaiming"), timeout_s)
    click.echo(f"volume {name} is served by {goal} after {time.monotonic() - began:.1f} s")


@volume.command("stop")
@click.argument("name")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True)
def volume_stop(name: str, timeout_s: float) -> None:
    """Stop serving a volume. It stays stopped, also over restarts, until `hactl volume start`."""
    _find(name)
    ask("stop", volume=name)
    _wait(name, lambda one: one["state"] == "stopped" and one["server"] is None, timeout_s)
    click.echo(f"volume {name} is stopped; its disk stays reserved. Start it with `hactl volume start {name}`")


@volume.command("start")
@click.argument("name")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True)
def volume_start(name: str, timeout_s: float) -> None:
    """Serve a volume again, on the node that is best for it."""
    _find(name)
    ask("start", volume=name)
    one = _wait(name, lambda one: one["state"] in ("serving", "reclaiming"), timeout_s)
    click.echo(f"volume {name} is served by {one['server']}")


def _find(name: str) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = ask("status")["volumes"]
    found = [one for one in volumes if one["name"] == name]
    if not found:
        known = ", ".join(one["name"] for one in volumes) or "none"
        fail(f"no volume {name!r} is known here; there are: {known}", Exit.USAGE)
    return found[0]


def _wait(name: str, done: Any, timeout_s: float) -> dict[str, Any]:
    """Poll the status until `done`; tell each change of state on the way."""
    deadline = time.monotonic() + timeout_s
    last = ""
    while True:
        one = _find(name)
        told = f"{one['state']} on {one['server'] or 'no node'}"
        if told != last:
            click.echo(f"  {told}")
            last = told
        if done(one):
            return one
        if time.monotonic() > deadline:
            wrong = "; ".join(one["problems"]) or "no reason is known"
            fail(f"volume {name} did not get there within {timeout_s:g} s ({told}): {wrong}", Exit.UNKNOWN)
        time.sleep(POLL_S)
