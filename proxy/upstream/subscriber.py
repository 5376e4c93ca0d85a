"""A connection of the sidecar's own that subscribes to channels and takes what is said on them.

RESP2, which every server speaks: a subscribed connection may say nothing but PING then, and what comes is an
array each (Redis docs: "Redis Pub/Sub").
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

import hiredis

from proxy.resp import encode
from proxy.resp.errors import UpstreamError, UpstreamRefused
from proxy.upstream.link import Connector, Identity, Link, LinkKey, open_link

_MUCH, _LITTLE = 1 << 20, 1 << 18
"""Bytes of messages waiting to be taken above which reading stops, and below which it goes on."""
_HEADER = 200
"""Bytes that a message takes beside its texts."""

Message = list[bytes | int | None]


class Subscriber(Link):
    """Hands out, one by one, what Redis says: its kind first, then what that brings with it."""

    def __init__(self, connector: Connector, identity: Identity, name: bytes) -> None:
        super().__init__(connector, LinkKey(identity, 0, 2))
        self.name = name
        self._messages: deque[Message] = deque()
        self._waiting = 0
        """Bytes of these."""
        self._parser = hiredis.Reader()
        self._error: UpstreamError | None = None
        """Why nothing more comes."""
        self._news = asyncio.Event()

    def say(self, *arguments: str) -> None:
        """Send a command: SUBSCRIBE, PSUBSCRIBE or PING."""
        self.send(encode.request(*arguments))

    async def hear(self, seconds: float) -> Message | None:
        """The next message; None if there is none for so many seconds. Others have their turn before it.

        Raises UpstreamRefused for an error reply, and UpstreamLost when the connection has ended.
        """
        if not self._messages and self._error is None:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        else:
            await asyncio.sleep(0)
        if self._messages:
            message = self._messages.popleft()
            self._waiting -= _size(message)
            if self._waiting < _LITTLE:
                self.read(True)
            return message
        if self._error is not None:
            raise self._error
        return None

    def received(self, data: bytes) -> None:
        """Take bytes that came after the handshake."""
        self._parser.feed(data)
        try:
            while self._error is None and (reply := self._parser.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    self._end(UpstreamRefused(str(reply)))
                elif isinstance(reply, list) and reply:
                    self._messages.append(reply)
                    self._waiting += _size(reply)
                else:
                    self._end(self.connector.lost("sent a subscriber what is no message"))
        except hiredis.ProtocolError as error:
            self._end(self.connector.lost(f"does not speak RESP ({error})"))
        self._news.set()
        if self._waiting > _MUCH:
            self.read(False)

    def lost(self, exc: Exception | None) -> None:
        """Hear that the connection ended, in the handshake or later."""
        self._end(self.connector.lost(f"broke: {exc}" if exc else "closed the connection"))

    def _end(self, error: UpstreamError) -> None:
        self._error = self._error or error
        self._news.set()


def _size(message: Message) -> int:
    """Bytes that a message takes, about."""
    return _HEADER + sum([len(part) for part in message if isinstance(part, bytes)])


async def subscriber(connector: Connector, identity: Identity, name: bytes) -> Subscriber:
    """Connect. Raises UpstreamRefused or UpstreamLost."""
    return await open_link(lambda: Subscriber(connector, identity, name), connector)
