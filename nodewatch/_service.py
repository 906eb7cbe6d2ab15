"""The process: one loop over the UDP socket, hactld's socket and the clock, around the core. See `core.py` for what it
decides.

No asyncio: a plain `selectors` loop keeps the process small and its way from packet to answer short.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nodewatch import events as ev
from nodewatch import keyring
from nodewatch._corosync import CorosyncEngine
from nodewatch._gate import BadGate, Gate
from nodewatch._ipc import Connection, Listener, encode
from nodewatch._links import LinkMonitor
from nodewatch._stable import StableFile, StableWriter
from nodewatch._udp import UdpLink
from nodewatch._watchdog import WatchdogDevice, WatchdogUnusable
from nodewatch.config import ClusterConfig, ConfigError, NodeConfig, parse_config
from nodewatch.core import NodeWatch
from nodewatch.engine import COROSYNC, Engine, EngineRefused, EngineUnreachable, Members, Note, Packet
from nodewatch.membership import ChangeRefused, change_from
from nodewatch.stable import next_generation
from nodewatch.view import to_json
from nodewatch.witnesswords import witness_event, witness_order

_BIND_PATIENCE_S = 10.0
_PRIORITY = 10
_MCL_CURRENT = 1
_MCL_ONFAULT = 4
_SEND_ERRORS_EVERY_MS = 60_000


class StartError(Exception):
    """Node watch cannot start; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    config: str
    node: str | None
    socket: str
    state: str
    realtime: bool


