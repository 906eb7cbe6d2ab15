"""How a change of the configuration travels between the hactlds. What makes it safe is nodewatch's part
(`nodewatch/membership.py`): it agrees on a change; here it is checked against this node's files, written, handed on.

    leader     request --propose--> nodewatch;  Offer to all until it is chosen;  chosen and safe: Known to all, take it
    everybody  Offer: does it fit my files? --accept--> nodewatch;   Known: to the disk --reconfigure--> nodewatch
    anybody    a node is one version behind: Known to it (the leader to others, others to the leader)

All of it is repeated, once a second and on every change of the view, from what the view shows: a lost message costs
time, and a new leader goes on where the old one stopped.

A new key takes three changes: [old] -> [old, new]: all can open both; -> [new, old]: all seal with the new one;
-> [new]. Each waits until every node made the one before: a node two steps behind could not be talked to any more.
The key file's order tells which of two is the newer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from hactl.config import Config
from hactl.errors import ConfigError, RequestRefused
from hactl.messages import Ask, Known, Message, Offer
from nodewatch.config import ClusterConfig, NodeConfig
from nodewatch.keyring import BadKeys, key_id, parse
from nodewatch.membership import Change, ChangeRefused, change_from, next_keys
from nodewatch.quorum import majority
from nodewatch.view import ConfigView, View


class Files(Protocol):
    """`configfile.ConfigFile`."""

    config: Config
    changes: dict[int, Change]

    @property
    def cluster(self) -> ClusterConfig: ...
    def next(self, change: Change) -> ClusterConfig: ...
    def make(self, change: Change) -> None: ...
    def keys(self) -> tuple[bytes, ...]: ...
    def counting_keys(self) -> tuple[bytes, ...]: ...
    def secret_for(self, change: Change) -> str: ...
    def add_key(self, key: bytes) -> None: ...
    def drop_keys(self) -> None: ...


class Watch(Protocol):
    """The part of `nodewatch._client.NodeWatchClient` that is used here."""

    def propose(self, change: dict[str, Any], digest: str) -> None: ...
    def accept(self, term: int, change: dict[str, Any], digest: str) -> None: ...
    def reconfigure(self, change: dict[str, Any]) -> None: ...
    def yield_(self) -> None: ...


@dataclass(slots=True)
class Changes:
    """One hactld's part. `taken` is called with the new configuration once it is on the disk."""

    files: Files
    watch: Watch
    send: Callable[[str, Message], None]
    taken: Callable[[Config], None]
    log: Callable[[str], None]
    removed: str = ""
    """Not empty: this node was removed, and what to do about it."""
    trouble: str = ""
    """Why this node cannot take the change that it was given."""
    _told: dict[str, Change] = field(default_factory=dict)
    _acted_on: object = None
    _dropped: tuple[str, ...] = ()
    """The one key for which the key file was looked through."""

    # -- what comes in -------------------------------------------------------------------------------------------

    def seen(self, view: View) -> None:
        """Every view: act at once when something about the configuration changed."""
        state = view.config, view.term, view.leader, [node.config_version for node in view.nodes.values()]
        if state != self._acted_on:
            self._acted_on = state
            self.tend(view)

    def take(self, sender: str, message: Offer | Known | Ask, view: View) -> None:
        try:
            match message:
                case Offer():
                    self._offered(sender, message, view)
                case Known():
                    self._known(message)
                case Ask():
                    self._asked(sender, message, view)
        except (ChangeRefused, ConfigError, BadKeys, OSError) as wrong:
            self._say_trouble(f"a change from {sender} cannot be taken: {wrong}")

    def _offered(self, sender: str, offer: Offer, view: View) -> None:
        accepted = view.config.accepted
        have = accepted is not None and (accepted["term"], accepted["digest"]) == (offer.term, offer.digest)
        if have or sender != view.leader or offer.term != view.term:
            return
        change = change_from(offer.change)
        if change.version != self.files.cluster.version + 1:
            return
        self._take_secret(change, offer.secret)
        found = self.files.next(change).digest().hex()
        if found != offer.digest:
            raise ConfigError(f"it would make {found} of hactl.toml here, and {offer.digest} at the leader")
        self.watch.accept(offer.term, offer.change, offer.digest)

    def _known(self, known: Known) -> None:
        change = change_from(known.change)
        if change.version != self.files.cluster.version + 1:
            return
        self._take_secret(change, known.secret)
        if known.chosen:
            self._make(change)
        else:
            self._told[known.digest] = change

    def _asked(self, sender: str, ask: Ask, view: View) -> None:
        accepted = view.config.accepted
        if accepted is not None and accepted["digest"] == ask.digest:
            self._tell(sender, change_from(accepted["change"]), ask.digest, chosen=False)

    def _take_secret(self, change: Change, secret: str) -> None:
        if secret and change.keys:
            (key,) = parse(secret)
            if key_id(key) in change.keys:
                self.files.add_key(key)

    def _make(self, change: Change) -> None:
        if change.remove == self.files.config.number:
            if not self.removed:
                self.removed = (
                    f"this node was removed from the cluster by version {change.version} of the configuration: "
                    f"run `systemctl disable --now hactl-nodewatch hactld` here"
                )
                self.log(self.removed)
            self.watch.yield_()
            return
        self.files.make(change)
        self.trouble = ""
        self.log(f"configuration version={change.version}: {describe(change, self.files.cluster)}")
        self.taken(self.files.config)
        self.watch.reconfigure(change.to_plain())

    def _say_trouble(self, text: str) -> None:
        if text != self.trouble:
            self.trouble = text
            self.log(text)

    # -- what goes on ----------------------------------------------------------------------------------------------

    def tend(self, view: View) -> None:
        """Whatever is to be done now, from what the view shows."""
        if self.removed:
            return
        try:
            if view.config.version < self.files.cluster.version:
                self._hand_on(view.config.version + 1)
                return
            self._help_those_behind(view)
            if view.leader == view.me:
                self._lead(view)
            self._drop_old_key(view)
        except (ChangeRefused, ConfigError, BadKeys, OSError) as wrong:
            self._say_trouble(str(wrong))

    def _hand_on(self, version: int) -> None:
        """It is on the disk, and nodewatch does not know: this process ended in between."""
        change = self.files.changes.get(version)
        if change is None:
            self._say_trouble(
                f"hactl.toml is newer than what nodewatch runs with, and how it came to version {version} is not "
                f"known here: restart hactl-nodewatch"
            )
        else:
            self.watch.reconfigure(change.to_plain())

    def _help_those_behind(self, view: View) -> None:
        for name, node in view.nodes.items():
            behind = node.state == "alive" and 0 < node.config_version < view.config.version
            change = self.files.changes.get(node.config_version + 1)
            if behind and change is not None and (view.leader in (None, view.me, name)):
                self._tell(name, change, "", chosen=True)

    def _lead(self, view: View) -> None:
        config = view.config
        if config.accepted is not None and config.accepted["term"] == view.term:
            self._drive(view, config.accepted)
        elif config.must_take is not None:
            self._take_up(*config.must_take, config)
        elif not config.blocked and len(self.files.cluster.keys) > 1 and everybody_is_here(view):
            self._next_key_step()

    def _drive(self, view: View, accepted: Any) -> None:
        change = change_from(accepted["change"])
        if change.version <= self.files.cluster.version:
            return  # made already; nodewatch will say so
        if view.config.safe_in_ms == 0:
            self._tell("*", change, accepted["digest"], chosen=True)
            self._make(change)
            return
        offer = Offer(
            term=view.term,
            change=accepted["change"],
            digest=accepted["digest"],
            secret=self.files.secret_for(change),
        )
        for name in view.nodes:
            if name not in view.config.accepted_by and name != view.me:
                self.send(name, offer)

    def _take_up(self, name: str, digest: str, config: ConfigView) -> None:
        """What an earlier leader began."""
        accepted = config.accepted
        if accepted is not None and accepted["digest"] == digest:
            self.watch.propose(dict(accepted["change"]), digest)
        elif digest in self._told:
            self.watch.propose(self._told[digest].to_plain(), digest)
        else:
            self.send(name, Ask(digest=digest))

    def _next_key_step(self) -> None:
        """Two keys count: seal with the newer one, then drop the older one."""
        cluster = self.files.cluster
        newer = key_id(self.files.keys()[-1])
        switch, drop = next_keys(cluster.keys)
        self._propose(Change(**self._from_here(), keys=drop if cluster.keys[0] == newer else switch))

    def _drop_old_key(self, view: View) -> None:
        """The last step was made. (A key behind those that count is one that was only offered yet.)"""
        counting = self.files.cluster.keys
        if len(counting) != 1 or view.config.accepted is not None or self._dropped == counting:
            return
        keys = self.files.keys()
        if len(keys) > 1 and key_id(keys[-1]) == counting[0]:
            self.files.drop_keys()
        self._dropped = counting

    def _tell(self, to: str, change: Change, digest: str, *, chosen: bool) -> None:
        secret = self.files.secret_for(change)
        self.send(to, Known(change=change.to_plain(), digest=digest, secret=secret, chosen=chosen))

    def _propose(self, change: Change) -> None:
        self.watch.propose(change.to_plain(), self.files.next(change).digest().hex())

    def _from_here(self) -> dict[str, Any]:
        cluster = self.files.cluster
        return {"version": cluster.version + 1, "previous": cluster.digest().hex()}

    # -- what an administrator asks for ------------------------------------------------------------------------------

    def request(
        self, verb: str, args: dict[str, str], view: View, holding: dict[str, list[str]], new_key: bytes
    ) -> dict[str, str]:
        """Begin a change; this node leads. `holding`: which volumes each node holds. Raises RequestRefused."""
        if view.config.blocked or view.config.must_take is not None:
            why = view.config.blocked or "a change that an earlier leader began comes first"
            raise RequestRefused(f"the configuration cannot be changed now: {why}")
        force = args.get("force") == "yes"
        late = behind(view)
        if late:
            raise RequestRefused(f"{', '.join(late)} has not made the last change yet; see `hactl node list`")
        try:
            match verb:
                case "node-add":
                    change = self._addition(args, view, force)
                case "node-remove":
                    change = self._removal(args, view, holding, force)
                case _:
                    change = self._new_key(view, new_key)
            self._propose(change)
        except (ChangeRefused, ConfigError, BadKeys, OSError) as wrong:
            raise RequestRefused(str(wrong)) from wrong
        what = describe(change, self.files.cluster)
        self.log(f"leader: configuration version={change.version} proposed: {what}")
        return {"version": str(change.version), "what": what}

    def _addition(self, args: dict[str, str], view: View, force: bool) -> Change:
        change = addition(self.files.cluster, args)
        used = {known.remove for known in self.files.changes.values()}
        if change.add is not None and change.add.number in used and not force:
            raise RequestRefused(
                f"number {change.add.number} was another node's: keys of it may be on disks. Take a new number; "
                f"--force only if this is the same host again"
            )
        alive = [name for name, node in view.nodes.items() if node.state == "alive"]
        needed = majority(self.files.cluster.votes + 1)
        if len(alive) < needed and not force:
            raise RequestRefused(
                f"of {len(view.nodes) + 1} nodes {needed} must be heard, and {len(alive)} are: the cluster would stop "
                f"until the new node comes up; mend the others first, or repeat with --force when the new node is ready"
            )
        return change

    def _removal(self, args: dict[str, str], view: View, holding: dict[str, list[str]], force: bool) -> Change:
        name = args.get("node", "")
        node = view.nodes.get(name)
        if node is None:
            raise RequestRefused(f"no node {name!r}; there are {', '.join(sorted(view.nodes))}")
        if name == view.me:
            raise RequestRefused(
                f"{name} leads the cluster and cannot remove itself: stop it with `systemctl stop hactl-nodewatch` "
                f"there, then remove it"
            )
        if node.state == "alive" and holding.get(name):
            raise RequestRefused(
                f"{name} has {', '.join(holding[name])}: move them first, with `hactl volume move VOLUME NODE`"
            )
        if node.state != "alive" and not (node.confirmed and node.safe_in_ms == 0):
            raise RequestRefused(f"{name} is not heard, and it is not yet sure that it serves nothing; try again")
        left = [other for other, each in view.nodes.items() if each.state == "alive" and other != name]
        count, votes = len(view.nodes) - 1, self.files.cluster.votes - 1
        if len(left) < majority(votes):
            raise RequestRefused(f"of the {count} nodes left only {len(left)} are heard: the cluster would stop")
        if votes <= 2 and not force:
            raise RequestRefused(f"{count} nodes survive the loss of none; add a node first, or repeat with --force")
        number = next(each.number for each in self.files.cluster.nodes if each.name == name)
        return Change(**self._from_here(), remove=number)

    def _new_key(self, view: View, key: bytes) -> Change:
        silent = [name for name, node in view.nodes.items() if node.state != "alive"]
        if silent:
            raise RequestRefused(
                f"{', '.join(silent)} is not heard and would be locked out by a new key: bring it up, or remove it"
            )
        mute = [node.name for node in self.files.cluster.nodes if node.votes_only]
        if mute:
            raise RequestRefused(
                f"{', '.join(mute)} only votes, and has no hactld to take a new key: remove it first, then add it again"
            )
        if len(self.files.cluster.keys) > 1:
            raise RequestRefused("a key is being changed already")
        present = self.files.counting_keys()[0]
        self.files.add_key(key)
        return Change(**self._from_here(), keys=(key_id(present), key_id(key)))


