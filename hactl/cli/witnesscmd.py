"""`hactl witness`: the LUNs that have one vote, so that one half of an even cluster may go on."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fencing._format import format_witness
from fencing.errors import FencingError
from hactl.cli import render
from hactl.cli.client import SOCKET, ask, fail
from hactl.cli.diskcmd import BOOT, STABLE, read_config, refuse_unfit
from hactl.cli.exits import Exit
from hactl.cli.options import config_option, json_option
from hactl.errors import HaError
from hactl.record import Records
from hactl.witness import RECORD

WARNING = """\
This node will take the witness over although another node claimed it last, and then serve. The disks stay fenced, so
nothing is written twice. But if a node that is not heard still runs and serves, its clients may for some seconds read
what is no longer true, if its check of the witness fails to stop it. Make sure that every silent node is off."""


@click.group()
def witness() -> None:
    """The witness: LUNs that have one vote together."""


@witness.command("show")
@json_option
def witness_show(json_wanted: bool) -> None:
    """Whether it can be reached, who claimed it last, and who uses it."""
    shown = ask("status").get("witness")
    if not shown:
        fail("no witness is configured: see docs/administration.md, Two nodes", Exit.USAGE)
    render.show(shown, render.witness(shown), json_wanted)


@witness.command("add")
@click.argument("device")
@click.option("--force", is_flag=True, help="Also on a disk that is not empty: ALL ON IT IS LOST.")
@config_option
def witness_add(device: str, force: bool, config: Path) -> None:
    """Make the whole disk DEVICE a LUN of the witness. It holds nothing else; 8 MiB are enough."""
    cluster = read_config(config)
    refuse_unfit(device, cluster, "a witness", force)
    records = Records(STABLE, BOOT)
    try:
        label = format_witness(
            device,
            cluster.cluster.name,
            cluster.identity,
            floor=records.floor(RECORD),
            intent=lambda epoch: records.intend(RECORD, epoch),
            clock=time.monotonic,
            force=force,
            say=lambda line: click.echo(f"  {line}"),
        )
    except (FencingError, HaError, OSError) as wrong:
        fail(str(wrong), Exit.REFUSED)
    (wwid,) = label.wwids
    click.echo(f"{device} is a witness LUN of cluster {cluster.cluster.name}, epoch {label.epoch}")
    if wwid not in cluster.cluster.witness:
        click.echo(f'Name it in hactl.toml on every node ([witness] wwids = ["{wwid}"]), and restart hactl-nodewatch.')
    elif Path(SOCKET).exists():
        ask("rescan")


@witness.command("force")
@click.option("--yes", is_flag=True, help="Do not ask.")
def witness_force(yes: bool) -> None:
    """Let this node go on alone although it lost the witness. Only when the silent nodes are surely off."""
    click.echo(WARNING)
    if not yes and not click.confirm("Are the silent nodes off?"):
        fail("nothing was changed", Exit.REFUSED)
    ask("force-witness")
    click.echo("Asked. `hactl witness show` tells what became of it.")
