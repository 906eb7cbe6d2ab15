"""A drill as data: what is done to the cluster, what must then be seen, how it must end.

Files are TOML in `hwlab/drills/`; docs/drills.md describes the format. Reading is strict: an unknown word is
an error that names the file and the word, since a misspelt expectation would otherwise never be checked.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "drills"
ROLES = ("primary", "backup", "server", "leader", "client", "target", "nodes")
CONDITIONS = (
    "new-holder",
    "no-new-holder",
    "writes",
    "ready",
    "no-answer",
    "reads",
    "held-in-target",
    "held-in-socket",
)
READER = ("pin", "free")
NOTICES = ("reservation notice", "connected")
SERVERS = ("primary", "backup", "another", "any")


class DrillError(Exception):
    """A drill that cannot be run: its file is wrong, or there is none of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Do something to a host; `start` makes this moment the zero of the timeline.

    `stall_ms_max`: how long the client may stand still for it, by the arithmetic of what is configured.
    """

    kind: str
    role: str
    start: bool = False
    stall_ms_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Run a command of the cluster; `{volume}` and `{primary}`, `{backup}`, ... are filled in."""

    argv: tuple[str, ...]
    role: str
    start: bool = False
    deadline_s: float = 60.0
    stall_ms_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """A condition that must come true within its deadline (`no-...`: must not come true during it)."""

    condition: str
    role: str = "primary"
    count: int = 20
    deadline_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Let a node write stamps to its disk from now on."""

    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """Let a node keep writes on their way at every stage from now on; `depth`: of those, so many at its device."""

    late: str
    depth: int = 0
    """0: as many as latewriter.py says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Go on watching: what must not happen late gets the time to happen."""

    watch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flap:
    """Cut a node's link and heal it, again and again: down and up for so long each, for about `for_s`."""

    role: str
    down_s: float
    up_s: float
    for_s: float
    start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """`pin`: the reader talks to the node that serves now and to no other; `free`: to whoever has the address."""

    word: str


Step = Fault | Command | Expect | Stamp | Late | Watch | Flap | Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    record_pause_ms: float = 10.0
    lock_pause_ms: float = 100.0
    stamp_pause_ms: float = 20.0
    warm_up_records: int = 50
    reader: bool = False
    """A third client reads all the time what the first one writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """`server`: who may serve at the end; `ready`: who must be able to take over then.

    `moves_max`: how often the volume may have gone to another node. `stall_ms_max`: for the median over all runs.
    `lease_lapse_s`: a lock may be lost when nothing was acknowledged to its owner for so long (its NFS lease).
    `told_by`, `told_ms_max`: by which notice of its kernel a fenced primary that lives must learn it, and how soon.
    """

    server: str
    ready: tuple[str, ...] = ()
    old_owner_must_try: bool = False
    recoveries_min: int = 1
    moves_max: int | None = None
    stall_ms_max: float | None = None
    lease_lapse_s: float | None = None
    told_by: str = ""
    told_ms_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    name: str
    title: str
    about: str
    load: Load
    prepare: tuple[Fault, ...]
    """Done before anybody watches: what is no event of the drill but its setting."""
    steps: tuple[Step, ...]
    end: Ending
    topology: str = ""
    """The topology that it needs; "" = any with a target, nodes, a client and a volume."""


def names(folder: Path = FOLDER) -> list[str]:
    """All drills that there are."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_drill(name: str, folder: Path = FOLDER, duration_s: float | None = None) -> Drill:
    """Read and check one drill; DrillError says what is wrong and where.

    `duration_s` takes the place of the drill's own; a drill without one has no length to choose.
    """
    path = folder / f"{name}.toml"
    if not path.is_file():
        raise DrillError(f"there is no drill {name!r}; there are: {', '.join(names(folder))}")
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise DrillError(f"{path.name}: {error}") from error
    return parse(table, path.name, duration_s)


def parse(table: dict[str, Any], where: str, duration_s: float | None = None) -> Drill:
    """Turn the table of a TOML file into a Drill."""
    if duration_s is not None and "duration_s" not in table:
        raise DrillError(f"{where}: has no duration_s, so its length cannot be chosen")
    own = table.get("duration_s")
    reader = _Table(table, where, own if duration_s is None else duration_s)
    reader.take("duration_s", float, 0.0)
    drill = Drill(
        name=reader.text("name"),
        title=reader.text("title"),
        about=reader.text("about"),
        load=_load(reader.sub("load")),
        prepare=tuple(_fault(table) for table in reader.tables("prepare")),
        steps=tuple(_step(table) for table in reader.tables("step")),
        end=_end(reader.sub("end")),
        topology=reader.text("topology", default=""),
    )
    reader.finish()
    starts = sum(1 for step in drill.steps if isinstance(step, (Fault, Command, Flap)) and step.start)
    if starts != 1:
        raise DrillError(f"{where}: one step must have `start = true`, {starts} have it")
    if f"{drill.name}.toml" != where:
        raise DrillError(f"{where}: name is {drill.name!r}; it must be the file's name")
    return drill


