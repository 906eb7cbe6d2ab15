"""Runs in a guest: drives VolumeService by lines of JSON, as the daemon would.

In: {"do": "mount", "with": {...}} | {"do": "open"}. Out: {"ok": true, "ms": 12.3, "said": {...}}
or {"ok": false, "error": "Busy", "text": "..."}. The gate is held open by a process of its own that is handed
the descriptor and the bytes, and that lives on when this one is killed.
"""

import dataclasses
import enum
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fs import FsError, VolumeSpec
from fs._service import VolumeService

RENEWER = """
import os, struct, sys, time
fd, renew, flag = int(sys.argv[1]), bytes.fromhex(sys.argv[2]), sys.argv[3]
os.set_blocking(fd, True)
while True:
    if os.path.exists(flag):
        os.write(fd, renew)
        answer = os.read(fd, 4096)
        assert struct.unpack_from("=H", answer, 4)[0] == 2, answer
        assert struct.unpack_from("=i", answer, 16)[0] == 0, answer
        time.sleep(0.15)
    time.sleep(0.02)
"""


def plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    return str(value)


class Renewer:
    """The process that holds the gate open while a flag file is there. Started in advance, as nodewatch is:
    an address that is added before its renewer runs may be gone again by then."""

    def __init__(self, service: VolumeService, worker: ThreadPoolExecutor, flag: Path) -> None:
        self._service, self._worker, self._flag = service, worker, flag
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        gate = self._worker.submit(self._service.gate).result()
        words = [sys.executable, "-c", RENEWER, str(gate.fd), gate.renew.hex(), str(self._flag)]
        none = subprocess.DEVNULL
        self._process = subprocess.Popen(
            words, pass_fds=[gate.fd], start_new_session=True, stdin=none, stdout=none, stderr=none
        )

    def open(self) -> None:
        """Returns when the address is there."""
        self._flag.touch()
        while self._worker.submit(self._service.observe).result().address_left_s is None:
            time.sleep(0.01)

    def shut(self) -> None:
        self._flag.unlink(missing_ok=True)


def main() -> None:
    spec = VolumeSpec(**json.loads(sys.argv[1]))
    service, worker = VolumeService(spec), ThreadPoolExecutor(max_workers=1)
    renewer = Renewer(service, worker, Path(f"/run/renew-{spec.name}"))
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        said = None
        try:
            match order["do"]:
                case "open":
                    renewer.open()
                case "shut":
                    renewer.shut()
                case method:
                    said = worker.submit(getattr(service, method), **order.get("with", {})).result()
            if order["do"] == "prepare":
                renewer.start()
            answer = {"ok": True, "said": dataclasses.asdict(said) if said is not None else None}
        except FsError as error:
            answer = {"ok": False, "error": type(error).__name__, "text": str(error)}
        answer["ms"] = round((time.monotonic() - began) * 1000, 1)
        print(json.dumps(answer, default=plain), flush=True)
    os._exit(0)


main()
