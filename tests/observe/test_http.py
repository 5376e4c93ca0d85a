"""The HTTP server of the administration, in memory: what it answers, what it refuses, when it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.observe import http
from proxy.observe.answers import Answer, Refused, report
from proxy.observe.http import LONGEST_BODY, LONGEST_HEAD, MOST_CONNECTIONS, Connection, Request, Server
from proxy.upstream.address import Listen

GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written, and tells what was done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = self.aborted = self.ended = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closing()
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Client:
    """One client of a server, which answers with what it was asked."""

    def __init__(self, server: Server) -> None:
        self.transport = Transport()
        self.connection = Connection(server)
        self.connection.connection_made(self.transport)

    async def send(self, *chunks: bytes) -> bytes:
        """Send some bytes; what has been answered then."""
        for chunk in chunks:
            self.connection.data_received(chunk)
        return await self.read()

    async def read(self) -> bytes:
        for _ in range(4):
            await asyncio.sleep(0)
        found, self.transport.written = self.transport.written, b""
        return found


class House:
    """A server whose handler notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.gate: asyncio.Event | None = None
        self.answer: Answer | Exception = report({"x": 1})
        self.server = Server(self.handle, Listen(), None, "--admin-listen")

    async def handle(self, request: Request) -> Answer:
        self.asked.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def client(self) -> Client:
        return Client(self.server)


@pytest.fixture
async def house() -> House:
    return House()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever is waited for is too late in the loop's next turn."""
    for name in ("REQUEST_PATIENCE", "IDLE_PATIENCE", "ANSWER_PATIENCE", "_LINGER"):
        monkeypatch.setattr(http, name, 0.0)
    yield


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


