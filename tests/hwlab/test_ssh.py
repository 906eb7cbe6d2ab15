"""The command lines of ssh, and what travels over it."""

import io
import tarfile
from pathlib import Path

import pytest

from hwlab.ssh import _archive, in_parallel, ssh_argv

CONTROL = Path("/run/hwlab-x/ssh-n1")


def test_a_lab_host_is_reached_with_the_labs_key_and_none_of_the_users_settings() -> None:
    argv = ssh_argv("root@10.77.0.11", key_file=Path("/k"), control=CONTROL, prefix=["nsenter", "--net=/n"])
    assert argv[:3] == ["nsenter", "--net=/n", "ssh"]
    assert argv[-1] == "root@10.77.0.11"
    assert argv[argv.index("-F") + 1] == "none"
    assert argv[argv.index("-i") + 1] == "/k"
    assert "StrictHostKeyChecking=no" in argv


def test_a_real_host_is_reached_with_the_users_own_settings() -> None:
    argv = ssh_argv("root@rack7", key_file=None, control=CONTROL)
    assert argv[0] == "ssh"
    assert "-F" not in argv
    assert "-i" not in argv
    assert not any("StrictHostKeyChecking" in word for word in argv)


def test_ssh_never_asks_and_never_waits_long() -> None:
    argv = ssh_argv("h", key_file=None, control=CONTROL)
    assert "BatchMode=yes" in argv
    assert "ConnectTimeout=3" in argv


def test_files_and_directories_travel_in_one_archive(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    data = _archive({"/etc/x/key": b"secret", "/opt/code": tmp_path / "code"}, 0o600)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert set(members) == {"etc/x/key", "opt/code", "opt/code/a.py"}
        assert members["etc/x/key"].mode == 0o600
        assert all(member.uid == 0 for member in members.values())


def test_parallel_results_keep_their_order() -> None:
    assert in_parallel(lambda number: number * 2, [3, 1, 2]) == [6, 2, 4]
    assert in_parallel(lambda number: number, []) == []


def test_an_error_in_parallel_work_is_raised() -> None:
    def fail(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        in_parallel(fail, [7])
