"""Redis' glob patterns as regular expressions, oddities included (Redis docs: KEYS; its stringmatchlen).

`*` stands for any bytes, `?` for one, `[a-c]` and `[^a]` for one of a class; a backslash takes the next byte
as it is. An unterminated class ends with the pattern. What stands between two stars has a fixed length, so
its first occurrence will do: no pattern, however many stars it has, makes matching go back.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Sequence

LONGEST_PATTERNS = 4096
"""Bytes of patterns that are compiled at once: a few milliseconds at most."""
_START = re.compile(rb"[^\\*?\[]*").match
_SIGNED = platform.machine() in ("x86_64", "AMD64", "i386", "i686")
"""Whether C's char is signed, here and so at Redis, which is taken to run on such a machine: then the range
`[a-\\xff]` goes downwards from a."""
_LITERAL = re.compile(rb"(?:[^\\*?\[]|\\.|\\\Z)*", re.S).fullmatch


def literal(pattern: bytes) -> bytes | None:
    """The one name that a pattern matches; None if it may match several."""
    return re.sub(rb"\\(.)", rb"\1", pattern, flags=re.S) if _LITERAL(pattern) else None


def compile_globs(patterns: Iterable[bytes]) -> re.Pattern[bytes]:
    """One regular expression for several patterns: `lastindex` tells the first that matches, from 1 on."""
    return re.compile(b"|".join(b"(%b)" % _source(pattern) for pattern in patterns), re.S)


class FirstMatch:
    """Several patterns in order: which is the first that matches a name.

    One regular expression would try them one after the other. Most patterns begin with letters that stand for
    themselves (`user:*`): these are looked up, and only those are tried that begin as the name does.
    """

    def __init__(self, patterns: Sequence[bytes]) -> None:
        self._by_size: dict[int, dict[bytes, _Bucket]] = {}
        for number, pattern in enumerate(patterns):
            start = _START(pattern)
            plain = pattern[: start.end()] if start is not None else b""
            bucket = self._by_size.setdefault(len(plain), {}).setdefault(plain, _Bucket())
            bucket.numbers.append(number)
            bucket.patterns.append(pattern)
        self._sizes = sorted(self._by_size.items())

    def find(self, name: bytes) -> int | None:
        """The number of the first pattern that matches, from 0 on."""
        best: int | None = None
        for size, buckets in self._sizes:
            bucket = buckets.get(name[:size])
            if bucket is not None and (best is None or bucket.numbers[0] < best):
                found = bucket.find(name)
                if found is not None and (best is None or found < best):
                    best = found
        return best


class _Bucket:
    """Patterns that begin with the same letters; compiled when a name first does."""

    __slots__ = ("_match", "numbers", "patterns")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.patterns: list[bytes] = []
        self._match: Callable[[bytes], re.Match[bytes] | None] | None = None

    def find(self, name: bytes) -> int | None:
        if self._match is None:
            self._match = compile_globs(self.patterns).fullmatch
        found = self._match(name)
        return self.numbers[(found.lastindex or 1) - 1] if found is not None else None


def _source(pattern: bytes) -> bytes:
    first, *others = _segments(pattern)
    if not others:
        return first
    *middle, last = others
    # Atomic groups: a segment that was found is never looked for further on.
    return first + b"".join(b"(?>.*?%b)" % segment for segment in middle if segment) + b".*" + last


def _segments(pattern: bytes) -> list[bytes]:
    """What stands between the stars, each as a regular expression of fixed length."""
    segments, pos = [b""], 0
    while pos < len(pattern):
        byte = pattern[pos : pos + 1]
        if byte == b"*":
            segments.append(b"")
        elif byte == b"?":
            segments[-1] += b"."
        elif byte == b"[":
            one, pos = _class(pattern, pos + 1)
            segments[-1] += one
        else:
            if byte == b"\\" and pos + 1 < len(pattern):
                pos += 1
            segments[-1] += re.escape(pattern[pos : pos + 1])
        pos += 1
    return segments


def _class(pattern: bytes, pos: int) -> tuple[bytes, int]:
    """The class that begins behind a bracket: (as a regular expression, where its last byte is)."""
    negated = pattern[pos : pos + 1] == b"^"
    pos += negated
    chosen: set[int] = set()
    while pos < len(pattern) and pattern[pos] != 0x5D:
        left = len(pattern) - pos
        if pattern[pos] == 0x5C and left >= 2:
            pos += 1
            chosen.add(pattern[pos])
        elif left >= 3 and pattern[pos + 1] == 0x2D:
            low, high = sorted((_ordered(pattern[pos]), _ordered(pattern[pos + 2])))
            chosen.update(byte & 0xFF for byte in range(low, high + 1))
            pos += 2
        else:
            chosen.add(pattern[pos])
        pos += 1
    members = b"".join(b"\\x%02x-\\x%02x" % span for span in _spans(chosen))
    if not members:
        one = b"." if negated else b"(?!)"
    else:
        one = b"[^%b]" % members if negated else b"[%b]" % members
    return one, min(pos, len(pattern) - 1)


def _ordered(byte: int) -> int:
    """The byte as C's char has it, by which a range is ordered."""
    return byte - 256 if _SIGNED and byte > 127 else byte


def _spans(chosen: set[int]) -> list[tuple[int, int]]:
    """The stretches that bytes form."""
    spans: list[tuple[int, int]] = []
    for byte in sorted(chosen):
        if spans and spans[-1][1] == byte - 1:
            spans[-1] = (spans[-1][0], byte)
        else:
            spans.append((byte, byte))
    return spans
