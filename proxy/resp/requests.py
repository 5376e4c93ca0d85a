"""Requests as clients send them: multibulk and inline, strict where Redis is strict and lax where it is lax.

`RequestParser.parse` follows Redis' networking.c, error texts included, and never allocates because a length
claims something: arguments are slices of bytes that have arrived. A frame too large to wait for is stepped
over in pieces by `LargeFrame`, so that it can be relayed while it arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.resp import encode
from proxy.resp.errors import ProtocolError
from proxy.resp.patterns import BULK_RUNS

LARGE = 256 * 1024
"""Bytes of an incomplete request from which it is worth relaying while it arrives."""

LINE_LIMIT = 64 * 1024
"""Longest header or inline line, in bytes (PROTO_INLINE_MAX_SIZE)."""

_INTEGER = re.compile(rb"-?[1-9][0-9]{0,18}|0").fullmatch
_COUNT_LIMIT = 2**31 - 1
_UNAUTHENTICATED_ARGUMENTS = 10
_UNAUTHENTICATED_BULK = 16384


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `arguments` (command name first), and where it stood in the buffer.

    `arguments` is empty for what Redis skips without an answer: an empty line, `*0`, `*-1`. `canonical`
    tells whether the bytes from `start` to `end` are the one strict encoding of the arguments.
    """

    arguments: list[bytes]
    start: int
    end: int
    canonical: bool

    def frame(self, buf: bytes) -> bytes:
        """The request's bytes for Redis: as they came in `buf` if they are canonical."""
        return buf[self.start : self.end] if self.canonical else encode.request(*self.arguments)


@dataclass(slots=True)
class LargeFrame:
    """Steps over a multibulk request that arrives in many chunks, remembering only numbers.

    `missing` arguments have not begun; of the one under way `skip` bytes, its line end included, are to come.
    """

    missing: int
    skip: int
    bulk_limit: int
    count: int = 0
    """How many arguments it has in all."""
    body: int = 0
    """Bytes from its beginning to the end of the leading arguments that were complete when it was made."""

    @property
    def done(self) -> bool:
        """Whether the frame has ended."""
        return not (self.missing or self.skip)

    def advance(self, buf: bytes, pos: int) -> int:
        """Step over what belongs to the frame; stops at its end, the buffer's, or an incomplete header."""
        size = len(buf)
        while True:
            taken = min(self.skip, size - pos)
            pos += taken
            self.skip -= taken
            if self.skip or not self.missing:
                return pos
            for count, match in BULK_RUNS:
                while self.missing >= count and (found := match(buf, pos)):
                    pos = found.end()
                    self.missing -= count
            if not self.missing:
                return pos
            header = _bulk_header(buf, pos, self.bulk_limit, False)
            if header is None:
                return pos
            pos, self.skip = header
            self.skip += 2
            self.missing -= 1


class RequestParser:
    """Reads requests from a buffer, one at a time; holds the limits, no bytes.

    `bulk_limit` is the longest argument in bytes (Redis' proto-max-bulk-len).
    """

    __slots__ = ("bulk_limit", "unauthenticated")

    def __init__(self, bulk_limit: int) -> None:
        self.bulk_limit = bulk_limit
        self.unauthenticated = False
        """Whether the tighter limits for clients that still have to authenticate apply."""

    def parse(self, buf: bytes, pos: int) -> Request | None:
        """The request at `pos`, or None if more bytes are needed. Raises ProtocolError as Redis would."""
        if buf[pos] != 0x2A:
            return self._inline(buf, pos)
        header = self._count(buf, pos)
        if header is None:
            return None
        at, count = header
        if count <= 0:
            return Request([], pos, at, True)
        arguments: list[bytes] = []
        canonical = buf[at - 1] == 0x0A
        for _ in range(count):
            bulk = _bulk_header(buf, at, self.bulk_limit, self.unauthenticated)
            if bulk is None:
                return None
            begin, length = bulk
            at = begin + length + 2
            if at > len(buf):
                return None
            canonical = canonical and buf[begin - 1] == 0x0A and buf[at - 2 : at] == b"\r\n"
            arguments.append(buf[begin : begin + length])
        return Request(arguments, pos, at, canonical)

    def large(self, buf: bytes, pos: int) -> tuple[list[bytes], LargeFrame, int] | None:
        """What is known of the incomplete multibulk request at `pos`.

        Returns its complete leading arguments, the frame to step over the rest with, and the position up
        to which the bytes at hand belong to it; None while the command name is not complete.
        """
        header = self._count(buf, pos) if buf[pos] == 0x2A else None
        if header is None:
            return None
        at, count = header
        arguments: list[bytes] = []
        start = at
        while len(arguments) < count:
            bulk = _bulk_header(buf, at, self.bulk_limit, self.unauthenticated)
            if bulk is None or sum(bulk) + 2 > len(buf):
                break
            begin, length = bulk
            arguments.append(buf[begin : begin + length])
            at = begin + length + 2
        if not arguments:
            return None
        frame = LargeFrame(count, 0, self.bulk_limit, count, at - pos)
        return arguments, frame, frame.advance(buf, start)

    def _count(self, buf: bytes, pos: int) -> tuple[int, int] | None:
        """Read the multibulk header at `pos`: (position after it, number of arguments)."""
        end = buf.find(b"\r", pos)
        if end < 0 or end + 2 > len(buf):
            if end < 0 and len(buf) - pos > LINE_LIMIT:
                raise ProtocolError("too big mbulk count string")
            return None
        count = _integer(buf[pos + 1 : end])
        if count is None or count > _COUNT_LIMIT:
            _wrong_header(buf, pos, end, "too big mbulk count string", "invalid multibulk length")
            return None
        if count > _UNAUTHENTICATED_ARGUMENTS and self.unauthenticated:
            raise ProtocolError("unauthenticated multibulk length")
        return end + 2, count

    def _inline(self, buf: bytes, pos: int) -> Request | None:
        """Read an inline request (Redis docs: RESP protocol specification, inline commands)."""
        end = buf.find(b"\n", pos)
        # Redis looks for the line end with strchr, which a NUL byte stops.
        open_ended = end < 0 or buf.find(b"\0", pos, end) >= 0
        if (len(buf) if open_ended else end) - pos > LINE_LIMIT:
            raise ProtocolError("too big inline request")
        if open_ended:
            return None
        line = buf[pos:end]
        return Request(split_inline(line.removesuffix(b"\r")), pos, end + 1, False)


