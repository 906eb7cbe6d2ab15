"""What joins several LUNs: which commands, in which order, and what is refused. Real ones: tests/lab/test_sets.py."""

from pathlib import Path

import pytest

from fs import FsError, NotPossible, _assemble
from fs._assemble import Assembly
from fs.stack import KINDS, Stack, assembles_by_itself, lvm_version, rejoinable

UUID = "12345678-9abc-4000-8000-0123456789ab"
PARTS = ("/dev/sdb2", "/dev/sdc2")


def stack(kind: str, parts: tuple[str, ...] = PARTS) -> Stack:
    return Stack.of(kind, "my-vol", UUID, parts)


def test_one_lun_needs_nothing() -> None:
    alone = stack("", PARTS[:1])
    assert alone.device == "/dev/sdb2"
    assert alone.create() == alone.assemble() == alone.disassemble() == ()
    assert Assembly(alone).assembled() and not Assembly(alone).disassemble()


@pytest.mark.parametrize(
    ("kind", "parts"), [("", PARTS), ("md", PARTS[:1]), ("lvm-stripe", PARTS[:1]), ("raid7", PARTS)]
)
def test_what_cannot_be_joined_so_is_refused(kind: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="my-vol"):
        stack(kind, parts)


@pytest.mark.parametrize("kind", ["lvm", "lvm-stripe"])
def test_lvm_is_told_its_members_and_owner_by_every_command(kind: str) -> None:
    commands = [*stack(kind).create(), *stack(kind).assemble()]
    for command in commands:
        assert command[command.index("--devices") + 1] == "/dev/sdb2,/dev/sdc2"
        assert f'local/system_id="hactl-{UUID}"' in command[command.index("--config") + 1]
    made = next(command for command in commands if "vgcreate" in command)
    assert made[made.index("--systemid") + 1] == f"hactl-{UUID}"
    assert made[made.index("--setautoactivation") + 1] == "n"
    assert ("--stripes" in commands[2]) == (kind == "lvm-stripe")


def test_names_have_no_dash_that_device_mapper_would_double() -> None:
    assert stack("lvm").device == "/dev/mapper/hactl_my_vol_12345678-data"
    assert stack("md").device == "/dev/md/hactl_my_vol_12345678"


def test_taking_apart_names_no_member() -> None:
    for kind in ("lvm", "md"):
        assert not set(PARTS) & {word for command in stack(kind).disassemble() for word in command}


def test_a_mirror_is_never_forced_to_start_with_fewer_members() -> None:
    (command,) = stack("md").assemble()
    assert command[-2:] == PARTS and not {"--run", "--force", "--scan"} & set(command)
    assert f"{UUID.replace('-', '')[:8]}:9abc4000:80000123:456789ab" in command


@pytest.mark.parametrize(
    ("conf", "itself"),
    [
        ("", True),
        ("AUTO -all\n", False),
        ("# AUTO -all\n", True),
        ("auto   -ALL # ours\nAUTO +all", False),
        ("AUTO +1.x -all", True),
        ("AUTO +all\nAUTO -all", True),
        ("MAILADDR root\nARRAY <ignore> UUID=1\nAUTO -all", False),
    ],
)
def test_whether_udev_would_assemble_an_array(conf: str, itself: bool) -> None:
    assert assembles_by_itself(conf) is itself


def test_the_version_of_lvm_is_read_from_its_own_words() -> None:
    assert lvm_version("  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185") == (2, 3, 16)
    assert lvm_version("garbage") == ()


DETAIL = """\
MD_LEVEL=raid1
MD_DEVICES=2
MD_DEVICE_dev_sdb2_ROLE=0
MD_DEVICE_dev_sdb2_DEV=/dev/sdb2
"""


def test_a_member_that_a_mirror_runs_without_is_found() -> None:
    assert rejoinable(DETAIL, PARTS) == ("/dev/sdc2",)
    both = DETAIL + "MD_DEVICE_dev_sdc2_ROLE=1\nMD_DEVICE_dev_sdc2_DEV=/dev/sdc2\n"
    assert rejoinable(both, PARTS) == ()
    spare = DETAIL + "MD_DEVICE_dev_sdc2_ROLE=spare\nMD_DEVICE_dev_sdc2_DEV=/dev/sdc2\n"
    assert rejoinable(spare, PARTS) == ("/dev/sdc2",)


