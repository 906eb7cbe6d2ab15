"""The leader's books on barred nodes: when an agent is run, and how long its word counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from hactl.errors import RequestRefused
from hactl.fencer import GONE_MS, Fencer
from hactl.levels import RETRY_MS, Level, Power
from hactl.placement import NodeFacts
from nodewatch.sections import Agent, Fencing

CONFIG = Fencing(levels=("reservation", "power"), agents=(Agent(node="n1", agent="fence_lab"),), distrust=("v1",))


@dataclass(frozen=True)
class Seen:
    state: str = "overdue"
    generation: int = 5
    barred: bool = True
    confirmed: bool = True
    safe_in_ms: int | None = 900


@dataclass
class Rig:
    loop: asyncio.AbstractEventLoop
    now_ms: int = 100_000
    answer: str | Exception = "off, read back"
    runs: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fencer = Fencer(
            config=CONFIG,
            reset_after_ms=30_000,
            switch=self._switch,
            switch_on=self._switch,
            now_ms=lambda: self.now_ms,
            log=self.log.append,
            changed=lambda: None,
        )

    async def _switch(self, agent: Agent) -> str:
        self.runs.append(agent.node)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def see(self, seen: Seen, *, demand: bool = True) -> None:
        """A view, then what the placement asks for; the agent runs to its end."""

        async def once() -> None:
            self.fencer.observe({"n1": seen}, self.now_ms)
            if demand:
                self.fencer.demand(["n1"])
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(once())

    def power(self, *, alive: bool = False) -> Power:
        return self.fencer.proof("n1", alive=alive).power


@pytest.fixture
def rig() -> Iterator[Rig]:
    loop = asyncio.new_event_loop()
    yield Rig(loop)
    loop.close()


def test_nobody_is_switched_off_before_a_majority_barred_it(rig: Rig) -> None:
    for seen in (Seen(barred=False, confirmed=False), Seen(confirmed=False), Seen(safe_in_ms=None)):
        rig.see(seen)
    assert rig.runs == []
    rig.see(Seen(), demand=False)
    assert rig.runs == [], "and not unless asked for"
    rig.see(Seen())
    assert (rig.runs, rig.power()) == (["n1"], Power.OFF)
    rig.see(Seen())
    assert rig.runs == ["n1"], "once is enough"


def test_what_was_switched_off_counts_until_the_bar_ends_or_a_new_life_is_heard(rig: Rig) -> None:
    rig.see(Seen())
    rig.see(Seen(generation=6), demand=False)
    assert rig.power() is Power.UNTRIED
    rig.see(Seen(generation=6))
    assert rig.runs == ["n1", "n1"] and rig.power() is Power.OFF
    rig.see(Seen(barred=False))
    assert rig.power() is Power.UNTRIED


def test_a_node_that_goes_on_talking_was_not_switched_off(rig: Rig) -> None:
    rig.see(Seen())
    assert rig.power(alive=True) is Power.RUNNING
    rig.now_ms += GONE_MS
    proof = rig.fencer.proof("n1", alive=True)
    assert proof.power is Power.FAILED and "another host" in proof.text


def test_a_failed_agent_is_run_again_after_a_while(rig: Rig) -> None:
    rig.answer = RuntimeError("no answer in 60 s")
    rig.see(Seen())
    assert (rig.power(), rig.fencer.proof("n1", alive=False).tries) == (Power.FAILED, 1)
    rig.now_ms += RETRY_MS - 1
    rig.see(Seen())
    assert rig.runs == ["n1"]
    rig.now_ms += 1
    rig.answer = "off, read back"
    rig.see(Seen())
    assert (rig.runs, rig.power()) == (["n1", "n1"], Power.OFF)


def test_the_watchdogs_time_counts_from_the_earliest_known_end_of_the_lease(rig: Rig) -> None:
    rig.see(Seen(safe_in_ms=900), demand=False)
    rig.now_ms += 1000
    rig.see(Seen(safe_in_ms=0), demand=False)
    assert rig.fencer.proof("n1", alive=False).reset_in_ms == 29_900
    rig.now_ms += 29_899
    assert rig.fencer.proof("n1", alive=False).stopped_by is None
    rig.now_ms += 1
    assert rig.fencer.proof("n1", alive=False).stopped_by is Level.WATCHDOG
    rig.see(Seen(barred=False), demand=False)
    rig.see(Seen(safe_in_ms=900), demand=False)
    assert rig.fencer.proof("n1", alive=False).reset_in_ms == 30_900, "another bar, another wait"


def test_an_administrators_order_waits_for_the_bar_and_ends_with_unfence(rig: Rig) -> None:
    rig.fencer.fence("n1", "power")
    rig.see(Seen(confirmed=False), demand=False)
    assert rig.runs == []
    rig.see(Seen(), demand=False)
    assert rig.runs == ["n1"]
    rig.fencer.let_in("n1")
    rig.see(Seen(barred=False), demand=False)
    rig.see(Seen(), demand=False)
    assert rig.runs == ["n1"]


def test_a_level_that_is_not_to_be_had_is_refused(rig: Rig) -> None:
    rig.fencer.reset_after_ms = None
    for node, level, why in (
        ("n2", "power", "no .*fencing.agent"),
        ("n1", "watchdog", "none of .fencing. levels"),
        ("n1", "prayer", "no level 'prayer'"),
    ):
        with pytest.raises(RequestRefused, match=why):
            rig.fencer.fence(node, level)
    rig.fencer.fence("n1", "reservation")


def test_an_agent_that_cannot_be_counted_on_is_a_problem_before_it_is_needed(rig: Rig) -> None:
    async def missing(agent: Agent) -> str:
        return f"{agent.agent} is not there"

    async def well(agent: Agent) -> str:
        return ""

    rig.loop.run_until_complete(rig.fencer.inspect(missing))
    assert rig.fencer.problems() == ["fence agent of n1, on this node: fence_lab is not there"]
    rig.loop.run_until_complete(rig.fencer.inspect(well))
    assert rig.fencer.problems() == []


def test_the_placement_hears_of_it(rig: Rig) -> None:
    from .test_placement import facts

    rig.see(Seen())
    seen = rig.fencer.facts(facts(n1=NodeFacts(alive=False, barred=True), n2=NodeFacts(alive=True)))
    assert seen.nodes["n1"].proof.stopped_by is Level.POWER
    assert (seen.levels, seen.distrust) == ((Level.RESERVATION, Level.POWER), frozenset({"v1"}))
    assert "power off" in rig.fencer.words(seen)["n1"] and "n2" not in rig.fencer.words(seen)
    rig.fencer.config = replace(CONFIG, distrust=())
    assert not rig.fencer.facts(seen).distrust
