"""Deleting a key if it still has a certain value: WATCH, GET, MULTI, DEL, EXEC on a link of its own.

Redis has a command for it (DELEX) since 8.4. A transaction that was begun and not ended, as Redis refuses
one of its commands, would swallow what comes behind it on its connection; so it has that to itself, and only
an EXEC or UNWATCH that Redis has carried out makes the connection anybody else's.
"""

from __future__ import annotations

import asyncio

from proxy.resp import encode
from proxy.resp.replies import split_replies
from proxy.upstream.link import LinkKey
from proxy.upstream.pinned import Expect, PinnedLink
from proxy.upstream.pool import LinkPool

_NO, _YES = encode.integer(0), encode.integer(1)


async def delete_if(links: LinkPool, key: LinkKey, name: bytes, value: bytes) -> bytes:
    """Delete the key `name` if its value is `value`, as whom and where `key` says.

    Returns the frame `:1`, or `:0` if it was not so (any more), or the error with which Redis refused. Raises
    UpstreamError if the connection cannot be made or breaks.
    """
    link = links.idle(key) or await links.pin(key)
    clean = False
    try:
        talk = _Talk(link)
        watched, found = await talk.ask(encode.request("WATCH", name), encode.request("GET", name))
        if watched != encode.OK:
            clean = True  # nothing is watched
            return watched
        if found != encode.bulk(value):
            (unwatched,) = await talk.ask(encode.request("UNWATCH"))
            clean = unwatched == encode.OK
            return found if found.startswith(b"-") and not found.startswith(b"-WRONGTYPE") else _NO
        transaction = (encode.request("MULTI"), encode.request("DEL", name), encode.request("EXEC"))
        begun, queued, done = await talk.ask(*transaction)
        clean = begun == encode.OK and done.startswith((b"*", b"_"))
        if not clean:
            return next(reply for reply in (begun, queued, done) if reply.startswith(b"-"))
        return _YES if done == encode.array([_YES]) else _NO
    finally:
        links.unpin(link, clean)


class _Talk:
    """Asks over a pinned link, and takes its replies. Implements `upstream.pinned.Owner`."""

    def __init__(self, link: PinnedLink) -> None:
        self._link = link
        link.owner = self
        self._parts: list[bytes] = []
        self._missing = 0
        self._done: asyncio.Future[None] | None = None

    async def ask(self, *requests: bytes) -> list[bytes]:
        """Send requests; their replies. Raises UpstreamError if the link breaks."""
        self._parts, self._missing = [], len(requests)
        self._done = asyncio.get_running_loop().create_future()
        self._link.patient = False
        for _ in requests:
            self._link.expect(Expect.NOTHING)
        self._link.send(b"".join(requests))
        if self._link.ended.is_set():
            raise self._link.connector.lost("closed the connection")
        await self._done
        return split_replies(b"".join(self._parts), 0, len(requests))

    def relay(self, data: bytes) -> None:
        """Take reply bytes."""
        self._parts.append(data)

    def answered(self, what: Expect, first: int) -> None:
        """Hear that a reply is complete."""
        self._missing -= 1
        if not self._missing and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def streams_reset(self) -> None:
        """Nothing: the link is none that streams."""

    def pin_lost(self, why: str) -> None:
        """Tell who waits."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(self._link.connector.lost(why))

    def pin_full(self, full: bool) -> None:
        """Nothing: there is little to send."""
