"""An asyncio event loop in virtual time, and worker threads that are greenlets.

hactld runs on it unchanged: its timers ring by the clock of its host, its worker threads stop at every command to a
disk or a kernel (`Workers.block`) and go on when the answer is there. Whatever is between two such points happens in
no time, as it nearly does in truth. A process that is stopped keeps everything that rings meanwhile for later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

if TYPE_CHECKING:
    from .process import Process

TURN_MS = (0.01, 0.08)
"""From the moment when something is ready until the loop gets to it."""
TIMER_LATE_MS = 1.0


class VirtualLoop(asyncio.AbstractEventLoop):
    """One process's loop. After `die` it takes nothing in and runs nothing."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._ready: deque[asyncio.Handle] = deque()
        self._turning = False
        self._turn_due = False
        self._workers: dict[object, Worker] = {}
        self.dead = False

    def die(self) -> None:
        self.dead = True
        self._ready.clear()
        for worker in self._workers.values():
            worker.die()
        self._world.graveyard.append(self)

    # -- what asyncio asks of a loop ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self._process.host.clock() / 1000

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._put(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        world = self._world
        due = max(world.now, self._process.host.true_time(when * 1000)) + world.random.random() * TIMER_LATE_MS

        def ring() -> None:
            if not handle.cancelled():
                self._put(handle)

        world.at(due, ring)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: object = None, context: Any = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    def add_signal_handler(self, sig: int, callback: Callable[..., Any], *args: Any) -> None:
        self._process.terminate = callback  # type: ignore[attr-defined]

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody caught: a fault of the code under test, or of the simulation."""
        if not self.dead and not self._world.over:
            self._process.unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """One worker per executor; without one, a worker of its own for each call."""
        key = executor if executor is not None else object()
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker(self._process, self)
        return worker.submit(lambda: func(*args))

    # -- turns -------------------------------------------------------------------------------------------------------

    def _put(self, handle: asyncio.Handle) -> None:
        if self.dead:
            return
        self._ready.append(handle)
        if not self._turning and not self._turn_due:
            self._turn_due = True
            low, high = TURN_MS
            world = self._world
            world.after(low + (high - low) * world.random.random(), lambda: self._process.when_running(self._turn))

    def _turn(self) -> None:
        self._turn_due = False
        if self.dead:
            return
        self._turning = True
        try:
            ready = self._ready
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            self._turning = False


class Worker:
    """One worker thread: a queue of calls, and a greenlet for the one that is under way."""

    def __init__(self, process: Process, loop: VirtualLoop) -> None:
        self._process = process
        self._loop = loop
        self._queue: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._thread: greenlet | None = None

    def submit(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._queue.append((call, future))
        if self._thread is None:
            self._next()
        return future

    def _next(self) -> None:
        if not self._queue or self._loop.dead:
            return
        call, future = self._queue.popleft()
        self._thread = greenlet(lambda _: self._work(call, future))
        thread, world = self._thread, self._process.world
        world.after(0.02 + 0.05 * world.random.random(), lambda: self._process.when_running(lambda: resume(thread)))

    def _work(self, call: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        try:
            result = call()
        except GreenletExit:
            raise
        except Exception as error:
            self._loop.call_soon(_settle, future, None, error)
        else:
            self._loop.call_soon(_settle, future, result, None)
        self._thread = None
        self._next()

    def die(self) -> None:
        self._queue.clear()
        if self._thread is not None and self._thread and self._thread is not getcurrent():
            self._thread.parent = getcurrent()
            self._thread.throw()
        self._thread = None


def _settle(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def resume(thread: greenlet, value: object = None) -> object:
    """Let a worker go on until it blocks again. Called from the queue of events only."""
    if thread.dead:
        return None
    thread.parent = getcurrent()
    return thread.switch(value)


def block(process: Process, begin: Callable[[Callable[[Any], None]], None]) -> Any:
    """In a worker: start something and wait for it. `begin` gets the function to be called with the answer, once. An
    answer that is an exception is raised. The worker goes on only when its process runs."""
    thread = getcurrent()
    assert thread.parent is not None, "only workers may block"

    def answer(value: Any) -> None:
        process.when_running(lambda: resume(thread, value))

    begin(answer)
    value = thread.parent.switch()
    if isinstance(value, BaseException):
        raise value
    return value


def pause(process: Process, delay_ms: float) -> None:
    """In a worker: let time pass."""
    block(process, lambda answer: process.world.after(delay_ms, lambda: answer(None)))
