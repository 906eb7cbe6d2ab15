"""The leader's part of hactld: runs the placement on every change and keeps telling its word.

Holds the `Plan`; everything else is given. Not leading, it only remembers whom an administrator keeps out, so that
the next leader goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hactl import placement
from hactl.errors import RequestRefused
from hactl.fencer import Fencer
from hactl.levels import Level
from hactl.messages import Assign, Assignment, Request
from hactl.placement import Facts, Plan


@dataclass(slots=True)
class Leader:
    """`bar` and `lift` go to nodewatch; `tell` sends the table to every node, this one included."""

    bar: Callable[[str], None]
    lift: Callable[[str], None]
    tell: Callable[[Assign], None]
    log: Callable[[str], None]
    fencer: Fencer
    plan: Plan | None = None
    blocked: dict[str, str] = field(default_factory=dict)
    kept_out: frozenset[str] = frozenset()
    _told: dict[str, Assignment] = field(default_factory=dict)
    _fenced: dict[str, str] = field(default_factory=dict)

    def heard(self, assign: Assign) -> None:
        """Another leader's table: follow its list of nodes that are kept out."""
        self.kept_out = frozenset(assign.kept_out)

    def step_down(self) -> None:
        self.plan = None
        self.fencer.close()
        self.blocked = {}
        self._told = {}

    def decide(self, facts: Facts, *, tell_anyway: bool = False) -> None:
        """Run the placement once. Tells the table when it changed, or when `tell_anyway` (once a second)."""
        before = self.plan
        plan = before if before is not None else placement.begin(facts.term, facts, self.kept_out)
        decision = placement.decide(plan, facts)
        self.plan = decision.plan
        self.kept_out = decision.plan.kept_out
        self._say_blocked(dict(decision.blocked))
        for name in decision.bars:
            self.bar(name)
        for name in decision.lifts:
            self.log(f"leader: {name} is back and gave up what others took; it is let in again")
            self.lift(name)
        self.fencer.demand(decision.plan.power)
        assign = replace(decision.assign(), fenced=self.fencer.words(facts))
        begun_again = before is None and facts.base > 0  # nobody counts before it heard of this
        if tell_anyway or begun_again or assign.volumes != self._told or assign.fenced != self._fenced:
            self._log_changes(assign)
            self.tell(assign)

    def _say_blocked(self, blocked: dict[str, str]) -> None:
        for volume, why in blocked.items():
            if self.blocked.get(volume) != why:
                self.log(f"leader: volume={volume} not assigned: {why}")
        self.blocked = blocked

    def _log_changes(self, assign: Assign) -> None:
        for volume, word in assign.volumes.items():
            if self._told.get(volume) != word:
                self.log(
                    f"leader: volume={volume} term={word.order.term} number={word.order.number} "
                    f"node={word.node or '-'} cause={word.cause!r} wait_ms={word.wait_ms}"
                )
        self._told, self._fenced = dict(assign.volumes), assign.fenced

    def request(self, request: Request, facts: Facts) -> dict[str, str]:
        """Carry out an administrator's command; the new table follows at once. Raises RequestRefused."""
        if self.plan is None:
            raise RequestRefused("this node has just become the leader and is still looking; try again")
        self._switch_power(request)
        changed = _apply(self.plan, request, facts)
        if isinstance(changed, str):
            raise RequestRefused(changed)
        self.plan = changed
        self.log(f"leader: command {request.verb} {request.args}")
        self.decide(facts, tell_anyway=True)
        volume = request.args.get("volume", "")
        return {"target": self.plan.prefer.get(volume, "")}

    def _switch_power(self, request: Request) -> None:
        """What `fence` and `unfence` ask beyond the bar. Raises RequestRefused, before anything is done."""
        node, level = request.args.get("node", ""), request.args.get("level", "")
        if request.verb == "fence":
            self.fencer.fence(node, level)
        elif request.verb == "unfence":
            self.fencer.let_in(node, power_on=level == Level.POWER)


def _apply(plan: Plan, request: Request, facts: Facts) -> Plan | str:
    args = request.args
    match request.verb:
        case "move":
            cause = args.get("cause", "planned move")
            return placement.move(plan, args.get("volume", ""), args.get("node", ""), facts, cause=cause)
        case "start" | "stop":
            wanted = "started" if request.verb == "start" else "stopped"
            return placement.want(plan, args.get("volume", ""), wanted, facts)
        case "fence" | "unfence":
            return placement.keep_out(plan, args.get("node", ""), request.verb == "fence", facts)
        case _:
            return f"the leader knows no command {request.verb!r}: are all nodes of one version?"
