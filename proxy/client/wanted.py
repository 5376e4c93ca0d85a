"""What may be wished to be in memory: a key, a pattern of keys, or a read with either in the place of its
key."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.resp import encode
from proxy.resp.globs import LONGEST_PATTERNS, literal
from proxy.resp.hotlist import words_of
from proxy.resp.keys import key_positions
from proxy.tier.rules import CACHEABLE, Rules

BY_TYPE: dict[bytes, tuple[bytes, ...]] = {
    b"string": (b"GET",),
    b"hash": (b"HGETALL",),
    b"set": (b"SMEMBERS",),
    b"list": (b"LRANGE", b"0", b"-1"),
    b"zset": (b"ZRANGE", b"0", b"-1", b"WITHSCORES"),
}
"""What is asked of a key of which only the name is given; the key stands behind the command's name."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Keys, and what is to be asked of them."""

    name: bytes
    """A key, or a pattern of keys if it has wildcards."""
    request: tuple[bytes, ...] = ()
    """The request; empty: one that fits the type of the key."""
    place: int = 0
    """Which of its arguments is the key; 0: it has several, and is asked as it is."""

    @property
    def is_pattern(self) -> bool:
        """Whether it may be about any number of keys."""
        return literal(self.name) is None

    def part(self, key: bytes) -> bytes:
        """The request for one key, as the part that is kept."""
        words = list(self.request)
        if self.place:
            words[self.place] = key
        return encode.request(*words)[1:]


def wish(line: bytes, rules: Rules) -> Wish:
    """What a line asks for (see docs/warming.md). Raises ValueError whose text says what is wrong."""
    words = words_of(line)
    if not words:
        raise ValueError("names no key")
    if len(words) == 1:
        if len(words[0]) > LONGEST_PATTERNS:
            raise ValueError(f"is longer than {LONGEST_PATTERNS} bytes")
        return Wish(words[0])
    command = rules.table.find(words[0])
    name = words[0].decode("utf-8", "backslashreplace")
    if command is None or command.name not in CACHEABLE or "readonly" not in command.flags:
        raise ValueError(f"asks for {name!r}, which is no read whose reply is kept; give one such as GET")
    least = abs(command.arity)
    if len(words) < least or len(words) > least == command.arity:
        wanted = f"{'' if least == command.arity else 'at least '}{least - 1}"
        raise ValueError(f"gives {name} {len(words) - 1} arguments; it takes {wanted}")
    uses = key_positions(command, words)
    if not uses:
        raise ValueError(f"is no complete {name}")
    if len(uses) == 1:
        return Wish(words[uses[0].index], tuple(words), uses[0].index)
    if any(literal(words[use.index]) is None for use in uses):
        raise ValueError(f"has a pattern among the several keys of {name}; give the keys")
    return Wish(b"", tuple(literal(word) or word for word in words))


def as_pattern(key: bytes) -> bytes:
    """The pattern that matches one key."""
    for byte in (b"\\", b"*", b"?", b"["):
        key = key.replace(byte, b"\\" + byte)
    return key
