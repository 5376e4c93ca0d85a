"""Fetches that wait for their turn, as the refill governor has it, and fetches ahead of time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.client.whole import Whole
from proxy.resp.downgrade import Shape
from proxy.resp.tracking import Mode
from proxy.tier.classes import UNNAMED
from proxy.tier.flights import Flight
from proxy.tier.governor import Governor
from proxy.tier.rules import Read, Touch, key_name

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.tier.shelf import Shelf
    from proxy.upstream.shared import SharedLink

_MOST_REFRESHED = 512
"""Fetches begun in one round."""


def launch(flight: Flight, link: SharedLink) -> None:
    """Send a flight on its way."""
    flight.skipped = link.skipped
    link.submit(flight, flight.replies, flight.request)


def refresh(shelf: Shelf, link: SharedLink) -> None:
    """Fetch anew what is read often and whose time is nearly over."""
    due = list(shelf.tending.due(shelf.tier.clock(), _MOST_REFRESHED))
    if not due:
        return
    shelf.replay()
    for part in due:
        wanted = shelf.rules.read(part) if shelf.hot.count(part) else None
        flight = shelf.open(wanted) if wanted is not None else None
        if flight is not None:
            launch(flight, link)


def label(shelf: Shelf, wanted: Read) -> str:
    """The class of a read. Keys whose names have no first part are of one: each by itself would be none."""
    key = key_name(wanted.keys[0])[len(shelf.rules.prefix) :]
    return shelf.tier.policy.named(key) or UNNAMED


def admit(shelf: Shelf, wanted: Read) -> str | None:
    """The place that a fetch takes among those of its class, empty if nobody counts; None: there is none."""
    governor = shelf.account.governor
    if shelf.tier.clock() >= governor.until:
        governor.until = 0.0
        return ""
    place = label(shelf, wanted)
    return place if governor.enter(place, shelf.judge(wanted).rule.max_fetches) else None


def take_turn(session: Session, part: bytes) -> bool:
    """Deal with a single read that is not in memory, while the governor governs; False: it does not."""
    shelf = session.shelf
    wanted = shelf.rules.read(part)
    if wanted is None or (wanted.shape is None and session.protocol == 2):
        return False
    place = admit(shelf, wanted)
    if place == "":
        return False
    shelf.account.misses += 1
    session.commands += 1
    session.expect(1)
    turn = _Turn(session, wanted, place or label(shelf, wanted), shelf.admits(part))
    governor = shelf.account.governor
    if place is None:
        governor.wait(turn.place, turn)
        session.ready()
    elif (pause := governor.spread(shelf.tier.clock())) > 0:
        asyncio.get_running_loop().call_later(pause, turn.resume, governor)
        session.ready()
    else:
        turn.begin()
    return True


class _Turn:
    """A read that may have to wait for its turn."""

    __slots__ = ("_admitted", "_session", "_wanted", "place")

    def __init__(self, session: Session, wanted: Read, place: str, admitted: bool) -> None:
        self.place = place
        self._session = session
        self._wanted = wanted
        self._admitted = admitted

    def __call__(self) -> bool:
        """Go on, having waited; whether a place is taken."""
        session = self._session
        if session.transport.is_closing():
            return False
        shelf = session.shelf
        now = shelf.tier.clock()
        vouched = now < shelf.until or shelf.vouch(now)
        shelf.reuse.release([self._wanted.part])
        reply = session.find(self._wanted.part) if vouched else None
        if reply is not None:
            session.take(reply)
            return False
        flight = shelf.flights.get(self._wanted.part)
        if flight is not None and flight.joinable:
            flight.waiters.append(session)
            shelf.account.coalesced += 1
            return False
        self.begin()
        return True

    def resume(self, governor: Governor) -> None:
        """Go on, having a place already."""
        if not self():
            governor.leave(self.place)

    def begin(self) -> None:
        """Ask Redis, the place being taken."""
        session = self._session
        shelf = session.shelf
        # While it waited the link may have been lost: what is fetched before tracking is on cannot be kept.
        admitted = self._admitted and shelf.mode is not Mode.OFF
        flight = shelf.open(self._wanted) if admitted else None
        if flight is not None:
            flight.place = self.place
            flight.waiters.append(session)
            launch(flight, session.home)
        else:
            passed = _Passed(session, self._wanted.shape, shelf.account.governor, self.place)
            session.home.submit(passed, 1, self._wanted.request)


class _Passed(Whole):
    """The reply to a read that is not kept."""

    __slots__ = ("_governor", "_place")

    def __init__(self, session: Session, shape: Shape | None, governor: Governor, place: str) -> None:
        super().__init__(session, 1, shape, Touch.NOTHING)
        self._governor = governor
        self._place = place

    def finish(self, replies: bytes) -> None:
        """Pass it on, and let the next one begin."""
        super().finish(replies)
        self._leave()

    def cut(self) -> None:
        """Hear that it broke off."""
        super().cut()
        self._leave()

    def _leave(self) -> None:
        self._governor.leave(self._place)
