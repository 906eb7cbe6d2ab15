"""What a drill leaves behind: a documented format, a page, a timeline; reviewed as golden files."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hwlab import page, report, timeline
from hwlab.checker import judge
from hwlab.history import Found, Verdict
from hwlab.report import Played, Session

GOLDEN = Path(__file__).parents[2] / "golden" / "drills"
DOCS = Path(__file__).parents[3] / "docs" / "drills.md"


def session(*runs: Played) -> Session:
    return Session(
        drill="pause-primary",
        title="The primary freezes, is replaced, and thaws",
        about="Late writes <must> be refused.",
        driver="uml",
        transport="iscsi",
        volume="v1",
        began_unix_ms=1_800_000_000_000,
        runs=runs,
    )


def played(number: int, history: Any) -> Played:
    return Played(number=number, history=history, judgement=judge(history))


def golden(name: str, text: str) -> None:
    """Compare with a golden file; GOLDEN=write takes the new text (then review the diff)."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_report_of_a_valid_and_an_invalid_run(history: Any) -> None:
    bad = history(found=Found(runs=((1, 800),)))
    both = session(played(1, history()), played(2, bad), Played(number=3, trouble="c1 does not answer"))
    golden("report.json", json.dumps(report.as_dict(both), indent=1) + "\n")


def test_timeline_of_a_valid_and_an_invalid_run(history: Any) -> None:
    bad = history(found=Found(runs=((1, 800),)))
    both = session(played(1, history()), played(2, bad))
    text = "\n".join([*(timeline.of_run(run, 2) for run in both.runs), timeline.of_session(both)])
    golden("timeline.txt", text + "\n")


def test_the_verdict_of_a_session_is_its_worst_run(history: Any) -> None:
    good, bad = played(1, history()), played(2, history(found=Found(runs=((2, 900),))))
    lost = Played(number=3, trouble="the lab broke")
    assert session(good, good).verdict is Verdict.VALID
    assert session(good, lost).verdict is Verdict.UNKNOWN
    assert session(good, lost, bad).verdict is Verdict.INVALID
    assert session().verdict is Verdict.UNKNOWN


def test_the_stall_of_a_session_is_the_median_of_its_runs(history: Any) -> None:
    table = report.as_dict(session(played(1, history()), played(2, history())))
    assert table["stall_ms_median"] == 2020.0


def test_keys_in_the_report_print_as_64_bit_hexadecimal(history: Any) -> None:
    run = report.run_as_dict(played(1, history()))
    assert run["reservations"][0]["holder"] == "0xabcde00100000004"


@pytest.mark.parametrize("kind", ["valid", "lost"])
def test_every_field_of_the_report_is_documented(history: Any, kind: str) -> None:
    run = played(1, history()) if kind == "valid" else Played(number=1, trouble="x")
    table = report.as_dict(session(run))
    documented = DOCS.read_text()
    for name in (*table, *table["runs"][0]):
        assert f"`{name}`" in documented, f"docs/drills.md does not explain {name}"


class Page(HTMLParser):
    """Notes what a page loads, and whether its elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_loads_nothing(history: Any) -> None:
    text = page.render(session(played(1, history()), Played(number=2, trouble="n1 <silent>")))
    parsed = Page()
    parsed.feed(text)
    words = " ".join(parsed.words)
    assert parsed.open == [] and parsed.links == []
    assert "url(" not in text and "http" not in text
    assert "Late writes <must> be refused." in words and "n1 <silent>" in words
    for phase in ("detect", "fence", "replay", "address", "n1's key", "client's writes", "pause n1"):
        assert phase in words


def test_both_files_are_written_to_every_folder(tmp_path: Path, history: Any) -> None:
    one = session(played(1, history()))
    report.write(one, "<p>", [tmp_path / "latest", tmp_path / "x"])
    assert json.loads((tmp_path / "latest" / "report.json").read_text())["verdict"] == "valid"
    assert (tmp_path / "x" / "report.html").read_text() == "<p>"
