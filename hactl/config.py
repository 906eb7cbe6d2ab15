"""hactl.toml as this node uses it. The file's one parser is `nodewatch.config`; here is who we are in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fencing.model import Identity
from hactl.errors import ConfigError
from nodewatch.config import ClusterConfig, parse_config
from nodewatch.config import ConfigError as ParseError
from nodewatch.lease import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The cluster's configuration and this node's place in it."""

    cluster: ClusterConfig
    me: str
    number: int

    @property
    def timing(self) -> Timing:
        return self.cluster.timing

    @property
    def identity(self) -> Identity:
        return Identity(cluster_uuid=self.cluster.uuid, node=self.number, node_name=self.me)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Where to listen for scrapes, or None for nowhere."""
        if self.cluster.metrics_listen is None:
            return None
        address, _, port = self.cluster.metrics_listen.rpartition(":")
        own = next(node.address for node in self.cluster.nodes if node.name == self.me)
        return address.strip("[]") or own, int(port)

    @property
    def numbers(self) -> dict[str, int]:
        return {node.name: node.number for node in self.cluster.nodes}

    @property
    def voters(self) -> frozenset[str]:
        """Nodes that only vote: they run node watch alone, and have no disks."""
        return frozenset(node.name for node in self.cluster.nodes if node.votes_only)


def load(path: Path, hostname: str) -> Config:
    """Read and check the whole file. Raises ConfigError with the file, the place and what to do."""
    try:
        text = path.read_text()
    except OSError as missing:
        raise ConfigError(
            f"{path}: {missing.strerror}. Make it with `hactl init` on one node and copy it to the others"
        ) from missing
    except UnicodeDecodeError as binary:
        raise ConfigError(f"{path}: not a text file ({binary})") from binary
    try:
        cluster = parse_config(text)
        me = cluster.me(hostname)
    except ParseError as wrong:
        raise ConfigError(f"{path}: {wrong}") from wrong
    return Config(cluster=cluster, me=me.name, number=me.number)
