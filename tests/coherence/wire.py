"""The workers' connection: a hand-written encoder, hiredis for replies, one request batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import hiredis


def encode(command: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command)


class Wire(asyncio.Protocol):
    """A connection on which a batch is sent and all its replies are awaited."""

    def __init__(self) -> None:
        self.parser = hiredis.Reader()
        self.replies: list[Any] = []
        self.missing = 0
        self.waiter: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport

    @classmethod
    async def open(cls, port: int, *, protocol: int = 2, db: int = 0) -> Wire:
        _, wire = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        if protocol == 3:
            (hello,) = await wire.ask([(b"HELLO", b"3")])
            assert isinstance(hello, dict), hello
        if db:
            assert await wire.ask([(b"SELECT", b"%d" % db)]) == [b"OK"]
        return wire

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.parser.feed(data)
        while (reply := self.parser.gets()) is not False:
            self.replies.append(reply)
        if self.waiter and len(self.replies) >= self.missing and not self.waiter.done():
            self.waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(ConnectionError(f"closed with {self.missing - len(self.replies)} replies due"))

    async def ask(self, commands: Iterable[Sequence[bytes]]) -> list[Any]:
        """Send the commands in one piece; their replies."""
        encoded = [encode(command) for command in commands]
        self.missing = len(encoded)
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(b"".join(encoded))
        await self.waiter
        replies, self.replies, self.waiter = self.replies, [], None
        assert len(replies) == self.missing, replies
        return replies