def clock_ms() -> int:
    """This host's time since boot, suspension included: a host that slept must notice."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def log(text: str, serious: bool = False) -> None:
    """One line for the journal; `<4>` is its mark for a warning."""
    mark = ("<4>" if serious else "<6>") if "JOURNAL_STREAM" in os.environ else ""
    sys.stderr.write(f"{mark}nodewatch: {text}\n")
    sys.stderr.flush()


def read_keys(path: str, wanted: tuple[str, ...]) -> tuple[bytes, ...]:
    """The cluster keys that count, the one to seal under first: those of the ids `wanted`, or the file's first.
    Raises StartError."""
    try:
        mode = os.stat(path).st_mode
        with open(path, encoding="ascii") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cluster key {path}: {error}; copy it from another node, mode 0600") from error
    if mode & 0o077:
        raise StartError(f"cluster key {path}: others may read it (mode {mode & 0o777:04o}); run `chmod 600 {path}`")
    try:
        return keyring.choose(keyring.parse(text), wanted)
    except keyring.BadKeys as error:
        raise StartError(f"cluster key {path}: {error}; copy it from a node that is in the cluster") from error


def read_config(options: Options) -> tuple[ClusterConfig, NodeConfig]:
    """The configuration and which node this is. Raises StartError."""
    try:
        with open(options.config, encoding="utf-8") as file:
            config = parse_config(file.read())
        if options.node is None:
            return config, config.me(socket.gethostname())
        me = config.node(options.node)
        if me is None:
            raise StartError(f"{options.config}: there is no [[node]] {options.node!r}")
        return config, me
    except ConfigError as error:
        raise StartError(f"{options.config}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{options.config}: {error}; `hactl init` writes it") from error


class Service:
    def __init__(self, options: Options) -> None:
        """Everything that may be refused is tried here, before a packet is sent. Raises StartError or
        StableUnusable."""
        config, me = read_config(options)
        key, *other_keys = read_keys(config.key_file, config.keys)
        file = StableFile(options.state)
        # From here on no older node watch of this host runs: what the start's time means in the proof of lease.py.
        stored = file.load()
        self._options = options
        self._selector = selectors.DefaultSelector()
        self._config, self._me = config, me
        self._engine: Engine | None = _open_engine(config, me)
        """None: the builtin one, which is the links below."""
        self._links: list[UdpLink | None] = _bind(config, me) if self._engine is None else []
        restored = replace(stored, generation=next_generation(stored, int(time.time() * 1000)))
        file.save(restored)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._writer = StableWriter(file, self._wake_fd, lambda text: log(text, serious=True))
        self._armed = Path(options.socket).with_name("watchdog-armed")
        left_armed = self._left_armed(config)
        self._watch = NodeWatch(
            config=config,
            me=me,
            key=key,
            other_keys=tuple(other_keys),
            restored=restored,
            now_ms=clock_ms(),
            left_armed=left_armed,
        )
        self._listener = Listener(options.socket)
        self._connections: dict[int, Connection] = {}
        self._gates: dict[str, Gate] = {}
        self._queue: deque[ev.Event] = deque()
        self._feeding = False
        self._stopping = False
        self._send_errors_said_ms: int | None = None
        for warning in config.warnings():
            log(warning, serious=True)
        self._monitor: LinkMonitor | None = None
        # Last: from here on the host is reset if this process does not go on.
        self._device = None if left_armed else self._open_watchdog(config)
        log(f"node={me.name} number={me.number} generation={restored.generation} term={restored.term} started")

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._signalled)
        register = self._selector.register
        for number, link in enumerate(self._links):
            self._listen(number, link)
        if self._engine is not None:
            register(self._engine, selectors.EVENT_READ, functools.partial(self._arrived, self._engine))
        register(self._wake_fd, selectors.EVENT_READ, self._woken)
        register(self._listener, selectors.EVENT_READ, self._connect)
        if self._options.realtime:
            _become_punctual()
        self._watch_links()
        gc.collect()
        gc.freeze()
        _tell_systemd("READY=1")
        while not self._stopping:
            self._turn()
        self._end()

    def _turn(self) -> None:
        """Wait for whatever comes first. A due tick comes before what is ready, so that a flood cannot starve it; a
        core that was not called for long knows that packets may be waiting."""
        now = clock_ms()
        wait_ms = self._watch.deadline_ms() - now
        if wait_ms <= 0:
            self._feed(ev.Tick(now_ms=now))
            return
        for key, mask in self._selector.select(wait_ms / 1000):
            handler: Callable[..., None] = key.data
            if isinstance(key.fileobj, Connection):
                handler(key.fileobj, mask)
            else:
                handler()

    def _end(self) -> None:
        """Shut the gates, say so, go. The address must not outlive this process in service."""
        _tell_systemd("STOPPING=1")
        self._feed(ev.Stop(now_ms=clock_ms()))
        self._feed(ev.Farewell(now_ms=clock_ms()))
        if self._engine is not None:
            self._engine.close()
        self._listener.close()
        self._forget_links()
        log("stopped")

    # --- events in ------------------------------------------------------------------------------------------------

    def _signalled(self, number: int, frame: object) -> None:
        self._stopping = True
        os.eventfd_write(self._wake_fd, 1)

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)
        written = self._writer.take()
        if written is not None:
            self._feed(ev.Persisted(now_ms=clock_ms(), stable=written))

    def _listen(self, number: int, link: UdpLink | None) -> None:
        if link is None:
            trouble = f"cannot listen on {self._me.addresses[number]}"
            self._feed(ev.LinkChanged(now_ms=clock_ms(), link=number, trouble=trouble))
        else:
            self._selector.register(link, selectors.EVENT_READ, functools.partial(self._datagram, number, link))

    def _look_at_links(self) -> None:
        assert self._monitor is not None
        told = self._monitor.take()
        if told is None:
            log("the state of the heartbeat links is not watched any more: that process ended", serious=True)
            self._forget_links()
            told = {number: "" for number, link in enumerate(self._links) if link is not None}
        for number, trouble in told.items():
            self._link_changed(number, trouble)

    def _link_changed(self, number: int, trouble: str) -> None:
        """A link that could not be listened on at the start is tried again when the kernel has nothing against it."""
        if not trouble and self._links[number] is None:
            try:
                link = self._links[number] = _open_link(self._config, self._me, number)
            except OSError as error:
                trouble = f"cannot listen on {self._me.addresses[number]}: {error.strerror}"
            else:
                self._listen(number, link)
        self._feed(ev.LinkChanged(now_ms=clock_ms(), link=number, trouble=trouble))

    def _watch_links(self) -> None:
        """Also anew, when there are other peers to have a route to. An engine watches its links itself."""
        self._forget_links()
        if self._engine is not None:
            return
        try:
            self._monitor = LinkMonitor(self._config, self._me)
        except OSError as error:
            log(f"the state of the heartbeat links is not watched: {error.strerror}", serious=True)
        else:
            self._selector.register(self._monitor, selectors.EVENT_READ, self._look_at_links)

    def _forget_links(self) -> None:
        if self._monitor is not None:
            self._selector.unregister(self._monitor)
            self._monitor.close()
            self._monitor = None

    def _datagram(self, number: int, link: UdpLink) -> None:
        received = link.receive()
        if received is not None:
            datagram, source = received
            self._feed(ev.Datagram(now_ms=clock_ms(), source=source, data=datagram, link=number))

    def _arrived(self, engine: Engine) -> None:
        for arrival in engine.receive():
            match arrival:
                case Packet(data=data, source=source):
                    self._feed(ev.Datagram(now_ms=clock_ms(), source=source, data=data))
                case Members(present=present, quorate=quorate):
                    self._feed(ev.GroupChanged(now_ms=clock_ms(), present=present, quorate=quorate))
                case Note(text=text, serious=serious):
                    log(text, serious)

    def _connect(self) -> None:
        accepted = self._listener.accept(len(self._connections))
        if isinstance(accepted, str):
            log(accepted, serious=True)
        elif accepted is not None:
            self._connections[accepted.fileno()] = accepted
            self._selector.register(accepted, selectors.EVENT_READ, self._talk)
            accepted.send(self._view())

    def _talk(self, connection: Connection, mask: int) -> None:
        if connection.fileno() not in self._connections:
            return  # hung up earlier in this turn
        if mask & selectors.EVENT_WRITE:
            connection.flush()
        if mask & selectors.EVENT_READ:
            try:
                received = connection.receive()
            except ValueError as error:
                log(f"hactld's socket: {error}; hung up", serious=True)
                received = None
            if received is None:
                self._hang_up(connection)
                return
            message, fds = received
            try:
                if message:
                    self._command(connection, message, fds)
            except (KeyError, TypeError, ValueError, BadGate, ChangeRefused, StartError) as error:
                log(f"hactld's message {str(message)[:200]} is not valid: {error!r}", serious=True)
            finally:
                Connection.close_all(fds)
        self._watch_output(connection)

    def _command(self, connection: Connection, message: dict[str, Any], fds: list[int]) -> None:
        kind, now = message["t"], clock_ms()
        if kind == "hello":
            self._welcome(connection)
            self._feed(ev.DaemonBeat(now_ms=now))
            connection.send(self._view())
            return
        if not connection.is_daemon:
            log(f"ignored {kind!r} of a client that did not say hello", serious=True)
            return
        match kind:
            case "beat":
                held, lost = (None if message.get(key) is None else int(message[key]) for key in ("held", "lost"))
                self._feed(ev.DaemonBeat(now_ms=now, held=held, lost=lost))
            case "send":
                body = encode(_object(message["body"]))
                self._feed(ev.MessageWanted(now_ms=now, to=str(message["to"]), message=body))
            case "gate":
                self._take_gate(str(message["volume"]), message["renew"], message["close"], fds)
            case "ungate":
                volume = str(message["volume"])
                closed = self._close_gates((volume,))[volume]
                self._release(volume)
                self._feed(ev.GateTaken(now_ms=now, volume=volume, closed=closed))
            case "bar":
                self._feed(ev.BarWanted(now_ms=now, node=str(message["node"])))
            case "lift":
                self._feed(ev.LiftWanted(now_ms=now, node=str(message["node"])))
            case "propose" | "accept" | "reconfigure":
                self._change(kind, message)
            case "yield" | "unyield":
                self._feed(ev.YieldWanted(now_ms=now, yielded=kind == "yield"))
            case _:
                event = witness_event(message, now)
                if event is None:
                    raise ValueError(f"unknown kind {kind!r}")
                self._feed(event)

    def _change(self, kind: str, message: dict[str, Any]) -> None:
        change = change_from(_object(message["change"]))
        if kind == "propose":
            self._feed(ev.ChangeProposed(now_ms=clock_ms(), change=change, digest=str(message["digest"])))
        elif kind == "accept":
            term, digest = int(message["term"]), str(message["digest"])
            self._feed(ev.ChangeOffered(now_ms=clock_ms(), term=term, change=change, digest=digest))
        elif change.version > self._config.version:
            keys = read_keys(self._config.key_file, change.keys or self._config.keys)
            self._feed(ev.ChangeMade(now_ms=clock_ms(), change=change, keys=keys))

    def _welcome(self, connection: Connection) -> None:
        """A new daemon; one that is still connected is an old one."""
        for other in list(self._connections.values()):
            if other.is_daemon and other is not connection:
                other.is_daemon = False
                self._hang_up(other)
        connection.is_daemon = True

    def _hang_up(self, connection: Connection) -> None:
        self._selector.unregister(connection)
        del self._connections[connection.fileno()]
        connection.close()
        if connection.is_daemon:
            self._feed(ev.DaemonGone(now_ms=clock_ms()))

    def _take_gate(self, volume: str, renew: str, close: str, fds: list[int]) -> None:
        if len(fds) != 1:
            raise ValueError(f"a gate comes with one descriptor, here are {len(fds)}")
        gate = Gate(fds.pop(), base64.b64decode(renew, validate=True), base64.b64decode(close, validate=True))
        self._release(volume)
        self._gates[volume] = gate
        self._feed(ev.GateGiven(now_ms=clock_ms(), volume=volume))

    def _release(self, volume: str) -> None:
        gate = self._gates.pop(volume, None)
        if gate is not None:
            gate.release()

    # --- effects out ----------------------------------------------------------------------------------------------

    def _feed(self, event: ev.Event) -> None:
        """Step the core, carry out what it says, and feed it what came of that."""
        self._queue.append(event)
        if self._feeding:
            return
        self._feeding = True
        while self._queue:
            self._act(self._watch.step(self._queue.popleft()))
        self._feeding = False

    def _act(self, effects: tuple[ev.Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case ev.Transmit():
                    self._transmit(effect)
                case ev.RenewGates():
                    results = self._renew_gates(effect)
                    self._feed(ev.GatesRenewed(now_ms=clock_ms(), results=results))
                case ev.CloseGates():
                    closed = self._close_gates(effect.volumes)
                    self._feed(ev.GatesClosed(now_ms=clock_ms(), results=closed))
                case ev.Persist():
                    self._writer.submit(effect.stable)
                case ev.Deliver():
                    self._deliver(effect)
                case ev.Configured():
                    self._config = effect.config
                    if self._engine is not None:
                        self._engine.configure(effect.config)
                    for number, link in enumerate(self._links):
                        if link is not None:
                            link.configure(_peers_of(effect.config, self._me, number))
                    self._watch_links()
                case ev.Race() | ev.WatchWitness():
                    self._tell_daemon(encode(witness_order(effect)))
                case ev.Publish():
                    self._publish()
                case ev.Pat():
                    self._pat(effect)
                case ev.Disarm():
                    if self._device is not None:
                        self._device.disarm()
                        self._armed.unlink(missing_ok=True)
                case ev.Log():
                    log(effect.text, effect.serious)

    def _transmit(self, effect: ev.Transmit) -> None:
        if self._engine is not None:
            self._engine.send(effect.to, effect.datagram)
            if self._engine.send_errors:
                self._say_send_errors(self._engine)
        for number, link in enumerate(self._links):
            if link is not None and effect.link in (None, number):
                link.send(effect.to, effect.datagram)
                if link.send_errors:
                    self._say_send_errors(link)

    def _left_armed(self, config: ClusterConfig) -> bool:
        """W6 of watchdog.py: did a node watch of this boot die with the watchdog armed?"""
        left = config.watchdog is not None and config.watchdog_fences and self._armed.exists()
        if left:
            log("the watchdog is armed since before; it is opened when it may be patted", serious=True)
        return left

    def _open_watchdog(self, config: ClusterConfig) -> WatchdogDevice | None:
        """Armed from here on. Raises StartError."""
        if config.watchdog is None:
            return None
        try:
            device = WatchdogDevice(config.watchdog, config.timing.watchdog_s)
        except WatchdogUnusable as error:
            raise StartError(f"{error}; or remove the section") from error
        wrong = config.timing.watchdog_violations(device.timeout_s) if config.watchdog_fences else []
        if wrong:
            device.disarm()
            raise StartError(
                f"[watchdog] device {config.watchdog}: {wrong[0]}; use another device, other timing, or leave "
                '"watchdog" out of [fencing] levels'
            )
        self._armed.touch()
        log(f"watchdog {config.watchdog} ({device.identity}) armed: {device.timeout_s} s")
        return device

    def _pat(self, effect: ev.Pat) -> None:
        if effect.not_after_ms is not None and clock_ms() >= effect.not_after_ms:
            return
        try:
            if self._device is None:
                self._device = self._open_watchdog(self._config)
            if self._device is not None:
                self._device.pat()
        except StartError as error:
            log(f"watchdog not patted: {error}", serious=True)
        except OSError as error:
            log(f"watchdog not patted: {error.strerror}", serious=True)

    def _renew_gates(self, effect: ev.RenewGates) -> dict[str, bool]:
        results = {}
        for volume in effect.volumes:
            gate = self._gates.get(volume)
            # The clock is read for each of them, as near to the kernel as can be: rule R4.
            results[volume] = gate is not None and clock_ms() <= effect.not_after_ms and self._renewed(volume, gate)
        return results

    def _renewed(self, volume: str, gate: Gate) -> bool:
        error = gate.renew()
        if error != gate.last_error:
            gate.last_error = error
            log(
                f"volume={volume} gate " + (f"not renewed: {os.strerror(error)}" if error else "renewed again"),
                bool(error),
            )
        return error == 0

    def _close_gates(self, volumes: tuple[str, ...]) -> dict[str, bool]:
        results = {}
        for volume in volumes:
            gate = self._gates.get(volume)
            error = 0 if gate is None else gate.close()
            results[volume] = error == 0
            if gate is not None and (not error or error != gate.last_error):
                log(
                    f"volume={volume} gate " + (f"not closed: {os.strerror(error)}" if error else "closed"), bool(error)
                )
                gate.last_error = error
        return results

    def _deliver(self, effect: ev.Deliver) -> None:
        self._tell_daemon(b'{"t":"recv","from":%s,"body":%s}' % (json.dumps(effect.sender).encode(), effect.message))

    def _tell_daemon(self, packet: bytes) -> None:
        for connection in list(self._connections.values()):
            if connection.is_daemon:
                connection.send(packet)
                self._watch_output(connection)

    def _publish(self) -> None:
        if not self._connections:
            return
        packet = self._view()
        for connection in list(self._connections.values()):
            connection.send(packet)
            self._watch_output(connection)

    def _view(self) -> bytes:
        return encode(to_json(self._watch.view(clock_ms())))

    def _watch_output(self, connection: Connection) -> None:
        if connection.fileno() not in self._connections:
            return
        if connection.overflowed:
            log("a client does not read its messages: hung up", serious=True)
            connection.overflowed = False
            self._hang_up(connection)
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waiting else 0)
        if self._selector.get_key(connection).events != mask:
            self._selector.modify(connection, mask, self._talk)

    def _say_send_errors(self, link: UdpLink | Engine) -> None:
        now = clock_ms()
        if self._send_errors_said_ms is None or now - self._send_errors_said_ms >= _SEND_ERRORS_EVERY_MS:
            self._send_errors_said_ms = now
            log(f"{link.send_errors} packets not sent, last {link.last_error} (said once a minute)", True)
            link.send_errors = 0


def _object(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ValueError("body is not a JSON object")
    return body


def _open_engine(config: ClusterConfig, me: NodeConfig) -> Engine | None:
    """The engine that the configuration names; None = the builtin one. Raises StartError."""
    if config.engine != COROSYNC:
        return None
    try:
        return CorosyncEngine(config, me, patience_s=_BIND_PATIENCE_S)
    except (EngineRefused, EngineUnreachable) as refused:
        raise StartError(f"engine corosync: {refused}") from refused


def _peers_of(config: ClusterConfig, me: NodeConfig, number: int) -> dict[int, str]:
    """Where the others listen on that link."""
    return {node.number: node.addresses[number] for node in config.nodes if node.number != me.number}


def _open_link(config: ClusterConfig, me: NodeConfig, number: int) -> UdpLink:
    """Raises OSError."""
    return UdpLink(me.addresses[number], config.port, _peers_of(config, me, number))


def _bind(config: ClusterConfig, me: NodeConfig) -> list[UdpLink | None]:
    """At boot the addresses may come a little later than we do: wait for the first; None = not there yet."""
    give_up = time.monotonic() + _BIND_PATIENCE_S
    while True:
        found: list[UdpLink | None] = []
        trouble = ""
        for number, address in enumerate(me.addresses):
            try:
                found.append(_open_link(config, me, number))
            except OSError as error:
                trouble = trouble or f"{address} port {config.port}: {error.strerror}"
                found.append(None)
        if any(found):
            return found
        if time.monotonic() >= give_up:
            raise StartError(f"cannot listen on {trouble}; is this host really {me.name}, and is its network up?")
        time.sleep(0.2)


def _become_punctual() -> None:
    """Before other processes, and never waiting for a page of ours. Neither is needed for safety."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    except OSError as error:
        log(f"not scheduled in real time: {error.strerror}")
    # ONFAULT: keep what was touched, do not load whole libraries for it.
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_ONFAULT) != 0:
        log(f"memory not locked: {os.strerror(ctypes.get_errno())}")


def _tell_systemd(state: str) -> None:
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        try:
            notify.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError as error:
            log(f"systemd not told {state}: {error.strerror}")
