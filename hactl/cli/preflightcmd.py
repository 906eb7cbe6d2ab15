"""`hactl preflight`: does this storage keep what a volume relies on? Tried from all nodes, before it is needed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fencing._disk import wwid as wwid_of
from fencing.preflight import Options
from fencing.promises import Verdict
from hactl.cli import render
from hactl.cli.client import ask, fail, request
from hactl.cli.diskcmd import read_config
from hactl.cli.exits import Exit
from hactl.cli.options import config_option, json_option
from hactl.judged import Judged
from hactl.preflight import Preflighted, Run

ANSWER_SLACK_S = 10.0
EXITS = {Verdict.KEPT: Exit.OK, Verdict.BROKEN: Exit.DEGRADED, Verdict.NOT_TESTED: Exit.UNKNOWN}
_rounds = click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Takeovers under load, for each node."
)
_read_mib = click.option(
    "--read-mib", default=64, show_default=True, type=click.IntRange(1, 65536), help="MiB to read through each path."
)
_restart = click.option(
    "--restart-target", is_flag=True, help="Wait until you have restarted the target, and see what it still knows."
)
_restart_s = click.option(
    "--restart-timeout", default=600, show_default=True, type=click.IntRange(10, 86400), help="Seconds to wait for it."
)


@click.command()
@click.argument("devices", nargs=-1, required=True)
@_rounds
@_read_mib
@_restart
@_restart_s
@click.option("--read-only", is_flag=True, help="Change nothing: most promises then stay untested.")
@click.option("--verbose", "-v", is_flag=True, help="Also what was seen of promises that are kept.")
@config_option
@json_option
def preflight(
    devices: tuple[str, ...],
    rounds: int,
    read_mib: int,
    restart_target: bool,
    restart_timeout: int,
    read_only: bool,
    verbose: bool,
    config: Path,
    json_wanted: bool,
) -> None:
    """Try from all nodes and through all paths whether DEVICES keep what a volume relies on.

    Only unused devices are tried in earnest, and only 1 MiB (from byte 3 MiB on) is written, in which no data ever is;
    others are only looked at. Exit code 0: every promise was kept; 5: one is broken; 3: not all of them could be
    tested.
    """
    named = _wwids(devices)
    cluster = read_config(config)
    state = ask("status")
    nodes = [each for each in state["nodes"] if not each.get("votes_only")]
    options = Options(
        rounds=rounds, read_mib=read_mib, restart_s=restart_timeout if restart_target else 0, read_only=read_only
    )
    run = Run(
        carry=_carrier(uuid.uuid4().hex),
        tag=cluster.identity.tag,
        numbers=cluster.numbers,
        options=options,
        say=lambda text: click.echo(f"  {text}", err=True),
        sleep=time.sleep,
        now_s=time.monotonic,
        silent={each["name"]: "it is not heard" for each in nodes if each["state"] != "alive"},
    )
    alive = [each["name"] for each in nodes if each["state"] == "alive"]
    found = run.all(named, alive)
    _tell_nodes(found, alive, state["me"], run)
    report = {"schema": 1, "verdict": _worst(found).value, "devices": [each.as_json() for each in found]}
    render.show(report, render.preflight(report, verbose), json_wanted)
    raise SystemExit(int(EXITS[_worst(found)]))


def _wwids(devices: tuple[str, ...]) -> dict[str, str]:
    """WWID -> device as it was named. Ends the process with a clear line for what is no whole disk with a WWID."""
    named: dict[str, str] = {}
    for device in devices:
        try:
            wwid = wwid_of(device)
        except OSError as wrong:
            fail(f"{device}: {wrong.strerror or wrong}", Exit.USAGE)
        if " " in wwid:
            fail(f"{device}: its WWID {wwid!r} has a blank, which the nodes' facts cannot carry", Exit.USAGE)
        named.setdefault(wwid, device)
    return named


def _carrier(session: str) -> Any:
    def carry(node: str, act: str, wwid: str, args: Mapping[str, str], timeout_s: float) -> Mapping[str, Any]:
        words = {"node": node, "session": session, "act": act, "wwid": wwid, "args": json.dumps(dict(args))}
        answer = request("trial", timeout_s + ANSWER_SLACK_S, timeout_s=f"{timeout_s:g}", **words)
        return dict(answer)

    return carry


def _tell_nodes(found: list[Preflighted], nodes: list[str], me: str, run: Run) -> None:
    """Every node keeps the verdict, so that `volume add` knows it wherever it is given. A look alone is no verdict."""
    if run.options.read_only:
        return
    for each in found:
        shown = each.as_json()
        judged = Judged(
            wwid=each.wwid,
            verdict=shown["verdict"],
            risk=shown["risk"],
            unix_s=str(int(time.time())),
            by=me,
            untested=shown["untested"],
        )
        words = {name: str(getattr(judged, name)) for name in Judged.__dataclass_fields__}
        earlier: dict[str, None] = {}
        for node in nodes:
            try:
                told = run.carry(node, "judged", each.wwid, words, 20)
            except Exception as lost:
                told = {"error": str(lost)}
            if "error" in told:
                run.say(f"{node} did not note the verdict: {told['error']}")
            elif told["ok"].get("risk", shown["risk"]) != shown["risk"]:
                earlier |= {str(told["ok"]["risk"]): None}
        for risk in earlier:
            run.say(f"{each.device}: on record as broken, since not all of it was tried anew by this preflight: {risk}")


def _worst(found: list[Preflighted]) -> Verdict:
    verdicts = [each.verdict for each in found]
    return next((each for each in (Verdict.BROKEN, Verdict.NOT_TESTED) if each in verdicts), Verdict.KEPT)
