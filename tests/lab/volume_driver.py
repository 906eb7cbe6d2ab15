"""Runs in a guest: drives VolumeService by lines of JSON, as the daemon would.

In: {"do": "mount", "with": {...}} | {"do": "renew", "on": true}. Out: {"ok": true, "ms": 12.3, "said": {...}}
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
    time.sleep(0.2)
"""


def plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    return str(value)


def main() -> None:
    spec = VolumeSpec(**json.loads(sys.argv[1]))
    service, worker = VolumeService(spec), ThreadPoolExecutor(max_workers=1)
    flag = Path(f"/run/renew-{spec.name}")
    renewer = None
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        try:
            if order["do"] == "renew":
                flag.touch() if order["on"] else flag.unlink(missing_ok=True)
                if order["on"] and renewer is None:
                    gate = worker.submit(service.gate).result()
                    words = [sys.executable, "-c", RENEWER, str(gate.fd), gate.renew.hex(), str(flag)]
                    none = subprocess.DEVNULL
                    renewer = subprocess.Popen(
                        words, pass_fds=[gate.fd], start_new_session=True, stdin=none, stdout=none, stderr=none
                    )
                said = None
            else:
                said = worker.submit(getattr(service, order["do"]), **order.get("with", {})).result()
            answer = {"ok": True, "said": dataclasses.asdict(said) if said is not None else None}
        except FsError as error:
            answer = {"ok": False, "error": type(error).__name__, "text": str(error)}
        answer["ms"] = round((time.monotonic() - began) * 1000, 1)
        print(json.dumps(answer, default=plain), flush=True)
    os._exit(0)


main()
