"""The scripts of one run, started on their hosts and listened to: load, thief, reader, asker, witness, stampers,
clocks."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hwlab import clocks
from hwlab.check_disk import BLOCKS_PER_NODE
from hwlab.drillfile import Load
from hwlab.feed import Event, Feed, News, read_clock
from hwlab.gather import HostClocks
from hwlab.history import key_epoch, key_node
from hwlab.stage import HostSilent, Stage

SCRIPTS = Path(__file__).parent
LOGS = "/run/hactl-drill"
TARGET_UNIT = "hwlab-target.service"
BACK_S = 90.0
START_S = 60.0
WARM_UP_S = 60.0
STOP_S = 45.0


class NotReady(Exception):
    """The drill could not begin: nothing was done to the cluster."""


class Observers:
    """Everything that watches one run. Times in events are nanoseconds of the host's own clock."""

    def __init__(self, stage: Stage, load: Load, run: str, *, late: bool = False) -> None:
        """`late`: a node will write to blocks of its own besides (latewriter.py)."""
        self.news = News()
        self.run = run
        self.clocks: dict[str, HostClocks] = {}
        self.stampers: list[tuple[int, Feed]] = []
        self.load: Feed | None = None
        self.thief: Feed | None = None
        self.witness: Feed | None = None
        self.asker: Feed | None = None
        self.reader: Feed | None = None
        self._stage = stage
        self._settings = load
        self._late = late
        self._watches: list[tuple[Feed, clocks.Clock]] = []
        """Every witness of this run with the target's clock at its start: one for each life of the target."""

    def start(self) -> None:
        """Clocks first, then the witness, then the load: nothing happens before somebody watches."""
        stage, settings, share = self._stage, self._settings, self._stage.share
        hosts = (stage.target, stage.client, *stage.nodes.values())
        with ThreadPoolExecutor(len(hosts)) as pool:
            self.clocks = {clock.host: HostClocks(before=clock) for clock in pool.map(self._clock, hosts)}
        self._watch(self.clocks[stage.target].before)
        words = ["--link", share.thief_link, "--address", share.asker_address, "--log", self.log("asker")]
        words += ["--served", share.source.partition(":")[0]]
        self.asker = self._feed(stage.client, "asker", words)
        self._await(self.asker, "started")
        words = ["--directory", share.mount_point, "--run", self.run, "--log", self.log("load")]
        words += ["--pause-ms", str(settings.record_pause_ms)]
        self.load = self._feed(stage.client, "load", words)
        self._await(self.load, "started")
        words = ["--pause-ms", str(settings.lock_pause_ms)]
        self.thief = self._feed(stage.client, "thief", self._machine("thief", share.thief_address) + words)
        self._await(self.thief, "started")
        if settings.reader:
            self.reader = self._feed(stage.client, "reader", self._machine("reader", share.reader_address))
            self._await(self.reader, "started")
        self._warm_up(settings.warm_up_records)

    def _watch(self, clock: clocks.Clock) -> None:
        stage = self._stage
        late = [BLOCKS_PER_NODE * node + block for node in stage.nodes for block in range(BLOCKS_PER_NODE)]
        numbers = ",".join(map(str, [*stage.nodes, *(late if self._late else ())]))
        self.witness = self._feed(stage.target, "witness", ["--numbers", numbers, "--lun", stage.share.lun])
        self._watches.append((self.witness, clock))
        self._await(self.witness, "started")

    def watch_again(self) -> None:
        """The target lost its power, and the witness with it: a new one, as soon as the target answers again.

        HostSilent if it does not, or if the witness does not start.
        """
        trouble = ""
        end = time.monotonic() + BACK_S
        while time.monotonic() < end:
            try:
                # Without the target's own unit there is nothing to watch yet.
                ready = ["systemctl", "is-active", "--quiet", TARGET_UNIT]
                if self._stage.exec(self._stage.target, ready, timeout_s=5).returncode == 0:
                    self._watch(read_clock(self._stage, self._stage.target))
                    return
                trouble = f"{TARGET_UNIT} is not active"
            except (HostSilent, OSError, ValueError, NotReady) as error:
                trouble = str(error)
            time.sleep(0.2)
        raise HostSilent(f"nobody watches {self._stage.target} after its restart: {trouble}")

    def watched(self) -> list[tuple[list[Event], clocks.Clock]]:
        """What each witness saw, with the clock of its boot as it is known best."""
        known = self.clocks[self._stage.target]
        best = {clock.boot: clock for clock in (known.after, known.before) if clock is not None}
        return [(feed.events, best.get(clock.boot, clock)) for feed, clock in self._watches]

    def _machine(self, script: str, address: str) -> list[str]:
        """Words for a script that is an NFS client of its own."""
        share = self._stage.share
        words = ["--source", share.source, "--options", share.options, "--link", share.thief_link]
        return [*words, "--address", address, "--run", self.run, "--log", self.log(script)]

    def _clock(self, host: str) -> clocks.Clock:
        try:
            return read_clock(self._stage, host)
        except (OSError, ValueError) as error:
            raise NotReady(f"{host} does not tell its time: {error}") from error

    def _feed(self, host: str, script: str, argv: list[str]) -> Feed:
        return Feed(self._stage, host, SCRIPTS / f"{script}.py", argv, self.news)

    def _await(self, feed: Feed, kind: str) -> Event:
        event = feed.wait(kind, START_S)
        if event is None:
            raise NotReady(f"{feed.name} on {feed.host} did not start: {feed.complaint or 'no answer'}")
        return event

    def _warm_up(self, records: int) -> None:
        """Until the client writes, the thief is refused and the witness sees a holder."""
        assert self.load and self.thief and self.witness
        load, thief = self.load, self.thief

        def warm() -> bool:
            tried = thief.last("try")
            wrote = load.last("ack")
            return bool(
                wrote
                and wrote["acknowledged"] >= records
                and tried
                and tried["outcome"] == "refused"
                and (self.reader is None or self.reader.last("read") is not None)
                and self.answering()
                and self.holder() is not None
            )

        if not self.news.wait(warm, WARM_UP_S):
            wrote, tried = load.last("ack"), thief.last("try")
            raise NotReady(
                f"the load did not get going: {wrote['acknowledged'] if wrote else 0} records, "
                f"lock {tried['outcome'] if tried else 'never tried'}, "
                f"{'a' if self.holder() else 'no'} holder on the disk, "
                f"address answered by {self.answering() or 'nobody'}"
            )

    def stamp(self, host: str) -> None:
        """Let a node stamp its disk, and wait until the target's disk shows it."""
        number = next(n for n, name in self._stage.nodes.items() if name == host)
        words = ["--mount", self._stage.share.node_mount, "--run", self.run, "--number", str(number)]
        words += ["--pause-ms", str(self._settings.stamp_pause_ms)]
        feed = self._feed(host, "stamper", words)
        self._await(feed, "started")
        self.stampers.append((number, feed))

        def shown() -> bool:
            return any(
                row["node"] == number and row["run"] == self.run and row["n"] > 0
                for event in (self.witness.all("stamps") if self.witness else ())
                for row in event["rows"]
            )

        if not self.news.wait(shown, WARM_UP_S):
            raise NotReady(f"the target's disk shows no stamp of {host}: {feed.complaint or 'no error'}")

    def write_late(self, host: str, depth: int = 0) -> None:
        """Let a node keep writes on their way; `depth`: of these its device takes so many from now on.

        Nothing is waited for: with a slow target the first ones take long.
        """
        number = next(n for n, name in self._stage.nodes.items() if name == host)
        running = [feed for n, feed in self.stampers if n == number]
        if running:
            running[-1].say(f"depth {depth}")
            return
        words = ["--mount", self._stage.share.node_mount, "--run", self.run, "--number", str(number)]
        feed = self._feed(host, "latewriter", words)
        self._await(feed, "started")
        self.stampers.append((number, feed))

    def held_in_target(self) -> bool:
        """Writes wait in the block layer, and of those that the driver took every byte has left the host."""
        told = self._stages()
        return bool(told and told["taken"] > 0 and told["inside"] > told["taken"] and told["unsent"] == 0)

    def held_in_socket(self) -> bool:
        told = self._stages()
        return bool(told and told["inside"] > told["taken"] and told["unsent"] > 4096)

    def _stages(self) -> Event | None:
        return next((told for _, feed in self.stampers if (told := feed.last("stages"))), None)

    def pin(self, word: str) -> None:
        """`pin` the reader to the node that serves now, or `free` it."""
        if self.reader is None:
            raise NotReady("the drill has no reader: [load] reader = true")
        self.reader.say(word)
        if self.reader.wait("pinned" if word == "pin" else "freed", START_S) is None:
            raise NotReady(f"the reader could not {word}: {self.reader.complaint or 'no answer'}")

    def answering(self) -> str:
        """The MAC that last answered for the served address."""
        told = self.asker.last("answer") if self.asker else None
        return str(told["mac"]) if told else ""

    def silent_ms(self) -> float:
        """For how long nobody has answered for the served address, as far as the asker has told."""
        told = self.asker.last("answer") if self.asker else None
        return clocks.now_ms() - told["heard_ms"] if told else 0.0

    def reads_since(self, since_ms: float) -> bool:
        """Whether a read begun after that moment of the drill's clock has ended."""
        told = self.reader.last("read") if self.reader else None
        return bool(told and self.clocks[self._stage.client].before.from_mono_ns(told["submit"]) > since_ms)

    def holder(self) -> int | None:
        """The key that holds the disk now, as the target's last word has it."""
        event = self.witness.last("pr") if self.witness else None
        return int(event["holder"], 16) if event and event["holder"] else None

    def holder_name(self) -> str:
        key = self.holder()
        return self._stage.nodes.get(key_node(key), "") if key else ""

    def holder_epoch(self) -> int:
        key = self.holder()
        return key_epoch(key) if key else 0

    def acks_since(self, since_ms: float) -> int:
        """Records acknowledged after a moment of the drill's clock, as far as the load has told."""
        clock = self.clocks[self._stage.client].before
        told = self.load.all("ack") if self.load else []
        after = [event for event in told if clock.from_mono_ns(event["ack"]) > since_ms]
        return int(after[-1]["acknowledged"] - after[0]["acknowledged"] + 1) if after else 0

    def log(self, script: str) -> str:
        return f"{LOGS}/{self.run}-{script}.log"

    def read_clocks_again(self, rebooted_ms: dict[str, float]) -> None:
        """At the end: how far the clocks drifted, and the clocks of the boots that are new."""
        for host, known in list(self.clocks.items()):
            try:
                after = read_clock(self._stage, host)
            except (OSError, ValueError, HostSilent):
                continue
            if after.boot == known.before.boot:
                both = clocks.combine(known.before, after)
                self.clocks[host] = HostClocks(before=both, after=both)
            else:
                self.clocks[host] = HostClocks(before=known.before, after=after, rebooted_ms=rebooted_ms.get(host))

    def stop_load(self) -> Event | None:
        """End writer and thief in order; returns what the thief read back.

        The writer goes first and gives its lock back while the thief still tries: only a thief that gets the
        lock now could have got it before.
        """
        assert self.load and self.thief
        load, thief = self.load, self.thief
        if self.reader is not None:
            self.reader.say("stop")
            self.reader.wait("final", STOP_S)
        load.say("stop")
        released = load.wait("released", STOP_S)
        if released is not None:
            self.news.wait(lambda: self._took_after(released["at"]), STOP_S)
        thief.say("read")
        found = thief.wait("found", STOP_S)
        thief.say("stop")
        thief.wait("final", STOP_S)
        return found

    def _took_after(self, released_ns: int) -> bool:
        tried = self.thief.last("try") if self.thief else None
        return bool(tried and tried["outcome"] == "took" and tried["done"] >= released_ns)

    def stop_watching(self) -> None:
        """End stampers, then the witness: it reads the stamps one last time."""
        for feed in (*(stamper for _, stamper in self.stampers), self.asker, self.witness):
            if feed is not None and not feed.ended:
                feed.say("stop")
                feed.wait("final", 10.0)

    def close(self) -> None:
        """Let go of every script, whatever state it is in."""
        stampers = (feed for _, feed in self.stampers)
        witnesses = (feed for feed, _ in self._watches)
        for feed in (self.reader, self.load, self.thief, self.asker, *stampers, *witnesses):
            if feed is not None:
                feed.close()
