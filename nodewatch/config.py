"""/etc/hactl/hactl.toml: text in, a checked ClusterConfig out, or one ConfigError that names line, field and
remedy.

The same file lies on every node. What must be equal everywhere for the cluster to be safe is in `digest()`;
nodes whose digests differ do not count for each other.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nodewatch import sections
from nodewatch.engine import BUILTIN, ENGINES
from nodewatch.lease import PatientTiming, Timing
from nodewatch.quorum import majority

NUMBER_MAX = 4095
NODES_MAX = 16
"""Heartbeats describe every node in one datagram, which must fit one Ethernet frame."""
LINKS_MAX = 4
DEFAULT_PORT = 7747
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGEST = re.compile(r"[0-9a-f]{16}")
VERSION_MAX = 0xFFFFFFFF
_SECTIONS: dict[str, tuple[str, ...]] = {
    "cluster": ("name", "uuid", "key_file", "this", "version", "previous", "keys", "engine"),
    "node": ("name", "number", "address", "addresses", "votes_only"),
    "timing": tuple(entry.name for entry in fields(Timing)),
    "network": ("port",),
    "metrics": ("listen",),
    "witness": ("wwids",),
    "watchdog": ("device",),
    "fencing": ("levels", "agent", "distrust"),
    "exercise": ("window", "zone", "swap", "read_mb", "slow_ms"),
}
WITNESS_LUNS_MAX = 5
_WWID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/ -]{0,127}")


class ConfigError(Exception):
    """The operator can mend it. `line` counts from 1, 0 = the file as a whole; `action` says what to do."""

    def __init__(self, *, line: int, field: str, problem: str, action: str) -> None:
        where = f"line {line}: " if line else ""
        super().__init__(f"{where}{field}: {problem}; {action}")
        self.line = line
        self.field = field
        self.problem = problem
        self.action = action


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    name: str
    number: int
    """1..4095, permanent, part of the reservation key."""
    address: str
    """On the first heartbeat link."""
    further: tuple[str, ...] = ()
    """On the second link, the third ...; every node has as many."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """One per heartbeat link, in the order of the links."""
        return (self.address, *self.further)

    votes_only: bool = False
    """Runs node watch alone: it votes, acknowledges and promises, and never has a volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    name: str
    uuid: str
    key_file: str
    this: str | None
    nodes: tuple[NodeConfig, ...]
    timing: Timing
    port: int
    metrics_listen: str | None
    version: int = 1
    """Counts the changes made while the cluster ran, see `membership.py`."""
    previous: str = ""
    """Digest, in hex, of the configuration that this one came from by one change; "" = by none."""
    keys: tuple[str, ...] = ()
    """Ids of the cluster keys that are accepted; frames are sealed under the first. () = the key file's first key."""
    watchdog: str | None = None
    """The device; None = no watchdog. A matter of each host: not part of the digest."""

    witness: tuple[str, ...] = ()
    """WWIDs of the LUNs that have one vote together, ascending: `arbitration.py`."""
    engine: str = BUILTIN
    """What carries heartbeats and says who is there: `nodewatch/engine.py`."""
    fencing: sections.Fencing = field(default_factory=sections.Fencing)
    exercise: sections.Exercise | None = None
    """None = what is not in use is not exercised."""

    @property
    def watchdog_fences(self) -> bool:
        """Others may count on it that a node without lease is reset: W5 of `watchdog.py`."""
        return sections.WATCHDOG in self.fencing.levels

    @property
    def votes(self) -> int:
        return len(self.nodes) + bool(self.witness)

    def node(self, name: str) -> NodeConfig | None:
        return next((node for node in self.nodes if node.name == name), None)

    def me(self, host_name: str) -> NodeConfig:
        """The node that this host is: [cluster] this, else the one named like the host (with or without its
        domain)."""
        for candidate in (self.this,) if self.this else (host_name, host_name.partition(".")[0]):
            found = self.node(candidate)
            if found is not None:
                return found
        names = ", ".join(node.name for node in self.nodes)
        raise ConfigError(
            line=0,
            field="[[node]] name",
            problem=f"this host is called {host_name!r}, and no [[node]] is",
            action=f"add a [[node]] of that name, or set `this` in [cluster] to one of {names}",
        )

    def digest(self) -> bytes:
        """8 bytes over everything that must be equal on all nodes: cluster, nodes, timing, port, engine, keys ..."""
        # Imported here: hactld reads this file too and does not need the library for anything.
        from cryptography.hazmat.primitives import hashes

        nodes = sorted((node.number, node.name, *node.addresses) for node in self.nodes)
        timing = [(entry.name, getattr(self.timing, entry.name)) for entry in fields(Timing)]
        summary = hashes.Hash(hashes.SHA256())
        history = (self.version, self.previous, self.keys)
        votes = (self.witness, sorted(node.number for node in self.nodes if node.votes_only))
        parts = (self.name, self.uuid, nodes, timing, self.port, self.engine, history, votes, *self.fencing.essence)
        summary.update(repr(parts).encode())
        return summary.finalize()[:8]

    @property
    def silence_ms(self) -> int:
        """Silence that makes a node overdue. Where the engine itself knows who is there, only one that lasts as long
        as a lease does."""
        return self.timing.overdue_ms if self.engine == BUILTIN else self.timing.lease_ms

    @property
    def links(self) -> int:
        """How many heartbeat links node watch itself looks after."""
        return len(self.nodes[0].addresses) if self.engine == BUILTIN else 1

    def warnings(self) -> list[str]:
        """What is allowed but worth a sentence."""
        count = len(self.nodes)
        if self.witness and count % 2:
            return [
                f"{count} nodes and a witness have {count + 1} votes, a majority of them is {majority(count + 1)}: "
                f"that is one more than the {majority(count)} of the nodes alone, and survives no more losses; with "
                "an odd number of nodes, do without [witness]"
            ]
        if count % 2 == 0 and not self.witness:
            return [
                f"{count} nodes survive the loss of {count - count // 2 - 1}, as {count - 1} would: "
                f"a majority of {count} is {count // 2 + 1}; add a [witness], or use an odd number of nodes"
            ]
        return []


