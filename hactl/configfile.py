"""The configuration on this node's disk: hactl.toml, the key file, and how each version came about.

Order of writing, so that a crash at any point leaves a node that starts: the key file first (a key too many does no
harm), then the change, then hactl.toml, which alone says at which version this node is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hactl.config import Config
from hactl.configtext import changed
from hactl.errors import ConfigError
from hactl.record import write_atomic
from nodewatch import keyring
from nodewatch.config import ClusterConfig
from nodewatch.membership import Change, ChangeRefused, change_from

CHANGES_KEPT = 64
_KEYS_MODE, _TEXT_MODE = 0o600, 0o644


class ConfigFile:
    """`config` is what the file said when this was made, and what `make` made of it since."""

    def __init__(self, config: Config, path: Path, stable: Path) -> None:
        self.config = config
        self._path = path
        self._changes_path = stable / "changes.json"
        self.changes = self._load()
        """By the version that each led to."""

    @property
    def cluster(self) -> ClusterConfig:
        return self.config.cluster

    def next(self, change: Change) -> ClusterConfig:
        """What the change would make of the file here. Raises ConfigError; changes nothing."""
        return self._edit(change)[1]

    def make(self, change: Change) -> None:
        """Take the change: durable when this returns. Raises ConfigError or OSError; then nothing that counts has
        changed. The keys that it names must be in the key file."""
        text, cluster = self._edit(change)
        keyring.choose(self.keys(), cluster.keys)
        kept = sorted({**self.changes, change.version: change}.items())[-CHANGES_KEPT:]
        write_atomic(self._changes_path, json.dumps([each.to_plain() for _, each in kept]), stable=True)
        write_atomic(self._path.resolve(), text, stable=True, mode=_TEXT_MODE)
        self.changes = dict(kept)
        self.config = replace(self.config, cluster=cluster)

    def _edit(self, change: Change) -> tuple[str, ClusterConfig]:
        try:
            return changed(self._path.read_text(), change)
        except (OSError, UnicodeDecodeError) as wrong:
            raise ConfigError(f"{self._path}: {wrong}") from wrong

    def _load(self) -> dict[int, Change]:
        """What is garbled is forgotten: it only helps nodes that were away."""
        try:
            found = [change_from(plain) for plain in json.loads(self._changes_path.read_text())]
        except (OSError, ValueError, TypeError, ChangeRefused):
            return {}
        return {change.version: change for change in found}

    # -- keys ----------------------------------------------------------------------------------------------------

    def keys(self) -> tuple[bytes, ...]:
        """All keys of the key file. Raises ConfigError."""
        path = Path(self.cluster.key_file)
        try:
            return keyring.parse(path.read_text())
        except (OSError, UnicodeDecodeError, keyring.BadKeys) as wrong:
            raise ConfigError(f"{path}: {wrong}") from wrong

    def counting_keys(self) -> tuple[bytes, ...]:
        """Those that the configuration names, the one that seals first."""
        try:
            return keyring.choose(self.keys(), self.cluster.keys)
        except keyring.BadKeys as wrong:
            raise ConfigError(f"{self.cluster.key_file}: {wrong}") from wrong

    def secret_for(self, change: Change) -> str:
        """The newest key that a change names, in hex; "" if it names none that is here."""
        found = [key.hex() for key in self.keys() if keyring.key_id(key) in change.keys]
        return found[-1] if found else ""

    def add_key(self, key: bytes) -> None:
        """Put a key behind those that count now, in place of any other. Durable when this returns."""
        counting = self.counting_keys()
        if key not in counting:
            self._write_keys((*[each for each in self.keys() if each in counting], key))

    def drop_keys(self) -> None:
        """Forget keys that do not count any more. Durable when this returns."""
        counting = self.counting_keys()
        kept = tuple(key for key in self.keys() if key in counting)
        if kept != self.keys():
            self._write_keys(kept)

    def _write_keys(self, keys: Iterable[bytes]) -> None:
        path = Path(os.path.realpath(self.cluster.key_file))
        write_atomic(path, keyring.to_text(tuple(keys)), stable=True, mode=_KEYS_MODE)
