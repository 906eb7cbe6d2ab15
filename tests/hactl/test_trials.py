"""A preflight's acts between hactlds: real processes, letters that are lost or come twice, and sessions left behind."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hactl import trials
from hactl.errors import HaError, OutcomeUnknown, RequestRefused
from hactl.judged import Judged, Judgements
from hactl.messages import Message, Trial, Tried
from hactl.trials import Trials
from hactl.verbs import CHANGING, Verbs

# answers with what it was asked, refuses "bad", and dies at "die"; its last line tells that its input ended
HELPER = """
import json, sys
count = 0
for line in sys.stdin:
    body = json.loads(line)
    count += 1
    if body["act"] == "die":
        sys.exit(1)
    if body["act"] == "bad":
        told = {"ident": body["ident"], "error": "because"}
    else:
        told = {"ident": body["ident"], "ok": {"act": body["act"], "args": body["args"], "count": count}}
    print(json.dumps(told), flush=True)
open(sys.argv[1], "a").write("ended\\n")
"""


class Net:
    """Nodes whose letters arrive on the next turn of the loop, unless `loses` takes them."""

    def __init__(self, directory: Path) -> None:
        self.now_s = 0.0
        self.loses: Callable[[str, Message], bool] = lambda to, message: False
        self.nodes: dict[str, Trials] = {}
        self.ended = directory / "ended"
        for name in ("n1", "n2"):
            self.nodes[name] = Trials(
                me=name,
                argv=lambda: [sys.executable, "-c", HELPER, str(self.ended)],
                judgements=Judgements(directory / name),
                send=lambda to, message, name=name: self._send(name, to, message),
                log=lambda line: None,
                clock=lambda: self.now_s,
            )

    def _send(self, sender: str, to: str, message: Message) -> None:
        assert isinstance(message, Trial | Tried)
        if not self.loses(to, message):
            asyncio.get_running_loop().call_soon(self.nodes[to].take, sender, message)

    async def ask(self, node: str, act: str, session: str = "s1", timeout_s: float = 20, **args: str) -> dict[str, Any]:
        trial = Trial(ident=f"{session}-{node}-{act}-{args}", session=session, act=act, wwid="naa.1", args=args)
        return await self.nodes["n1"].ask(node, trial, timeout_s)

    async def close(self) -> None:
        for each in self.nodes.values():
            await each.close()


def play(directory: Path, scene: Callable[[Net], Awaitable[None]]) -> Net:
    async def go() -> Net:
        net = Net(directory)
        try:
            await asyncio.wait_for(scene(net), 60)
        finally:
            await net.close()
        return net

    return asyncio.run(go())


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_an_act_is_done_by_the_process_of_the_node_that_is_asked(tmp_path: Path, node: str) -> None:
    async def scene(net: Net) -> None:
        assert await net.ask(node, "begin") == {"ok": {}}
        told = await net.ask(node, "state", path="/dev/sda")
        assert told["ok"]["act"] == "state" and told["ok"]["args"] == {"path": "/dev/sda"}
        assert await net.ask(node, "bad") == {"error": "because"}
        assert await net.ask(node, "end") == {"ok": {}}

    assert play(tmp_path, scene).ended.read_text() == "ended\n"


def test_lost_letters_are_sent_again_and_the_act_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "RESEND_S", 0.2)

    async def scene(net: Net) -> None:
        await net.ask("n2", "begin")
        lost: list[type] = []

        def loses(to: str, message: Message) -> bool:
            lost.append(type(message))
            return lost.count(type(message)) <= 2

        net.loses = loses
        assert (await net.ask("n2", "write"))["ok"]["count"] == 1
        assert lost.count(Trial) > 2 and lost.count(Tried) > 2
        net.loses = lambda to, message: False
        assert (await net.ask("n2", "state"))["ok"]["count"] == 2

    play(tmp_path, scene)


def test_a_node_that_does_not_answer_is_an_unknown_outcome(tmp_path: Path) -> None:
    async def scene(net: Net) -> None:
        net.loses = lambda to, message: True
        with pytest.raises(OutcomeUnknown, match="n2 did not answer"):
            await net.ask("n2", "begin", timeout_s=0.1)

    play(tmp_path, scene)


def test_two_preflights_at_a_time_are_refused_until_the_first_was_left_behind(tmp_path: Path) -> None:
    async def scene(net: Net) -> None:
        await net.ask("n2", "begin")
        assert "under way" in (await net.ask("n2", "begin", session="s2"))["error"]
        assert "no such preflight" in (await net.ask("n2", "state", session="s2"))["error"]
        net.now_s += trials.IDLE_S
        assert await net.ask("n2", "begin", session="s2", again="yes") == {"ok": {}}
        assert net.ended.read_text() == "ended\n"
        assert "no such preflight" in (await net.ask("n2", "state", late="yes"))["error"]

    play(tmp_path, scene)


def test_an_act_without_a_session_is_refused(tmp_path: Path) -> None:
    async def scene(net: Net) -> None:
        for act in ("state", "end", "write"):
            assert "no such preflight" in (await net.ask("n2", act))["error"]

    play(tmp_path, scene)


def test_a_process_that_dies_is_an_answer(tmp_path: Path) -> None:
    async def scene(net: Net) -> None:
        await net.ask("n2", "begin")
        assert "ended" in (await net.ask("n2", "die"))["error"]
        assert "no such preflight" in (await net.ask("n2", "state"))["error"]

    play(tmp_path, scene)


def test_an_answer_that_means_nothing_is_an_error(tmp_path: Path) -> None:
    async def scene(net: Net) -> None:
        for text in ("", "[]", "{", '{"ok": 3}', '{"error": {}}', "[" * 100000):
            trial = Trial(ident=text[:3] or "none", session="s", act="state", wwid="", args={})
            asked = asyncio.ensure_future(net.nodes["n1"].ask("n2", trial, 5))
            net.loses = lambda to, message: True
            await asyncio.sleep(0)
            net.nodes["n1"].take("n2", Tried(ident=trial.ident, answer=text))
            with pytest.raises(HaError, match="not understood"):
                await asked

    play(tmp_path, scene)


JUDGED = Judged(wwid="naa.1", verdict="broken", risk="late-writes", unix_s="17", by="n1")


def test_a_judgement_is_kept_by_the_node_that_is_told(tmp_path: Path) -> None:
    words = {name: getattr(JUDGED, name) for name in Judged.__dataclass_fields__}

    async def scene(net: Net) -> None:
        assert await net.ask("n2", "judged", **words) == {"ok": {"risk": "late-writes"}}
        assert "judgement" in (await net.ask("n2", "judged", wwid="naa.1"))["error"]

    play(tmp_path, scene)
    assert Judgements(tmp_path / "n2").of("naa.1") == JUDGED
    assert Judgements(tmp_path / "n2").of("naa.2") is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", json.dumps({"wwid": "naa.1", "verdict": "kept", "risk": "", "unix_s": "1"}), "\0" * 9]
)
def test_a_garbled_judgement_is_not_taken_for_a_good_one(tmp_path: Path, text: str) -> None:
    kept = Judgements(tmp_path)
    kept.keep(JUDGED)
    [path] = (tmp_path / "preflight").iterdir()
    path.write_text(text)
    with pytest.raises(HaError, match="garbled"):
        kept.of("naa.1")


@pytest.mark.parametrize("wrong", [{"verdict": "fine"}, {"wwid": ""}, {"unix_s": "-1"}, {"risk": "x" * 500}, {"by": 3}])
def test_words_that_are_no_judgement_are_refused(wrong: dict[str, object]) -> None:
    words = {name: getattr(JUDGED, name) for name in Judged.__dataclass_fields__}
    with pytest.raises(RequestRefused):
        Judged.parse({**words, **wrong})


def test_a_device_with_any_wwid_has_a_file_of_its_own(tmp_path: Path) -> None:
    kept = Judgements(tmp_path)
    for wwid in ("../../etc/passwd", "t10.ATA  disk", "naa.1/2", "x" * 400):
        kept.keep(Judged(wwid=wwid, verdict="kept", risk="", unix_s="1", by="n1"))
        found = kept.of(wwid)
        assert found is not None and found.wwid == wwid
    assert len(list((tmp_path / "preflight").iterdir())) == 4


# -- the verb ---------------------------------------------------------------------------------------------------


def verb(**args: str) -> Any:
    asked: list[tuple[str, Trial, float]] = []

    async def ask(node: str, trial: Trial, timeout_s: float) -> dict[str, Any]:
        asked.append((node, trial, timeout_s))
        return {"ok": {}}

    daemon: Any = SimpleNamespace(config=SimpleNamespace(numbers={"n1": 1, "n2": 2}), trials=SimpleNamespace(ask=ask))
    assert asyncio.run(Verbs(daemon).trial(args)) == {"ok": {}}
    return asked[0]


PATH = '{"path": "/dev/sda"}'
WORDS = {"node": "n2", "session": "s", "act": "state", "wwid": "naa.1", "args": PATH, "timeout_s": "7"}


def test_the_verb_passes_an_act_on_and_only_root_may_ask_for_it() -> None:
    node, trial, timeout_s = verb(**WORDS)
    assert (node, trial.act, trial.wwid, timeout_s) == ("n2", "state", "naa.1", 7.0)
    assert trial.args == {"path": "/dev/sda"} and trial.ident != verb(**WORDS)[1].ident
    assert "trial" in CHANGING


@pytest.mark.parametrize("wrong", [{"node": "n9"}, {"args": "{"}, {"timeout_s": "soon"}, {"args": "[1]"}])
def test_a_request_that_is_not_understood_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(HaError):
        verb(**{**WORDS, **wrong})
