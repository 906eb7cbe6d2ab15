"""From the words of scripts and nodes to a history."""

from hwlab import gather
from hwlab.clocks import Clock
from hwlab.cluster import parse_status
from hwlab.gather import HostClocks

CLOCK = Clock(host="c1", boot="b", mono_offset_ms=1000, wall_offset_ms=5000, uncertainty_ms=1)


def test_the_writers_log_is_read_and_a_torn_line_left_out() -> None:
    log = "1 2000000000 2010000000 ok\n2 2020000000 2030000000 Input/output_error\n3 204"
    writes = gather.writes(log, CLOCK)
    assert [(w.seq, w.submit_ms, w.done_ms, w.error) for w in writes] == [
        (1, 1000, 1010, ""),
        (2, 1020, 1030, "Input/output error"),
    ]


def test_an_owner_that_did_not_reach_its_end_gives_no_evidence() -> None:
    final = {"t": "final", "touches": 3, "lock_trouble": ""}
    releasing = {"t": "releasing", "at": 2_000_000_000}
    assert gather.owner([final, releasing], CLOCK) is None
    owner = gather.owner([final, releasing, {"t": "released", "at": 2_001_000_000}], CLOCK)
    assert owner and (owner.releasing_ms, owner.trouble) == (1000, "")


def test_the_order_of_writes_is_mapped_to_the_drills_clock_and_a_lost_one_left_out() -> None:
    row = {"at": 2_000_000_000, "done": True, "offset": 4096, "length": 512}
    told = [{"t": "writes", "device": "d", "rows": [row]}, {"t": "writes", "device": "d", "rows": None}]
    (write,) = gather.disk_writes(told, CLOCK)
    assert (write.device, write.at_ms, write.done, write.offset, write.length) == ("d", 1000, True, 4096, 512)


def test_stamps_of_an_earlier_run_count_as_none() -> None:
    rows = [{"node": 1, "run": "old", "n": 99}, {"node": 2, "run": "new", "n": 5}]
    event = {"t": "stamps", "device": "d", "at": 2_000_000_000, "rows": rows}
    assert [(s.node, s.n) for s in gather.stamps_seen([event], CLOCK, "new")] == [(1, 0), (2, 5)]


def test_the_newest_label_copy_counts() -> None:
    copies = [{"epoch": 4, "owner": "n1", "seq": 7}, {"epoch": 5, "owner": "n2", "seq": 8}]
    events = [
        {"t": "label", "device": "d", "at": 1_000_000_000, "copies": copies},
        {"t": "label", "device": "d", "at": 2_000_000_000, "copies": [{}, {}]},
    ]
    assert [(e.epoch, e.owner) for e in gather.epochs(events, CLOCK)] == [(5, "n2")]


def entry(epoch: int, start: float) -> dict[str, object]:
    step = {"name": "fence", "start_unix_ms": start, "end_unix_ms": start + 10, "node": "n2", "detail": "d"}
    return {"volume": "v1", "from": "n1", "to": "n2", "epoch": epoch, "verdict": "serving", "steps": [step]}


def test_recoveries_of_this_run_are_told_once_in_the_drills_clock() -> None:
    hosts = {"n2": HostClocks(before=CLOCK)}
    found = gather.recoveries([entry(4, 5100), {**entry(5, 5200), "fenced": "power"}, entry(5, 5200)], 4, hosts)
    assert [recovery.fenced for recovery in found] == ["power"]
    assert [(r.epoch, r.steps[0].start_ms, r.steps[0].end_ms) for r in found] == [(5, 200, 210)]


def test_a_rebooted_nodes_times_are_mapped_by_the_boot_they_were_taken_in() -> None:
    after = Clock(host="n2", boot="c", mono_offset_ms=0, wall_offset_ms=5300, uncertainty_ms=1)
    clocks = HostClocks(before=CLOCK, after=after, rebooted_ms=1000)
    assert clocks.wall(5900) == 900
    assert clocks.wall(7300) == 2000


def test_kernel_complaints_before_the_run_do_not_count() -> None:
    log = "[1] NFS: lock reclaim failed!\n[2] run begins\n[3] debug: oopsie is well\n[4] NFS: Lock reclaim failed!\n"
    assert gather.complaints(log, "run begins") == ("[4] NFS: Lock reclaim failed!",)


def test_the_thief_counts_only_as_a_client_of_its_own() -> None:
    both = 'address: "10.77.1.21:957"\nname: "c1"\naddress: "10.77.1.22:764"\n'
    assert gather.distinct(both, "10.77.1.22/24")
    assert not gather.distinct('address: "10.77.1.22:764"\naddress: "10.77.1.22:765"\n', "10.77.1.22/24")
    assert not gather.distinct('address: "10.77.1.21:957"\n', "10.77.1.22/24")


def test_status_of_a_volume_that_is_not_served_names_no_server() -> None:
    volume = {"name": "v1", "state": "down", "server": "n1", "next": None, "problems": ["p"]}
    nodes = [{"name": "n1", "ready": False}, {"name": "n2", "ready": True}]
    status = parse_status({"leader": None, "nodes": nodes, "volumes": [volume]}, "v1")
    assert (status.server, status.following, status.ready, status.leader) == ("", "", ("n2",), "")
    served = parse_status({"nodes": nodes, "volumes": [{**volume, "state": "serving"}]}, "v1")
    assert served.server == "n1"


def test_the_witnesses_of_two_lives_of_the_target_are_one() -> None:
    later = Clock(host="san1", boot="c", mono_offset_ms=-9000, wall_offset_ms=0, uncertainty_ms=1)
    first = [{"t": "started", "at": 2_000_000_000}, {"t": "alive", "at": 3_000_000_000, "gap_ns": 4_000_000}]
    second = [{"t": "started", "at": 500_000_000}, {"t": "final", "at": 900_000_000, "gap_ns": 7_000_000}]
    seen = gather.witness([(first, CLOCK), (second, later)])
    assert seen is not None
    assert (seen.started_ms, seen.ended_ms, seen.gap_ms_max) == (1000, 9900, 7)
    died = gather.witness([(first, CLOCK), (second[:1], later)])
    assert died is not None and died.ended_ms is None
    assert gather.witness([]) is None and gather.witness([([], CLOCK), (second, later)]) is None


def test_what_a_witness_finds_at_its_start_may_be_as_old_as_the_last_word_of_the_one_before() -> None:
    def state(since_s: float, key: str) -> gather.Event:
        registrants = [{"nexus": "i", "key": key}]
        times = {"since": int(since_s * 1e9), "at": int(since_s * 1e9) + 10_000_000}
        return {
            "t": "pr",
            "device": "d",
            "generation": "1",
            "type": 5,
            "holder": key,
            "registrants": registrants,
            **times,
        }

    later = Clock(host="san1", boot="c", mono_offset_ms=-9000, wall_offset_ms=0, uncertainty_ms=1)
    first = [state(2.0, "0x1"), state(2.5, "0x2"), {"t": "alive", "at": 3_000_000_000, "gap_ns": 1}]
    second = [state(0.5, "0x2"), state(0.7, "0x3")]
    found = gather.all_reservations([(first, CLOCK), (second, later)])
    assert [(each.since_ms, each.at_ms) for each in found] == [
        (1000, 1010),
        (1500, 1510),
        (2000, 9510),
        (9700, 9710),
    ]
