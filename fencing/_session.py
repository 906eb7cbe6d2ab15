"""One node's part of a preflight, as a process of its own: `python -m fencing._session --tag TAG --node NUMBER`.

A line of JSON in, a line out: `{"ident", "act", "wwid", "args"}` -> `{"ident", "ok": {...}}` or `{"ident", "error":
TEXT}`. The act `facts` takes `wwids` (separated by blanks), all others are those of `trial.py`. A process, because a
device under trial may hang whoever asks it. When its input ends, or nobody asked anything for a while, it takes back
what it did.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
from typing import Any

from fencing._nodefacts import node_facts
from fencing._scratch import ScratchDisk
from fencing.errors import FencingError
from fencing.model import PROBE_EPOCH, Key
from fencing.trial import Trial, TrialRefused

IDLE_S = 180.0
"""Longer than any step lasts."""
LINE_BYTES_MAX = 65536


class Session:
    """The devices that were asked for since this process began."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._trials: dict[str, tuple[Trial, ScratchDisk]] = {}

    def answer(self, line: bytes) -> dict[str, Any]:
        ident = ""
        try:
            body = json.loads(line)
            ident = str(body["ident"])
            args = {str(name): str(word) for name, word in dict(body["args"]).items()}
            return {"ident": ident, "ok": self._do(str(body["act"]), str(body["wwid"]), args)}
        except (TrialRefused, FencingError, OSError) as error:
            return {"ident": ident, "error": str(error)}
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            return {"ident": ident, "error": f"not understood: {wrong!r}"}

    def _do(self, act: str, wwid: str, args: dict[str, str]) -> dict[str, Any]:
        if act == "facts":
            return node_facts(args.get("wwids", "").split())
        if wwid not in self._trials:
            disk = ScratchDisk(wwid, self._key.cluster_tag)
            self._trials[wwid] = Trial(disk, self._key), disk
        return self._trials[wwid][0].do(act, args)

    def leave(self) -> None:
        for trial, disk in self._trials.values():
            with contextlib.suppress(FencingError, OSError):
                trial.leave()
            disk.close()
        self._trials.clear()


def main() -> int:
    parser = argparse.ArgumentParser(prog="fencing._session")
    parser.add_argument("--tag", type=int, required=True)
    parser.add_argument("--node", type=int, required=True)
    options = parser.parse_args()
    session = Session(Key(cluster_tag=options.tag, node=options.node, epoch=PROBE_EPOCH))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # hactld runs with a better one
    try:
        waiting = b""
        while select.select([0], [], [], IDLE_S)[0]:
            got = os.read(0, LINE_BYTES_MAX)
            if not got or len(waiting) > LINE_BYTES_MAX:
                break
            *lines, waiting = (waiting + got).split(b"\n")
            for line in lines:
                print(json.dumps(session.answer(line)), flush=True)
    except BrokenPipeError:
        pass
    finally:
        session.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
