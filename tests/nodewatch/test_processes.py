"""Real node watch processes on loopback addresses: they find each other, survive what is done to them, and say so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodewatch import keyring
from nodewatch._client import NodeWatchClient, NodeWatchUnreachable
from nodewatch.config import ClusterConfig, parse_config
from nodewatch.membership import Change
from nodewatch.view import View
from nodewatch.wire import Cipher

from .test_gate import CLOSE, RENEW, Kernel

UUID = "5b0c7a4e-3a55-4b7c-9a0e-5a5d3c1f0a11"
KEY = bytes(range(32))
PATIENCE_S = 30.0
"""Far more than anything takes: a busy machine must not fail the test."""
PORT = 20_000 + os.getpid() % 20_000


@dataclass
class Node:
    name: str
    number: int
    home: Path
    config: Path
    process: subprocess.Popen[bytes] | None = None
    client: NodeWatchClient = field(default_factory=NodeWatchClient)
    beating: bool = True
    views: list[View] = field(default_factory=list)
    messages: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.77.{self.number}"

    @property
    def second_address(self) -> str:
        return f"127.0.78.{self.number}"

    @property
    def socket(self) -> str:
        return str(self.home / "run" / "nodewatch.sock")

    @property
    def view(self) -> View:
        assert self.client.view is not None
        return self.client.view

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def start(self) -> None:
        command = [sys.executable, "-m", "nodewatch", "--config", str(self.config), "--node", self.name]
        command += ["--socket", self.socket, "--state", str(self.home / "state"), "--no-realtime"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=Path(__file__).parents[2])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(PATIENCE_S)

    async def connect(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                await self.client.connect(self.socket)
                return
            except NodeWatchUnreachable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)


class Cluster:
    def __init__(self, home: Path, links: int = 1) -> None:
        (home / "key").write_text(KEY.hex())
        (home / "key").chmod(0o600)
        text = f'[cluster]\nname = "test"\nuuid = "{UUID}"\nkey_file = "{home}/key"\n[network]\nport = {PORT}\n'
        self.nodes = []
        for number in (1, 2, 3):
            own = home / f"n{number}"
            own.mkdir()
            node = Node(f"n{number}", number, own, home / "hactl.toml")
            addresses = [node.address, node.second_address][:links]
            text += f'[[node]]\nname = "{node.name}"\nnumber = {number}\naddresses = {json.dumps(addresses)}\n'
            self.nodes.append(node)
        (home / "hactl.toml").write_text(text)

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    async def start(self) -> None:
        for node in self.nodes:
            node.start()
            node.client.on_view(node.views.append)
            node.client.on_message(lambda sender, body, node=node: node.messages.append((sender, body)))
        for node in self.nodes:
            await node.connect()

    def leader(self, among: tuple[str, ...] = ("n1", "n2", "n3")) -> Node | None:
        names = {self[name].view.leader for name in among}
        return self[names.pop() or ""] if len(names) == 1 and None not in names else None

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        """Waits for a condition of what was told; fails with every log after a long while."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {node.name}\n{node.log}" for node in self.nodes)
                raise AssertionError(f"never: {what}\n{logs}")
            await asyncio.sleep(0.02)

    async def beat(self) -> None:
        while True:
            for node in self.nodes:
                if node.beating and node.client.connected:
                    with contextlib.suppress(NodeWatchUnreachable):
                        node.client.beat()
            await asyncio.sleep(0.1)

    def end(self) -> None:
        for node in self.nodes:
            node.client.close()
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
                node.process.wait()


@contextlib.asynccontextmanager
async def running(home: Path, links: int = 1) -> AsyncIterator[Cluster]:
    cluster = Cluster(home, links)
    beats = asyncio.ensure_future(cluster.beat())
    try:
        await cluster.start()
        await cluster.until("a leader", cluster.leader)
        await cluster.until("leases", lambda: all(node.view.lease_left_ms for node in cluster.nodes))
        yield cluster
    finally:
        beats.cancel()
        cluster.end()


Story = Callable[[Cluster], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[[Story], None]]:
    async def tell(story: Story) -> None:
        async with running(tmp_path) as cluster:
            await story(cluster)

    yield lambda story: asyncio.run(tell(story))


