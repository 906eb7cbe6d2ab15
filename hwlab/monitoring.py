"""A real Prometheus, a real Alertmanager and a mail server beside a lab: what the lab's administrators would have.

The programs come from Debian's packages, unpacked into the cache: installed, they would start servers on this machine.
They run in the lab's network, with the configuration that deploy/prometheus has for everybody, its addresses replaced.
"""

from __future__ import annotations

import mailbox
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import Path

from hwlab import netns
from hwlab.errors import LabError
from hwlab.paths import PROJECT_DIR, cache_dir
from hwlab.strategy import METRICS_PORT
from hwlab.topology import LAN, Topology

PACKAGES = ("prometheus", "prometheus-alertmanager")
PROGRAMS = cache_dir() / "monitoring" / "usr" / "bin"
"""Where they are once they were fetched."""
CONFIGURATION = PROJECT_DIR / "deploy" / "prometheus"
SMTP = "127.0.0.1:2525"
START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """`folder` has the logs of all three, and the mails."""

    folder: Path

    def mails(self) -> list[EmailMessage]:
        """All that came so far, in no order."""
        box = mailbox.Maildir(self.folder / "mail", create=True)
        parser = BytesParser(_class=EmailMessage, policy=default)
        return [parser.parsebytes(box.get_bytes(key)) for key in box.iterkeys()]

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.log")))


def programs() -> Path:
    """The folder of the programs, fetched with this machine's apt the first time."""
    place = PROGRAMS.parent.parent
    if place.is_dir():
        return PROGRAMS
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir()) as work:
        _run("apt-get", "-q", "download", *PACKAGES, cwd=work)
        for package in Path(work).glob("*.deb"):
            _run("dpkg-deb", "--extract", str(package), f"{work}/tree", cwd=work)
        with suppress(OSError):  # another one was faster
            Path(work, "tree").rename(place)
    return PROGRAMS


@contextmanager
def monitoring(lab: str, topology: Topology, nodes: list[str]) -> Iterator[Monitoring]:
    """All three beside a lab that is up, watching these nodes; ended with the block. LabError if one does not start."""
    found = programs()
    with tempfile.TemporaryDirectory(prefix="hwlab-monitoring-") as directory:
        folder = Path(directory)
        _configure(folder, [f"{_address(topology, node)}:{METRICS_PORT}" for node in nodes])
        _join(lab, topology)
        running: list[subprocess.Popen[bytes]] = []
        try:
            for name, argv in _commands(found, folder).items():
                running.append(_start(lab, name, argv, folder))
            made = Monitoring(folder=folder)
            _await(lab, made)
            yield made
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(30)


def _commands(found: Path, folder: Path) -> dict[str, list[str]]:
    # Debian's Alertmanager has the place of its templates built in: it alone sees them there.
    shared = found.parent / "share"
    seeing = ["unshare", "--mount", "sh", "-c", f'mount --bind "{shared}" /usr/share && exec "$@"', "sh"]
    mail = [sys.executable, "-m", "aiosmtpd", "-n", "-l", SMTP, "-c", "aiosmtpd.handlers.Mailbox", f"{folder}/mail"]
    alertmanager = ["--config.file", "alertmanager.yml", "--storage.path", "alerts", "--cluster.listen-address="]
    prometheus = ["--config.file", "prometheus.yml", "--storage.tsdb.path", "series"]
    return {
        "mail": mail,
        "alertmanager": [
            *seeing,
            f"{found}/prometheus-alertmanager",
            *alertmanager,
            "--web.listen-address=127.0.0.1:9093",
        ],
        "prometheus": [f"{found}/prometheus", *prometheus, "--web.listen-address=127.0.0.1:9090"],
    }


def _configure(folder: Path, targets: list[str]) -> None:
    shutil.copy(CONFIGURATION / "hactl.rules.yml", folder)
    for name in ("prometheus.yml", "alertmanager.yml"):
        text = (CONFIGURATION / name).read_text()
        for line in text.splitlines():
            if "192.0.2." in line:
                text = text.replace(line, f"{line.partition('[')[0]}{targets!r}".replace("'", '"'))
        (folder / name).write_text(text.replace('"127.0.0.1:25"', f'"{SMTP}"'))


def _join(lab: str, topology: Topology) -> None:
    """An address of this machine on the nodes' network: the last one, which no host has."""
    network = topology.networks[LAN]
    address = f"{network.broadcast_address - 1}/{network.prefixlen}"
    _run("ip", "-n", netns.name_of(lab), "address", "replace", address, "dev", LAN)


def _address(topology: Topology, node: str) -> str:
    return str(next(host.addresses[LAN] for host in topology.hosts if host.name == node))


def _start(lab: str, name: str, argv: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [*netns.entering(lab), *argv], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _await(lab: str, made: Monitoring) -> None:
    """Until all of them listen."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        done = subprocess.run([*netns.entering(lab), "ss", "-Hltn"], capture_output=True, text=True, check=True)
        if all(f":{port} " in done.stdout for port in (2525, 9090, 9093)):
            return
        time.sleep(0.2)
    raise LabError(f"Prometheus, Alertmanager or the mail server did not start:\n{made.log()}")


def _run(*argv: str, cwd: str | None = None) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()[-300:]}")
