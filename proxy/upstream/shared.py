"""The shared link: one pipelined connection to Redis that carries the stateless commands of many clients.

Requests go out in one FIFO and replies come back in it, so a reply's place tells whom it belongs to; nothing
is tagged and nothing parsed into objects. An entry of the FIFO is a *run*: `n` requests of one caller, sent
as the one slice of bytes that came from it, answered with `n` replies in few slices, as they arrive.

A `SharedLink` outlives its connections. What `submit` does follows its state, with no test on the way::

    CONNECTING ──up──▶ READY ◀──writable── FULL        submit: hold / send / refuse / send and pause
        │  ▲             │  └──── full ────▶ │
      failed └── lost ───┴───────────────────┘          (the first attempt after a loss holds what comes)
        ▼
      DOWN ──up──▶ READY                                 (later attempts refuse it at once)
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from proxy.resp.errors import UpstreamDesync, UpstreamError, UpstreamRefused
from proxy.resp.patterns import SCALAR_RUNS
from proxy.resp.replies import ReplyScanner
from proxy.upstream.link import Connector, Link, LinkKey, open_link
from proxy.upstream.pacing import Pacer

log = logging.getLogger("pannier.upstream")

_PUSH = 0x3E
_RUNS = dict(SCALAR_RUNS)
_HOLD_LIMIT = 16 * 1024 * 1024
"""Bytes of requests held while connecting above which callers are paused."""
_WRITE_HIGH = 4 * 1024 * 1024
"""Bytes waiting to be sent to Redis above which callers are paused."""
_NOT_STALLED = (-1, 0.0)
"""Chunks a connection has received, and since when it has been no more: not looked at yet."""
_STEADY = 1.0
"""Seconds a connection must last for the next back-off to start afresh."""


class Caller(Protocol):
    """Who submits runs: a client's session, or a `Question` of the sidecar's own."""

    write: Callable[[bytes], object]
    """Takes reply bytes, in order.

    Raises RuntimeError if uvloop has closed the client's transport and is about to say so.
    """
    pending: int
    """Replies still to come."""
    draining: bool
    """Whether `drained` is to be called when `pending` falls to 0."""

    def drained(self) -> None:
        """Hear that no reply is pending any more."""

    def cut(self) -> None:
        """Hear that a reply ended in the middle: what was written cannot be completed."""

    def hold_back(self, link: SharedLink) -> None:
        """Hear that Redis takes no more bytes for now; submit nothing until `go_on`."""

    def go_on(self) -> None:
        """Hear that Redis takes bytes again."""


class Run(bytes):
    """The requests of a run whose turn it was when the connection was lost, sent for the second time.

    They may be what Redis cannot bear: lost again in that place, they are given up.
    """


class Classifier(Protocol):
    """What the link must know about requests, once, when a connection is lost."""

    def reads(self, requests: bytes) -> list[tuple[bytes, bool]]:
        """Split a run into its requests, each with whether repeating it changes nothing."""


class LinkState(enum.Enum):
    """See the picture in the module's docstring."""

    CONNECTING = enum.auto()
    READY = enum.auto()
    FULL = enum.auto()
    DOWN = enum.auto()
    CLOSED = enum.auto()


