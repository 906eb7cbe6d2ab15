"""The timeline of one run as SVG: phases, the client's acknowledgements, the keys on the disk. Pure."""

from collections.abc import Callable, Sequence
from html import escape

from hwlab.check_disk import by_device
from hwlab.checker import Judgement
from hwlab.history import History, key_node

WIDTH, LABELS, LANE, AXIS = 960, 132, 22, 34
STEPS_MS = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
SLICES = 160


def takeover(history: History, judgement: Judgement) -> str:
    """From shortly before the fault to shortly after the client's return, with the phases."""
    zero = history.fault_ms
    ends = [phase.end_ms - zero for phase in judgement.phases]
    if judgement.first_ack_ms is not None:
        ends.append(judgement.first_ack_ms - zero)
    span = max(ends, default=1000.0)
    return _Picture(history, judgement, -0.08 * span, 1.12 * span).draw(phases=True)


def whole_run(history: History, judgement: Judgement) -> str:
    """Everything from the first to the last acknowledgement."""
    acks = [write.done_ms - history.fault_ms for write in history.writes or () if not write.error]
    start, end = min(acks, default=-1000.0), max([*acks, history.ended_ms - history.fault_ms])
    return _Picture(history, judgement, start, end).draw(phases=False)


class _Picture:
    """Collects shapes lane by lane; `x` maps ms from the fault to pixels."""

    def __init__(self, history: History, judgement: Judgement, start_ms: float, end_ms: float) -> None:
        self._history = history
        self._judgement = judgement
        self._start, self._end = start_ms, max(end_ms, start_ms + 1)
        self._shapes: list[str] = []
        self._y = AXIS

    def draw(self, phases: bool) -> str:
        if phases:
            self._phases()
        self._acks()
        self._stamps()
        self._keys()
        self._marks(words=not phases)
        axis = self._axis()
        body = "\n".join([*axis, *self._shapes])
        size = f'viewBox="0 0 {WIDTH} {self._y + 6}" width="{WIDTH}" height="{self._y + 6}"'
        return f'<svg {size} role="img" aria-label="timeline">\n{body}\n</svg>'

    def _x(self, ms: float) -> float:
        share = (ms - self._start) / (self._end - self._start)
        return LABELS + min(1.0, max(0.0, share)) * (WIDTH - LABELS - 10)

    def _axis(self) -> list[str]:
        step = next((s for s in STEPS_MS if (self._end - self._start) / s <= 10), STEPS_MS[-1])
        ticks = []
        at = -(-self._start // step) * step
        while at <= self._end:
            x = self._x(at)
            ticks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{AXIS - 6}" y2="{self._y}"/>')
            ticks.append(f'<text class="tick" x="{x:.1f}" y="{AXIS - 12}">{at / 1000 or 0:g} s</text>')
            at += step
        return ticks

    def _lane(self, label: str) -> int:
        y = self._y
        self._y += LANE
        self._shapes.append(f'<text class="lane" x="{LABELS - 10}" y="{y + 15}">{escape(label)}</text>')
        return y

    def _bar(self, kind: str, y: int, start_ms: float, end_ms: float, tip: str, inset: int = 4) -> None:
        x, right = self._x(start_ms), self._x(end_ms)
        if end_ms < self._start or start_ms > self._end:
            return
        box = f'x="{x:.1f}" y="{y + inset}" width="{max(1.5, right - x):.1f}" height="{LANE - 2 * inset}"'
        self._shapes.append(f'<rect class="{kind}" {box} rx="2"><title>{escape(tip)}</title></rect>')

    def _phases(self) -> None:
        zero = self._history.fault_ms
        for phase in self._judgement.phases:
            y = self._lane(phase.name)
            start, end = phase.start_ms - zero, phase.end_ms - zero
            self._bar("phase", y, start, end, f"{phase.name}: {end - start:.0f} ms {phase.detail}".rstrip())
            x = self._x(end) + 5
            text, anchor = f"{end - start:.0f} ms", ""
            if x > WIDTH - 60:
                x, anchor = self._x(start) - 5, ' text-anchor="end"'
            self._shapes.append(f'<text class="value" x="{x:.1f}" y="{y + 15}"{anchor}>{text}</text>')

    def _acks(self) -> None:
        """One bar per slice in which the client had something acknowledged; the gap is the stall."""
        zero = self._history.fault_ms
        y = self._lane("client's writes")
        acks = [write.done_ms - zero for write in self._history.writes or () if not write.error]
        for start, end in slices(acks, self._start, self._end, SLICES):
            self._bar("ack", y, start, end, f"acknowledged from {start:.0f} to {end:.0f} ms")
        first, last = self._judgement.stall_start_ms, self._judgement.first_ack_ms
        if first is not None and last is not None:
            middle = (self._x(first - zero) + self._x(last - zero)) / 2
            text = f"stall {last - first:.0f} ms"
            self._shapes.append(f'<text class="value" x="{middle:.1f}" y="{y + 15}" text-anchor="middle">{text}</text>')

    def _stamps(self) -> None:
        """A lane per node that wrote to the disk by itself: written, and refused once it was fenced."""
        zero = self._history.fault_ms
        for number, name in self._history.nodes.items():
            mine = [write for write in self._history.stamp_writes if write.node == number]
            if not mine:
                continue
            y = self._lane(f"{name}'s stamps")
            for kind, what, refused in (("ack", "written", False), ("refused", "refused", True)):
                times = [write.done_ms - zero for write in mine if bool(write.error) is refused]
                for start, end in slices(times, self._start, self._end, SLICES):
                    self._bar(kind, y, start, end, f"{what} from {start:.0f} to {end:.0f} ms", 7)

    def _keys(self) -> None:
        """A lane per node and device: a key registered there, solid while it holds the reservation."""
        zero, nodes = self._history.fault_ms, self._history.nodes
        devices = by_device(self._history.reservations)
        for device, states in devices.items():
            ends = [state.at_ms - zero for state in states[1:]] + [self._end]
            for number, name in nodes.items():
                y = self._lane(f"{name}'s key" + (f" {device}" if len(devices) > 1 else ""))
                for state, end in zip(states, ends, strict=True):
                    begin = state.at_ms - zero
                    held = state.holder is not None and key_node(state.holder) == number
                    if number in state.nodes():
                        kind, what = ("holder", "holds") if held else ("registrant", "registered on")
                        self._bar(kind, y, begin, end, f"{name} {what} {device}", 6)

    def _marks(self, words: bool) -> None:
        for mark in self._history.marks:
            if mark.kind not in ("fault", "command"):
                continue
            at = mark.at_ms - self._history.fault_ms
            if not self._start <= at <= self._end:
                continue
            x = self._x(at)
            self._shapes.append(
                f'<line class="fault" x1="{x:.1f}" x2="{x:.1f}" y1="{AXIS - 6}" y2="{self._y}">'
                f"<title>{escape(mark.what)}</title></line>"
            )
            if words or at == 0:
                y = self._y + 12
                anchor = ' text-anchor="end"' if x > WIDTH - 150 else ""
                self._shapes.append(f'<text class="mark" x="{x:.1f}" y="{y}"{anchor}>{escape(mark.what)}</text>')
                self._y += 14


def slices(times: Sequence[float], start: float, end: float, count: int) -> list[tuple[float, float]]:
    """Slices of an interval in which something happened, neighbours joined."""
    width = (end - start) / count
    full = sorted({int((at - start) / width) for at in times if start <= at < end})
    joined: list[tuple[float, float]] = []
    place: Callable[[int], float] = lambda index: start + index * width  # noqa: E731
    for index in full:
        if joined and abs(joined[-1][1] - place(index)) < width / 2:
            joined[-1] = (joined[-1][0], place(index + 1))
        else:
            joined.append((place(index), place(index + 1)))
    return joined