class _Table:
    """One table that is read word by word; what is left at the end is an error."""

    def __init__(self, table: dict[str, Any], where: str, duration_s: float | None = None) -> None:
        self._left = dict(table)
        self._where = where
        self._duration_s = duration_s

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, kind: type, default: Any) -> Any:
        value = self._left.pop(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise DrillError(f"{self._where}: {key} must be given, as {kind.__name__}")
        return value

    def seconds(self, key: str, default: float | None = None) -> float:
        """A number of seconds, or the word `duration` for the drill's own."""
        if self._left.get(key) != "duration":
            return float(self.take(key, float, default))
        self._left.pop(key)
        if self._duration_s is None:
            raise DrillError(f"{self._where}: {key} is the drill's duration, and no duration_s is given")
        return float(self._duration_s)

    def text(self, key: str, allowed: tuple[str, ...] = (), default: str | None = None) -> str:
        value: str = self.take(key, str, default)
        if allowed and value not in allowed:
            raise DrillError(f"{self._where}: {key} is {value!r}; it must be one of {', '.join(allowed)}")
        return value

    def words(self, key: str, allowed: tuple[str, ...] = ()) -> tuple[str, ...]:
        values = self.take(key, list, [])
        for value in values:
            if not isinstance(value, str) or (allowed and value not in allowed):
                raise DrillError(f"{self._where}: {key}: {value!r} must be one of {', '.join(allowed)}")
        return tuple(values)

    def sub(self, key: str) -> "_Table":
        return _Table(self.take(key, dict, {}), f"{self._where}: [{key}]")

    def tables(self, key: str) -> "list[_Table]":
        found = self.take(key, list, [])
        return [_Table(table, f"{self._where}: {key} {n}", self._duration_s) for n, table in enumerate(found, start=1)]

    def finish(self) -> None:
        if self._left:
            raise DrillError(f"{self._where}: unknown: {', '.join(sorted(self._left))}")


def _load(table: _Table) -> Load:
    usual = Load()
    load = Load(
        record_pause_ms=table.take("record_pause_ms", float, usual.record_pause_ms),
        lock_pause_ms=table.take("lock_pause_ms", float, usual.lock_pause_ms),
        stamp_pause_ms=table.take("stamp_pause_ms", float, usual.stamp_pause_ms),
        warm_up_records=table.take("warm_up_records", int, usual.warm_up_records),
        reader=table.take("reader", bool, usual.reader),
    )
    table.finish()
    return load


def _end(table: _Table) -> Ending:
    ending = Ending(
        server=table.text("server", SERVERS),
        ready=table.words("ready", ROLES),
        old_owner_must_try=table.take("old_owner_must_try", bool, False),
        recoveries_min=table.take("recoveries_min", int, 1),
        moves_max=table.take("moves_max", int, None) if "moves_max" in table else None,
        stall_ms_max=table.take("stall_ms_max", float, None) if "stall_ms_max" in table else None,
        lease_lapse_s=table.take("lease_lapse_s", float, None) if "lease_lapse_s" in table else None,
        told_by=table.text("told_by", NOTICES) if "told_by" in table else "",
        told_ms_max=table.take("told_ms_max", float, None) if "told_ms_max" in table else None,
    )
    table.finish()
    return ending


def _fault(table: _Table) -> Fault:
    fault = Fault(
        kind=table.text("fault"),
        role=table.text("on", ROLES),
        start=table.take("start", bool, False),
        stall_ms_max=table.take("stall_ms_max", float, None) if "stall_ms_max" in table else None,
    )
    table.finish()
    return fault


def _step(table: _Table) -> Step:
    step: Step
    if "fault" in table:
        return _fault(table)
    if "command" in table:
        step = Command(
            argv=table.words("command"),
            role=table.text("on", ROLES),
            start=table.take("start", bool, False),
            deadline_s=table.take("deadline_s", float, 60.0),
            stall_ms_max=table.take("stall_ms_max", float, None) if "stall_ms_max" in table else None,
        )
    elif "expect" in table:
        step = Expect(
            condition=table.text("expect", CONDITIONS),
            role=table.text("on", ROLES, "primary"),
            count=table.take("count", int, 20),
            deadline_s=table.seconds("deadline_s", 30.0),
        )
    elif "flap" in table:
        step = Flap(
            role=table.text("flap", ROLES),
            down_s=table.take("down_s", float, None),
            up_s=table.take("up_s", float, None),
            for_s=table.seconds("for_s"),
            start=table.take("start", bool, False),
        )
    elif "reader" in table:
        step = Reader(word=table.text("reader", READER))
    elif "stamp" in table:
        step = Stamp(role=table.text("stamp", ROLES))
    elif "late" in table:
        step = Late(late=table.text("late", ROLES), depth=table.take("depth", int, 0))
    else:
        step = Watch(watch_s=table.seconds("watch_s"))
    table.finish()
    return step
