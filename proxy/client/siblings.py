"""Commands that concern all workers: who gets one asks its siblings, and puts their replies together.

With `workers` above 1 a client is connected to one of several processes, each with a memory of its own. What
empties memory, SIDECAR FLUSH and INVALIDATE, is done in all of them before it is answered; what shows figures
shows those of all. A sibling is asked over its private socket with the client's own words, and answers on
behalf of a stand-in: somebody with the client's user, space and database, who has no connection.

A sibling that is not running keeps nothing and knows nothing. One that runs but does not answer in time makes
an error of what has to be done everywhere, and is left out of figures.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import hiredis

from proxy.client import combining
from proxy.client.dispatch import link_protocol
from proxy.client.work import Work
from proxy.resp import encode
from proxy.resp.downgrade import Shape
from proxy.upstream.link import Identity, LinkKey

if TYPE_CHECKING:
    from proxy.client.clients import Clients
    from proxy.client.session import Session
    from proxy.client.spaces import Space
    from proxy.upstream.shared import SharedLink

PATIENCE = 5.0
"""Seconds that a sibling may take for what is quick."""
_EVER = 86400.0
"""Seconds that it may take for what lasts as long as there is much to do."""

Answer = bytes | Coroutine[None, None, bytes]


class Crew(Protocol):
    """The workers, as one of them sees them."""

    number: int
    """Which one it is, from 1."""
    of: int
    """How many there are to be."""

    async def ask(
        self, about: Mapping[str, Any], request: bytes, patience: float
    ) -> dict[int, bytes | None]:
        """What the siblings that run reply to a request, by their number; None: nothing in time."""


class StandIn:
    """Somebody with a client's rights, for whom a sibling of its worker answers. Passes for a session."""

    def __init__(self, clients: Clients, about: Mapping[str, Any], link: SharedLink, space: Space) -> None:
        self.clients = clients
        self.space = space
        self.identity = _identity(about)
        self.database = int(about["database"])
        self.protocol = int(about["protocol"])
        self.link = self.home = link
        self.work: Work | None = None


@contextlib.asynccontextmanager
async def stand_in(clients: Clients, about: Mapping[str, Any]) -> AsyncIterator[Session]:
    """A stand-in for who is described, as `described` does. Raises KeyError if there is no such space."""
    space = clients.spaces.find(about["space"])
    if space.name != about["space"]:
        raise KeyError(about["space"])
    protocol = link_protocol(Shape.PLAIN, int(about["protocol"]), clients.tier is not None)
    link = clients.links.attach(LinkKey(_identity(about), int(about["database"]), protocol, space.name))
    try:
        yield cast("Session", StandIn(clients, about, link, space))
    finally:
        clients.links.detach(link)


def described(session: Session) -> dict[str, Any]:
    """What a stand-in for a session is made of."""
    user, password = session.identity
    return {
        "space": session.space.name,
        "user": _packed(user),
        "password": _packed(password),
        "database": session.database,
        "protocol": session.protocol,
    }


def stands_in(session: Session) -> bool:
    """Whether it is somebody else's client."""
    return isinstance(session, StandIn)


def alone(session: Session) -> bool:
    """Whether a command concerns nobody but this process: there is no other, or another one has asked."""
    return session.clients.crew is None or stands_in(session)


def own_link(session: Session) -> SharedLink | None:
    """The link behind whose commands other Panniers are told; None: the worker that asks tells them."""
    return None if stands_in(session) else session.link


async def ask(
    session: Session, arguments: Sequence[bytes], patience: float = PATIENCE
) -> dict[int, bytes | None]:
    """What the siblings reply to a command of a session's."""
    crew = session.clients.crew
    if crew is None:
        return {}
    return await crew.ask(described(session), encode.request(*arguments), patience)


# --- SIDECAR


