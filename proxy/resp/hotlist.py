"""Requests as lines of text: lists of what is to be fetched, and the file in which hot requests are kept.

A line is a request as one types it to redis-cli: words, in double quotes where they hold white space or
bytes that cannot be printed (`\\xff`). It names keys and arguments, never values. The kept file begins with a
line that tells its version; before each space's requests, the hottest first, stands which space it is and the
protocols that its clients spoke::

    pannier warm_state 1
    [space "" protocols 2 3]
    GET user:42
    HGETALL "user 43"

Whoever can write the file could ask for anything, so whoever loads it says what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from proxy.resp.errors import ProtocolError
from proxy.resp.requests import split_inline

HEADER = b"pannier warm_state 1"
LONGEST = 4096
"""Bytes of a line at most: longer requests are not worth being asked again."""
MOST_COMPLAINTS = 5
"""Wrong lines that are told one by one."""
_BARE = re.compile(rb"[!\$-&(-Z^-~][!#-&(-[\]-~]*").fullmatch
"""What needs no quotes: printable, no quotes or backslash, no # or [ at the beginning."""
_SECTION = re.compile(rb'\[space ("[^"\n]*") protocols ([23](?: [23])?)\]').fullmatch
_PLAIN = re.compile(rb"[ !#-&(-\[\]-~]*").fullmatch
_ODD = re.compile(rb"[^ !#-\[\]-~]")


@dataclass(slots=True)
class Section:
    """One space's requests, the hottest first."""

    space: str
    protocols: tuple[int, ...]
    requests: list[list[bytes]] = field(default_factory=list)


def quoted(word: bytes) -> bytes:
    """A word as it stands in a line."""
    if _BARE(word):
        return word
    return _quote(word)


def line_of(arguments: Iterable[bytes]) -> bytes:
    """A request as a line."""
    return b" ".join([quoted(argument) for argument in arguments])


def lines_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a text that say something, each with its number: no empty ones, no # comments."""
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.strip()
        if line and not line.startswith(b"#"):
            yield number, line


def words_of(line: bytes) -> list[bytes]:
    """The words of a line. Raises ValueError."""
    if len(line) > LONGEST:
        raise ValueError(f"is longer than {LONGEST} bytes")
    if _PLAIN(line):
        return line.split()
    try:
        return split_inline(line)
    except ProtocolError as error:
        raise ValueError(str(error).removesuffix(" in request")) from None


def dump(sections: Sequence[Section], limit: int) -> bytes:
    """The file's text, `limit` bytes at most, divided among the sections; what is left out is less hot."""
    lines = [HEADER]
    share = (limit - len(HEADER) - 1) // max(1, len(sections))
    for section in sections:
        protocols = " ".join(map(str, section.protocols)).encode()
        head = b"[space %b protocols %b]" % (_quote(section.space.encode()), protocols)
        left = share - len(head) - 1
        if left < 0:
            continue
        lines.append(head)
        for request in section.requests:
            line = line_of(request)
            left -= len(line) + 1
            if left < 0:
                break
            if len(line) <= LONGEST:
                lines.append(line)
    return b"\n".join(lines) + b"\n"


def load(
    data: bytes, allowed: Callable[[list[bytes]], object]
) -> tuple[list[Section], list[tuple[int, str]]]:
    """What a kept file holds of allowed requests; and what is wrong in it, with the numbers of the lines."""
    sections: list[Section] = []
    wrong: list[tuple[int, str]] = []
    lines = lines_of(data)
    number, first = next(lines, (1, b""))
    if first != HEADER:
        return [], [(number, f"is not {HEADER.decode()!r}: no such file, or of another version")]
    for number, line in lines:
        try:
            if line.startswith(b"["):
                sections.append(_section(line))
            elif not sections:
                raise ValueError("stands before any [space …]")
            elif allowed(words := words_of(line)):
                sections[-1].requests.append(words)
            else:
                raise ValueError("is no read that is kept")
        except ValueError as error:
            wrong.append((number, str(error)))
    return sections, wrong


def _section(line: bytes) -> Section:
    found = _SECTION(line)
    if found is None:
        raise ValueError('is no line such as [space "" protocols 2 3]')
    (name,) = words_of(found[1]) or [b""]
    return Section(name.decode("utf-8", "replace"), tuple(sorted({int(word) for word in found[2].split()})))


def _quote(word: bytes) -> bytes:
    return b'"%b"' % _ODD.sub(lambda odd: b"\\x%02x" % odd[0][0], word)
