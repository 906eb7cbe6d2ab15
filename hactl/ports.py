"""The real disk and the real export behind the interpreter's protocols. Blocking: for a volume's own threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fencing import acquisition as acquiring
from fencing import handle as handles
from fencing._threads import Threads
from fencing.errors import FencingError, LostRace
from fencing.handle import Handle
from fencing.label import FoundLabel, Label, common_label
from fencing.model import PROBE_EPOCH, Identity, Key
from fencing.nexus import refuse_shared
from fencing.ownership import Lost
from fencing.port import Lun
from fencing.timing import Timing
from fencing.verdict import probe_pr_out
from fs._service import VolumeService
from fs.model import GraceStatus
from hactl.interpret import Grace, HandleLost, Span
from hactl.messages import Order
from hactl.record import Held, Records

SETTLE_S = 15.0
"""So long a device gets to finish what it had begun for an owner whose end nothing tells (`fencing/ending.py`). An
assumption about storage, the only one of its kind: writes that a device has begun take milliseconds."""


class FencedDisk:
    """The LUNs of one volume, and this node's handle on them while it has one."""

    def __init__(
        self,
        *,
        volume: str,
        luns: tuple[Lun, ...],
        identity: Identity,
        records: Records,
        word: Callable[[], tuple[Order, int]],
        monotonic_s: Callable[[], float],
        pause_s: Callable[[float], None],
    ) -> None:
        self.luns = luns
        self.handle: Handle | None = None
        self._volume = volume
        self._identity = identity
        self._records = records
        self._word = word
        self._now = monotonic_s
        self._pause_s = pause_s
        self._label: Label | None = None
        self._spread = Threads()

    def acquire(self) -> list[Span]:
        """A new handle, its epoch durable before the disk hears of it, and recorded for this boot."""
        self.handle = None
        handle = acquiring.acquire(
            self.luns,
            self._identity,
            floor=self._records.floor(self._volume),
            intent=lambda epoch: self._records.intend(self._volume, epoch),
            clock=self._now,
            settle=lambda: self._pause_s(SETTLE_S),
            spread=self._spread,
        )
        if handle.label is not None and handle.label.wanted != "started":
            handles.update_label(handle, lambda label: replace(label, wanted="started"))
        wwids = tuple(lun.wwid for lun in handle.luns)
        order, wait_until_ms = self._word()
        held = Held(key=handle.key.value, epoch=handle.epoch, order=order, wwids=wwids, wait_until_ms=wait_until_ms)
        self._records.hold(self._volume, held)
        self.handle = handle
        return _fence_spans(handle)

    def verify(self) -> None:
        """Raises HandleLost when a disk says so, PortError when none could say."""
        if self.handle is None:
            self._adopt()
            return
        verdict = handles.verify(self.handle)
        if isinstance(verdict, Lost):
            raise HandleLost(f"{verdict.device or self._volume}: {verdict.reason}")

    def _adopt(self) -> None:
        held = self._records.held().get(self._volume)
        if held is None:
            raise HandleLost(f"volume {self._volume}: no handle is on record for this boot")
        try:
            self.handle = handles.adopt(self.luns, self._identity, Key.parse(held.key), self._spread)
        except LostRace as lost:
            raise HandleLost(str(lost)) from lost

    def release(self) -> None:
        """Mark the volume as stopped. The reservation stays: a stopped volume is still nobody else's to write."""
        if self.handle is None:
            raise HandleLost(f"volume {self._volume}: there is no handle to mark it as stopped with")
        handles.update_label(self.handle, lambda label: replace(label, wanted="stopped"))

    def forget(self) -> None:
        self.handle = None
        self._records.forget(self._volume)

    def read_label(self) -> Label | None:
        """The newest, as `unready` read it from all disks just before."""
        return self._label

    def unready(self) -> str:
        """Why this node could not acquire the volume now, or "": on every disk the label readable, PR commands
        answered, not in use; and the labels those of one whole volume."""
        found: dict[str, FoundLabel | None] = {}
        why: dict[str, str] = {}
        self._label = None
        self._spread([partial(self._look, lun, found, why) for lun in self.luns])
        if why:
            return why[min(why)]
        try:
            sizes = {lun.wwid: lun.size_bytes() for lun in self.luns}
            self._label = common_label({lun.wwid: found[lun.wwid] for lun in self.luns}, self._identity, sizes)
        except FencingError as wrong:
            return str(wrong)
        return ""

    def _look(self, lun: Lun, found: dict[str, FoundLabel | None], why: dict[str, str]) -> None:
        busy = lun.in_use()
        if busy:
            why[lun.wwid] = f"still in use on this node: {busy}"
            return
        try:
            found[lun.wwid] = lun.labels.read()
            probe = probe_pr_out(lun.port, self._identity.key(PROBE_EPOCH))
            refuse_shared(lun, lun.port.read(), self._identity.key(PROBE_EPOCH))
        except FencingError as wrong:
            why[lun.wwid] = str(wrong)
            return
        if not probe.ok:
            why[lun.wwid] = f"{lun.port.device}: {probe.name}: {probe.detail}"

    def close(self) -> None:
        self._spread.close()
        for lun in self.luns:
            lun.close()


