"""The cluster as its own command line shows it: `hactl ... --json`, asked of any node that answers.

Tolerant of fields that it does not know, strict about the few that it uses.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hwlab.history import TimingRow
from hwlab.stage import HostSilent, Stage

ANSWER_S = 30.0


class ClusterSilent(Exception):
    """No node could say how the cluster is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Who leads, who serves the volume, who could take it over, what is wrong."""

    leader: str
    server: str
    following: str
    """The node that would take the volume next, "" for none."""
    ready: tuple[str, ...]
    problems: tuple[str, ...]


def read_status(stage: Stage, hosts: Iterable[str]) -> Status:
    """Ask the hosts one after another until one answers."""
    table = _ask(stage, hosts, ["hactl", "status", "--json"])
    return parse_status(table, stage.share.volume)


def read_history(stage: Stage, hosts: Iterable[str]) -> list[dict[str, Any]]:
    """All recoveries of the volume that the cluster recorded, newest last."""
    table = _ask(stage, hosts, ["hactl", "history", "--json"])
    entries = table.get("history", []) if isinstance(table, dict) else table
    return [entry for entry in entries if entry.get("volume") == stage.share.volume]


def read_timing(stage: Stage, hosts: Iterable[str]) -> tuple[TimingRow, ...]:
    """What the cluster's timing promises, as the code that runs derives it."""
    rows = _ask(stage, hosts, ["hactl", "timing", "--json"])
    return tuple(
        TimingRow(phase=str(row["phase"]), best_ms=float(row["best_ms"]), worst_ms=float(row["worst_ms"]))
        for row in rows
    )


def _ask(stage: Stage, hosts: Iterable[str], argv: list[str]) -> Any:
    trouble = []
    for host in hosts:
        try:
            done = stage.exec(host, argv, timeout_s=ANSWER_S)
        except HostSilent:
            trouble.append(f"{host}: silent")
            continue
        try:
            return json.loads(done.stdout)
        except ValueError:
            said = done.stderr.decode(errors="replace").strip()[:200]
            trouble.append(f"{host}: exit {done.returncode} {said}")
    raise ClusterSilent(f"no node answered `{' '.join(argv)}`: {'; '.join(trouble)}")


def parse_status(table: dict[str, Any], volume: str) -> Status:
    """Pick what the drills need out of `hactl status --json`."""
    nodes = table.get("nodes", [])
    mine: dict[str, Any] = next((v for v in table.get("volumes", []) if v.get("name") == volume), {})
    serving = mine.get("state") == "serving"
    return Status(
        leader=table.get("leader") or "",
        server=(mine.get("server") or "") if serving else "",
        following=mine.get("next") or "",
        ready=tuple(node["name"] for node in nodes if node.get("ready")),
        problems=tuple(mine.get("problems", ())),
    )
