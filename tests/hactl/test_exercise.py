"""The scheduled exercise of what is not in use: when, whether at all, and what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from hactl import placement
from hactl._reads import Read, paths_of, read_here, read_path
from hactl.errors import RequestRefused
from hactl.exercise import GOOD, SWAP_MS, Book, Result, Swap, book_from, next_swap, occasion, outcome, problems
from hactl.exerciser import Exerciser
from hactl.placement import Facts, Plan
from nodewatch.config import ConfigError, parse_config
from nodewatch.sections import Exercise
from tests.nodewatch.test_config import GOOD as FILE

from .test_placement import SERVED, facts, node, volume


def config(window: str = "Sun 03:00-04:00", **more: Any) -> Exercise:
    text = FILE + f'[exercise]\nwindow = "{window}"\n'
    read = parse_config(text).exercise
    assert read is not None
    return replace(read, **more)


def at(text: str, zone: str = "UTC") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize(
    ("window", "when", "expected"),
    [
        ("Sun 03:00-04:00", "2026-11-22T03:00", "2026-11-22"),
        ("Sun 03:00-04:00", "2026-11-22T03:59", "2026-11-22"),
        ("Sun 03:00-04:00", "2026-11-22T04:00", ""),
        ("Sun 03:00-04:00", "2026-11-22T02:59", ""),
        ("Sun 03:00-04:00", "2026-11-23T03:30", ""),
        ("Mon,Thu 22:30-00:30", "2026-11-23T22:30", "2026-11-23"),
        ("Mon,Thu 22:30-00:30", "2026-11-24T00:29", "2026-11-23"),
        ("Mon,Thu 22:30-00:30", "2026-11-23T00:10", ""),
        ("daily 02:00-02:20", "2026-11-24T02:10", "2026-11-24"),
    ],
)
def test_a_window_is_open_at_its_times_and_named_by_the_day_on_which_it_began(
    window: str, when: str, expected: str
) -> None:
    assert occasion(config(window).window, at(when)) == expected


def test_a_window_that_summer_time_passes_twice_is_one_occasion_and_one_that_it_jumps_over_is_none() -> None:
    berlin, window = ZoneInfo("Europe/Berlin"), config("Sun 02:10-02:50").window
    begin_s = int(datetime(2026, 10, 24, 22, 0, tzinfo=ZoneInfo("UTC")).timestamp())
    seen = [occasion(window, datetime.fromtimestamp(begin_s + 60 * minute, berlin)) for minute in range(300)]
    assert set(seen) == {"", "2026-10-25"} and sum(map(bool, seen)) == 80
    begin_s = int(datetime(2026, 3, 28, 22, 0, tzinfo=ZoneInfo("UTC")).timestamp())
    assert not any(occasion(window, datetime.fromtimestamp(begin_s + 60 * minute, berlin)) for minute in range(300))


@pytest.mark.parametrize(
    "text",
    [
        "",
        'window = "Sunday 3-4"',
        'window = "Sun 03:00-03:00"',
        'window = "Sun 24:00-25:00"',
        'window = "Sun,Sun 03:00-04:00"',
        'window = "Xyz 03:00-04:00"',
        "window = 3",
        'window = "daily 03:00-04:00"\nswap = 1',
        'window = "daily 03:00-04:00"\nread_mb = -1',
        'window = "daily 03:00-04:00"\nslow_ms = true',
        'window = "daily 03:00-04:00"\nzone = "../../etc/passwd"',
        'window = "daily 03:00-04:00"\nevery = 2',
    ],
)
def test_a_wrong_section_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="exercise"):
        parse_config(FILE + "[exercise]\n" + text)


def test_the_section_is_no_part_of_the_digest() -> None:
    text = FILE + '[exercise]\nwindow = "daily 03:00-04:00"\nswap = true\n'
    assert parse_config(text).digest() == parse_config(FILE).digest()


# --- swaps ---------------------------------------------------------------------------------------------------------

NOW = "2026-11-22"


def served() -> tuple[Facts, Plan]:
    """n1 serves v1 by the leader's word, and all are ready."""
    plan = placement.decide(Plan(), facts(**SERVED)).plan
    mine = node(volume("serving", order=plan.table["v1"].order))
    return facts(n1=mine, n2=node(), n3=node()), plan


def result(text: str = GOOD, day: str = NOW) -> Result:
    return Result(occasion=day, text=text, unix_ms=1)


