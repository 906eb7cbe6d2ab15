"""Facts from views and reports, and the leader's word from facts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from hactl.errors import RequestRefused
from hactl.fencer import Fencer
from hactl.leader import Leader
from hactl.members import LinkSeen, Members, NodeSeen
from hactl.messages import Assign, Report, Request
from hactl.placement import Facts
from nodewatch.sections import Agent, Fencing
from tests.hactl.test_placement import SERVED, facts, gone, node


@dataclass(frozen=True, kw_only=True)
class Seen:
    state: str = "alive"
    generation: int = 7
    heard_ms_ago: int | None = 100
    daemon: str = "ok"
    barred: bool = False
    confirmed: bool = False
    safe_in_ms: int | None = None
    links: tuple[LinkSeen, ...] = ()


REPORT = Report(boot="b", term=3, standby=False)


def joined(members: Members, seen: Seen, *, seen_ms: int = 1000, now_ms: int = 1000) -> object:
    return members.facts({"n1": seen}, term=1, seen_ms=seen_ms, now_ms=now_ms, now_unix_ms=50_000).nodes["n1"]


def test_a_report_of_an_earlier_boot_of_a_node_does_not_count() -> None:
    members = Members(me="n2", overdue_ms=800)
    members.reported("n1", 7, REPORT)
    assert joined(members, Seen()).report == REPORT  # type: ignore[attr-defined]
    assert joined(members, Seen(generation=8)).report is None  # type: ignore[attr-defined]


def test_a_report_of_an_older_term_does_not_count() -> None:
    """Its sender may have taken an older leader's word since: what it holds now is not known."""
    members = Members(me="n2", overdue_ms=800)
    members.reported("n1", 7, replace(REPORT, term=3))
    nodes: dict[str, NodeSeen] = {"n1": Seen()}
    for term, counts in ((3, True), (4, False)):
        seen = members.facts(nodes, term=term, seen_ms=0, now_ms=0, now_unix_ms=0)
        assert (seen.nodes["n1"].report is not None) == counts
    members.reported("n1", 7, replace(REPORT, term=4))
    assert members.facts(nodes, term=4, seen_ms=0, now_ms=0, now_unix_ms=0).nodes["n1"].report is not None


def plain_fencer() -> Fencer:
    """Reservations only: no agent is ever run."""

    async def never(agent: Agent) -> str:
        raise AssertionError(agent)

    return Fencer(
        config=Fencing(),
        reset_after_ms=None,
        switch=never,
        switch_on=never,
        now_ms=lambda: 0,
        log=print,
        changed=lambda: None,
    )


def test_a_leader_that_began_again_builds_only_on_reports_that_know_it() -> None:
    """Found by the simulation: a restarted hactld of the leader numbered its orders from 1 again, and nodes that had
    heard number 2 of its earlier life ignored them until the next term."""
    members = Members(me="n2", overdue_ms=800)
    members.reported("n1", 7, REPORT)
    nodes: dict[str, NodeSeen] = {"n1": Seen()}

    def known(base: int) -> Facts:
        return members.facts(nodes, term=3, base=base, seen_ms=0, now_ms=0, now_unix_ms=0)

    assert known(0).nodes["n1"].report is not None
    assert known(5000).nodes["n1"].report is None
    members.reported("n1", 7, replace(REPORT, base=5000))
    assert known(5000).nodes["n1"].report is not None

    told: list[Assign] = []
    leader = Leader(bar=print, lift=print, tell=told.append, log=lambda text: None, fencer=plain_fencer())
    leader.decide(replace(known(5000), nodes={}))
    assert [assign.base for assign in told] == [5000], "told at once, though there is no word yet"
    leader.decide(replace(facts(**SERVED), base=5000))
    assert told[-1].volumes and all(word.order.number > 5000 for word in told[-1].volumes.values())


def test_a_report_tells_whether_it_says_anything_new() -> None:
    members = Members(me="n2", overdue_ms=800)
    assert members.reported("n1", 7, REPORT)
    assert not members.reported("n1", 7, REPORT)
    assert members.reported("n1", 7, replace(REPORT, standby=True))
    assert members.reported("n1", 8, replace(REPORT, standby=True))