def addition(cluster: ClusterConfig, args: dict[str, str]) -> Change:
    """The change that adds a node: `node`, `number`, `addresses` (a comma between them), `votes_only`. Raises
    RequestRefused."""
    first, *further = [address.strip() for address in args.get("addresses", "").split(",")]
    if not args.get("number", "").isdigit():
        raise RequestRefused("a node needs a number from 1 to 4095 that no node ever had")
    new = NodeConfig(
        name=args.get("node", ""),
        number=int(args["number"]),
        address=first,
        further=tuple(further),
        votes_only=args.get("votes_only") == "yes",
    )
    return Change(version=cluster.version + 1, previous=cluster.digest().hex(), add=new)


def behind(view: View) -> list[str]:
    """Nodes that are heard, and are at an older version."""
    return sorted(
        name
        for name, node in view.nodes.items()
        if node.state == "alive" and 0 < node.config_version < view.config.version
    )


def everybody_is_here(view: View) -> bool:
    """Every configured node was heard at this version: it has it on its disk, also if it is away now."""
    return all(node.config_version == view.config.version for node in view.nodes.values())


def describe(change: Change, cluster: ClusterConfig) -> str:
    """In words; `cluster` is the configuration before or after it."""
    if change.add is not None:
        return f"add {change.add.name} (number {change.add.number})"
    if change.remove:
        names = [node.name for node in cluster.nodes if node.number == change.remove]
        return f"remove {names[0] if names else f'node number {change.remove}'}"
    if len(change.keys) == 1:
        return f"only key {change.keys[0]}"
    return f"keys {change.keys[0]} (seals) and {change.keys[1]}"


