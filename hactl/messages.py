"""What the hactld of one node says to the others: bodies for nodewatch's authenticated datagrams.

Level-triggered on purpose: each message states everything its sender knows of the matter, so a lost one costs
time, never meaning. `Report` goes from every node to all, on change and once a second; `Assign` goes from the
leader to all, on change and once a second; `Request` and `Reply` carry an administrator's command to the leader.

`decode` takes what came over the wire from an authenticated member, which may still be of another version or
broken: it returns a value or raises `MessageError`, and never half a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class MessageError(ValueError):
    """A message that is not understood: it is counted and dropped, nothing changes."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Order:
    """The place of an assignment in history: the leader's term, then its own count. Only grows."""

    term: int
    number: int


ORDER_NONE = Order(term=0, number=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeReport:
    """One volume as its reporter sees it.

    `phase` is a `controller.Phase` value. `holding` says that this node may have the file system mounted, the
    handle or the export, or is about to: until it is false nobody else is sent in by a planned move. `ready` says
    that it could take the volume now, `why` why not, or what is wrong, or why its last attempt failed. `epoch`,
    `owner` and `risk` are the label's, as last read.
    """

    phase: str
    holding: bool
    ready: bool
    why: str
    order: Order
    epoch: int
    owner: str
    wanted: str
    nodes: tuple[str, ...] = ()
    key: int = 0
    address: str = ""
    device: str = ""
    failed: Order = ORDER_NONE
    risk: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one node says of itself: sent by every hactld to every other.

    `term` is the election term that the reporter follows: from then on it takes no word of an older leader, so a
    leader builds only on reports of its own term. `base` is that of the newest `Assign` of this term, in the same way.
    """

    boot: str
    term: int
    standby: bool
    base: int = 0
    volumes: dict[str, VolumeReport] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who has the leader's word to try for a volume (`node`, or "" for nobody), and what it knows of the cause.

    `wait_ms` is how long the taker must not serve yet: until then the lease of an old primary may run. `stop`
    asks the holder to leave the disk clean and mark the volume as stopped. `fenced`: which level of fencing
    (`levels.py`) answers for the old node, "" if it gave up by itself. Times are the leader's wall clock,
    milliseconds since the epoch, for the timeline only: no decision rests on them.
    """

    order: Order
    node: str
    wait_ms: int = 0
    stop: bool = False
    cause: str = ""
    source: str = ""
    heard_unix_ms: int = 0
    overdue_unix_ms: int = 0
    decided_unix_ms: int = 0
    leader: str = ""
    fenced: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """The leader's whole table. `kept_out` names the nodes that an administrator fenced and did not let back. `fenced`
    says in words, of each barred node, what is known of it by level: for people only.

    `base`: orders of this hactld begin above it. 0, unless the leader's hactld was restarted within the term: what its
    earlier life said is not known to it, and counts no more once the new base was heard.
    """

    term: int
    base: int = 0
    volumes: dict[str, Assignment] = field(default_factory=dict)
    kept_out: tuple[str, ...] = ()
    fenced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An administrator's command on its way to the leader; `ident` pairs it with its `Reply`."""

    ident: str
    verb: str
    args: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The leader's answer: `error` is empty when it was done or is under way."""

    ident: str
    error: str
    result: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescan:
    """A disk changed (a volume was added or formatted): read the labels again, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A takeover ended, well or not: every node keeps it in its history (`record.Takeover.as_json`)."""

    takeover: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The leader of `term` proposes a change of the configuration (`nodewatch.membership.Change.to_plain`): accept it.

    `digest`: of what it leads to. `secret`: the key that it brings, in hex, or ""."""

    term: int
    change: dict[str, Any]
    digest: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A change of the configuration: `chosen` = take it; else it is what was asked for."""

    change: dict[str, Any]
    digest: str
    secret: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is the change of that digest, which you accepted?"""

    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One act of a preflight (`trials.py`), to be done once however often it comes: `act` on the device `wwid`."""

    ident: str
    session: str
    act: str
    wwid: str
    args: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of it: JSON text, `{"ok": {...}}` or `{"error": TEXT}`."""

    ident: str
    answer: str


Message = Offer | Known | Ask | Report | Assign | Request | Reply | Rescan | Finished | Trial | Tried
_KINDS: dict[str, type[Message]] = {
    "report": Report,
    "assign": Assign,
    "request": Request,
    "reply": Reply,
    "rescan": Rescan,
    "finished": Finished,
    "offer": Offer,
    "known": Known,
    "ask": Ask,
    "trial": Trial,
    "tried": Tried,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> dict[str, Any]:
    """The JSON object for a message; `decode` gives the same value back."""
    return {"kind": _NAMES[type(message)], **_plain(message)}


def _plain(value: Any) -> Any:
    """As `dataclasses.asdict`, which copies every string of every volume anew and so takes three times as long."""
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def decode(body: object) -> Message:
    """The message in a received JSON object. Raises MessageError for anything else."""
    if not isinstance(body, dict):
        raise MessageError("a message must be an object")
    kind = _KINDS.get(str(body.get("kind")))
    if kind is None:
        raise MessageError(f"unknown kind of message {body.get('kind')!r}")
    fields = {name: value for name, value in body.items() if name != "kind"}
    try:
        return _build(kind, fields)
    except (TypeError, ValueError, KeyError, AttributeError) as wrong:
        raise MessageError(f"{_NAMES[kind]}: {wrong}") from wrong


def _build(kind: type[Message], fields: dict[str, Any]) -> Message:
    if kind is Report:
        volumes = {str(v): _volume_report(r) for v, r in fields.pop("volumes").items()}
        return _checked(Report(volumes=volumes, base=fields.pop("base"), **fields))
    if kind is Assign:
        volumes_assigned = {str(v): _assignment(a) for v, a in fields.pop("volumes").items()}
        kept_out = _names(fields.pop("kept_out"))
        further = {name: fields.pop(name) for name in ("base", "fenced")}
        return _checked(Assign(volumes=volumes_assigned, kept_out=kept_out, **further, **fields))
    return _checked(kind(**fields))


def _order(value: dict[str, Any]) -> Order:
    return _checked(Order(**value))


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise MessageError(f"a list of names was expected, not {value!r}")
    return tuple(value)


def _volume_report(value: dict[str, Any]) -> VolumeReport:
    rest = {k: v for k, v in value.items() if k not in ("order", "failed", "nodes")}
    return _checked(
        VolumeReport(order=_order(value["order"]), failed=_order(value["failed"]), nodes=_names(value["nodes"]), **rest)
    )


def _assignment(value: dict[str, Any]) -> Assignment:
    rest = {k: v for k, v in value.items() if k != "order"}
    return _checked(Assignment(order=_order(value["order"]), **rest))


_SIMPLE: dict[str, type] = {"str": str, "int": int, "bool": bool}


def _checked(value: T) -> T:
    """Refuse a value whose plain fields have other types than declared: JSON does not check them for us."""
    for name, declared in getattr(type(value), "__annotations__", {}).items():
        wanted = _SIMPLE.get(str(declared))
        actual = getattr(value, name)
        if wanted is not None and type(actual) is not wanted:
            raise MessageError(f"{type(value).__name__}.{name}: {wanted.__name__} expected, got {actual!r}")
        if wanted is int and actual < 0:
            raise MessageError(f"{type(value).__name__}.{name}: negative")
        if str(declared) == "dict[str, str]":
            _check_words(name, actual)
    return value


def _check_words(name: str, actual: object) -> None:
    if not isinstance(actual, dict) or not all(isinstance(x, str) for kv in actual.items() for x in kv):
        raise MessageError(f"{name}: an object of strings expected")
