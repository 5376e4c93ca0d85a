"""A session and a scripted Redis joined in memory: no socket, no sleep, the clock in the test's hand.

`ScriptedRedis` takes the place of connecting: each connection a link makes lands in `connections`, its
handshake answered. What is sent over it is noted in `sent`; replies come from the test (`reply`) or, with
`answer` set, from a function of the request. `Linked` joins it with a `Clients` whose sessions are fed bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from proxy.client.clients import Clients
from proxy.client.dispatch import Dispatcher
from proxy.client.session import Session
from proxy.client.spaces import Space
from proxy.resp import encode
from proxy.resp.commands import CommandTable
from proxy.resp.requests import RequestParser
from proxy.settings import Settings
from proxy.upstream import link as link_module
from proxy.upstream.address import Listen, Upstream
from proxy.upstream.link import Connector, Identity, Link
from proxy.upstream.pacing import Pacer
from proxy.upstream.pool import LinkPool

TABLE = CommandTable.load()
DISPATCHER = Dispatcher(TABLE)
TIMEOUT = 30.0
"""Seconds of silence the links bear; they pass in `tick`'s argument only."""


async def turn(times: int = 8) -> None:
    """Let what is due in the loop run."""
    for _ in range(times):
        await asyncio.sleep(0)


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `protocol` hears of the end in the loop's next turn, as with a real one."""

    def __init__(self, protocol: Any, name: object = ("127.0.0.1", 50000)) -> None:
        super().__init__()
        self.protocol = protocol
        self.written: list[bytes] = []
        self.reading = True
        self.closing = False
        self.aborted = False
        self.gone = False
        """Whether writing raises, as uvloop's does between an error and `connection_lost`."""
        self.unsent = 0
        self.high = 0
        self._extra = {"peername": name, "sockname": ("127.0.0.1", 6380)}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._extra.get(name, default)

    def write(self, data: bytes) -> None:
        if self.gone:
            raise RuntimeError("unable to perform operation on <TCPTransport closed>; the handler is closed")
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert not self.closing
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reading = True

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        self.end(None)

    def abort(self) -> None:
        self.aborted = True
        self.end(None)

    def end(self, exc: Exception | None) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, exc)


class Connection(FakeTransport):
    """One connection as Redis sees it."""

    def __init__(self, protocol: Link, redis: ScriptedRedis, number: int) -> None:
        super().__init__(protocol, ("10.0.0.1", 6379))
        self.redis = redis
        self.number = number
        self.handshake = b""
        """Bytes of HELLO and what follows it."""
        self.owed: list[bytes] = []
        """Replies made by `answer` and not delivered."""
        self.state: dict[str, Any] = {}
        """Whatever `answer` remembers."""
        self._unread = b""

    def can_write_eof(self) -> bool:
        """No, as over TLS."""
        return False

    @property
    def sent(self) -> bytes:
        """All that came after the handshake."""
        return b"".join(self.written)

    @property
    def requests(self) -> list[list[bytes]]:
        """`sent`, split."""
        found, pos, sent = [], 0, self.sent
        while pos < len(sent):
            request = RequestParser(2**31).parse(sent, pos)
            assert request is not None, sent[pos:]
            found.append(request.arguments)
            pos = request.end
        return found

    def write(self, data: bytes) -> None:
        if self.protocol._reader is not None:
            self.handshake += data
            self._answer_handshake(data)
            return
        super().write(data)
        if self.redis.answer is not None:
            self._answer_all(data)

    def _answer_handshake(self, data: bytes) -> None:
        request = RequestParser(2**31).parse(data, 0)
        assert request is not None
        reply = self.redis.greet(self, request.arguments)
        self.protocol.data_received(reply)

    def _answer_all(self, data: bytes) -> None:
        self._unread += data
        pos = 0
        assert self.redis.answer is not None
        while pos < len(self._unread):
            request = RequestParser(2**31).parse(self._unread, pos)
            if request is None:
                break
            self.owed.append(self.redis.answer(self, request.arguments))
            pos = request.end
        self._unread = self._unread[pos:]

    def reply(self, data: bytes, piece: int = 0) -> None:
        """Deliver bytes, in pieces of `piece` bytes if it is given."""
        step = piece or len(data) or 1
        for start in range(0, len(data), step):
            if self.closing:
                return
            self.protocol.data_received(data[start : start + step])

    def deliver(self, piece: int = 0) -> bool:
        """Deliver what is owed; False if that was nothing."""
        data, self.owed = b"".join(self.owed), []
        if data and not self.closing:
            self.reply(data, piece)
        return bool(data)

    def lose(self, exc: Exception | None = None) -> None:
        """Break the connection now."""
        if not self.closing:
            self.closing = True
            self.protocol.connection_lost(exc)


