"""The two processes of a host: node watch around the shipped core, and the shipped hactld on its virtual loop.

What `nodewatch/_service.py` and `_client.py` do with sockets is done here with queues: in order, after a short time,
and never to a process that ended. A stopped process (SIGSTOP) finds everything waiting when it goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hactl.daemon import Daemon, Paths
from hactl.errors import HaError
from hactl.runtime import Clock
from nodewatch import events as ev
from nodewatch._client import MAX_BODY_BYTES, NodeWatchUnreachable
from nodewatch.stable import Stable, next_generation
from nodewatch.view import View

from .files import SimPath
from .loop import VirtualLoop, block
from .world import Action, World

if TYPE_CHECKING:
    from nodewatch.core import NodeWatch

    from .host import Host

KEY = bytes(range(32))
DATAGRAMS_MAX = 300
"""So many wait in the receive buffer of a node watch that does not run; what comes then is lost."""
TIMER_LATE_MS = 4.0


class Process:
    """`life` counts its starts: what was meant for an earlier life does not arrive."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world: World = host.world
        self.alive = False
        self.life = 0
        self.paused = False
        self.waiting: list[Action] = []
        self.unhandled: list[str] = []

    def when_running(self, action: Action) -> None:
        """Now, or when this process goes on; never, if it ended."""
        if not self.alive:
            return
        if self.host.frozen:
            life = self.life
            self.host.when_unfrozen(lambda: self.when_running(action) if life == self.life else None)
        elif self.paused:
            self.waiting.append(action)
        else:
            self.run(action)

    def run(self, action: Action) -> None:
        world = self.world
        before, world.current = world.current, self
        try:
            action()
        finally:
            world.current = before

    def pause(self) -> None:
        self.paused = self.alive

    def resume(self) -> None:
        if not self.paused:
            return
        self.paused = False
        waiting, self.waiting = self.waiting, []
        for action in waiting:
            self.when_running(action)

    def begin(self) -> None:
        self.alive = True
        self.life += 1
        self.paused = False
        self.waiting.clear()

    def end(self) -> None:
        self.alive = self.paused = False
        self.life += 1
        self.waiting.clear()


class Link:
    """hactld's connection to node watch: two queues that keep their order, each for as long as both ends live."""

    def __init__(self, watch: WatchProcess, daemon: DaemonProcess, client: SimClient) -> None:
        self.watch = watch
        self.daemon = daemon
        self.client = client
        self.open = True
        self._due = {True: 0.0, False: 0.0}

    def to_watch(self, action: Action) -> None:
        self._send(self.watch, True, action)

    def to_daemon(self, action: Action) -> None:
        self._send(self.daemon, False, action)

    def hang_up(self, by: Process) -> None:
        """The other end learns of it after all that was sent before."""
        if not self.open:
            return
        if by is self.watch:
            self.to_daemon(self.client.lost)
        else:
            self.to_watch(lambda: self.watch.hung_up(self))
        self.open = False

    def _send(self, to: Process, direction: bool, action: Action) -> None:
        if not self.open:
            return
        world, life = to.world, to.life
        due = max(self._due[direction], world.now + 0.02 + 0.06 * world.random.random())
        self._due[direction] = due
        world.at(due, lambda: to.when_running(action) if life == to.life else None)


