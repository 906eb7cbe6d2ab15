"""Whether anything of the owner before may still be in flight at a device whose reservation was taken. Pure.

Theory. PREEMPT AND ABORT ends what its victim has in flight before it answers. That the victim's key is gone proves
nothing: LIO removes the key first. So the end is known only to who sent the command and got its answer. A path that
died under the command, or a taker that did, leaves a device where the next taker finds no victim any more, and perhaps
a write that still lands, later than the replay of the journal.

What tells is the label: it names the epoch that served last, and a newer epoch is written into it only after an
acquisition for which the end was known on every device. So it is known if, on this device,

1. the holder whose place was taken had the label's epoch: nobody took it in between; and
2. every PREEMPT AND ABORT of this acquisition was answered. Where REGISTER replaced this node's own key there was none
   to send: what this node had in flight ended with its mount (`DeviceBusy` otherwise), or its session with its power.

In all other cases the taker waits before it writes the label, until a device has finished or failed whatever it had
begun; its reservation lets nothing new in. LOGICAL UNIT RESET would be made for this, but LIO of Linux 6.1 waits in it
for the data of half-received writes: from a host that is frozen they never come, and the target is stuck for good.

A device without any registration was open to everybody just before (power loss without persistence, CLEAR): there is
nothing to be known, and docs/fencing.md says what that means.
"""

from __future__ import annotations

from fencing.model import Key, ReservationState


class Ending:
    """One device, one acquisition under `key`.

    `served`: the epoch in the label; None where no label counts (a device that is being formatted, a witness), so that
    only rule 2 does.
    """

    def __init__(self, key: Key, served: int | None) -> None:
        self._key = key
        self._served = served
        self._holders: tuple[int, ...] = ()
        self._answered = True
        self._open = True

    @property
    def known(self) -> bool:
        """Nothing of anybody before is in flight; asked when the device is owned."""
        return self._answered and (self._served is None or self._open or self._of_the_last_server())

    def saw(self, state: ReservationState) -> None:
        """The device was read."""
        if self._key.value not in state.holders:
            self._holders = state.holders
            self._open = self._open and not set(state.keys) - {self._key.value}

    def preempted(self, *, answered: bool) -> None:
        """A PREEMPT AND ABORT was sent; `answered`: with success."""
        self._answered = self._answered and answered

    def _of_the_last_server(self) -> bool:
        if len(self._holders) != 1:
            return False
        [holder] = map(Key.parse, self._holders)
        return holder.belongs_to(self._key.cluster_tag) and holder.epoch == self._served
