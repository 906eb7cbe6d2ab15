"""Who gets the leader's word: never while another may serve, and always somebody who can take it."""

from __future__ import annotations

from dataclasses import replace

from hactl import placement
from hactl.messages import ORDER_NONE, Order, Report, VolumeReport
from hactl.placement import Decision, Facts, NodeFacts, Plan


def volume(phase: str = "standby", **more: object) -> VolumeReport:
    plain = VolumeReport(
        phase=phase,
        holding=phase != "standby",
        ready=True,
        why="",
        order=ORDER_NONE,
        epoch=4,
        owner="n1",
        wanted="started",
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def node(report: VolumeReport | None = None, **more: object) -> NodeFacts:
    told = Report(boot="b", term=3, standby=False, volumes={"v1": report or volume()})
    return replace(NodeFacts(alive=True, report=told), **more)  # type: ignore[arg-type]


def gone(safe_in_ms: int = 900, *, confirmed: bool = True) -> NodeFacts:
    return NodeFacts(alive=False, barred=True, confirmed=confirmed, safe_in_ms=safe_in_ms, heard_unix_ms=10)


def facts(now_ms: int = 100_000, term: int = 3, **nodes: NodeFacts) -> Facts:
    return Facts(me="n2", term=term, now_ms=now_ms, now_unix_ms=now_ms, nodes=nodes)


def decide(seen: Facts, plan: Plan | None = None) -> Decision:
    return placement.decide(plan if plan is not None else placement.begin(seen.term, seen, frozenset()), seen)


SERVED = {"n1": node(volume("serving")), "n2": node(), "n3": node()}


def test_a_new_leader_leaves_a_serving_volume_where_it_is() -> None:
    decision = decide(facts(**SERVED))
    assert decision.plan.table["v1"].node == "n1"
    assert (decision.bars, decision.lifts, decision.blocked) == ((), (), {})


def test_the_same_facts_give_the_same_table() -> None:
    seen = facts(**SERVED)
    first = decide(seen)
    assert decide(seen, first.plan).plan == first.plan


def test_a_silent_owner_that_is_not_barred_by_a_majority_keeps_the_word() -> None:
    plan = decide(facts(**SERVED)).plan
    silent = NodeFacts(alive=False, report=SERVED["n1"].report)
    for owner in (silent, replace(silent, barred=True)):
        assert decide(facts(n1=owner, n2=node(), n3=node()), plan).plan.table["v1"].node == "n1"


def test_a_barred_owner_is_replaced_and_its_lease_waited_out() -> None:
    plan = decide(facts(**SERVED)).plan
    word = decide(facts(n1=gone(900), n2=node(), n3=node()), plan).plan.table["v1"]
    assert (word.node, word.source, word.wait_ms, word.cause) == ("n2", "n1", 900, "n1 is overdue and barred")
    assert word.order > plan.table["v1"].order


def test_a_node_that_is_not_ready_is_never_chosen() -> None:
    plan = decide(facts(**SERVED)).plan
    seen = facts(n1=gone(), n2=node(volume(ready=False, why="no PR OUT")), n3=node())
    assert decide(seen, plan).plan.table["v1"].node == "n3"


def test_without_a_ready_node_the_reason_is_told() -> None:
    plan = decide(facts(**SERVED)).plan
    unready = node(volume(ready=False, why="no PR OUT"))
    decision = decide(facts(n1=gone(), n2=unready, n3=unready), plan)
    assert decision.blocked == {"v1": "no node is ready to take it"}


def test_nobody_is_sent_in_while_a_third_node_may_serve() -> None:
    for third in (
        NodeFacts(alive=True),  # heard, but its hactld has not reported
        NodeFacts(alive=False),  # overdue, and not barred
        NodeFacts(alive=False, barred=True),  # barred, but by no majority
    ):
        decision = decide(facts(n1=node(volume(owner="n3")), n2=node(), n3=third))
        assert "v1" not in decision.plan.table
        assert "n3" in decision.blocked["v1"]


def test_after_a_power_failure_the_last_owner_is_asked_first() -> None:
    seen = facts(**{name: node(volume(owner="n3")) for name in ("n1", "n2", "n3")})
    assert decide(seen).plan.table["v1"].node == "n3"


def test_the_volumes_own_list_says_who_may_take_it() -> None:
    report = volume(nodes=("n3", "n2"), owner="")
    assert decide(facts(n1=node(report), n2=node(report), n3=node(report))).plan.table["v1"].node == "n3"


def test_a_node_that_failed_is_followed_by_the_next() -> None:
    seen = facts(n1=gone(), n2=node(), n3=node())
    plan = decide(seen).plan
    failed = node(volume(failed=plan.table["v1"].order))
    word = decide(facts(n1=gone(), n2=failed, n3=node()), plan).plan.table["v1"]
    assert word.node == "n3"


def test_when_all_failed_they_are_tried_again_after_a_while_not_at_once() -> None:
    plan = decide(facts(n1=gone(), n2=node(), n3=gone())).plan
    failed = node(volume(failed=plan.table["v1"].order))
    first = decide(facts(n1=gone(), n2=failed, n3=gone()), plan)
    assert "failed" in first.blocked["v1"]
    later = facts(100_000 + placement.RETRY_MS, n1=gone(), n2=failed, n3=gone())
    again = decide(later, first.plan)
    assert again.plan.table["v1"].node == "n2"
    assert again.plan.table["v1"].order > plan.table["v1"].order


def test_a_planned_move_waits_until_the_holder_has_left() -> None:
    seen = facts(**SERVED)
    moved = placement.move(decide(seen).plan, "v1", "n3", seen)
    assert isinstance(moved, Plan)
    leaving = decide(facts(n1=node(volume("leaving")), n2=node(), n3=node()), moved)
    assert (leaving.plan.table["v1"].node, leaving.blocked) == ("", {"v1": "waiting for n1 to leave"})
    left = decide(facts(n1=node(), n2=node(), n3=node()), leaving.plan)
    assert (left.plan.table["v1"].node, left.plan.table["v1"].wait_ms) == ("n3", 0)
    assert left.plan.table["v1"].cause == "planned move"


def test_a_move_to_a_node_that_could_not_serve_is_refused() -> None:
    seen = facts(n1=node(volume("serving")), n2=node(volume(ready=False, why="x")), n3=gone())
    plan = decide(seen).plan
    for target in ("n2", "n3", "n9", ""):
        assert "not ready" in str(placement.move(plan, "v1", target, seen))
    assert "already" in str(placement.move(plan, "v1", "n1", seen))
    assert "no node knows" in str(placement.move(plan, "v9", "n1", seen))


def test_a_target_that_dies_during_a_move_is_replaced_by_the_old_holder() -> None:
    seen = facts(**SERVED)
    moved = placement.move(decide(seen).plan, "v1", "n3", seen)
    assert isinstance(moved, Plan)
    plan = decide(facts(n1=node(volume("leaving")), n2=node(), n3=node()), moved).plan
    assert decide(facts(n1=node(), n2=node(), n3=gone(0)), plan).plan.table["v1"].node == "n1"


def test_a_stopped_volume_is_given_to_nobody_until_it_is_started() -> None:
    seen = facts(**SERVED)
    plan = placement.want(decide(seen).plan, "v1", "stopped", seen)
    assert isinstance(plan, Plan)
    word = decide(seen, plan).plan.table["v1"]
    assert (word.node, word.stop) == ("", True)
    idle = facts(**{name: node(volume(wanted="stopped")) for name in ("n1", "n2", "n3")})
    stopped = decide(idle, plan)
    assert stopped.plan.table["v1"].node == ""
    assert decide(idle).plan.table["v1"].node == ""  # a new leader reads it off the label
    started = placement.want(stopped.plan, "v1", "started", idle)
    assert isinstance(started, Plan)
    assert decide(idle, started).plan.table["v1"].node == "n1"


def test_a_node_kept_out_is_barred_by_force_and_stays_out() -> None:
    seen = facts(**SERVED)
    plan = placement.keep_out(decide(seen).plan, "n1", True, seen)
    assert isinstance(plan, Plan)
    assert decide(seen, plan).bars == ("n1",)
    barred = replace(node(volume("suspended")), barred=True, confirmed=True, safe_in_ms=500)
    taken = decide(facts(n1=barred, n2=node(), n3=node()), plan)
    assert taken.plan.table["v1"].node == "n2"
    left = facts(n1=replace(node(), barred=True, confirmed=True), n2=node(volume("serving")), n3=node())
    assert decide(left, taken.plan).lifts == ()
    let_in = placement.keep_out(taken.plan, "n1", False, left)
    assert isinstance(let_in, Plan)
    assert decide(left, let_in).lifts == ("n1",)


def test_a_barred_node_is_let_in_only_after_it_gave_up_what_others_took() -> None:
    plan = decide(facts(n1=gone(), n2=node(), n3=node()), decide(facts(**SERVED)).plan).plan
    back = replace(node(volume("suspended")), barred=True, confirmed=True)
    assert decide(facts(n1=back, n2=node(volume("serving")), n3=node()), plan).lifts == ()
    clean = replace(node(), barred=True, confirmed=True)
    assert decide(facts(n1=clean, n2=node(volume("serving")), n3=node()), plan).lifts == ("n1",)


def test_a_node_with_a_silent_disk_is_not_let_in_and_barred_in_turn_while_nobody_can_take_over() -> None:
    """Found by the simulation: a thousand bars and lifts in a second."""
    plan = decide(facts(**SERVED)).plan
    order = plan.table["v1"].order
    silent = node(volume("suspended", order=order, failed=order))
    unready = node(volume(ready=False, why="its disk does not answer"))
    assert decide(facts(n1=silent, n2=unready, n3=unready), plan).bars == ("n1",)
    barred = replace(silent, barred=True, confirmed=True)
    assert decide(facts(n1=barred, n2=unready, n3=unready), plan).lifts == ()
    answers = replace(node(volume("suspended", order=order)), barred=True, confirmed=True)
    assert decide(facts(n1=answers, n2=unready, n3=unready), plan).lifts == ("n1",)


def test_an_owner_whose_daemon_hangs_is_barred_though_its_host_is_heard() -> None:
    plan = decide(facts(**SERVED)).plan
    hung = replace(SERVED["n1"], daemon="hung")
    assert decide(facts(n1=hung, n2=node(), n3=node()), plan).bars == ("n1",)
    restarting = replace(SERVED["n1"], daemon="gone")
    assert decide(facts(n1=restarting, n2=node(), n3=node()), plan).bars == ()


def test_a_node_whose_daemon_never_reports_is_barred_after_a_while() -> None:
    mute = NodeFacts(alive=True, daemon="absent")
    first = decide(facts(n1=mute, n2=node(), n3=node()))
    assert first.bars == ()
    later = facts(100_000 + placement.RETRY_MS, n1=mute, n2=node(), n3=node())
    assert decide(later, first.plan).bars == ("n1",)


def test_a_daemon_that_hangs_is_barred_at_once_though_it_never_reported_to_this_leader() -> None:
    assert decide(facts(n1=NodeFacts(alive=True, daemon="hung"), n2=node(), n3=node())).bars == ("n1",)


def test_a_new_term_keeps_a_taker_that_is_on_its_way() -> None:
    taking = node(volume("mounting", order=Order(term=3, number=2)))
    old = node(volume("suspended", order=Order(term=3, number=1)))
    seen = facts(term=4, n1=replace(old, barred=True, confirmed=True), n2=taking, n3=node())
    word = decide(seen).plan.table["v1"]
    assert (word.node, word.order) == ("n2", Order(term=4, number=1))


def test_an_owner_that_lost_sight_of_the_disk_is_replaced() -> None:
    plan = decide(facts(**SERVED)).plan
    blind = NodeFacts(alive=True, report=Report(boot="b", term=3, standby=False))
    assert decide(facts(n1=blind, n2=node(), n3=node()), plan).plan.table["v1"].node == "n2"


def test_an_owner_whose_disk_does_not_answer_for_long_is_barred_and_replaced() -> None:
    plan = decide(facts(**SERVED)).plan
    order = plan.table["v1"].order
    doubting = node(volume("suspended", order=order))
    assert decide(facts(n1=doubting, n2=node(), n3=node()), plan).bars == ()
    gave_up = node(volume("suspended", order=order, failed=order))
    decision = decide(facts(n1=gave_up, n2=node(), n3=node()), plan)
    assert decision.bars == ("n1",)
    barred = replace(gave_up, barred=True, confirmed=True)
    assert decide(facts(n1=barred, n2=node(), n3=node()), decision.plan).plan.table["v1"].node == "n2"


def test_a_node_that_is_heard_but_hears_nobody_is_barred_at_once_even_without_a_report() -> None:
    deaf = NodeFacts(alive=True, deaf=True)
    decision = decide(facts(n1=deaf, n2=node(), n3=node()))
    assert decision.bars == ("n1",)
    assert "v1" in decision.blocked
    barred = replace(deaf, barred=True, confirmed=True, safe_in_ms=700, heard_unix_ms=10)
    before = decide(facts(**SERVED)).plan
    decision = decide(facts(n1=barred, n2=node(), n3=node()), before)
    word = decision.plan.table["v1"]
    assert (word.node, word.wait_ms, word.cause) == ("n2", 700, "n1 hears nobody and is barred")


def standing_by(report: VolumeReport) -> NodeFacts:
    return replace(node(report), report=Report(boot="b", term=3, standby=True, volumes={"v1": report}))


def test_a_node_on_standby_lets_its_volume_go_and_another_gets_it() -> None:
    plan = decide(facts(**SERVED)).plan
    leaving = {**SERVED, "n1": standing_by(volume("serving"))}
    decision = decide(facts(**leaving), plan)
    word = decision.plan.table["v1"]
    assert (word.node, word.source, word.stop, word.cause) == ("", "n1", False, "n1 is on standby")
    assert decide(facts(**leaving), decision.plan).plan.table["v1"] == word
    left = {**SERVED, "n1": standing_by(volume())}
    assert decide(facts(**left), decision.plan).plan.table["v1"].node == "n2"


def test_a_node_on_standby_keeps_its_volume_while_nobody_else_is_ready() -> None:
    alone = {"n1": standing_by(volume("serving")), "n2": node(volume(ready=False)), "n3": standing_by(volume())}
    plan = decide(facts(**alone)).plan
    assert decide(facts(**alone), plan).plan.table["v1"].node == "n1"


def test_a_node_on_standby_that_is_silent_is_not_waited_for_in_order() -> None:
    plan = decide(facts(**SERVED)).plan
    silent = replace(standing_by(volume("serving")), alive=False)
    assert decide(facts(**{**SERVED, "n1": silent}), plan).plan.table["v1"].node == "n1"


def test_the_cause_says_of_a_node_that_is_back_without_its_volume_that_it_is() -> None:
    seen = facts(n1=node(barred=True, confirmed=True, heard_unix_ms=10, overdue_unix_ms=2410), n2=node(), n3=node())
    assert decide(seen).plan.table["v1"].cause == "n1 was overdue, and is back without it"
    assert decide(facts(n1=gone(), n2=node(), n3=node())).plan.table["v1"].cause == "n1 is overdue and barred"
