"""What a script in the lab says to whoever drives the drill. Standard library only: inlined by `hwlab.feed.program`."""

import json
import threading
import time


class Voice:
    """JSON lines to whoever listens; a listener that went away is no reason to disturb the load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, kind: str, **fields: object) -> None:
        line = json.dumps({"t": kind, "at": time.monotonic_ns(), **fields})
        with self._lock:
            try:
                print(line, flush=True)
            except (BrokenPipeError, ValueError):
                pass
