"""`hactl init`: the configuration and the key of a new cluster."""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path

import click

from hactl.cli.client import fail
from hactl.cli.corosynccmd import COROSYNC_DIR, check_corosync, write_corosync
from hactl.cli.exits import Exit
from nodewatch.config import ConfigError, parse_config
from nodewatch.corosync import TOKEN_MIN_MS, TOKEN_MS, recommended_timing
from nodewatch.engine import BUILTIN, COROSYNC, ENGINES

KEY_BYTES = 32
TOKEN_HELP = f"Corosync's, in ms; the lease is made to go with it. [default: {TOKEN_MS}]"


@click.command()
@click.option("--cluster", required=True, help="A name for the cluster.")
@click.option("--node", "nodes", multiple=True, required=True, metavar="NAME=NUMBER,ADDRESS[,ADDRESS...]")
@click.option("--witness", "witness", multiple=True, metavar="WWID", help="A LUN with a vote; 1, 3 or 5 of them.")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve /metrics on each node's address.")
@click.option("--engine", type=click.Choice(ENGINES), default=BUILTIN, show_default=True, help="Carries heartbeats.")
@click.option("--token", type=click.IntRange(TOKEN_MIN_MS, 60_000), default=TOKEN_MS, help=TOKEN_HELP)
@click.option("--corosync-dir", type=click.Path(path_type=Path), default=COROSYNC_DIR, show_default=True)
@click.option("--force", is_flag=True, help="Replace a corosync.conf that hactl did not write.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path("/etc/hactl"), show_default=True)
def init(
    cluster: str,
    nodes: tuple[str, ...],
    witness: tuple[str, ...],
    metrics_port: int | None,
    engine: str,
    token: int,
    corosync_dir: Path,
    force: bool,
    directory: Path,
) -> None:
    """Write hactl.toml and cluster.key for a new cluster; then copy both to every node.

    NUMBER (1 to 4095) is a node's for good: it is part of the keys on the disks. Never give it to another node.
    Several addresses of a node are heartbeat links, each on a network of its own, in the same order on every node.
    """
    ident = str(uuid.uuid4())
    parsed_nodes = [parse_node(each) for each in nodes]
    corosync_token = token if engine == COROSYNC else None
    text = render_config(cluster, parsed_nodes, metrics_port, ident, directory, token=corosync_token)
    if witness:
        text += f"\n[witness]\nwwids = [{', '.join(_quoted(wwid) for wwid in witness)}]\n"
    try:
        parsed = parse_config(text)
    except ConfigError as wrong:
        fail(str(wrong), Exit.USAGE)
    config, key = directory / "hactl.toml", directory / "cluster.key"
    for path in (config, key):
        if path.exists():
            fail(f"{path} exists already: this node is in a cluster. Nothing was written", Exit.USAGE)
    if engine == COROSYNC:
        check_corosync(corosync_dir, force=force)
    secret = secrets.token_bytes(KEY_BYTES)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(key, secret.hex() + "\n", 0o600)
        _write(config, text, 0o644)
    except OSError as wrong:
        fail(f"{wrong.filename}: {wrong.strerror}", Exit.USAGE)
    click.echo(f"Wrote {config} and {key}. Copy both to every node (the key is secret, mode 0600), then on each:")
    if engine == COROSYNC:
        write_corosync(parsed, secret, corosync_dir, token=token, force=force)
        click.echo("  hactl corosync-conf && systemctl enable corosync && systemctl restart corosync")
    click.echo("  systemctl enable --now hactl-nodewatch hactld")
    if witness:
        click.echo("Then, on one node, for each LUN of the witness: hactl witness add DEVICE")


def parse_node(text: str) -> tuple[str, int, tuple[str, ...]]:
    """`NAME=NUMBER,ADDRESS`, more addresses behind further commas. Raises click.BadParameter."""
    name, _, rest = text.partition("=")
    number, *addresses = rest.split(",")
    if not (name and addresses and all(addresses) and number.isdigit()):
        raise click.BadParameter(f"{text!r}: NAME=NUMBER,ADDRESS is expected, as in n1=1,192.0.2.11")
    return name, int(number), tuple(addresses)


def render_config(
    cluster: str,
    nodes: list[tuple[str, int, tuple[str, ...]]],
    metrics_port: int | None,
    ident: str,
    directory: Path,
    *,
    token: int | None = None,
) -> str:
    parts = [
        "# hactl: one file for the whole cluster, the same on every node.",
        "[cluster]",
        f"name = {_quoted(cluster)}",
        f"uuid = {_quoted(ident)}",
        f"key_file = {_quoted(str(directory / 'cluster.key'))}",
        "# Counted up by `hactl node add | remove | replace` and `hactl key rotate`.",
        "version = 1",
    ]
    if token is not None:
        parts += [
            f"engine = {_quoted(COROSYNC)}",
            "",
            "[timing]",
            "# Bridges a change of corosync's membership: `hactl timing`, docs/corosync.md.",
            f"lease_ms = {recommended_timing(token).lease_ms}",
        ]
    for name, number, addresses in nodes:
        each = [_quoted(address) for address in addresses]
        where = f"address = {each[0]}" if len(each) == 1 else f"addresses = [{', '.join(each)}]"
        parts += ["", "[[node]]", f"name = {_quoted(name)}", f"number = {number}", where]
    if metrics_port is not None:
        parts += ["", "[metrics]", "# An empty host means the node's own address.", f'listen = ":{metrics_port}"']
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    if any(c in text for c in '"\\\n') or not text.isprintable():
        raise click.BadParameter(f"{text!r}: no quotes, backslashes or control characters")
    return f'"{text}"'


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
