"""A contest: all clients of one home who want the same key, of whom one at most may compute it.

A lease is a key in Redis, which is the arbiter (`SET … NX PX`). A contest goes on in rounds, as long as
somebody waits for the key or has been granted a lease for it. A pause between two rounds ends when Redis
tells that the key or the lease has changed (`Shelf.watched`), when somebody comes, or by the clock.

Whatever a round finds out counts only for those who were waiting when it was asked: an answer that was on its
way already may be older than what a newcomer has written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from proxy.client.refilling import launch
from proxy.client.wishes import Waiter, answer, lease_key
from proxy.events import fields
from proxy.resp import encode
from proxy.resp.errors import UpstreamError
from proxy.resp.replies import split_replies
from proxy.resp.tracking import Mode
from proxy.tier.flights import MISSING
from proxy.tier.rules import GET, key_frame, lifetimes, marks
from proxy.tier.shelf import Shelf
from proxy.upstream.caller import Keys, Question

if TYPE_CHECKING:
    from proxy.client.leases import Leases
    from proxy.client.session import Session

log = logging.getLogger("pannier.leases")

POLL = (0.05, 0.25)
"""Seconds, the least and the most, after which a contest asks again where nobody tells of changes."""
SAFETY = (0.25, 1.0)
"""The same where Redis does tell: should it be lost."""
_AS_USUAL = float("inf")
"""Seconds until the next round where nothing but `POLL` or `SAFETY` bounds them."""
NULLS = (b"_\r\n", b"$-1\r\n")


@dataclass(slots=True, eq=False)
class Grant:
    """A lease that was granted here."""

    contest: Contest
    session: Session
    token: bytes
    until: float
    """Monotonic seconds up to which it is surely in Redis."""
    told: int
    """The contest's `told`, and the session's `served`, when it was granted."""
    served: int


class Contest:
    """All clients of one home who want the same key."""

    def __init__(self, leases: Leases, session: Session, key: bytes) -> None:
        self._leases = leases
        self._place = (session.home.key, key)
        self.space = session.space
        self._links = leases.clients.links
        self._link = self._links.attach(session.home.key)
        tracking = self._link.tracking
        self._shelf = cast(Shelf, tracking.keeper) if tracking is not None else None
        namespace = session.space.namespace
        prefix = namespace.prefix if namespace is not None else b""
        self._key = prefix + key
        self._name = prefix + lease_key(key)
        self._bare = key_frame(key)
        self._frames = (key_frame(self._name), key_frame(self._key))
        self.waiters: dict[Waiter, None] = {}
        self.grants: dict[bytes, Grant] = {}
        """By token."""
        self.moved = asyncio.Event()
        """Whether there is reason to begin the next round at once."""
        self.told = 0
        """How often Redis has named the key in an invalidation, in order with the replies."""
        self._watch()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self.waiters or self.grants:
                await self._pause(await self._round())
        except Exception:
            log.exception("internal error in the contest for a lease", extra=fields("internal_error"))
            for waiter in list(self.waiters):
                waiter.tell(encode.error("ERR pannier: internal error"))
            for grant in list(self.grants.values()):
                self.forget(grant)
        finally:
            self._watch(False)
            self._links.detach(self._link)
            del self._leases.contests[self._place]

    def _watch(self, wanted: bool = True) -> None:
        """Hear of changes to the key and the lease, or no more."""
        if self._shelf is None:
            return
        lease, key = marks(self._frames)
        if wanted:
            self._shelf.watched |= {lease: self._lease_changed, key: self._key_changed}
        else:
            self._shelf.watched.pop(lease, None)
            self._shelf.watched.pop(key, None)

    def _lease_changed(self, named: bool) -> None:
        self.moved.set()

    def _key_changed(self, named: bool) -> None:
        # Pushes that come late may be about what was before a lease was granted.
        self.told += named and not self._mode.late
        self.moved.set()

    async def _pause(self, seconds: float) -> None:
        if self.moved.is_set() or not (self.waiters or self.grants):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, random.uniform(*self._poll))):
                await self.moved.wait()

    # --- a round

    async def _round(self) -> float:
        """Find out how things stand and tell those who wait; after how many seconds to do so again."""
        for grant in [grant for grant in self.grants.values() if grant.until <= monotonic()]:
            self.forget(grant)
        asked = list(self.waiters)
        if not asked:
            return await self._look()
        reply = await self._read()
        if reply in NULLS:
            self._deleted()
            return await self._claim()
        if not reply.startswith(b"-"):
            self._filled()
            reply = answer(b"HIT", reply)
        for waiter in asked:
            waiter.tell(reply)
        return 0.0

    async def _look(self) -> float:
        """See whether a key has been set for which nobody waits."""
        self.moved.clear()
        n, question = lifetimes(self._frames[1:], self._mode)
        left = _milliseconds((await self._ask(n, question))[-1])
        if left is not None and left != MISSING:
            self._filled()
        elif left is not None:
            self._deleted()
        return _AS_USUAL

    async def _read(self) -> bytes:
        """The key's value, over a flight if it is to be kept in memory."""
        shelf = self._shelf
        if shelf is not None and (monotonic() < shelf.until or shelf.vouch(monotonic())):
            taker = _Taker()
            if self._fly(shelf, taker):
                return await taker.reply
        # Where replies may be newer than pushes, what is kept must not be shown after this one.
        loose = shelf is not None and shelf.tier.loose
        revealed = marks(self._frames[1:]) if loose else None
        return (await self._ask(1, encode.request("GET", self._key), revealed))[0]

    def _fly(self, shelf: Shelf, taker: _Taker) -> bool:
        """Have the value taken from a flight under way, or from a new one if it is to be kept in memory."""
        part = GET + self._bare
        flight = shelf.flights.get(part)
        if flight is not None and flight.joinable:
            shelf.account.coalesced += 1
            flight.waiters.append(taker)
            return True
        flight = shelf.open(shelf.rules.member(self._bare)) if shelf.admits(part) else None
        if flight is None:
            return False
        flight.waiters.append(taker)
        launch(flight, self._link)
        return True

    async def _claim(self) -> float:
        """Have Redis grant a lease to the first who can take it; what to tell the others."""
        asked = list(self.waiters)
        self.moved.clear()
        chosen = next((waiter for waiter in asked if waiter.able), None)
        left = None
        if chosen is not None:
            token, began = secrets.token_hex(16).encode(), monotonic()
            n, questions = lifetimes(self._frames, self._mode)
            request = encode.request("SET", self._name, token, "NX", "PX", chosen.wish.ttl)
            replies = await self._ask(1 + n, request + questions)
            session, until = chosen.session, began + chosen.wish.ttl / 1000
            grant = Grant(self, session, token, until, self.told, session.served)
            left = self._judge(asked, chosen, grant, replies)
            if left == 0:
                return 0.0
        for waiter in asked:
            old = self._shelf.last(GET + self._bare) if waiter.wish.stale and self._shelf else None
            if old is not None and old not in NULLS:
                waiter.tell(answer(b"STALE", old))
            elif not waiter.wish.patience:
                waiter.give_up()
        return _AS_USUAL if left is None else left / 1000

    def _judge(self, asked: list[Waiter], chosen: Waiter, grant: Grant, replies: list[bytes]) -> int | None:
        """Take Redis' verdict; in how many milliseconds the lease in force ends.

        0: a new round is due at once. None: not known.
        """
        verdict, lease_left, key_left = replies[0], replies[len(replies) // 2], replies[-1]
        granted = verdict == encode.OK
        if granted:
            self._leases.changed(self._place[0], self._name)
        error = next((reply for reply in (verdict, key_left) if reply.startswith(b"-")), None)
        missing = _milliseconds(key_left) == MISSING
        if granted and error is None and missing and chosen.able:
            self.grants[grant.token] = grant
            self._leases.held.setdefault(grant.session, {})[grant] = None
            self._leases.granted[self.space.name] += 1
            chosen.tell(answer(b"LEASE", encode.bulk(grant.token)))
            return None
        if granted:
            self._delete(grant)
        for waiter in asked if error is not None else ():
            waiter.tell(error or b"")
        if granted or error is not None or not missing:
            return 0
        left = _milliseconds(lease_left)
        return left + 1 if left is not None and left >= 0 else 0 if left == MISSING else None

    # --- the end of a lease

    def _filled(self) -> None:
        """Take in that the key has been set: no lease is wanted any more."""
        for grant in list(self.grants.values()):
            self.give_back(grant)

    def _deleted(self) -> None:
        """Take in that the key is missing: what Redis has told of may be that it was set, and deleted again.

        Then its lease would hold everybody up. The push alone does not say so: it may be about a key of that
        name in another database. But if the holder has said something meanwhile, it most likely was its SET.
        """
        for grant in list(self.grants.values()):
            if grant.told != self.told and grant.served != grant.session.served:
                self.give_back(grant)
            grant.told = self.told

    def give_back(self, grant: Grant) -> None:
        """End a lease before its time."""
        self.forget(grant)
        self._delete(grant)

    def _delete(self, grant: Grant) -> None:
        self._leases.delete(*self._place, self._name, grant.token)

    def forget(self, grant: Grant) -> None:
        """Have nothing to do with a lease any more."""
        self.grants.pop(grant.token, None)
        held = self._leases.held.get(grant.session, {})
        held.pop(grant, None)
        if not held:
            self._leases.held.pop(grant.session, None)
        self.check()

    def check(self) -> None:
        """Have the contest end if it is about nothing any more."""
        if not self.waiters and not self.grants:
            self.moved.set()

    # --- asking Redis

    @property
    def _mode(self) -> Mode:
        return self._shelf.mode if self._shelf is not None else Mode.OFF

    @property
    def _poll(self) -> tuple[float, float]:
        return POLL if self._mode in (Mode.OFF, Mode.BUS) else SAFETY

    async def _ask(self, n: int, request: bytes, keys: Keys = None) -> list[bytes]:
        try:
            return split_replies(await Question(n).ask(self._link, request, keys), 0, n)
        except UpstreamError as error:
            return [error.reply] * n


class _Taker:
    """Takes a flight's reply. Implements `tier.flights.Waiter`."""

    __slots__ = ("_parts", "protocol", "reply")

    def __init__(self) -> None:
        self.protocol = 3
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []

    def take(self, reply: bytes) -> None:
        """Take the whole reply."""
        if not self.reply.done():
            self.reply.set_result(reply)

    def take_piece(self, piece: bytes, skip: int) -> None:
        """Take a piece of a long reply."""
        self._parts.append(piece)

    def take_end(self) -> None:
        """Hear that the reply which came in pieces is complete."""
        self.take(b"".join(self._parts))

    def cut(self) -> None:
        """Hear that it broke off."""
        self.take(encode.error("ERR pannier: upstream connection broke in the middle of a reply"))

    def hold_back(self, link: Any) -> None:
        """Nothing more to ask."""

    def go_on(self) -> None:
        """Nothing waits."""


def _milliseconds(reply: bytes) -> int | None:
    return int(reply[1:]) if reply.startswith(b":") else None
