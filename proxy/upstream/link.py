"""What every connection to Redis has in common: address, identity, handshake.

A link is an asyncio protocol. `open_link` connects it and runs the handshake — HELLO with credentials, then
SELECT — before the link's own use begins: until then received bytes feed a hiredis reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import hiredis

from proxy.events import without_arguments
from proxy.resp import encode
from proxy.resp.errors import UpstreamLost, UpstreamRefused
from proxy.upstream.address import Upstream
from proxy.upstream.sockets import set_keepalive
from proxy.upstream.tally import Tally
from proxy.upstream.tls import TLS_FIRST, explain, tls_context
from proxy.upstream.watch import Watch

LINK_NAME = b"pannier"


class Identity(NamedTuple):
    """Credentials a link authenticates with; both None: Redis' default user without a password."""

    user: bytes | None = None
    password: bytes | None = None

    def arguments(self) -> list[bytes]:
        """The arguments of AUTH for this identity; empty if there is nothing to say."""
        if self.password is None:
            return []
        return [self.password] if self.user is None else [self.user, self.password]


class LinkKey(NamedTuple):
    """What makes two links interchangeable."""

    identity: Identity
    database: int
    protocol: int
    space: str = ""
    """Whose a shared link is (see `client.spaces`), if it matters."""


@dataclass(frozen=True, slots=True)
class Connector:
    """How to reach Redis. `timeout` bounds connecting and the handshake together, in seconds."""

    upstream: Upstream
    timeout: float
    keepalive: float
    tally: Tally = field(default_factory=Tally, compare=False)
    watch: Watch = field(default_factory=Watch, compare=False)

    def lost(self, why: str) -> UpstreamLost:
        """The error for a connection that cannot be made or broke."""
        return UpstreamLost(f"ERR pannier: upstream {self.upstream.redacted} {why}")


class Link:
    """A connection to Redis, from connecting to the end of its handshake.

    Subclasses take the bytes from then on in `received`, and hear of the end in `lost`.

    An `asyncio.Protocol` in all but its bases, like `client.session.Session`.
    """

    def __init__(self, connector: Connector, key: LinkKey) -> None:
        self.connector = connector
        self.key = key
        self.name = LINK_NAME
        """What Redis calls the connection in CLIENT LIST."""
        self.transport: asyncio.Transport | None = None
        self._reads = True
        self.falls_back = False
        """Whether to go on in RESP2 where the server does not speak RESP3."""
        # What the handshake found out.
        self.hello: dict[bytes, Any] = {}
        """Redis' answer to HELLO, as a map; empty if it did not answer."""
        self.refusal = ""
        """Redis' error to HELLO where it wants credentials that we do not have; it then answers every
        command with NOAUTH by itself."""
        self.protocol = key.protocol
        """What the connection speaks in the end."""
        self.no_resp3 = ""
        """Redis' error to HELLO 3, if we fell back to RESP2."""
        # The handshake under way.
        self._reader: hiredis.Reader | None = hiredis.Reader(replyError=_ErrorReply)
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._unheard = True
        """Whether nothing has come yet."""

    # --- asyncio callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport; called once by the loop."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes: the handshake's answers first, then whatever `received` makes of them."""
        if self._reader is None:
            self.received(data)
            return
        self._unheard = False
        if data.startswith(TLS_FIRST):
            why = "speaks TLS there; write rediss:// instead of redis://"
            self._answers.put_nowait(self.connector.lost(why))
            self.close()
            return
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._answers.put_nowait(answer)
        except hiredis.ProtocolError as error:
            self._answers.put_nowait(self.connector.lost(f"does not speak RESP ({error})"))
            self.close()

    def eof_received(self) -> None:
        """Have the connection closed: Redis closes both ways at once."""

    def pause_writing(self) -> None:
        """Hear that Redis does not keep up."""

    def resume_writing(self) -> None:
        """Hear that it does again."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the connection ended."""
        if self._reader is not None:
            why = f"closed the connection ({exc})" if exc else "closed the connection during the handshake"
            upstream = self.connector.upstream
            if self._unheard and upstream.path is None and not upstream.tls:
                why += "; if it speaks TLS there, write rediss://"
            why = explain(exc, upstream) or why
            self._answers.put_nowait(self.connector.lost(why))
        self.lost(exc)

    # --- for subclasses

    def received(self, data: bytes) -> None:
        """Take bytes that came after the handshake."""
        raise NotImplementedError

    def lost(self, exc: Exception | None) -> None:
        """Hear that the connection ended, in the handshake or later."""

    def limit(self, high: int) -> None:
        """Have `pause_writing` called above `high` unsent bytes."""
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=high)

    def read(self, reads: bool) -> None:
        """Go on reading what Redis sends, or stop: who takes it does not keep up."""
        if self.transport is None or self.transport.is_closing() or reads == self._reads:
            return
        self._reads = reads
        if reads:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def send(self, data: bytes) -> None:
        """Send bytes, unless the connection is being closed: `lost` then takes care of what was asked."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Drop the connection now."""
        if self.transport is not None:
            self.transport.abort()

    # --- the handshake

    async def handshake(self, credentials: list[bytes] | None) -> None:
        """Say HELLO, authenticate, select the database. Raises UpstreamRefused or UpstreamLost.

        With `credentials`, first AUTH with just these arguments, so that Redis judges a client's own words.
        """
        identity, database, protocol, _ = self.key
        if credentials is not None:
            answer = await self._ask("AUTH", *credentials)
            if isinstance(answer, _ErrorReply):
                raise UpstreamRefused(str(answer))
        hello: list[bytes | str | int] = ["HELLO", protocol]
        if identity.password is not None and credentials is None:
            hello += ["AUTH", identity.user or b"default", identity.password]
        if self.name:
            hello += ["SETNAME", self.name]
        answer = await self._ask(*hello)
        if isinstance(answer, _ErrorReply):
            await self._without_hello(answer)
        else:
            self.hello = self._as_map(answer)
        if database:
            answer = await self._ask("SELECT", database)
            if isinstance(answer, _ErrorReply) and answer.code != "NOAUTH":
                raise UpstreamRefused(str(answer))
        self._reader = None

    async def _without_hello(self, refusal: _ErrorReply) -> None:
        """Go on in RESP2 with a server that does not know HELLO, or does not let us say it."""
        if self.protocol == 3 and self.falls_back:
            self.protocol, self.no_resp3 = 2, str(refusal)
        if self.protocol == 2 and refusal.code == "NOAUTH":
            self.refusal = str(refusal)
            return
        unknown = refusal.code in ("ERR", "NOPERM", "NOPROTO")
        if self.protocol == 3 or not unknown or "max number" in refusal.args[0]:
            raise UpstreamRefused(str(refusal))
        if credentials := self.key.identity.arguments():
            answer = await self._ask("AUTH", *credentials)
            if isinstance(answer, _ErrorReply):
                raise UpstreamRefused(str(answer))
            return
        answer = await self._ask("PING")
        if isinstance(answer, _ErrorReply) and answer.code == "NOAUTH":
            self.refusal = str(answer)

    def _as_map(self, answer: object) -> dict[bytes, Any]:
        if isinstance(answer, list) and len(answer) % 2 == 0:
            return dict(zip(answer[::2], answer[1::2], strict=True))
        if isinstance(answer, dict):
            return answer
        raise self.connector.lost(f"answers HELLO with {str(answer)[:40]!r}: that is no Redis")

    async def _ask(self, *arguments: bytes | str | int) -> Any:
        if self.transport is None or self.transport.is_closing():
            if self._answers.empty():
                raise self.connector.lost("closed the connection during the handshake")
        else:
            self.transport.write(encode.request(*arguments))
        answer = await self._answers.get()
        if isinstance(answer, UpstreamLost):
            raise answer
        return answer


