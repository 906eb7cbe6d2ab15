"""The sections of hactl.toml that are hactld's matter: `[fencing]` and `[exercise]`. Pure; `config.py` calls it.

They are read here, for the file has one parser, and node watch must know whether its watchdog is a level of fencing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

RESERVATION, POWER, WATCHDOG = LEVELS = ("reservation", "power", "watchdog")
AGENT_TIMEOUT_S = 60
_AGENT = re.compile(r"fence_[a-z0-9_]{1,40}")
_OPTION = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_VOLUME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SECRETS = frozenset({"password", "passwd", "snmp_priv_passwd", "token", "secret"})
_OURS = frozenset({"action", "o", "option"})
_NO_POWER = {
    "fence_scsi": "takes reservations, which hactl does itself",
    "fence_mpath": "takes reservations, which hactl does itself",
    "fence_sbd": "writes a message to a disk",
    "fence_kdump": "waits for a message of a crashed kernel",
    "fence_ack_manual": "believes whoever types",
    "fence_heuristics_ping": "only pings",
    "fence_dummy": "does nothing",
}
"""Agents of the package after whose "off" a node may still run, although they may have no fabric in their metadata."""


class Wrong(Exception):
    """What is wrong in which place; `config.py` makes a ConfigError of it. `section` as in the file's headings."""

    def __init__(self, section: str, index: int, key: str | None, problem: str, action: str) -> None:
        super().__init__(problem)
        self.section, self.index, self.key, self.problem, self.action = section, index, key, problem, action


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """How one node's power is switched: a program of the fence-agents package, run as it is."""

    node: str
    agent: str
    options: Mapping[str, str] = field(default_factory=dict)
    secret_file: str = ""
    """Its first line is the value of the option `secret_option`; "" = no secret."""
    secret_option: str = "password"
    timeout_s: int = AGENT_TIMEOUT_S
    """For each run of the agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fencing:
    """`levels` in the order in which they are tried. `distrust`: volumes whose storage is said not to hold
    reservations."""

    levels: tuple[str, ...] = (RESERVATION,)
    agents: tuple[Agent, ...] = ()
    distrust: tuple[str, ...] = ()

    def agent(self, node: str) -> Agent | None:
        return next((agent for agent in self.agents if agent.node == node), None)

    @property
    def essence(self) -> tuple[object, ...]:
        """What must be equal on all nodes; () for the default, so that a file without the section keeps its digest."""
        return () if self.levels == (RESERVATION,) and not self.distrust else (self.levels, self.distrust)


def fencing(table: Mapping[str, Any], nodes: Collection[str], *, watchdog: bool) -> Fencing:
    """`nodes`: those that may serve. `watchdog`: the file has one. Raises Wrong."""
    agents = _agents(table.get("agent", []), nodes)
    read = Fencing(levels=_levels(table), agents=agents, distrust=_distrust(table))
    without = sorted(set(nodes) - {agent.node for agent in agents})
    if POWER in read.levels and without:
        action = 'add a [[fencing.agent]] for each, or leave "power" out'
        raise Wrong("fencing", 0, "levels", f'"power" is a level, but {", ".join(without)} has no agent', action)
    if WATCHDOG in read.levels and not watchdog:
        action = 'add [watchdog] device, or leave "watchdog" out'
        raise Wrong("fencing", 0, "levels", '"watchdog" is a level, but there is no [watchdog]', action)
    if read.distrust and len(read.levels) == 1:
        problem = "reservations are the only level, so nobody could ever take over " + ", ".join(read.distrust)
        raise Wrong("fencing", 0, "distrust", problem, 'add "power" or "watchdog" to levels')
    return read


def _levels(table: Mapping[str, Any]) -> tuple[str, ...]:
    given = table.get("levels", [RESERVATION])
    action = f"list some of {', '.join(LEVELS)}, each once, in the order in which they are to be tried"
    if not isinstance(given, list) or not given or any(level not in LEVELS for level in given):
        raise Wrong("fencing", 0, "levels", f"{given!r} is not valid", action)
    if len(set(given)) < len(given):
        raise Wrong("fencing", 0, "levels", "a level is named twice", action)
    if RESERVATION not in given:
        problem = '"reservation" is missing: the disk always decides who may write'
        raise Wrong("fencing", 0, "levels", problem, "add it; storage that does not hold them is named in `distrust`")
    return tuple(given)


def _distrust(table: Mapping[str, Any]) -> tuple[str, ...]:
    given = table.get("distrust", [])
    if not isinstance(given, list) or not all(isinstance(name, str) and _VOLUME.fullmatch(name) for name in given):
        raise Wrong("fencing", 0, "distrust", f"{given!r} is not valid", "list names of volumes")
    return tuple(sorted(set(given)))


def _agents(tables: Any, nodes: Collection[str]) -> tuple[Agent, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise Wrong("fencing", 0, "agent", "this is not a section", "write it as [[fencing.agent]]")
    agents: list[Agent] = []
    for index, table in enumerate(tables):
        agent = _agent(index, table, nodes)
        if agent.node in [each.node for each in agents]:
            _wrong(index, "node", f"{agent.node} has an agent already", "give each node one agent")
        agents.append(agent)
    return tuple(agents)


def _agent(index: int, table: Mapping[str, Any], nodes: Collection[str]) -> Agent:
    known = ("node", "agent", "options", "secret_file", "secret_option", "timeout_s")
    for key in table:
        if key not in known:
            _wrong(index, key, "unknown key", f"known in [[fencing.agent]] are {', '.join(known)}")
    node, name = table.get("node"), table.get("agent")
    if node not in nodes:
        _wrong(index, "node", f"{node!r} is not valid", f"it must be one of {', '.join(sorted(nodes))}")
    if not isinstance(name, str) or not _AGENT.fullmatch(name):
        _wrong(index, "agent", f"{name!r} is not valid", "name a program of the fence-agents package, as fence_ipmilan")
    if name in _NO_POWER:
        _wrong(index, "agent", f"{name} {_NO_POWER[name]}: no power is off after it", "use one that switches power")
    secret, option = table.get("secret_file", ""), table.get("secret_option", "password")
    if not isinstance(secret, str) or (secret and not secret.startswith("/")) or "\0" in secret:
        _wrong(index, "secret_file", f"{secret!r} is not valid", "it must be an absolute path")
    if not isinstance(option, str) or not _OPTION.fullmatch(option) or option in _OURS:
        _wrong(index, "secret_option", f"{option!r} is not valid", "name the agent's option, as password")
    timeout = table.get("timeout_s", AGENT_TIMEOUT_S)
    if type(timeout) is not int or not 1 <= timeout <= 600:
        _wrong(index, "timeout_s", f"{timeout!r} is not valid", "it must be a number from 1 to 600")
    return Agent(
        node=str(node),
        agent=name,
        options=_options(index, table.get("options", {})),
        secret_file=secret,
        secret_option=option,
        timeout_s=timeout,
    )


def _options(index: int, given: Any) -> dict[str, str]:
    """As the agent reads them: `name=value` lines."""
    if not isinstance(given, dict):
        _wrong(index, "options", f"{given!r} is not valid", 'write it as options = { ip = "10.0.0.1", lanplus = 1 }')
    options: dict[str, str] = {}
    for name, value in given.items():
        if not _OPTION.fullmatch(name):
            _wrong(index, "options", f"{name!r} is not the name of an option", "see the agent's manual page")
        if name in _OURS:
            _wrong(index, "options", f"{name} is set by hactl", "remove it")
        if name in _SECRETS:
            _wrong(index, "options", f"{name} would lie open in this file", "put it into a secret_file, mode 0600")
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if not isinstance(value, str | int) or not text.isprintable():
            _wrong(index, "options", f"{name} = {value!r} is not valid", "it must be text on one line, or a number")
        options[name] = text
    return options


def _wrong(index: int, key: str, problem: str, action: str) -> NoReturn:
    raise Wrong("fencing.agent", index, key, problem, action)


DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
READ_MB_MAX = 65_536
_WINDOW = re.compile(r"(daily|[A-Z][a-z]{2}(?:,[A-Z][a-z]{2})*) ([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Days (0 = Monday) on which it begins, and minutes of the day; `end` before `begin` is on the next day."""

    days: frozenset[int]
    begin: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exercise:
    """`read_mb`: of each LUN, through each path, per window; 0 = none. `slow_ms`: a MiB that takes longer is a fault.
    `zone`: in whose time the window is."""

    window: Window
    zone: str = "UTC"
    swap: bool = False
    read_mb: int = 64
    slow_ms: int = 5000


