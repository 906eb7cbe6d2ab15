"""Asks the service network all the time who has the served address: never may two have it.

Runs on the client's host inside the lab (sent there as text: standard library only), in a network namespace of its
own: what it is told must not teach the client where the address is. One broadcast ARP request every `--pause-ms`; each
answer is noted with the MAC that gave it. A kernel answers for as long as the address is its own, whatever has become
of the processes above it: what this sees is the gate itself. Frames announced to everybody (gratuitous ARP) are no
answers.

JSON lines on stdout: `answer` for the first, a changed and then now and then an unchanged one; the log has a line per
question (`ask N NS`) and per answer (`answer N NS MAC`, N the newest question then). Words on stdin: `stop`.
"""

import argparse
import json
import os
import select
import socket
import struct
import sys
import time

from hwlab.another_machine import become_another_machine

ETH_ARP = 0x0806
REPORT_EVERY_NS = 500_000_000
LINK = "asker0"
HEAD = b"\x00\x01\x08\x00\x06\x04"


def say(kind: str, **fields: object) -> None:
    try:
        print(json.dumps({"t": kind, "at": time.monotonic_ns(), **fields}), flush=True)
    except (BrokenPipeError, ValueError):
        pass


def request(mac: bytes, own: bytes, address: bytes) -> bytes:
    """The Ethernet frame of one question: who has `address`, asks the one who has `own`."""
    head = b"\xff" * 6 + mac + struct.pack("!H", ETH_ARP) + HEAD + b"\x00\x01"
    return head + mac + own + b"\0" * 6 + address


def answered_by(frame: bytes, mac: bytes, address: bytes) -> str:
    """The MAC that answers a question of `mac` in this frame, "" if it is no such answer."""
    if len(frame) < 42 or frame[12:14] != struct.pack("!H", ETH_ARP) or frame[14:20] != HEAD:
        return ""
    if frame[20:22] != b"\x00\x02" or frame[28:32] != address or frame[:6] != mac:
        return ""
    return frame[22:28].hex(":")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", required=True)
    parser.add_argument("--served", required=True, help="the address to ask for")
    parser.add_argument("--address", required=True, help="own address with prefix length")
    parser.add_argument("--log", required=True)
    parser.add_argument("--pause-ms", type=float, default=100.0)
    args = parser.parse_args()
    os.makedirs(os.path.dirname(args.log), exist_ok=True)
    address, pause_ns = socket.inet_aton(args.served), int(args.pause_ms * 1e6)
    own = socket.inet_aton(args.address.partition("/")[0])
    become_another_machine(args.link, LINK, args.address, "hactl-asker")
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ARP))
    link.bind((LINK, ETH_ARP))
    mac = link.getsockname()[4]
    asked, answers, last, told_ns = 0, 0, "", 0
    due_ns = time.monotonic_ns()
    say("started", pid=os.getpid())
    with open(args.log, "w", buffering=1) as log:
        while True:
            now_ns = time.monotonic_ns()
            if now_ns >= due_ns:
                asked += 1
                log.write(f"ask {asked} {now_ns}\n")
                link.send(request(mac, own, address))
                due_ns = max(due_ns + pause_ns, now_ns)
            left_s = max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            ready, _, _ = select.select([link, sys.stdin], [], [], left_s)
            if sys.stdin in ready:
                if sys.stdin.readline().strip() == "stop":
                    say("final", asked=asked, answers=answers)
                return
            if link in ready and (who := answered_by(link.recv(2048), mac, address)):
                at_ns = time.monotonic_ns()
                answers += 1
                log.write(f"answer {asked} {at_ns} {who}\n")
                if who != last or at_ns - told_ns > REPORT_EVERY_NS:
                    last, told_ns = who, at_ns
                    say("answer", mac=who, n=asked)


if __name__ == "__main__":
    main()
