"""The rules of the witness, one by one. Two nodes unless said otherwise: this one is n1, the other n2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nodewatch import events as ev
from nodewatch.arbitration import (
    ANSWER_MS,
    FORCED_TERMS,
    FRESH_CHECK_MS,
    RETRY_MS,
    UNHEARD_PATIENCE_MS,
    Arbitration,
    Phase,
    RaceCall,
    Situation,
    Word,
)
from nodewatch.config import ConfigError, parse_config
from nodewatch.heartbeat import decode_said, encode_said
from nodewatch.lease import Timing
from nodewatch.witnesswords import witness_event, witness_order

from .test_config import GOOD, refused
from .test_wire import SAID

HALF = Situation(
    now_ms=20_000,
    heard=1,
    connected=False,
    first=True,
    serves=True,
    opposed=True,
    never_heard=False,
    hindrance="",
    nodes_suffice=False,
    leads=False,
)
WHOLE = replace(HALF, heard=2, nodes_suffice=True)


def fresh(base: int = 0, wwids: tuple[str, ...] = ("a",)) -> Arbitration:
    return Arbitration(
        me=1, wwids=wwids, needed=2, head_start_ms=300, base=dict.fromkeys(wwids, base) if base else {}, start_ms=0
    )


def told(epoch: int = 4, owner: int = 2) -> Arbitration:
    mine = fresh()
    mine.heard(2, uses=False, words=(Word(epoch, owner),), now_ms=15_000)
    return mine


def using(mine: Arbitration | None = None) -> Arbitration:
    mine = mine or told()
    call = mine.consider(HALF)
    assert call is not None
    assert mine.won(call.ident, 5, ["a"], term=7, now_ms=20_050)
    return mine


def test_exactly_half_races_with_what_the_owner_said_when_it_did_not_use_the_witness() -> None:
    assert told().consider(HALF) == RaceCall(ident=1, expected={"a": 4})


@pytest.mark.parametrize(
    "changed",
    [
        {"heard": 2},
        {"heard": 0},
        {"connected": True},
        {"first": False},
        {"hindrance": "barred"},
        {"serves": False},
        {"never_heard": True, "now_ms": UNHEARD_PATIENCE_MS - 1},
    ],
)
def test_no_race(changed: dict[str, object]) -> None:
    assert told().consider(replace(HALF, **changed)) is None  # type: ignore[arg-type]


def test_who_serves_nothing_waits_its_head_start_unless_nobody_is_left_to_race() -> None:
    mine, idle = told(), replace(HALF, serves=False)
    assert mine.consider(idle) is None
    assert mine.deadline_ms() == 20_300
    assert mine.consider(replace(idle, now_ms=20_299)) is None
    assert mine.consider(replace(idle, now_ms=20_300)) is not None
    assert told().consider(replace(idle, opposed=False)) is not None


def test_the_words_of_one_who_uses_it_are_expected_by_nobody() -> None:
    mine = told()
    mine.heard(2, uses=True, words=(Word(5, 2),), now_ms=16_000)
    assert mine.consider(HALF) is None
    assert "nothing is known" in mine.waits_for
    mine.heard(2, uses=False, words=(Word(5, 2),), now_ms=17_000)
    assert mine.consider(replace(HALF, now_ms=20_001)) == RaceCall(ident=1, expected={"a": 5})


def test_what_somebody_else_says_of_a_claim_or_the_disk_shows_is_not_expected() -> None:
    mine = told(owner=3)
    mine.read({"a": Word(9, 2)}, "")
    assert mine.expected() == {}
    mine.read({"a": Word(10, 1)}, "")
    assert mine.expected() == {"a": 10}, "what this node owns it may take again"
    assert told(owner=0).expected() == {"a": 4}, "nobody claimed it since it was made"


def test_a_new_process_goes_on_from_stable_storage_after_it_waited_for_the_others() -> None:
    mine, alone = fresh(base=3), replace(HALF, never_heard=True, now_ms=100)
    assert mine.consider(alone) is None
    assert mine.consider(replace(alone, now_ms=UNHEARD_PATIENCE_MS)) == RaceCall(ident=1, expected={"a": 3})


def test_three_luns_need_words_of_two() -> None:
    mine = fresh(wwids=("a", "b", "c"))
    mine.heard(2, uses=False, words=(Word(4, 2), Word(4, 3), Word(0, 0)), now_ms=0)
    assert mine.consider(HALF) is None
    mine.heard(2, uses=False, words=(Word(4, 2), Word(3, 2), Word(0, 0)), now_ms=0)
    assert mine.consider(HALF) == RaceCall(ident=1, expected={"a": 4, "b": 3})


def test_a_lost_race_stays_lost_until_the_others_are_heard() -> None:
    mine = told()
    mine.consider(HALF)
    mine.beaten(1, 20_050)
    assert mine.consider(replace(HALF, now_ms=90_000)) is None
    assert mine.consider(WHOLE) is None
    assert mine.phase is Phase.IDLE
    assert mine.consider(replace(HALF, now_ms=91_000)) is not None


def test_an_answer_that_says_nothing_or_never_comes_is_asked_for_again() -> None:
    mine = told()
    mine.consider(HALF)
    mine.not_won(1, 20_100)
    assert mine.consider(replace(HALF, now_ms=20_100 + RETRY_MS - 1)) is None
    again = mine.consider(replace(HALF, now_ms=20_100 + RETRY_MS))
    assert again is not None
    assert mine.consider(replace(HALF, now_ms=20_600 + ANSWER_MS)) is None
    assert mine.phase is Phase.IDLE
    assert not mine.won(again.ident, 5, ["a"], term=7, now_ms=26_000), "too late: not used"
    assert mine.expected() == {"a": 5}


def test_a_claim_won_after_the_others_were_heard_again_is_not_used() -> None:
    mine = told()
    mine.consider(HALF)
    mine.consider(WHOLE)
    assert not mine.won(1, 5, ["a"], term=7, now_ms=20_100)
    assert (mine.uses, mine.words()) == (False, (Word(5, 1),))


def test_the_age_of_the_promise_counts_from_the_owners_word_and_votes_from_the_terms_heard() -> None:
    mine = using()
    assert (mine.clear_ms, mine.after_term) == (15_000, 7)


def test_use_ends_when_a_majority_of_nodes_acknowledges_and_not_before() -> None:
    mine = using()
    mine.consider(replace(WHOLE, nodes_suffice=False, now_ms=21_000))
    assert mine.uses
    mine.consider(replace(WHOLE, now_ms=22_000))
    assert not mine.uses
    again = mine.consider(replace(HALF, now_ms=30_000))
    assert again is not None
    assert again.expected == {"a": 5}
    mine.won(again.ident, 6, ["a"], term=7, now_ms=30_050)
    assert mine.clear_ms == 22_000


def test_checks_count_only_for_the_claim_in_use_and_forwards() -> None:
    mine = using()
    assert not mine.held(4, 20_100)
    assert mine.held(5, 20_100)
    assert not mine.held(5, 20_090)
    assert mine.checked_ms == 20_100
    assert mine.backs(20_100 + FRESH_CHECK_MS - 1)
    assert not mine.backs(20_100 + FRESH_CHECK_MS)
    assert not mine.gone(4, 20_200)
    assert mine.gone(5, 20_200)
    assert (mine.phase, mine.checked_ms) == (Phase.LOST, None)


def test_a_forced_claim_waits_from_when_it_was_won_and_jumps_over_terms() -> None:
    mine = told()
    assert mine.force(19_000) is None, "the others are heard"
    mine.consider(HALF)
    mine.beaten(1, 20_050)
    assert mine.force(21_000) == RaceCall(ident=2, expected={}, forced=True)
    assert mine.won(2, 9, ["a"], term=7, now_ms=21_100)
    assert (mine.clear_ms, mine.after_term) == (21_100, 7 + FORCED_TERMS)
    assert mine.force(21_200) is None


# --- configuration, bytes, JSON


def with_witness(wwids: str, *, nodes: int = 2, more: str = "") -> str:
    text = "[[node]]".join(GOOD.split("[[node]]")[: nodes + 1])
    return f"{text}\n[witness]\nwwids = {wwids}\n{more}"


def test_a_witness_is_one_vote_more_and_must_be_the_same_everywhere() -> None:
    config = parse_config(with_witness('["naa.2", "naa.1", "naa.3"]'))
    assert (config.witness, config.votes, config.warnings()) == (("naa.1", "naa.2", "naa.3"), 3, [])
    assert config.digest() != parse_config(with_witness('["naa.1"]')).digest()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (with_witness('["naa.1", "naa.2"]'), "each may get half"),
        (with_witness("[]"), "each may get half"),
        (with_witness(str([f"naa.{n}" for n in range(7)])), "use 1, 3 or 5"),
        (with_witness('["naa.1", "naa.1", "naa.2"]'), "named twice"),
        (with_witness('"naa.1"'), "is not valid"),
        (with_witness('["naa.1"]', nodes=1), "only one node"),
        (with_witness('["naa.1"]', more='name = "w"'), "unknown key"),
        (with_witness('["naa.1"]', more="[timing]\nhead_start_ms = 200"), "head_start_ms = 200 < 1.125 * heartbeat_ms"),
        (with_witness('["naa.1"]', more="[timing]\nhead_start_ms = 884"), "= 1884 > 1883"),
        (GOOD.replace("number = 1", 'number = 1\nvotes_only = "yes"'), "true or false"),
    ],
)
def test_a_wrong_witness_is_refused(text: str, says: str) -> None:
    error = refused(text)
    assert isinstance(error, ConfigError)
    assert says in str(error)
    assert error.line


def test_an_odd_number_of_nodes_with_a_witness_is_warned_of() -> None:
    (warning,) = parse_config(with_witness('["naa.1"]', nodes=3)).warnings()
    assert "4 votes, a majority of them is 3" in warning


def test_the_default_head_start_breaks_no_promise() -> None:
    assert Timing().witness_violations() == []


def test_words_survive_the_heartbeat() -> None:
    said = SAID._replace(entries=(), witness=(Word(2**32 - 1, 4095), Word(0, 0)))
    assert decode_said(encode_said(said), b"") == said


@pytest.mark.parametrize(
    "message",
    [
        {"t": "held", "epoch": 5, "at_ms": 1001, "good": True},
        {"t": "held", "epoch": 5, "at_ms": 1, "good": 1},
        {"t": "held", "epoch": -5, "at_ms": 1, "good": True},
        {"t": "raced", "id": 1, "outcome": "maybe", "epoch": 5, "claimed": [], "why": ""},
        {"t": "witness", "luns": {"a": [1, 4096]}, "problem": ""},
        {"t": "witness", "luns": {"a": [2**32, 1]}, "problem": ""},
    ],
)
def test_a_message_of_hactld_that_cannot_be_is_refused(message: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError, TypeError)):
        witness_event(message, 1000)


def test_messages_of_hactld_become_events_and_effects_messages() -> None:
    raced = {"t": "raced", "id": 3, "outcome": "won", "epoch": 5, "claimed": ["a"], "why": ""}
    assert witness_event(raced, 9) == ev.Raced(now_ms=9, ident=3, outcome="won", epoch=5, claimed=("a",), why="")
    assert witness_event({"t": "witness", "luns": {"a": [5, 1]}, "problem": "p"}, 9) == ev.WitnessRead(
        now_ms=9, luns={"a": Word(5, 1)}, problem="p"
    )
    assert witness_event({"t": "beat"}, 9) is None
    call = RaceCall(ident=3, expected={"a": 4})
    assert witness_order(ev.Race(call=call)) == {"t": "race", "id": 3, "expected": {"a": 4}, "forced": False}
    assert witness_order(ev.WatchWitness(epoch=5)) == {"t": "watch", "epoch": 5}
