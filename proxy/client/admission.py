"""What the sidecar refuses by itself, and large commands of which it has to know more first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.client import local
from proxy.client.dispatch import Route
from proxy.resp.errors import ProtocolError
from proxy.resp.namespace import RefusedHere
from proxy.resp.requests import LargeFrame

if TYPE_CHECKING:
    from proxy.client.session import Session

_WHOLE_LIMIT = 64 * 1024 * 1024
"""Longest command, in bytes, that is waited for as a whole because its keys may stand anywhere in it."""


def spent(session: Session) -> bool:
    """Whether the tenant has done all it may for now."""
    bucket = session.space.bucket
    return bucket is not None and bucket.empty


def refusal(session: Session, route: Route, arguments: list[bytes]) -> bytes:
    """The error for a command that is not to be carried out; empty if it is."""
    space, dispatcher = session.space, session.clients.dispatcher
    if dispatcher.disguised(arguments):
        return local.DISGUISED
    if space.locked or spent(session):
        if dispatcher.name(arguments) in local.WITHOUT_AUTH:
            return b""
        return local.NOAUTH if space.locked else space.over
    if space.namespace is None or route in (Route.SHARED, Route.LOCAL):
        return b""  # if it is refused, it is where it is sent
    try:
        space.translate(dispatcher.find(arguments), arguments)
    except RefusedHere as refused:
        return refused.reply
    return b""


def refuse(session: Session, reply: bytes) -> bool:
    """Answer with an error of the sidecar's own, once all earlier replies have come; False: not yet."""
    if not session.ready():
        return False
    if reply is session.space.over:
        session.space.refused += 1
    else:
        session.commands += 1
    session.write(reply)
    return True


def arrived(session: Session, buf: bytes, pos: int) -> bool:
    """Whether the large command that is waited for, if any, is there as a whole.

    Raises ProtocolError if it is too large to be waited for.
    """
    if session.arriving is None:
        return True
    frame, stepped = session.arriving
    end = frame.advance(buf, pos + stepped)
    session.arriving = None if frame.done else (frame, end - pos)
    if session.arriving is not None and len(buf) - pos > _WHOLE_LIMIT:
        raise ProtocolError("too big a request for its keys to be found")
    return frame.done


def judge_large(session: Session, arguments: list[bytes], frame: LargeFrame, stepped: int) -> bytes | None:
    """The error for a large command that is not to be carried out, empty if it is; None: wait for all of it.

    `arguments` are those of its leading ones that are complete, `stepped` how many of its bytes are here.
    """
    if spent(session):
        return session.space.over
    try:
        command = session.clients.dispatcher.find(arguments)
        if session.space.leading(command, arguments, frame.count) is None:
            session.arriving = (frame, stepped)
            return None
    except RefusedHere as refused:
        return refused.reply
    return b""