def exercise(table: Mapping[str, Any]) -> Exercise:
    """Raises Wrong."""
    swap = table.get("swap", False)
    if not isinstance(swap, bool):
        raise Wrong("exercise", 0, "swap", f"{swap!r} is not valid", "it must be true or false")
    zone = table.get("zone", "UTC")
    if not isinstance(zone, str) or not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", zone):
        raise Wrong("exercise", 0, "zone", f"{zone!r} is not valid", "name a time zone, as Europe/Berlin or UTC")
    return Exercise(
        window=_window(table.get("window")),
        zone=zone,
        swap=swap,
        read_mb=_count(table, "read_mb", 0, READ_MB_MAX, 64),
        slow_ms=_count(table, "slow_ms", 10, 60_000, 5000),
    )


def _window(given: Any) -> Window:
    action = 'write days and times of the day, as "Sun 03:00-04:00", "Mon,Thu 22:30-00:30" or "daily 02:00-02:20"'
    found = _WINDOW.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise Wrong("exercise", 0, "window", f"{given!r} is not valid", action)
    names = DAYS if found[1] == "daily" else tuple(found[1].split(","))
    begin, end = int(found[2]) * 60 + int(found[3]), int(found[4]) * 60 + int(found[5])
    if not set(names) <= set(DAYS) or len(set(names)) < len(names) or begin == end:
        raise Wrong("exercise", 0, "window", f"{given!r} is not valid", action)
    return Window(days=frozenset(DAYS.index(name) for name in names), begin=begin, end=end, text=str(given))


def _count(table: Mapping[str, Any], key: str, low: int, high: int, default: int) -> int:
    value = table.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise Wrong("exercise", 0, key, f"{value!r} is not valid", f"it must be a number from {low} to {high}")
    return value
