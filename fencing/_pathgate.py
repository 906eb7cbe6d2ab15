"""Run by udev for every new SCSI disk, before multipathd or anybody else hears of it: one path, registered first.

    python3 -m fencing._pathgate sdb

Exit 0: the path may be used. It is registered with the key that this node owns the disk with, or the disk is not
this node's: then the device refuses its writes, and an acquisition registers every path that it finds. Any other
exit: neither is sure; the udev rule deletes the path again, and hactld scans for it later (fencing/paths.py, rule 2).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fencing._paths import SYS_BLOCK, BlockPath, noted_key, retire
from fencing.errors import FencingError
from fencing.paths import join


def admit(name: str) -> bool:
    """True if the path is registered with this node's key; False if there is none to register. FencingError."""
    wwid = " ".join((SYS_BLOCK / name / "device/wwid").read_text().split())
    path = BlockPath(name, wwid, carries_io=True)
    try:
        key = noted_key(wwid)
        return key is not None and join(path, key)
    except (FencingError, ValueError):
        retire(name, wwid)
        raise
    finally:
        path.close()


def main(arguments: Sequence[str]) -> int:
    [name] = arguments
    try:
        admit(name)
    except FileNotFoundError:
        return 0  # gone again, or a disk without a name, which nobody uses
    except (FencingError, OSError, ValueError) as error:
        print(f"hactl: {name} is kept out: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
