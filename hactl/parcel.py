"""Messages that are too long for one letter: compressed, cut into parts, joined again.

Node watch carries at most 60,000 bytes between two hactlds. A report of one volume takes some 250, so that a few
hundred volumes need more. What fits is sent as it is. What does not is deflated (reports repeat themselves: twenty to
one) and cut.

Letters between two processes keep their order and come once or not at all. So a part that does not continue what came
before means that something was lost: the rest is dropped, and the next telling, a second later, makes it good. What a
sender claims is bounded before anything is built from it.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

from hactl.messages import MessageError

WHOLE_BYTES_MAX = 40_000
PART_CHARS = 48_000
PARTS_MAX = 64
BODY_BYTES_MAX = 64_000_000
KIND = "part"
_MEMBERS = {"kind", "ident", "number", "of", "text"}


def pack(body: dict[str, Any], *, ident: int) -> list[dict[str, Any]]:
    """The bodies to send for one body, in order; `ident` differs from that of the sender's last one. Raises
    MessageError if it is too long even so (some 100,000 volumes)."""
    text = json.dumps(body, separators=(",", ":")).encode()
    if len(text) <= WHOLE_BYTES_MAX:
        return [body]
    packed = base64.b64encode(zlib.compress(text, 1)).decode()
    pieces = [packed[at : at + PART_CHARS] for at in range(0, len(packed), PART_CHARS)]
    if len(pieces) > PARTS_MAX or len(text) > BODY_BYTES_MAX:
        raise MessageError(f"a message of {len(text)} bytes is too long to be sent: too many volumes for this version")
    return [
        {"kind": KIND, "ident": ident, "number": number, "of": len(pieces), "text": piece}
        for number, piece in enumerate(pieces)
    ]


@dataclass(slots=True)
class Parcels:
    """What came of each sender's newest parcel."""

    _begun: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def take(self, sender: str, body: object) -> object | None:
        """A whole body as soon as there is one; None while parts are missing. Raises MessageError."""
        if not isinstance(body, dict) or body.get("kind") != KIND:
            return body
        ident, number, of, text = _members(body)
        known, pieces = self._begun.pop(sender, (ident, []))
        if number == 0:
            known, pieces = ident, []
        if known != ident or number != len(pieces):
            raise MessageError("a part of a message whose other parts were lost")
        pieces.append(text)
        if len(pieces) < of:
            self._begun[sender] = (ident, pieces)
            return None
        return _unpack("".join(pieces))


def _members(body: dict[str, Any]) -> tuple[int, int, int, str]:
    if body.keys() != _MEMBERS:
        raise MessageError("a part with other members than a part has")
    ident, number, of, text = body["ident"], body["number"], body["of"], body["text"]
    if any(type(value) is not int for value in (ident, number, of)) or type(text) is not str:
        raise MessageError("a part whose members have other types than a part's")
    if not 0 <= number < of <= PARTS_MAX or len(text) > PART_CHARS:
        raise MessageError(f"part {number} of {of} with {len(text)} characters")
    return ident, number, of, text


def _unpack(text: str) -> object:
    try:
        inflate = zlib.decompressobj()
        plain = inflate.decompress(base64.b64decode(text, validate=True), BODY_BYTES_MAX)
        if not inflate.eof:
            raise MessageError("a message that is cut off, or longer than any")
        return json.loads(plain)
    except (ValueError, zlib.error, RecursionError) as wrong:
        raise MessageError(f"a message in parts that cannot be unpacked: {wrong}") from wrong
