"""What this node knows of the others: nodewatch's view joined with the reports of their hactlds.

Turns both into the `Facts` that the placement decides on. A report counts while two things last: the generation of
the node (one boot of its nodewatch), for a node that came back is unknown until it reported anew; and the term (and
base) in which it was made, for a node of an older one may still follow an older leader's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hactl.messages import Report
from hactl.placement import Facts, NodeFacts


class LinkSeen(Protocol):
    """What is used of one link towards a node: does it say that it hears us there?"""

    @property
    def hears_us(self) -> bool | None: ...


class NodeSeen(Protocol):
    """One node in nodewatch's view (`nodewatch.view.NodeView`). Times in milliseconds."""

    @property
    def state(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def heard_ms_ago(self) -> int | None: ...
    @property
    def daemon(self) -> str: ...
    @property
    def barred(self) -> bool: ...
    @property
    def confirmed(self) -> bool: ...
    @property
    def safe_in_ms(self) -> int | None: ...
    @property
    def links(self) -> Sequence[LinkSeen]: ...


@dataclass(slots=True)
class _Known:
    generation: int
    report: Report


@dataclass(slots=True)
class Members:
    """The reports, by node, and when each node was first seen overdue (for the timeline)."""

    me: str
    overdue_ms: int
    _reports: dict[str, _Known] = field(default_factory=dict)
    _heard_unix_ms: dict[str, int] = field(default_factory=dict)
    _overdue_unix_ms: dict[str, int] = field(default_factory=dict)
    _deaf_since_ms: dict[str, int] = field(default_factory=dict)

    def reported(self, node: str, generation: int, report: Report) -> bool:
        """Take a report in; True if it says anything new."""
        before = self._reports.get(node)
        self._reports[node] = _Known(generation=generation, report=report)
        return before is None or before.report != report or before.generation != generation

    def facts(
        self, nodes: dict[str, NodeSeen], *, term: int, seen_ms: int, now_ms: int, now_unix_ms: int, base: int = 0
    ) -> Facts:
        """The placement's view. `seen_ms` is when (monotonic) the nodewatch view came in: waits count from it."""
        follows, age_ms = (term, base), now_ms - seen_ms
        return Facts(
            me=self.me,
            term=term,
            base=base,
            now_ms=now_ms,
            now_unix_ms=now_unix_ms,
            nodes={
                name: self._node(name, node, follows, age_ms, now_unix_ms, self._deaf(name, node, now_ms))
                for name, node in nodes.items()
            },
        )

    def _deaf(self, name: str, node: NodeSeen, now_ms: int) -> bool:
        """Does it say, and has it said for `overdue_ms`, that it hears us on no link? Just after a cut is healed a
        node says so for one more heartbeat."""
        if node.state != "alive" or not node.links or any(link.hears_us is not False for link in node.links):
            self._deaf_since_ms.pop(name, None)
            return False
        return now_ms - self._deaf_since_ms.setdefault(name, now_ms) >= self.overdue_ms

    def _node(
        self, name: str, node: NodeSeen, follows: tuple[int, int], age_ms: int, now_unix_ms: int, deaf: bool
    ) -> NodeFacts:
        alive = node.state == "alive"
        known = self._reports.get(name)
        current = (
            known is not None
            and (known.report.term, known.report.base) >= follows
            and (name == self.me or known.generation == node.generation)
        )
        self._note_silence(name, node, alive, age_ms, now_unix_ms)
        return NodeFacts(
            alive=alive,
            barred=node.barred,
            confirmed=node.confirmed and node.safe_in_ms is not None,
            safe_in_ms=max(0, (node.safe_in_ms or 0) - age_ms) if node.confirmed else 0,
            daemon=node.daemon,
            deaf=deaf,
            report=known.report if known is not None and current else None,
            heard_unix_ms=self._heard_unix_ms.get(name, 0),
            overdue_unix_ms=self._overdue_unix_ms.get(name, 0),
        )

    def _note_silence(self, name: str, node: NodeSeen, alive: bool, age_ms: int, now_unix_ms: int) -> None:
        if alive and node.barred and name in self._overdue_unix_ms:
            return  # back, and what was begun when it fell silent is not over
        if alive:
            self._overdue_unix_ms.pop(name, None)
        if node.heard_ms_ago is None:
            return
        heard = now_unix_ms - age_ms - node.heard_ms_ago
        if alive:
            self._heard_unix_ms[name] = heard
        elif name not in self._overdue_unix_ms:
            self._heard_unix_ms[name] = heard
            self._overdue_unix_ms[name] = min(heard + self.overdue_ms, now_unix_ms - age_ms)
