"""In which order a volume is taken and given, decided from what is observed.

Theory. Serving is a stack: namespace, mount, tracking, nfsd, address. It is built bottom up and taken down
top down, and every layer is visible in the kernel. So no step needs to remember anything: ask for the next
step, do it, look again. A plan that was cut anywhere (crash of the daemon, a failed step) resumes by itself.

Rules:
- The address goes first when giving, so that no client ever hears an answer that is only half a server.
- The address comes only when nfsd's tracking is attached: otherwise the kernel silently records nothing and
  locks would be lost at the next takeover.
- A damaged or foreign mount is never built upon, only taken down.
"""

from __future__ import annotations

from enum import Enum

from fs.model import Mounted, Observed, Tracking


class Wanted(Enum):
    # Everything that can be made in advance is there; nothing of the volume is touched.
    STANDBY = "standby"
    SERVING = "serving"


class Step(Enum):
    """Each is a method of VolumeService."""

    PREPARE = "prepare"
    MOUNT = "mount"
    START_TRACKING = "start_tracking"
    START_NFSD = "start_nfsd"
    ADD_ADDRESS = "add_address"
    REMOVE_ADDRESS = "remove_address"
    STOP_NFSD = "stop_nfsd"
    STOP_TRACKING = "stop_tracking"
    UNMOUNT = "unmount"


def next_step(observed: Observed, wanted: Wanted) -> Step | None:
    """The one step that brings `observed` nearer to `wanted`, or None when it is there."""
    if wanted is Wanted.SERVING and not _must_come_down(observed):
        return _upwards(observed)
    return _downwards(observed)


def _must_come_down(observed: Observed) -> bool:
    return observed.damaged or observed.mounted is Mounted.FOREIGN


def _upwards(observed: Observed) -> Step | None:
    if not observed.prepared:
        return Step.PREPARE
    if observed.mounted is Mounted.NO:
        # Threads without a mount are left over from an interrupted giving: they hold a dead export.
        return _downwards(observed) if observed.nfsd_threads else Step.MOUNT
    if observed.nfsd_threads == 0:
        return _start_server(observed)
    if observed.tracking in (Tracking.ABSENT, Tracking.STARTING):
        return Step.START_TRACKING  # it ended under a running server: a new one takes up the kernel's pipe
    if observed.tracking is Tracking.READY:
        # The kernel has no pipe for it: this nfsd was started without tracking and records nothing.
        return Step.REMOVE_ADDRESS if observed.address_left_s is not None else Step.STOP_NFSD
    if not (observed.responder and observed.listening):
        return Step.START_NFSD
    return Step.ADD_ADDRESS if observed.address_left_s is None else None


def _start_server(observed: Observed) -> Step:
    return Step.START_TRACKING if observed.tracking is Tracking.ABSENT else Step.START_NFSD


def _downwards(observed: Observed) -> Step | None:
    if observed.address_left_s is not None:
        return Step.REMOVE_ADDRESS
    if observed.nfsd_threads or observed.listening:
        return Step.STOP_NFSD
    if observed.tracking is not Tracking.ABSENT:
        return Step.STOP_TRACKING
    if observed.mounted is not Mounted.NO:
        return Step.UNMOUNT
    return None if observed.prepared else Step.PREPARE
