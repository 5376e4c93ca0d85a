"""Where replies end in the bytes that come from Redis (Redis docs: RESP protocol specification, 2 and 3).

A link relays bytes as they came and only has to know how many replies they hold and to whom each belongs.
`ReplyScanner` counts without building objects: stretches of scalars by the patterns, aggregates by a count of
the elements still missing, long strings by a count of the bytes still missing. It never needs more than the
bytes at hand: a reply of 512 MB passes through in the pieces in which it arrives.
"""

from __future__ import annotations

from proxy.resp.errors import UpstreamDesync
from proxy.resp.patterns import SCALAR_RUNS, find_scalars

_PUSH = 0x3E
_ELEMENTS = {0x2A: 1, 0x7E: 1, _PUSH: 1, 0x25: 2, 0x7C: 2}  # * ~ > % |
_STRINGS = b"$=!"
_LINES = b"+-:_#,("
_ATTRIBUTE = 0x7C
_LINE_LIMIT = 1 << 20
_DIGITS = 20


class ReplyScanner:
    """Step over replies, keeping only what a chunk's end cut in two.

    `need` elements of the reply under way are missing, after the `skip` bytes of the string under way.
    """

    __slots__ = ("need", "open", "pushes_count", "skip")

    def __init__(self, pushes_count: bool = True) -> None:
        self.pushes_count = pushes_count
        """Whether a push inside EXEC's reply is one of its elements.

        What SUBSCRIBE gives there is (the first of it); a message that a PUBLISH there gives is not. Where
        nobody cares for the end of the reply, taking it for one is safe: what is left looks like replies.
        """
        self.need = 0
        self.skip = 0
        self.open = False
        """Whether a reply has begun and not ended: some of its bytes have been stepped over."""

    def advance(self, buf: bytes, pos: int, replies: int) -> tuple[int, int]:
        """Step over at most `replies` replies from `pos`; returns (new position, replies that ended).

        Stops early at the end of `buf`, at a header line that is not complete (call again with these bytes
        and more), and before a push between two replies. Raises UpstreamDesync on bytes that are no RESP.
        """
        done = 0
        size = len(buf)
        while True:
            if self.skip:
                taken = min(self.skip, size - pos)
                pos += taken
                self.skip -= taken
                if self.skip:
                    return pos, done
            if self.need:
                pos, self.need = _scalars(buf, pos, self.need)
            if not self.need:
                if self.open:
                    self.open = False
                    done += 1
                pos, missing = _scalars(buf, pos, replies - done)
                done = replies - missing
                if not missing or pos == size or buf[pos] == _PUSH:
                    return pos, done
                self.need = 1
            elif pos == size:
                return pos, done
            after = self._header(buf, pos)
            if after == pos:
                if not self.open:
                    self.need = 0
                return pos, done
            self.open = True
            pos = after

    def push(self, buf: bytes, pos: int) -> int:
        """Begin or go on stepping over the push at `pos`; the position after it (or of what is missing).

        `open` tells whether more of it is to come.
        """
        if not self.open:
            self.need = 1
            after = self._header(buf, pos)
            if after == pos:
                self.need = 0
                return pos
            self.open = True
            pos = after
        pos, _ = self.advance(buf, pos, 1) if self.need or self.skip else (pos, 1)
        self.open = bool(self.need or self.skip)
        return pos

    def _header(self, buf: bytes, pos: int) -> int:
        """Take in the header line at `pos`; the position after it, or `pos` if it is not complete."""
        end = buf.find(b"\r\n", pos)
        if end < 0:
            if len(buf) - pos > _LINE_LIMIT:
                raise UpstreamDesync("ERR pannier: upstream sent a line without an end")
            return pos
        kind = buf[pos]
        if kind in _LINES:
            self.need -= 1
            return end + 2
        digits = buf[pos + 1 : end]
        whole = digits.isdigit() and len(digits) < _DIGITS
        count = int(digits) if whole else -1 if digits == b"-1" else -2
        if count < -1 or not (kind in _ELEMENTS or kind in _STRINGS):
            first = bytes(buf[pos : pos + 1])  # what follows may be a value
            raise UpstreamDesync(f"ERR pannier: upstream sent what is no RESP reply: {first!r} and so on")
        if kind in _STRINGS:
            self.need -= 1
            self.skip = count + 2 if count >= 0 else 0
        else:
            extra = kind == _ATTRIBUTE or (kind == _PUSH and self.open and not self.pushes_count)
            self.need += max(count, 0) * _ELEMENTS[kind] - (not extra)
        return end + 2


def split_replies(buf: bytes, pos: int, n: int) -> list[bytes]:
    """Split the `n` complete replies from `pos` on."""
    found = find_scalars(buf, pos)
    if len(found) == n and sum(map(len, found)) == len(buf) - pos:
        return found
    scanner = ReplyScanner()
    found = []
    for _ in range(n):
        start = pos
        pos, done = scanner.advance(buf, pos, 1)
        if not done:
            raise UpstreamDesync("ERR pannier: upstream sent a reply that ends too early")
        found.append(buf[start:pos])
    return found


def split_frames(buf: bytes, pos: int) -> list[bytes]:
    """Split the complete replies and pushes from `pos` to the end."""
    scanner = ReplyScanner(pushes_count=False)
    found = []
    while pos < len(buf):
        start = pos
        pos = scanner.push(buf, pos) if buf[pos] == _PUSH else scanner.advance(buf, pos, 1)[0]
        if scanner.open or pos == start:
            raise UpstreamDesync("ERR pannier: upstream sent a reply that ends too early")
        found.append(buf[start:pos])
    return found


def _scalars(buf: bytes, pos: int, limit: int) -> tuple[int, int]:
    """Step over up to `limit` scalars; returns (position, how many of `limit` are left)."""
    for size, match in SCALAR_RUNS:
        while limit >= size:
            found = match(buf, pos)
            if found is None:
                break
            pos = found.end()
            limit -= size
    return pos, limit
