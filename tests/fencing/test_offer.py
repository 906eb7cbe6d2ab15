"""The last write of who made a volume: it may be taken before that one has even read its write back."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fencing import Handle, NotDelivered
from fencing.acquisition import fence, offer, stamp
from fencing.faulty import Chooser, Fault, faulty_lun
from fencing.label import Label
from fencing.timing import Stopwatch
from tests.fencing.conftest import Cluster

NewCluster = Callable[..., Cluster]


def quiet(operation: str, changes: bool) -> Fault:
    return Fault.NONE


def made(cluster: Cluster, choose: Chooser = quiet) -> Handle:
    """A volume that its maker has fenced and stamped as not wanted; `choose` is for what it does after that."""
    maker = cluster.nodes[0]
    armed: list[Chooser] = [quiet]
    luns = [faulty_lun(lun, lambda operation, changes: armed[0](operation, changes)) for lun in maker.luns()]
    found = luns[0].labels.read()
    assert found is not None
    handle = fence(luns, maker.identity, floor=0, intent=maker.record, clock=lambda: 0.0)
    stamp(handle, replace(found.label, epoch=handle.epoch, seq=1), stopwatch=Stopwatch(lambda: 0.0))
    armed[0] = choose
    return handle


def seen(cluster: Cluster) -> list[Label]:
    """The newest label on each disk, as any node reads it."""
    found = [lun.labels.read() for lun in cluster.nodes[2].luns()]
    return [each.label for each in found if each is not None]


@pytest.mark.parametrize("units", [1, 3])
def test_a_volume_is_wanted_by_one_write_after_all_its_labels_are_whole(new_cluster: NewCluster, units: int) -> None:
    writes: list[str] = []

    def count(operation: str, changes: bool) -> Fault:
        writes.extend([operation] if changes else [])
        return Fault.NONE

    cluster = new_cluster(units=units)
    handle = made(cluster, count)
    assert {label.wanted for label in seen(cluster)} == {"stopped"}
    offer(handle, "started")
    assert writes == ["write label"]
    newest = max(seen(cluster), key=lambda label: (label.epoch, label.seq))
    assert (newest.wanted, newest.epoch, newest.seq) == ("started", handle.epoch, 2)


def test_a_volume_that_is_taken_before_the_maker_reads_back_is_made_all_the_same(new_cluster: NewCluster) -> None:
    cluster = new_cluster()

    def take_it(operation: str, changes: bool) -> Fault:
        if operation == "read label" and seen(cluster)[0].wanted == "started" and not taker.intents:
            taker.acquire()
        return Fault.NONE

    taker = cluster.nodes[0]  # the maker's own node: no fence would refuse what the maker writes after that
    handle = made(cluster, take_it)
    taker.intents.clear()
    offer(handle, "started")
    assert taker.intents == [handle.epoch + 1]
    (label,) = seen(cluster)
    assert (label.epoch, label.owner, label.wanted) == (handle.epoch + 1, "n1", "started")


def test_an_offer_without_an_answer_that_came_through_counts(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    offer(made(cluster, lambda operation, changes: Fault.UNANSWERED if changes else Fault.NONE), "started")
    assert seen(cluster)[0].wanted == "started"


def test_an_offer_that_never_arrived_is_an_error_and_leaves_the_volume_unwanted(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    handle = made(cluster, lambda operation, changes: Fault.LOST if changes else Fault.NONE)
    with pytest.raises(NotDelivered):
        offer(handle, "started")
    assert seen(cluster)[0].wanted == "stopped"