def _integer(digits: bytes) -> int | None:
    """Read a 64-bit integer as strictly as Redis' string2ll; None if it is none."""
    if not _INTEGER(digits):
        return None
    value = int(digits)
    return value if -(2**63) <= value < 2**63 else None


def _bulk_header(buf: bytes, pos: int, limit: int, unauthenticated: bool) -> tuple[int, int] | None:
    """Read the bulk header at `pos`: (where the string begins, its length); None if it is not complete."""
    end = buf.find(b"\r", pos)
    if end < 0:
        if len(buf) - pos > LINE_LIMIT:
            raise ProtocolError("too big bulk count string")
        return None
    if end + 2 > len(buf):
        return None
    if buf[pos] != 0x24:
        wrong = f"expected '$', got '{chr(buf[pos])}'"
        _wrong_header(buf, pos, end, "too big bulk count string", wrong)
        return None
    length = _integer(buf[pos + 1 : end])
    if length is None or not 0 <= length <= limit:
        _wrong_header(buf, pos, end, "too big bulk count string", "invalid bulk length")
        return None
    if length > _UNAUTHENTICATED_BULK and unauthenticated:
        raise ProtocolError("unauthenticated bulk length")
    return end + 2, length


def _wrong_header(buf: bytes, pos: int, end: int, too_long: str, wrong: str) -> None:
    """Judge the header from `pos` to `end`, which cannot be right, in the order in which Redis does.

    Redis looks for the line end with strchr, which a NUL byte stops: it then waits for more, up to the limit.
    """
    stopped = buf.find(b"\0", pos, end) >= 0
    if (len(buf) if stopped else end) - pos > LINE_LIMIT:
        raise ProtocolError(too_long)
    if not stopped:
        raise ProtocolError(wrong)


_ESCAPES = {0x6E: b"\n", 0x72: b"\r", 0x74: b"\t", 0x62: b"\b", 0x61: b"\a"}
_SPACES = frozenset(b" \t\n\v\f\r")
_WORD_ENDS = frozenset(b" \t\n\r")
"""What ends a word: sdssplitargs skips a vertical tab or form feed before a word, but not after one."""


def split_inline(line: bytes) -> list[bytes]:
    """Split an inline request into arguments as Redis' sdssplitargs does, quotes and escapes included.

    Raises ProtocolError if the quotes are unbalanced, or a closing quote is not followed by a space.
    """
    arguments: list[bytes] = []
    pos = 0
    while pos < len(line):
        if line[pos] in _SPACES:
            pos += 1
            continue
        argument, pos = _inline_argument(line, pos)
        arguments.append(argument)
    return arguments


def _inline_argument(line: bytes, pos: int) -> tuple[bytes, int]:
    out = bytearray()
    while pos < len(line) and line[pos] not in _WORD_ENDS:
        byte = line[pos]
        if byte in b"\"'":
            read = _double_quoted if byte == 0x22 else _single_quoted
            pos = read(line, pos + 1, out)
            if pos < len(line) and line[pos] not in _SPACES:
                raise ProtocolError("unbalanced quotes in request")
            break
        out.append(byte)
        pos += 1
    return bytes(out), pos


def _double_quoted(line: bytes, pos: int, out: bytearray) -> int:
    while pos < len(line):
        byte = line[pos]
        if byte == 0x22:
            return pos + 1
        if byte == 0x5C and re.fullmatch(rb"x[0-9a-fA-F]{2}", line[pos + 1 : pos + 4]):
            out.append(int(line[pos + 2 : pos + 4], 16))
            pos += 4
        elif byte == 0x5C and pos + 1 < len(line):
            out += _ESCAPES.get(line[pos + 1], line[pos + 1 : pos + 2])
            pos += 2
        else:
            out.append(byte)
            pos += 1
    raise ProtocolError("unbalanced quotes in request")


def _single_quoted(line: bytes, pos: int, out: bytearray) -> int:
    while pos < len(line):
        byte = line[pos]
        if byte == 0x27:
            return pos + 1
        if line[pos : pos + 2] == b"\\'":
            pos += 1
            byte = 0x27
        out.append(byte)
        pos += 1
    raise ProtocolError("unbalanced quotes in request")
