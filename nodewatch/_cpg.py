"""libcpg, libquorum, libvotequorum and libcmap of corosync 3.1, by ctypes: signatures, errors, one connection.

Layouts are those of /usr/include/corosync/{cpg,quorum,votequorum,cmap}.h; `tests/nodewatch/test_corosync.py` compares
them with what a C compiler says. `mcast` and `dispatch` never wait: both only touch a ring buffer that is shared with
corosync (libqb). Opening a connection and reading keys ask corosync and wait for its answer.
"""

from __future__ import annotations

import ctypes as c
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nodewatch.corosync import Facts, Totem
from nodewatch.engine import EngineUnreachable

OK, TRY_AGAIN, NOT_EXIST = 1, 6, 12
_TYPE_AGREED = 2
_DISPATCH_ALL = 2
_TRACK_CURRENT_AND_CHANGES = 3
_FLAG_TWO_NODE = 1
_ERRORS = {
    2: "no connection to corosync", 3: "another version of the library", 5: "timed out", 6: "busy, try again",
    7: "invalid parameter", 8: "no memory", 9: "the handle is gone", 11: "access refused: root only", 12: "not there",
    15: "no space", 18: "no resources", 20: "bad operation", 22: "message error", 23: "queue full", 26: "too big",
    100: "security: the caller is not trusted",
}  # fmt: skip

Handle = c.c_uint64


class Name(c.Structure):
    _fields_ = (("length", c.c_uint32), ("value", c.c_char * 128))


class Address(c.Structure):
    _fields_ = (("nodeid", c.c_uint32), ("pid", c.c_uint32), ("reason", c.c_uint32))


class VoteInfo(c.Structure):
    _fields_ = (
        *((name, c.c_uint) for name in (
            "node_id", "node_state", "node_votes", "expected_votes", "highest_expected", "total_votes", "quorum",
            "flags", "qdevice_votes",
        )),
        ("qdevice_name", c.c_char * 255),
    )  # fmt: skip


_DELIVER = c.CFUNCTYPE(None, Handle, c.POINTER(Name), c.c_uint32, c.c_uint32, c.c_void_p, c.c_size_t)
_CHANGED = c.CFUNCTYPE(
    None, Handle, c.POINTER(Name),
    c.POINTER(Address), c.c_size_t, c.POINTER(Address), c.c_size_t, c.POINTER(Address), c.c_size_t,
)  # fmt: skip
_QUORUM = c.CFUNCTYPE(None, Handle, c.c_uint32, c.c_uint64, c.c_uint32, c.POINTER(c.c_uint32))


class CpgCallbacks(c.Structure):
    _fields_ = (("deliver", _DELIVER), ("changed", _CHANGED))


class QuorumCallbacks(c.Structure):
    _fields_ = (("changed", _QUORUM),)


class Iovec(c.Structure):
    _fields_ = (("base", c.c_char_p), ("length", c.c_size_t))


_HANDLE_P, _U32_P = c.POINTER(Handle), c.POINTER(c.c_uint32)
_SIGNATURES: dict[str, dict[str, tuple[Any, ...]]] = {
    "libcpg.so.4": {
        "cpg_initialize": (_HANDLE_P, c.POINTER(CpgCallbacks)),
        "cpg_finalize": (Handle,),
        "cpg_fd_get": (Handle, c.POINTER(c.c_int)),
        "cpg_local_get": (Handle, c.POINTER(c.c_uint)),
        "cpg_join": (Handle, c.POINTER(Name)),
        "cpg_leave": (Handle, c.POINTER(Name)),
        "cpg_dispatch": (Handle, c.c_int),
        "cpg_mcast_joined": (Handle, c.c_int, c.POINTER(Iovec), c.c_uint),
    },
    "libquorum.so.5": {
        "quorum_initialize": (_HANDLE_P, c.POINTER(QuorumCallbacks), _U32_P),
        "quorum_finalize": (Handle,),
        "quorum_fd_get": (Handle, c.POINTER(c.c_int)),
        "quorum_trackstart": (Handle, c.c_uint),
        "quorum_dispatch": (Handle, c.c_int),
    },
    "libvotequorum.so.8": {
        "votequorum_initialize": (_HANDLE_P, c.c_void_p),
        "votequorum_finalize": (Handle,),
        "votequorum_getinfo": (Handle, c.c_uint, c.POINTER(VoteInfo)),
    },
    "libcmap.so.4": {
        "cmap_initialize": (_HANDLE_P,),
        "cmap_finalize": (Handle,),
        "cmap_get_uint32": (Handle, c.c_char_p, _U32_P),
        "cmap_get_string": (Handle, c.c_char_p, c.POINTER(c.c_void_p)),
    },
}  # fmt: skip

