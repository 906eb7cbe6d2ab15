"""How hactld ends before it began."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from hactl.controller import Step
from hactl.daemon import NOT_NEEDED, Daemon, main

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "hactld.service"

CONFIG = """
[cluster]
name = "demo"
uuid = "0b6cf1c1-52a5-4a4f-8df0-5ad0a1a3e2b7"
key_file = "{key}"

[[node]]
name = "n1"
number = 1
address = "10.0.0.1"

[[node]]
name = "n2"
number = 2
address = "10.0.0.2"

[[node]]
name = "n3"
number = 3
address = "10.0.0.3"
votes_only = true
"""


def test_on_a_node_that_only_votes_hactld_ends_and_systemd_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, config = tmp_path / "key", tmp_path / "hactl.toml"
    key.write_text("1" * 64 + "\n")
    key.chmod(0o600)
    config.write_text(CONFIG.format(key=key))
    monkeypatch.setattr("sys.argv", ["hactld", "--config", str(config)])
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="n3"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == NOT_NEEDED
    assert "only votes" in capsys.readouterr().err
    lines = UNIT.read_text().splitlines()
    assert {f"SuccessExitStatus={NOT_NEEDED}", f"RestartPreventExitStatus={NOT_NEEDED}"} <= set(lines)


@pytest.mark.parametrize(("risk", "distrust"), [("fence", ()), ("", ("v1",)), ("room", ())])
def test_without_a_lease_nobody_begins_to_write_where_the_disk_refuses_nobody(
    risk: str, distrust: tuple[str, ...]
) -> None:
    """By the label alone: no report of anybody is there."""
    node = SimpleNamespace(
        config=SimpleNamespace(cluster=SimpleNamespace(fencing=SimpleNamespace(distrust=distrust))),
        volumes=SimpleNamespace(seen={"v1": SimpleNamespace(label=SimpleNamespace(risk=risk))}),
        view=SimpleNamespace(barred=False, made_ms=0, lease_left_ms=0),
    )
    told = [Daemon._forbid(node, "v1", step) for step in (Step.ACQUIRE, Step.MOUNT)]  # type: ignore[arg-type]
    assert all("no lease" in why for why in told) if risk != "room" else told == ["", ""]
