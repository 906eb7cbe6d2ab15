"""The kernel's questions about exports, and our answers (pure).

nfsd keeps its export table in caches and asks user space through a `channel` file per cache, one line per
question, one line per answer; words are separated by blanks, odd bytes are written `\\ooo`. A volume has one
export (fsid=0, the root of its server) and one set of clients, so that every answer follows from the spec:

- `auth.unix.ip`: "nfsd ADDRESS" -> which domain does this client belong to? (none: no access)
- `nfsd.fh`: "DOMAIN FSIDTYPE FSID" -> which path has this file system id?
- `nfsd.export`: "DOMAIN PATH" -> with which options is this path exported?

`auth.unix.gid` is left unopened on purpose: without a listener the kernel takes the groups that the client
sends, which is the NFS default. Source: Linux Documentation/filesystems/nfs/rpc-cache.rst; the formats were
read off net/sunrpc/svcauth_unix.c and fs/nfsd/export.c of 6.1.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fs.model import VolumeSpec

# Seconds since 1970 that never come: the answers don't change while a volume is served, and an upcall
# in the middle of a restart of the daemon would make a client wait.
NEVER = 0x7FFFFFFF
DOMAIN = "clients"

IP_CACHE = "auth.unix.ip"
FH_CACHE = "nfsd.fh"
EXPORT_CACHE = "nfsd.export"
CACHES = (IP_CACHE, FH_CACHE, EXPORT_CACHE)

_FSID_NUM = "1"
_FSID_ZERO = "\\x00000000"
_ROOT_SQUASH, _NO_SUBTREE_CHECK, _FSID = 0x0004, 0x0400, 0x2000
_NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is exported to whom."""

    path: str
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    root_squash: bool

    @staticmethod
    def of(spec: VolumeSpec, path: str) -> Export:
        return Export(path=path, networks=spec.networks, root_squash=spec.root_squash)

    def admits(self, text: str) -> bool:
        """Whether the client at this address may come in. Mapped IPv4 counts as IPv4."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


def opening_lines(export: Export, addresses: Iterable[str]) -> list[tuple[str, bytes]]:
    """(cache, line) to write before the threads start, so that no client waits for an upcall.

    The ip entries come first: they create the domain, without which the kernel refuses the rest (ENOENT).
    """
    peers = [address for address in addresses if export.admits(address)] or [_any_address(export)]
    lines = [(IP_CACHE, _line("nfsd", peer, NEVER, DOMAIN)) for peer in peers]
    return [*lines, (EXPORT_CACHE, _export_line(export)), (FH_CACHE, _fh_line(export))]


def answer(cache: str, question: bytes, export: Export) -> bytes:
    """The line to write back. A question that we cannot serve gets a negative answer, never none."""
    words = split(question)
    match cache, words:
        case "auth.unix.ip", [auth_class, address, *_]:
            known = auth_class == "nfsd" and export.admits(address)
            return _line(auth_class, address, NEVER, *([DOMAIN] if known else []))
        case "nfsd.fh", [domain, "1", fsid, *_] if fsid.lower() == _FSID_ZERO:
            return _line(domain, _FSID_NUM, fsid, NEVER, export.path)
        case "nfsd.fh", [domain, kind, fsid, *_]:
            return _line(domain, kind, fsid, NEVER)
        case "nfsd.export", [domain, path, *_] if path == export.path:
            return _export_line(export, domain)
        case "nfsd.export", [domain, path, *_]:
            return _line(domain, path, NEVER)
    raise ValueError(f"a question of {cache} that this version does not know: {question!r}")


def _export_line(export: Export, domain: str = DOMAIN) -> bytes:
    flags = _NO_SUBTREE_CHECK | _FSID | (_ROOT_SQUASH if export.root_squash else 0)
    return _line(domain, export.path, NEVER, flags, _NOBODY, _NOBODY, 0)


def _fh_line(export: Export) -> bytes:
    return _line(DOMAIN, _FSID_NUM, _FSID_ZERO, NEVER, export.path)


def _any_address(export: Export) -> str:
    network = export.networks[0]
    return str(network.network_address)


def _line(*words: object) -> bytes:
    return (" ".join(quote(str(word)) for word in words) + "\n").encode()


def quote(word: str) -> str:
    """One word as the kernel reads it. A word that starts with `\\x` is hexadecimal already."""
    if word.startswith("\\x"):
        return word
    return "".join(chr(byte) if 0x20 < byte < 0x7F and byte != 0x5C else f"\\{byte:03o}" for byte in word.encode())


def split(line: bytes) -> Sequence[str]:
    """The words of a line. `\\x...` words are left as they are."""
    return [_unquote(word) for word in line.decode("latin-1").rstrip("\n").split(" ") if word]


def _unquote(word: str) -> str:
    if word.startswith("\\x"):
        return word
    return unquote_octal(word).decode("utf-8", "surrogateescape")


def unquote_octal(word: str) -> bytes:
    """The bytes behind the kernel's `\\ooo` escapes."""
    out, at = bytearray(), 0
    while at < len(word):
        digits = word[at + 1 : at + 4]
        if word[at] == "\\" and len(digits) == 3 and all(each in "01234567" for each in digits):
            out.append(int(digits, 8) & 0xFF)
            at += 4
        else:
            out += word[at].encode("latin-1", "replace") if ord(word[at]) < 256 else word[at].encode()
            at += 1
    return bytes(out)
