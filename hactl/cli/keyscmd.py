"""`hactl keys`: every registration, and what it means. Of a volume from the daemon, of a device read here and now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from fencing._discover import scan
from fencing._disk import open_lun
from fencing.errors import FencingError, LabelError
from fencing.label import Label
from fencing.model import show_key
from fencing.port import Lun
from hactl.cli import render
from hactl.cli.client import ask, fail
from hactl.cli.diskcmd import read_config
from hactl.cli.exits import Exit
from hactl.cli.options import config_option, json_option
from hactl.config import Config
from hactl.explain import explain_key, other_clusters

_WWID = re.compile(r"(naa|eui|t10|uuid|nvme)\..+")


@click.command()
@click.argument("what", metavar="[VOLUME|DEVICE|WWID]", required=False)
@config_option
@json_option
def keys(what: str | None, config: Path, json_wanted: bool) -> None:
    """Every reservation key on the volumes' disks, and what each one means.

    For a DEVICE (a path that begins with /) or a WWID it is read here, whoever uses the device, also without hactld.
    """
    if what and (what.startswith("/") or _WWID.fullmatch(what)):
        each = keys_of_device(what if what.startswith("/") else _device_of(what), read_config(config))
    else:
        each = ask("keys", volume=what or "")
    render.show(each, render.keys(each), json_wanted)


def _device_of(wwid: str) -> str:
    found = [disk.device for disk in scan() if disk.wwid == wwid]
    if not found:
        fail(f"no disk with the WWID {wwid} is seen on this node", Exit.USAGE)
    return found[0]


def keys_of_device(device: str, config: Config) -> list[dict[str, Any]]:
    """One row per registration; reads only. Ends the process with a clear line if the device does not answer."""
    try:
        lun = open_lun(device)
    except OSError as wrong:
        fail(f"{device}: {wrong.strerror or wrong}", Exit.USAGE)
    try:
        state = lun.port.read()
        label = _label(lun)
    except FencingError as wrong:
        fail(str(wrong), Exit.REFUSED)
    finally:
        lun.close()
    tag, names = config.identity.tag, {number: name for name, number in config.numbers.items()}
    others = other_clusters(label, tag)
    ours = label if label is not None and not others else None
    return [
        {
            "volume": label.volume if label else "(no volume)",
            "device": device,
            "wwid": lun.wwid,
            "key": show_key(registrant.key),
            "holder": registrant.holder,
            "generation": state.generation,
            "meaning": explain_key(registrant.key, tag, names, ours.epoch if ours else None, others),
        }
        for registrant in state.registrants
    ]


def _label(lun: Lun) -> Label | None:
    """A label that cannot be used explains nothing; the keys are still there."""
    try:
        found = lun.labels.read()
    except LabelError:
        return None
    return found.label if found else None
