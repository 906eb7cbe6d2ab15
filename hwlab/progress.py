"""What the person in front of the terminal sees while a drill runs."""

import sys
import time
from typing import TextIO


class Progress:
    """Lines with the time since the drill began; on a terminal one more line that changes in place."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._began_s = time.monotonic()
        self._live = out.isatty()
        self._shown = ""
        self._shown_s = 0.0

    def say(self, text: str) -> None:
        self._clear()
        print(f"{time.monotonic() - self._began_s:7.1f} s  {text}", file=self._out, flush=True)

    def now(self, text: str) -> None:
        """The state of something that takes time: rewritten in place, or said anew every ten seconds."""
        passed_s = time.monotonic() - self._shown_s
        if self._live and passed_s > 0.2:
            self._clear()
            self._shown = f"{time.monotonic() - self._began_s:7.1f} s  ... {text}"[:100]
            self._shown_s = time.monotonic()
            print(self._shown, end="\r", file=self._out, flush=True)
        elif not self._live and passed_s > 10:
            self._shown_s = time.monotonic()
            self.say(f"... {text}")

    def _clear(self) -> None:
        if self._shown:
            print(" " * len(self._shown), end="\r", file=self._out)
            self._shown = ""
