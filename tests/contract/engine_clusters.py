"""Ways to run a small cluster, behind one face: with it `test_engine_port.py` asks every engine the same questions.

Simulated    the shipped cores (and, for corosync, the shipped engine on a stand-in for its rings) in virtual time
Processes    `python -m nodewatch` in network namespaces of this machine; for corosync, on real corosync processes there
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from nodewatch import corosync
from nodewatch import events as ev
from nodewatch._client import NodeWatchClient, NodeWatchUnreachable
from nodewatch.config import NodeConfig
from nodewatch.engine import COROSYNC
from nodewatch.view import View
from tests.nodewatch.cluster_sim import SimNode, Simulation
from tests.nodewatch.ring_sim import RingSimulation

UUID = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
KEY = bytes(range(32))
NAMES = ("n1", "n2", "n3")
Message = tuple[str, dict[str, Any]]


class Cluster(Protocol):
    """Three nodes, n1 to n3."""

    def view(self, node: str) -> View: ...

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Let time pass until that is so; AssertionError if it never is."""
        ...

    def power_off(self, node: str) -> None:
        """The node ends without a word."""
        ...

    def end_process(self, node: str) -> None:
        """Only node watch ends, without a word; the host lives."""
        ...

    def power_on(self, node: str) -> None: ...

    def isolate(self, node: str) -> None:
        """No packet between it and the others, either way."""
        ...

    def heal(self) -> None: ...

    def send(self, sender: str, to: str, body: dict[str, Any]) -> None: ...

    def inbox(self, node: str) -> list[Message]:
        """What that node's hactld received, in order."""
        ...

    def garbage(self, node: str) -> None:
        """Words that no node watch says reach the node, by the engine's own way."""
        ...

    def end(self) -> None: ...


# --- virtual time -------------------------------------------------------------------------------------------------


class Simulated:
    """Either simulation, with messages noted."""

    def __init__(self, make: Callable[[int], Simulation], seed: int = 1) -> None:
        self.sim = make(seed)
        self.sim.run_until(400)  # all have started
        self._inboxes: dict[int, list[Message]] = {number: [] for number in self.sim.nodes}
        for node in self.sim.nodes.values():
            self._listen(node)

    def _listen(self, node: SimNode) -> None:
        act = node.act

        def noted(effect: ev.Effect) -> ev.Event | None:
            if isinstance(effect, ev.Deliver):
                self._inboxes[node.number].append((effect.sender, json.loads(effect.message)))
            return act(effect)

        node.act = noted  # type: ignore[method-assign]

    def _node(self, name: str) -> SimNode:
        return self.sim.nodes[self.sim.number_of(name)]

    def view(self, node: str) -> View:
        found = self._node(node)
        assert found.watch is not None
        return found.watch.view(found.clock())

    def until(self, what: str, condition: Callable[[], object]) -> None:
        end = self.sim.now + 30_000
        while not condition():
            if self.sim.now > end:
                self.sim.fail(f"never: {what}")
            self.sim.run_until(self.sim.now + 10)

    def power_off(self, node: str) -> None:
        self._node(node).power_off()

    def end_process(self, node: str) -> None:
        self._node(node).kill()

    def power_on(self, node: str) -> None:
        found = self._node(node)
        found.daemon_up = True
        found.start()

    def isolate(self, node: str) -> None:
        mine = self._node(node).number
        for other in self.sim.nodes:
            if other != mine:
                self.sim.network.cuts |= {(mine, other), (other, mine)}

    def heal(self) -> None:
        self.sim.network.cuts.clear()

    def send(self, sender: str, to: str, body: dict[str, Any]) -> None:
        found = self._node(sender)
        found.feed(ev.MessageWanted(now_ms=found.clock(), to=to, message=json.dumps(body).encode()))

    def inbox(self, node: str) -> list[Message]:
        return self._inboxes[self._node(node).number]

    def garbage(self, node: str) -> None:
        found = self._node(node)
        for words in (b"", b"hello", b"hN" + bytes(60), bytes(1200), corosync.pack((), b"hello")):
            if isinstance(self.sim, RingSimulation):
                self.sim.totem.say(2 if found.number != 2 else 3, words)
            else:
                found.feed(ev.Datagram(now_ms=found.clock(), source="10.0.0.99", data=words))

    def end(self) -> None:
        if isinstance(self.sim, RingSimulation):
            self.sim.close()


# --- real processes -----------------------------------------------------------------------------------------------

PATIENCE_S = 60.0
"""Far more than anything takes: a busy machine must not fail the test."""
PORT = 7747
SPEAKER = """
import sys, time
from nodewatch._cpg import CorosyncRing
ring = CorosyncRing(sys.argv[1])
for words in (b"x", b"hello", b"hN" + bytes(60), bytes(1200), b"hC\\x01\\x00hello"):
    while not ring.mcast(words):
        time.sleep(0.05)
ring.close()
"""


