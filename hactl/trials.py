"""A preflight's acts between the hactlds: from the command on one node to the process that tries the device on another.

    hactl preflight --(verb trial)--> hactld here --Trial--> hactld there --> python -m fencing._session
                    <-------answer--- hactld here <--Tried-- hactld there <---

One preflight at a time on a node. A letter may be lost, so one that is not answered is sent again; an act has an ident
of its own and is done once, however often it comes. hactld itself touches no device here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hactl.errors import HaError, OutcomeUnknown, RequestRefused
from hactl.judged import Judged, Judgements
from hactl.messages import Message, Trial, Tried

RESEND_S = 3.0
IDLE_S = 30.0
"""A session that was asked nothing for so long was left behind: another preflight may take its place."""
END_S = 20.0
LINE_BYTES_MAX = 1 << 20
ANSWERS_KEPT = 64

Clock = Callable[[], float]


@dataclass(slots=True)
class Helper:
    """The process of one session on this node."""

    session: str
    process: asyncio.subprocess.Process
    asked_s: float
    reader: asyncio.Task[None] | None = None
    waiting: dict[str, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    alive: bool = True
    """Until its output ended: it answers no more then, whether or not it was waited for yet."""


class Trials:
    """Both ends of it. Runs on the event loop; nothing here blocks."""

    def __init__(
        self,
        *,
        me: str,
        argv: Callable[[], list[str]],
        judgements: Judgements,
        send: Callable[[str, Message], None],
        log: Callable[[str], None],
        clock: Clock,
    ) -> None:
        """`argv`: the command of the process."""
        self._me = me
        self._argv = argv
        self._judgements = judgements
        self._send = send
        self._log = log
        self._clock = clock
        self._helper: Helper | None = None
        self._asked: dict[str, asyncio.Future[str]] = {}
        self._answers: dict[str, asyncio.Task[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- where the command was given ----------------------------------------------------------------------------

    async def ask(self, node: str, trial: Trial, timeout_s: float) -> dict[str, Any]:
        """The answer of that node: {"ok": {...}} or {"error": TEXT}. OutcomeUnknown if there is none in time."""
        if node == self._me:
            return _parsed(node, await self._here(trial, timeout_s))
        answer = self._asked.setdefault(trial.ident, asyncio.get_running_loop().create_future())
        try:
            return _parsed(node, await asyncio.wait_for(self._until(answer, node, trial), timeout_s))
        except TimeoutError:
            raise OutcomeUnknown(f"hactld of {node} did not answer within {timeout_s:g} s") from None
        finally:
            self._asked.pop(trial.ident, None)

    async def _here(self, trial: Trial, timeout_s: float) -> str:
        try:
            return await asyncio.wait_for(asyncio.shield(self._once(trial)), timeout_s)
        except TimeoutError:
            raise OutcomeUnknown(f"the device of {self._me} did not answer within {timeout_s:g} s") from None

    async def _until(self, answer: asyncio.Future[str], node: str, trial: Trial) -> str:
        while True:
            self._send(node, trial)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(answer), RESEND_S)

    # -- what comes from other nodes ----------------------------------------------------------------------------

    def take(self, sender: str, message: Trial | Tried) -> None:
        match message:
            case Tried():
                waiting = self._asked.get(message.ident)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message.answer)
            case Trial():
                known = self._answers.get(message.ident)
                if known is None or known.done():
                    self._spawn(self._reply(sender, message))

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, sender: str, trial: Trial) -> None:
        answer = await asyncio.shield(self._once(trial))
        self._send(sender, Tried(ident=trial.ident, answer=answer))

    def _once(self, trial: Trial) -> asyncio.Task[str]:
        if trial.ident not in self._answers:
            for old in [ident for ident, task in self._answers.items() if task.done()][: -ANSWERS_KEPT or None]:
                del self._answers[old]
            self._answers[trial.ident] = asyncio.get_running_loop().create_task(self._do(trial))
        return self._answers[trial.ident]

    async def _do(self, trial: Trial) -> str:
        try:
            done: dict[str, Any] = {"ok": await self._act(trial)}
        except (HaError, OSError) as wrong:
            done = {"error": str(wrong)}
        return json.dumps(done)

    async def _act(self, trial: Trial) -> dict[str, Any]:
        if trial.act == "begin":
            return await self._begin(trial.session)
        if trial.act == "judged":
            judged = Judged.parse(trial.args)
            kept = await asyncio.get_running_loop().run_in_executor(None, self._judgements.keep, judged)
            return {"risk": kept.risk}
        helper = self._helper
        if helper is None or helper.session != trial.session or not helper.alive:
            raise RequestRefused(f"{self._me} knows no such preflight (any more)")
        if trial.act == "end":
            await self._end()
            return {}
        return await self._pass_on(helper, trial)

    # -- the process --------------------------------------------------------------------------------------------

    async def _begin(self, session: str) -> dict[str, Any]:
        helper = self._helper
        if helper is not None and helper.alive and helper.session != session:
            if self._clock() - helper.asked_s < IDLE_S:
                raise RequestRefused(f"another preflight is under way on {self._me}")
            await self._end()
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._argv(), stdin=pipe, stdout=pipe, limit=LINE_BYTES_MAX)
        self._helper = helper = Helper(session=session, process=process, asked_s=self._clock())
        helper.reader = asyncio.get_running_loop().create_task(self._read(helper))
        self._log(f"preflight {session} began")
        return {}

    async def _pass_on(self, helper: Helper, trial: Trial) -> dict[str, Any]:
        assert helper.process.stdin is not None
        helper.asked_s = self._clock()
        helper.waiting[trial.ident] = answer = asyncio.get_running_loop().create_future()
        line = {"ident": trial.ident, "act": trial.act, "wwid": trial.wwid, "args": trial.args}
        try:
            helper.process.stdin.write(json.dumps(line).encode() + b"\n")
            await helper.process.stdin.drain()
            told = await answer
        except ConnectionError:
            raise HaError(f"the preflight's process on {self._me} ended") from None
        finally:
            helper.waiting.pop(trial.ident, None)
            helper.asked_s = self._clock()
        if "error" in told:
            raise RequestRefused(str(told["error"]))
        return dict(told["ok"])

    async def _read(self, helper: Helper) -> None:
        assert helper.process.stdout is not None
        with contextlib.suppress(ValueError):  # an endless line
            async for line in helper.process.stdout:
                body = json.loads(line)
                waiting = helper.waiting.get(body.get("ident", ""))
                if waiting is not None and not waiting.done():
                    waiting.set_result(body)
        helper.alive = False
        for waiting in helper.waiting.values():
            if not waiting.done():
                waiting.set_exception(HaError(f"the preflight's process on {self._me} ended"))
        await helper.process.wait()

    async def _end(self) -> None:
        """It takes back what it did when its input ends."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        assert helper.process.stdin is not None
        helper.process.stdin.close()
        try:
            await asyncio.wait_for(helper.process.wait(), END_S)
        except TimeoutError:
            self._log(f"preflight {helper.session}: its process does not end; a device hangs it")
        self._log(f"preflight {helper.session} ended")

    async def close(self) -> None:
        await self._end()


def helper_argv(tag: int, number: int) -> list[str]:
    return [sys.executable, "-m", "fencing._session", "--tag", str(tag), "--node", str(number)]


def _parsed(node: str, answer: str) -> dict[str, Any]:
    try:
        body = json.loads(answer)
        if isinstance(body, dict) and (isinstance(body.get("ok"), dict) or isinstance(body.get("error"), str)):
            return body
    except (ValueError, RecursionError):
        pass
    raise HaError(f"hactld of {node} answered with what is not understood: are all of one version?")
