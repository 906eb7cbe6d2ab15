"""The registry of faults: every kind hits the control that it names, and can be undone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen
from typing import IO

import pytest

from hwlab.errors import LabError
from hwlab.faults import FAULTS, inject
from hwlab.protocols import Completed, Host, LinkState, PowerState
from hwlab.topology import Role


@dataclass
class Recorder:
    """Stands for all controls of a host and notes what it was told to do."""

    calls: list[str] = field(default_factory=list)

    def control(self, prefix: str) -> "Control":
        return Control(self.calls, prefix)


@dataclass
class Control:
    calls: list[str]
    prefix: str

    def _note(self, what: str) -> None:
        self.calls.append(f"{self.prefix}.{what}")

    def on(self) -> None:
        self._note("on")

    def off(self) -> None:
        self._note("off")

    def pause(self) -> None:
        self._note("pause")

    def resume(self) -> None:
        self._note("resume")

    def cut(self) -> None:
        self._note("cut")

    def heal(self) -> None:
        self._note("heal")

    def text(self) -> str:
        return ""


class FakePower(Control):
    def state(self) -> PowerState:
        return PowerState.ON


class FakeLink(Control):
    def state(self) -> LinkState:
        return LinkState.UP


class FakeCommand(Control):
    def run(
        self, argv: Sequence[str], *, input: bytes | None = None, timeout_s: float = 30, check: bool = True
    ) -> Completed:
        self._note(" ".join(argv))
        return Completed(status=0, stdout=b"", stderr=b"")

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = 0,
        stdout: int | IO[bytes] = 0,
        stderr: int | IO[bytes] = 0,
    ) -> "Popen[bytes]":
        raise NotImplementedError

    def put(self, files: Mapping[str, bytes | Path], *, mode: int = 0o644, timeout_s: float = 60) -> None:
        self._note("put")

    def wait_reachable(self, timeout_s: float) -> None:
        self._note("wait")

    def forget(self) -> None:
        self._note("forget")


def fake_host(calls: list[str]) -> Host:
    return Host(
        name="n1",
        role=Role.NODE,
        addresses={},
        command=FakeCommand(calls, "run"),
        power=FakePower(calls, "power"),
        console=Control(calls, "console"),
        links={name: FakeLink(calls, name) for name in ("lan", "san")},
    )


@pytest.mark.parametrize(
    ("kind", "effect"),
    [
        ("kill", "power.off"),
        ("power-on", "power.on"),
        ("pause", "power.pause"),
        ("resume", "power.resume"),
        ("cut", "lan.cut"),
        ("heal", "lan.heal"),
        ("cut-storage", "san.cut"),
        ("heal-storage", "san.heal"),
        ("stop-daemon", "run.systemctl stop hactld.service"),
        ("start-daemon", "run.systemctl start hactl-nodewatch.service hactld.service"),
        ("hang-daemon", "run.systemctl kill --signal=STOP hactld.service hactl-nodewatch.service"),
        ("thaw-daemon", "run.systemctl kill --signal=CONT hactl-nodewatch.service hactld.service"),
        ("stop-node", "run.systemctl stop hactl-nodewatch.service hactld.service"),
        ("kill-controller", "run.systemctl kill --kill-who=main --signal=KILL hactld.service"),
        ("reboot", "run.systemctl --no-block reboot"),
    ],
)
def test_a_fault_does_what_its_name_says(kind: str, effect: str) -> None:
    calls: list[str] = []
    injected = inject(kind, fake_host(calls))
    assert calls[0] == effect
    assert (injected.kind, injected.host) == (kind, "n1")
    assert injected.monotonic_before <= injected.monotonic_after


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut-in", "filter add dev lan0 ingress pref 1 matchall action drop"),
        ("cut-out", "tc qdisc replace dev lan0 root netem loss 100%"),
        ("cut-from-nodes", "filter add dev lan0 ingress pref 2 protocol ip flower src_ip 10.77.1.12 action drop"),
        ("cut-from-nodes", "filter add dev lan0 egress pref 2 protocol ip flower dst_ip 10.77.1.12 action drop"),
        ("cut-from-nodes", "pref 3 protocol arp flower arp_sip 0.0.0.0 action drop"),
        ("lossy", "tc qdisc replace dev lan0 root netem loss 20%"),
        ("lossy", "action ok random netrand drop 5"),
        ("heal", "tc qdisc del dev lan0 root"),
        ("heal", "tc qdisc del dev lan0 clsact"),
        ("busy", "systemd-run --quiet --collect --unit=hwlab-busy"),
        ("idle", "systemctl stop hwlab-busy"),
        ("clock-fast", "python3 - 10500"),
        ("clock-slow", "python3 - 9500"),
        ("clock-true", "python3 - 10000"),
    ],
)
def test_a_fault_of_the_host_itself_is_a_script_for_its_interface(kind: str, words: str) -> None:
    calls: list[str] = []
    inject(kind, replace(fake_host(calls), interfaces={"lan": "lan0"}, peers=("10.77.1.12", "10.77.1.50")))
    assert words in calls[-1]


def two_paths(calls: list[str]) -> Host:
    links = {name: FakeLink(calls, name) for name in ("lan", "san", "sanb")}
    return replace(fake_host(calls), links=links)


@pytest.mark.parametrize(
    ("kind", "effects"),
    [
        ("cut-storage", ["san.cut", "sanb.cut"]),
        ("heal-storage", ["san.heal", "sanb.heal"]),
        ("cut-path", ["sanb.cut"]),
    ],
)
def test_of_two_storage_networks_one_is_a_path_and_both_are_the_storage(kind: str, effects: list[str]) -> None:
    calls: list[str] = []
    inject(kind, two_paths(calls))
    assert calls == effects


def test_a_path_is_renewed_by_the_session_on_its_own_network() -> None:
    calls: list[str] = []
    inject("renew-path", two_paths(calls))
    assert len(calls) == 1 and '*" dev sanb "*' in calls[0] and "--logout" in calls[0] and "--login" in calls[0]


@pytest.mark.parametrize("kind", ["cut-path", "renew-path"])
def test_the_only_path_cannot_be_lost_as_one_of_two(kind: str) -> None:
    calls: list[str] = []
    with pytest.raises(LabError, match="one path"):
        inject(kind, fake_host(calls))
    assert calls == []


def test_a_node_that_is_alone_cannot_be_cut_from_the_others() -> None:
    calls: list[str] = []
    with pytest.raises(LabError, match="no other nodes"):
        inject("cut-from-nodes", fake_host(calls))
    assert calls == []


def test_every_fault_with_an_undo_names_a_kind_that_exists() -> None:
    assert {fault.undo for fault in FAULTS.values() if fault.undo} <= set(FAULTS)


def test_every_fault_is_described() -> None:
    assert all(fault.description for fault in FAULTS.values())


def test_an_unknown_kind_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LabError, match="kill"):
        inject("explode", fake_host([]))


def test_a_host_without_the_network_cannot_be_cut_from_it() -> None:
    calls: list[str] = []
    host = fake_host(calls)
    client = Host(
        name="c1",
        role=Role.CLIENT,
        addresses={},
        command=host.command,
        power=host.power,
        console=host.console,
        links={},
    )
    with pytest.raises(LabError, match="c1 is not on network 'san'"):
        inject("cut-storage", client)
    assert calls == []
