"""Commands on all keys, for clients in a namespace: they take several commands of Redis'.

None of them holds anybody up: keys are found with SCAN, a page at a time, and other clients' commands go
between the pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import hiredis

from proxy.resp import encode
from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.resp.namespace import Namespace
from proxy.tier.rules import key_frame, marks
from proxy.upstream.caller import Question

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.upstream.shared import SharedLink

_PAGE = 1000
"""Keys that Redis looks at for one SCAN: half a millisecond of its time at most."""
_PIECE = 256
"""Keys that are deleted at once: each takes some microseconds here, and is told by a push of its own."""
_MOST_FLUSHES = 16
_DRAWS = 8
"""RANDOMKEYs tried before the keys are walked through."""


async def dbsize(session: Session, namespace: Namespace) -> bytes:
    """Count the namespace's keys in the session's database (Redis docs: DBSIZE)."""
    found = namespace.pattern + b"*"
    return encode.integer(sum([len(keys) async for keys in _pages(session.home, found, b"0")]))


async def randomkey(session: Session, namespace: Namespace) -> bytes:
    """One of the namespace's keys (Redis docs: RANDOMKEY)."""
    drawn = await ask(session.home, *[encode.request("RANDOMKEY")] * _DRAWS)
    own = [key for key in drawn if isinstance(key, bytes) and key.startswith(namespace.prefix)]
    if not own:
        # Any number is a cursor: Redis takes as many of its bits as its table has.
        start = b"%d" % random.getrandbits(48)
        for cursor in (start, b"0"):
            async for keys in _pages(session.home, namespace.pattern + b"*", cursor):
                own += keys
                if own:
                    break
            if own:
                break
    return encode.bulk(random.choice(own)[len(namespace.prefix) :]) if own else encode.null(session.protocol)


async def flush(session: Session, namespace: Namespace, arguments: list[bytes]) -> bytes:
    """Delete the namespace's keys, in the session's database or all (Redis docs: FLUSHDB, FLUSHALL).

    What has been begun goes on if the client leaves.
    """
    how = arguments[1].upper() if len(arguments) > 1 else b"ASYNC"
    if how not in (b"SYNC", b"ASYNC") or len(arguments) > 2:
        return encode.error("ERR syntax error")
    if len(session.space.works) >= _MOST_FLUSHES:
        return encode.error("ERR pannier: too many flushes of this namespace are under way; try again later")
    everywhere = arguments[0].lower() == b"flushall"
    work = asyncio.get_running_loop().create_task(_flush(session, namespace, everywhere, how == b"SYNC"))
    session.space.works.add(work)
    work.add_done_callback(session.space.works.discard)
    return await asyncio.shield(work)


async def _flush(session: Session, namespace: Namespace, everywhere: bool, now: bool) -> bytes:
    links, home = session.clients.links, session.home_key
    databases = {home.database}
    if everywhere:
        (report,) = await ask(session.home, encode.request("INFO", "keyspace"))
        lines = bytes(report).removeprefix(b"txt:").split(b"\r\n")
        databases.update(int(line[2 : line.index(b":")]) for line in lines if line.startswith(b"db"))
    deleted = 0
    for database in sorted(databases):
        link = links.attach(home._replace(database=database))
        deletion = Deletion(link, how=b"DEL" if now else b"UNLINK")
        try:
            await link.settled()
            await deletion.sweep(session, namespace.pattern + b"*")
        except UpstreamError as error:
            raise error.midway(f"deleted {deleted + deletion.deleted}") from None
        finally:
            links.detach(link)
        deleted += deletion.deleted
    return encode.OK


class Deletion:
    """Deletes keys of a link's database that match patterns, `page` looked at a time, and counts."""

    def __init__(self, link: SharedLink, page: int = _PAGE, how: bytes = b"UNLINK") -> None:
        self.deleted = 0
        """What Redis says it has deleted."""
        self.looked_at = 0
        """Keys, once for each pattern; about, as SCAN goes."""
        self.scope = 0
        """How many there are to look at, as far as that has been measured."""
        self._link = link
        self._page = page
        self._how = how

    def figures(self) -> dict[str, int]:
        """How far it is."""
        scope = max(self.scope, self.looked_at)
        return {"deleted": self.deleted, "looked_at": self.looked_at, "of": scope}

    async def measure(self, patterns: int) -> None:
        """Find out how many keys have to be looked at for so many patterns."""
        with contextlib.suppress(UpstreamError):
            (size,) = await ask(self._link, encode.request("DBSIZE"))
            self.scope = int(size) * patterns

    async def sweep(self, session: Session, pattern: bytes) -> None:
        """Delete what matches one pattern. Raises UpstreamError."""
        async for page in _pages(self._link, pattern, b"0", self._page):
            for start in range(0, len(page), _PIECE):
                await self._delete(session, page[start : start + _PIECE])
            self.looked_at += self._page

    async def _delete(self, session: Session, keys: list[bytes]) -> None:
        clients = session.clients
        dropped = marks(map(key_frame, keys))
        if clients.tier is not None:
            clients.tier.drop(dropped, session.space.prefix)
        reply = await Question().ask(self._link, encode.request(self._how, *keys), dropped)
        if reply.startswith(b"-"):
            raise UpstreamRefused(reply[1:-2].decode("utf-8", "replace"))
        self.deleted += int(reply[1:-2])
        if clients.tells_writes:
            clients.tell(session, "write", keys)


async def _pages(
    link: SharedLink, pattern: bytes, cursor: bytes, page: int = _PAGE
) -> AsyncIterator[list[bytes]]:
    """The keys of a link's database that match, page by page, from a cursor on. Raises UpstreamError."""
    while True:
        scan = encode.request("SCAN", cursor, "MATCH", pattern, "COUNT", page)
        ((cursor, keys),) = await ask(link, scan)
        yield keys
        if cursor == b"0":
            return


async def ask(link: SharedLink, *requests: bytes) -> list[Any]:
    """Redis' answers. Raises UpstreamError if one is an error."""
    reader = hiredis.Reader()
    reader.feed(await Question(len(requests)).ask(link, b"".join(requests)))
    answers = [reader.gets() for _ in requests]
    for answer in answers:
        if isinstance(answer, hiredis.ReplyError):
            raise UpstreamRefused(str(answer))
    return answers
