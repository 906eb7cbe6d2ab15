"""/proc/PID/mountinfo, parsed (pure). Source: Linux Documentation/filesystems/proc.rst, 3.5."""

from __future__ import annotations

from dataclasses import dataclass

from fs.export import unquote_octal


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount: where (`path`), of which device ("8:2"), which kind of file system, its options of the
    mount and of the super block together."""

    device: str
    root: str
    path: str
    fstype: str
    source: str
    options: frozenset[str]


def parse(text: str) -> tuple[Mount, ...]:
    """In the order of the kernel: a later mount on the same path covers an earlier one."""
    return tuple(_parse_line(line) for line in text.splitlines() if " - " in line)


def _parse_line(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    words, tail = left.split(" "), right.split(" ")
    return Mount(
        device=words[2],
        root=_path(words[3]),
        path=_path(words[4]),
        fstype=tail[0],
        source=_path(tail[1]) if len(tail) > 1 else "",
        options=frozenset(words[5].split(",") + (tail[2].split(",") if len(tail) > 2 else [])),
    )


def _path(word: str) -> str:
    return unquote_octal(word).decode("utf-8", "surrogateescape")


def at(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """What is visible at exactly this path."""
    found = [mount for mount in mounts if mount.path == path]
    return found[-1] if found else None
