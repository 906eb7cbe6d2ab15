"""What the local API can do: each verb of `hactl` that needs the daemon, as one short method."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hactl import changes, metrics
from hactl.api import Api, Args, Verb
from hactl.errors import RequestRefused
from hactl.explain import explain_key
from hactl.nodestatus import link_states, node_status
from hactl.placement import NodeFacts
from hactl.status import cluster_status, node_reasons

if TYPE_CHECKING:
    from hactl.daemon import Daemon

CHANGING = frozenset(
    {"move", "start", "stop", "fence", "unfence", "rescan", "drain", "resume", "node-add", "node-remove", "key-rotate"}
)
WATCH_S = 1.0
WATCH_LINES = 12


class Verbs:
    """The daemon as the API and the metrics see it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def api(self) -> Api:
        verbs = {
            "status": self.status,
            "nodes": self.nodes,
            "history": self.history,
            "keys": self.keys,
            "move": self.command("move"),
            "start": self.command("start"),
            "stop": self.command("stop"),
            "fence": self.command("fence"),
            "unfence": self.command("unfence"),
            "rescan": self.rescan,
            "drain": self.stand_by(True),
            "resume": self.stand_by(False),
            "node-add": self.command("node-add"),
            "node-remove": self.command("node-remove"),
            "key-rotate": self.command("key-rotate"),
        }
        return Api(verbs, {"watch": self.watch, "events": self.events}, CHANGING)

    def serve_metrics(self) -> None:
        """Listen for scrapes if the configuration says where. A port that is taken is said, and no reason to stop."""
        where = self._daemon.config.metrics_address
        if where is None:
            return
        collector = metrics.StatusCollector(self.state, lambda: self._daemon.records.history(200))
        try:
            metrics.serve(*where, collector)
        except OSError as wrong:
            self._daemon.journal.say(f"metrics: cannot listen on {where[0]}:{where[1]}: {wrong.strerror}")

    def state(self) -> dict[str, Any]:
        daemon = self._daemon
        view = daemon.view
        state = cluster_status(
            cluster=daemon.config.cluster.name,
            leader=view.leader or "",
            quorum=view.quorum,
            facts=daemon.facts(),
            numbers=daemon.config.numbers,
            plan=daemon.leader.plan,
            blocked=daemon.leader.blocked,
            problems=tuple(self._problems()),
        )
        state["lease_left_ms"] = view.lease_left_ms
        state["config"] = changes.progress(view, daemon.config.cluster)
        state["evidence"] = {name: node.why for name, node in view.nodes.items()}
        state["links"] = link_states(view)
        state["watchdog"] = view.watchdog
        return state

    def _problems(self) -> list[str]:
        daemon = self._daemon
        view = daemon.view
        problems = [f"{device}: {why}" for device, why in sorted(daemon.volumes.strange.items())]
        problems += [text for text in (daemon.changes.removed, daemon.changes.trouble) if text]
        problems += changes.problems(view, daemon.config.cluster)
        problems += [
            f"node {name} has another hactl.toml: make them equal, restart hactl-nodewatch there"
            for name in view.config_mismatch
            if not 0 < view.nodes[name].config_version < view.config.version
        ]
        problems += list(view.conflict)
        problems += [f"watchdog of {view.me}: {view.watchdog}"] if view.watchdog else []
        return problems

    async def status(self, args: Args) -> dict[str, Any]:
        return self.state()

    async def nodes(self, args: Args) -> list[dict[str, Any]]:
        """Each node and what the verdicts on it rest on."""
        daemon = self._daemon
        facts = daemon.facts()
        return [
            node_status(
                daemon.view,
                name,
                number=number,
                seen_ms_ago=daemon.view_age_ms(),
                reasons=node_reasons(facts.nodes[name]),
                phases=_phases(facts.nodes[name]),
            )
            for name, number in sorted(daemon.config.numbers.items(), key=lambda item: item[1])
            if name in daemon.view.nodes
        ]

    async def history(self, args: Args) -> list[dict[str, Any]]:
        kept = self._daemon.records.history()
        return [each for each in kept if args.get("volume", "") in ("", each["volume"])]

    async def keys(self, args: Args) -> list[dict[str, Any]]:
        """Every key registered on every volume's disks, each explained."""
        rows: list[dict[str, Any]] = []
        numbers = {number: name for name, number in self._daemon.config.numbers.items()}
        for name, each in sorted(self._daemon.volumes.seen.items()):
            if args.get("volume", "") not in ("", name):
                continue
            for lun in each.disk.luns:
                state = await each.runtime.interpreter.on_disk(lun.port.read)
                for registrant in state.registrants:
                    rows.append(
                        {
                            "volume": name,
                            "device": each.device,
                            "wwid": lun.wwid,
                            "key": f"0x{registrant.key:016x}",
                            "holder": registrant.holder,
                            "generation": state.generation,
                            "meaning": explain_key(
                                registrant.key, self._daemon.config.identity.tag, numbers, each.label.epoch
                            ),
                        }
                    )
        return rows

    def command(self, verb: str) -> Any:
        """A command for the leader. Asking to fence the leader is refused: it cannot judge itself."""

        async def run(args: Args) -> dict[str, str]:
            leader = self._daemon.view.leader
            if verb == "fence" and args.get("node") == leader:
                raise RequestRefused(
                    f"{leader} leads the cluster and cannot bar itself: stop it with `systemctl stop "
                    f"hactl-nodewatch` there, or cut its power; the others then take over"
                )
            return await self._daemon.command(verb, args)

        return run

    def stand_by(self, wanted: bool) -> Verb:
        async def run(args: Args) -> dict[str, str]:
            self._daemon.stand_by(wanted)
            return {}

        return run

    async def rescan(self, args: Args) -> dict[str, str]:
        self._daemon.rescan()
        return {}

    async def watch(self, args: Args) -> AsyncIterator[dict[str, Any]]:
        """The status again on every line that the journal gets, and at least once a second."""
        while True:
            state = self.state()
            state["events"] = [asdict(entry) for entry in self._daemon.journal.since(0)[-WATCH_LINES:]]
            yield state
            await self._daemon.journal.changed(WATCH_S)

    async def events(self, args: Args) -> AsyncIterator[dict[str, Any]]:
        """What the journal kept; with follow=yes, also everything that comes."""
        if args.get("follow") == "yes":
            async for entry in self._daemon.journal.follow(0):
                yield asdict(entry)
        else:
            for entry in self._daemon.journal.since(0):
                yield asdict(entry)


def _phases(node: NodeFacts) -> dict[str, str]:
    volumes = node.report.volumes if node.report is not None else {}
    return {name: report.phase for name, report in sorted(volumes.items())}
