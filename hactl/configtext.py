"""hactl.toml edited: one change in, the new text out. Comments, order and what is this host's own stay as they are.

tomlkit keeps the text; `nodewatch.config` remains the only parser that decides what it means.
"""

from __future__ import annotations

import re
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Table

from hactl.errors import ConfigError
from nodewatch.config import ClusterConfig, NodeConfig, parse_config
from nodewatch.config import ConfigError as ParseError
from nodewatch.membership import Change, ChangeRefused

_CLUSTER = re.compile(r"^[ \t]*\[[ \t]*cluster[ \t]*\][^\n]*", re.MULTILINE)
_VERSION = re.compile(r"^[ \t]*\"?version\"?[ \t]*=[^\n]*", re.MULTILINE)


def changed(text: str, change: Change) -> tuple[str, ClusterConfig]:
    """The new text, and what it means. Raises ConfigError when the change does not fit the text, or when the result
    is not what the change makes of the configuration that the text stands for."""
    try:
        before = parse_config(text)
        wanted = change.applied(before)
        edited = _edited(text, before, change)
        found = parse_config(edited)
    except (ParseError, ChangeRefused, TOMLKitError) as wrong:
        raise ConfigError(f"the change to version {change.version} does not fit hactl.toml here: {wrong}") from wrong
    if found != wanted:
        raise ConfigError(f"the change to version {change.version} would make something else of hactl.toml here")
    return edited, found


def _edited(text: str, before: ClusterConfig, change: Change) -> str:
    document = tomlkit.parse(_with_places(text, ("version", "previous", *(["keys"] if change.keys else []))))
    cluster: Any = document["cluster"]
    cluster["version"] = change.version
    cluster["previous"] = change.previous
    if change.keys:
        cluster["keys"] = list(change.keys)
    nodes = document["node"]
    if not isinstance(nodes, AoT):
        raise ConfigError("nodes must be written as [[node]] sections to be changed while the cluster runs")
    if change.add is not None:
        nodes.append(_table(change.add))
    if change.remove:
        names = [node.number for node in before.nodes]
        del nodes[names.index(change.remove)]
    return tomlkit.dumps(document)


def _with_places(text: str, names: tuple[str, ...]) -> str:
    """A line for each name in [cluster], where it has none, behind `version` or the heading: appended ones would stand
    behind the comment of the section that follows."""
    cluster: Any = tomlkit.parse(text)["cluster"]
    missing = [name for name in names if name not in cluster]
    lines = "".join(f"\n{name} = 0" for name in missing)
    behind = _CLUSTER if "version" in missing else _VERSION
    return behind.sub(lambda found: found.group(0) + lines, text, count=1)


def _table(node: NodeConfig) -> Table:
    table = tomlkit.table()
    table["name"] = node.name
    table["number"] = node.number
    if node.further:
        table["addresses"] = list(node.addresses)
    else:
        table["address"] = node.address
    if node.votes_only:
        table["votes_only"] = True
    table.add(tomlkit.nl())
    return table


def for_node(text: str, name: str) -> str:
    """The file for another host: where it says which node this host is, it says the other name."""
    document = tomlkit.parse(text)
    cluster: Any = document["cluster"]
    if "this" in cluster:
        cluster["this"] = name
    return tomlkit.dumps(document)
