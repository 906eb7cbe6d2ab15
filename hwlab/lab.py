"""Open a lab by name: the one place that knows which drivers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hwlab import locallab, netns, record
from hwlab.errors import LabError
from hwlab.locallab import LocalLab
from hwlab.protocols import Lab, Progress
from hwlab.sshlab import SshLab
from hwlab.topology import Topology, load, parse

DRIVERS: Mapping[str, Callable[[str, Topology, str], Lab]] = {"uml": LocalLab, "qemu": LocalLab, "ssh": SshLab}


def open_lab(name: str, topology: str | None = None) -> Lab:
    """The lab of that name; nothing is started.

    An existing lab has the topology it was started with, and `topology` (a name or a path) is only for one that
    does not exist; without it that one gets `default`. LabError if topology and lab do not fit.
    """
    existing = record.read(name)
    if existing is not None and topology is None:
        text = existing.topology
        parsed = parse(text, f"topology of lab {name}")
    else:
        parsed, text = load(topology or "default")
    if parsed.driver not in DRIVERS:
        raise LabError(f"topology {parsed.name}: driver {parsed.driver!r} is none of {', '.join(DRIVERS)}")
    return DRIVERS[parsed.driver](name, parsed, text)


def all_labs() -> list[str]:
    """Names of all labs of which there is anything on this machine."""
    return sorted({*record.recorded_labs(), *netns.labs_with_namespace()})


def remove_lab(name: str, progress: Progress) -> None:
    """`down` for a lab of which only the name may be known: its record may be missing or damaged."""
    try:
        lab = open_lab(name)
    except LabError:
        locallab.remove(name, progress)
    else:
        lab.down(progress)
