"""One connection of a shared link: whose each reply is, and where pushes stand among them."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic
from typing import TYPE_CHECKING

from proxy.resp.errors import UpstreamDesync
from proxy.resp.patterns import match_invalidation, match_scalars
from proxy.resp.replies import ReplyScanner
from proxy.upstream.caller import RUN
from proxy.upstream.link import Link

if TYPE_CHECKING:
    from proxy.upstream.shared import SharedLink

_PUSH = 0x3E


class Wire(Link):
    """One connection of a shared link."""

    def __init__(self, link: SharedLink) -> None:
        super().__init__(link.connector, link.key)
        self.link = link
        self.scanner = ReplyScanner()
        self.pushing = False
        """Whether the frame under way is a push."""
        self.chunks = 0
        """Chunks received: a silent connection is one where this stands still."""
        self.skipped = 0
        """How many bytes of the slice being relayed belong to a string that began in an earlier one."""
        self.ended = asyncio.Event()
        self.falls_back = link.tracking is not None
        self._tracking = link.tracking
        self._settle = link.settle
        self._settle_run = link.settle_run
        self._watch = link.connector.watch
        self._held: list[bytes] = []
        """Replies of the run at the head of the FIFO that are kept back while pushes are taken."""
        self._held_replies = self._held_skipped = 0
        self._pushed: list[bytes] = []
        """What has come of the push under way."""
        self._tail = b""

    def received(self, data: bytes) -> None:
        """Hand each reply to whom it belongs."""
        self.chunks += 1
        if self._tail:
            data, self._tail = self._tail + data, b""
        desync = ""
        try:
            self._deliver(data)
        except UpstreamDesync as error:
            desync = str(error).partition("upstream ")[2]
        if self._held:
            self._let_go()
        if desync:
            self.drop(desync)

    def _deliver(self, data: bytes) -> None:
        fifo = self.link.fifo
        scanner = self.scanner
        size = len(data)
        pos = 0
        slow = monotonic() - self._watch.after
        while pos < size:
            if self.pushing or not fifo:
                pos = self._push(data, pos)
                if pos < 0:
                    return
                continue
            start = pos
            caller, n, requests, keys, came = fifo[0]
            match = match_scalars.get(n)
            if match is not None and not scanner.open and (found := match(data, pos)) is not None:
                pos = found.end()
                done = n
                skipped = 0
            else:
                skipped = scanner.skip
                pos, done = scanner.advance(data, pos, n)
                if pos == start:
                    if data[pos] == _PUSH and not scanner.open:
                        pos = self._push(data, pos)
                        if pos < 0:
                            return
                        continue
                    self._tail = data[pos:]
                    return
            if keys is RUN:
                self._settle_run(requests)
            elif keys:
                self._settle(keys)  # all of them: whose replies these are is not known
            if done == n:
                fifo.popleft()
                if came < slow:
                    self._watch.slow(caller, requests, came)
            else:
                fifo[0] = (caller, n - done, requests, keys, came)
                if not scanner.open:
                    # A push comes next, or the end of the chunk: one write for all that belongs together.
                    self._hold(data[start:pos], done, skipped)
                    continue
            piece = data[start:pos]
            if self._held:
                piece, done, skipped = self._release(piece, done)
            self.skipped = skipped
            try:  # noqa: SIM105 - a context manager would cost every reply 0.3 µs
                caller.relay(piece)
            except RuntimeError:
                pass  # see `Caller.relay`
            caller.pending -= done
            if caller.draining and not caller.pending:
                caller.drained()

    def _hold(self, piece: bytes, done: int, skipped: int) -> None:
        """Keep replies of the entry at the head back until more of it, or the end of the chunk, has come."""
        if not self._held:
            self._held_skipped = skipped
        self._held.append(piece)
        self._held_replies += done

    def _release(self, piece: bytes, done: int) -> tuple[bytes, int, int]:
        """Join what was kept back with the piece behind it: (bytes, replies, bytes skipped at the front)."""
        self._held.append(piece)
        whole, total = b"".join(self._held), self._held_replies + done
        self._held.clear()
        self._held_replies = 0
        return whole, total, self._held_skipped

    def _let_go(self) -> None:
        """Relay what was kept back: the rest of the run has not come yet."""
        caller = self.link.fifo[0][0]
        piece, done, self.skipped = self._release(b"", 0)
        with contextlib.suppress(RuntimeError):  # see `Caller.relay`
            caller.relay(piece)
        caller.pending -= done

    def _push(self, data: bytes, pos: int) -> int:
        """Step over a push; -1 if the rest of it is still to come."""
        if not self.pushing and data[pos] != _PUSH:
            kind = data[pos : pos + 1]  # what follows may be a value
            raise UpstreamDesync(f"ERR pannier: upstream sent a reply that nobody asked for: {kind!r}")
        if self._tracking is not None and not self.pushing:
            found = match_invalidation(data, pos)
            if found is not None:
                self._tracking.invalidate(found[1])
                return found.end()
        after = self.scanner.push(data, pos)
        self.pushing = self.scanner.open
        if self._tracking is not None:
            self._pushed.append(data[pos:after])
        if after == pos or self.scanner.open:
            self._tail = data[after:]
            self.pushing = True
            return -1
        if self._tracking is not None:
            frame, self._pushed = b"".join(self._pushed), []
            self._tracking.pushed(frame)
        return after

    def pause_writing(self) -> None:
        """Called by the loop: more than the high-water mark waits to be sent."""
        self.link.wire_full()

    def resume_writing(self) -> None:
        """Called by the loop: what waited has been sent."""
        self.link.wire_writable()

    def drop(self, why: str, again: bool = True) -> None:
        """Close the connection and take its end at once: nothing may be submitted to a closed transport."""
        self.close()
        self.ended.set()
        self.link.wire_lost(self, why, again)

    def lost(self, exc: Exception | None) -> None:
        """Tell the shared link why the connection ended."""
        self.ended.set()
        self.link.wire_lost(self, f"broke: {exc}" if exc else "closed the connection", True)
