"""A small HTTP/1.1 server for operators and their programs, which never gets in the clients' way.

h11 knows the protocol; here are the bytes, the clock and the limits. A connection has one request at a time:
its head and body come within `REQUEST_PATIENCE`, it is answered, the client takes the answer within
`ANSWER_PATIENCE`, and the next may follow within `IDLE_PATIENCE`. While a request is answered nothing is
read, so what one connection can take of memory is a head, a body and an answer. There are `MOST_CONNECTIONS`
at most; for one more, the one that has asked nothing for longest is closed, so that clients that connect and
say nothing keep nobody out.

A request that breaks the protocol or a limit is answered with what is wrong, and the connection closed: its
sending side first, so that a client that is still sending gets to read the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl, unquote

import h11

from proxy.events import fields
from proxy.listening import NONE_PASSED, Passed, Tls, addresses, clear_away, serve
from proxy.listening import Server as Listener
from proxy.observe.answers import Answer, Refused, problem
from proxy.upstream.address import Listen

log = logging.getLogger("pannier.admin")

MOST_CONNECTIONS = 32
LONGEST_HEAD = 16 * 1024
"""Bytes of a request's line and fields together."""
LONGEST_BODY = 1024 * 1024
REQUEST_PATIENCE = 10.0
ANSWER_PATIENCE = 30.0
IDLE_PATIENCE = 75.0
_LINGER = 2.0
"""Seconds for which a client that was refused may go on sending before the connection is cut."""
_WRITE_HIGH = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read whole."""

    method: str
    path: str
    """Decoded, without what stands behind the `?`."""
    query: tuple[tuple[str, str], ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    """By name in lower case; of a repeated one, the last."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be asked at once."""

    connections: int = MOST_CONNECTIONS
    body: int = LONGEST_BODY
    """Bytes of it."""


USUAL = Limits()
ROOMY = Limits(1024, 16 * LONGEST_BODY)
"""For those who are trusted."""

Handler = Callable[[Request], Awaitable[Answer]]


