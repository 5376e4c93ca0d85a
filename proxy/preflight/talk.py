"""A connection to Redis on which things are tried one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis

from proxy.resp import encode
from proxy.resp.errors import UpstreamLost
from proxy.upstream.link import Connector, Link, LinkKey, open_link


class Talk(Link):
    """Questions and answers, each in its turn. Made by `begin`."""

    def __init__(self, connector: Connector, key: LinkKey) -> None:
        super().__init__(connector, key)
        self.name = b"pannier-preflight"
        self.falls_back = True
        self.user = (key.identity.user or b"default").decode("utf-8", "replace")
        """Who it is at Redis, for remedies."""
        self._replies = hiredis.Reader()
        self._answered: asyncio.Queue[Any] = asyncio.Queue()

    def received(self, data: bytes) -> None:
        """Take replies."""
        self._replies.feed(data)
        try:
            while (reply := self._replies.gets()) is not False:
                self._answered.put_nowait(reply)
        except hiredis.ProtocolError as error:
            self._answered.put_nowait(self.connector.lost(f"does not speak RESP ({error})"))
            self.close()

    def lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._answered.put_nowait(self.connector.lost("closed the connection"))

    async def ask(self, *arguments: bytes | str | int) -> Any:
        """Send a command; its reply, which may be a hiredis.ReplyError. Raises UpstreamLost."""
        self.send(encode.request(*arguments))
        return await self.next(str(arguments[0]))

    async def next(self, what: str) -> Any:
        """The next reply, or message; `what` it is, for the error."""
        try:
            async with asyncio.timeout(self.connector.timeout):
                reply = await self._answered.get()
        except TimeoutError:
            raise self.connector.lost(f"did not answer {what} within {self.connector.timeout:g} s") from None
        if isinstance(reply, UpstreamLost):
            raise reply
        return reply


async def begin(connector: Connector, key: LinkKey) -> Talk:
    """Connect and log in. Raises UpstreamError."""
    return await open_link(lambda: Talk(connector, key), connector)