class TestAnswers:
    async def test_a_request(self, house: House) -> None:
        client = house.client()
        answer = await client.send(b"GET /a%20b?n=1&m=%26 HTTP/1.1\r\nHost: h\r\nX-Y: z\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b'{\n  "x": 1\n}\n')
        assert b"Content-Type: application/json" in answer and b"Cache-Control: no-store\r\n" in answer
        (request,) = house.asked
        assert (request.method, request.path, request.query) == ("GET", "/a b", (("n", "1"), ("m", "&")))
        assert request.fields["x-y"] == "z"

    async def test_byte_by_byte(self, house: House) -> None:
        data = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab"
        answer = await house.client().send(*[data[n : n + 1] for n in range(len(data))])
        assert status(answer) == 200 and house.asked[0].body == b"ab"

    async def test_chunks(self, house: House) -> None:
        head = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert status(await house.client().send(head, b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n")) == 200
        assert house.asked[0].body == b"ab"

    async def test_head_without_its_body(self, house: House) -> None:
        client = house.client()
        answer = await client.send(GET.replace(b"GET", b"HEAD"))
        assert b"Content-Length: 13\r\n" in answer and answer.endswith(b"\r\n\r\n")
        assert status(await client.send(GET)) == 200, "the connection goes on"

    async def test_several_on_one_connection(self, house: House) -> None:
        client = house.client()
        for _ in range(3):
            assert status(await client.send(GET)) == 200
        assert not client.transport.is_closing()

    async def test_several_at_once_in_their_order(self, house: House) -> None:
        client = house.client()
        answers = await client.send(GET + GET.replace(b"/x", b"/y")) + await client.read()
        assert answers.count(b"HTTP/1.1 200") == 2
        assert [request.path for request in house.asked] == ["/x", "/y"]

    async def test_who_wants_the_connection_closed(self, house: House) -> None:
        client = house.client()
        assert b"Connection: close" in await client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert client.transport.ended

    async def test_http_1_0(self, house: House) -> None:
        client = house.client()
        assert status(await client.send(b"GET /x HTTP/1.0\r\n\r\n")) == 200
        assert client.transport.ended

    async def test_who_has_sent_everything(self, house: House) -> None:
        client = house.client()
        client.connection.data_received(GET)
        assert client.connection.eof_received(), "the answer is still to come"
        assert status(await client.read()) == 200
        assert client.transport.closed

    async def test_who_asks_whether_to_go_on(self, house: House) -> None:
        client = house.client()
        head = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        assert status(await client.send(head)) == 100
        assert status(await client.send(b"ab")) == 200

    async def test_nothing_is_read_meanwhile(self, house: House) -> None:
        house.gate = asyncio.Event()
        client = house.client()
        await client.send(GET)
        assert not client.transport.reading
        house.gate.set()
        assert status(await client.read()) == 200
        assert client.transport.reading


class TestRefuses:
    @pytest.mark.parametrize(
        ("data", "found"),
        [
            (b"*1\r\n$4\r\nPING\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
            (b"GET x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (b"GET /?" + b"a=1&" * 40 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * LONGEST_HEAD + b"\r\n\r\n", 431),
            (b"GET /" + b"x" * LONGEST_HEAD, 431),
            (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n" + b"x" * (LONGEST_BODY + 1), 413),
            (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ],
    )
    async def test_what_breaks_the_protocol_or_a_limit(self, house: House, data: bytes, found: int) -> None:
        client = house.client()
        answer = await client.send(data)
        assert status(answer) == found and b'"reason"' in answer and b"Connection: close" in answer
        assert not house.asked
        assert client.transport.ended and not client.transport.is_closing(), "it may read the answer first"
        assert await client.send(b"more" * 1000) == b""
        assert client.connection.eof_received() is False

    async def test_half_a_request(self, house: House) -> None:
        client = house.client()
        await client.send(GET[:20])
        assert client.connection.eof_received() is False
        assert status(await client.read()) == 400

    async def test_what_the_handler_refuses(self, house: House) -> None:
        house.answer = Refused(405, "no", ("Allow", "GET"))
        answer = await house.client().send(GET)
        assert status(answer) == 405 and b"Allow: GET\r\n" in answer

    async def test_errors_of_ours(self, house: House, caplog: pytest.LogCaptureFixture) -> None:
        house.answer = ZeroDivisionError("secret")
        client = house.client()
        answer = await client.send(GET)
        assert status(answer) == 500 and b"secret" not in answer
        assert "internal error in GET /x" in caplog.text
        assert status(await client.send(GET)) == 500, "the connection goes on"


class TestHasPatience:
    async def test_with_a_slow_request_for_so_long(self, house: House, hasty: None) -> None:
        client = house.client()
        assert status(await client.send(GET[:20])) == 408
        await client.read()
        assert client.transport.aborted, "and does not linger for ever"

    async def test_with_a_slow_body(self, house: House, hasty: None) -> None:
        answer = await house.client().send(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
        assert status(answer) == 408

    async def test_with_who_says_nothing(self, house: House, hasty: None) -> None:
        client = house.client()
        assert await client.read() == b""
        assert client.transport.ended

    async def test_with_who_asks_no_more(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "IDLE_PATIENCE", 0.0)
        client = house.client()
        assert status(await client.send(GET)) == 200
        assert await client.read() == b""
        assert client.transport.ended

    async def test_with_who_does_not_take_the_answer(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "ANSWER_PATIENCE", 0.0)
        client = house.client()
        client.connection.data_received(GET)
        client.connection.pause_writing()
        await client.read()
        assert client.transport.aborted

    async def test_with_who_takes_it_late(self, house: House) -> None:
        client = house.client()
        client.connection.data_received(GET)
        client.connection.pause_writing()
        await client.read()
        assert not client.transport.reading
        client.connection.resume_writing()
        assert client.transport.reading
        assert status(await client.send(GET)) == 200

    async def test_drop_by_drop_is_as_slow(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """The time counts from the first byte, whatever comes after it."""
        timers: list[Any] = []
        monkeypatch.setattr(Connection, "_wait", lambda self, seconds, then: timers.append(seconds))
        client = house.client()
        await client.send(*[GET[n : n + 1] for n in range(20)])
        assert timers == [http.REQUEST_PATIENCE] * 2, "when it came, and at its first byte"


class TestHasRoomForSoMany:
    async def test_the_idle_make_way(self, house: House) -> None:
        clients = [house.client() for _ in range(MOST_CONNECTIONS)]
        await clients[0].send(GET[:10])
        another = house.client()
        assert clients[1].transport.aborted and not clients[0].transport.aborted
        assert len(house.server.connections) == MOST_CONNECTIONS
        assert status(await another.send(GET)) == 200

    async def test_then_who_is_slow_to_ask(self, house: House) -> None:
        """Or the probes of an orchestrator could be kept out."""
        clients = [house.client() for _ in range(MOST_CONNECTIONS)]
        for client in clients:
            await client.send(GET[:10])
        another = house.client()
        assert status(await another.send(GET)) == 200
        assert clients[0].transport.aborted and not clients[1].transport.aborted

    async def test_if_all_are_being_answered_one_more_is_refused(self, house: House) -> None:
        house.gate = asyncio.Event()
        clients = [house.client() for _ in range(MOST_CONNECTIONS)]
        for client in clients:
            await client.send(GET)
        another = house.client()
        assert status(await another.read()) == 503
        assert another.transport.closed and house.server.refused == 1
        house.gate.set()
        assert status(await clients[0].read()) == 200
        assert status(await house.client().send(GET)) == 200

    async def test_who_left_counts_until_the_answer_is_ready(self, house: House) -> None:
        """So that nobody has more done at once by leaving early; and what changes something is done."""
        house.gate = asyncio.Event()
        client = house.client()
        await client.send(GET)
        client.transport.close()
        client.connection.connection_lost(None)
        assert len(house.server.connections) == 1
        house.gate.set()
        assert await client.read() == b""
        assert not house.server.connections

    async def test_all_are_closed_at_the_end(self, house: House) -> None:
        house.gate = asyncio.Event()
        clients = [house.client(), house.client()]
        await clients[0].send(GET)
        house.server.close()
        assert all(client.transport.aborted for client in clients)
        assert await clients[0].read() == b""
