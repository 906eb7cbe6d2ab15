"""Is a device fit for a volume? Every operation on a scratch key, each read back. Changes nothing that lasts.

The write part runs only on a device that nobody has registered with; of one in use, the read part alone is
done, and the proof that a PERSISTENT RESERVE OUT reaches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fencing.errors import PortError, Refused
from fencing.model import OUR_TYPE, PROBE_EPOCH, Key, ReservationState, show_key
from fencing.port import ReservationPort

ABSENT_NODE = 4095


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One promise, and whether the device kept it. `detail` is for the administrator."""

    name: str
    ok: bool
    detail: str


def probe_pr_out(port: ReservationPort, key: Key) -> CheckResult:
    """A REGISTER with a wrong old key, which must be refused: it proves that PR OUT reaches the device from
    here.

    Changes nothing, wherever and by whomever the device is owned. `key` gives cluster and node; its epoch is
    not used.
    """
    bogus = _scratch(key).value
    try:
        port.register(bogus, bogus)
    except Refused as error:
        return _result("PR OUT reaches the device", error.conflict, f"answered: {error.sense}")
    except PortError as error:
        return _result("PR OUT reaches the device", False, str(error))
    return _result("PR OUT reaches the device", False, "accepted a REGISTER with a wrong old key")


def check_device(port: ReservationPort, key: Key) -> list[CheckResult]:
    """All checks in order; a failed one ends the write part. `key` gives cluster and node; its epoch is not
    used.
    """
    results = [*_capabilities(port)]
    try:
        state = port.read()
    except PortError as error:
        return [*results, _result("registrations can be read", False, str(error))]
    results.append(_result("registrations can be read", True, state.describe()))
    results.append(probe_pr_out(port, key))
    if state.registrants or state.type is not None:
        results.append(_result("operations on a scratch key", True, "not tried: the device is in use"))
        return results
    return results + _Scratch(port, _scratch(key).value).run()


class _Scratch:
    """Register, reserve, preempt, release, unregister, in an order that leaves the device as it was found."""

    def __init__(self, port: ReservationPort, key: int) -> None:
        self._port = port
        self._key = key
        self._results: list[CheckResult] = []

    def run(self) -> list[CheckResult]:
        key, port = self._key, self._port
        absent = Key(cluster_tag=Key.parse(key).cluster_tag, node=ABSENT_NODE, epoch=PROBE_EPOCH).value
        ok = (
            self._step("register", lambda: port.register(0, key), self._alone)
            and self._persistence()
            and self._step("reserve", lambda: port.reserve(key, OUR_TYPE), self._exclusive)
            and self._conflict("preempt of an absent key", lambda: port.preempt(key, absent, OUR_TYPE))
            and self._step("change of the key", lambda: port.register(key, key), self._exclusive)
            and self._step("release", lambda: port.release(key, OUR_TYPE), self._alone)
        )
        if ok:
            self._step("unregister", lambda: port.register(key, 0), lambda state: not state.registrants)
        else:
            self._clean_up()
        return self._results

    def _clean_up(self) -> None:
        try:
            self._port.register(self._key, 0)
        except PortError:
            pass  # what is read back counts
        by_hand = f"remove it with: sg_persist --out --register --param-rk={show_key(self._key)}"
        try:
            left = self._key in self._port.read().keys
        except PortError as error:
            self._add("scratch key removed", False, f"{by_hand} ({error})")
        else:
            self._add("scratch key removed", not left, by_hand if left else "after the failure above")

    def _step(self, name: str, act: Callable[[], None], holds: Callable[[ReservationState], bool]) -> bool:
        """Act, then read back: an error is no failure if the effect is there, success none if it is not."""
        said = "reported success"
        try:
            act()
        except PortError as error:
            said = str(error)
        try:
            state = self._port.read()
        except PortError as error:
            return self._add(name, False, f"{said}; not read back: {error}")
        ok = holds(state) and said == "reported success"
        return self._add(name, ok, f"{said}; read back: {state.describe()}")

    def _conflict(self, name: str, act: Callable[[], None]) -> bool:
        """Either answer is in use among devices; what counts is that nothing changed."""
        said = "reported success"
        try:
            act()
        except Refused as error:
            said = error.sense
        except PortError as error:
            return self._add(name, False, str(error))
        state = self._port.read()
        return self._add(name, self._exclusive(state), f"{said}; read back: {state.describe()}")

    def _persistence(self) -> bool:
        try:
            active = self._port.capabilities().persistence_active
        except PortError as error:
            return self._add("persistence through power loss is active", False, str(error))
        detail = "yes" if active else "the device did not keep the APTPL bit"
        return self._add("persistence through power loss is active", active, detail)

    def _alone(self, state: ReservationState) -> bool:
        return state.keys == (self._key,) and state.type is None

    def _exclusive(self, state: ReservationState) -> bool:
        return state.exclusive_to(self._key)

    def _add(self, name: str, ok: bool, detail: str) -> bool:
        self._results.append(_result(name, ok, detail))
        return ok


def _capabilities(port: ReservationPort) -> list[CheckResult]:
    try:
        capabilities = port.capabilities()
    except PortError as error:
        return [_result("capabilities can be read", False, str(error))]
    if capabilities.unreadable:
        return [_result("registrations can be read", False, capabilities.unreadable)]
    types = capabilities.types
    named = ", ".join(kind.name for kind in sorted(types)) or "the device does not say which types it knows"
    return [
        _result("type Write Exclusive - Registrants Only", not types or OUR_TYPE in types, named),
        _result(
            "persistence through power loss",
            capabilities.persists,
            "PTPL_C is set"
            if capabilities.persists
            else "PTPL_C is not set: a power loss of the target opens the disk",
        ),
    ]


def _scratch(key: Key) -> Key:
    return Key(cluster_tag=key.cluster_tag, node=key.node, epoch=PROBE_EPOCH)


def _result(name: str, ok: bool, detail: str) -> CheckResult:
    return CheckResult(name=name, ok=ok, detail=detail)
