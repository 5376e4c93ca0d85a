"""Giving a session a link of its own: one at hand, one reserved before, or a new one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.client import local
from proxy.client.dispatch import Route
from proxy.client.pin import Pin, listen
from proxy.client.states import Event, State
from proxy.resp.errors import UpstreamError
from proxy.resp.requests import LargeFrame
from proxy.upstream.pinned import PinnedLink

if TYPE_CHECKING:
    from proxy.client.session import Session


def send(
    session: Session, route: Route, arguments: list[bytes], data: bytes, large: LargeFrame | None
) -> None:
    """Send a command over a link of the session's own, at once if one is at hand.

    `large`: the frame of a command of which `data` is only the first part.
    """
    links = session.clients.links
    target = local.redirect_target(session, arguments)
    if target is None or target.upstream_id is not None:
        link, session.reserved = session.reserved, None
        if link is not None and link.key != session.key:
            links.unpin(link, False)  # reserved before the client went elsewhere
            link = None
        link = link or links.idle(session.key)
        if link is not None:
            _pin(session, link, route, arguments, data, large)
            return
    session.move(Event.WAIT)
    opening = _open(session, route, arguments, data, large)
    session.task = asyncio.get_running_loop().create_task(opening)


async def reserve(session: Session) -> None:
    """Give the session a link of its own, for its next need, so that its id can be told.

    Raises UpstreamError.
    """
    if session.upstream_id is not None:
        return
    link = await session.clients.links.pin(session.key)
    if session.pin is None and session.reserved is None and not session.gone:
        session.reserved = link
        listen(session)
    else:
        session.clients.links.unpin(link, True)


def _pin(
    session: Session,
    link: PinnedLink,
    route: Route,
    arguments: list[bytes],
    data: bytes,
    large: LargeFrame | None,
) -> None:
    session.move(Event.PIN)
    session.pin = Pin(session, link)
    session.pin.large = large
    session.pin.forward(route, arguments, data)


async def _open(
    session: Session, route: Route, arguments: list[bytes], data: bytes, large: LargeFrame | None
) -> None:
    try:
        target = local.redirect_target(session, arguments)
        if target is not None:
            await reserve(target)
        link = await session.clients.links.pin(session.key)
    except UpstreamError as error:
        session.clients.links.connector.tally.unserved += 1
        session.task = None
        session.discarding = large if large is not None and not large.done else None
        if route is Route.TRANSACTION and session.buffer and session.state is State.WAITING:
            _refuse_transaction(session, error)
        else:
            session.resume(error.reply)
        return
    session.task = None
    if session.state is not State.WAITING:
        session.clients.links.unpin(link, True)  # the session was killed meanwhile
        return
    _pin(session, link, route, arguments, data, large)
    session.consume()


def _refuse_transaction(session: Session, error: UpstreamError) -> None:
    """Refuse what the client has sent behind a MULTI or WATCH that failed: it must not run by itself."""
    session.write(error.reply)
    session.move(Event.PIN)
    session.pin = Pin(session, PinnedLink(session.clients.links.connector, session.key))
    session.move(Event.BREAK)
    session.consume()
