"""A proxy that caches badly on purpose: the checker has to find it out.

GET replies are kept for a fixed time whatever happens to the key, for all clients of the proxy; an MGET all of
whose keys are kept is put together from them. Everything else is passed on, one command at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import hiredis

from tests.coherence.wire import encode


class StaleProxy:
    """Serves `port`, found by the system, in front of the redis-server on `upstream`."""

    def __init__(self, upstream: int, lifetime: float) -> None:
        self.upstream = upstream
        self.lifetime = lifetime
        self.port = 0
        self._kept: dict[tuple[bytes, bytes, bytes], tuple[float, bytes]] = {}
        """By protocol, database and key: the end of the lifetime and the reply."""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self.upstream)
        requests, protocol, db, multi = hiredis.Reader(), b"2", b"0", False
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                requests.feed(data)
                while command := requests.gets():
                    verb = command[0]
                    protocol = command[1] if verb == b"HELLO" else protocol
                    db = command[1] if verb == b"SELECT" else db
                    multi = verb == b"MULTI" or (multi and verb != b"EXEC")
                    names = [(protocol, db, key) for key in command[1:]] if verb in {b"GET", b"MGET"} and not multi else []
                    reply = self._from_cache(verb, names)
                    if reply is None:
                        to_redis.write(encode(command))
                        reply = await self._one_reply(from_redis)
                        if verb == b"GET" and names and not reply.startswith(b"-"):
                            self._kept[names[0]] = (time.monotonic() + self.lifetime, reply)
                    writer.write(reply)
        writer.close()
        to_redis.close()

    def _from_cache(self, verb: bytes, names: list[tuple[bytes, bytes, bytes]]) -> bytes | None:
        kept = [self._kept.get(name, (0.0, b"")) for name in names]
        if not kept or min(kept)[0] < time.monotonic():
            return None
        head = b"*%d\r\n" % len(kept) if verb == b"MGET" else b""
        return head + b"".join(reply for _, reply in kept)

    @staticmethod
    async def _one_reply(reader: asyncio.StreamReader) -> bytes:
        parser, parts = hiredis.Reader(), []
        while parser.gets() is False:
            data = await reader.read(1 << 16)
            if not data:
                raise ConnectionError
            parser.feed(data)
            parts.append(data)
        return b"".join(parts)
