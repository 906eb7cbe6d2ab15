"""Node watch: who is there, who leads, who may serve. Pure cores here; files that begin with `_` touch the world."""

from nodewatch.config import ClusterConfig, ConfigError, NodeConfig, parse_config
from nodewatch.lease import Timing, TimingRow
from nodewatch.view import NodeView, View

__all__ = ["ClusterConfig", "ConfigError", "NodeConfig", "NodeView", "Timing", "TimingRow", "View", "parse_config"]