class ScriptedRedis:
    """Stands where connecting stood: accepts, refuses or leaves waiting, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connections: list[Connection] = []
        self.answer: Callable[[Connection, list[bytes]], bytes] | None = None
        self.failure: Exception | None = None
        """What connecting raises."""
        self.open = asyncio.Event()
        """Connecting waits for it."""
        self.open.set()
        self.attempts = 0
        self.hello_error = b""
        monkeypatch.setattr(link_module, "_connect", self._connect)
        monkeypatch.setattr(Pacer, "_open", lambda pacer: False)  # in memory everything is fast

    async def _connect(self, link: Link, connector: Connector) -> None:
        self.attempts += 1
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        connection = Connection(link, self, len(self.connections))
        self.connections.append(connection)
        link.connection_made(connection)

    def greet(self, connection: Connection, arguments: list[bytes]) -> bytes:
        """The handshake's answers."""
        if arguments[0] == b"HELLO" and self.hello_error:
            return self.hello_error
        if arguments[0] != b"HELLO":
            return encode.OK
        hello = {b"server": b"redis", b"version": b"7.0.0", b"proto": int(arguments[1]), b"id": 7 + connection.number}
        return encode.value(hello, int(arguments[1]))

    def deliver(self, piece: int = 0) -> bool:
        """Deliver what every connection owes."""
        return any(connection.deliver(piece) for connection in list(self.connections))

    async def settle(self, piece: int = 0) -> None:
        """Go on until nobody has anything more to say."""
        idle = 0
        while idle < 2:
            await turn()
            idle = 0 if self.deliver(piece) else idle + 1


class Client:
    """A client's end of a session."""

    def __init__(self, linked: Linked, name: object, space: Space | None = None) -> None:
        self.linked = linked
        self.session: Session = linked.clients.session(space)
        self.transport = FakeTransport(self.session, name)
        self.session.connection_made(self.transport)
        self.unheard = b""
        """What has been sent and waits until the session reads."""

    def feed(self, *chunks: bytes) -> None:
        """Have the session receive chunks, as long as it reads (a loop does not deliver after that)."""
        for chunk in chunks:
            if not self.transport.closing:
                self.transport.protocol.data_received(chunk)

    def hear(self) -> None:
        """Have the session receive what it has not heard, if it reads."""
        if self.unheard and self.transport.reading:
            data, self.unheard = self.unheard, b""
            self.feed(data)

    @property
    def got(self) -> bytes:
        """All reply bytes so far."""
        return b"".join(self.transport.written)

    def take(self) -> bytes:
        """The reply bytes since the last call."""
        data = self.got
        self.transport.written.clear()
        return data

    def leave(self) -> None:
        """Vanish."""
        if not self.transport.closing:
            self.transport.closing = True
            self.transport.protocol.connection_lost(None)


class Linked:
    """Sessions over a scripted Redis. Made within a running loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dispatcher: Dispatcher = DISPATCHER, **options: Any) -> None:
        self.redis = ScriptedRedis(monkeypatch)
        self.connector = Connector(Upstream(), 30.0, 0.0)
        self.links = LinkPool(self.connector, dispatcher, TIMEOUT, (0.0, 0.0))
        self.clients = Clients(
            Settings(**options), self.links, dispatcher, Identity(), 0, lambda space: "# Sidecar\r\npannier:1\r\n"
        )
        self._port = 50000

    def client(self, name: object = None, namespace: str | None = None) -> Client:
        """A client that has just connected, over a listener with a namespace if that is given."""
        self._port += 1
        space = None if namespace is None else self.clients.spaces.of(Listen(namespace=namespace))
        return Client(self, name or ("127.0.0.1", self._port), space)

    @property
    def wire(self) -> Connection:
        """The newest connection."""
        return self.redis.connections[-1]

    async def ready(self, name: object = None) -> Client:
        """A client whose shared link is up."""
        client = self.client(name)
        await client.session.link.settled()
        client.session.refresh()
        return client

    async def close(self) -> None:
        """End every session and link."""
        for session in list(self.clients.sessions.values()):
            session.transport.abort()
        await turn()
        self.redis.open.set()
        await self.links.close()
        await turn()