class SharedLink:
    """One identity's, database's and protocol's commands on one connection, over reconnections."""

    def __init__(
        self, connector: Connector, key: LinkKey, classifier: Classifier, backoff: tuple[float, float]
    ) -> None:
        self.connector = connector
        self.key = key
        self.users = 0
        """Sessions attached; kept by them."""
        self.reconnects = 0
        self.error: UpstreamError = connector.lost("is not connected yet")
        """Why the link is down, while it is."""
        self.submit: Callable[[Caller, int, bytes], None] = self._hold
        """Send `n` requests, given as one slice of bytes, for a caller; its replies come by `write`."""
        self.fifo: deque[tuple[Caller, int, bytes]] = deque()
        self.wire: _Wire | None = None
        self.auth_required = False
        """Whether Redis wanted credentials this link does not have, when it was last connected."""
        self._out: list[bytes] = []
        """Requests of this turn of the loop."""
        self._loop = asyncio.get_running_loop()
        self._pacer = Pacer(self._loop, self._flush)
        self._classifier = classifier
        self._backoff = backoff
        self._held = 0
        self._paused: set[Caller] = set()
        self._settled = asyncio.Event()
        self._stalled_since = _NOT_STALLED
        self.state = LinkState.CONNECTING
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def settled(self) -> None:
        """Wait until the link is ready or known to be down."""
        await self._settled.wait()

    async def close(self) -> None:
        """Drop the connection, answer what is pending, stop reconnecting."""
        self._enter(LinkState.CLOSED)
        self.error = self.connector.lost("was closed by the sidecar")
        self._task.cancel()
        await asyncio.wait([self._task])
        self._pacer.close()
        if self.wire is not None:
            self.wire.drop("was closed by the sidecar")
        self._fail_all()

    def tick(self, now: float, timeout: float) -> None:
        """Break a connection that owes replies and has been silent for `timeout` seconds."""
        if self.wire is None:
            return
        if not self.fifo or self._stalled_since[0] != self.wire.chunks:
            self._stalled_since = (self.wire.chunks, now)
        elif now - self._stalled_since[1] > timeout:
            self.wire.drop(f"did not answer within {timeout:g} s", again=False)

    # --- what submit does, by state

    def _flush(self) -> None:
        """Send what one turn of the loop has brought, in one system call."""
        out, self._out = self._out, []
        if self.wire is not None and out:
            self._pacer.sent(len(out))
            self.wire.send(b"".join(out))

    def _send(self, caller: Caller, n: int, requests: bytes) -> None:
        self.fifo.append((caller, n, requests))
        self._out.append(requests)
        if len(self._out) == 1:
            if self._pacer.active:
                self._pacer.arm()
            else:
                self._loop.call_soon(self._flush)

    def _send_full(self, caller: Caller, n: int, requests: bytes) -> None:
        self._send(caller, n, requests)
        self._paused.add(caller)
        caller.hold_back(self)

    def _hold(self, caller: Caller, n: int, requests: bytes) -> None:
        self.fifo.append((caller, n, requests))
        self._held += len(requests)
        if self._held > _HOLD_LIMIT:
            self._paused.add(caller)
            caller.hold_back(self)

    def _refuse(self, caller: Caller, n: int, requests: bytes) -> None:
        _answer(caller, n, self.error.reply * n)

    def _enter(self, state: LinkState) -> None:
        if self.state is not LinkState.CLOSED:
            self.state = state
        self.submit = _SUBMIT[self.state].__get__(self)
        if self.state is LinkState.CONNECTING:
            self._settled.clear()
        else:
            self._settled.set()

    # --- the life of the connection

    async def _run(self) -> None:
        shortest, longest = self._backoff
        delay = shortest
        loop = asyncio.get_running_loop()
        while True:
            try:
                wire = await open_link(lambda: _Wire(self), self.connector)
            except UpstreamError as error:
                self._down(error)
            except Exception:
                log.exception("internal error while connecting to %s", self.connector.upstream.redacted)
                self._down(self.connector.lost("cannot be used: internal error, see the log"))
            else:
                began = loop.time()
                self._up(wire)
                await wire.ended.wait()
                if loop.time() - began > _STEADY:
                    delay = shortest
                    continue
                if delay == shortest:
                    delay *= 2
                    continue
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, longest)

    def _up(self, wire: _Wire) -> None:
        if wire.ended.is_set():
            return
        if self.state is LinkState.DOWN:
            log.info("upstream %s is back (%s)", self.connector.upstream.redacted, _describe(self.key))
        self.wire = wire
        self.auth_required = wire.refusal != ""
        self._stalled_since = _NOT_STALLED
        wire.limit(_WRITE_HIGH)
        self._enter(LinkState.READY)
        self._held = 0
        self._out = [requests for _, _, requests in self.fifo]
        self._flush()
        self.release_paused()

    def _down(self, error: UpstreamError) -> None:
        if self.state is not LinkState.DOWN or str(error) != str(self.error):
            refused = isinstance(error, UpstreamRefused)
            who = f"upstream {self.connector.upstream.redacted} refuses us: " if refused else ""
            log.warning("%s%s (%s); trying again", who, _plain(error), _describe(self.key))
        self.error = error
        self._enter(LinkState.DOWN)
        self._fail_all()
        self.release_paused()

    def wire_lost(self, wire: _Wire, why: str, again: bool) -> None:
        """Take the end of a connection: answer what it owed or, if `again`, keep it to be sent once more."""
        if self.wire is not wire:
            return
        self.wire = None
        self._out = []
        self.reconnects += 1
        self.error = self.connector.lost(why)
        if self.state is not LinkState.CLOSED:
            log.warning("%s (%s); reconnecting", _plain(self.error), _describe(self.key))
        self._enter(LinkState.CONNECTING)
        if wire.scanner.open and not wire.pushing and self.fifo:
            cut, _, _ = self.fifo[0]
            cut.cut()
            self.fifo = deque(entry for entry in self.fifo if entry[0] is not cut)
        self._sort_out(again)
        self.release_paused()

    def _sort_out(self, again: bool) -> None:
        """Keep the runs of callers who only wait for reads, to be sent again; answer the others."""
        kept: deque[tuple[Caller, int, bytes]] = deque()
        suspect = self.fifo[0] if self.fifo else None
        owed: dict[Caller, list[tuple[int, bytes, list[tuple[bytes, bool]]]]] = {}
        for caller, n, requests in self.fifo:
            parts = self._classifier.reads(requests)[-n:]
            owed.setdefault(caller, []).append((n, requests, parts))
        self.fifo = kept
        for caller, runs in owed.items():
            guilty = suspect is not None and caller is suspect[0]
            given_up = not again or (guilty and isinstance(runs[0][1], Run))
            if not given_up and all(read for _, _, parts in runs for _, read in parts):
                kept.extend((caller, n, b"".join(part for part, _ in parts)) for n, _, parts in runs)
                if guilty:
                    kept[-len(runs)] = (caller, runs[0][0], Run(kept[-len(runs)][2]))
                continue
            lost, unknown = self.error.reply, self.error.of_unknown_outcome().reply
            for n, _, parts in runs:
                _answer(caller, n, b"".join(lost if read else unknown for _, read in parts))

    def _fail_all(self) -> None:
        entries, self.fifo = self.fifo, deque()
        self._held = 0
        for caller, n, _ in entries:
            _answer(caller, n, self.error.reply * n)

    # --- called by the connection

    def wire_full(self) -> None:
        """Hear that Redis does not keep up."""
        if self.state is LinkState.READY:
            self._enter(LinkState.FULL)

    def wire_writable(self) -> None:
        """Hear that Redis has caught up."""
        if self.state is LinkState.FULL:
            self._enter(LinkState.READY)
        self.release_paused()

    def release_paused(self) -> None:
        """Let callers that were held back go on."""
        paused, self._paused = self._paused, set()
        for caller in paused:
            caller.go_on()


