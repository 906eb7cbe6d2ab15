"""What one node does in a preflight: single small acts on one device, each answered with what was seen. Pure.

Rules that no act breaks, whoever asks for it:
1. Only scratch keys are used: of this cluster, with the epoch that no owner ever has (PROBE_EPOCH).
2. Nothing but PERSISTENT RESERVE IN, reads and the harmless probe is sent to a device that was not `claim`ed: unused on
   this node, and empty or a volume of this cluster that nobody has registered with.
3. Before each write, and before each act that could touch others' registrations, the registrations are read: a key that
   is no scratch key ends it.
4. Data is written in the scratch area only (`SCRATCH_OFFSET`, `SCRATCH_BYTES`): inside the label partition, never used
   by a volume. `blank` makes it zeros again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fencing.errors import CONFLICT, FencingError, Refused
from fencing.model import OUR_TYPE, PROBE_EPOCH, Key, ReservationState, show_key
from fencing.port import ReservationPort
from fencing.stamp import BLOCK_BYTES, BLOCKS, counted, stamped
from fencing.verdict import check_device, probe_pr_out

MIB = 1 << 20
SCRATCH_OFFSET = 3 * MIB
SCRATCH_BYTES = BLOCKS * BLOCK_BYTES
SCRATCH_END = SCRATCH_OFFSET + SCRATCH_BYTES
READ_MIB_MAX = 65536

Args = Mapping[str, str]
Result = dict[str, Any]


class TrialRefused(Exception):
    """An act that would break a rule, or that is not understood. Nothing was sent to the device."""


class Disk(Protocol):
    """One device on one node beside its reservations. OSError if a command fails, unless said otherwise."""

    def port(self, path: str) -> ReservationPort:
        """The nexus of one path; kept open."""
        ...

    def paths(self) -> Sequence[str]: ...

    def hindrance(self) -> str:
        """Why nothing may be written to it ("" = nothing stands against it): in use here, or not empty."""
        ...

    def write(self, path: str, block: int, data: bytes) -> str:
        """Write whole blocks of the scratch area, from `block` on. "" when it was acknowledged, else the error in a
        word; a reservation conflict is `CONFLICT`."""
        ...

    def read_scratch(self, path: str) -> bytes:
        """The whole area, past every cache."""
        ...

    def read_long(self, path: str, mib: int) -> tuple[int, float, str]:
        """Read from the beginning, and the end. (bytes, seconds, error or "")."""
        ...

    def flood(self, paths: Sequence[str], stamp: bytes) -> None:
        """Begin to write the area over and over through these paths, with as much in flight as goes."""
        ...

    def flooded(self) -> int:
        """How many of these writes were acknowledged so far."""
        ...

    def flood_end(self, wait_s: float) -> dict[str, int]:
        """How its writers ended: an error each, or "never refused" for those that had to be stopped after `wait_s`."""
        ...


@dataclass(slots=True)
class Trial:
    """One device in one session. `do` is the only entry: the acts' names and arguments are words from afar."""

    disk: Disk
    key: Key
    """Cluster and node; its epoch is not used."""
    claimed: bool = False

    def do(self, act: str, args: Args) -> Result:
        """Raises TrialRefused, FencingError, OSError."""
        run = _ACTS.get(act)
        if run is None:
            raise TrialRefused(f"unknown act {act!r}: are all nodes of one version?")
        return run(self, args)

    @property
    def own(self) -> int:
        return Key(cluster_tag=self.key.cluster_tag, node=self.key.node, epoch=PROBE_EPOCH).value

    def leave(self) -> Result:
        """Take back what this session did here: the flood, the registrations, the stamps. Tells what stays."""
        left: list[str] = []
        if not self.claimed:
            return {"left": left}
        self.disk.flood_end(0)
        for path in self.disk.paths():
            left += self._unregister(path)
        return {"left": left}

    def _unregister(self, path: str) -> list[str]:
        port = self.disk.port(path)
        try:
            if self.own in port.read().keys:
                port.register(self.own, 0)
        except Refused:
            pass  # another path's registration
        except (FencingError, OSError) as error:
            return [f"{path}: {error}"]
        return []

    # -- acts ---------------------------------------------------------------------------------------------------

    def _claim(self, args: Args) -> Result:
        why = self.disk.hindrance() or self._foreign(self._port(args).read())
        self.claimed = not why
        return {"why": why}

    def _capabilities(self, args: Args) -> Result:
        found = self._port(args).capabilities()
        return {
            "persists": found.persists,
            "types": sorted(kind.value for kind in found.types),
            "fit": not found.types or OUR_TYPE in found.types,
        }

    def _probe(self, args: Args) -> Result:
        result = probe_pr_out(self._port(args), self.key)
        return {"ok": result.ok, "detail": result.detail}

    def _state(self, args: Args) -> Result:
        return {"state": shown(self._port(args).read())}

    def _check(self, args: Args) -> Result:
        self._must_be_claimed()
        port = self._port(args)
        self._only_scratch(port)
        return {"checks": [[each.name, each.ok, each.detail] for each in check_device(port, self.key)]}

    def _register(self, args: Args) -> Result:
        return self._change(args, lambda port: port.register(0, self.own, ignore_existing=True))

    def _unregister_act(self, args: Args) -> Result:
        return self._change(args, lambda port: port.register(self.own, 0))

    def _rekey(self, args: Args) -> Result:
        old, new = self._scratch_key(args, "old"), self._scratch_key(args, "new")
        return self._change(args, lambda port: port.register(old, new))

    def _reserve(self, args: Args) -> Result:
        return self._change(args, lambda port: port.reserve(self.own, OUR_TYPE))

    def _release(self, args: Args) -> Result:
        return self._change(args, lambda port: port.release(self.own, OUR_TYPE))

    def _clear(self, args: Args) -> Result:
        return self._change(args, lambda port: port.clear(self.own))

    def _preempt(self, args: Args) -> Result:
        victim, abort = self._scratch_key(args, "victim"), args.get("abort", "yes") == "yes"
        return self._change(args, lambda port: port.preempt(self.own, victim, OUR_TYPE, abort))

    def _overrun(self, args: Args) -> Result:
        """Preempt-and-abort, and at once everything overwritten with the own stamp: what differs later is a late
        write."""
        victim, stamp = self._scratch_key(args, "victim"), self._stamp(args)
        filled = ["not tried"]

        def act(port: ReservationPort) -> None:
            port.preempt(self.own, victim, OUR_TYPE, True)
            filled[0] = self._overwrite(args, stamp)["said"]  # with nothing in between

        done = self._change(args, act)
        return {**done, "filled": filled[0], "stamps": self._stamps(args)["stamps"]}

    def _write(self, args: Args) -> Result:
        self._may_write(args)
        block = self._number(args, "block", BLOCKS - 1)
        return {"said": self.disk.write(self._path(args), block, self._stamp(args))}

    def _fill(self, args: Args) -> Result:
        self._may_write(args)
        return self._overwrite(args, self._stamp(args))

    def _blank(self, args: Args) -> Result:
        self._may_write(args)
        return self._overwrite(args, bytes(BLOCK_BYTES))

    def _overwrite(self, args: Args, data: bytes) -> Result:
        return {"said": self.disk.write(self._path(args), 0, data * BLOCKS)}

    def _stamps(self, args: Args) -> Result:
        return {"stamps": [list(each) for each in counted(self.disk.read_scratch(self._path(args)))]}

    def _flood(self, args: Args) -> Result:
        self._may_write(args)
        self.disk.flood(self.disk.paths(), self._stamp(args))
        return {}

    def _flooded(self, args: Args) -> Result:
        return {"count": self.disk.flooded()}

    def _flood_end(self, args: Args) -> Result:
        self._must_be_claimed()
        return {"ended": self.disk.flood_end(self._number(args, "wait_s", 120))}

    def _read(self, args: Args) -> Result:
        count, seconds, error = self.disk.read_long(self._path(args), self._number(args, "mib", READ_MIB_MAX))
        return {"bytes": count, "seconds": seconds, "error": error}

    def _leave_act(self, args: Args) -> Result:
        return self.leave()

    # -- what guards them ---------------------------------------------------------------------------------------

    def _change(self, args: Args, act: Callable[[ReservationPort], None]) -> Result:
        """A success is never believed, and an error is no proof that nothing happened: what is read back counts."""
        self._must_be_claimed()
        port = self._port(args)
        self._only_scratch(port)
        said, ok, conflict = "reported success", True, False
        try:
            act(port)
        except FencingError as error:
            said, ok = str(error), False
            conflict = isinstance(error, Refused) and error.sense == CONFLICT
        return {"ok": ok, "said": said, "conflict": conflict, "state": shown(port.read())}

    def _may_write(self, args: Args) -> None:
        self._must_be_claimed()
        self._only_scratch(self._port(args))

    def _must_be_claimed(self) -> None:
        if not self.claimed:
            raise TrialRefused("this node has not found the device unused: nothing is changed on it")

    def _only_scratch(self, port: ReservationPort) -> None:
        foreign = self._foreign(port.read())
        if foreign:
            self.claimed = False
            raise TrialRefused(f"{foreign}: somebody began to use the device; nothing more is changed on it")

    def _foreign(self, state: ReservationState) -> str:
        keys = [key for key in state.keys if not self._is_scratch(key)]
        if keys:
            return f"registered with {', '.join(show_key(key) for key in keys)}"
        return "" if state.registrants or state.type is None else "reserved by an unknown holder"

    def _is_scratch(self, key: int) -> bool:
        parsed = Key.parse(key)
        return parsed.belongs_to(self.key.cluster_tag) and parsed.epoch == PROBE_EPOCH

    def _path(self, args: Args) -> str:
        path = args.get("path", "")
        if path not in self.disk.paths():
            raise TrialRefused(f"{path!r} is no path of this device here")
        return path

    def _port(self, args: Args) -> ReservationPort:
        return self.disk.port(self._path(args))

    def _scratch_key(self, args: Args, name: str) -> int:
        try:
            key = int(args.get(name, ""), 16)
            ours = self._is_scratch(key)
        except ValueError:
            ours = False
        if not ours:
            raise TrialRefused(f"{name} {args.get(name)!r} is no scratch key of this cluster")
        return key

    def _number(self, args: Args, name: str, most: int) -> int:
        text = args.get(name, "")
        if not text.isascii() or not text.isdigit() or int(text) > most:
            raise TrialRefused(f"{name} {text!r} is not a number from 0 to {most}")
        return int(text)

    def _stamp(self, args: Args) -> bytes:
        return stamped(node=self.key.node, round=self._number(args, "round", 0xFFFF))


_ACTS: dict[str, Callable[[Trial, Args], Result]] = {
    "claim": Trial._claim,
    "capabilities": Trial._capabilities,
    "probe": Trial._probe,
    "state": Trial._state,
    "check": Trial._check,
    "register": Trial._register,
    "unregister": Trial._unregister_act,
    "rekey": Trial._rekey,
    "reserve": Trial._reserve,
    "release": Trial._release,
    "clear": Trial._clear,
    "preempt": Trial._preempt,
    "overrun": Trial._overrun,
    "write": Trial._write,
    "fill": Trial._fill,
    "blank": Trial._blank,
    "stamps": Trial._stamps,
    "flood": Trial._flood,
    "flooded": Trial._flooded,
    "flood-end": Trial._flood_end,
    "read": Trial._read,
    "leave": Trial._leave_act,
}


def shown(state: ReservationState) -> Result:
    """A state as it travels: keys as they are printed, one for each nexus, sorted."""
    return {
        "generation": state.generation,
        "registrants": sorted(show_key(each.key) for each in state.registrants),
        "holders": [show_key(key) for key in state.holders],
        "type": state.type.value if state.type is not None else 0,
        "text": state.describe(),
    }
