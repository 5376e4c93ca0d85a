"""Replies that are collected before they are passed on: to change their shape, or to wait for
invalidations."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from proxy.resp import encode
from proxy.resp.downgrade import Shape, downgrade
from proxy.resp.namespace import Strip
from proxy.tier.rules import Touch
from proxy.upstream.caller import PING, Collector

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.upstream.shared import SharedLink


BROKEN_OFF = encode.error(
    "ERR pannier: upstream connection broke in the middle of a reply; outcome unknown: "
    "the command may or may not have been carried out"
)


class ForClient(Collector):
    """Replies collected on behalf of one client, whose order and pauses are that client's."""

    __slots__ = ("_session",)
    for_client = True

    def __init__(self, session: Session, n: int) -> None:
        super().__init__(n)
        self._session = session

    @property
    def session(self) -> Session:
        """The client."""
        return self._session

    def asked(self, requests: bytes) -> tuple[bytes, bool]:
        """What the client asked, given the requests that were sent; whether keys are as Redis knows them."""
        return requests, True

    def owners(self) -> Collection[object]:
        """The client."""
        return (self._session,)

    def hold_back(self, link: SharedLink) -> None:
        """Have the client wait."""
        self._session.hold_back(link)

    def go_on(self) -> None:
        """Let the client go on."""
        self._session.go_on()


class Whole(ForClient):
    """A reply that can be passed on only as a whole, in the client's protocol."""

    __slots__ = ("_fenced", "_shape", "_strip", "_touch", "_wide")

    def __init__(
        self,
        session: Session,
        n: int,
        shape: Shape | None,
        touch: Touch,
        wide: bool = False,
        strip: Strip | None = None,
    ) -> None:
        super().__init__(session, n)
        self._shape = shape
        self._touch = touch
        self._fenced = n == 2
        """Whether the last reply is that to a PING."""
        self._strip = strip
        """What takes the namespace out of the reply."""
        self._wide = wide
        """Whether other links may have to tell what the reply reveals."""

    def asked(self, requests: bytes) -> tuple[bytes, bool]:
        """The request without the PING behind it."""
        return requests.removesuffix(PING) if self._fenced else requests, True

    def finish(self, replies: bytes) -> None:
        """Make the reply what the client expects, and pass it on."""
        session = self._session
        if self._fenced:
            replies = replies[: replies.rfind(b"\r\n", 0, -2) + 2]
        tier = session.clients.tier
        if self._touch is Touch.EVERYTHING:
            if tier is not None:
                tier.clear()
            session.clients.tell(session, "everything", everything=True)
        elif tier is not None and self._touch is Touch.UNKNOWN and tier.loose:
            tier.clear(session.space.prefix)
            if session.clients.tells_writes:
                session.clients.tell(session, "script", everything=True)
        wire = session.home.wire
        if session.protocol != 3 and self._shape is not None and (wire is None or wire.protocol == 3):
            replies = downgrade(replies, self._shape)
        if self._strip is not None:
            replies = self._strip(replies)
        self.hand_on(replies)

    def hand_on(self, reply: bytes) -> None:
        """Give the client its reply; if it may reveal changes, once every other link has told them, too."""
        session, tier = self._session, self._session.clients.tier
        prefix = session.space.prefix
        if self._wide:
            session.clients.links.fence(lambda: session.take(reply), prefix)
            return
        if self._fenced and tier is not None and len(session.clients.links.tracked(prefix)) > 1:
            tier.clear(prefix)  # another link has come meanwhile, and the session does not wait
        session.take(reply)

    def cut(self) -> None:
        """Answer that the reply broke off: nothing of it has been passed on."""
        self._session.take(BROKEN_OFF)


class Aside(Whole):
    """A reply that came over another link than the tracked one."""

    __slots__ = ()

    def hand_on(self, reply: bytes) -> None:
        """Give the client its reply once the tracked links have told all that led to it."""
        session = self._session
        session.clients.links.fence(lambda: session.take(reply), session.space.prefix)
