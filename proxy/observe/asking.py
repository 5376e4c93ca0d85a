"""Asking another process over HTTP on its unix socket: as workers and their parent ask each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import h11

from proxy.observe.answers import Answer

_CHUNK = 1 << 18


class Silent(Exception):
    """Nothing was answered in time, though somebody is there."""


class Absent(Exception):
    """Nobody is there."""


async def ask(
    path: str, method: str, target: str, body: bytes = b"", fields: Mapping[str, str] | None = None,
    patience: float = 5.0,
) -> Answer:  # fmt: skip
    """One request on a connection of its own, and its answer. Raises Absent, or Silent after so many seconds.

    A process that ends before it has answered counts as absent.
    """
    try:
        async with asyncio.timeout(patience):
            return await _ask(path, method, target, body, fields or {})
    except TimeoutError:
        raise Silent from None
    except (OSError, EOFError, h11.ProtocolError):
        raise Absent from None


async def _ask(path: str, method: str, target: str, body: bytes, fields: Mapping[str, str]) -> Answer:
    reader, writer = await asyncio.open_unix_connection(path)
    with contextlib.closing(writer):
        http = h11.Connection(h11.CLIENT)
        headers = [("Host", "localhost"), ("Connection", "close"), *fields.items()]
        if body or method == "POST":
            headers.append(("Content-Length", str(len(body))))
        head = h11.Request(method=method, target=target, headers=headers)
        events: list[h11.Event] = [head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()]
        writer.writelines([data for event in events if (data := http.send(event))])
        await writer.drain()
        return await _read(reader, http)


async def _read(reader: asyncio.StreamReader, http: h11.Connection) -> Answer:
    status, kind = 0, ""
    parts: list[bytes] = []
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            kind = dict(event.headers).get(b"content-type", b"").decode("latin-1")
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return Answer(b"".join(parts), status, kind)
        elif isinstance(event, h11.ConnectionClosed):
            raise EOFError