class _ErrorReply(Exception):
    """An error reply met by hiredis, kept as a value; without what it quotes, which may be a password."""

    def __init__(self, text: str) -> None:
        super().__init__(without_arguments(text))

    @property
    def code(self) -> str:
        """The first word: ERR, NOAUTH, WRONGPASS …"""
        return str(self).partition(" ")[0]


AnyLink = TypeVar("AnyLink", bound=Link)


async def open_link(
    make: Callable[[], AnyLink], connector: Connector, credentials: list[bytes] | None = None
) -> AnyLink:
    """Connect a link and run its handshake (see there for `credentials`).

    Raises UpstreamRefused or UpstreamLost, and leaves nothing open then.
    """
    link = make()
    try:
        async with asyncio.timeout(connector.timeout):
            await _connect(link, connector)
            await link.handshake(credentials)
    except TimeoutError:
        link.close()
        silent = "; does it speak TLS there?" if connector.upstream.tls and link.transport is None else ""
        raise connector.lost(f"did not answer within {connector.timeout:g} s{silent}") from None
    except OSError as error:
        link.close()
        why = explain(error, connector.upstream) or f"is unreachable: {error.strerror or error}"
        raise connector.lost(why) from None
    except BaseException:
        link.close()
        raise
    return link


async def _connect(link: Link, connector: Connector) -> None:
    loop = asyncio.get_running_loop()
    upstream = connector.upstream
    protocol = cast(asyncio.Protocol, link)
    if upstream.path is not None:
        await loop.create_unix_connection(lambda: protocol, upstream.path)
        return
    if upstream.tls:
        context, name = tls_context(upstream), upstream.tls_name
        await loop.create_connection(
            lambda: protocol, upstream.host, upstream.port, ssl=context, server_hostname=name
        )
    else:
        await loop.create_connection(lambda: protocol, upstream.host, upstream.port)
    if link.transport is not None:
        set_keepalive(link.transport, connector.keepalive)
