"""Pinned links: a connection of its own for a client whose state lives in the connection.

A pinned link works in one of three modes. COUNTED: each request is noted with what it means, each reply is
matched to it, and the owner hears of each (transactions, blocking commands). STREAM: replies no longer
correspond to requests (subscriptions, MONITOR, CLIENT REPLY): bytes pass both ways and the owner only hears
of the `+RESET` that ends it. TUNNEL: not even frames can be told apart (replication), bytes pass until one
side closes.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from proxy.resp import encode
from proxy.resp.errors import UpstreamDesync
from proxy.resp.replies import ReplyScanner
from proxy.upstream.link import Connector, Link, LinkKey

_PLUS, _PUSH = b"+>"
_RESET = b"+RESET\r\n"
_NOT_ALLOWED = b"-NOPERM "
_WRITE_HIGH = 1024 * 1024
_HELD_CHUNKS = 16
"""Chunks that may wait behind a fence before reading stops."""


class Expect(enum.Enum):
    """What a request sent on a counted link means for the state of its connection."""

    NOTHING = enum.auto()
    DISCARDED = enum.auto()
    """Sent by the sidecar itself: the reply does not go downstream."""
    MULTI = enum.auto()
    END = enum.auto()
    """EXEC: the transaction is over, whatever it answers."""
    DISCARD = enum.auto()
    """The transaction is over unless Redis refuses the command."""
    WATCH = enum.auto()
    UNWATCH = enum.auto()
    PROBE = enum.auto()
    """A command that leaves state in the connection unless Redis refuses it."""
    QUIT = enum.auto()
    RESET = enum.auto()
    FENCE = enum.auto()
    """Sent after two RESETs, of which Redis may answer only one: see `PinnedLink.reset_answered`."""


class Mode(enum.Enum):
    """See the module's docstring."""

    COUNTED = enum.auto()
    STREAM = enum.auto()
    TUNNEL = enum.auto()


Fence = Callable[[Callable[[], None]], object]
"""Calls a function once the tracked links have told all invalidations of what Redis has done up to now."""


class Owner(Protocol):
    """The client's side of a pinned link."""

    def relay(self, data: bytes) -> None:
        """Take reply bytes for the client."""

    def answered(self, what: Expect, first: int) -> None:
        """Hear that the reply to a request is complete; `first` is its first byte."""

    def streams_reset(self) -> None:
        """Hear that Redis has carried out the RESET that ends a stream."""

    def pin_lost(self, why: str) -> None:
        """Hear that the connection ended."""

    def pin_full(self, full: bool) -> None:
        """Hear that Redis takes no more bytes for now, or takes them again."""