def progress(view: View, cluster: ClusterConfig) -> dict[str, Any]:
    """The part of `hactl status` about the configuration."""
    accepted = view.config.accepted
    return {
        "version": view.config.version,
        "digest": view.config.digest,
        "change": None if accepted is None else describe(change_from(accepted["change"]), cluster),
        "accepted_by": list(view.config.accepted_by),
        "chosen": view.config.safe_in_ms is not None,
        "versions": {name: node.config_version for name, node in view.nodes.items()},
        "behind": behind(view),
        "keys": list(cluster.keys),
    }


def problems(view: View, cluster: ClusterConfig) -> list[str]:
    """What about the configuration is not as it should stay, a line each."""
    accepted = view.config.accepted
    lines = []
    if accepted is not None:
        what = describe(change_from(accepted["change"]), cluster)
        how = "chosen" if view.config.safe_in_ms is not None else f"accepted by {', '.join(view.config.accepted_by)}"
        told = f" ({how})" if view.config.accepted_by else ""
        lines.append(f"the configuration is being changed: {what}{told}")
    elif len(cluster.keys) > 1:
        away = [name for name, node in view.nodes.items() if node.config_version != view.config.version]
        lines.append(f"the cluster key is being changed; it goes on when {', '.join(away) or 'all'} made the last step")
    lines += [
        f"node {name} is at version {view.nodes[name].config_version} of the configuration, the newest is "
        f"{view.config.version}: it gets what it missed once it is heard; if that does not help, copy hactl.toml and "
        f"cluster.key to it and restart hactl-nodewatch there"
        for name in behind(view)
    ]
    return lines
