"""The preflight over fake units: each promise with storage that breaks it, and what stays on the device."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest

from fencing.asking import Answer, Say, Step, Wait
from fencing.errors import FencingError, NotDelivered, Refused
from fencing.fake import FakeLogicalUnit, FakePort, own
from fencing.faketrial import FIRST_BLOCK, FakeDisk
from fencing.model import Key, PrType, ReservationState
from fencing.nodefacts import DeviceFacts, NodeFacts, PathFacts, parse_facts
from fencing.preflight import Options, Plan, Preflight
from fencing.promises import Evidence, Finding, Promise, Verdict, risk, untested, worst
from fencing.stamp import BLOCKS, counted, only_stamps, stamped
from fencing.trial import Trial, TrialRefused

TAG = 0xABCDE
WWID = "naa.6001"
NUMBERS = {"n1": 1, "n2": 2, "n3": 3}
PATHS = ("sda", "sdb")
DATA = {block: random.Random(block).randbytes(64) for block in (0, 5, 2048, 9999)}


@dataclass
class Bench:
    """Nodes with fake disks, and a driver for the plan. `units`: what each node reaches, usually one unit for all."""

    units: dict[str, FakeLogicalUnit] = field(default_factory=lambda: dict.fromkeys(NUMBERS, FakeLogicalUnit()))
    paths: tuple[str, ...] = PATHS
    facts: dict[str, NodeFacts] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=lambda: Options(rounds=1, read_mib=1))
    on_say: Callable[[str], None] = lambda text: None
    spoil: Callable[[Step, int], Answer | None] = lambda step, nth: None
    steps: list[Step] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        for unit in self.units.values():
            unit.blocks.update(DATA)
        self.disks = {
            node: FakeDisk(unit, {path: f"{node}-{path}".encode() for path in self.paths})
            for node, unit in self.units.items()
        }
        self.trials = {
            node: Trial(disk, Key(cluster_tag=TAG, node=NUMBERS[node], epoch=0)) for node, disk in self.disks.items()
        }
        self.facts = {node: facts_of(node, self.paths) for node in self.units}

    def run(self) -> dict[Promise, Finding]:
        nodes = {node: each for node, each in self.facts.items() if node not in self.silent}
        self.preflight = Preflight(
            WWID, nodes=nodes, silent=self.silent, tag=TAG, numbers=NUMBERS, options=self.options
        )
        return {each.promise: each for each in self._drive(self.preflight.plan())}

    def _drive(self, plan: Plan) -> tuple[Finding, ...]:
        answers: list[Answer] = []
        while True:
            try:
                wanted = plan.send(answers) if self.steps or answers else next(plan)
            except StopIteration as done:
                return done.value
            match wanted:
                case Say(text=text):
                    self.on_say(text)
                    answers = [Answer()]
                case Wait(seconds=seconds):
                    self.now_s += seconds
                    answers = [Answer(result={"now_s": self.now_s})]
                case steps:
                    answers = [self._do(step) for step in steps]

    def _do(self, step: Step) -> Answer:
        self.steps.append(step)
        spoilt = self.spoil(step, len(self.steps))
        if spoilt is not None:
            return spoilt
        try:
            result = self.trials[step.node].do(step.act, step.args)
        except (TrialRefused, FencingError, OSError) as error:
            return Answer(error=str(error))
        return Answer(result=json.loads(json.dumps(result)))

    def assert_left_as_it_was(self) -> None:
        """No registration, and outside the scratch area every block as before; inside, zeros."""
        for unit in self.units.values():
            assert unit.registrations == {} and unit.type is None
            outside = {at: block for at, block in unit.blocks.items() if not 0 <= at - FIRST_BLOCK < BLOCKS}
            assert outside == DATA
            assert not any(any(block) for at, block in unit.blocks.items() if at not in outside)


def facts_of(node: str, paths: tuple[str, ...] = PATHS, **device: int) -> NodeFacts:
    shape = {"size_bytes": 1 << 30, "sector_bytes": 512, **device}
    return NodeFacts(
        names={"host name": (node,), "iSCSI initiator name": (f"iqn.{node}",)},
        devices={
            WWID: DeviceFacts(
                head="sda",
                paths=tuple(
                    PathFacts(name=path, via="", state="running", size_bytes=shape["size_bytes"]) for path in paths
                ),
                **shape,
            )
        },
    )


def verdicts(findings: Mapping[Promise, Finding]) -> dict[str, str]:
    return {promise.value: str(each.verdict) for promise, each in findings.items()}


def broken(findings: Mapping[Promise, Finding]) -> set[Promise]:
    return {promise for promise, each in findings.items() if each.verdict is Verdict.BROKEN}


def good_unit(**switches: bool) -> dict[str, FakeLogicalUnit]:
    return dict.fromkeys(NUMBERS, FakeLogicalUnit(**switches))


def with_ports(kind: type[FakePort], nodes: tuple[str, ...] = tuple(NUMBERS)) -> Bench:
    bench = Bench()
    for node in nodes:
        for path in PATHS:
            bench.disks[node].replace_port(path, kind(bench.units[node], f"{node}-{path}".encode()))
    return bench


def restarting(bench: Bench) -> None:
    """The administrator follows the request: the target loses its power, and one poll finds it away."""
    away = [0]

    def power_off(text: str) -> None:
        if "restart" in text:
            bench.units["n1"].power_loss()
            away[0] = 6

    def spoil(step: Step, nth: int) -> Answer | None:
        if away[0] and step.act == "state":
            away[0] -= 1
            return Answer(error="no path")
        return None

    bench.options = Options(rounds=1, read_mib=1, restart_s=60)
    bench.on_say, bench.spoil = power_off, spoil


# -- storage that keeps everything ------------------------------------------------------------------------------


def test_good_storage_keeps_every_promise_that_was_tried() -> None:
    bench = Bench()
    findings = bench.run()
    assert set(verdicts(findings).values()) == {"kept", "not tested"}
    assert [each.promise for each in findings.values() if each.verdict is Verdict.NOT_TESTED] == [Promise.PERSISTENCE]
    assert worst(findings.values()) is Verdict.KEPT and risk(findings.values()) == ""
    assert bench.preflight.left == []
    bench.assert_left_as_it_was()


def test_a_restart_that_was_asked_for_completes_the_verdicts() -> None:
    bench = Bench()
    restarting(bench)
    findings = bench.run()
    assert set(verdicts(findings).values()) == {"kept"}
    bench.assert_left_as_it_was()


def test_every_path_of_every_node_writes_and_reads_in_the_trials() -> None:
    bench = Bench()
    bench.run()
    for act in ("read", "write", "check", "register", "stamps"):
        tried = {(step.node, step.args["path"]) for step in bench.steps if step.act == act}
        assert tried == {(node, path) for node in NUMBERS for path in PATHS}, act


def test_what_is_being_tried_is_said_as_it_goes() -> None:
    said: list[str] = []
    bench = Bench(on_say=said.append)
    bench.run()
    assert [line.split()[-1] for line in said] == [
        "capabilities", "capabilities", "paths", "paths", "operations", "room", "conflict", "fence", "late-writes",
    ]  # fmt: skip


def test_each_node_is_fenced_once_while_it_writes() -> None:
    bench = Bench(options=Options(rounds=2, read_mib=1))
    bench.run()
    assert [step.node for step in bench.steps if step.act == "flood"] == ["n1", "n2", "n3"] * 2
    assert [step.node for step in bench.steps if step.act == "overrun"] == ["n2", "n3", "n1"] * 2


# -- one broken promise each ------------------------------------------------------------------------------------


def test_a_device_that_does_not_drain_lets_late_writes_land() -> None:
    bench = Bench(units=good_unit(drains=False))
    findings = bench.run()
    assert broken(findings) == {Promise.LATE_WRITES}
    assert "landed after n2 had fenced it" in findings[Promise.LATE_WRITES].found[0]
    assert findings[Promise.LATE_WRITES].to_do and risk(findings.values()) == "late-writes"
    bench.assert_left_as_it_was()


def test_a_preempt_that_is_only_reported_breaks_the_fence_and_nothing_is_claimed_of_late_writes() -> None:
    bench = Bench(units=good_unit(ignores_preempt=True))
    findings = bench.run()
    assert Promise.FENCE in broken(findings)
    assert findings[Promise.LATE_WRITES].verdict is not Verdict.KEPT
    bench.assert_left_as_it_was()


def test_a_target_that_forgets_breaks_persistence_after_its_restart() -> None:
    bench = Bench(units=good_unit(can_persist=False))
    restarting(bench)
    findings = bench.run()
    assert broken(findings) == {Promise.PERSISTENCE}
    bench.assert_left_as_it_was()


def test_a_device_that_says_it_forgets_is_believed_without_a_restart() -> None:
    findings = Bench(units=good_unit(can_persist=False)).run()
    assert broken(findings) == {Promise.PERSISTENCE} and worst(findings.values()) is Verdict.BROKEN
    assert "does not keep registrations" in findings[Promise.PERSISTENCE].found[0]


def test_what_it_takes_to_try_what_was_not_tried_is_said() -> None:
    to_do = Bench().run()[Promise.PERSISTENCE].to_do
    assert to_do == "run it with --restart-target at a time when the target may be restarted"
    assert "--read-only" in Bench(options=Options(read_only=True)).run()[Promise.FENCE].to_do
    bench = Bench()
    own(bench.units["n1"], b"somebody", 0x77)
    assert "free the device" in bench.run()[Promise.FENCE].to_do
    assert "hactld" in Bench(silent={"n3": "it is not heard"}).run()[Promise.FENCE].to_do


def test_a_device_that_cannot_be_asked_is_not_said_to_be_in_use() -> None:
    class NoReservations(FakePort):
        def read(self) -> ReservationState:
            raise Refused("invalid command operation code", device="fake", operation="read")

    findings = with_ports(NoReservations).run()
    assert "whether the device is free is not known (n1: fake: read" in findings[Promise.FENCE].found[0]


def test_a_target_that_says_it_persists_and_forgets_is_found_out_by_the_restart_alone() -> None:
    class Forgetful(FakeLogicalUnit):
        def power_loss(self) -> None:
            self.registrations.clear()
            self.holder, self.type, self.generation = None, None, 0

    bench = Bench(units=dict.fromkeys(NUMBERS, Forgetful()))
    restarting(bench)
    assert broken(bench.run()) == {Promise.PERSISTENCE}


def test_a_path_that_fails_once_more_after_the_restart_is_waited_for() -> None:
    bench = Bench()
    restarting(bench)
    plain, polls = bench.spoil, len(NUMBERS) * len(PATHS)
    away: list[Step] = []

    def spoil(step: Step, nth: int) -> Answer | None:
        spoilt = plain(step, nth)
        if spoilt is not None or away:
            away.append(step)
        # the first poll finds all away, the second finds all well
        return Answer(error="no such device") if len(away) == 2 * polls + 3 else spoilt

    bench.spoil = spoil
    assert bench.run()[Promise.PERSISTENCE].verdict is Verdict.KEPT
    assert away[2 * polls + 2].act == "state"
    bench.assert_left_as_it_was()


def test_a_restart_that_never_comes_is_not_tested() -> None:
    bench = Bench(options=Options(rounds=1, read_mib=1, restart_s=30))
    finding = bench.run()[Promise.PERSISTENCE]
    assert finding.verdict is Verdict.NOT_TESTED and "not seen to restart within 30 s" in finding.found[0]
    assert 30 <= bench.now_s < 40
    bench.assert_left_as_it_was()


def test_writes_of_others_that_are_accepted_break_conflict_and_fence() -> None:
    class Open(FakeLogicalUnit):
        def may_write(self, nexus: bytes) -> bool:
            return True

    bench = Bench(units=dict.fromkeys(NUMBERS, Open()))
    findings = bench.run()
    assert {Promise.CONFLICT, Promise.FENCE} <= broken(findings)
    assert "was accepted while n1 owns" in findings[Promise.CONFLICT].found[0]
    bench.assert_left_as_it_was()


def test_one_path_that_is_not_fenced_is_enough() -> None:
    class HalfOpen(FakeLogicalUnit):
        def may_write(self, nexus: bytes) -> bool:
            return nexus == b"n2-sdb" or super().may_write(nexus)

    findings = Bench(units=dict.fromkeys(NUMBERS, HalfOpen())).run()
    assert {Promise.CONFLICT, Promise.FENCE} <= broken(findings)
    assert all("n2 sdb" in line for line in findings[Promise.CONFLICT].found)


def test_a_write_that_is_refused_and_lands_all_the_same_is_found_by_reading() -> None:
    class Liar(FakeDisk):
        def write(self, path: str, block: int, data: bytes) -> str:
            said = super().write(path, block, data)
            if said:
                self.unit.blocks[FIRST_BLOCK + block] = data[:4096]
            return said

    bench = Bench()
    bench.trials["n3"].disk = Liar(bench.units["n3"], {path: f"n3-{path}".encode() for path in PATHS})
    findings = bench.run()
    assert Promise.CONFLICT in broken(findings)
    assert "landed all the same" in findings[Promise.CONFLICT].found[0]


def test_a_read_only_mapping_is_no_working_fence() -> None:
    """Each write of n2 fails anyway: it must not count as a refusal by the reservation."""

    class ReadOnly(FakeDisk):
        def write(self, path: str, block: int, data: bytes) -> str:
            return "EROFS"

    bench = Bench()
    bench.trials["n2"].disk = ReadOnly(bench.units["n2"], {path: f"n2-{path}".encode() for path in PATHS})
    findings = bench.run()
    assert {Promise.PATHS, Promise.CONFLICT, Promise.FENCE} <= broken(findings)
    assert "'EROFS' instead of a reservation conflict" in findings[Promise.CONFLICT].found[0]


def test_two_gateways_that_do_not_share_reservations_are_found_out() -> None:
    """Two units over one medium: what one node registers, the other one never sees."""
    first = FakeLogicalUnit()
    second = FakeLogicalUnit(blocks=first.blocks)
    bench = Bench(units={"n1": first, "n2": second})
    findings = bench.run()
    assert {Promise.OPERATIONS, Promise.CONFLICT} <= broken(findings)
    assert findings[Promise.LATE_WRITES].verdict is not Verdict.KEPT
    bench.assert_left_as_it_was()


class NoReserve(FakePort):
    def reserve(self, key: int, type: PrType) -> None:
        pass


class NoClear(FakePort):
    def clear(self, key: int) -> None:
        pass


class NoRelease(FakePort):
    def release(self, key: int, type: PrType) -> None:
        pass


class KeepsOldKey(FakePort):
    def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
        if not (old and new):
            super().register(old, new, ignore_existing)
        elif self.unit.registrations.get(self.nexus) != old:
            raise Refused("reservation conflict", device="fake", operation="register", sense="reservation conflict")


@pytest.mark.parametrize("kind", [NoReserve, NoClear, NoRelease, KeepsOldKey])
def test_an_operation_that_does_nothing_breaks_the_operations(kind: type[FakePort]) -> None:
    bench = with_ports(kind, ("n2",))
    assert Promise.OPERATIONS in broken(bench.run())
    bench.assert_left_as_it_was()


def test_a_holders_preempt_that_does_nothing_is_found_with_two_nodes_too() -> None:
    class TakesOverOnly(FakePort):
        """As nvmet of Linux 6.18: a preempt of the holder works, one by the holder is only reported."""

        def preempt(self, key: int, victim: int, type: PrType, abort: bool = True) -> None:
            if self.unit.holder != self.nexus:
                super().preempt(key, victim, type, abort)

    bench = with_ports(TakesOverOnly)
    bench.silent["n3"] = "it is not heard"
    findings = bench.run()
    assert Promise.FENCE in broken(findings)
    assert "which holds the device, preempts" in findings[Promise.FENCE].found[0]


def test_a_path_through_which_no_reservation_command_passes_is_found() -> None:
    class Deaf(FakePort):
        def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
            raise NotDelivered("no path", device="fake", operation="register")

    bench = Bench()
    bench.disks["n3"].replace_port("sdb", Deaf(bench.units["n3"], b"n3-sdb"))
    findings = bench.run()
    assert {Promise.CAPABILITIES, Promise.OPERATIONS, Promise.ROOM} <= broken(findings)
    bench.assert_left_as_it_was()


def test_a_limit_of_registrants_below_the_number_of_paths_is_found() -> None:
    class Full(FakePort):
        def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
            if new and self.nexus not in self.unit.registrations and len(self.unit.registrations) >= 5:
                raise Refused("insufficient registration resources", device="fake", operation="register", sense="05")
            super().register(old, new, ignore_existing)

    findings = with_ports(Full).run()
    assert Promise.ROOM in broken(findings)
    assert "n3 sdb could not be registered beside others" in findings[Promise.ROOM].found[0]


def test_a_registration_that_is_forgotten_beside_others_is_found() -> None:
    class Forgets(FakePort):
        def register(self, old: int, new: int, ignore_existing: bool = False) -> None:
            super().register(old, new, ignore_existing)
            if len(self.unit.registrations) > 4:
                self.unit.registrations.pop(next(iter(self.unit.registrations)))

    assert Promise.ROOM in broken(with_ports(Forgets).run())


def test_a_path_that_cannot_be_read_is_broken_and_named() -> None:
    bench = Bench()
    bench.disks["n2"].bad_paths["sdb"] = "EIO at 512 MiB"
    finding = bench.run()[Promise.PATHS]
    assert finding.verdict is Verdict.BROKEN and finding.found == ("n2 sdb: EIO at 512 MiB",)


def test_a_path_with_another_size_than_its_sisters_is_found() -> None:
    bench = Bench()
    one = bench.facts["n2"].devices[WWID]
    paths = (one.paths[0], replace(one.paths[1], size_bytes=1 << 29))
    bench.facts["n2"] = replace(bench.facts["n2"], devices={WWID: replace(one, paths=paths)})
    finding = bench.run()[Promise.SAME]
    assert finding.verdict is Verdict.BROKEN and "n2 sdb: 536870912 bytes" in finding.found[0]


@pytest.mark.parametrize("differs", [{"size_bytes": 1 << 29}, {"sector_bytes": 4096}])
def test_nodes_that_see_another_size_or_other_sectors_are_found(differs: dict[str, int]) -> None:
    bench = Bench()
    bench.facts["n2"] = facts_of("n2", **differs)
    finding = bench.run()[Promise.SAME]
    assert finding.verdict is Verdict.BROKEN and "n2" in finding.found[0]


def test_a_node_that_does_not_see_the_device_is_named_and_the_others_are_tried() -> None:
    bench = Bench()
    bench.facts["n3"] = NodeFacts(names={}, devices={})
    findings = bench.run()
    assert broken(findings) == {Promise.SAME}
    assert findings[Promise.SAME].found == (f"n3 does not see {WWID}",)
    assert findings[Promise.FENCE].verdict is Verdict.KEPT


@pytest.mark.parametrize("kind", ["host name", "iSCSI initiator name", "NVMe host identifier"])
def test_a_name_that_two_nodes_have_is_found(kind: str) -> None:
    bench = Bench()
    for node in ("n1", "n3"):
        bench.facts[node] = NodeFacts(names={kind: ("same", node)}, devices=bench.facts[node].devices)
    finding = bench.run()[Promise.NAMES]
    assert finding.verdict is Verdict.BROKEN
    assert finding.found == (f"n1 and n3 have the same {kind}: same",)


# -- what cannot be tried is not called kept --------------------------------------------------------------------


def test_a_node_that_was_not_heard_leaves_everything_untested_and_the_rest_is_tried() -> None:
    bench = Bench(silent={"n3": "not heard"})
    findings = bench.run()
    assert {each.verdict for each in findings.values()} == {Verdict.NOT_TESTED}
    assert any("none landed later" in line for line in findings[Promise.LATE_WRITES].found)
    assert worst(findings.values()) is Verdict.NOT_TESTED


def test_a_node_alone_cannot_prove_a_fence() -> None:
    bench = Bench(units={"n1": FakeLogicalUnit()})
    findings = bench.run()
    for promise in (Promise.CONFLICT, Promise.FENCE, Promise.LATE_WRITES):
        assert findings[promise].verdict is Verdict.NOT_TESTED
    bench.assert_left_as_it_was()


def test_a_node_that_falls_silent_at_any_step_breaks_nothing_and_keeps_no_promise_it_was_needed_for() -> None:
    reference = Bench()
    reference.run()
    for cut in range(1, len(reference.steps), 11):
        bench = Bench(spoil=lambda step, nth, cut=cut: Answer(error="no answer", silent=True) if nth == cut else None)
        findings = bench.run()
        assert broken(findings) == set(), (cut, bench.steps[cut - 1])
        assert worst(findings.values()) is Verdict.NOT_TESTED or bench.preflight.left, (cut, bench.steps[cut - 1])


def test_answers_that_mean_nothing_end_no_preflight() -> None:
    for garbage in ({}, {"state": None}, {"checks": 3}, {"count": "x"}, {"stamps": [[1]]}):
        findings = Bench(spoil=lambda step, nth, g=garbage: Answer(result=g)).run()
        assert worst(findings.values()) is not Verdict.KEPT


def test_nothing_is_changed_when_asked_to_change_nothing() -> None:
    bench = Bench(options=Options(read_only=True, read_mib=1))
    findings = bench.run()
    assert {step.act for step in bench.steps} == {"capabilities", "probe", "read"}
    assert findings[Promise.FENCE].verdict is Verdict.NOT_TESTED
    assert findings[Promise.PATHS].verdict is Verdict.KEPT


# -- a device in use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [1, 9])
def test_an_owned_device_is_only_looked_at(epoch: int) -> None:
    bench = Bench()
    own(bench.units["n1"], b"n2-sda", Key(cluster_tag=TAG, node=2, epoch=epoch).value)
    before = bench.units["n1"].fingerprint()
    findings = bench.run()
    assert bench.units["n1"].fingerprint() == before
    assert {step.act for step in bench.steps} == {"capabilities", "probe", "read", "claim"}
    assert "not free to be tried" in findings[Promise.LATE_WRITES].found[0]
    assert worst(findings.values()) is Verdict.NOT_TESTED


def test_a_device_in_use_or_not_empty_on_any_node_is_only_looked_at() -> None:
    bench = Bench()
    bench.disks["n2"].hinders = "mounted on /srv"
    before = bench.units["n1"].fingerprint()
    finding = bench.run()[Promise.OPERATIONS]
    assert finding.found == ("the device is not free to be tried (n2: mounted on /srv)",)
    assert bench.units["n1"].fingerprint() == before


def test_keys_of_an_interrupted_preflight_do_not_stand_in_the_way() -> None:
    bench = Bench()
    own(bench.units["n1"], b"n2-sda", Key(cluster_tag=TAG, node=2, epoch=0).value)
    assert worst(bench.run().values()) is Verdict.KEPT
    bench.assert_left_as_it_was()


def test_somebody_who_takes_the_device_meanwhile_is_left_alone() -> None:
    reference = Bench()
    reference.run()
    stranger = Key(cluster_tag=TAG, node=3, epoch=7).value
    changing = next(nth for nth, step in enumerate(reference.steps, 1) if step.act == "overrun")
    bench = Bench()

    def take(step: Step, nth: int) -> Answer | None:
        if nth == changing - 5:
            own(bench.units["n1"], b"n3-sda", stranger)
            bench.taken = bench.units["n1"].fingerprint()
        return None

    bench.spoil = take
    bench.run()
    assert bench.units["n1"].fingerprint()[:3] == bench.taken[:3]
    assert bench.preflight.left


# -- what a node refuses, whoever asks --------------------------------------------------------------------------

ACTS = ("check", "register", "unregister", "reserve", "release", "clear", "flood", "fill", "blank", "write")


@pytest.mark.parametrize("act", ACTS)
def test_an_act_on_a_device_that_was_not_claimed_is_refused(act: str) -> None:
    bench = Bench()
    before = bench.units["n1"].fingerprint()
    with pytest.raises(TrialRefused):
        bench.trials["n1"].do(act, {"path": "sda", "block": "0", "round": "1"})
    assert bench.units["n1"].fingerprint() == before


@pytest.mark.parametrize(
    ("act", "args"),
    [
        ("preempt", {"victim": Key(cluster_tag=TAG, node=2, epoch=1).value}),
        ("preempt", {"victim": Key(cluster_tag=TAG + 1, node=2, epoch=0).value}),
        ("overrun", {"victim": 0, "round": "1"}),
        ("rekey", {"old": Key(cluster_tag=TAG, node=1, epoch=0).value, "new": 5}),
        ("preempt", {}),
        ("write", {"block": "256", "round": "1"}),
        ("write", {"block": "-1", "round": "1"}),
        ("write", {"block": "0", "round": "70000"}),
        ("read", {"mib": "99999999"}),
        ("state", {"path": "/dev/sdz"}),
        ("format", {}),
        ("__init__", {}),
    ],
)
def test_words_from_afar_that_break_a_rule_are_refused(act: str, args: dict[str, object]) -> None:
    bench = Bench()
    bench.trials["n1"].do("claim", {"path": "sda"})
    words = {"path": "sda", **{name: hex(v) if isinstance(v, int) else v for name, v in args.items()}}
    before = bench.units["n1"].fingerprint()
    with pytest.raises(TrialRefused):
        bench.trials["n1"].do(act, words)
    assert bench.units["n1"].fingerprint() == before


def test_a_session_that_ends_in_the_middle_takes_back_its_registrations() -> None:
    bench = Bench()
    trial = bench.trials["n1"]
    trial.do("claim", {"path": "sda"})
    for path in PATHS:
        trial.do("register", {"path": path})
    trial.do("reserve", {"path": "sda"})
    assert trial.leave() == {"left": []}
    bench.assert_left_as_it_was()


# -- small parts ------------------------------------------------------------------------------------------------


def test_stamps_tell_who_and_when_and_torn_ones_are_told_apart() -> None:
    one, two = stamped(node=1, round=3), stamped(node=2, round=4)
    assert counted(one + two[:1024] + bytes(512)) == [(0, 0, 1), (1, 3, 8), (2, 4, 2)]
    torn = one[:100] + b"x" + one[101:512]
    assert counted(torn) == [(-1, -1, 1)]
    assert only_stamps(one + bytes(4096)) and not only_stamps(one + torn)


def test_evidence_of_both_kinds_is_broken_and_none_is_not_tested() -> None:
    evidence = Evidence()
    evidence.good(Promise.ROOM, "a")
    evidence.bad(Promise.ROOM, "b")
    evidence.good(Promise.SAME, "c")
    evidence.skipped(Promise.SAME, "d")
    judged = {each.promise: each for each in evidence.findings()}
    assert judged[Promise.ROOM].verdict is Verdict.BROKEN and judged[Promise.ROOM].found == ("b",)
    assert judged[Promise.SAME].verdict is Verdict.NOT_TESTED
    assert judged[Promise.FENCE].verdict is Verdict.NOT_TESTED
    assert all(each.means and each.to_do for each in judged.values())
    assert untested(judged.values()).split(", ")[:2] == ["same-device", "unique-names"] and "room" not in untested(
        judged.values()
    )


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"names": {}, "devices": {"x": {}}},
        {"names": {"a": [1]}, "devices": {}},
        {"names": 3, "devices": {}},
    ],
)
def test_facts_that_are_not_understood_are_an_error(body: object) -> None:
    with pytest.raises(ValueError, match=r"not understood|paths"):
        parse_facts(body)


def test_facts_read_back_as_told() -> None:
    device = {"head": "/dev/sda", "size_bytes": 9, "sector_bytes": 512,
              "paths": [{"name": "/dev/sda", "via": "iqn", "state": "running", "size_bytes": 9}]}  # fmt: skip
    found = parse_facts({"names": {"host name": ["n1"]}, "devices": {WWID: device}})
    assert found.devices[WWID].paths[0].via == "iqn" and found.names["host name"] == ("n1",)
