"""Where a session is at home: its key space, and the shared links that serve it.

A session has a home, the tracked link of its identity, database and space, and for a while beside it one of
its own protocol, for commands whose replies cannot be translated. Going over is possible only while nothing
is pending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from proxy.client.meter import limit
from proxy.tier.shelf import EmptyShelf, Shelf
from proxy.upstream.link import Identity, LinkKey

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.client.spaces import Space
    from proxy.upstream.shared import SharedLink

NO_SHELF: Shelf = EmptyShelf()
"""The shelf of sessions that none may answer."""


def settle_in(session: Session, link: SharedLink) -> None:
    """Be at home on a link, already attached."""
    session.home = session.link = link
    keeper = link.tracking.keeper if link.tracking is not None and not session.bypass else NO_SHELF
    session.shelf = cast(Shelf, keeper)
    session.table.users -= 1
    session.table = session.shelf.table(session.protocol)
    session.table.users += 1
    session.find = session.table.find
    session.skip_chunks = 0
    if not session.gone:
        session.relay = session.lower if link.key.protocol != session.protocol else session.write


def adopt(
    session: Session, space: Space, identity: Identity, database: int, protocol: int, link: SharedLink
) -> None:
    """Go over to another home, already attached. Raises UpstreamRefused if `space` is full."""
    _enter(session, space)
    session.identity, session.database, session.protocol = identity, database, protocol
    leave_side(session)
    session.clients.links.detach(session.home)
    settle_in(session, link)


def reset(session: Session) -> None:
    """Set the session back to how it began (Redis docs: RESET)."""
    session.name = b""
    session.info = None
    session.bypass = False
    session.space.bypass(session, False)
    start = LinkKey(session.clients.identity, session.clients.database, 2)
    if start != session.key or session.space is not session.origin:
        _enter(session, session.origin)
        session.identity, session.database, session.protocol, _ = start
        old = session.home
        leave_side(session)
        settle_in(session, session.clients.links.attach(session.home_key))
        session.clients.links.detach(old)


def set_bypass(session: Session, bypass: bool) -> None:
    """Have reads answered by Redis from now on, or by the tier again."""
    session.bypass = bypass
    session.space.bypass(session, bypass)
    settle_in(session, session.home)


def step_aside(session: Session) -> bool:
    """Use the untracked link of the client's own protocol for the next commands; False: not yet."""
    if session.link is session.home:
        if not session.ready():
            return False
        session.link = session.clients.links.attach(session.key)
        session.relay = session.write
        session.relaying = False
    return True


def leave_side(session: Session) -> None:
    """Go back to the tracked link; nothing is pending."""
    if session.link is not session.home:
        session.clients.links.detach(session.link)
        settle_in(session, session.home)


def _enter(session: Session, space: Space) -> None:
    if space is not session.space:
        space.enter(session)
        session.space.leave(session)
        session.space = space
        session.use_patterns()
        limit(session)
