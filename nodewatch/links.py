"""The heartbeat links as seen from this node: which of them work, towards whom, and how well.

A node has one address on each link; heartbeats go out on all of them, so a link that fails costs nothing but its
copies. What is known per link serves two ends: people are told, and letters (messages between the daemons), which are
too many to be sent twice, go over the link that works best. Nothing here decides whether a node is alive: any link is
good enough for that, see `detector.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

COUNTED = 64
"""Loss is the share of the last so many heartbeats of a peer that did not come on a link."""
_ALL = (1 << COUNTED) - 1


class Route:
    """One peer on one link. Changed in place: touched for every packet."""

    __slots__ = ("_came", "_counted", "_newest", "heard_ms", "lag_ms")

    def __init__(self) -> None:
        self.heard_ms: int | None = None
        self.lag_ms = 0
        """How much later than on the fastest link the newest heartbeat came here."""
        self._newest = 0
        self._came = 0
        self._counted = 0

    def came(self, number: int) -> None:
        """A heartbeat came on this link; `number` counts those of its sender."""
        if not self._newest or number < self._newest - COUNTED:
            self._newest, self._came, self._counted = number, 0, 1  # a new process counts from 1
        ahead = number - self._newest
        if ahead > 0:
            self._came = (self._came << min(ahead, COUNTED)) & _ALL
            self._newest = number
            self._counted = min(COUNTED, self._counted + ahead)
        self._came |= 1 << max(0, -ahead)

    def loss_percent(self, newest: int) -> int | None:
        """`newest` is the peer's newest heartbeat on any link. None while too few were sent to say."""
        behind = max(0, newest - self._newest)
        counted = min(COUNTED, self._counted + behind)
        if not self._newest or counted < COUNTED // 4:
            return None
        came = ((self._came << min(behind, COUNTED)) & _ALL).bit_count()
        return 100 - 100 * min(came, counted) // counted


class Links:
    """`fresh_ms`: who was not heard on a link for so long is silent there."""

    __slots__ = ("_fresh_ms", "_newest", "_routes", "count", "down")

    def __init__(self, peers: Iterable[int], *, count: int, fresh_ms: int) -> None:
        self._fresh_ms = fresh_ms
        self._routes = {peer: tuple(Route() for _ in range(count)) for peer in peers}
        self._newest = dict.fromkeys(self._routes, 0)
        self.count = count
        self.down: dict[int, str] = {}
        """Links that cannot work, as this host's kernel says, and why."""

    def configure(self, peers: Iterable[int]) -> None:
        """The configured nodes changed."""
        self._routes = {p: self._routes.get(p) or tuple(Route() for _ in range(self.count)) for p in peers}
        self._newest = {peer: self._newest.get(peer, 0) for peer in self._routes}

    def heard(self, peer: int, link: int, now_ms: int, *, number: int = 0, late_ms: int = 0) -> None:
        """An authentic packet came, or a copy of one `late_ms` after it. `number`: of a heartbeat, 0 = not counted."""
        route = self._routes[peer][link]
        route.heard_ms = now_ms
        route.lag_ms = late_ms
        if number:
            route.came(number)
            if number > self._newest[peer] or number < self._newest[peer] - COUNTED:
                self._newest[peer] = number

    def changed(self, link: int, trouble: str) -> bool:
        """The kernel says what is wrong with a link here, "" = nothing. True if that is news."""
        news = self.down.get(link, "") != trouble
        if trouble:
            self.down[link] = trouble
        else:
            self.down.pop(link, None)
        return news

    @property
    def cut_off(self) -> bool:
        """No link of this host can work."""
        return len(self.down) == self.count

    def mask(self, peer: int, now_ms: int) -> int:
        """Bit k: the peer was heard on link k lately."""
        found = 0
        for link, route in enumerate(self._routes[peer]):
            if route.heard_ms is not None and now_ms - route.heard_ms < self._fresh_ms:
                found |= 1 << link
        return found

    def best(self, peer: int, now_ms: int, heard_there: int, attempt: int = 0) -> int | None:
        """The link for a letter: one that works here, on which the peer hears us (`heard_there`, a mask that it sent),
        on which it was heard lately, and quickest. Each further attempt takes the next best. None = all are
        alike: there is only one."""
        if self.count == 1:
            return None
        heard_here = self.mask(peer, now_ms)

        def rank(link: int) -> tuple[bool, bool, bool, int, int]:
            bit = 1 << link
            return link in self.down, not heard_there & bit, not heard_here & bit, self._routes[peer][link].lag_ms, link

        order = sorted(range(self.count), key=rank)
        return order[attempt % len(order)]

    def route(self, peer: int, link: int) -> Route:
        return self._routes[peer][link]

    def newest(self, peer: int) -> int:
        """The number of the peer's newest heartbeat, 0 = none."""
        return self._newest[peer]
