"""`hactl node`: who is in the cluster and what each verdict rests on."""

from __future__ import annotations

import time
from typing import Any

import click

from hactl.cli import render
from hactl.cli.client import ask, fail
from hactl.cli.exits import Exit
from hactl.cli.options import json_option

POLL_S = 0.1
HOPELESS_S = 2.0
"""Other nodes get so long to become ready before a drain is refused."""


@click.group()
def node() -> None:
    """The nodes of the cluster."""


@node.command("list")
@json_option
def node_list(json_wanted: bool) -> None:
    """Every configured node, whether it is heard, and whether it could take over."""
    state = ask("status")
    versions = state.get("config", {}).get("versions", {})
    each = [
        {
            **one,
            "evidence": state["evidence"].get(one["name"], ""),
            "links": state["links"].get(one["name"], []),
            "config_version": versions.get(one["name"]),
        }
        for one in state["nodes"]
    ]
    text = render.nodes(each)
    for one in each:
        lines = [*one["reasons"], *([one["evidence"]] if one["evidence"] else [])]
        text += "".join(f"\n  {one['name']}: {line}" for line in lines)
    render.show(each, text, json_wanted)


@node.command("show")
@click.argument("name")
@json_option
def node_show(name: str, json_wanted: bool) -> None:
    """What every verdict on one node rests on, as the node that you ask sees it."""
    each = ask("nodes")
    found = [one for one in each if one["name"] == name]
    if not found:
        fail(f"there is no node {name!r}; there are {', '.join(one['name'] for one in each)}", Exit.USAGE)
    render.show(found[0], render.node(found[0]), json_wanted)


@node.command("drain")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait for the end.")
def node_drain(timeout_s: float) -> None:
    """Move every volume of THIS node to others, and give it none until `hactl node resume` or a restart of hactld.

    Also done by itself when hactl-nodewatch is stopped in order, as at a shutdown.
    """
    began = time.monotonic()
    hopeless_since: float | None = None
    ask("drain")
    while left := _in_hand(state := ask("status")):
        now = time.monotonic()
        hopeless_since = (hopeless_since or now) if any(volume["next"] is None for volume in left) else None
        names = ", ".join(volume["name"] for volume in left)
        if hopeless_since is not None and now - hopeless_since >= HOPELESS_S:
            ask("resume")
            fail(f"no other node is ready to take {names}; {state['me']} goes on. See `hactl status`", Exit.REFUSED)
        if now - began >= timeout_s:
            fail(f"{state['me']} still has {names}, and stays on standby; see `hactl status`", Exit.UNKNOWN)
        time.sleep(POLL_S)
    click.echo(f"{state['me']} is on standby and has no volume, after {time.monotonic() - began:.1f} s")


@node.command("resume")
def node_resume() -> None:
    """End what `hactl node drain` began: THIS node may take volumes again."""
    ask("resume")
    click.echo("this node may take volumes again")


def _in_hand(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The volumes that the asked node has in hand."""
    return [volume for volume in state["volumes"] if volume["phases"].get(state["me"], "standby") != "standby"]
