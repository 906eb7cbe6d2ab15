"""What the local API can do: each verb of `hactl` that needs the daemon, as one short method."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hactl import changes, metrics
from hactl.api import Api, Args, Verb
from hactl.errors import HaError, RequestRefused
from hactl.explain import explain_key
from hactl.messages import Trial
from hactl.nodestatus import link_states, node_status
from hactl.placement import NodeFacts
from hactl.status import cluster_status, node_reasons

if TYPE_CHECKING:
    from hactl.daemon import Daemon

CHANGING = frozenset(
    {"move", "start", "stop", "fence", "unfence", "rescan", "drain", "resume", "node-add", "node-remove", "key-rotate"}
    | {"force-witness", "trial"}
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
            "force-witness": self.force_witness,
            "trial": self.trial,
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
        state["nodes"] += self._voters()
        state["nodes"].sort(key=lambda node: node["number"])
        for node in state["nodes"]:
            node["fenced"] = daemon.fenced.get(node["name"])
        state["exercise"] = daemon.exerciser.show() if daemon.exerciser is not None else None
        state["witness"] = daemon.witness.show(dict(view.witness)) if view.witness else None
        state["lease_left_ms"] = view.lease_left_ms
        state["config"] = changes.progress(view, daemon.config.cluster)
        state["evidence"] = {name: node.why for name, node in view.nodes.items()}
        state["links"] = link_states(view)
        state["watchdog"] = view.watchdog
        return state

    def _voters(self) -> list[dict[str, Any]]:
        """Nodes that only vote. They are ready when they are heard."""
        rows = []
        for name in sorted(self._daemon.config.voters):
            node = self._daemon.view.nodes.get(name)
            if node is None:
                continue  # node watch has not taken the newest configuration yet
            alive = node.state == "alive"
            rows.append(
                {
                    "name": name,
                    "number": self._daemon.config.numbers[name],
                    "state": "barred" if node.barred else "alive" if alive else "overdue",
                    "daemon": "only votes",
                    "votes_only": True,
                    "ready": alive,
                    "reasons": [] if alive else ["not heard"],
                }
            )
        return rows

    def _problems(self) -> list[str]:
        daemon = self._daemon
        view = daemon.view
        strange = sorted(daemon.volumes.strange.items())
        problems = [why if why.startswith(f"{device}:") else f"{device}: {why}" for device, why in strange]
        problems += [text for text in (daemon.changes.removed, daemon.changes.trouble) if text]
        problems += changes.problems(view, daemon.config.cluster)
        problems += [
            f"node {name} has another hactl.toml: make them equal, restart hactl-nodewatch there"
            for name in view.config_mismatch
            if not 0 < view.nodes[name].config_version < view.config.version
        ]
        problems += list(view.conflict)
        problems += daemon.fencer.problems()
        problems += daemon.exerciser.problems() if daemon.exerciser is not None else []
        problems += [f"watchdog of {view.me}: {view.watchdog}"] if view.watchdog else []
        problems += daemon.witness.problems()
        if view.witness.get("waits_for"):
            problems.append(f"the witness is not claimed by this node: {view.witness['waits_for']}")
        if view.witness.get("state") == "lost":
            problems.append(
                "this node lost the witness to another one, and serves nothing until it hears a majority of nodes; "
                "if the others are off for good: `hactl witness force`"
            )
        return problems

    async def status(self, args: Args) -> dict[str, Any]:
        return self.state()

    async def nodes(self, args: Args) -> list[dict[str, Any]]:
        """Each node and what the verdicts on it rest on."""
        daemon = self._daemon
        facts = daemon.facts().nodes
        voters = {each["name"]: each["reasons"] for each in self._voters()}
        return [
            node_status(
                daemon.view,
                name,
                number=number,
                seen_ms_ago=daemon.view_age_ms(),
                reasons=voters[name] if name in voters else node_reasons(facts[name]),
                phases={} if name in voters else _phases(facts[name]),
                votes_only=name in voters,
            )
            for name, number in sorted(daemon.config.numbers.items(), key=lambda item: item[1])
            if name in daemon.view.nodes and (name in voters or name in facts)
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
                            "device": lun.port.device,
                            "wwid": lun.wwid,
                            "key": f"0x{registrant.key:016x}",
                            "holder": registrant.holder,
                            "generation": state.generation,
                            "meaning": explain_key(
                                registrant.key, self._daemon.config.identity.tag, numbers, each.label.epoch
                            ),
                        }
                    )
        if args.get("volume", "") == "":
            rows += self._witness_keys(numbers)
        return rows

    def _witness_keys(self, numbers: dict[int, str]) -> list[dict[str, Any]]:
        """As last read."""
        tag = self._daemon.config.identity.tag
        return [
            {
                "volume": "(witness)",
                "device": each.device,
                "wwid": each.wwid,
                "key": f"0x{registrant.key:016x}",
                "holder": registrant.holder,
                "generation": each.state.generation,
                "meaning": explain_key(
                    registrant.key, tag, numbers, each.standing.epoch if each.standing is not None else 0
                ),
            }
            for each in self._daemon.witness.luns
            if each.state is not None
            for registrant in each.state.registrants
        ]

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

    async def force_witness(self, args: Args) -> dict[str, str]:
        """Take the witness over, whoever used it: node watch refuses while it could not matter."""
        shown = self._daemon.view.witness
        if not shown:
            raise RequestRefused("no witness is configured")
        if self._daemon.view.quorum:
            raise RequestRefused("this node hears a majority, or uses the witness already: there is nothing to force")
        self._daemon.nodewatch.witness({"t": "force-witness"})
        return {}

    async def trial(self, args: Args) -> dict[str, Any]:
        """One act of a preflight on one node (`trials.py`); `args` of the act as JSON, `timeout_s` for the answer."""
        try:
            node, timeout_s, words = args["node"], float(args["timeout_s"]), dict(json.loads(args["args"]))
            trial = Trial(
                ident=uuid.uuid4().hex, session=args["session"], act=args["act"], wwid=args["wwid"], args=words
            )
        except (KeyError, ValueError, TypeError) as wrong:
            raise HaError(f"trial: {wrong!r}: are hactl and hactld of one version?") from wrong
        if node not in self._daemon.config.numbers:
            raise RequestRefused(f"there is no node {node!r}")
        return await self._daemon.trials.ask(node, trial, timeout_s)

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