def test_a_volume_is_moved_once_in_an_occasion() -> None:
    seen, plan = served()
    assert next_swap(Book(), NOW, seen, plan, ()) == ("v1", "")
    assert next_swap(Book(), NOW, seen, plan, ("v1",)) == ("", "")
    assert next_swap(Book(swaps={"v1": result()}), NOW, seen, plan, ()) == ("", "")
    assert next_swap(Book(swaps={"v1": result("failed", "2026-11-15")}), NOW, seen, plan, ())[0] == "v1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"n3": replace(node(), alive=False)},
        {"n3": replace(node(), barred=True)},
        {"n3": replace(node(), daemon="hung")},
        {"n3": node(volume(ready=False, why="its disk is not seen"))},
        {"n3": replace(node(), report=None)},
    ],
    ids=["silent", "barred", "hung", "not ready", "no report"],
)
def test_no_swap_begins_if_any_node_is_not_ready(wrong: Mapping[str, Any]) -> None:
    seen, plan = served()
    name, why = next_swap(Book(), NOW, replace(seen, nodes={**seen.nodes, **wrong}), plan, ())
    assert name == "" and "n3 is not ready" in why


def test_no_swap_begins_after_a_fault_or_while_anything_is_under_way() -> None:
    seen, plan = served()
    for book in (Book(reads={"v1": result("a short read")}), Book(swaps={"v9": result("n2 could not take it")})):
        assert next_swap(book, NOW, seen, plan, ())[0] == ""
        assert "fault" in next_swap(book, NOW, seen, plan, ())[1]
    moving = placement.move(plan, "v1", "n2", seen)
    assert isinstance(moving, Plan)
    assert next_swap(Book(), NOW, seen, moving, ()) == ("", "")


def test_a_swap_is_good_when_the_target_serves_and_failed_when_another_does_or_nobody() -> None:
    seen, plan = served()
    begun = plan.table["v1"].order
    swap = Swap(volume="v1", source="n1", target="n2", order=begun, begun_ms=seen.now_ms, occasion=NOW)
    assert outcome(swap, seen, plan) is None, "the source serves still"
    moved = placement._put(replace(plan, prefer={}), "v1", "n2", cause="exercise")
    taken = facts(n1=node(), n2=node(volume("serving", order=moved.table["v1"].order)), n3=node())
    assert outcome(swap, taken, moved) == GOOD
    back = placement._put(plan, "v1", "n1", cause="exercise")
    home = facts(n1=node(volume("serving", order=back.table["v1"].order)), n2=node(), n3=node())
    assert outcome(swap, home, back) == "n2 could not take it; n1 serves it"
    late = replace(facts(n1=node(), n2=node(), n3=node()), now_ms=seen.now_ms + SWAP_MS)
    assert "does not serve it after 180 s" in (outcome(swap, late, moved) or "")


def test_the_record_is_what_was_written_and_a_garbled_one_is_an_error() -> None:
    book = Book(reads={"v1": result("slow")}, swaps={"v1": result()}, next_mb={"v1": 64})
    assert book_from(json.loads(json.dumps(book.to_plain()))) == book
    assert problems(book) == ["exercise of the paths of v1 on 2026-11-22: slow"]
    for wrong in (None, [], {}, {**book.to_plain(), "reads": {"v1": {}}}, {**book.to_plain(), "next_mb": 3}):
        with pytest.raises(ValueError, match="not a record"):
            book_from(wrong)


# --- carried out ---------------------------------------------------------------------------------------------------


@dataclass
class Rig:
    place: Path
    when: str = "2026-11-22T03:10"
    trouble: str = ""
    refuse: bool = False

    def __post_init__(self) -> None:
        self.reads: list[tuple[str, int, int]] = []
        self.moves: list[tuple[str, str]] = []
        self.told: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.made = self.make()

    def make(self) -> Exerciser:
        made = Exerciser(
            config=config(swap=True, read_mb=8),
            path=self.place / "exercise.json",
            local=lambda: at(self.when),
            unix_ms=lambda: 5.0,
            read=self.read,
            paths=lambda device: [f"{device}-a", f"{device}-b"],
            move=self.move,
            history=lambda: self.told,
            log=self.log.append,
        )
        made.load()
        made.standing_by = {"v1": ["/dev/sdx"]}
        return made

    async def read(self, path: str, *, from_mb: int, count_mb: int, slow_ms: int) -> Read:
        self.reads.append((path, from_mb, count_mb))
        return Read(trouble=self.trouble, read_mb=count_mb, slowest_ms=3, next_mb=from_mb + count_mb)

    def move(self, name: str, cause: str) -> str:
        if self.refuse:
            raise RequestRefused("no")
        self.moves.append((name, cause))
        return "n2"

    def run(self) -> None:
        asyncio.run(self.made.read_due())


