"""All links to one Redis: the shared ones by key, the pinned ones lent and taken back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections import deque
from collections.abc import Callable

from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.resp.tracking import Mode as TrackingMode
from proxy.upstream.breaker import Breaker
from proxy.upstream.givingup import Classifier
from proxy.upstream.link import Connector, Identity, LinkKey, open_link
from proxy.upstream.pinned import Mode, PinnedLink
from proxy.upstream.shared import Care, LinkState, SharedLink

_IDLE_PINNED = 16
"""Clean pinned links kept for the next client, for each key."""
_IDLE_SHARED = 60.0
"""Seconds after which a shared link that no session uses is closed."""


class LinkPool:
    """Makes links, lends them, closes what is no longer used.

    `timeout` (seconds) is how long a shared link may owe replies in silence; after `silent_after` it is tried
    whether Redis answers at all. `backoff` is the shortest and longest wait between attempts to reconnect, in
    seconds. `care` tells how the shelf of a shared link is
    kept true, `closed` hears of a shared link that is given up.
    """

    def __init__(
        self,
        connector: Connector,
        classifier: Classifier,
        timeout: float,
        backoff: tuple[float, float],
        care: Callable[[LinkKey], Care | None] = lambda key: None,
        closed: Callable[[LinkKey], object] = lambda key: None,
        breaker_failures: int = 0,
        silent_after: float = math.inf,
    ) -> None:
        self.connector = connector
        self.breaker = Breaker(breaker_failures)
        self.breaker.opened = self._refuse_mute
        self.shared: dict[LinkKey, SharedLink] = {}
        self.pinned: set[PinnedLink] = set()
        """Every pinned link, lent or idle."""
        self._classifier = classifier
        self._timeout = timeout
        self._silent_after = silent_after
        self._trial: asyncio.Task[None] | None = None
        """Finds out whether Redis answers at all, while a link does not."""
        self._backoff = backoff
        self._care = care
        self._closed = closed
        self._idle: dict[LinkKey, deque[PinnedLink]] = {}
        self._unused_since: dict[LinkKey, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def attach(self, key: LinkKey) -> SharedLink:
        """The shared link for `key`, made if need be; give it back with `detach`."""
        link = self.shared.get(key)
        if link is None or link.state is LinkState.CLOSED:
            care = self._care(key)
            away = self._away()
            link = self.shared[key] = SharedLink(
                self.connector, key, self._classifier, self._backoff, care, self.breaker, away,
                self._silent_after,
            )  # fmt: skip
        link.users += 1
        return link

    def detach(self, link: SharedLink) -> None:
        """Give a shared link back; one that does not work is closed at once, unless what was read over it can
        be served stale; others when long unused."""
        link.users -= 1
        if not link.users and link.state is LinkState.DOWN and not link.serves_stale:
            self._close(link)

    def idle(self, key: LinkKey) -> PinnedLink | None:
        """A clean connection at hand, if there is one; none while Redis is known to be away."""
        if self.away is not None:
            return None
        idle = self._idle.get(key)
        while idle:
            link = idle.pop()
            if not link.ended.is_set():
                return link
        return None

    async def pin(self, key: LinkKey) -> PinnedLink:
        """A fresh connection for one client. Raises UpstreamError."""
        return await self._open(key)

    async def login(self, credentials: list[bytes], protocol: int) -> Identity:
        """Have Redis check the arguments of an AUTH on a fresh connection. Raises UpstreamError.

        The connection is kept for whoever needs a pinned link of that identity next.
        """
        user = credentials[0] if len(credentials) > 1 else None
        key = LinkKey(Identity(user, credentials[-1]), 0, protocol)
        self.unpin(await self._open(key, credentials), True)
        return key.identity

    @property
    def away(self) -> UpstreamError | None:
        """Why no client is given a link of its own now, in words for that client; None if one may be."""
        error = self._away()
        return self.breaker.explain(error) if error is not None else None

    def _away(self) -> UpstreamError | None:
        """Why nobody is to wait for a connection: the breaker is open, Redis silent, or so much away that
        stale entries are served."""
        if self.breaker.open:
            return self.breaker.error
        refusing = [link for link in self.shared.values() if link.refusing]
        return next((link.error for link in refusing if link.silent or link.serves_stale), None)

    async def _open(self, key: LinkKey, credentials: list[bytes] | None = None) -> PinnedLink:
        if (away := self.away) is not None:
            raise away
        try:
            link = await open_link(lambda: PinnedLink(self.connector, key), self.connector, credentials)
        except UpstreamError as error:
            if isinstance(error, UpstreamRefused):
                self.breaker.answered()
            else:
                self.breaker.failed(error)
            raise
        self.breaker.answered()
        link.watch_buffer()
        self.pinned.add(link)
        return link

    def unpin(self, link: PinnedLink, clean: bool) -> None:
        """Take a pinned link back; `clean` if nothing of the client's is left in its connection."""
        link.owner = None
        link.fence = None
        link.take_whole(None)
        idle = self._idle.setdefault(link.key, deque())
        whole = clean and link.mode is Mode.COUNTED and link.idle and not link.ended.is_set()
        if whole and len(idle) < _IDLE_PINNED:
            link.pause(False)
            idle.append(link)
            return
        self.pinned.discard(link)
        link.close()

    def tick(self, now: float) -> None:
        """Break silent links, close unused ones; called a few times a second."""
        for pinned in list(self.pinned):
            pinned.tick(now, self._timeout)
        self.pinned = {pinned for pinned in self.pinned if not pinned.ended.is_set()}
        for key, link in list(self.shared.items()):
            link.tick(now, self._timeout)
            if link.mute:
                self._suspect(link)
            if self.breaker.open:
                link.prove()
            if link.users or link.fifo or link.serves_stale:
                self._unused_since.pop(key, None)
            elif now - self._unused_since.setdefault(key, now) > _IDLE_SHARED:
                self._close(link)

    def _suspect(self, link: SharedLink) -> None:
        """Deal with a connection on which Redis answers nothing: it may be hung, or busy for one client."""
        if self.breaker.open:
            link.fall_silent()
        elif self._trial is None or self._trial.done():
            self._trial = asyncio.get_running_loop().create_task(self._try(link.key))

    def _refuse_mute(self) -> None:
        """Have no more commands wait for what is not answered, as soon as the breaker opens."""
        for link in self.shared.values():
            if link.mute:
                link.fall_silent()

    async def _try(self, key: LinkKey) -> None:
        """Connect anew, and count a failure if that is not answered within the time of silence.

        While a script runs for long, other connections get BUSY for an answer: who waits for it is to wait.
        """
        limit = min(self._silent_after, self.connector.timeout)
        connector = dataclasses.replace(self.connector, timeout=limit)
        try:
            link = await open_link(lambda: PinnedLink(connector, key), connector)
        except UpstreamRefused:
            self.breaker.answered()
        except UpstreamError as error:
            self.breaker.failed(error)
        else:
            link.close()
            self.breaker.answered()

    def tracked(self, prefix: bytes = b"") -> list[SharedLink]:
        """The shared links that Redis tells of changes, or may soon, to keys that begin with `prefix`."""
        return [
            link
            for link in self.shared.values()
            if link.tracking is not None and (not prefix or link.tracking.prefix in (b"", prefix))
        ]

    def by_bus(self, prefix: bytes = b"") -> bool:
        """Whether for some of these links only the bus tells of changes, so that a fence drops everything."""
        tracked = self.tracked(prefix)
        return any(link.tracking is not None and link.tracking.mode is TrackingMode.BUS for link in tracked)

    def fence(self, then: Callable[[], None], prefix: bytes = b"") -> None:
        """Call a function once every tracked link has told all invalidations of what Redis did up to now.

        Every link, that is, on which keys are read that begin with `prefix`.
        """
        links = self.tracked(prefix)
        missing = 1 + len(links)

        def passed() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                then()

        for link in links:
            if link.tracking is not None:
                link.tracking.fence(passed)
        passed()

    async def passed(self, prefix: bytes = b"") -> None:
        """Wait until every tracked link has told all invalidations of what Redis did up to now (`fence`)."""
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done() -> None:
            if not passed.done():
                passed.set_result(None)

        self.fence(done, prefix)
        await passed

    async def close(self) -> None:
        """Close every link."""
        if self._trial is not None:
            self._trial.cancel()
        for link in list(self.shared.values()):
            self._close(link)
        for pinned in list(self.pinned):
            pinned.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._closing)

    def close_space(self, name: str) -> None:
        """Close the shared links of a key space that is no more, and the clean ones kept for it."""
        for key, link in list(self.shared.items()):
            if key.space == name:
                self._close(link)
        for key in [key for key in self._idle if key.space == name]:
            for idle in self._idle.pop(key):
                self.pinned.discard(idle)
                idle.close()

    def _close(self, link: SharedLink) -> None:
        self.shared.pop(link.key, None)
        self._unused_since.pop(link.key, None)
        self._closed(link.key)
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
