"""`hactl corosync-conf`: the configuration of corosync that belongs to hactl.toml, for the corosync engine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hactl.cli.client import fail
from hactl.cli.exits import Exit
from hactl.cli.options import config_option
from nodewatch import corosync, keyring
from nodewatch.config import ClusterConfig, ConfigError, parse_config
from nodewatch.engine import COROSYNC

COROSYNC_DIR = Path("/etc/corosync")


@click.command("corosync-conf")
@config_option
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=COROSYNC_DIR, show_default=True)
@click.option("--token", type=click.IntRange(corosync.TOKEN_MIN_MS, 60_000), help="In ms; else what the lease bridges.")
@click.option("--force", is_flag=True, help="Replace a corosync.conf that hactl did not write.")
def corosync_conf(config: Path, directory: Path, token: int | None, force: bool) -> None:
    """Write corosync.conf and corosync's key for the nodes in hactl.toml. The same on every node; run it on each."""
    try:
        cluster = parse_config(config.read_text())
        key = keyring.choose(keyring.parse(Path(cluster.key_file).read_text()), cluster.keys)[0]
    except (OSError, ConfigError, keyring.BadKeys) as wrong:
        fail(f"{config}: {wrong}", Exit.USAGE)
    for path in write_corosync(cluster, key, directory, token=token, force=force):
        click.echo(f"Wrote {path}.")
    if cluster.engine != COROSYNC:
        click.echo(f'{config} has not `engine = "corosync"` in [cluster]: node watch will not use it.')


def check_corosync(directory: Path, *, force: bool) -> None:
    """Refuse to replace what somebody else wrote."""
    path = directory / "corosync.conf"
    if not force and path.exists() and not corosync.replaceable(path.read_text(errors="replace")):
        fail(f"{path} exists and hactl did not write it; --force replaces it. Nothing was written", Exit.USAGE)


def write_corosync(
    cluster: ClusterConfig, key: bytes, directory: Path, *, token: int | None = None, force: bool
) -> list[Path]:
    """Both files, each whole or not at all. Refuses, with nothing written, values on which node watch would not run."""
    check_corosync(directory, force=force)
    token = token or corosync.bridged_token(cluster.timing)
    broken = corosync.violations(cluster.timing, corosync.recommended(token))
    if broken and cluster.engine == COROSYNC:
        fail(broken[0], Exit.USAGE)
    config, key_file = directory / "corosync.conf", directory / "authkey"
    text = corosync.render_conf(cluster.name, cluster.nodes, str(key_file), token)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(key_file, corosync.auth_key(key, cluster.uuid), 0o400)
        _replace(config, text.encode(), 0o644)
    except OSError as wrong:
        fail(f"{wrong.filename}: {wrong.strerror}", Exit.USAGE)
    return [config, key_file]


def _replace(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