class Processes:
    """One network namespace per node on a bridge in one more. Needs root, and corosync for that engine."""

    TOKEN_MS = 1000
    """Rings of processes on a busy machine."""

    def __init__(self, home: Path, engine: str) -> None:
        self._home = home
        self._engine = engine
        self._space = f"eng{os.getpid()}"
        self._processes: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self._clients = {name: NodeWatchClient() for name in NAMES}
        self._inboxes: dict[str, list[Message]] = {name: [] for name in NAMES}
        self._loop = asyncio.new_event_loop()
        for name, client in self._clients.items():
            client.on_message(lambda sender, body, name=name: self._inboxes[name].append((sender, body)))
        try:
            self._make_networks()
            self._configure()
            for name in NAMES:
                self.power_on(name)
        except BaseException:
            self.end()
            raise

    def _address(self, name: str) -> str:
        return f"10.99.0.{name[1:]}"

    def _make_networks(self) -> None:
        hub = self._space
        run("ip", "netns", "add", hub)
        run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", hub, "link", "set", "br0", "up")
        for name in NAMES:
            own = f"{hub}{name}"
            run("ip", "netns", "add", own)
            run("ip", "-n", own, "link", "set", "lo", "up")
            run("ip", "link", "add", "lan", "netns", own, "type", "veth", "peer", "name", name, "netns", hub)
            run("ip", "-n", own, "addr", "add", f"{self._address(name)}/24", "dev", "lan")
            run("ip", "-n", own, "link", "set", "lan", "up")
            run("ip", "-n", hub, "link", "set", name, "master", "br0", "up")

    def _configure(self) -> None:
        key, text = self._home / "key", f'[cluster]\nname = "test"\nuuid = "{UUID}"\nkey_file = "{self._home}/key"\n'
        key.write_text(KEY.hex())
        key.chmod(0o600)
        if self._engine == COROSYNC:
            lease_ms = corosync.recommended_timing(self.TOKEN_MS).lease_ms
            text += f'engine = "corosync"\n[timing]\nlease_ms = {lease_ms}\n'
        nodes = [NodeConfig(name=name, number=int(name[1:]), address=self._address(name)) for name in NAMES]
        for node in nodes:
            text += f'[[node]]\nname = "{node.name}"\nnumber = {node.number}\naddress = "{node.address}"\n'
        (self._home / "hactl.toml").write_text(text)
        auth = self._home / "authkey"
        auth.write_bytes(corosync.auth_key(KEY, UUID))
        auth.chmod(0o400)
        (self._home / "corosync.conf").write_text(corosync.render_conf("test", nodes, str(auth), self.TOKEN_MS))

    def _start(self, name: str, what: str, *argv: str) -> None:
        with (self._home / f"{name}.{what}.log").open("ab") as log:
            command = ["ip", "netns", "exec", f"{self._space}{name}", *argv]
            top = Path(__file__).parents[2]
            self._processes[name, what] = subprocess.Popen(command, stdout=log, stderr=log, cwd=top)

    def _kill(self, name: str, what: str) -> None:
        process = self._processes.pop((name, what), None)
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def power_on(self, node: str) -> None:
        if self._engine == COROSYNC and (node, COROSYNC) not in self._processes:
            # Its directories are this node's alone; `exec` all the way, so that the process we hold is corosync.
            script = (
                f"mount -t tmpfs none /run && mount -t tmpfs none /var/lib/corosync && "
                f"exec corosync -f -c {self._home}/corosync.conf"
            )
            self._start(node, COROSYNC, "unshare", "--mount", "sh", "-c", script)
        argv = ["-m", "nodewatch", "--config", str(self._home / "hactl.toml"), "--node", node, "--no-realtime"]
        argv += ["--socket", self._socket(node), "--state", str(self._home / node / "state")]
        self._start(node, "nodewatch", sys.executable, *argv)
        self._loop.run_until_complete(self._connect(node))

    def _socket(self, node: str) -> str:
        return str(self._home / node / "socket")

    async def _connect(self, node: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                await self._clients[node].connect(self._socket(node))
                return
            except NodeWatchUnreachable:
                assert time.monotonic() < deadline, self._logs()
                await self._beat_once()
                await asyncio.sleep(0.1)

    async def _beat_once(self) -> None:
        for client in self._clients.values():
            if client.connected:
                with contextlib.suppress(NodeWatchUnreachable):
                    client.beat()

    def power_off(self, node: str) -> None:
        self.isolate(node)
        self.end_process(node)
        self._kill(node, COROSYNC)
        self.heal()

    def end_process(self, node: str) -> None:
        self._clients[node].close()
        self._kill(node, "nodewatch")

    def isolate(self, node: str) -> None:
        run("ip", "-n", self._space, "link", "set", node, "nomaster")

    def heal(self) -> None:
        for name in NAMES:
            run("ip", "-n", self._space, "link", "set", name, "master", "br0")

    def view(self, node: str) -> View:
        view = self._clients[node].view
        assert view is not None
        return view

    def until(self, what: str, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            deadline = time.monotonic() + PATIENCE_S
            while not condition():
                assert time.monotonic() < deadline, f"never: {what}\n{self._logs()}"
                await self._beat_once()
                await asyncio.sleep(0.05)

        self._loop.run_until_complete(wait())

    def send(self, sender: str, to: str, body: dict[str, Any]) -> None:
        self._clients[sender].send(to, body)

    def inbox(self, node: str) -> list[Message]:
        return self._inboxes[node]

    def garbage(self, node: str) -> None:
        other = NAMES[0] if node != NAMES[0] else NAMES[1]
        if self._engine == COROSYNC:
            argv = [sys.executable, "-c", SPEAKER, corosync.group_name(UUID)]
        else:
            script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            script += "for words in (b'', b'hello', b'hN' + bytes(60), bytes(1200)):\n"
            argv = [sys.executable, "-c", f"{script}    s.sendto(words, ('{self._address(node)}', {PORT}))"]
        command = ["ip", "netns", "exec", f"{self._space}{other}", *argv]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], timeout=PATIENCE_S)

    def _logs(self) -> str:
        logs = sorted(self._home.glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs)

    def end(self) -> None:
        for client in self._clients.values():
            client.close()
        for name, what in list(self._processes):
            self._kill(name, what)
        for name in ("", *NAMES):
            subprocess.run(["ip", "netns", "del", f"{self._space}{name}"], capture_output=True)
        self._loop.close()


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def builtin_simulation(seed: int) -> Simulation:
    return Simulation(seed)


def corosync_simulation(seed: int) -> Simulation:
    return RingSimulation(seed)
