"""Stateless commands on the shared links, one by one: which link, and what their replies mean for the
tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.client import admission, homes, outage, reading
from proxy.client.dispatch import link_protocol
from proxy.client.whole import Aside, Whole
from proxy.resp import encode
from proxy.resp.commands import Command
from proxy.resp.downgrade import Shape, shape_of
from proxy.resp.namespace import RefusedHere, Strip
from proxy.tier.rules import Touch, key_name
from proxy.upstream.caller import PING, Keys

if TYPE_CHECKING:
    from proxy.client.session import Session


def share(session: Session, arguments: list[bytes], frame: bytes) -> bool:
    """Send a command over a shared link, or answer it from memory; False: not before what is pending is
    done."""
    tier, space = session.clients.tier, session.space
    command = session.clients.dispatcher.find(arguments)
    real, strip = arguments, None
    if space.translates:
        try:
            real, strip = space.translate(command, arguments)
        except RefusedHere as refusal:
            return admission.refuse(session, refusal.reply)
        space.examine(command, session.home)
    if tier is None or session.home.auth_required:
        _count(session, command, arguments)
        _pass_on(session, command, real, encode.request(*real) if real is not arguments else frame, strip)
        return True
    touch, keys = space.rules.touch(command, real)
    if touch is Touch.READS and command is not None and reading.read(session, command, frame):
        return True
    if session.link.refusing and not session.pending:
        outage.refuse(session, arguments, frame)
        return True
    if real is not arguments:
        frame = encode.request(*real)
    shape = shape_of(command, arguments) if command is not None else None
    if link_protocol(shape, session.protocol, True) == 3:
        if session.link is not session.home:
            session.ready()
            return False
    elif not homes.step_aside(session):
        return False
    _count(session, command, arguments)
    if touch is Touch.WRITES:
        tier.drop(keys, space.prefix)
        _tell(session, command, real)
    elif touch is Touch.EVERYTHING:
        tier.clear()
    elif touch is Touch.READS_UNKNOWN and (tier.loose or session.link is not session.home):
        touch = Touch.UNKNOWN
    if touch in (Touch.UNKNOWN, Touch.EVERYTHING):
        _apart(session, frame, shape, touch, strip)
        return True
    revealing = touch is Touch.WRITES or tier.loose or session.link is not session.home
    revealed = keys if revealing else None
    if session.link is not session.home or session.protocol == 3 or shape is Shape.PLAIN:
        shape = None if session.link is not session.home else shape
        _submit(session, frame, shape, revealed, strip)
    else:
        _collect(session, frame, shape, revealed, strip)
    return True


def _count(session: Session, command: Command | None, arguments: list[bytes]) -> None:
    """Count a command that is sent on."""
    if command is not None:
        session.space.writes.command(command.name, arguments)


def _pass_on(
    session: Session, command: Command | None, real: list[bytes], frame: bytes, strip: Strip | None
) -> None:
    """Send a command where nothing is kept in memory; others may have to forget what it changes."""
    clients = session.clients
    if clients.bus is None or session.space.rules.touch(command, real)[0] is not Touch.EVERYTHING:
        _submit(session, frame, None, None, strip)
        return
    session.commands += 1
    session.expect(1)
    session.link.submit(Whole(session, 1, None, Touch.EVERYTHING, strip=strip), 1, frame)


def _tell(session: Session, command: Command | None, real: list[bytes]) -> None:
    """Have other sidecars forget what a command writes, behind it on its link."""
    if session.clients.tells_writes and command is not None:
        frames = session.space.rules.keys(command, real) or ()
        session.clients.tell(session, "write", map(key_name, frames))


def _submit(session: Session, frame: bytes, shape: Shape | None, revealed: Keys, strip: Strip | None) -> None:
    """Send a command whose reply is relayed as it comes, unless something has to be stripped from it."""
    if strip is None:
        session.submit(1, frame, revealed)
    else:
        _collect(session, frame, shape, revealed, strip)


def _collect(
    session: Session, frame: bytes, shape: Shape | None, revealed: Keys, strip: Strip | None
) -> None:
    """Send a command whose reply is passed on only as a whole."""
    session.commands += 1
    session.expect(1)
    session.link.submit(Whole(session, 1, shape, Touch.NOTHING, strip=strip), 1, frame, revealed)


def _apart(session: Session, frame: bytes, shape: Shape | None, touch: Touch, strip: Strip | None) -> None:
    """Send a command of which nobody can tell which keys it changes.

    Its reply waits for the invalidations that it causes. On the tracked link these come before the reply to
    a PING sent behind it. On another link, the PING is sent when the reply has come.
    """
    session.commands += 1
    session.expect(1)
    if session.link is session.home:
        wide = len(session.clients.links.tracked(session.space.prefix)) > 1
        session.link.submit(Whole(session, 2, shape, touch, wide, strip), 2, frame + PING)
        if wide:
            session.ready()  # nothing may overtake the reply while it waits for the other links
    else:
        session.link.submit(Aside(session, 1, None, touch, strip=strip), 1, frame)
        session.ready()