_calls: dict[str, Callable[..., int]] = {}


def _load() -> None:
    """Raises EngineUnreachable when the libraries are not installed."""
    for library, functions in _SIGNATURES.items():
        try:
            loaded = c.CDLL(library)
        except OSError as error:
            raise EngineUnreachable(f"{library}: {error}; install corosync and its libraries") from error
        for name, arguments in functions.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, c.c_int
            _calls[name] = function


class RingLost(Exception):
    """The connection to corosync ended."""


def _do(name: str, *arguments: Any) -> None:
    """Call; raises EngineUnreachable with what corosync said. For what may wait: opening, asking."""
    status = _calls[name](*arguments)
    if status != OK:
        reason = _ERRORS.get(status, f"error {status}")
        raise EngineUnreachable(f"{name}: {reason}; does corosync run here? `systemctl status corosync`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    node: int
    message: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChanged:
    """Nodes with a process in the group."""

    nodes: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumChanged:
    quorate: bool


Item = Delivered | GroupChanged | QuorumChanged


class Ring(Protocol):
    """One connection to corosync, joined to one group. The engine is tested on a stand-in for this."""

    def fileno(self) -> int: ...

    def facts(self) -> Facts:
        """Raises EngineUnreachable."""
        ...

    def mcast(self, message: bytes) -> bool:
        """To the whole group, ourselves included. False: not taken now. Raises RingLost."""
        ...

    def dispatch(self) -> list[Item]:
        """What came since, in corosync's order. Raises RingLost."""
        ...

    def close(self) -> None: ...


class CorosyncRing:
    """The real one. Every buffer and callback that the libraries hold belongs to this object."""

    def __init__(self, group: str) -> None:
        """Raises EngineUnreachable."""
        if not _calls:
            _load()
        self._items: list[Item] = []
        self._cpg_callbacks = CpgCallbacks(_DELIVER(self._deliver), _CHANGED(self._group_changed))
        self._quorum_callbacks = QuorumCallbacks(_QUORUM(self._quorum_changed))
        self._group = Name(len(group), group.encode())
        self._cpg, self._quorum = Handle(0), Handle(0)
        self._poll = select.epoll()
        try:
            _do("cpg_initialize", c.byref(self._cpg), c.byref(self._cpg_callbacks))
            _do("quorum_initialize", c.byref(self._quorum), c.byref(self._quorum_callbacks), c.byref(c.c_uint32()))
            _do("quorum_trackstart", self._quorum, _TRACK_CURRENT_AND_CHANGES)
            _do("cpg_join", self._cpg, c.byref(self._group))
            for call, handle in (("cpg_fd_get", self._cpg), ("quorum_fd_get", self._quorum)):
                fd = c.c_int()
                _do(call, handle, c.byref(fd))
                self._poll.register(fd.value, select.EPOLLIN)
        except EngineUnreachable:
            self.close()
            raise

    def fileno(self) -> int:
        return self._poll.fileno()

    def facts(self) -> Facts:
        return read_facts()

    def mcast(self, message: bytes) -> bool:
        status = _calls["cpg_mcast_joined"](self._cpg, _TYPE_AGREED, c.byref(Iovec(message, len(message))), 1)
        if status not in (OK, TRY_AGAIN):
            raise RingLost(f"cpg_mcast_joined: {_ERRORS.get(status, status)}")
        return status == OK

    def dispatch(self) -> list[Item]:
        for call, handle in (("cpg_dispatch", self._cpg), ("quorum_dispatch", self._quorum)):
            status = _calls[call](handle, _DISPATCH_ALL)
            if status not in (OK, TRY_AGAIN):
                raise RingLost(f"{call}: {_ERRORS.get(status, status)}")
        items, self._items = self._items, []
        return items

    def close(self) -> None:
        """Leaving waits until corosync took everything that was sent before: a goodbye is not lost."""
        if self._cpg.value:
            _calls["cpg_leave"](self._cpg, c.byref(self._group))
            _calls["cpg_finalize"](self._cpg)
        if self._quorum.value:
            _calls["quorum_finalize"](self._quorum)
        self._cpg, self._quorum = Handle(0), Handle(0)
        self._poll.close()

    def _deliver(self, handle: int, group: Any, node: int, pid: int, message: int, length: int) -> None:
        self._items.append(Delivered(node=node, message=c.string_at(message, length)))

    def _group_changed(
        self, handle: int, group: Any, members: Any, count: int, left: Any, left_count: int, joined: Any, new: int
    ) -> None:
        self._items.append(GroupChanged(nodes=frozenset(members[at].nodeid for at in range(count))))

    def _quorum_changed(self, handle: int, quorate: int, seq: int, count: int, view: Any) -> None:
        self._items.append(QuorumChanged(quorate=bool(quorate)))


def read_facts() -> Facts:
    """What the corosync of this host says of itself. Raises EngineUnreachable."""
    if not _calls:
        _load()
    cmap, votes = Handle(0), Handle(0)
    _do("cmap_initialize", c.byref(cmap))
    try:
        nodes = _nodes(cmap)
        totem = Totem(
            token=_number(cmap, "runtime.config.totem.token"), consensus=_number(cmap, "runtime.config.totem.consensus")
        )
        node = _number(cmap, "runtime.votequorum.this_node_id", 0) or _own_id(cmap)
    finally:
        _calls["cmap_finalize"](cmap)
    info = VoteInfo()
    if _calls["votequorum_initialize"](c.byref(votes), None) == OK:
        _calls["votequorum_getinfo"](votes, 0, c.byref(info))
        _calls["votequorum_finalize"](votes)
    return Facts(
        node=node,
        nodes=nodes,
        totem=totem,
        two_node=bool(info.flags & _FLAG_TWO_NODE),
        expected_votes=info.expected_votes,
    )


def _nodes(cmap: Handle) -> dict[int, tuple[str, tuple[str, ...]]]:
    """The nodelist: nodeid -> (name, addresses)."""
    found = {}
    place = 0
    while (nodeid := _number(cmap, f"nodelist.node.{place}.nodeid", 0)) != 0:
        rings = [_text(cmap, f"nodelist.node.{place}.ring{link}_addr") for link in range(8)]
        found[nodeid] = (_text(cmap, f"nodelist.node.{place}.name"), tuple(ring for ring in rings if ring))
        place += 1
    return found


def _own_id(cmap: Handle) -> int:
    place = _number(cmap, "nodelist.local_node_pos")
    return _number(cmap, f"nodelist.node.{place}.nodeid")


def _number(cmap: Handle, key: str, default: int | None = None) -> int:
    value = c.c_uint32()
    status = _calls["cmap_get_uint32"](cmap, key.encode(), c.byref(value))
    if status == OK:
        return value.value
    if default is not None:
        return default
    raise EngineUnreachable(f"corosync has no {key}: {_ERRORS.get(status, status)}; is it a corosync 3.1?")


def _text(cmap: Handle, key: str) -> str:
    pointer = c.c_void_p()
    if _calls["cmap_get_string"](cmap, key.encode(), c.byref(pointer)) != OK or not pointer.value:
        return ""
    text = c.string_at(pointer.value).decode(errors="replace")
    _FREE(pointer)
    return text


_FREE = c.CDLL(None).free
_FREE.argtypes, _FREE.restype = (c.c_void_p,), None
