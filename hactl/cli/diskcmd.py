"""Commands on a device itself: is it fit, and make it a volume. They run here, and tell the daemon afterwards."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from fencing._disk import open_lun
from fencing._disk import wwid as wwid_of
from fencing._format import FILE_SYSTEMS, NewVolume, format_set
from fencing.errors import FencingError
from fencing.model import PROBE_EPOCH
from fencing.port import ReservationPort
from fencing.promises import Verdict, promise_of
from fencing.verdict import CheckResult, check_device
from fs._assemble import Assembly
from fs.errors import FsError
from fs.stack import KINDS, Stack
from hactl.cli import render
from hactl.cli.client import ask, fail
from hactl.cli.exits import Exit
from hactl.cli.options import config_option, json_option
from hactl.config import Config, load
from hactl.errors import HaError
from hactl.judged import Judgements
from hactl.record import Records

NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")
ACCEPT = "accept it for good with --accept-risk"
STABLE, BOOT = Path("/var/lib/hactl"), Path("/run/hactl")


@click.command()
@click.argument("device")
@config_option
@json_option
def check(device: str, config: Path, json_wanted: bool) -> None:
    """Is DEVICE fit for a volume? Tries every reservation operation on a scratch key and reads each back.

    On a device in use only what changes nothing is tried. Exit code 5 if a check failed.
    """
    identity = read_config(config).identity
    results = checked_device(device, lambda port: check_device(port, identity.key(PROBE_EPOCH)))
    each = [asdict(result) for result in results]
    render.show(each, render.checks(each), json_wanted)
    if not all(result.ok for result in results):
        raise SystemExit(int(Exit.DEGRADED))


def checked_device(device: str, run: Callable[[ReservationPort], list[CheckResult]]) -> list[CheckResult]:
    try:
        lun = open_lun(device)
    except OSError as wrong:
        fail(f"{device}: {wrong.strerror or wrong}", Exit.USAGE)
    try:
        return [CheckResult(name="unique name", ok=True, detail=lun.wwid), *run(lun.port)]
    finally:
        lun.close()


def refuse_unfit(device: str, cluster: Config, purpose: str, force: bool, or_else: str = "") -> list[str]:
    """End the process with a clear line if the device failed a check, unless it is forced: then the promises that this
    breaks, by the words of the preflight."""
    results = checked_device(device, lambda port: check_device(port, cluster.identity.key(PROBE_EPOCH)))
    failed = [each for each in results if not each.ok]
    if failed and not force:
        bad = "; ".join(f"{each.name}: {each.detail}" for each in failed)
        to_do = f"; use other storage, mend it, or {or_else}" if or_else else ""
        fail(f"{device} does not keep what {purpose} needs ({bad}). Nothing was written{to_do}", Exit.REFUSED)
    return [promise_of(each.name).value for each in failed]


def known_risks(device: str, accepted: bool) -> list[str]:
    """What the last preflight of the device found broken. Ends the process with a clear line unless it is accepted."""
    try:
        judged = Judgements(STABLE).of(wwid_of(device))
    except OSError as wrong:
        fail(f"{device}: {wrong.strerror or wrong}", Exit.USAGE)
    except HaError as wrong:
        fail(str(wrong), Exit.REFUSED)
    if judged is None:
        click.echo(f"  no preflight of {device} is on record; it tells what only several nodes together can find out")
    if judged is None or judged.verdict != Verdict.BROKEN:
        return []
    if not accepted:
        fail(
            f"the preflight of {device} found broken: {judged.risk} (docs/preflight.md). Nothing was written; use "
            f"other storage, or mend it and run the preflight again, or {ACCEPT}",
            Exit.REFUSED,
        )
    return judged.risk.split(", ")


@click.command("add")
@click.argument("name")
@click.argument("devices", nargs=-1)
@click.option("--device", "more", multiple=True, help="A whole disk, best by /dev/disk/by-id/wwn-…; repeatable.")
@click.option(
    "--stack", type=click.Choice([kind for kind in KINDS if kind]), help="What joins several disks to one volume."
)
@click.option("--address", required=True, help="The address that clients mount, with its prefix: 192.0.2.50/24.")
@click.option("--clients", multiple=True, required=True, help="A network that may mount (CIDR); repeatable.")
@click.option("--fs", "fstype", type=click.Choice(list(FILE_SYSTEMS)), default="ext4", show_default=True)
@click.option("--node", "nodes", multiple=True, help="Who may serve it, best first; all nodes if not given.")
@click.option("--lease-s", default=10, show_default=True, type=click.IntRange(5, 3600), help="NFSv4 lease.")
@click.option("--grace-s", default=10, show_default=True, type=click.IntRange(5, 3600), help="NFSv4 grace.")
@click.option("--format", "formatting", is_flag=True, help="Write partition table, label and file system.")
@click.option("--force", is_flag=True, help="Also on disks that are not empty: ALL ON THEM IS LOST.")
@click.option("--accept-risk", is_flag=True, help="Also on storage that failed `preflight` or `check`.")
@config_option
def volume_add(
    name: str,
    devices: tuple[str, ...],
    more: tuple[str, ...],
    stack: str | None,
    formatting: bool,
    force: bool,
    accept_risk: bool,
    config: Path,
    **wanted: Any,
) -> None:
    """Make whole disks (DEVICES) the volume NAME, and serve it. Several disks need --stack."""
    cluster = read_config(config)
    disks = (*devices, *more)
    new = _new_volume(name, cluster, stack=stack or "", **wanted)
    if not formatting:
        fail("a volume is made on empty disks: repeat with --format (it writes a new file system)", Exit.USAGE)
    _check_stack(new, disks)
    known = [each["name"] for each in ask("status")["volumes"]]
    if name in known:
        fail(f"there is a volume {name} already; choose another name", Exit.USAGE)
    risks: dict[str, None] = {}
    for device in disks:
        risks |= dict.fromkeys(refuse_unfit(device, cluster, "a volume", accept_risk, ACCEPT))
        risks |= dict.fromkeys(known_risks(device, accept_risk))
    new = replace(new, risk=", ".join(risks))
    records = Records(STABLE, BOOT)
    try:
        label = format_set(
            disks,
            new,
            cluster.identity,
            floor=records.floor(name),
            intent=lambda epoch: records.intend(name, epoch),
            clock=time.monotonic,
            join=_joined(new) if new.stack else None,
            force=force,
            say=lambda line: click.echo(f"  {line}"),
        )
    except (FencingError, FsError, HaError, OSError) as wrong:
        fail(str(wrong), Exit.REFUSED)
    ask("rescan")
    click.echo(f"volume {name} is made on {_devices(disks)}, epoch {label.epoch}; it will be served in a moment")


def _check_stack(new: NewVolume, disks: tuple[str, ...]) -> None:
    """End the process with a clear line if these disks cannot be joined so, or this node lacks what it takes."""
    if not disks:
        fail("no disk given: name one, or several with --stack", Exit.USAGE)
    if len(disks) > 1 and not new.stack:
        choices = "; ".join(f"--stack {kind}: {each.about}" for kind, each in KINDS.items() if kind)
        fail(f"{len(disks)} disks are one volume only if something joins them: {choices}", Exit.USAGE)
    try:
        Assembly(Stack.of(new.stack, new.name, "", disks)).prepare()
    except ValueError as wrong:
        fail(str(wrong), Exit.USAGE)
    except FsError as wrong:
        fail(f"{wrong}. Nothing was written", Exit.REFUSED)


def _joined(new: NewVolume) -> Callable[[str, tuple[str, ...]], Assembly]:
    return lambda uuid, parts: Assembly(Stack.of(new.stack, new.name, uuid, parts))


def _devices(disks: tuple[str, ...]) -> str:
    return disks[0] if len(disks) == 1 else f"{len(disks)} disks"


def read_config(path: Path) -> Config:
    try:
        return load(path, hostname=os.uname().nodename)
    except HaError as wrong:
        fail(str(wrong), Exit.USAGE)


def _new_volume(
    name: str, cluster: Config, *, address: str, clients: tuple[str, ...], nodes: tuple[str, ...], **rest: Any
) -> NewVolume:
    """What the label is to say. Ends the process with a clear line for wrong input."""
    if not NAME.fullmatch(name):
        fail(f"{name!r}: a name has 1 to 15 lower-case letters, digits and dashes, a letter first", Exit.USAGE)
    unknown = [node for node in nodes if node not in cluster.numbers]
    if unknown:
        fail(f"no node {unknown[0]!r}; there are {', '.join(sorted(cluster.numbers))}", Exit.USAGE)
    try:
        if "/" not in address or ipaddress.ip_interface(address).network.prefixlen in (0,):
            raise ValueError(f"{address!r} has no prefix length")
        networks = tuple(str(ipaddress.ip_network(each)) for each in clients)
    except ValueError as wrong:
        fail(f"{wrong}; give an address as 192.0.2.50/24, a network of clients as 192.0.2.0/24", Exit.USAGE)
    return NewVolume(
        name=name,
        cluster_name=cluster.cluster.name,
        address=address,
        clients=networks,
        nodes=nodes,
        wanted="started",
        **rest,
    )
