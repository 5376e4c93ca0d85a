"""A client that sends many commands at once and knows which reply is whose."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import hiredis

from bench.servers import HOST, Server

Word = bytes | str | int


class Lost(Exception):
    """No reply came in time although the connection is open."""


class Closed(Exception):
    """The connection was closed before the reply came."""


class Talker(asyncio.Protocol):
    """One connection. Made by `talk`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self.unasked = 0
        """Replies to nothing that was asked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if not self._waiting:
                self.unasked += 1
            elif not (waiting := self._waiting.popleft()).done():
                waiting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(Closed())
        self._waiting.clear()

    async def ask(self, *words: Word, timeout: float = 10.0) -> Any:
        """The reply to one command."""
        return (await self.all([words], timeout))[0]

    async def all(self, requests: Sequence[Sequence[Word]], timeout: float = 10.0) -> list[Any]:
        """The replies to some commands, sent at once. Raises Lost or Closed."""
        if self.transport is None or self.closed:
            raise Closed
        loop = asyncio.get_running_loop()
        mine: list[asyncio.Future[Any]] = [loop.create_future() for _ in requests]
        self._waiting.extend(mine)
        self.transport.write(b"".join(map(frame, requests)))
        try:
            async with asyncio.timeout(timeout):
                return [await each for each in mine]
        except TimeoutError:
            for each in mine:
                with suppress(BaseException):
                    each.cancel()
            raise Lost from None

    def drop(self) -> None:
        """Be gone at once, with a reset."""
        if self.transport is not None:
            self.transport.abort()


def frame(words: Sequence[Word]) -> bytes:
    """A command's bytes."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


async def talk(port: int) -> Talker:
    """Connect."""
    _, talker = await asyncio.get_running_loop().create_connection(Talker, HOST, port)
    return talker


def quantile(values: Sequence[float], fraction: float) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) - 1, int(len(values) * fraction))] if values else 0.0


class Witness:
    """A client beside it all, whose commands are timed and whose replies must be right."""

    def __init__(self, port: int, pause: float = 0.005) -> None:
        self.times: list[float] = []
        """Seconds each command took."""
        self.wrong = 0
        """Replies that were another's, or none."""
        self._port = port
        self._pause = pause
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Witness:
        self._task = asyncio.create_task(self._run(await talk(self._port)))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self.times.sort()

    async def _run(self, talker: Talker) -> None:
        number = 0
        try:
            while True:
                number += 1
                word = b"witness %d" % number
                began = time.perf_counter()
                try:
                    answer = await talker.ask("ECHO", word)
                except (Lost, Closed):
                    answer = None
                    talker.drop()
                    talker = await talk(self._port)
                self.times.append(time.perf_counter() - began)
                self.wrong += answer != word
                await asyncio.sleep(self._pause)
        finally:
            talker.drop()

    @property
    def p50_ms(self) -> float:
        return quantile(self.times, 0.5) * 1000

    @property
    def p99_ms(self) -> float:
        return quantile(self.times, 0.99) * 1000

    @property
    def most_ms(self) -> float:
        return quantile(self.times, 1.0) * 1000


def internal_errors(proxy: Server) -> list[str]:
    """Lines of the proxy's log that tell of a fault of its own."""
    lines = proxy.log.read_text(errors="replace").splitlines()
    return [line for line in lines if "internal" in line or "Traceback" in line]