_SUBMIT = {
    LinkState.CONNECTING: SharedLink._hold,
    LinkState.READY: SharedLink._send,
    LinkState.FULL: SharedLink._send_full,
    LinkState.DOWN: SharedLink._refuse,
    LinkState.CLOSED: SharedLink._refuse,
}


class _Wire(Link):
    """One connection of a shared link."""

    def __init__(self, link: SharedLink) -> None:
        super().__init__(link.connector, link.key)
        self.link = link
        self.scanner = ReplyScanner()
        self.pushing = False
        """Whether the frame under way is a push."""
        self.chunks = 0
        """Chunks received: a silent connection is one where this stands still."""
        self.ended = asyncio.Event()
        self._tail = b""

    def received(self, data: bytes) -> None:
        """Hand each reply to whom it belongs."""
        self.chunks += 1
        if self._tail:
            data, self._tail = self._tail + data, b""
        try:
            self._deliver(data)
        except UpstreamDesync as error:
            self.drop(str(error).partition("upstream ")[2])

    def _deliver(self, data: bytes) -> None:
        fifo = self.link.fifo
        scanner = self.scanner
        size = len(data)
        pos = 0
        while pos < size:
            if self.pushing or not fifo:
                pos = self._push(data, pos)
                if pos < 0:
                    return
                continue
            start = pos
            caller, n, requests = fifo[0]
            match = _RUNS.get(n)
            if match is not None and not scanner.open and (found := match(data, pos)) is not None:
                pos = found.end()
                done = n
            else:
                pos, done = scanner.advance(data, pos, n)
                if pos == start:
                    if data[pos] == _PUSH and not scanner.open:
                        self.pushing = True
                        continue
                    self._tail = data[pos:]
                    return
            if done == n:
                fifo.popleft()
            elif done:
                fifo[0] = (caller, n - done, requests)
            try:  # noqa: SIM105 - a context manager would cost every reply 0.3 µs
                caller.write(data[start:pos])
            except RuntimeError:
                pass  # see `Caller.write`
            caller.pending -= done
            if caller.draining and not caller.pending:
                caller.drained()

    def _push(self, data: bytes, pos: int) -> int:
        """Step over a push; -1 if the rest of it is still to come."""
        if not self.pushing and data[pos] != _PUSH:
            reply = data[pos : pos + 40]
            raise UpstreamDesync(f"ERR pannier: upstream sent a reply that nobody asked for: {reply!r}")
        after = self.scanner.push(data, pos)
        self.pushing = self.scanner.open
        if after == pos or self.scanner.open:
            self._tail = data[after:]
            self.pushing = True
            return -1
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


class Question:
    """One request of the sidecar's own on a shared link, answered with the raw bytes of its reply."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.write: Callable[[bytes], object] = self._parts.append
        self.pending = 0
        self.draining = True

    async def ask(self, link: SharedLink, request: bytes) -> bytes:
        """Send `request`; the reply's bytes, or the error frame a client would get.

        Raises UpstreamError if the reply breaks off.
        """
        self.pending += 1
        link.submit(self, 1, request)
        return await self._answer

    def drained(self) -> None:
        """Take the end of the reply."""
        if not self._answer.done():
            self._answer.set_result(b"".join(self._parts))

    def cut(self) -> None:
        """Take the loss of the connection in the middle of the reply."""
        if not self._answer.done():
            self._answer.set_exception(UpstreamError("ERR pannier: upstream's reply broke off"))

    def hold_back(self, link: SharedLink) -> None:
        """Nothing more to submit."""

    def go_on(self) -> None:
        """Nothing waits."""


def _answer(caller: Caller, n: int, replies: bytes) -> None:
    with contextlib.suppress(RuntimeError):  # see `Caller.write`
        caller.write(replies)
    caller.pending -= n
    if caller.draining and not caller.pending:
        caller.drained()


def _describe(key: LinkKey) -> str:
    user = f"user {key.identity.user.decode(errors='replace')}, " if key.identity.user else ""
    return f"{user}database {key.database}, RESP{key.protocol}"


def _plain(error: UpstreamError) -> str:
    return str(error).removeprefix("ERR pannier: ")
