"""The canary: how long after a write is sent its invalidation arrives.

A key of the sidecar's own is read over the tracked link, then set and deleted on another connection, in one
transaction: nobody ever sees it, and the database is as before. The time from sending that to the push is the
longest for which another sidecar's write may stay unseen here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterable

from proxy.events import fields, without_arguments
from proxy.histogram import Histogram
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.resp.tracking import Mode
from proxy.upstream.caller import Question
from proxy.upstream.link import LinkKey
from proxy.upstream.pinned import Expect, PinnedLink
from proxy.upstream.pool import LinkPool
from proxy.upstream.shared import SharedLink

log = logging.getLogger("pannier.tracking")

_SAMPLES = 1000
"""Measurements remembered."""


def quantile(samples: Iterable[float], fraction: float) -> float:
    """A quantile of some samples; 0 if there is none."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))] if ordered else 0.0


class Canary:
    """Measures the lag of invalidations on one shared link, every `interval` seconds.

    Its key begins with `prefix`, so that a user restricted to a namespace may touch it.
    """

    def __init__(
        self, links: LinkPool, link: SharedLink, interval: float, timeout: float, prefix: bytes = b""
    ) -> None:
        self.lost = 0
        """Invalidations that did not come within the timeout."""
        self.trouble = ""
        """Why the last attempt measured nothing; empty if it did."""
        self.lags: deque[float] = deque(maxlen=_SAMPLES)
        """The latest lags, in seconds."""
        self.all_lags = Histogram()
        """All of them."""
        self._links = links
        self._link = link
        self._interval = interval
        self._timeout = timeout
        self._key = prefix + b"pannier:canary:" + os.urandom(8).hex().encode()

    def lag(self, fraction: float) -> float:
        """A quantile of the lags, in seconds; 0 if there is none."""
        return quantile(self.lags, fraction)

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            await asyncio.sleep(self._interval)
            if self._link.tracking is None or self._link.tracking.mode in (Mode.OFF, Mode.BUS):
                self.trouble = "no tracking"
                continue
            try:
                await self.measure()
            except UpstreamError as error:
                self._stumble(str(error))

    async def measure(self) -> None:
        """Measure once: `lags` has one more then, or `trouble` says why not. Raises UpstreamError."""
        tracking = self._link.tracking
        if tracking is None:
            return
        n, request = tracking.mode.tracked(encode.request("EXISTS", self._key))
        reply = (await Question(n).ask(self._link, request)).removeprefix(encode.OK)
        if reply.startswith(b"-"):
            self._stumble(reply[1:-2].decode("utf-8", "replace"))
            return
        key = LinkKey(self._link.key.identity, self._link.key.database, 2)
        writer = _Writer(self._links.idle(key) or await self._links.pin(key))
        seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def arrived() -> None:
            if not seen.done():
                seen.set_result(time.monotonic())

        tracking.watch(self._key, arrived)
        try:
            began = time.monotonic()
            refusal = await writer.write(self._key, self._timeout)
            if refusal:
                self._stumble(refusal)
                return
            async with asyncio.timeout(self._timeout):
                lag = await seen - began
                self.lags.append(lag)
                self.all_lags.observe(lag)
            self.trouble = ""
        except TimeoutError:
            self.lost += 1
            self._stumble("an invalidation did not come in time")
        finally:
            tracking.watch(b"", None)
            self._links.unpin(writer.link, not writer.pending)

    def _stumble(self, why: str) -> None:
        why = without_arguments(why)
        if why != self.trouble:
            about = fields("lag_unmeasured", reason=why)
            log.warning("the lag of invalidations cannot be measured: %s", why, extra=about)
        self.trouble = why


class _Writer:
    """Sets and deletes a key over a pinned link. Implements `upstream.pinned.Owner`."""

    def __init__(self, link: PinnedLink) -> None:
        self.link = link
        self.pending = 0
        self._refusal = b""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.owner = self

    async def write(self, key: bytes, timeout: float) -> str:
        """Write; Redis' refusal, if it refused. Raises TimeoutError."""
        transaction = [
            encode.request("MULTI"),
            encode.request("SET", key, "1", "PX", 60000),
            encode.request("DEL", key),
            encode.request("EXEC"),
        ]
        for _ in transaction:
            self.pending += 1
            self.link.expect(Expect.NOTHING)
        self.link.send(b"".join(transaction))
        async with asyncio.timeout(timeout):
            await self._done
        return self._refusal[1:-2].decode("utf-8", "replace")

    def relay(self, data: bytes) -> None:
        """Look for an error."""
        if data.startswith(b"-") and not self._refusal:
            self._refusal = data

    def answered(self, what: Expect, first: int) -> None:
        """Count the replies."""
        self.pending -= 1
        if not self.pending and not self._done.done():
            self._done.set_result(None)

    def streams_reset(self) -> None:
        """Never: nothing is reset."""

    def pin_lost(self, why: str) -> None:
        """Take the loss of the connection."""
        self._refusal = self._refusal or b"-the connection " + why.encode() + b"\r\n"
        if not self._done.done():
            self._done.set_result(None)

    def pin_full(self, full: bool) -> None:
        """A few bytes always fit."""
