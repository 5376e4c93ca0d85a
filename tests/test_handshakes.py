"""Handshakes: they are bounded in time and number, and end when nobody listens any more."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from proxy.certificates import Certificates, Files
from proxy.handshakes import Handshakes, TlsServer, judge
from tests.certificates import Authority


class Client(asyncio.Protocol):
    """What is made of a connection; answers what it gets."""

    made: list[Client]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Served:
    def __init__(self, directory: Path, most: int, patience: float) -> None:
        self.stack = contextlib.ExitStack()
        self.authority = Authority(directory)
        issued = self.authority.issue()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        self.made: list[Client] = []
        self.handshakes = Handshakes(lambda: most - len(self.made))
        certificates = Certificates(Files("tls", str(issued.cert), str(issued.key)))
        self.server = TlsServer(self._make, [self.sock], certificates, self.handshakes, patience)

    def close(self) -> None:
        self.stack.close()
        self.server.close()
        for client in self.made:
            client.transport.abort()

    def _make(self) -> Client:
        client = Client()
        client.made = self.made
        return client

    def connect(self) -> socket.socket:
        """A connection that has not shaken hands; closed in the end."""
        sock = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port)))
        sock.setblocking(False)
        return sock

    async def echoed(self) -> None:
        """Have what comes in over TLS answered."""

        def ask() -> bytes:
            raw = socket.create_connection(("127.0.0.1", self.port), 10)
            with self.authority.trusting().wrap_socket(raw, server_hostname="localhost") as sock:
                sock.sendall(b"hello")
                return sock.recv(5)

        assert await asyncio.to_thread(ask) == b"hello"


async def rest(sock: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(10):
            while data := await asyncio.get_running_loop().sock_recv(sock, 100):
                found += data
    return found


Make = Callable[..., Served]


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop that Pannier runs on: TLS differs from asyncio's. `make` makes what is served."""

    @functools.wraps(test)
    def run(tmp_path: Path, **fixtures: Any) -> None:
        async def inside() -> None:
            with contextlib.ExitStack() as stack:

                def make(most: int = 10, patience: float = 10.0) -> Served:
                    served = Served(tmp_path, most, patience)
                    stack.callback(served.close)
                    return served

                await test(make, **fixtures)
            for _ in range(50):  # what is closed is gone a few turns later
                await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(inside())

    names = [name for name in inspect.signature(test).parameters if name != "make"]
    kinds = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("tmp_path", *names)]
    run.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
    return run


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@on_uvloop
async def test_who_takes_too_long_is_closed(make: Make) -> None:
    served = make(patience=0.1)
    sock = served.connect()
    sock.send(b"\x16\x03\x01")
    assert await rest(sock) == b""
    await until(lambda: served.handshakes.failed["timeout"] == 1)
    assert not served.handshakes.under_way


@on_uvloop
async def test_one_that_is_slow_holds_up_nobody(make: Make) -> None:
    served = make()
    slow = [served.connect() for _ in range(5)]
    await until(lambda: len(served.handshakes.under_way) == 5)
    await served.echoed()
    assert (served.handshakes.done, len(served.handshakes.under_way)) == (1, 5)
    for sock in slow:
        sock.close()
    await until(lambda: not served.handshakes.under_way)
    assert served.handshakes.failed["gone"] == 5


@on_uvloop
async def test_one_more_than_there_may_be_is_closed_at_once(make: Make) -> None:
    served = make(most=2)
    for _ in range(2):
        served.connect()
    await until(lambda: len(served.handshakes.under_way) == 2)
    assert await rest(served.connect()) == b""
    assert served.handshakes.failed["full"] == 1


@on_uvloop
async def test_who_is_not_through_is_closed_with_the_server(make: Make) -> None:
    served = make()
    sock = served.connect()
    await until(lambda: served.handshakes.under_way)
    served.server.close()
    assert await rest(sock) == b""
    assert not served.handshakes.under_way
    with pytest.raises(ConnectionRefusedError):
        served.connect()


@on_uvloop
async def test_a_system_without_places_is_asked_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop, fails = asyncio.get_running_loop(), [OSError(24, "Too many open files"), ConnectionAbortedError()]
    monkeypatch.setattr("proxy.handshakes._REST", 0.01)

    class Loop:
        """The loop, at which accepting fails at first."""

        def __getattr__(self, name: str) -> object:
            return getattr(loop, name)

        async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, object]:
            if fails:
                raise fails.pop()
            return await loop.sock_accept(sock)

    with monkeypatch.context() as patch:
        patch.setattr("proxy.handshakes.asyncio.get_running_loop", Loop)
        served = make()
        await asyncio.sleep(0)
    await served.echoed()
    assert not fails
    assert [record.message for record in caplog.records] == ["no connection can be accepted for now: Too many open files"]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionResetError(), "gone"),
        (BrokenPipeError(), "gone"),
        (ConnectionAbortedError(), "timeout"),
        (ssl.SSLError(1, "what nobody knows"), "other"),
        (OSError(5, "Input/output error"), "other"),
    ],
)
def test_every_failure_has_a_cause(error: Exception, cause: str) -> None:
    assert judge(error)[0] == cause
    assert judge(error)[1]
