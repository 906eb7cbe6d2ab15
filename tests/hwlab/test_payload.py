"""What is installed on a node."""

import io
import tarfile

from hwlab import payload


def members() -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(payload.build().tar)) as archive:
        return {member.name: member for member in archive.getmembers()}


def test_code_units_and_wrapper_are_in_their_places() -> None:
    names = members()
    assert "opt/hactl/lib/hactl/__init__.py" in names
    assert "opt/hactl/lib/fencing/__init__.py" in names
    assert "etc/systemd/system/hactld.service" in names
    assert names["usr/bin/hactl"].mode & 0o111
    assert names["usr/lib/hactl/path-gate"].mode & 0o111
    assert "etc/udev/rules.d/59-hactl-paths.rules" in names
    assert all(member.uid == 0 and member.isfile() for member in names.values())


def test_the_lab_itself_is_not_installed() -> None:
    assert not any("hwlab" in name or "tests" in name for name in members())


def test_the_code_arrives_compiled() -> None:
    names = members()
    assert any(name.startswith("opt/hactl/lib/hactl/__pycache__/") for name in names)


def test_the_digest_does_not_depend_on_when_it_is_built() -> None:
    first = payload.build()
    payload.build.cache_clear()
    assert payload.build().digest == first.digest
