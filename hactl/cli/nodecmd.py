"""`hactl node`: who is in the cluster and what each verdict rests on."""

from __future__ import annotations

import click

from hactl.cli import render
from hactl.cli.client import ask
from hactl.cli.options import json_option


@click.group()
def node() -> None:
    """The nodes of the cluster."""


@node.command("list")
@json_option
def node_list(json_wanted: bool) -> None:
    """Every configured node, whether it is heard, and whether it could take over."""
    state = ask("status")
    each = [{**one, "evidence": state["evidence"].get(one["name"], "")} for one in state["nodes"]]
    text = render.nodes(each)
    for one in each:
        lines = [*one["reasons"], *([one["evidence"]] if one["evidence"] else [])]
        text += "".join(f"\n  {one['name']}: {line}" for line in lines)
    render.show(each, text, json_wanted)