def test_the_wait_for_an_old_lease_counts_from_when_the_view_came_in() -> None:
    members = Members(me="n2", overdue_ms=800)
    barred = Seen(state="overdue", barred=True, confirmed=True, safe_in_ms=900)
    assert joined(members, barred, now_ms=1000).safe_in_ms == 900  # type: ignore[attr-defined]
    assert joined(members, barred, now_ms=1300).safe_in_ms == 600  # type: ignore[attr-defined]
    assert joined(members, barred, now_ms=9000).safe_in_ms == 0  # type: ignore[attr-defined]


def test_a_silence_is_dated_by_what_nodewatch_heard_and_never_lies_in_the_future() -> None:
    members = Members(me="n2", overdue_ms=800)
    joined(members, Seen(heard_ms_ago=150))
    silent = joined(members, Seen(state="overdue", heard_ms_ago=803))
    assert (silent.heard_unix_ms, silent.overdue_unix_ms) == (49_197, 49_997)  # type: ignore[attr-defined]
    back = joined(members, Seen(state="alive", heard_ms_ago=20, barred=True), now_ms=5000)
    assert (back.heard_unix_ms, back.overdue_unix_ms) == (49_197, 49_997), "its bar stands: that silence is not over"  # type: ignore[attr-defined]
    let_in = joined(members, Seen(state="alive", heard_ms_ago=20), now_ms=5000)
    assert let_in.overdue_unix_ms == 0  # type: ignore[attr-defined]
    goodbye = Members(me="n2", overdue_ms=800)
    left = joined(goodbye, Seen(state="overdue", heard_ms_ago=5))
    assert (left.heard_unix_ms, left.overdue_unix_ms) == (49_995, 50_000)  # type: ignore[attr-defined]


def test_a_bar_without_a_known_end_of_the_lease_is_not_confirmed() -> None:
    members = Members(me="n2", overdue_ms=800)
    assert not joined(members, Seen(barred=True, confirmed=True)).confirmed  # type: ignore[attr-defined]


@dataclass
class Rig:
    told: list[Assign] = field(default_factory=list)
    barred: list[str] = field(default_factory=list)
    lifted: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def leader(self) -> Leader:
        return Leader(
            bar=self.barred.append,
            lift=self.lifted.append,
            tell=self.told.append,
            log=self.log.append,
            fencer=plain_fencer(),
        )


def test_the_word_is_told_when_it_changes_and_when_asked_to_repeat() -> None:
    rig = Rig()
    leader = rig.leader()
    leader.decide(facts(**SERVED))
    leader.decide(facts(**SERVED))
    assert len(rig.told) == 1
    leader.decide(facts(**SERVED), tell_anyway=True)
    assert len(rig.told) == 2
    leader.decide(facts(n1=gone(), n2=node(), n3=node()))
    assert rig.told[-1].volumes["v1"].node == "n2"


def test_who_is_kept_out_passes_to_the_next_leader() -> None:
    rig = Rig()
    leader = rig.leader()
    leader.heard(Assign(term=2, kept_out=("n1",)))
    leader.decide(facts(**SERVED))
    assert rig.barred == ["n1"]
    assert rig.told[-1].kept_out == ("n1",)


def test_a_command_changes_the_word_at_once_and_a_wrong_one_changes_nothing() -> None:
    rig = Rig()
    leader = rig.leader()
    leader.decide(facts(**SERVED))
    answer = leader.request(Request(ident="i", verb="move", args={"volume": "v1", "node": "n3"}), facts(**SERVED))
    assert answer == {"target": "n3"}
    assert rig.told[-1].volumes["v1"].node == ""
    for verb, args in (("move", {"volume": "v9"}), ("explode", {}), ("fence", {"node": "n9"})):
        before = leader.plan
        with pytest.raises(RequestRefused):
            leader.request(Request(ident="i", verb=verb, args=args), facts(**SERVED))
        assert leader.plan == before


def test_a_node_that_leads_no_more_takes_no_commands() -> None:
    leader = Rig().leader()
    with pytest.raises(RequestRefused):
        leader.request(Request(ident="i", verb="move", args={"volume": "v1"}), facts(**SERVED))