def _fence_spans(handle: Handle) -> list[Span]:
    """One span for the fence, one for the labels: what the timeline shows. Of several disks their steps are counted."""
    spans = []
    for name, part in (
        ("fence", [timing for timing in handle.timings if not timing.step.startswith("label")]),
        ("label", [timing for timing in handle.timings if timing.step == "label write"]),
    ):
        if part:
            start, end = min(each.start for each in part), max(each.end for each in part)
            spans.append(Span(name=name, start_s=start, end_s=end, detail=_steps_told(handle, part)))
    return spans


def _steps_told(handle: Handle, part: list[Timing]) -> str:
    if len(handle.luns) == 1:
        return f"{handle.luns[0].wwid}: {', '.join(each.step for each in part)}"
    counts = Counter(each.step for each in part)
    return f"{len(handle.luns)} disks: {', '.join(f'{count} x {step}' for step, count in counts.items())}"


class ExportedVolume:
    """The file system, the export and the address of one volume, by `fs._service`."""

    def __init__(self, service: VolumeService, monotonic_s: Callable[[], float]) -> None:
        self._service = service
        self._now = monotonic_s
        self._known = 0

    def prepare(self) -> None:
        self._service.prepare()

    def mount(self) -> list[Span]:
        start = self._now()
        self._service.prepare()
        mounting = self._now()
        did = self._service.mount()
        end = self._now()
        name = "replay" if "replay" in did.note else "mount"
        spans = [Span(name=name, start_s=mounting, end_s=end, detail=did.note)]
        if mounting - start > 0.001:
            spans.insert(0, Span(name="prepare", start_s=start, end_s=mounting))
        return spans

    def damaged(self) -> bool:
        return self._service.damaged()

    def start_tracking(self) -> None:
        self._known = 0
        self._service.start_tracking()

    def start_export(self) -> None:
        self._service.start_nfsd()

    def answered_elsewhere(self) -> bool:
        self._service.prepare()
        return self._service.answered_elsewhere()

    def gate(self) -> tuple[int, bytes, bytes]:
        self._service.prepare()
        gate = self._service.gate()
        return gate.fd, gate.renew, gate.close

    def wake_clients(self) -> None:
        self._service.announce()
        self._service.tickle()

    def grace(self) -> Grace:
        """Ends the grace once every living client is back. After it nobody `may` reclaim: so remember who could."""
        status: GraceStatus = self._service.grace_status()
        self._known = max(self._known, status.known)
        if status.active and status.may_end:
            self._service.end_grace()
            status = self._service.grace_status()
        back = status.returned if status.active else self._known
        return Grace(settled=not status.active, known=self._known, reclaimed=back)

    def save_peers(self) -> None:
        self._service.save_peers()

    def remove_address(self) -> None:
        self._service.remove_address()

    def stop_export(self) -> None:
        self._service.stop_nfsd()

    def stop_tracking(self) -> None:
        self._service.stop_tracking()

    def unmount(self, forced: bool) -> None:
        self._service.unmount(force=forced or self._service.damaged())

    def close(self) -> None:
        self._service.close()