@dataclass(frozen=True, slots=True)
class Joint:
    """How a subcommand is answered by all. `combine`: of their replies by worker, one's own first."""

    combine: Callable[[Sequence[bytes], dict[int, Any]], object]
    needed: bool = False
    """Whether each that runs has to have answered."""
    lasting: bool = False
    """Whether it may take any time; then all go about it at once."""
    absent: Mapping[str, str] | None = None
    """What stands for the reply of one that is not running or does not answer."""
    widen: Callable[[Sequence[bytes]], list[bytes]] = list
    """What is asked instead, given the arguments."""


def spread(
    session: Session, arguments: list[bytes], alone: Callable[[Session, list[bytes]], Answer]
) -> Answer:
    """Answer SIDECAR with `arguments` (behind that word) for all workers, if it concerns all.

    `alone` answers for this one.
    """
    joint = JOINT.get(arguments[0].lower().decode("ascii", "replace"))
    if joint is None:
        return alone(session, arguments)
    if joint.lasting:
        return _together(session, arguments, joint, alone(session, arguments))
    return _in_turn(session, arguments, joint, alone)


async def _together(session: Session, arguments: list[bytes], joint: Joint, own: Answer) -> bytes:
    asking = asyncio.create_task(ask(session, [b"SIDECAR", *arguments], _EVER))
    try:
        mine = own if isinstance(own, bytes) else await own
        return _combined(session, arguments, joint, mine, await asking)
    finally:
        asking.cancel()


async def _in_turn(
    session: Session,
    arguments: list[bytes],
    joint: Joint,
    alone: Callable[[Session, list[bytes]], Answer],
) -> bytes:
    """The siblings first: what others are told by us, they would hear before they count."""
    asked = joint.widen(arguments)
    long = [word.upper() for word in arguments[:2]] == [b"INVALIDATE", b"MATCH"]
    theirs = await ask(session, [b"SIDECAR", *asked], _EVER if long else PATIENCE)
    own = alone(session, asked)
    return _combined(session, arguments, joint, own if isinstance(own, bytes) else await own, theirs)


def _combined(
    session: Session, arguments: Sequence[bytes], joint: Joint, own: bytes, theirs: dict[int, bytes | None]
) -> bytes:
    crew = session.clients.crew
    if own.startswith(b"-") or crew is None:
        return own
    found = {crew.number: read(own)}
    for number, reply in theirs.items():
        if reply is None and joint.needed:
            return encode.error(
                f"ERR pannier: worker {number} has not answered in time, so it may not have done it yet; "
                "try again"
            )
        if reply is not None and reply.startswith(b"-"):
            if joint.needed:
                return b"-ERR pannier: worker %d: %b" % (number, reply[1:])
        elif reply is not None:
            found[number] = read(reply)
    if joint.absent is not None:
        for number in range(1, crew.of + 1):
            found.setdefault(number, joint.absent)
    return encode.value(joint.combine(arguments, found), session.protocol) if not _is_status(own) else own


def read(reply: bytes) -> Any:
    """A reply as Python has it."""
    reader = hiredis.Reader()
    reader.feed(reply)
    return reader.gets()


def _is_status(reply: bytes) -> bool:
    return reply.startswith(b"+")


def _packed(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _identity(about: Mapping[str, Any]) -> Identity:
    user, password = (about[name] for name in ("user", "password"))
    return Identity(
        None if user is None else base64.b64decode(user),
        None if password is None else base64.b64decode(password),
    )


JOINT: dict[str, Joint] = {
    "bigkeys": Joint(combining.big, widen=combining.more),
    "churn": Joint(combining.churning, widen=combining.more),
    "flush": Joint(combining.total, needed=True),
    "health": Joint(
        combining.health, absent={"ready": "no", "why": "is being started, or does not answer"}
    ),
    "hotkeys": Joint(combining.hot, widen=combining.more),
    "invalidate": Joint(combining.total, needed=True),
    "rules": Joint(combining.rules),
    "slowlog": Joint(combining.slowlog),
    "stats": Joint(combining.stats),
    "warm": Joint(combining.warmed, lasting=True),
}
"""Subcommands that concern all workers."""
