"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

json_option = click.option("--json", "json_wanted", is_flag=True, help="Print JSON instead of a table.")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/hactl/hactl.toml"),
    show_default=True,
    help="The cluster's configuration.",
)
