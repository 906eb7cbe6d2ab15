"""Tables and lines for people. Every function takes the JSON form and gives text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=False)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns, two blanks apart; "-" for what is empty."""
    cells = [list(head), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "", []) else str(value)


def status(state: dict[str, Any]) -> str:
    """The whole cluster at a glance: what is wrong comes last, where the eye stays."""
    parts = [
        f"cluster {state['cluster']}   leader {state['leader'] or '-'} (term {state['term']})   "
        f"quorum {'yes' if state['quorum'] else 'NO'}   seen from {state['me']} "
        f"(watchdog {'off' if state.get('watchdog') is None else 'on'})",
        "",
        volumes(state["volumes"]),
        "",
        nodes(state["nodes"]),
        *(["", witness(state["witness"])] if state.get("witness") else []),
    ]
    lines = wrong(state)
    parts += ["", *(["Nothing is wrong."] if not lines else ["Wrong:", *[f"  {line}" for line in lines]])]
    return "\n".join(parts)


def wrong(state: dict[str, Any]) -> list[str]:
    """Everything that the status says is not as it should be, a line each."""
    lines = list(state["problems"])
    lines += [f"node {n['name']}: {reason}" for n in state["nodes"] for reason in n["reasons"]]
    return lines + [f"volume {v['name']}: {problem}" for v in state["volumes"] for problem in v["problems"]]


def witness(shown: dict[str, Any]) -> str:
    """One line for what it does now, one for each LUN."""
    used = ", ".join(shown["used_by"])
    head = f"witness  {'used by ' + used if used else 'not in use'}"
    rows = [
        (lun["wwid"], lun["device"], lun["reachable"], lun["epoch"], lun["claimed_by"], lun["why"])
        for lun in shown["luns"]
    ]
    return f"{head}\n{table(('LUN', 'DEVICE', 'REACHABLE', 'EPOCH', 'CLAIMED BY', ''), rows)}"


