"""SIDECAR LEASE and UNLEASE: of all clients that miss a key, here and at other sidecars, one computes it.

docs/leases.md tells the whole story. A lease is a key in Redis, which is the arbiter. All clients of this
sidecar who want the same key are one `Contest` (contest.py), which asks on behalf of all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from proxy.client import hits
from proxy.client.contest import NULLS, Contest, Grant
from proxy.client.wishes import Waiter, Wish, answer, lease_key, parse
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.tier.rules import GET, key_frame, marks
from proxy.upstream.deleting import delete_if
from proxy.upstream.link import LinkKey

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.session import Session
    from proxy.client.spaces import Space

MOST_HELD = 1000
"""Leases that one client may hold: each takes some kilobytes here."""
_MOST_RETURNS = 8
"""Leases being given back at once by clients of one identity and database: each takes a connection."""


def lease(session: Session, arguments: list[bytes]) -> bytes | Coroutine[None, None, bytes]:
    """Answer SIDECAR LEASE."""
    try:
        wish = parse(arguments[1:])
    except ValueError as error:
        return encode.error(f"ERR SIDECAR LEASE {error}")
    if session.pin is not None and session.pin.watching:
        # What memory holds may be older than what is watched: it would let a lost update through.
        return encode.error("ERR SIDECAR LEASE is not available between WATCH and EXEC")
    value = _in_memory(session, arguments[0])
    if value is not None:
        return answer(b"HIT", value)
    if len(session.clients.leases.held.get(session, ())) >= MOST_HELD:
        return encode.error(f"ERR SIDECAR LEASE: this connection holds {MOST_HELD} leases already")
    if session.space.account is not None:
        session.space.account.misses += 1
    return session.clients.leases.wait(session, arguments[0], wish)


def unlease(session: Session, arguments: list[bytes]) -> Coroutine[None, None, bytes]:
    """Answer SIDECAR UNLEASE."""
    return session.clients.leases.give_back(session, *arguments)


class Leases:
    """All contests of this sidecar, and who holds what."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.contests: dict[tuple[LinkKey, bytes], Contest] = {}
        self.waiting: dict[Session, Waiter] = {}
        self.held: dict[Session, dict[Grant, None]] = {}
        self.returns: set[asyncio.Task[bytes]] = set()
        """Leases on their way back."""
        self.granted: Counter[str] = Counter()
        """Leases granted since the start, by the name of the space."""
        self._turns: WeakValueDictionary[LinkKey, asyncio.Semaphore] = WeakValueDictionary()

    async def wait(self, session: Session, key: bytes, wish: Wish) -> bytes:
        """Wait for a key's value, or to be the one who computes it; the reply."""
        place = (session.home.key, key)
        contest = self.contests.get(place)
        if contest is None:
            contest = self.contests[place] = Contest(self, session, key)
        waiter = self.waiting[session] = Waiter(contest, session, wish)
        try:
            return await waiter.reply
        finally:
            del self.waiting[session]
            waiter.end()

    async def give_back(self, session: Session, key: bytes, token: bytes) -> bytes:
        """Give a lease back; the reply. It goes on if the client leaves."""
        contest = self.contests.get((session.home.key, key))
        if contest is not None and token in contest.grants:
            contest.forget(contest.grants[token])
        namespace = session.space.namespace
        name = (namespace.prefix if namespace is not None else b"") + lease_key(key)
        return await asyncio.shield(self.delete(session.home.key, key, name, token))

    def delete(self, home: LinkKey, key: bytes, name: bytes, token: bytes) -> asyncio.Task[bytes]:
        """Have a lease deleted in Redis if it is still that token's, then let those who wait try."""
        task = asyncio.get_running_loop().create_task(self._delete(home, key, name, token))
        self.returns.add(task)
        task.add_done_callback(self.returns.discard)
        return task

    async def _delete(self, home: LinkKey, key: bytes, name: bytes, token: bytes) -> bytes:
        own = home._replace(protocol=2, space="")
        turns = self._turns.setdefault(own, asyncio.Semaphore(_MOST_RETURNS))
        try:
            async with turns:
                reply = await delete_if(self.clients.links, own, name, token)
        except UpstreamError as error:
            reply = error.reply  # it lapses
        self.changed(home, name)
        contest = self.contests.get((home, key))
        if contest is not None:
            contest.moved.set()
        return reply

    def changed(self, home: LinkKey, name: bytes) -> None:
        """Have nobody be shown a lease, should he read it, as it was before it was written here."""
        clients, space = self.clients, self.clients.spaces.find(home.space)
        if clients.tier is not None:
            clients.tier.drop(marks([key_frame(name)]), space.prefix)
        link = clients.links.shared.get(home)
        if clients.tells_writes and clients.bus is not None and link is not None:
            clients.bus.tell(space.namespace, link, "write", [name])

    def figures(self, space: Space) -> dict[str, object]:
        """What is counted for those who live in a space, or for all."""
        everybody = space.namespace is None
        contests = [contest for contest in self.contests.values() if everybody or contest.space is space]
        return {
            "leases_granted": sum(self.granted.values()) if everybody else self.granted[space.name],
            "leases_held": sum([len(contest.grants) for contest in contests]),
            "leases_waiting": sum([len(contest.waiters) for contest in contests]),
        }

    def hurry(self, session: Session) -> None:
        """Hear that a client sends no more: it is not to wait, nor to compute."""
        waiter = self.waiting.get(session)
        if waiter is not None:
            waiter.wish.patience = 0
            waiter.contest.moved.set()

    def leave(self, session: Session) -> None:
        """Give back what a client held that is gone."""
        for grant in list(self.held.get(session, ())):
            grant.contest.give_back(grant)


def _in_memory(session: Session, key: bytes) -> bytes | None:
    """The value if memory holds it and may answer."""
    shelf, part = session.shelf, GET + key_frame(key)
    if not (monotonic() < shelf.until or shelf.vouch(monotonic())):
        return None
    shelf.reuse.release([part])
    reply = session.find(part)
    if reply is None or reply in NULLS or not reply.startswith(b"$"):
        return None
    hits.count(session, [part], 1)
    session.commands -= 1
    return reply