class WatchProcess(Process):
    """`python -m nodewatch`. `stable` is what its disk holds."""

    core: NodeWatch

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.stable = Stable()
        self.stop_wanted = False
        self._unsynced: Stable | None = None
        self._writing = False
        self._gates: set[str] = set()
        self._link: Link | None = None
        self._wake_at = 0.0
        self._deadline_ms = 0
        self._datagrams = 0

    def start(self) -> None:
        if self.alive or not self.host.up or self.stop_wanted:
            return
        self.begin()
        self._gates, self._link, self._wake_at = set(), None, float("inf")
        self._unsynced, self._writing, self._datagrams = None, False, 0
        self.stable = replace(self.stable, generation=next_generation(self.stable, int(self.host.wall_ms())))
        self.host.cluster.checker.watch_started(self.host, self.stable.generation)
        self.core = self.host.cluster.make_core(self.host, self.stable)
        self._deadline_ms = 0
        self.note(f"started generation={self.stable.generation}")
        self.wake()

    def kill(self, restart_ms: float | None = None) -> None:
        """kill -9: what the kernel keeps open stays open."""
        if self.alive:
            self.end()
            if self._link is not None:
                self._link.hang_up(self)
        if restart_ms is not None:
            self.world.after(restart_ms, self.start)

    def stop(self) -> None:
        """systemctl stop."""
        self.stop_wanted = True

        def last_words() -> None:
            self.feed(ev.Stop(now_ms=self.host.clock_ms()))
            self.feed(ev.Farewell(now_ms=self.host.clock_ms()))
            self.kill()

        self.when_running(last_words)

    def note(self, text: str) -> None:
        self.world.note(self.host.name, f"nodewatch {text}")

    # -- events in ---------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        self.when_running(self._tick)

    def resume(self) -> None:
        """A due tick comes before what waits, as in `_service.py`."""
        was = self.paused
        self.paused = False
        if was:
            self.wake()
            self.paused = True
        super().resume()

    def _tick(self) -> None:
        self.feed(ev.Tick(now_ms=self.host.clock_ms()))

    def receive(self, source: str, data: bytes, link: int) -> None:
        if self.host.frozen or self.paused:
            if self._datagrams >= DATAGRAMS_MAX:
                return
            self._datagrams += 1

            def late() -> None:
                self._datagrams -= 1
                self._take(source, data, link)

            self.when_running(late)
        elif self.alive:
            before, self.world.current = self.world.current, self
            self._take(source, data, link)
            self.world.current = before

    def _take(self, source: str, data: bytes, link: int) -> None:
        now = self.host.clock_ms()
        if self._deadline_ms <= now:
            self.feed(ev.Tick(now_ms=now))
        self.feed(ev.Datagram(now_ms=self.host.clock_ms(), source=source, data=data, link=link))

    def hello(self, link: Link) -> None:
        if self._link is not None and self._link is not link:
            self._link.hang_up(self)
            self.feed(ev.DaemonGone(now_ms=self.host.clock_ms()))
        self._link = link
        self.feed(ev.DaemonBeat(now_ms=self.host.clock_ms()))
        self._show()

    def hung_up(self, link: Link) -> None:
        if link is self._link:
            self._link = None
            self.feed(ev.DaemonGone(now_ms=self.host.clock_ms()))

    def command(self, link: Link, make: Callable[[int], ev.Event]) -> None:
        if link is self._link:
            self.feed(make(self.host.clock_ms()))

    def take_gate(self, link: Link, volume: str) -> None:
        if link is self._link:
            self._gates.add(volume)
            self.feed(ev.GateGiven(now_ms=self.host.clock_ms(), volume=volume))

    def give_gate_back(self, link: Link, volume: str) -> None:
        if link is self._link:
            self._close(volume)
            self._gates.discard(volume)
            self.feed(ev.GateTaken(now_ms=self.host.clock_ms(), volume=volume, closed=True))

    # -- effects out -------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        queue = [event]
        while queue and self.alive:
            for effect in self.core.step(queue.pop(0)):
                follow = self._act(effect)
                if follow is not None:
                    queue.append(follow)
        if self.alive:
            self._schedule()

    def _schedule(self) -> None:
        """One ring at a time: an earlier one replaces it, a later one is asked for when it rings."""
        host, world = self.host, self.world
        self._deadline_ms = self.core.deadline_ms()
        due = max(world.now, host.true_time(self._deadline_ms))
        if due >= self._wake_at:
            return
        self._wake_at = due
        life = self.life

        def ring() -> None:
            if life != self.life or self._wake_at != due:
                return
            self._wake_at = float("inf")
            self.when_running(self._rung)

        world.at(due + 0.01 + TIMER_LATE_MS * world.random.random(), ring)

    def _rung(self) -> None:
        if self._deadline_ms <= self.host.clock_ms():
            self._tick()
        else:
            self._schedule()

    def _act(self, effect: ev.Effect) -> ev.Event | None:
        host = self.host
        match effect:
            case ev.Transmit():
                host.cluster.network.transmit(host, effect)
            case ev.RenewGates():
                done = {volume: self._renew(volume, effect.not_after_ms) for volume in effect.volumes}
                return ev.GatesRenewed(now_ms=host.clock_ms(), results=done)
            case ev.CloseGates():
                for volume in effect.volumes:
                    self._close(volume)
                return ev.GatesClosed(now_ms=host.clock_ms(), results=dict.fromkeys(effect.volumes, True))
            case ev.Persist():
                self._unsynced = effect.stable
                if not self._writing:
                    self._write()
            case ev.Deliver():
                if self._link is not None:
                    link = self._link
                    link.to_daemon(lambda: link.client.receive(effect.sender, effect.message))
            case ev.Publish():
                self._show()
            case ev.Log():
                self.note(effect.text)
                if "INVARIANT BROKEN" in effect.text:
                    self.world.fail(f"{host.name}: {effect.text}")
        return None

    def _renew(self, volume: str, not_after_ms: int) -> bool:
        host = self.host
        if volume not in self._gates or host.clock_ms() > not_after_ms:
            return False
        host.kernel.renew_gate(volume, host.cluster.config.timing.gate_ms)
        return True

    def _close(self, volume: str) -> None:
        if volume in self._gates:
            self.host.kernel.close_gate(volume)

    def _show(self) -> None:
        view = self.core.view(self.host.clock_ms())
        self.host.cluster.checker.viewed(self.host, view)
        if self._link is not None:
            link = self._link
            link.to_daemon(lambda: link.client.show(view))

    def _write(self) -> None:
        """One write at a time; of those that wait only the newest is written."""
        stable, self._unsynced = self._unsynced, None
        self._writing = stable is not None
        if stable is None:
            return
        life = self.life

        def synced() -> None:
            if life == self.life:
                self.stable = stable
                self.when_running(lambda: self.feed(ev.Persisted(now_ms=self.host.clock_ms(), stable=stable)))
                self._write()

        self.world.after(self.host.files.flush_ms(), lambda: self.host.when_unfrozen(synced))


