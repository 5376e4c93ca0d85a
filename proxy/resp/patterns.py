"""Regular expressions that step over RESP frames at C speed.

A bulk string says its own length, which a regular expression cannot read; but lengths up to `SHORT` are few
enough to be spelled out as a trie of decimal digits, each leaf demanding exactly that many bytes::

    \\$(?:1(?:\\r\\n.{1}\\r\\n|0\\r\\n.{10}\\r\\n|…)|3(?:\\r\\n.{3}\\r\\n|…)|…)

The match is strict: what it accepts is a canonical frame, byte for byte, so the end of the match is the end
of the frame. It costs 0.03 µs a reply and 0.05 µs a request, a third of an object-building parser, allocates
nothing, and cannot be made to allocate by a length that merely *claims* to be large. Whatever it does not
accept (longer strings, aggregates, odd but legal spellings, half a frame) goes to the parsers in
`replies` and `requests`, which know everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

SHORT = 255
"""Longest bulk string, in bytes, that the patterns accept; each leaf costs 5 µs when the module loads."""

RUN_SIZES = (64, 16, 4, 1)
"""Frames matched by one call, largest first: any count is a short sum of these."""

Match = Callable[[bytes, int], "re.Match[bytes] | None"]


def _bulk() -> str:
    """A pattern for one bulk string of 0 to `SHORT` bytes, type byte and both line ends included."""

    def leaf(length: int) -> str:
        return rf"\r\n.{{{length}}}\r\n" if length else r"\r\n\r\n"

    def node(digits: str) -> str:
        if digits == "0":
            return leaf(0)
        longer = [d + node(digits + d) for d in "0123456789" if int(digits + d) <= SHORT]
        branches = [leaf(int(digits)), *longer]
        return branches[0] if len(branches) == 1 else "(?:" + "|".join(branches) + ")"

    return r"\$(?:" + "|".join(d + node(d) for d in "1234567890") + ")"


def _words(words: Iterable[str]) -> str:
    """A pattern for any of `words`, as a trie, so that the first letters decide quickly."""
    root: dict[str, object] = {}
    for word in words:
        node = root
        for letter in word:
            node = node.setdefault(letter, {})  # type: ignore[assignment]
        node[""] = {}

    def spell(node: Mapping[str, object]) -> str:
        branches = [re.escape(c) + spell(rest) if c else "" for c, rest in node.items()]  # type: ignore[arg-type]
        return branches[0] if len(branches) == 1 else "(?:" + "|".join(branches) + ")"

    return spell(root)


_BULK = _bulk()
_SCALAR = rf"(?:(?:{_BULK}|\$-1\r\n)|[+:_#,(-][^\r\n]*+\r\n)"


def _repeated(pattern: str, sizes: tuple[int, ...] = RUN_SIZES) -> list[tuple[int, re.Pattern[bytes]]]:
    return [(size, re.compile(f"(?:{pattern}){{{size}}}+".encode(), re.S)) for size in sizes]


def _runs(pattern: str) -> tuple[tuple[int, Match], ...]:
    return tuple((size, compiled.match) for size, compiled in _repeated(pattern))


SCALAR_RUNS = _runs(_SCALAR)
"""(count, match) pairs, largest first: that many replies which are no aggregates and no long strings."""

match_scalars: Mapping[int, Match] = dict(SCALAR_RUNS) | {
    size: compiled.match for size, compiled in _repeated(_SCALAR, (2, 3))
}
"""Recognise so many replies as one; a fetch has three."""

BULK_RUNS = _runs(_BULK)
"""(count, match) pairs, largest first: that many short bulk strings, as arguments of a request."""

find_bulks: Callable[[bytes, int], list[bytes]] = re.compile(_BULK.encode(), re.S).findall
"""Split what begins at a position and consists of short bulk strings."""

match_mget: Callable[[bytes], re.Match[bytes] | None] = re.compile(
    rb"([1-9]\d{0,6})\r\n\$4\r\n(?:MGET|mget)\r\n"
).match
"""Recognise how an MGET of any number of keys begins, from behind its star; its first group is the number of
its arguments, the name included."""

match_invalidation: Match = re.compile(rf">2\r\n\$10\r\ninvalidate\r\n\*1\r\n({_BULK})".encode(), re.S).match
"""Recognise the push that invalidates one key, its first group (Redis docs: "Client-side caching
reference")."""

find_scalars: Callable[[bytes, int], list[bytes]] = re.compile(_SCALAR.encode(), re.S).findall
"""Split what begins at a position and consists of replies that are no aggregates and no long strings."""

find_heads: Callable[[bytes], list[bytes]] = re.compile(rb"\*\d+\r\n\$\d+\r\n[^\r]+\r\n\$\d+\r\n").findall
"""List what requests begin with, up to their first argument's own bytes. What is inside an argument may look
so too, if it has a star in it."""

match_head: Match = re.compile(rb"\*\d+\r\n\$\d+\r\n[^\r]+\r\n\$\d+\r\n").match


def _head(count: int, names: Iterable[str]) -> str:
    """A pattern for the head of a request, from behind the star up to the first argument."""
    trie = _words(f"{len(name)}\r\n{word}" for name in names for word in (name.upper(), name))
    return rf"{count}\r\n\$(?:{trie})\r\n"


def first_arguments(commands: Mapping[int, Iterable[str]]) -> Callable[[bytes], list[bytes]]:
    """Make a function that lists, for a chunk of complete requests, the first arguments of some commands.

    `commands` are given as to `RequestPatterns`. An argument is the bulk string it is; one that is longer
    than `SHORT` is empty. What looks like such a request inside an argument is listed as well. None is missed
    for that: a match ends before the argument, and has no star in it but the first.
    """
    heads = "|".join(_head(count, names) for count, names in commands.items())
    return re.compile(rf"\*(?:{heads})(?=({_BULK})?)".encode(), re.S).findall


class RequestPatterns:
    """Recognise complete, canonical requests of known commands.

    `commands` maps an argument count (command name included) to the names, in lower case, that may be sent
    with it; each is recognised in all upper and all lower case. Other spellings take the parser. Names
    come in the order in which they are tried: put the common ones first.
    """

    def __init__(self, commands: Mapping[int, Iterable[str]], sizes: tuple[int, ...] = RUN_SIZES) -> None:
        counts = []
        for count, names in commands.items():
            arguments = _BULK * (count - 1) if count <= 3 else f"(?:{_BULK}){{{count - 1}}}+"
            counts.append(f"{_head(count, names)}{arguments}")
        one = rf"\*(?:{'|'.join(counts)})"
        repeated = _repeated(one, sizes)
        self.runs: tuple[tuple[int, Match], ...] = tuple(
            (size, compiled.match) for size, compiled in repeated
        )
        """(count, match) pairs, largest first: that many requests, one after the other."""
        self.wholes = tuple((size, compiled.fullmatch) for size, compiled in repeated)
        """(count, fullmatch) pairs, largest first: a chunk of that many requests and nothing else."""

    def count(self, chunk: bytes) -> int:
        """How many requests `chunk` consists of; 0 if it is not made of nothing but complete ones."""
        first = self.runs[-1][1](chunk, 0)
        if first is None:
            return 0
        if first.end() == len(chunk):
            return 1
        # Pipelines are mostly uniform: the first request tells how many to expect.
        expected = len(chunk) // first.end()
        pos, left = self._step(chunk, 0, expected)
        if pos < len(chunk):
            pos, rest = self._step(chunk, pos, len(chunk))
            left -= len(chunk) - rest
        return expected - left if pos == len(chunk) else 0

    def prefix(self, buf: bytes, pos: int) -> tuple[int, int]:
        """Step over the requests at `pos` as far as there are: (position after them, how many)."""
        end, left = self._step(buf, pos, len(buf))
        return end, len(buf) - left

    def _step(self, buf: bytes, pos: int, limit: int) -> tuple[int, int]:
        """Step over up to `limit` requests: (position, how many of `limit` are left)."""
        for size, match in self.runs:
            while limit >= size and (found := match(buf, pos)) is not None:
                pos = found.end()
                limit -= size
        return pos, limit
