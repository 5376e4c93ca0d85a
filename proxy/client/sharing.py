"""Stateless commands on the shared links, one by one: which link, and what their replies mean for the
tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.client import reading
from proxy.client.dispatch import link_protocol
from proxy.client.whole import Aside, Whole
from proxy.resp.downgrade import Shape, shape_of
from proxy.tier.rules import Touch
from proxy.upstream.caller import PING

if TYPE_CHECKING:
    from proxy.client.session import Session


def share(session: Session, arguments: list[bytes], frame: bytes) -> bool:
    """Send a command over a shared link, or answer it from memory; False: not before what is pending is
    done."""
    tier = session.clients.tier
    if tier is None or session.home.auth_required:
        session.submit(1, frame)
        return True
    command = session.clients.dispatcher.find(arguments)
    touch, keys = tier.rules.touch(command, arguments)
    if touch is Touch.READS and command is not None and reading.read(session, command, frame):
        return True
    shape = shape_of(command, arguments) if command is not None else None
    if link_protocol(shape, session.protocol, True) == 3:
        if session.link is not session.home:
            session.ready()
            return False
    elif not session.step_aside():
        return False
    if touch is Touch.WRITES:
        tier.drop(keys)
    elif touch is Touch.EVERYTHING:
        tier.clear()
    elif touch is Touch.READS_UNKNOWN and (tier.loose or session.link is not session.home):
        touch = Touch.UNKNOWN
    if touch in (Touch.UNKNOWN, Touch.EVERYTHING):
        _apart(session, frame, shape, touch)
        return True
    revealing = touch is Touch.WRITES or tier.loose or session.link is not session.home
    revealed = keys if revealing else None
    if session.link is session.home and session.protocol == 2 and shape is not Shape.PLAIN:
        session.commands += 1
        session.expect(1)
        session.link.submit(Whole(session, 1, shape, Touch.NOTHING), 1, frame, revealed)
    else:
        session.submit(1, frame, revealed)
    return True


def _apart(session: Session, frame: bytes, shape: Shape | None, touch: Touch) -> None:
    """Send a command of which nobody can tell which keys it changes.

    Its reply waits for the invalidations that it causes. On the tracked link these come before the reply to
    a PING sent behind it. On another link, the PING is sent when the reply has come.
    """
    session.commands += 1
    session.expect(1)
    if session.link is session.home:
        wide = session.clients.links.tracked > 1
        session.link.submit(Whole(session, 2, shape, touch, wide), 2, frame + PING)
        if wide:
            session.ready()  # nothing may overtake the reply while it waits for the other links
    else:
        session.link.submit(Aside(session, 1, None, touch), 1, frame)
        session.ready()
