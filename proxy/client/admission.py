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
_ALL_LIMIT = 4 * _WHOLE_LIMIT
"""Bytes of all commands that are being waited for."""


_SHAPING = frozenset({Route.TRANSACTION, Route.STATE, Route.PROBE, Route.TUNNEL})


def spent(session: Session) -> bool:
    """Whether the tenant has done all it may for now."""
    return session.meter is not None and not session.meter.left


def waits(session: Session, arguments: list[bytes]) -> bool:
    """Have the client wait, if the tenant has done all it may for now and the command is one on which it
    depends what later ones do.

    Without its MULTI, WATCH or SELECT what has been sent behind it would be carried out all the same, as
    something else than was meant.
    """
    if session.meter is None or session.meter.left:
        return False
    dispatcher = session.clients.dispatcher
    shaping = dispatcher.route(arguments) in _SHAPING or dispatcher.name(arguments) == "select"
    bypass = [argument.lower() for argument in arguments[:2]] == [b"sidecar", b"bypass"]
    if shaping or bypass:
        session.meter.wait()
    return shaping or bypass


def pauses(session: Session) -> bool:
    """Have the client wait, whatever it says, if the tenant has done all it may for now.

    On a link of the client's own an error of the sidecar's might stand in the wrong place.
    """
    if session.meter is None or session.meter.left:
        return False
    session.meter.wait()
    return True


def refusal(session: Session, route: Route, arguments: list[bytes]) -> bytes:
    """The error for a command that is not to be carried out; empty if it is."""
    space, dispatcher = session.space, session.clients.dispatcher
    if space.guarded and dispatcher.disguised(arguments):
        return local.DISGUISED
    if space.locked or spent(session):
        if dispatcher.name(arguments) in local.WITHOUT_AUTH:
            return b""
        return local.NOAUTH if space.locked else space.say_over()
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


class Arrival:
    """A large command of which all has to be here: its bytes so far, stepped over but for a `tail`."""

    __slots__ = ("_frame", "_parts", "_tail", "size")

    def __init__(self, frame: LargeFrame, begun: bytes, tail: bytes) -> None:
        self._frame = frame
        self._parts = [begun]
        self._tail = tail
        self.size = len(begun) + len(tail)

    def take(self, data: bytes) -> bool:
        """Take more bytes; whether the command is complete."""
        self.size += len(data)
        data = self._tail + data
        end = self._frame.advance(data, 0)
        self._parts.append(data[:end])
        self._tail = data[end:]
        return self._frame.done

    def all(self) -> bytes:
        """The command, and what came behind it."""
        return b"".join(self._parts) + self._tail


def wait_for_all(session: Session, frame: LargeFrame, buf: bytes, pos: int, end: int) -> int:
    """Wait for all of a large command, of which the bytes from `pos` to `end` were stepped over; takes all
    there is. Raises ProtocolError if too much is being waited for."""
    session.arriving = Arrival(frame, buf[pos:end], buf[end:])
    session.clients.arriving += session.arriving.size
    _bound(session, session.arriving)
    return len(buf)


def arrive(session: Session, data: bytes) -> bytes:
    """Take bytes for the large command that is waited for; all of it once it is complete.

    Raises ProtocolError if too much is being waited for.
    """
    arrival = session.arriving
    if arrival is None:
        return data
    session.clients.arriving += len(data)
    if not arrival.take(data):
        _bound(session, arrival)
        return b""
    give_up(session)
    return arrival.all()


def give_up(session: Session) -> None:
    """Wait for the large command no more."""
    if session.arriving is not None:
        session.clients.arriving -= session.arriving.size
        session.arriving = None


def _bound(session: Session, arrival: Arrival) -> None:
    if arrival.size > _WHOLE_LIMIT:
        raise ProtocolError("too big a request for its keys to be found")
    if session.clients.arriving > _ALL_LIMIT:
        raise ProtocolError("too many big requests whose keys have to be found")


def judge_large(session: Session, arguments: list[bytes], frame: LargeFrame) -> bytes | None:
    """The error for a large command that is not to be carried out, empty if it is; None: wait for all of it.

    `arguments` are those of its leading ones that are complete.
    """
    if spent(session):
        return session.space.say_over()
    try:
        command = session.clients.dispatcher.find(arguments)
        if session.space.leading(command, arguments, frame.count) is None:
            return None
    except RefusedHere as refused:
        return refused.reply
    return b""
