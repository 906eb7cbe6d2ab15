"""Faults that a host does to itself, as shell scripts: the same on emulated and on real machines. Pure.

Frames are dropped by Linux traffic control on the host's own interface, below every protocol and every macvlan:
on the way in by a filter (tc-matchall(8), tc-flower(8)), on the way out by netem (tc-netem(8)), which unlike a filter
does not tell the sender. All of it needs a second way in (mgmt), and ends with a reboot.
"""

from collections.abc import Sequence

LOSS_PERCENT = 20
BUSY_UNIT = "hwlab-busy"
BUSY_LOOPS_PER_CPU = 4
TICK_US = 10_000
DRIFT_PERCENT = 5
VOLATILE = "/etc/target/volatile"
"""Read by the target's set-up (hwlab/guest/target.py)."""

# adjtimex(2): ADJ_TICK changes the rate of every clock but CLOCK_MONOTONIC_RAW, by at most 10 %.
_TICK = """
import ctypes, sys
class Timex(ctypes.Structure):
    _fields_ = [("modes", ctypes.c_uint), ("before", ctypes.c_long * 10), ("tick", ctypes.c_long),
                ("rest", ctypes.c_long * 40)]
ask = Timex(modes=0x4000, tick=int(sys.argv[1]))
if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(ask)) < 0:
    sys.exit("adjtimex: errno %d" % ctypes.get_errno())
"""


def _filters(interface: str, coming: Sequence[str], leaving: Sequence[str] = ()) -> str:
    """A script that adds filters on the way in, and on the way out."""
    lines = [("ingress", line) for line in coming] + [("egress", line) for line in leaving]
    text = "\n".join(f"filter add dev {interface} {way} {line}" for way, line in lines)
    return f"tc qdisc add dev {interface} clsact 2>/dev/null; tc -batch - <<'END'\n{text}\nEND\n"


def cut_in(interface: str) -> str:
    """No frame comes in; what the host sends still leaves."""
    return _filters(interface, ["pref 1 matchall action drop"])


def cut_out(interface: str) -> str:
    """No frame leaves, and nobody on the host is told; what others send still comes in."""
    return f"tc qdisc replace dev {interface} root netem loss 100%\n"


def cut_from(interface: str, peers: Sequence[str]) -> str:
    """Nothing passes to or from another node, neither of its own addresses nor in the name of a served one.

    `peers`: IPv4 addresses of the other nodes and of volumes. 0.0.0.0 is the sender of an ARP probe.
    """
    ip = [f"pref 2 protocol ip flower src_ip {peer} action drop" for peer in peers]
    arp = [f"pref 3 protocol arp flower arp_sip {peer} action drop" for peer in (*peers, "0.0.0.0")]
    leaving = [f"pref 2 protocol ip flower dst_ip {peer} action drop" for peer in peers]
    leaving += [f"pref 3 protocol arp flower arp_tip {peer} arp_op request action drop" for peer in peers]
    return _filters(interface, ip + arp, leaving)


def lossy(interface: str) -> str:
    """LOSS_PERCENT of all frames are lost, in both directions, at random."""
    one_in = 100 // LOSS_PERCENT
    coming = _filters(interface, [f"pref 4 matchall action ok random netrand drop {one_in}"])
    return f"tc qdisc replace dev {interface} root netem loss {LOSS_PERCENT}%\n{coming}"


def unfiltered(interface: str) -> str:
    """Undoes all of the above; also where there is nothing to undo."""
    return f"tc qdisc del dev {interface} root 2>/dev/null; tc qdisc del dev {interface} clsact 2>/dev/null; true\n"


def renewed_session(interface: str) -> str:
    """Log out of the iSCSI sessions that go through an interface, and log in again.

    open-iscsi makes the ISID of the number of the session (seen: 00023d000001, 00023d000002, ...), so the new session
    is another initiator port. Fails if there was no such session.
    """
    return (
        "found=1; for portal in $(iscsiadm -m session | sed -n 's/^tcp: [^ ]* \\([^,]*\\),.*/\\1/p'); do "
        f'case "$(ip route get "${{portal%:*}}")" in *" dev {interface} "*) '
        'iscsiadm -m node -p "$portal" --logout && iscsiadm -m node -p "$portal" --login && found=0;; esac; '
        "done; exit $found\n"
    )


def volatile() -> str:
    """On the target: no reservation is handed back to the kernel at the next start."""
    return f"touch {VOLATILE} && sync\n"


def persistent() -> str:
    """Undoes `volatile`."""
    return f"rm -f {VOLATILE} && sync\n"


def busy() -> str:
    """Every CPU has several endless loops to run, and processes are born and die all the time."""
    loops = f"for i in $(seq $(($(nproc) * {BUSY_LOOPS_PER_CPU}))); do (while :; do :; done) & done; "
    births = "while :; do /bin/true; done"
    return f"systemd-run --quiet --collect --unit={BUSY_UNIT} sh -c '{loops}{births}'\n"


def idle() -> str:
    """Undoes `busy`."""
    return f"systemctl kill --signal=KILL {BUSY_UNIT} 2>/dev/null; systemctl stop {BUSY_UNIT} 2>/dev/null; true\n"


def clock_rate(percent: int) -> str:
    """All clocks of the host run so many percent fast (negative: slow); 0 undoes it."""
    return f"python3 - {TICK_US + TICK_US * percent // 100} <<'END'{_TICK}END\n"
