"""`/metrics`, by prometheus-client, on the address that the configuration names and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hactl.exercise import GOOD

BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 120.0)


class StatusCollector(Collector):
    """Turns the same status that the CLI shows, and the history, into samples at each scrape."""

    def __init__(self, status: Callable[[], dict[str, Any]], history: Callable[[], list[dict[str, Any]]]):
        self._status = status
        self._history = history

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        yield _flag("hactl_quorum", "This node hears a majority of the configured nodes", status["quorum"])
        yield _flag("hactl_leader", "This node is the leader", status["leader"] == status["me"])
        yield _flag("hactl_problems", "Problems of the whole cluster that `hactl status` lists", status["problems"])
        if status.get("witness"):
            witness = status["witness"]
            reachable = all(lun["reachable"] for lun in witness["luns"])
            yield _flag("hactl_witness_reachable", "This node reads every LUN of the witness", reachable)
            yield _flag("hactl_witness_in_use", "Some node that is heard uses the witness", bool(witness["used_by"]))
        if status.get("exercise"):
            yield from self._exercises(status["exercise"])
        yield from self._nodes(status["nodes"])
        yield from self._volumes(status)
        yield from self._takeovers()

    def _exercises(self, shown: dict[str, Any]) -> Iterator[Metric]:
        labels = ["kind", "volume"]
        failed = GaugeMetricFamily(
            "hactl_exercise_failed", "The last exercise on this node found a fault", labels=labels
        )
        ended = GaugeMetricFamily("hactl_exercise_end_seconds", "When the last one ended, Unix time", labels=labels)
        for kind in ("reads", "swaps"):
            for volume, result in sorted(shown[kind].items()):
                failed.add_metric([kind, volume], float(result["text"] != GOOD))
                ended.add_metric([kind, volume], result["unix_ms"] / 1000)
        yield from (failed, ended)

    def _nodes(self, nodes: list[dict[str, Any]]) -> Iterator[Metric]:
        alive = GaugeMetricFamily("hactl_node_alive", "The node is heard", labels=["node"])
        ready = GaugeMetricFamily("hactl_node_ready", "The node could take any volume now", labels=["node"])
        for node in nodes:
            alive.add_metric([node["name"]], float(node["state"] == "alive"))
            ready.add_metric([node["name"]], float(node["ready"]))
        yield alive
        yield ready

    def _volumes(self, status: dict[str, Any]) -> Iterator[Metric]:
        serving = GaugeMetricFamily("hactl_volume_serving", "This node serves the volume", labels=["volume"])
        down = GaugeMetricFamily("hactl_volume_down", "Wanted, but nobody serves it", labels=["volume"])
        backup = GaugeMetricFamily("hactl_volume_backup_ready", "Another node could take it", labels=["volume"])
        epoch = GaugeMetricFamily("hactl_volume_epoch", "The epoch on the volume's label", labels=["volume"])
        problems = GaugeMetricFamily("hactl_volume_problems", "Problems listed for the volume", labels=["volume"])
        for volume in status["volumes"]:
            name = [volume["name"]]
            up = volume["state"] in ("serving", "reclaiming")
            serving.add_metric(name, float(up and volume["server"] == status["me"]))
            down.add_metric(name, float(volume["wanted"] == "started" and not up))
            backup.add_metric(name, float(volume["next"] is not None))
            epoch.add_metric(name, volume["epoch"])
            problems.add_metric(name, len(volume["problems"]))
        yield from (serving, down, backup, epoch, problems)

    def _takeovers(self) -> Iterator[Metric]:
        seconds: dict[tuple[str, str], list[float]] = {}
        for takeover in self._history():
            for step in takeover["steps"]:
                key = (takeover["volume"], step["name"])
                took_s = (step["end_unix_ms"] - step["start_unix_ms"]) / 1000
                seconds.setdefault(key, []).append(max(took_s, 0.0))
        family = HistogramMetricFamily(
            "hactl_takeover_step_seconds", "How long each step of the takeovers took", labels=["volume", "step"]
        )
        for (volume, step), values in sorted(seconds.items()):
            counts = [(str(top), float(sum(v <= top for v in values))) for top in BUCKETS_S]
            family.add_metric([volume, step], [*counts, ("+Inf", float(len(values)))], sum(values))
        yield family


def _flag(name: str, text: str, value: object) -> Metric:
    return GaugeMetricFamily(name, text, value=float(len(value)) if isinstance(value, list) else float(bool(value)))


def serve(address: str, port: int, collector: Collector) -> None:
    """Listen for scrapes on one address. Raises OSError if it is not ours or taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    start_http_server(port, addr=address, registry=registry)