def event(entry: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(entry["unix_ms"] / 1000)
    return f"{when:%H:%M:%S}.{entry['unix_ms'] % 1000:03d}  {entry['text']}"


def words(value: object) -> str:
    """A value of any JSON type on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={part}" for key, part in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(str(part) for part in value) or "-"
    return _cell(value)


def volumes(each: list[dict[str, Any]]) -> str:
    if not each:
        return "no volumes; add one with `hactl volume add NAME --device … --address …`"
    head = ("VOLUME", "STATE", "ON", "EPOCH", "KEY", "NEXT", "ADDRESS")
    rows = [
        (v["name"], v["state"].upper() if v["state"] == "down" else v["state"], v["server"], v["epoch"], v["key"],
         v["next"], v["address"])
        for v in each
    ]  # fmt: skip
    return table(head, rows)


def nodes(each: list[dict[str, Any]]) -> str:
    columns = {
        "NODE": [n["name"] for n in each],
        "NUMBER": [n["number"] for n in each],
        "STATE": [n["state"] for n in each],
        "DAEMON": [n["daemon"] for n in each],
        "READY": [n["ready"] for n in each],
    }
    if any(n.get("fenced") for n in each):
        columns["FENCED"] = [n.get("fenced") for n in each]
    if any("links" in n for n in each):
        columns["LINKS"] = [" ".join(n.get("links", [])) for n in each]
    if any("config_version" in n for n in each):
        columns["CONFIG"] = [n.get("config_version") for n in each]
    return table(list(columns), list(zip(*columns.values(), strict=True)))


def node(one: dict[str, Any]) -> str:
    """Everything about one node: verdicts in words, then its links, then its volumes."""
    lines = [
        f"node {one['name']} (number {one['number']})   {one['state']}   seen from {one['seen_from']} "
        f"{one['seen_ms_ago']} ms ago",
        "",
        *[f"  {verdict}" for verdict in one["verdicts"]],
        f"  generation {one['generation']}" + (f", round trip {one['rtt_ms']:g} ms" if one["rtt_ms"] else ""),
        *[f"  not ready: {reason}" for reason in one["reasons"]],
        *[f"  volume {volume}: {phase}" for volume, phase in one["volumes"].items()],
    ]
    head = ("LINK", "FROM", "TO", "STATE", "HEARD ms ago", "RTT ms", "LOSS %", "HEARS US", "")
    rows = [
        (k["link"], k.get("from"), k["address"], k["state"], k["heard_ms_ago"], k["rtt_ms"], k["loss_percent"],
         k["hears_us"], k["why"])
        for k in one["links"]
    ]  # fmt: skip
    return "\n".join([*lines, "", table(head, rows)])


def history(each: list[dict[str, Any]]) -> str:
    """One paragraph a takeover: where from, where to, why, and how long each step took."""
    if not each:
        return "no takeover is on record"
    return "\n\n".join(_takeover(one) for one in each)


def _takeover(one: dict[str, Any]) -> str:
    head = (
        f"volume {one['volume']}  {one['from'] or '-'} -> {one['to']}  epoch {one['epoch']}  key {one['key']}  "
        f"{one['verdict']}: {one['cause']}" + (f"  fenced by {one['fenced']}" if one.get("fenced") else "")
    )
    if not one["steps"]:
        return head
    begin = min(step["start_unix_ms"] for step in one["steps"])
    rows = [
        (
            step["name"],
            f"{step['start_unix_ms'] - begin:.0f}",
            f"{step['end_unix_ms'] - step['start_unix_ms']:.0f}",
            step["node"],
            step["detail"],
        )
        for step in one["steps"]
    ]
    body = table(("  step", "from ms", "took ms", "by the clock of", ""), [(f"  {r[0]}", *r[1:]) for r in rows])
    return f"{head}\n{body}"


def keys(each: list[dict[str, Any]]) -> str:
    head = ("VOLUME", "DEVICE", "KEY", "HOLDER", "MEANING")
    return table(head, [(k["volume"], k["device"], k["key"], k["holder"], k["meaning"]) for k in each])


def timing(rows: list[dict[str, Any]]) -> str:
    head = ("PHASE", "BEST ms", "WORST ms", "BECAUSE")
    return table(head, [(r["phase"], r["best_ms"], r["worst_ms"], r["because"]) for r in rows])


def checks(each: list[dict[str, Any]]) -> str:
    return "\n".join(f"{'ok  ' if c['ok'] else 'FAIL'}  {c['name']}: {c['detail']}" for c in each)


def preflight(report: dict[str, Any], verbose: bool) -> str:
    """A device a paragraph: its paths, then each promise, and of those that are not kept what it means and what to
    do."""
    return "\n\n".join(_preflighted(each, verbose) for each in report["devices"])


_SUMMARY = {
    "kept": "fit: every promise that was tried is kept",
    "broken": "NOT FIT for a volume: a promise is broken",
    "not tested": "not known to be fit: not everything could be tried",
}


def _preflighted(device: dict[str, Any], verbose: bool) -> str:
    head = ("NODE", "PATH", "DISK", "VIA", "STATE", "MB/s")
    rows = [(p["node"], p["path"], p["disk"], p["via"], p["state"], p["mb_per_s"]) for p in device["paths"]]
    lines = [f"{device['device']}  {device['wwid']}", "", table(head, rows), ""]
    before: tuple[list[str], str] = ([], "")
    for each in device["promises"]:
        kept = each["verdict"] == "kept"
        word = each["verdict"] if kept else each["verdict"].upper()
        lines.append(f"{word:<11} {each['says']}")
        again = not kept and before == (each["found"], each["to_do"])
        if not kept or verbose:
            lines += ["              as above"] if again else [f"              {line}" for line in each["found"]]
        if not kept:
            lines.append(f"            Means: {each['means']}.")
            lines += [] if again else [f"            Do: {each['to_do']}."]
            before = each["found"], each["to_do"]
    lines += [f"LEFT BEHIND {line}" for line in device["left"]]
    return "\n".join([*lines, "", f"{device['device']} is {_SUMMARY[device['verdict']]}."])


def show(value: Any, text: str, json_wanted: bool) -> None:
    click.echo(as_json(value) if json_wanted else text)
