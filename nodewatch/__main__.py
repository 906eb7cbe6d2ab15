"""`python -m nodewatch`: the node watch process; `--view` asks the running one what it sees."""

from __future__ import annotations

import argparse
import socket
import sys

from nodewatch._service import Options, Service, StartError, log
from nodewatch._stable import StableUnusable

EXIT_REFUSED = 2


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="nodewatch", description="Watches the nodes of a cluster and keeps the lease."
    )
    parser.add_argument("--config", default="/etc/hactl/hactl.toml", metavar="FILE")
    parser.add_argument("--node", metavar="NAME", help="which [[node]] this is (default: the host's name)")
    parser.add_argument("--socket", default="/run/hactl/nodewatch.sock", metavar="PATH", help="where hactld connects")
    parser.add_argument("--state", default="/var/lib/hactl", metavar="DIR", help="where votes are remembered")
    parser.add_argument("--no-realtime", action="store_true", help="ordinary scheduling, no locked memory")
    parser.add_argument("--view", action="store_true", help="print the running process's view as JSON and exit")
    chosen = parser.parse_args()
    if chosen.view:
        return _print_view(chosen.socket)
    options = Options(
        config=chosen.config,
        node=chosen.node,
        socket=chosen.socket,
        state=chosen.state,
        realtime=not chosen.no_realtime,
    )
    try:
        Service(options).run()
    except (StartError, StableUnusable) as error:
        log(str(error), serious=True)
        return EXIT_REFUSED
    return 0


def _print_view(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(3)
        try:
            link.connect(path)
            print(link.recv(262_144).decode())
        except OSError as error:
            log(f"no answer on {path}: {error}; is hactl-nodewatch running?", serious=True)
            return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
