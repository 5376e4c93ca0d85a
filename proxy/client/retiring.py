"""Seeing clients off when Pannier is to stop: what they have begun is finished first.

Idle clients go at once. A command under way is answered, a transaction may be ended, who blocks may be
served; for all of this there is only so much time. Nothing that is read in full is left without an answer
while that lasts.

A client is told by closing our side first: what it has sent meanwhile would otherwise have the kernel throw
away replies that it has not read yet (RFC 1122, section 4.2.2.13: a reset).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from proxy.client.states import Event, State

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.session import Session

_LINGER = 0.25
"""Seconds a client has to close its side, too."""
_LOOK = 0.02
"""Seconds between two looks at who is left."""
_ENDED = (State.CLOSING, State.CLOSED)


async def drain(clients: Clients, seconds: float) -> int:
    """Close every session as soon as it is idle, within so many seconds; how many were not by then."""
    deadline = time.monotonic() + seconds
    clients.retiring = True
    told: dict[Session, float] = {}
    while True:
        now = time.monotonic()
        for session in list(clients.sessions.values()):
            see_off(session)
            if session.state in _ENDED and now - told.setdefault(session, now) >= _LINGER:
                session.transport.close()
        left = [session for session in clients.sessions.values() if session.state not in _ENDED]
        if not clients.sessions or now >= deadline:
            return len(left)
        await asyncio.sleep(_LOOK)


def busy(session: Session) -> bool:
    """Whether a client has begun something: sent a command or a part of one, or opened a transaction."""
    if session.buffer or session.arriving is not None:
        return True
    pin = session.pin
    if pin is None:
        return session.owes
    if session.state is State.PINNED:
        return pin.transaction or pin.large is not None or not pin.link.idle or pin.answering is not None
    return pin.answering is not None


def see_off(session: Session) -> None:
    """Close our side of a connection, if the client has nothing under way."""
    if session.state in _ENDED:
        return
    if busy(session):
        session.draining = session.draining or session.pending > 0  # to hear at once of the last reply
        return
    session.move(Event.CLOSE)
    session.hush()
    if session.transport.can_write_eof():
        session.transport.write_eof()
    else:
        session.transport.close()
