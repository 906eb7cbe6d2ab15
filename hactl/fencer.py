"""What the leader knows of the nodes that a majority barred, beyond the bar: is their power off, were they reset?

Keeps one `Case` for each barred node and starts its agent when the placement or an administrator asks for it;
`levels.py` has the rules. Everything that touches the world is given. A case ends with the bar. Proofs are not handed
on to the next leader: it asks the agent again, and waits for the watchdog anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from hactl.errors import RequestRefused
from hactl.levels import RETRY_MS, Level, Power, Proof, words
from hactl.placement import Facts, NodeFacts
from nodewatch.sections import Agent, Fencing

GONE_MS = 5000
"""Who is still heard so long after its agent said "off" was not switched off."""


class NodeSeen(Protocol):
    """What is used of one node in nodewatch's view. Times in milliseconds."""

    @property
    def state(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def barred(self) -> bool: ...
    @property
    def confirmed(self) -> bool: ...
    @property
    def safe_in_ms(self) -> int | None: ...


@dataclass(slots=True)
class Case:
    """`lease_over_ms`: when its last lease must have ended, on this node's clock; each telling is safe, so the earliest
    counts. `generation`: the newest life of the node that was heard; `lived`: the one against which the agent was run.
    """

    lease_over_ms: int
    power: Power = Power.UNTRIED
    tries: int = 0
    ended_ms: int = 0
    text: str = ""
    generation: int = 0
    lived: int = 0
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Fencer:
    """`switch` runs an agent until the power is read back as off, or raises; `switch_on` likewise. `reset_after_ms`:
    None = the watchdog is no level."""

    config: Fencing
    reset_after_ms: int | None
    switch: Callable[[Agent], Awaitable[str]]
    switch_on: Callable[[Agent], Awaitable[str]]
    now_ms: Callable[[], int]
    log: Callable[[str], None]
    changed: Callable[[], None]
    cases: dict[str, Case] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    """Node -> why its agent cannot be counted on from here, as last looked at."""
    _wanted: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def order(self) -> tuple[Level, ...]:
        return tuple(Level(level) for level in self.config.levels)

    def observe(self, nodes: Mapping[str, NodeSeen], seen_ms: int) -> None:
        """A view of nodewatch, from which `seen_ms` is: waits count from it."""
        for name, node in nodes.items():
            if not node.barred:
                self._close(name)
            elif node.confirmed and node.safe_in_ms is not None:
                over_ms = seen_ms + node.safe_in_ms
                case = self.cases.setdefault(name, Case(lease_over_ms=over_ms))
                case.lease_over_ms = min(case.lease_over_ms, over_ms)
                case.generation = max(case.generation, node.generation)
                self._doubt(name, case)
                if name in self._wanted:
                    self._start(name, case)

    def _close(self, name: str) -> None:
        case = self.cases.pop(name, None)
        if case is not None and case.task is not None:
            case.task.cancel()

    def _doubt(self, name: str, case: Case) -> None:
        """Off, and heard in another life: it was switched on again."""
        if case.power is Power.OFF and case.generation > case.lived:
            case.power, case.text = Power.UNTRIED, ""
            self.log(f"fencing: {name} has power again")

    def demand(self, names: Iterable[str]) -> None:
        """The placement wants these nodes off. Nothing happens to one whose bar is not confirmed (L5)."""
        for name in names:
            if name in self.cases:
                self._start(name, self.cases[name])

    def fence(self, name: str, level: str) -> None:
        """An administrator wants this node fenced by a level ("": by the configured ones, as needed). Its agent is run
        as soon as its bar is confirmed. Raises RequestRefused."""
        if level == Level.POWER:
            self._agent(name)
            self._wanted.add(name)
        elif level == Level.WATCHDOG and self.reset_after_ms is None:
            raise RequestRefused('"watchdog" is none of [fencing] levels, so no node must reset itself')
        elif level not in ("", *Level):
            raise RequestRefused(f"there is no level {level!r}; there are {', '.join(Level)}")

    def let_in(self, name: str, *, power_on: bool = False) -> None:
        """No longer wanted off; with `power_on`, its agent is told to switch it on. Raises RequestRefused."""
        agent = self._agent(name) if power_on else None
        self._wanted.discard(name)
        if agent is not None:
            task = asyncio.get_running_loop().create_task(self._switch_on(name, agent))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _switch_on(self, name: str, agent: Agent) -> None:
        try:
            said = await self.switch_on(agent)
        except Exception as failed:
            said = f"not known to be on: {failed}"
        self.log(f"fencing: node={name} {said}")

    def _agent(self, name: str) -> Agent:
        agent = self.config.agent(name)
        if agent is None:
            raise RequestRefused(f"{name} has no [[fencing.agent]] in hactl.toml, so its power cannot be switched")
        return agent

    def _start(self, name: str, case: Case) -> None:
        due = case.power is Power.UNTRIED or (case.power is Power.FAILED and self.now_ms() - case.ended_ms >= RETRY_MS)
        agent = self.config.agent(name)
        if agent is None or not due:
            return
        self.log(f"fencing: node={name} level=power agent={agent.agent} begun")
        case.power, case.lived = Power.RUNNING, case.generation
        case.task = asyncio.get_running_loop().create_task(self._run(name, case, agent))

    async def _run(self, name: str, case: Case, agent: Agent) -> None:
        began_ms = self.now_ms()
        try:
            case.text = await self.switch(agent)
            case.power = Power.OFF
        except Exception as failed:  # whatever it was: nothing is proved
            case.text, case.power = str(failed) or repr(failed), Power.FAILED
            case.tries += 1
        case.ended_ms = self.now_ms()
        self.log(f"fencing: node={name} level=power {case.power} after {case.ended_ms - began_ms} ms: {case.text}")
        self.changed()

    async def inspect(self, unfit: Callable[[Agent], Awaitable[str]]) -> None:
        """Look at every agent before it is needed: is it here, does it switch power, can its secret be read?"""
        for agent in self.config.agents:
            why = await unfit(agent)
            if why and why != self.unfit.get(agent.node):
                self.log(f"fencing: agent of {agent.node}: {why}")
            self.unfit[agent.node] = why

    def problems(self) -> list[str]:
        return [f"fence agent of {name}, on this node: {why}" for name, why in sorted(self.unfit.items()) if why]

    def proof(self, name: str, *, alive: bool) -> Proof:
        """Of a node in no case: none. One that is still heard is not off, whatever its agent says."""
        case = self.cases.get(name)
        if case is None:
            return Proof()
        off_but_heard = case.power is Power.OFF and alive
        wrong_host = off_but_heard and self.now_ms() - case.ended_ms >= GONE_MS
        reset_at_ms = None if self.reset_after_ms is None else case.lease_over_ms + self.reset_after_ms
        return Proof(
            power=Power.FAILED if wrong_host else Power.RUNNING if off_but_heard else case.power,
            tries=case.tries + wrong_host,
            retry_in_ms=max(0, case.ended_ms + RETRY_MS - self.now_ms()) if case.power is Power.FAILED else 0,
            text="its agent says off, and it is still heard: is that another host?" if off_but_heard else case.text,
            reset_in_ms=None if reset_at_ms is None else max(0, reset_at_ms - self.now_ms()),
        )

    def facts(self, facts: Facts) -> Facts:
        """The same, with what is proved of each node."""

        def proved(name: str, node: NodeFacts) -> NodeFacts:
            return replace(node, proof=self.proof(name, alive=node.alive)) if name in self.cases else node

        return replace(
            facts,
            levels=self.order,
            distrust=frozenset(self.config.distrust),
            nodes={name: proved(name, node) for name, node in facts.nodes.items()},
        )

    def words(self, facts: Facts) -> dict[str, str]:
        """For `hactl status`: what is known of each barred node."""
        return {name: words(node.proof) for name, node in facts.nodes.items() if name in self.cases}

    def close(self) -> None:
        for name in list(self.cases):
            self._close(name)