class PinnedLink(Link):
    """A connection that serves one client at a time, and bears that client's name."""

    def __init__(self, connector: Connector, key: LinkKey) -> None:
        super().__init__(connector, key)
        self.name = b""
        self.owner: Owner | None = None
        self.mode = Mode.COUNTED
        self.expected: deque[Expect] = deque()
        """What the replies to come answer, in order; COUNTED only."""
        self.reset_answered = True
        """False if Redis carried out the RESET without an answer, after CLIENT REPLY SKIP."""
        self.scanner = ReplyScanner()
        self.gathers: Callable[[int], bool] | None = None
        """Whether the owner takes a frame as a whole only, by its first byte; see `take_whole`."""
        self.patient = False
        """Whether what is owed may take as long as it likes: a blocking command."""
        self.hurried = False
        """Whether the client sends no more, so that a mark is not waited for as long as it likes. Set by the
        owner."""
        self.ended = asyncio.Event()
        self._marks: tuple[bytes, ...] = ()
        """The forms that the reply to `mark`'s PING may have; none: it is not awaited."""
        self._marked: Callable[[bytes], object] = len
        self.fence: Fence | None = None
        """What has to be passed before a reply is handed on; None: nothing. Set by the owner."""
        self._pieces: list[bytes] = []
        """Of a frame of which not all has come, if the owner takes it as a whole."""
        self._gathering = False
        self._gathered = self._most = 0
        self._held: list[bytes] = []
        """What has come and waits for the next fence."""
        self._fencing = False
        self._paused = False
        """Whether the client does not keep up."""
        self._end_later = ""
        self._chunks = 0
        self._silent_since: tuple[int, float] = (-1, 0.0)
        self._first = 0
        self._pushing = False
        self._tail = b""

    @property
    def client_id(self) -> int | None:
        """Redis' id of this connection; None if it did not tell."""
        found = self.hello.get(b"id")
        return found if isinstance(found, int) else None

    @property
    def idle(self) -> bool:
        """Whether nothing is owed: between two requests."""
        return not (self.expected or self.scanner.open or self._tail)

    def take_whole(self, gathers: Callable[[int], bool] | None, most: int = 0) -> None:
        """Hand on some frames as a whole, of `most` bytes; None: all in pieces as they come.

        SUBSCRIBE must not be part of a transaction then.
        """
        self.gathers = gathers
        self.scanner.pushes_count = gathers is None
        self._most = most

    def expect(self, what: Expect) -> None:
        """Note that a request is being sent."""
        self.expected.append(what)

    def mark(self, then: Callable[[bytes], object]) -> None:
        """Have a function called when all that has been sent is answered, though replies are not counted.

        It is given the reply to a PING with a text that nobody can guess, which is an array while a RESP2
        connection subscribes, and an error if Redis' user may not say PING.
        """
        text = encode.bulk(b"pannier:" + os.urandom(16).hex().encode())
        self._marked = then
        self._marks = (text, b"*2\r\n$4\r\npong\r\n" + text)
        self.send(b"*2\r\n$4\r\nPING\r\n" + text)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading: the client does not keep up, and nobody else shares this link."""
        self._paused = paused
        self.read(not paused)

    def finish(self) -> bool:
        """Tell Redis that no more is sent; False if the connection cannot (TLS)."""
        if self.transport is None or self.transport.is_closing() or not self.transport.can_write_eof():
            return False
        self.transport.write_eof()
        return True

    def watch_buffer(self) -> None:
        """Tell the owner when Redis does not keep up."""
        self.limit(_WRITE_HIGH)

    def tick(self, now: float, timeout: float) -> None:
        """Give up a counted link that owes a reply and has been silent for `timeout` seconds; one that is not
        counted, if a mark does not come for which nobody is there to wait."""
        counted = self.mode is Mode.COUNTED and bool(self.expected) and not self.patient
        owes = counted or (bool(self._marks) and self.hurried)
        if not owes or self._silent_since[0] != self._chunks:
            self._silent_since = (self._chunks, now)
        elif now - self._silent_since[1] > timeout:
            self.fail(f"did not answer within {timeout:g} s")

    # --- what comes from Redis

    def received(self, data: bytes) -> None:
        """Hand on what came, frame by frame as the mode demands."""
        self._chunks += 1
        if self._fencing or (self.fence is not None and self.mode is not Mode.TUNNEL):
            self._held.append(data)
            if not self._fencing:
                self._hold()
            elif len(self._held) > _HELD_CHUNKS:
                self.read(False)
            return
        self._take(data)

    def _hold(self) -> None:
        """Keep back what has come until the fence is passed."""
        data, self._held = b"".join(self._held), []
        if self.fence is None:
            self._take(data)
            return

        def passed() -> None:
            self._fencing = False
            self.read(not self._paused)
            self._take(data)
            if self._held:
                self._hold()
            elif self._end_later:
                self._end(self._end_later)

        self._fencing = True
        self.fence(passed)

    def _take(self, data: bytes) -> None:
        owner = self.owner
        if owner is None:
            self.fail("sent a reply that nobody asked for")  # a pooled link owes nothing
            return
        if self._tail:
            data, self._tail = self._tail + data, b""
        if self.mode is Mode.TUNNEL:
            owner.relay(data)
            return
        try:
            self._frames(data, owner)
        except UpstreamDesync as error:
            self.fail(str(error).partition("upstream ")[2])

    def _frames(self, data: bytes, owner: Owner) -> None:
        scanner = self.scanner
        pos, size = 0, len(data)
        while pos < size:
            start = pos
            if self.mode is Mode.TUNNEL:
                owner.relay(data[start:])
                return
            if self._marks and not scanner.open:
                found = self._find_mark(data, pos)
                if found is None:
                    self._tail = data[pos:]
                    return
                if found:
                    pos += len(found)
                    self._marks = ()
                    self._marked(found)
                    continue
            if not scanner.open:
                self._first = data[pos]
                self._pushing = self._first == _PUSH
                self._gathering = self.gathers is not None and self.gathers(self._first)
                self._gathered = 0
            pos, ended = self._step(data, pos)
            if pos == start:
                self._tail = data[pos:]
                return
            piece = data[start:pos]
            if self._gathering:
                self._pieces.append(piece)
                self._gathered += len(piece)
                if self._gathered > self._most:
                    raise UpstreamDesync(
                        f"ERR pannier: upstream sent more than {self._most} bytes in one reply"
                    )
                if not ended:
                    continue
                piece = b"".join(self._pieces)
                self._pieces.clear()
            if self._pushing or (self.mode is Mode.STREAM and self.next is not Expect.DISCARDED):
                if not self._resets(piece):
                    owner.relay(piece)
                elif self.next is not Expect.FENCE:
                    owner.streams_reset()
                    return
                continue
            what = self.next
            if what is not Expect.DISCARDED and not (ended and what is Expect.RESET):
                owner.relay(piece)
            if ended:
                if self.expected:
                    self.expected.popleft()
                owner.answered(what, self._first)
                if self.owner is not owner:
                    return

    def _find_mark(self, data: bytes, pos: int) -> bytes | None:
        """The awaited mark, if it begins at `pos`; empty if something else does, None if more has to come."""
        for mark in self._marks:
            begun = data[pos : pos + len(mark)]
            if begun == mark:
                return mark
            if mark.startswith(begun):
                return None
        if not _NOT_ALLOWED.startswith(data[pos : pos + len(_NOT_ALLOWED)]):
            return b""
        end = data.find(b"\r\n", pos) + 2
        if end < 2:
            return None
        return data[pos:end] if b"'ping'" in data[pos:end] else b""

    def _resets(self, frame: bytes) -> bool:
        """Whether a frame of a stream, or a part of one, belongs to the RESET that ends it.

        A line is never cut in two, so what began with `+` is not the end of something longer.
        """
        if self.next is Expect.FENCE:
            self.reset_answered = frame == _RESET
        elif self._first != _PLUS or frame != _RESET or not self.expected:
            return False
        self.expected.popleft()
        return True

    @property
    def next(self) -> Expect:
        """What the next reply answers."""
        return self.expected[0] if self.expected else Expect.NOTHING

    def _step(self, data: bytes, pos: int) -> tuple[int, bool]:
        """Step over one frame or a part of it: (position, whether it ended)."""
        if self._pushing:
            pos = self.scanner.push(data, pos)
            return pos, not self.scanner.open
        pos, ended = self.scanner.advance(data, pos, 1)
        return pos, bool(ended)

    def pause_writing(self) -> None:
        """Called by the loop: Redis does not keep up."""
        if self.owner is not None:
            self.owner.pin_full(True)

    def resume_writing(self) -> None:
        """Called by the loop: Redis has caught up."""
        if self.owner is not None:
            self.owner.pin_full(False)

    def fail(self, why: str) -> None:
        """Close the connection and tell the owner at once."""
        self.close()
        self._end(why)

    def lost(self, exc: Exception | None) -> None:
        """Tell the owner that the connection ended."""
        self._end(f"broke: {exc}" if exc else "closed the connection")

    def _end(self, why: str) -> None:
        self.ended.set()
        if self._fencing:
            self._end_later = why  # what came before the end is handed on first
            return
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.pin_lost(why)
