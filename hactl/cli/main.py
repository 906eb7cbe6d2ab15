"""The `hactl` command: parse, call one function, render."""

from __future__ import annotations

import click

from hactl import __version__
from hactl.cli.changecmd import key
from hactl.cli.clustercmd import events, fence, history, status, timing, unfence, watch
from hactl.cli.corosynccmd import corosync_conf
from hactl.cli.diskcmd import check, volume_add
from hactl.cli.initcmd import init
from hactl.cli.keyscmd import keys
from hactl.cli.nodecmd import node
from hactl.cli.preflightcmd import preflight
from hactl.cli.volumecmd import volume
from hactl.cli.witnesscmd import witness


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="hactl %(version)s")
def main() -> None:
    """High availability for storage that several hosts share.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage or configuration (nothing changed), 3 the outcome is not
    known, 4 hactld does not answer, 5 something is wrong (`status --check`, `check`, `preflight`).
    """


volume.add_command(volume_add)
COMMANDS = (init, node, key, volume, witness, status, watch, keys, fence, unfence, history, events, check, timing)
for command in (*COMMANDS, preflight, corosync_conf):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="hactl")