def test_reads_are_done_once_per_window_through_every_path_and_go_on_where_the_last_ended(tmp_path: Path) -> None:
    rig = Rig(tmp_path, when="2026-11-22T02:10")
    rig.run()
    assert rig.reads == []
    rig.when = "2026-11-22T03:10"
    rig.run()
    rig.run()
    rig.made = rig.make()
    rig.run()
    assert rig.reads == [("/dev/sdx-a", 0, 8), ("/dev/sdx-b", 0, 8)], "also after a restart"
    rig.when = "2026-11-29T03:10"
    rig.run()
    assert rig.reads[2:] == [("/dev/sdx-a", 8, 8), ("/dev/sdx-b", 8, 8)]
    assert rig.made.problems() == [] and "16 MiB on 2 paths" in rig.made.show()["reads"]["v1"]["detail"]


def test_a_read_that_fails_is_a_problem_until_a_later_one_is_good(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trouble="/dev/sdx-b: Input/output error at 3 MiB")
    rig.run()
    assert "Input/output error" in rig.make().problems()[0]
    rig.made.lead(*served())
    assert rig.moves == [] and "fault" in rig.made.waits
    rig.trouble, rig.when = "", "2026-11-29T03:10"
    rig.run()
    assert rig.made.problems() == []


def test_the_leader_swaps_after_its_reads_and_notes_what_came_of_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    seen, plan = served()
    rig.made.lead(seen, plan)
    assert rig.moves == [], "the reads first"
    rig.run()
    rig.made.lead(seen, plan)
    rig.made.lead(seen, plan)
    assert rig.moves == [("v1", "exercise 2026-11-22")]
    back = placement._put(plan, "v1", "n1", cause="exercise")
    home = facts(n1=node(volume("serving", order=back.table["v1"].order)), n2=node(), n3=node())
    rig.made.lead(home, back)
    assert rig.make().problems() == ["exercise of the roles of v1 on 2026-11-22: n2 could not take it; n1 serves it"]
    rig.made.lead(home, back)
    assert len(rig.moves) == 1


def test_another_leader_sees_in_the_history_that_the_swap_was_made(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.run()
    rig.told.append({"volume": "v1", "cause": "exercise 2026-11-22"})
    rig.made.lead(*served())
    assert rig.moves == []


def test_a_move_that_is_refused_is_no_swap(tmp_path: Path) -> None:
    rig = Rig(tmp_path, refuse=True)
    rig.run()
    rig.made.lead(*served())
    assert rig.made.swap is None and rig.made.waits == "no"


def test_a_garbled_record_is_said_and_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "exercise.json").write_text("{")
    assert "begun anew" in Rig(tmp_path).log[0]


# --- the reading itself --------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(3 << 20))
    try:
        read_here(str(path), 0, 1, 60_000)
    except OSError:
        pytest.skip("no O_DIRECT here")
    if "Invalid argument" in read_here(str(path), 0, 1, 60_000).trouble:
        pytest.skip("no O_DIRECT on this file system")
    return path


def test_reading_goes_on_at_the_start_after_the_end_of_the_device(disk: Path) -> None:
    assert read_here(str(disk), 2, 2, 60_000).next_mb == 1
    whole = read_here(str(disk), 1, 50, 60_000)
    assert (whole.read_mb, whole.next_mb, whole.trouble) == (3, 1, "")


def test_what_cannot_be_read_or_is_slow_is_told(disk: Path) -> None:
    assert "No such file" in read_here(str(disk) + "x", 0, 1, 60_000).trouble
    assert "more than 0" in read_here(str(disk), 0, 1, 0).trouble


def test_the_reading_process_tells_its_result_and_its_end(disk: Path, tmp_path: Path) -> None:
    read = asyncio.run(read_path(str(disk), from_mb=0, count_mb=2, slow_ms=60_000))
    assert (read.trouble, read.read_mb, read.next_mb) == ("", 2, 2)
    gone = asyncio.run(read_path(str(tmp_path / "none"), from_mb=0, count_mb=2, slow_ms=60_000))
    assert "No such file" in gone.trouble


def test_below_a_multipath_map_every_path_is_read(tmp_path: Path) -> None:
    for name, uuid in (("dm-3", "mpath-3600"), ("dm-4", "LVM-abc")):
        (tmp_path / name / "dm").mkdir(parents=True)
        (tmp_path / name / "dm/uuid").write_text(uuid)
        for slave in ("sdc", "sdb"):
            (tmp_path / name / "slaves" / slave).mkdir(parents=True)
    assert paths_of("/dev/dm-3", tmp_path) == ["/dev/sdb", "/dev/sdc"]
    assert paths_of("/dev/dm-4", tmp_path) == ["/dev/dm-4"]
    assert paths_of("/dev/sda", tmp_path) == ["/dev/sda"]
