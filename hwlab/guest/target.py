#!/usr/bin/python3
"""Build the lab's target from the kernel command line: LIO, or nvmet where the transport is NVMe (nvmet.py).

    hwlab.transport=iscsi|nvme
    hwlab.target=IQN,PORTAL,…        one target, one portal group for each portal: as many target ports
    hwlab.lun=NAME,SERIAL,DEVICE     once per logical unit, in the order of LUN numbers; of NVMe the UUID
    hwlab.slow=MS                    so long takes a write to the area of the drills' stamps (0: as long as it takes)
    hwlab.saved=DIRECTORY            of the machine below, for the saved reservations (User-Mode Linux)
    hwlab.initiators=IQN,IQN,…       the lab's nodes; other initiators get in too

The order of steps for LIO is the point of this file:

1. /etc/target/pr exists before target_core_mod loads: the kernel then takes /etc/target as its data
   base root by itself, which avoids writing `dbroot` (without a trailing newline the kernel kept bytes
   of an earlier, longer value).
2. /etc/target/pr is a directory of the machine below (hostfs), or carries the `S` attribute: the kernel writes the
   APTPL file without fsync, and after a power loss of the target it would be empty and the reservations gone, which
   is not what a disk that promised APTPL does. An fsync sleeps, and with the command's registration held: a PREEMPT
   of it then waits in a loop (__core_scsi3_free_registration, target_core_pr.c), on one processor without preemption
   for ever. Writes to hostfs do not sleep.
3. Backstores are created with a fixed serial, so that rtslib finds their APTPL file and hands it back to
   the kernel, before any initiator can log in: the portal groups are enabled last.
4. The nodes have explicit ACLs although the target lets everybody in: the kernel puts a reservation that it
   was handed back into force when the ACL of its holder is made. Without one that would be at the holder's next login,
   and a holder that is down would leave its disk open to everybody's writes after a restart of the target.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

PR_DIR = Path("/etc/target/pr")
NOPIN_S = "3"
"""A session that was silent for so long is asked, and given up after as long without an answer: LIO's least."""
VOLATILE = PR_DIR.parent / "volatile"
"""While this file is there, a restart loses all reservations, as on a target that keeps none (fault `volatile`)."""


def words(name: str) -> list[list[str]]:
    """Values of every `name=a,b,c` on the kernel command line, split at commas."""
    prefix = name + "="
    items = Path("/proc/cmdline").read_text().split()
    return [item.removeprefix(prefix).split(",") for item in items if item.startswith(prefix)]


def slowed(name: str, device: str, delay_ms: int) -> str:
    """The device, with every write to its fourth MiB delayed: it waits in the target as it would in a busy array."""
    if not delay_ms:
        return device
    sectors = int(Path(f"/sys/class/block/{Path(device).name}/size").read_text())
    table = (
        f"0 6144 linear {device} 0\n"
        # reads, writes, flushes: without words of their own these would be slow as the writes are, on the whole device
        f"6144 2048 delay {device} 6144 0 {device} 6144 {delay_ms} {device} 6144 0\n"
        f"8192 {sectors - 8192} linear {device} 8192\n"
    )
    subprocess.run(["modprobe", "-a", "dm-mod", "dm-delay"], check=True)
    subprocess.run(["dmsetup", "create", name, "--noudevrules", "--noudevsync"], input=table, text=True, check=True)
    # By the kernel's own name: the link in /dev/mapper comes and goes with udev, which has hardly begun here.
    [made] = [dm.parent.parent for dm in Path("/sys/block").glob("dm-*/dm/name") if dm.read_text().strip() == name]
    return f"/dev/{made.name}"


def make_group(rtslib_fb: Any, target: Any, tag: int, portal: str, stores: list[Any]) -> Any:
    """A portal group with one portal, through which every initiator sees every logical unit."""
    group = rtslib_fb.TPG(target, tag)
    luns = [rtslib_fb.LUN(group, number, store) for number, store in enumerate(stores)]
    for initiator in [iqn for iqns in words("hwlab.initiators") for iqn in iqns]:
        acl = rtslib_fb.NodeACL(group, initiator)
        # PREEMPT AND ABORT waits until the victim acknowledged the status of each command that was aborted in the
        # device: with a frozen victim until its session is given up, which LIO would do after 45 s by itself.
        if words("hwlab.slow") not in ([], [["0"]]):
            acl.set_attribute("nopin_timeout", NOPIN_S)
            acl.set_attribute("nopin_response_timeout", NOPIN_S)
        for lun in luns:
            rtslib_fb.MappedLUN(acl, lun.lun, lun)
    group.set_attribute("authentication", "0")
    group.set_attribute("demo_mode_write_protect", "0")
    group.set_attribute("generate_node_acls", "1")
    group.set_attribute("cache_dynamic_acls", "1")
    rtslib_fb.NetworkPortal(group, portal, 3260)
    return group


def main() -> int:
    [(name, *portals)] = words("hwlab.target")
    [[slow]] = words("hwlab.slow") or [["0"]]
    luns = [(lun, ident, slowed(lun, device, int(slow))) for lun, ident, device in words("hwlab.lun")]
    if words("hwlab.transport") == [["nvme"]]:
        import nvmet  # type: ignore[import-not-found]  # in a guest it lies beside this file

        [[hostid]] = words("hwlab.hostid")
        nvmet.build(name, portals, luns, hostid)
        return 0
    return build_lio(name, portals, luns)


def build_lio(iqn: str, portals: "list[str]", luns: "list[tuple[str, str, str]]") -> int:
    PR_DIR.mkdir(parents=True, exist_ok=True)
    kept_below = words("hwlab.saved")
    if kept_below:
        [[folder]] = kept_below
        subprocess.run(["mount", "-t", "hostfs", "none", str(PR_DIR), "-o", folder], check=True)
    for saved in list(PR_DIR.iterdir()) if VOLATILE.exists() else ():
        saved.unlink()
    if not kept_below:
        subprocess.run(["chattr", "+S", str(PR_DIR), *map(str, PR_DIR.iterdir())], check=True)
    subprocess.run(["modprobe", "-a", "target_core_mod", "target_core_iblock", "iscsi_target_mod"], check=True)

    import rtslib_fb

    # rtslib would move the data base root to a directory of its own.
    rtslib_fb.RTSRoot._preferred_dbroot = str(PR_DIR.parent)
    root = rtslib_fb.RTSRoot()
    if root.dbroot != str(PR_DIR.parent):
        print(f"target data base root is {root.dbroot}, expected {PR_DIR.parent}", file=sys.stderr)
        return 1

    target = rtslib_fb.Target(rtslib_fb.FabricModule("iscsi"), iqn)
    stores = [rtslib_fb.BlockStorageObject(name, dev=device, wwn=serial) for name, serial, device in luns]
    groups = [make_group(rtslib_fb, target, tag, portal, stores) for tag, portal in enumerate(portals, start=1)]
    for group in groups:
        group.enable = True
    return 0


if __name__ == "__main__":
    sys.exit(main())
