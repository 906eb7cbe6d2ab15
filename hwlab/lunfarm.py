"""More logical units for one target, many at a time: for what the one or two of a topology are too few.

Runs on the target inside the lab (sent there as text: standard library and rtslib). They are files of the target's own
disk, sparse, shown to every initiator that the target knows; they are gone with the target's next boot, as is all that
LIO has and `guest/target.py` does not build again. `remove` takes them away at once.

    lunfarm.py add COUNT SIZE_MB SERIAL      prints {"wwids": [...]}; SERIAL: the hexadecimal digits that all begin with
    lunfarm.py loop COUNT SIZE_MB SERIAL N   on any host alone, without a network: N nexuses of its own to each unit
                                             (tcm_loop); prints {"nexuses": [[device, ...], ...]}
    lunfarm.py remove
"""

import json
import os
import sys
import time
from pathlib import Path

import rtslib_fb

FOLDER = Path("/var/lib/hwlab/luns")
PREFIX = "farm"
FIRST_LUN = 16
SERIAL_DIGITS = 25
"""LIO's WWID has so many digits of the serial, after NAA 6 and its company id."""


def group() -> "rtslib_fb.TPG":
    rtslib_fb.RTSRoot._preferred_dbroot = "/etc/target"
    [target] = [each for each in rtslib_fb.RTSRoot().targets if each.fabric_module.name == "iscsi"]
    return next(iter(target.tpgs))


def add(count: int, size_mb: int, serial: str) -> "list[str]":
    FOLDER.mkdir(parents=True, exist_ok=True)
    tpg, wwids = group(), []
    acls = list(tpg.node_acls)
    for index in range(count):
        store = store_of(index, size_mb, serial)
        lun = rtslib_fb.LUN(tpg, FIRST_LUN + index, store)
        for acl in acls:
            rtslib_fb.MappedLUN(acl, lun.lun, lun)
        wwids.append(f"naa.6001405{store.wwn}")
    return wwids


def store_of(index: int, size_mb: int, serial: str) -> "rtslib_fb.FileIOStorageObject":
    own = serial.ljust(SERIAL_DIGITS - 3, "0")[: SERIAL_DIGITS - 3] + f"{index:03x}"
    path = FOLDER / f"{PREFIX}{index}.img"
    with path.open("wb") as file:
        file.truncate(size_mb << 20)
    # write_back off: what the unit says is written, is written
    return rtslib_fb.FileIOStorageObject(f"{PREFIX}{index}", str(path), size_mb << 20, wwn=own, write_back=False)


def loop(count: int, size_mb: int, serial: str, nexuses: int) -> "list[list[str]]":
    FOLDER.mkdir(parents=True, exist_ok=True)
    stores = [store_of(index, size_mb, serial) for index in range(count)]
    found = []
    for nexus in range(nexuses):
        target = rtslib_fb.Target(rtslib_fb.FabricModule("loopback"), f"naa.50014050000000{nexus:02x}")
        tpg = rtslib_fb.TPG(target, 1)  # which gives it the one initiator that it has
        before = set(disks())
        for number, store in enumerate(stores):
            rtslib_fb.LUN(tpg, number, store)
        while len(new := set(disks()) - before) < count:
            time.sleep(0.05)
        found.append([f"/dev/{name}" for name in sorted(new, key=wwid_of)])
    return found


def disks() -> "list[str]":
    return [path.name for path in Path("/sys/class/block").glob("sd*") if (path / "device/wwid").exists()]


def wwid_of(name: str) -> str:
    return Path(f"/sys/class/block/{name}/device/wwid").read_text()


def remove() -> None:
    for target in list(rtslib_fb.RTSRoot().targets):
        if target.fabric_module.name == "loopback":
            target.delete()
    for store in list(rtslib_fb.RTSRoot().storage_objects):
        if store.name.startswith(PREFIX):
            store.delete()
    for path in FOLDER.glob(f"{PREFIX}*.img"):
        path.unlink()
    for path in Path("/etc/target/pr").glob("aptpl_*"):
        # registrations that were kept belong to units that are no more
        if path.name not in {f"aptpl_{store.wwn}" for store in rtslib_fb.RTSRoot().storage_objects}:
            os.unlink(path)


def main(words: "list[str]") -> int:
    if words[0] == "loop":
        os.makedirs("/etc/target/pr", exist_ok=True)
        print(json.dumps({"nexuses": loop(int(words[1]), int(words[2]), words[3].lower(), int(words[4]))}))
    elif words[0] == "add":
        print(json.dumps({"wwids": add(int(words[1]), int(words[2]), words[3].lower())}))
    else:
        remove()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
