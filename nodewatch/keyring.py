"""The cluster key's file: one key per line, 64 hex digits each; blank lines and lines that begin with # do not count.

Normally it holds one key. While a key is changed (`hactl key rotate`) it holds two; which of them count, and which one
seals, is said by `keys` in the configuration, by their ids. So the file may hold a key too many at any time.
"""

from __future__ import annotations

import hashlib

from nodewatch.wire import KEY_BYTES

KEYS_MAX = 2


class BadKeys(Exception):
    """Not a key file, or not the keys that the configuration names."""


def parse(text: str) -> tuple[bytes, ...]:
    """The keys in the order of the file. Raises BadKeys."""
    lines = [line.strip() for line in text.splitlines()]
    found = []
    for line in (line for line in lines if line and not line.startswith("#")):
        try:
            key = bytes.fromhex(line)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES or len(line) != 2 * KEY_BYTES:
            raise BadKeys(f"not {2 * KEY_BYTES} hex digits")
        found.append(key)
    if not found:
        raise BadKeys("no key in it")
    if len(set(found)) < len(found) or len(found) > KEYS_MAX:
        raise BadKeys(f"{len(found)} keys, at most {KEYS_MAX} different ones may be in it")
    return tuple(found)


def to_text(keys: tuple[bytes, ...]) -> str:
    return "".join(f"{key.hex()}\n" for key in keys)


def key_id(key: bytes) -> str:
    """16 hex digits that tell keys apart and nothing about them."""
    return hashlib.sha256(b"hactl cluster key id\0" + key).hexdigest()[:16]


def choose(keys: tuple[bytes, ...], wanted: tuple[str, ...]) -> tuple[bytes, ...]:
    """Those of the ids `wanted`, in that order; without ids the first of the file alone. Raises BadKeys."""
    if not wanted:
        return keys[:1]
    known = {key_id(key): key for key in keys}
    missing = [each for each in wanted if each not in known]
    if missing:
        raise BadKeys(f"the configuration names key {missing[0]}, which is not in it: the key was changed")
    return tuple(known[each] for each in wanted)
