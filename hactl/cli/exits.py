"""Exit codes by class: a script can tell what kind of "no" it got."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    REFUSED = 1
    """The cluster understood and said no, or the work failed; nothing half-done is left."""
    USAGE = 2
    """The command line, a file or a permission is wrong; nothing was changed."""
    UNKNOWN = 3
    """It was begun, and how it ended is not known: look with `hactl status`."""
    UNREACHABLE = 4
    """hactld on this node does not answer."""
    DEGRADED = 5
    """`status --check`, `check` or `preflight`: it works, but something is wrong."""
