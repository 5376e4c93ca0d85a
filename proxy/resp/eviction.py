"""Messages of the eviction bus: what sidecars, and applications, tell each other to forget.

A message is a JSON object, so that any language and a person with redis-cli can write one::

    {"v": 1, "keys": ["user:42"], "match": ["api:users:*"]}

`v` is the version. `keys` and `match` (glob patterns, as for KEYS) are named as clients of the channel's
namespace name them; a name that is not UTF-8 is `{"b64": "…"}`. `all`: true means every key. Sidecars add
`from` (who they are, anew with each start), `n` (which message of theirs on this channel it is, so that a
lost one is noticed) and `why`. Whatever else is there is passed over.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxy.resp.errors import PannierError

VERSION = 1
LONGEST = 1 << 20
"""Bytes of a message that is read at all."""


class BadMessage(PannierError):
    """What came is no message; the text says why."""


class UnknownVersion(BadMessage):
    """A message of a version that is not known."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """What is to be forgotten, as clients of the namespace call it."""

    keys: tuple[bytes, ...] = ()
    patterns: tuple[bytes, ...] = ()
    everything: bool = False
    why: str = ""
    sender: str = ""
    """Empty: an application."""
    number: int = 0

    def encode(self) -> bytes:
        """The message's bytes."""
        message: dict[str, Any] = {"v": VERSION}
        if self.sender:
            message |= {"from": self.sender, "n": self.number}
        if self.why:
            message["why"] = self.why
        if self.keys:
            message["keys"] = _written(self.keys)
        if self.patterns:
            message["match"] = _written(self.patterns)
        if self.everything:
            message["all"] = True
        return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Eviction:
        """Read a message. Raises BadMessage or UnknownVersion."""
        if len(data) > LONGEST:
            raise BadMessage(f"is longer than {LONGEST} bytes")
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            raise BadMessage("is no JSON") from None
        if not isinstance(message, dict):
            raise BadMessage("is no JSON object")
        if message.get("v") != VERSION or message["v"] is True:
            raise UnknownVersion(f"has version {str(message.get('v'))[:20]!r}; known is {VERSION}")
        sender, number, why = message.get("from", ""), message.get("n", 0), message.get("why", "")
        if not isinstance(sender, str) or type(number) is not int or not isinstance(why, str):
            raise BadMessage("has a 'from', 'n' or 'why' that is none")
        everything = message.get("all", False)
        if not isinstance(everything, bool):
            raise BadMessage("has an 'all' that is neither true nor false")
        return cls(read_names(message, "keys"), read_names(message, "match"), everything, why, sender, number)


def all_channels(prefix: str) -> str:
    """The glob pattern of all channels that begin with this, for PSUBSCRIBE."""
    return re.sub(r"([*?\[\]^\\-])", r"\\\1", prefix) + "*"


def _written(names: Iterable[bytes]) -> list[object]:
    return [_one_written(name) for name in names]


def _one_written(name: bytes) -> object:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(name).decode()}


def read_names(message: dict[str, Any], field: str) -> tuple[bytes, ...]:
    """The names that a field of a message, or of anything written like one, holds. Raises BadMessage."""
    names = message.get(field, [])
    if not isinstance(names, list):
        raise BadMessage(f"has a {field!r} that is no list")
    return tuple([_one_read(name, field) for name in names])


def _one_read(name: object, field: str) -> bytes:
    if isinstance(name, str):
        return name.encode("utf-8", "surrogatepass")
    encoded = name.get("b64") if isinstance(name, dict) else None
    try:
        return base64.b64decode(encoded, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error):
        raise BadMessage(f"has a name in {field!r} that is neither a text nor b64") from None