def parse_config(text: str) -> ClusterConfig:
    """The whole file. Raises ConfigError for the first thing that is wrong; nothing is guessed."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found.group(1)) if found else 0
        raise ConfigError(line=line, field="file", problem=f"not TOML: {error}", action="mend the syntax") from None
    return _Reader(text, document).cluster()


class _Reader:
    """Walks the parsed document and knows where in the text each field stands."""

    def __init__(self, text: str, document: dict[str, Any]) -> None:
        self._lines = text.splitlines()
        self._document = document

    def cluster(self) -> ClusterConfig:
        self._check_sections()
        cluster = self._table("cluster", required=True)
        engine = self._engine(cluster)
        timing = self._timing(engine)
        nodes = self._nodes()
        watchdog = self._watchdog()
        config = ClusterConfig(
            name=self._text("cluster", 0, cluster, "name", _is_name, "letters, digits, - . _"),
            uuid=self._text("cluster", 0, cluster, "uuid", _is_uuid, "a uuid in lower case, as `uuidgen` prints it"),
            key_file=self._text("cluster", 0, cluster, "key_file", _is_path, "an absolute path"),
            this=self._this(cluster, nodes),
            nodes=nodes,
            timing=timing,
            port=self._integer("network", 0, self._table("network"), "port", 1, 65535, DEFAULT_PORT),
            metrics_listen=self._listen(),
            version=self._integer("cluster", 0, cluster, "version", 1, VERSION_MAX, 1),
            previous=self._previous(cluster),
            keys=self._keys(cluster),
            witness=self._witness(nodes),
            engine=engine,
            watchdog=watchdog,
            fencing=self._fencing(nodes, watchdog is not None),
            exercise=self._exercise(),
        )
        self._check_timing(timing, witness=bool(config.witness))
        return config

    def _check_sections(self) -> None:
        for section, content in self._document.items():
            if section not in _SECTIONS:
                known = ", ".join(f"[{name}]" for name in _SECTIONS)
                raise self._error(
                    section, 0, None, "there is no such section", f"known are {known}; remove or rename it"
                )
            tables = content if section == "node" else [content]
            expected = "[[node]]" if section == "node" else f"[{section}]"
            if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
                raise self._error(section, 0, None, "this is not a section", f"write it as {expected}")
            for index, table in enumerate(tables):
                for key in table:
                    if key not in _SECTIONS[section]:
                        known = ", ".join(_SECTIONS[section])
                        raise self._error(section, index, key, "unknown key", f"known in {expected} are {known}")

    def _nodes(self) -> tuple[NodeConfig, ...]:
        tables = self._document.get("node", [])
        if not tables:
            raise self._error(
                "node", 0, None, "no [[node]] at all", "describe every node with name, number and address"
            )
        if len(tables) > NODES_MAX:
            raise self._error("node", NODES_MAX, None, f"{len(tables)} nodes", f"at most {NODES_MAX} are supported")
        nodes = []
        for index, table in enumerate(tables):
            addresses = self._addresses(index, table)
            nodes.append(
                NodeConfig(
                    name=self._text("node", index, table, "name", _is_name, "letters, digits, - . _"),
                    number=self._integer("node", index, table, "number", 1, NUMBER_MAX, None),
                    address=addresses[0],
                    further=addresses[1:],
                    votes_only=self._flag("node", index, table, "votes_only"),
                )
            )
        self._check_unique(nodes)
        self._check_addresses(nodes)
        return tuple(nodes)

    def _addresses(self, index: int, table: Mapping[str, Any]) -> tuple[str, ...]:
        """`address` of the only link, or `addresses`, one per link."""
        wanted = "an IPv4 or IPv6 address, no name"
        if "addresses" not in table:
            only = self._text("node", index, table, "address", _is_address, wanted)
            return (str(ipaddress.ip_address(only)),)
        if "address" in table:
            problem = "both `address` and `addresses` are given"
            raise self._error("node", index, "address", problem, "keep `addresses`, one for each heartbeat link")
        given = table["addresses"]
        if not isinstance(given, list) or not 1 <= len(given) <= LINKS_MAX:
            action = f"it must be a list of 1 to {LINKS_MAX} addresses, one for each heartbeat link"
            raise self._error("node", index, "addresses", f"{given!r} is not valid", action)
        for each in given:
            if not isinstance(each, str) or not _is_address(each):
                raise self._error("node", index, "addresses", f"{each!r} is not valid", f"each must be {wanted}")
        return tuple(str(ipaddress.ip_address(each)) for each in given)

    def _check_unique(self, nodes: list[NodeConfig]) -> None:
        for key in ("name", "number", "address"):
            first: dict[object, int] = {}
            for index, node in enumerate(nodes):
                values = node.addresses if key == "address" else (getattr(node, key),)
                for value in values:
                    if value in first:
                        other = self._line("node", first[value], self._address_key(first[value], key))
                        raise self._error(
                            "node",
                            index,
                            self._address_key(index, key),
                            f"{value!r} is already used at line {other}",
                            f"give every node its own {key}" + (" on each link" if len(values) > 1 else ""),
                        )
                    first[value] = index

    def _address_key(self, index: int, key: str) -> str:
        """Under which name the file gives the address of the index-th node."""
        return "addresses" if key == "address" and "addresses" in self._document["node"][index] else key

    def _check_addresses(self, nodes: list[NodeConfig]) -> None:
        """Position = link: as many on every node, and one family per link."""
        first = nodes[0]
        for index, node in enumerate(nodes):
            key = self._address_key(index, "address")
            if len(node.addresses) != len(first.addresses):
                problem = f"{len(node.addresses)} addresses, but {first.name} has {len(first.addresses)}"
                action = "give every node one address on each heartbeat link, in the same order"
                raise self._error("node", index, key, problem, action)
            for mine, other in zip(node.addresses, first.addresses, strict=True):
                if (":" in mine) != (":" in other):
                    action = "use addresses of one family on a link"
                    raise self._error("node", index, key, "IPv4 and IPv6 are mixed", action)

    def _timing(self, engine: str) -> Timing:
        table = self._table("timing")
        default = Timing()
        kind = Timing if engine == BUILTIN else PatientTiming
        return kind(
            **{
                key: self._integer("timing", 0, table, key, 0, 10_000_000, getattr(default, key))
                for key in _SECTIONS["timing"]
            }
        )

    def _witness(self, nodes: tuple[NodeConfig, ...]) -> tuple[str, ...]:
        """The LUNs of the witness, in the order in which every node takes them."""
        wwids = self._table("witness").get("wwids")
        if "witness" not in self._document:
            return ()
        wrong: tuple[str, str] | None = None
        if not isinstance(wwids, list) or not all(isinstance(wwid, str) and _WWID.fullmatch(wwid) for wwid in wwids):
            wrong = (f"{wwids!r} is not valid", 'list unique names as `hactl check DEVICE` shows: wwids = ["naa.…"]')
        elif len(set(wwids)) < len(wwids):
            wrong = ("a LUN is named twice", "name each LUN once")
        elif len(wwids) % 2 == 0 or len(wwids) > WITNESS_LUNS_MAX:
            count = len(wwids)
            wrong = (
                f"{count} LUNs: of two nodes that race for an even number each may get half, and then nobody goes on",
                f"use 1, 3 or {WITNESS_LUNS_MAX}",
            )
        elif len(nodes) < 2:
            wrong = ("there is only one node, so nothing to decide", "remove [witness], or add a node")
        elif all(node.votes_only for node in nodes):
            wrong = ("no node has storage (votes_only everywhere), so none could claim it", "remove [witness]")
        if wrong is not None:
            raise self._error("witness", 0, "wwids", *wrong)
        assert isinstance(wwids, list)
        return tuple(sorted(wwids))

    def _check_timing(self, timing: Timing, *, witness: bool) -> None:
        for violation in timing.violations() + (timing.witness_violations() if witness else []):
            key = next((key for key in _SECTIONS["timing"] if violation.startswith(key)), None)
            raise self._error("timing", 0, key, violation, "change the value and try again")

    def _this(self, cluster: Mapping[str, Any], nodes: tuple[NodeConfig, ...]) -> str | None:
        if "this" not in cluster:
            return None
        names = [node.name for node in nodes]
        return self._text("cluster", 0, cluster, "this", lambda text: text in names, f"one of {', '.join(names)}")

    def _previous(self, cluster: Mapping[str, Any]) -> str:
        if "previous" not in cluster:
            return ""
        return self._text("cluster", 0, cluster, "previous", _is_digest, "16 hex digits, as hactl wrote them")

    def _keys(self, cluster: Mapping[str, Any]) -> tuple[str, ...]:
        value = cluster.get("keys", [])
        good = isinstance(value, list) and all(isinstance(each, str) and _is_digest(each) for each in value)
        if not good or len(value) > 2 or len(set(value)) < len(value):
            action = 'write one or two ids of 16 hex digits each, as in keys = ["0123456789abcdef"]'
            raise self._error("cluster", 0, "keys", f"{value!r} is not valid", action)
        return tuple(value)

    def _engine(self, cluster: Mapping[str, Any]) -> str:
        if "engine" not in cluster:
            return BUILTIN
        engine = self._text(
            "cluster", 0, cluster, "engine", lambda text: text in ENGINES, f"one of {', '.join(ENGINES)}"
        )
        if engine != BUILTIN and "witness" in self._document:
            raise self._error(
                "witness",
                0,
                None,
                f"engine {engine} knows nothing of witness LUNs: its own quorum would be lost in an even split",
                'remove [witness], or set engine = "builtin"; an odd number of nodes needs neither',
            )
        return engine

    def _listen(self) -> str | None:
        table = self._table("metrics")
        if not table:
            return None
        return self._text(
            "metrics", 0, table, "listen", _is_endpoint, '":PORT" (the node\'s own address) or "ADDRESS:PORT"'
        )

    def _watchdog(self) -> str | None:
        table = self._table("watchdog")
        if not table and "watchdog" not in self._document:
            return None
        return self._text("watchdog", 0, table, "device", _is_path, "an absolute path, as /dev/watchdog0")

    def _exercise(self) -> sections.Exercise | None:
        if "exercise" not in self._document:
            return None
        try:
            return sections.exercise(self._table("exercise"))
        except sections.Wrong as wrong:
            raise self._error(wrong.section, wrong.index, wrong.key, wrong.problem, wrong.action) from None

    def _fencing(self, nodes: tuple[NodeConfig, ...], watchdog: bool) -> sections.Fencing:
        serving = [node.name for node in nodes if not node.votes_only]
        try:
            return sections.fencing(self._table("fencing"), serving, watchdog=watchdog)
        except sections.Wrong as wrong:
            raise self._error(wrong.section, wrong.index, wrong.key, wrong.problem, wrong.action) from None

    def _table(self, section: str, required: bool = False) -> dict[str, Any]:
        table = self._document.get(section)
        if table is None:
            if required:
                raise self._error(
                    section, 0, None, "the section is missing", f"add [{section}]; `hactl init` writes it"
                )
            return {}
        assert isinstance(table, dict)
        return table

    def _text(
        self,
        section: str,
        index: int,
        table: Mapping[str, Any],
        key: str,
        good: Callable[[str], bool],
        wanted: str,
    ) -> str:
        value = table.get(key)
        if value is None:
            raise self._error(section, index, key, "is missing", f"set it to {wanted}")
        if not isinstance(value, str) or not good(value):
            raise self._error(section, index, key, f"{value!r} is not valid", f"it must be {wanted}")
        return value

    def _integer(
        self,
        section: str,
        index: int,
        table: Mapping[str, Any],
        key: str,
        low: int,
        high: int,
        default: int | None,
    ) -> int:
        value = table.get(key, default)
        if value is None:
            raise self._error(section, index, key, "is missing", f"set it to a number from {low} to {high}")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(
                section, index, key, f"{value!r} is not valid", f"it must be a number from {low} to {high}"
            )
        return value

    def _flag(self, section: str, index: int, table: Mapping[str, Any], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self._error(section, index, key, f"{value!r} is not valid", "it must be true or false")
        return value

    def _error(self, section: str, index: int, key: str | None, problem: str, action: str) -> ConfigError:
        name = f"[[{section}]]" if section in ("node", "fencing.agent") else f"[{section}]"
        field = f"{name} {key}" if key else name
        return ConfigError(line=self._line(section, index, key), field=field, problem=problem, action=action)

    def _line(self, section: str, index: int, key: str | None) -> int:
        """Where `key` of the index-th such section stands; its heading if the key is absent; 0 if that is
        absent too."""
        heading = re.compile(rf"\s*\[\[?\s*\"?{re.escape(section)}\"?\s*\]")
        assignment = re.compile(rf"\s*\"?{re.escape(key or '')}\"?\s*=")
        as_key = re.compile(rf"\s*\"?{re.escape(section)}\"?\s*=")
        seen, inside, found = -1, False, 0
        for number, line in enumerate(self._lines, start=1):
            if heading.match(line):
                seen += 1
                inside = seen == index
                found = number if inside else found
            elif line.lstrip().startswith("["):
                inside = False
            elif (inside and key and assignment.match(line)) or (seen < 0 and not key and as_key.match(line)):
                return number
        return found


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def _is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _is_path(text: str) -> bool:
    return text.startswith("/") and "\0" not in text


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_multicast)


def _is_endpoint(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    if colon and not host:
        host = "127.0.0.1"  # stands for the node's own address, which the file gives elsewhere
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return port.isdigit() and 0 < int(port) < 65536
