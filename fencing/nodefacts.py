"""What the nodes say of themselves and of a device before anything is tried, and what that says of two promises.
Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fencing.promises import Evidence, Promise

NAME_KINDS_MAX = 16
PATHS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """One path of a device. `via`: what it goes through, in words."""

    name: str
    via: str
    state: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """A device as one node sees it. `head` is the disk that is used (a multipath device, or the only path)."""

    head: str
    paths: tuple[PathFacts, ...]
    size_bytes: int
    sector_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node. `names` by kind ("host name", "iSCSI initiator name", "NVMe host identifier", ...); `devices` by WWID:
    only those it sees."""

    names: Mapping[str, tuple[str, ...]]
    devices: Mapping[str, DeviceFacts]


def parse_facts(body: object) -> NodeFacts:
    """From what a node answered. ValueError if it is anything else."""
    try:
        assert isinstance(body, dict)
        names = {_text(kind): tuple(_text(name) for name in each) for kind, each in body["names"].items()}
        devices = {_text(wwid): _device(each) for wwid, each in body["devices"].items()}
    except (AssertionError, KeyError, TypeError, AttributeError, ValueError) as wrong:
        raise ValueError(f"facts that are not understood ({type(wrong).__name__}: {wrong})") from wrong
    if len(names) > NAME_KINDS_MAX:
        raise ValueError(f"{len(names)} kinds of names")
    return NodeFacts(names=names, devices=devices)


def _device(body: dict[str, Any]) -> DeviceFacts:
    paths = tuple(
        PathFacts(
            name=_text(each["name"]),
            via=_text(each["via"]),
            state=_text(each["state"]),
            size_bytes=_count(each["size_bytes"]),
        )
        for each in body["paths"]
    )
    if not 1 <= len(paths) <= PATHS_MAX or len({path.name for path in paths}) != len(paths):
        raise ValueError(f"{len(paths)} paths")
    return DeviceFacts(
        head=_text(body["head"]),
        paths=paths,
        size_bytes=_count(body["size_bytes"]),
        sector_bytes=_count(body["sector_bytes"]),
    )


def judge_same(wwid: str, nodes: Mapping[str, NodeFacts], evidence: Evidence) -> None:
    """Every node sees it, and sees the same."""
    seen = {node: each.devices[wwid] for node, each in nodes.items() if wwid in each.devices}
    for node in nodes:
        if node not in seen:
            evidence.bad(Promise.SAME, f"{node} does not see {wwid}")
    sizes = {f"{node} {path.name}": path.size_bytes for node, each in seen.items() for path in each.paths}
    sizes |= {f"{node} {each.head}": each.size_bytes for node, each in seen.items()}
    sectors = {node: each.sector_bytes for node, each in seen.items()}
    for what, values in (("the size differs", sizes), ("the size of a sector differs", sectors)):
        if len(set(values.values())) > 1:
            told = ", ".join(f"{where}: {count} bytes" for where, count in values.items())
            evidence.bad(Promise.SAME, f"{what}: {told}")
    if seen and not evidence.broken(Promise.SAME):
        one = next(iter(seen.values()))
        evidence.good(
            Promise.SAME,
            f"{', '.join(seen)}: {wwid}, {one.size_bytes >> 20} MiB, sectors of {one.sector_bytes} bytes",
        )


def judge_names(nodes: Mapping[str, NodeFacts], evidence: Evidence) -> None:
    """No name belongs to two nodes."""
    owners: dict[tuple[str, str], list[str]] = {}
    for node, each in nodes.items():
        for kind, names in each.names.items():
            for name in set(names):
                owners.setdefault((kind, name), []).append(node)
    for (kind, name), having in sorted(owners.items()):
        if len(having) > 1:
            evidence.bad(Promise.NAMES, f"{' and '.join(having)} have the same {kind}: {name}")
    if evidence.broken(Promise.NAMES):
        return
    for node, each in nodes.items():
        told = "; ".join(f"{kind} {', '.join(names)}" for kind, names in sorted(each.names.items()) if names)
        evidence.good(Promise.NAMES, f"{node}: {told}")


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError(f"a text was expected, not {value!r:.80}")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a count was expected, not {value!r:.80}")
    return value
