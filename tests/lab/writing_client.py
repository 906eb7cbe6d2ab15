"""Runs on the client: numbered records with fsync, under a byte-range lock. End of input ends it.

Prints one line of JSON at the end: records acknowledged, the longest stalls (ms), errors.
"""

import fcntl
import json
import os
import select
import sys
import time

path, interval_s = sys.argv[1], 0.02
file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
fcntl.lockf(file, fcntl.LOCK_EX, 100, 0)
print("locked", flush=True)
count, stalls, errors = 0, [], []
while not select.select([sys.stdin], [], [], interval_s)[0]:
    began = time.monotonic()
    try:
        os.write(file, f"{count:08d} {'x' * 90}\n".encode())
        os.fsync(file)
        count += 1
    except OSError as error:
        errors.append(f"record {count}: {error}")
        break
    stalls.append(round((time.monotonic() - began) * 1000))
print(json.dumps({"acknowledged": count, "stalls": sorted(stalls)[-5:], "errors": errors}), flush=True)