class Server:
    """Listens at one address, and answers each request with what `handler` makes of it.

    `option` is the one that gives the address, for errors.
    """

    def __init__(
        self,
        handler: Handler,
        listen: Listen,
        tls: Tls | None,
        option: str,
        passed: Passed = NONE_PASSED,
        limits: Limits = USUAL,
    ) -> None:
        self.limits = limits
        self.handler = handler
        self.listen = listen
        self.connections: dict[Connection, None] = {}
        """Who is here, those who came first first; also who has left before the answer was ready."""
        self.refused = 0
        """Connections closed at once because there were too many."""
        self._tls = tls
        self._option = option
        self._passed = passed
        self._server: Listener | None = None

    async def start(self) -> list[str]:
        """Listen; where, with the port the system chose. Raises StartupError."""
        self._server = await serve(
            lambda: Connection(self), self.listen, self._tls, self._option, self._passed
        )
        return addresses(self._server, self.listen)

    def close(self) -> None:
        """Close everything now."""
        if self._server is not None:
            self._server.close()
            clear_away(self.listen, self._passed)
        for connection in list(self.connections):
            connection.stop()

    def enter(self, connection: Connection) -> bool:
        """Count a connection in; False if there are too many already."""
        if len(self.connections) >= self.limits.connections:
            idle = next((other for other in self.connections if other.idle), None)
            # Who is slow to ask must not keep others out, least of all the probes of an orchestrator.
            given_up = idle or next((other for other in self.connections if other.asking), None)
            if given_up is None:
                self.refused += 1
                return False
            given_up.abort()
            del self.connections[given_up]
        self.connections[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """Count a connection out."""
        self.connections.pop(connection, None)


class Connection(asyncio.Protocol):
    """One client of the administration."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport = cast(asyncio.Transport, None)
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._timer: asyncio.TimerHandle | None = None
        # The request under way.
        self._begun = False
        """Whether any of its bytes have come, and not all."""
        self._request: h11.Request | None = None
        """Its head; None before that has come."""
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        """What answers it."""
        # The client.
        self._full = False
        """Whether it has not taken what was written."""
        self._eof = False
        """Whether it sends nothing more."""
        self._lingering = False
        """Whether the last answer is written and nothing more is taken."""

    @property
    def idle(self) -> bool:
        """Whether the client has asked nothing, or has been answered."""
        return not self._begun and self._task is None and not self._full

    @property
    def asking(self) -> bool:
        """Whether its request has not come whole yet."""
        return self._task is None and not self._full

    # --- asyncio callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called once by the loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH)
        if self._server.enter(self):
            self._wait(REQUEST_PATIENCE, self._too_slow)
            return
        most = self._server.limits.connections
        self._send(problem(503, f"{most} connections are served already"), closing=True)
        self._lingering = True
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._lingering:
            return
        if not self._begun:
            self._begun = True
            self._wait(REQUEST_PATIENCE, self._too_slow)
        self._http.receive_data(data)
        self._go_on()

    def eof_received(self) -> bool:
        """Take the end of the client's bytes; what it has asked is still answered."""
        self._eof = True
        if self._lingering:
            return False
        self._http.receive_data(b"")
        self._go_on()
        # With TLS the end of one side is that of both.
        return self._task is not None and self._transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        """Called by the loop: the client does not take what is written."""
        self._full = True

    def resume_writing(self) -> None:
        """Called by the loop: it has."""
        self._full = False
        if self._task is None and not self._lingering:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear that the client is gone; what it has asked for is done all the same."""
        self._stop_waiting()
        if self._task is None:
            self._server.leave(self)

    # --- reading a request

    def _go_on(self) -> None:
        """Take what has come, up to the end of a request."""
        try:
            while self._task is None and not self._lingering:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    self._encourage()
                    return
                self._take(event)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))

    def _take(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self._request = event
            self._body.clear()
            if _size(event) > LONGEST_HEAD:
                self._refuse(431, f"the request's line and fields have more than {LONGEST_HEAD} bytes")
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > (most := self._server.limits.body):
                self._refuse(413, f"the body has more than {most} bytes")
        elif isinstance(event, h11.EndOfMessage) and self._request is not None:
            self._begin(self._request)
        elif isinstance(event, h11.ConnectionClosed):
            self._end()

    def _encourage(self) -> None:
        """Ask for the body if the client waits to be asked (Expect: 100-continue)."""
        if self._http.they_are_waiting_for_100_continue:
            self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))

    # --- answering it

    def _begin(self, head: h11.Request) -> None:
        """Answer the request that has come; nothing is read meanwhile."""
        try:
            request = _read(head, bytes(self._body))
        except ValueError as error:
            self._refuse(400, str(error))
            return
        self._stop_waiting()
        self._transport.pause_reading()
        self._begun = False
        self._task = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._server.handler(request)
        except Refused as refused:
            answer = refused.answer
        except Exception:
            about = fields("internal_error", method=request.method, path=request.path)
            log.exception("internal error in %s %s", request.method, request.path, extra=about)
            answer = problem(500, "internal error, see the log")
        self._task = None
        if self._transport.is_closing():
            self._server.leave(self)
            return
        self._send(answer, head_only=request.method == "HEAD")
        self._next()

    def _next(self) -> None:
        """Be ready for the next request, if the client has taken the answer and there may be one."""
        if self._full:
            self._wait(ANSWER_PATIENCE, self.abort)
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._request = None
            self._begun = self._http.trailing_data[0] != b""
            self._wait(REQUEST_PATIENCE if self._begun else IDLE_PATIENCE, self._too_slow)
            self._transport.resume_reading()
            self._go_on()
        else:
            self._end()

    def _send(self, answer: Answer, head_only: bool = False, closing: bool = False) -> None:
        fields = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *answer.fields,
            *([("Connection", "close")] if closing else []),
        ]
        phrase = HTTPStatus(answer.status).phrase
        self._write(self._http.send(h11.Response(status_code=answer.status, headers=fields, reason=phrase)))
        if answer.body and not head_only:
            self._write(self._http.send(h11.Data(data=answer.body)))
        self._write(self._http.send(h11.EndOfMessage()))

    def _write(self, data: bytes | None) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # --- ending

    def _too_slow(self) -> None:
        if not self._begun:
            self._end()  # a connection made in advance or kept, and not used
        else:
            self._refuse(408, f"the request has not come within {REQUEST_PATIENCE:g} s")

    def _refuse(self, status: int, why: str) -> None:
        """Say what is wrong, if that can still be said, and close."""
        # Not why: h11 quotes the header.
        log.debug("an HTTP request was refused with %d", status, extra=fields("http_refused", status=status))
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head_only = self._request is not None and self._request.method == b"HEAD"
            self._send(problem(status, why), head_only, closing=True)
        self._end()

    def _end(self) -> None:
        """Close once what is written has been taken; what the client still sends is not read."""
        if self._lingering or self._transport.is_closing():
            return
        self._lingering = True
        self._wait(ANSWER_PATIENCE if self._full else _LINGER, self.abort)
        if self._transport.can_write_eof() and not self._eof:
            self._transport.resume_reading()
            try:
                self._transport.write_eof()
            except OSError:  # asyncio's own loop does it at once: the client may be gone by now
                self.abort()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()

    def stop(self) -> None:
        """Close now, and do not go on with what is being answered."""
        if self._task is not None:
            self._task.cancel()
        self.abort()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Have something done unless the client does its part within so many seconds."""
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _size(head: h11.Request) -> int:
    """Bytes of a request's line and fields."""
    return len(head.target) + sum([len(name) + len(value) for name, value in head.headers])


def _read(head: h11.Request, body: bytes) -> Request:
    """A request of which all has come. Raises ValueError if its target is none."""
    target = head.target.decode("latin-1")
    if not target.startswith("/"):
        raise ValueError("the target is no path; ask for one such as /metrics")
    path, _, query = target.partition("?")
    pairs = tuple(parse_qsl(query, keep_blank_values=True, max_num_fields=32))
    fields = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode("ascii"), unquote(path), pairs, fields, body)
