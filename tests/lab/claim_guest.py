"""Runs inside a node of a lab: claim the witness LUN from the epoch seen, many times, and say how each ended.

claim_guest.py DEVICE CONFIG ROUNDS PERIOD_S    a round begins whenever the wall clock is at a multiple of the period
"""

import json
import os
import sys
import time

sys.path[:0] = ["/opt/hactl/lib", "/opt/hactl/site"]
# ruff: noqa: E402

from pathlib import Path

from fencing import FencingError, LostRace
from fencing._disk import open_lun
from fencing.claim import holds, may_take, survey, take
from hactl.config import load


def main() -> None:
    device, path, rounds, period_s = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    config = load(path, hostname=os.uname().nodename)
    lun = open_lun(device)
    results = []
    for _ in range(rounds):
        time.sleep(period_s - time.time() % period_s)
        # Half a second before the race everything is quiet: this is what both expect.
        expected = survey(lun, config.identity, config.numbers)
        time.sleep(period_s / 2)
        began = time.monotonic()
        try:
            standing = survey(lun, config.identity, config.numbers)
            if not may_take(standing, expected.epoch, config.number, forced=False):
                raise LostRace("beyond", device=lun.wwid, rival=None)
            epoch = standing.highest + 1
            take(lun, standing, config.identity, epoch, time.monotonic)
            took_ms = (time.monotonic() - began) * 1000
            stands = holds(lun.port.read(), config.identity.key(epoch))
            results.append({"from": expected.epoch, "won": epoch, "stands": stands, "took_ms": round(took_ms, 1)})
        except FencingError as error:
            results.append({"from": expected.epoch, "won": 0, "why": str(error)})
    print(json.dumps(results))


main()
