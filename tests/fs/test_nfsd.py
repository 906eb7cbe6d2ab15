"""knfsd's control files: what must be set before the first thread."""

from pathlib import Path

import pytest

from fs import _nfsd
from fs.model import VolumeSpec


def test_a_server_gives_no_delegations_from_its_first_thread_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = tmp_path / "leases-enable"
    leases.write_text("1\n")
    monkeypatch.setattr(_nfsd, "_LEASES", leases)
    monkeypatch.setattr(_nfsd, "RUN", tmp_path)
    server = _nfsd.Server(
        VolumeSpec(name="v1", device="/dev/null", fstype="ext4", address_cidr="10.77.1.50/24", clients=())
    )
    server.control.mkdir(parents=True)
    for name in ("versions", "nfsv4leasetime", "nfsv4gracetime"):
        (server.control / name).write_text("")
    server.configure()
    assert leases.read_text() == "0\n"
    leases.chmod(0o444)
    server.configure()
