"""Volumes: mount, export, served address. The pure names; the edge is `fs._service.VolumeService`."""

from fs.errors import Busy, FsError, NotPossible, OutcomeUnknown
from fs.handover import Step, Wanted, next_step
from fs.model import Did, Gate, GraceStatus, Mounted, Observed, Tracking, VolumeSpec

__all__ = [
    "Busy",
    "Did",
    "FsError",
    "Gate",
    "GraceStatus",
    "Mounted",
    "NotPossible",
    "Observed",
    "OutcomeUnknown",
    "Step",
    "Tracking",
    "VolumeSpec",
    "Wanted",
    "next_step",
]
