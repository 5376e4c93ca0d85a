"""Who asks something of a shared link, and hears the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from proxy.resp import encode
from proxy.resp.errors import UpstreamError

if TYPE_CHECKING:
    from proxy.upstream.shared import SharedLink

PING = encode.request("PING")

Keys = Sequence[int] | None
"""What stands for the keys of an entry in a link's FIFO, for whoever settles them."""

RUN: Keys = ()
"""Stands for keys that are to be found out at the reply, should they matter then."""


class Caller(Protocol):
    """Who submits runs: a client's session, a flight of the tier, a `Question` of the sidecar's own."""

    @property
    def relay(self) -> Callable[[bytes], object]:
        """Takes reply bytes, in order, as Redis sent them.

        Raises RuntimeError if uvloop has closed the client's transport and is about to say so.
        """

    pending: int
    """Replies still to come."""
    draining: bool
    """Whether `drained` is to be called when `pending` falls to 0."""

    def drained(self) -> None:
        """Hear that no reply is pending any more."""

    def cut(self) -> None:
        """Hear that a reply ended in the middle: what was relayed cannot be completed."""

    def owners(self) -> Collection[object]:
        """Whose replies these are: they must not change places with others of the same owner."""

    def hold_back(self, link: SharedLink) -> None:
        """Hear that Redis takes no more bytes for now; submit nothing until `go_on`."""

    def go_on(self) -> None:
        """Hear that Redis takes bytes again."""


def answer(caller: Caller, n: int, replies: bytes) -> None:
    """Answer `n` of a caller's requests with these bytes."""
    with contextlib.suppress(RuntimeError):  # see `Caller.relay`
        caller.relay(replies)
    caller.pending -= n
    if caller.draining and not caller.pending:
        caller.drained()


class StandIn:
    """Takes a caller's place in a link's FIFO for one entry, unnoticed by either, and hears when it is
    answered."""

    __slots__ = ("_n", "caller", "draining", "pending")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.pending = 0
        """Set by who submits."""
        self.draining = True
        self._n = 0

    def expect(self, n: int) -> StandIn:
        """Stand in for so many replies."""
        self.pending = self._n = n
        return self

    @property
    def relay(self) -> Callable[[bytes], object]:
        """The caller's own."""
        return self.caller.relay

    def ended(self) -> None:
        """Hear that all is answered."""
        raise NotImplementedError

    def drained(self) -> None:
        """Take the end of the last reply: what the link would have done to the caller itself."""
        self.ended()
        caller = self.caller
        caller.pending -= self._n
        if caller.draining and not caller.pending:
            caller.drained()

    def cut(self) -> None:
        """Tell the caller."""
        self.caller.cut()

    def owners(self) -> Collection[object]:
        """The caller's."""
        return self.caller.owners()

    def hold_back(self, link: SharedLink) -> None:
        """Tell the caller."""
        self.caller.hold_back(link)

    def go_on(self) -> None:
        """Tell the caller."""
        self.caller.go_on()


def tapped(
    link: SharedLink, send: Callable[..., None], stand_in: Callable[[Caller, bytes], Caller], times: int
) -> Callable[..., None]:
    """What to have a link submit by, so that others may stand in for the next so many callers; then by `send`
    again."""
    left = times

    def submit(caller: Caller, n: int, requests: bytes, keys: Keys = None) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            link.submit = send
        found = stand_in(caller, requests)
        send(found.expect(n) if isinstance(found, StandIn) else found, n, requests, keys)

    return submit


def itself(caller: Caller) -> Caller:
    """Who really asks."""
    while isinstance(caller, StandIn):
        caller = caller.caller
    return caller


class Collector:
    """Collects the replies to a few requests and hands them to `finish`, as one piece."""

    __slots__ = ("draining", "parts", "pending", "relay")
    for_client = False
    """Whether a client waits for it, who would get an error in its stead."""

    def __init__(self, n: int) -> None:
        self.parts: list[bytes] = []
        self.relay: Callable[[bytes], object] = self.parts.append
        self.pending = n
        self.draining = True

    def drained(self) -> None:
        """Take the end of the last reply."""
        self.finish(b"".join(self.parts))

    def finish(self, replies: bytes) -> None:
        """Take the replies."""
        raise NotImplementedError

    def cut(self) -> None:
        """Take the loss of the connection in the middle of a reply."""
        raise NotImplementedError

    def owners(self) -> Collection[object]:
        """Nobody but this."""
        return (self,)

    def hold_back(self, link: SharedLink) -> None:
        """Nothing more to submit."""

    def go_on(self) -> None:
        """Nothing waits."""


class Hearing(Collector):
    """Hands the raw bytes of one reply to a function; nobody hears of it if the connection is lost."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[bytes], object]) -> None:
        super().__init__(1)
        self._then = then

    def finish(self, replies: bytes) -> None:
        """Hand it on."""
        self._then(replies)

    def cut(self) -> None:
        """Nothing."""


class Question(Collector):
    """A request of the sidecar's own (or `n`, at once), answered with the raw bytes of the reply."""

    __slots__ = ("_answer", "_n")

    def __init__(self, n: int = 1) -> None:
        super().__init__(n)
        self._n = n
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def ask(self, link: SharedLink, request: bytes, keys: Keys = None) -> bytes:
        """Send `request`; the reply's bytes, or the error frame a client would get.

        `keys` as for `SharedLink.submit`. Raises UpstreamError if the reply breaks off.
        """
        link.submit(self, self._n, request, keys)
        return await self._answer

    def finish(self, replies: bytes) -> None:
        """Hand the reply to who awaits it."""
        if not self._answer.done():
            self._answer.set_result(replies)

    def cut(self) -> None:
        """Tell who awaits the reply that it broke off."""
        if not self._answer.done():
            self._answer.set_exception(UpstreamError("ERR pannier: upstream's reply broke off"))


class Ping(Collector):
    """A PING whose answer calls a function, whatever it is: everything Redis sent before has been seen."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__(1)
        self._then = then

    def finish(self, replies: bytes) -> None:
        """Go on."""
        self._then()

    def cut(self) -> None:
        """Go on: the link is lost, and what it vouched for is gone."""
        self._then()
