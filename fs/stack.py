"""What joins the LUNs of a volume to the one device that is mounted: nothing, LVM, or an md mirror. Pure.

Rules:
- Nothing here is assembled before the handle is held on every LUN, and nothing stays when the volume is given: md
  writes its superblocks when it starts, LVM's device keeps the LUNs in use, and neither asks who owns them.
- So nobody else may assemble them. A volume group of ours has a system ID that no host has and no autoactivation:
  plain LVM commands and udev leave it alone, ours name that ID. For md the administrator says so: `AUTO -all` in
  mdadm.conf.
- Commands are given the members by name, and never look for others: a copy of a member elsewhere is not used.

Sources: lvmsystemid(7), vgcreate(8) --setautoactivation (since 2.03.12), mdadm.conf(5), mdadm(8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Command = tuple[str, ...]

LVM_VERSION_MIN = (2, 3, 12)
STRIPE_KB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`tools` must be installed, `modules` loaded. `copies`: any one member has all the data."""

    about: str
    members_min: int
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    copies: bool = False


_LVM = ("lvm", "dmsetup")
KINDS = {
    "": Kind(about="one LUN, nothing in between", members_min=1),
    "lvm": Kind(about="an LVM volume, one LUN after the other", members_min=1, tools=_LVM, modules=("dm_mod",)),
    "lvm-stripe": Kind(about="an LVM volume, striped", members_min=2, tools=_LVM, modules=("dm_mod",)),
    "md": Kind(about="an md mirror (RAID 1)", members_min=2, tools=("mdadm",), modules=("raid1",), copies=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One volume's. `members` are the data partitions in the order of the LUNs' WWIDs, `uuid` is the volume's."""

    kind: str
    volume: str
    uuid: str
    members: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, volume: str, uuid: str, members: tuple[str, ...]) -> Stack:
        """ValueError if there is no such kind (a label of a newer hactl), or if it cannot be of so many LUNs."""
        if kind not in KINDS:
            raise ValueError(
                f"volume {volume} is stacked as {kind!r}, this hactl knows {', '.join(filter(None, KINDS))}"
            )
        if len(members) < KINDS[kind].members_min or (not kind and len(members) > 1):
            raise ValueError(f"volume {volume}: {len(members)} LUNs make no {KINDS[kind].about}")
        return cls(kind=kind, volume=volume, uuid=uuid, members=members)

    @property
    def lvm(self) -> bool:
        return self.kind.startswith("lvm")

    @property
    def name(self) -> str:
        """Of the volume group or array: says whose it is, and is unique. LVM and device-mapper double a dash."""
        return f"hactl_{self.volume.replace('-', '_')}_{self.uuid.replace('-', '')[:8]}"

    @property
    def device(self) -> str:
        """What is mounted."""
        if self.lvm:
            return f"/dev/mapper/{self.dm_name}"
        return f"/dev/md/{self.name}" if self.kind == "md" else self.members[0]

    @property
    def dm_name(self) -> str:
        return f"{self.name}-data"

    @property
    def system_id(self) -> str:
        """LVM's owner of the volume group: no host, but this volume."""
        return f"hactl-{self.uuid}"

    def create(self) -> tuple[Command, ...]:
        """Makes it on blank members, and leaves it assembled."""
        if self.kind == "md":
            devices = ("--raid-devices", str(len(self.members)), *self.members)
            shape = ("--level", "1", "--metadata", "1.2", "--bitmap", "internal", "--homehost", "any")
            return (("mdadm", "--create", self.device, "--run", "--uuid", _md_uuid(self.uuid), *shape, *devices),)
        if not self.lvm:
            return ()
        striped = ("--stripes", str(len(self.members)), "--stripesize", str(STRIPE_KB)) if self.kind != "lvm" else ()
        wipe = ("--yes", "--wipesignatures", "y")
        return (
            self._lvm("pvcreate", "--yes", "--force", *self.members),
            self._lvm("vgcreate", "--systemid", self.system_id, "--setautoactivation", "n", self.name, *self.members),
            self._lvm("lvcreate", *wipe, *striped, "--extents", "100%FREE", "--name", "data", self.name),
        )

    def assemble(self) -> tuple[Command, ...]:
        """From members that are all there. Neither starts with fewer than it had when it ran last."""
        if self.kind == "md":
            return (("mdadm", "--assemble", self.device, "--uuid", _md_uuid(self.uuid), *self.members),)
        return (self._lvm("vgchange", "--activate", "y", self.name),) if self.lvm else ()

    def disassemble(self) -> tuple[Command, ...]:
        """LVM: no member is read or written, they may be somebody else's by now. md notes a clean stop if it can."""
        if self.kind == "md":
            return (("mdadm", "--stop", self.device),)
        return (("dmsetup", "remove", "--retry", self.dm_name),) if self.lvm else ()

    def rejoin(self, member: str) -> Command:
        """Takes a member back into a mirror that ran without it; the bitmap says what it missed."""
        return ("mdadm", "--manage", self.device, "--re-add", member)

    def _lvm(self, command: str, *words: str) -> Command:
        config = " ".join(
            (
                # this command is the host of that name; extra_system_ids would not do on a host without a system ID
                'global/system_id_source="lvmlocal"',
                f'local/system_id="{self.system_id}"',
                "activation/monitoring=0",  # dmeventd would keep the members open
                "backup/backup=0",
                "backup/archive=0",
            )
        )
        return ("lvm", command, "--config", config, "--devices", ",".join(self.members), *words)


def _md_uuid(uuid: str) -> str:
    digits = uuid.replace("-", "")
    return ":".join(digits[at : at + 8] for at in range(0, 32, 8))


def lvm_version(text: str) -> tuple[int, ...]:
    """Of the output of `lvm version`; () if it does not say."""
    found = re.search(r"LVM version:\s+(\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


def assembles_by_itself(conf: str) -> bool:
    """Would udev (mdadm --incremental) assemble an array that this mdadm.conf does not name? Its text, all files.

    Only `AUTO -all` as the whole of the first AUTO line says no to all: the first word that matches decides there.
    """
    for line in conf.splitlines():
        words = line.split("#")[0].lower().split()
        if words and words[0] == "auto":
            return words[1:] != ["-all"]
    return True


def rejoinable(detail: str, members: tuple[str, ...]) -> tuple[str, ...]:
    """Members that a mirror does not have or has given up, from `mdadm --detail --export`."""
    states: dict[str, str] = {}
    names: dict[str, str] = {}
    for line in detail.splitlines():
        key, _, value = line.partition("=")
        found = re.fullmatch(r"MD_DEVICE_(.+)_(ROLE|DEV)", key)
        if found:
            (states if found[2] == "ROLE" else names)[found[1]] = value
    active = {names[each] for each, role in states.items() if each in names and role.isdigit()}
    return tuple(member for member in members if member not in active)