def test_a_killed_process_is_barred_confirmed_and_comes_back(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        old = cluster.leader()
        assert old is not None
        others = tuple(node.name for node in cluster.nodes if node is not old)
        old.signal(signal.SIGKILL)
        await cluster.until("another leader", lambda: cluster.leader(others) not in (None, old))
        new = cluster.leader(others)
        assert new is not None
        await cluster.until("confirmed", lambda: new.view.nodes[old.name].confirmed)
        assert new.view.nodes[old.name].state == "overdue"
        await cluster.until("safe", lambda: new.view.nodes[old.name].safe_in_ms == 0)
        before = old.view.generation
        old.start()
        await old.connect()
        await cluster.until("it knows of its bar", lambda: old.view.barred)
        await cluster.until("heard again", lambda: new.view.nodes[old.name].state == "alive")
        assert old.view.generation > before
        await cluster.until("lifted", lambda: lift(new, old))
        await cluster.until("a lease again", lambda: old.view.lease_left_ms)

    play(story)


def lift(leader: Node, node: Node) -> bool:
    leader.client.lift(node.name)
    return not node.view.barred


def test_a_frozen_process_learns_that_it_is_barred_and_its_gate_is_latched(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        kernel = Kernel()
        chief = cluster.leader()
        assert chief is not None
        frozen = next(node for node in cluster.nodes if node is not chief)
        link = socket.socket(fileno=kernel.gate._socket.detach())
        frozen.client.gate("v1", link.fileno(), RENEW, CLOSE)
        link.close()
        await cluster.until("open", lambda: frozen.view.gates.get("v1") == "open")
        await cluster.until("renewals", lambda: kernel.seen.count(RENEW) > 5)
        assert CLOSE not in kernel.seen
        frozen.signal(signal.SIGSTOP)
        await cluster.until("safe", lambda: chief.view.nodes[frozen.name].safe_in_ms == 0)
        frozen.signal(signal.SIGCONT)
        await cluster.until("barred", lambda: frozen.view.barred)
        assert kernel.seen[-1] == CLOSE
        assert frozen.view.lease_left_ms == 0
        await cluster.until("lifted", lambda: lift(chief, frozen))
        await cluster.until("a lease", lambda: frozen.view.lease_left_ms)
        assert frozen.view.gates == {"v1": "closed"}

    play(story)


def test_sigterm_shuts_the_gates_and_says_goodbye(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        kernel = Kernel()
        leaving = cluster["n3"]
        leaving.client.gate("v1", kernel.gate._socket.fileno(), RENEW, CLOSE)
        await cluster.until("open", lambda: leaving.view.gates.get("v1") == "open")
        chief = cluster.leader()
        assert chief is not None and chief is not leaving
        leaving.signal(signal.SIGTERM)
        assert kernel.seen[-1] == CLOSE
        assert leaving.process is not None and leaving.process.returncode == 0
        await cluster.until("safe", lambda: chief.view.nodes["n3"].safe_in_ms == 0)
        assert any("said goodbye" in view.nodes["n3"].why for view in chief.views)

    play(story)


def test_hung_gone_and_new_daemons_are_told_apart(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        node, other = cluster["n3"], cluster["n2"]
        node.beating = False
        await cluster.until("hung", lambda: other.view.nodes["n3"].daemon == "hung")
        node.client.close()
        await cluster.until("gone", lambda: other.view.nodes["n3"].daemon == "gone")
        await node.connect()
        node.beating = True
        await cluster.until("ok", lambda: other.view.nodes["n3"].daemon == "ok")
        lost: list[bool] = []
        node.client.on_lost(lambda: lost.append(True))
        second = NodeWatchClient()
        await second.connect(node.socket)
        await cluster.until("the first is hung up on", lambda: lost)
        second.close()

    play(story)


def test_messages_reach_the_daemons_of_the_others(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        long = "x" * 50_000
        cluster["n1"].client.send("*", {"long": long})
        for number in range(30):
            cluster["n1"].client.send("n2", {"number": number})
        await cluster.until("all there", lambda: len(cluster["n2"].messages) == 31 and cluster["n3"].messages)
        assert cluster["n2"].messages == [("n1", {"long": long}), *(("n1", {"number": n}) for n in range(30))]
        assert cluster["n3"].messages == [("n1", {"long": long})]
        with pytest.raises(ValueError, match="60000"):
            cluster["n1"].client.send("n2", {"long": "x" * 60_000})

    play(story)


def test_garbage_and_wrong_keys_are_counted_and_change_nothing(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        draw = random.Random(5)
        target = cluster["n1"]
        term = target.view.term
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hostile:
            hostile.bind(("127.0.77.99", 0))
            stranger = Cipher(bytes(32), UUID, 2, 5)
            for seq in range(1, 400):
                garbage = draw.randbytes(draw.randrange(1500))
                hostile.sendto(garbage, (target.address, PORT))
                hostile.sendto(b"hN\x01\x00\x00\x02" + garbage[:1400], (target.address, PORT))
                hostile.sendto(stranger.seal(seq, garbage[:1000]), (target.address, PORT))
                if seq % 20 == 0:
                    await asyncio.sleep(0.01)
            await cluster.until("counted", lambda: sum(target.view.drops.values()) > 500)
            impostor = Cipher(KEY, UUID, 2, 5)
            seqs = itertools.count(1)

            def claimed() -> object:
                """Said again: the flood before it may have filled the socket's buffer."""
                hostile.sendto(impostor.seal(next(seqs), b"\x01"), (target.address, PORT))
                return target.view.conflict

            await cluster.until("conflict", claimed)
        assert "127.0.77.99, configured is 127.0.77.2" in target.view.conflict[0]
        assert target.view.drops["wrong cluster key or not our cluster"] > 100
        assert target.log.count("wrong cluster key or not our cluster") == 1
        assert target.view.term == term
        assert all(node.state == "alive" for node in target.view.nodes.values())

    play(story)


async def change_all(cluster: Cluster, change: Change, config: ClusterConfig, nodes: list[Node]) -> ClusterConfig:
    """What the hactlds do: propose, accept, and once it is chosen and safe, take it."""
    chief = cluster.leader(tuple(node.name for node in nodes))
    assert chief is not None
    following = change.applied(config)
    digest = following.digest().hex()
    await cluster.until("a change can be proposed", lambda: not chief.view.config.blocked)
    chief.client.propose(change.to_plain(), digest)
    for node in nodes:
        if node is not chief:
            node.client.accept(chief.view.term, change.to_plain(), digest)
    await cluster.until("chosen", lambda: chief.view.config.safe_in_ms == 0)
    for node in nodes:
        node.client.reconfigure(change.to_plain())
    return following


def test_the_configuration_changes_in_place_with_a_new_key_and_without_a_node(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        third = next(node for node in reversed(cluster.nodes) if node is not cluster.leader())
        home = third.config.parent
        config = parse_config(third.config.read_text())
        generations = {node.name: node.view.generation for node in cluster.nodes}
        new = bytes(32)
        (home / "key").write_text(f"{KEY.hex()}\n{new.hex()}\n")
        for keys in ((KEY, new), (new, KEY), (new,)):
            step = Change(
                version=config.version + 1,
                previous=config.digest().hex(),
                keys=tuple(keyring.key_id(key) for key in keys),
            )
            config = await change_all(cluster, step, config, cluster.nodes)
            await cluster.until("all made it", lambda v=config.version: all_at(cluster, v))
        (home / "key").write_text(new.hex())
        left = [node for node in cluster.nodes if node is not third]
        for node in left:
            node.views.clear()
        step = Change(version=config.version + 1, previous=config.digest().hex(), remove=third.number)
        config = await change_all(cluster, step, config, left)
        await cluster.until("two nodes", lambda: all(len(node.view.nodes) == 2 for node in left))
        await cluster.until("no lease outside", lambda: third.view.lease_left_ms == 0)
        for node in left:
            assert node.view.generation == generations[node.name]
            assert all(view.lease_left_ms > 0 and view.leader for view in node.views), "a lease lapsed"

    play(story)


def all_at(cluster: Cluster, version: int) -> bool:
    views = [node.view for node in cluster.nodes]
    return all(view.config.version == version and view.lease_left_ms for view in views) and all(
        other.config_version == version for view in views for other in view.nodes.values()
    )


def test_an_observer_sees_but_may_not_command(play: Callable[[Story], None]) -> None:
    async def story(cluster: Cluster) -> None:
        chief = cluster.leader()
        assert chief is not None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as observer:
            observer.connect(chief.socket)
            assert json.loads(observer.recv(65536))["me"] == chief.name
            observer.send(b'{"t":"yield"}')
            observer.send(b"not json")
            with contextlib.suppress(OSError):
                while observer.recv(65536):
                    pass
        await cluster.until("hung up on", lambda: "hung up" in chief.log)
        assert "did not say hello" in chief.log
        assert not chief.view.yielded

    play(story)


def run_once(config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nodewatch", "--config", str(config), "--state", str(config.parent / "s")]
    command += ["--socket", str(config.parent / "k"), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])


def test_a_start_that_cannot_be_right_is_refused_in_one_line(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    config, key = tmp_path / "hactl.toml", tmp_path / "key"
    good = config.read_text()

    def refused(reason: str, *more: str) -> None:
        done = run_once(config, *more)
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr

    refused("there is no [[node]] 'n9'", "--node", "n9")
    config.write_text(good + "[timing]\nfoo = 1\n")
    refused("[timing] foo: unknown key", "--node", "n1")
    config.write_text(good)
    key.chmod(0o644)
    refused("run `chmod 600", "--node", "n1")
    key.chmod(0o600)
    key.write_text("short")
    refused("not 64 hex digits", "--node", "n1")
    key.unlink()
    refused("copy it from another node", "--node", "n1")
    assert not (tmp_path / "s").exists(), "nothing was changed"
    assert cluster.nodes


def test_two_links_are_both_listened_on_and_seen(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, links=2) as cluster:
            for node in cluster.nodes:
                others = [other.name for other in cluster.nodes if other is not node]

                def heard(node: Node = node, others: list[str] = others) -> bool:
                    links = [link for name in others for link in node.view.nodes[name].links]
                    return len(links) == 4 and all(link.state == "up" and link.hears_us for link in links)

                await cluster.until("both links up", heard)
            assert not any(node.view.drops for node in cluster.nodes)

    asyncio.run(story())