class Tools:
    """Stands in for the tools and the kernel: which commands ran, and whether the device is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, conf: str = "AUTO -all\n", used: str = "") -> None:
        self.ran: list[str] = []
        self.there = False
        self.fails = ""
        self.used = used
        monkeypatch.setattr(_assemble, "_run", self.run)
        monkeypatch.setattr(_assemble, "_mdadm_conf", lambda: conf)
        monkeypatch.setattr(_assemble, "device_number", lambda device: "254:0" if self.there else None)
        monkeypatch.setattr(_assemble, "ensure_partition", lambda device: None)
        monkeypatch.setattr(_assemble, "is_free", lambda device: device != self.used)
        monkeypatch.setattr(_assemble.shutil, "which", lambda tool, path: f"/sbin/{tool}")

    def run(self, volume: str, command: tuple[str, ...]) -> str:
        self.ran.append(" ".join(command[:2]))
        if self.fails and self.fails in command:
            raise FsError(volume, f"{self.fails} failed", "look")
        if "vgchange" in command or "--assemble" in command:
            self.there = True
        if "remove" in command or "--stop" in command:
            self.there = False
        return DETAIL if "--detail" in command else ""


def test_it_is_assembled_once_and_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    tools, assembly = Tools(monkeypatch), Assembly(stack("lvm"))
    assert "assembled" in assembly.assemble()
    assert assembly.assemble() == "was assembled"
    assert assembly.disassemble() and not assembly.disassemble()
    assert tools.ran == ["lvm version", "modprobe -a", "lvm vgchange", "dmsetup remove"]


def test_members_that_somebody_else_uses_are_not_assembled(monkeypatch: pytest.MonkeyPatch) -> None:
    tools, assembly = Tools(monkeypatch, used="/dev/sdc2"), Assembly(stack("md"))
    with pytest.raises(FsError, match="/dev/sdc2 is in use"):
        assembly.assemble()
    assert not [command for command in tools.ran if "mdadm" in command]


def test_members_still_in_use_after_taking_apart_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tools, assembly = Tools(monkeypatch), Assembly(stack("lvm"))
    assembly.assemble()
    tools.used = "/dev/sdb2"
    with pytest.raises(FsError, match="/dev/sdb2 is still in use"):
        assembly.disassemble()


def test_a_mirror_that_ran_without_a_member_takes_it_back_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tools, assembly = Tools(monkeypatch), Assembly(stack("md"))
    assert "/dev/sdc2 taken back" in assembly.assemble()
    assembly.disassemble()
    tools.fails = "--re-add"
    assert "DEGRADED: without /dev/sdc2" in assembly.assemble()


def test_a_node_on_which_udev_would_assemble_mirrors_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    Tools(monkeypatch, conf="")
    with pytest.raises(NotPossible, match="AUTO -all"):
        Assembly(stack("md")).prepare()


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Tools(monkeypatch)
    monkeypatch.setattr(_assemble.shutil, "which", lambda tool, path: None)
    for kind in ("lvm", "md"):
        with pytest.raises(NotPossible, match="is not installed"):
            Assembly(stack(kind)).prepare()


def test_a_tool_that_fails_is_told_in_its_own_words() -> None:
    with pytest.raises(FsError, match="ls --no-such-option failed"):
        _assemble._run("v1", ("ls", "--no-such-option"))
    with pytest.raises(NotPossible):
        _assemble._run("v1", ("/no/such/tool",))


def test_all_files_of_mdadm_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.conf").write_text("MAILADDR root\n")
    (tmp_path / "two.conf").write_text("AUTO -all\n")
    monkeypatch.setattr(_assemble, "_MDADM_CONF", (f"{tmp_path}/*.conf", f"{tmp_path}/absent"))
    assert not assembles_by_itself(_assemble._mdadm_conf())


def test_every_kind_says_what_it_is() -> None:
    assert all(kind.about and kind.members_min for kind in KINDS.values())