class SimClient:
    """Stands in for `nodewatch._client.NodeWatchClient`: the same calls, on a `Link`."""

    def __init__(self, process: DaemonProcess) -> None:
        self.view: View | None = None
        self._process = process
        self._watch = process.host.watch
        self._link: Link | None = None
        self._first: asyncio.Future[None] | None = None
        self._on_view: list[Callable[[View], None]] = []
        self._on_message: list[Callable[[str, Any], None]] = []
        self._on_lost: list[Callable[[], None]] = []

    async def connect(self, path: str = "", timeout_s: float = 5.0) -> View:
        if not self._watch.alive:
            raise NodeWatchUnreachable(path, "not running")
        self._first = asyncio.get_running_loop().create_future()
        link = self._link = Link(self._watch, self._process, self)
        self._process.link = link
        link.to_watch(lambda: self._watch.hello(link))
        try:
            await asyncio.wait_for(self._first, timeout_s)
        except (TimeoutError, ConnectionError) as error:
            self.close()
            raise NodeWatchUnreachable(path, str(error) or "no view in time") from error
        assert self.view is not None
        return self.view

    def on_view(self, callback: Callable[[View], None]) -> None:
        self._on_view.append(callback)

    def on_message(self, callback: Callable[[str, Any], None]) -> None:
        self._on_message.append(callback)

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._on_lost.append(callback)

    def on_witness(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Clusters here have no witness; `tests/nodewatch` simulates that."""

    def witness(self, message: dict[str, Any]) -> None:
        raise AssertionError(f"no witness is configured: {message}")

    def send(self, to: str, body: dict[str, Any]) -> None:
        message = json.dumps(body, separators=(",", ":")).encode()
        if len(message) > MAX_BODY_BYTES:
            raise ValueError(f"a message body may have {MAX_BODY_BYTES} bytes, this one has {len(message)}")
        self._order(lambda now: ev.MessageWanted(now_ms=now, to=to, message=message))

    def beat(self, held: int | None = None, lost: int | None = None) -> None:
        self._order(lambda now: ev.DaemonBeat(now_ms=now, held=held, lost=lost))

    def gate(self, volume: str, fd: int, renew: bytes, close: bytes) -> None:
        link = self._connected()
        link.to_watch(lambda: self._watch.take_gate(link, volume))

    def ungate(self, volume: str) -> None:
        link = self._connected()
        link.to_watch(lambda: self._watch.give_gate_back(link, volume))

    def bar(self, node: str) -> None:
        self._order(lambda now: ev.BarWanted(now_ms=now, node=node))

    def lift(self, node: str) -> None:
        self._order(lambda now: ev.LiftWanted(now_ms=now, node=node))

    def yield_(self) -> None:
        self._order(lambda now: ev.YieldWanted(now_ms=now, yielded=True))

    def unyield(self) -> None:
        self._order(lambda now: ev.YieldWanted(now_ms=now, yielded=False))

    def close(self) -> None:
        if self._link is not None:
            self._link.hang_up(self._process)
            self._link = None

    # -- from node watch ---------------------------------------------------------------------------------------------

    def show(self, view: View) -> None:
        if self._link is None:
            return
        self.view = view
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        for callback in self._on_view:
            callback(view)

    def receive(self, sender: str, message: bytes) -> None:
        if self._link is None:
            return
        body = json.loads(message)
        for callback in self._on_message:
            callback(sender, body)

    def lost(self) -> None:
        self._link = None
        if self._first is not None and not self._first.done():
            self._first.set_exception(ConnectionError("node watch hung up"))
            return
        for callback in self._on_lost:
            callback()

    def _connected(self) -> Link:
        if self._link is None:
            raise NodeWatchUnreachable("", "not connected")
        return self._link

    def _order(self, make: Callable[[int], ev.Event]) -> None:
        link = self._connected()
        link.to_watch(lambda: self._watch.command(link, make))


class DaemonProcess(Process):
    """`python -m hactl.daemon`, kept running by systemd."""

    RESTART_MS = (250, 900)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.loop: VirtualLoop | None = None
        self.daemon: Daemon | None = None
        self.link: Link | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, action: Action) -> None:
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            super().run(action)
        finally:
            asyncio._set_running_loop(before)

    def start(self) -> None:
        if self.alive or not self.host.up:
            return
        self.begin()
        self.loop = VirtualLoop(self)
        self.note("started")
        self.when_running(self._boot)

    def _boot(self) -> None:
        host, loop = self.host, self.loop
        assert loop is not None
        self.daemon = Daemon(
            host.cluster.config_of(host),
            Paths(config=None, stable=SimPath(host.files, "/var/lib/hactl"), boot=SimPath(host.files, "/run/hactl")),  # type: ignore[arg-type]
            Clock(monotonic_s=lambda: host.clock() / 1000, unix_ms=host.wall_ms, pause_s=self._pause_s),
            self._log,
        )
        self._tasks = [loop.create_task(self._main(self.daemon))]

    def _pause_s(self, seconds: float) -> None:
        """Of a worker; its host's clock may run fast or slow, which does not matter here."""
        block(self, lambda answer: self.host.world.after(seconds * 1000, lambda: answer(None)))

    async def _main(self, daemon: Daemon) -> None:
        try:
            await daemon.run()
        except (HaError, NodeWatchUnreachable) as failed:
            self.note(f"ended: {failed}")
        except Exception as error:
            self.unhandled.append(f"hactld ended with {error!r}")
        life = self.life
        self.world.after(0, lambda: self.kill(restart=True) if life == self.life else None)

    def kill(self, *, restart: bool = False, restart_ms: float | None = None) -> None:
        """kill -9, or its own end."""
        if self.alive:
            self.end()
            assert self.loop is not None
            self.loop.die()
            self.world.graveyard.append((self.daemon, self._tasks))
            if self.link is not None:
                self.link.hang_up(self)
                self.link = None
        if restart:
            draw = self.world.random
            self.world.after(restart_ms if restart_ms is not None else draw.uniform(*self.RESTART_MS), self.start)

    @property
    def ready(self) -> bool:
        """Would it answer an administrator?"""
        return self.alive and self.daemon is not None and self.daemon.nodewatch.view is not None

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        assert self.loop is not None
        self._tasks.append(self.loop.create_task(work))

    def note(self, text: str) -> None:
        self.world.note(self.host.name, f"hactld {text}")

    def _log(self, text: str) -> None:
        self.note(text)
        if "INVARIANT BROKEN" in text:
            self.world.fail(f"{self.host.name}: {text}")
