"""OpenTelemetry traces: one span for each command of a sample (`trace_sample`).

Nothing of this is imported, and nothing is done, unless a sample is asked for: then clients get sessions of
another class, which picks commands before it takes them, and looks afterwards at what has become of them:
answered from memory, standing in a shared link's FIFO (where a stand-in hears of the end), on their way over
a link of the client's own, or answered here. A pipeline that comes at once counts as its first command; a
read that waits for another client's fetch, and what waits in a buffer, is passed over.

Spans have the attributes of OpenTelemetry's semantic conventions for Redis, never keys or values. They are
made when the command has been answered, so they have no parent: RESP carries none.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections import deque
from collections.abc import Callable
from random import random
from time import time_ns
from typing import TYPE_CHECKING, cast

from proxy.client.clients import Clients
from proxy.client.dispatch import path_of
from proxy.client.session import Session
from proxy.client.spaces import Space
from proxy.client.states import State
from proxy.resp.errors import ProtocolError, SettingsError
from proxy.tier.flights import Flight
from proxy.upstream.address import Upstream
from proxy.upstream.caller import Caller, StandIn, itself

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from proxy.upstream.givingup import Entry

OTHER = "_OTHER"
"""What is shown of a command that is none: its name might be anything."""
_CODE = re.compile(rb"(?:\+OK\r\n)?(?::-?\d+\r\n)*-([A-Z]{2,20})[ \r]")
"""An error that says of which kind it is, perhaps behind the answers to what a fetch asks first."""
_PATIENCE = 2.0
"""Seconds that spans may take to be sent at the end."""


def provider() -> TracerProvider:
    """What sends spans, set up by OTEL_* variables. Raises SettingsError if the packages are not there."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"trace_sample: OpenTelemetry is not installed (no {error.name}); "
            "pip install 'pannier[otel]', or leave it out"
        ) from None
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "pannier"}))
    found = TracerProvider(resource=resource, shutdown_on_exit=False)
    found.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return found


async def shut_down(provider: TracerProvider) -> None:
    """Send what is left, if that does not take long: whoever takes spans may be gone."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        provider.shutdown()
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=work, daemon=True).start()
    try:
        async with asyncio.timeout(_PATIENCE):
            await done.wait()
    except TimeoutError:
        return


class Tracing:
    """Makes spans, for a `share` of the commands. `chance`: a number below 1, for tests."""

    def __init__(
        self, provider: TracerProvider, share: float, upstream: Upstream, chance: Callable[[], float] = random
    ) -> None:
        from opentelemetry.trace import SpanKind

        self._kinds = SpanKind
        self._tracer = provider.get_tracer("pannier")
        self._share = share
        self._chance = chance
        place: dict[str, str | int] = {"server.address": upstream.path or upstream.host}
        if upstream.path is None:
            place["server.port"] = upstream.port
        self._place = place
        self._where = upstream.path or f"{upstream.host}:{upstream.port}"

    def session(self, clients: Clients, session_id: int, space: Space) -> Session:
        """A session some of whose commands are traced."""
        return TracedSession(self, clients, session_id, space)

    def gap(self) -> int:
        """Which of the next commands is the next to be traced; 1: the very next."""
        if self._share >= 1:
            return 1
        return 1 + int(math.log(1 - self._chance()) / math.log(1 - self._share))

    def emit(self, sample: Sample, path: str, error: str) -> None:
        """Make the span of a command that has just been answered."""
        name = f"PIPELINE {sample.name}" if sample.commands > 1 else sample.name
        attributes: dict[str, str | int] = {
            "db.system.name": "redis",
            "db.operation.name": name,
            "db.namespace": str(sample.database),
            **self._place,
            "pannier.path": path,
        }
        if sample.space:
            attributes["pannier.namespace"] = sample.space
        if sample.commands > 1:
            attributes["db.operation.batch.size"] = sample.commands
        if error:
            attributes["db.response.status_code"] = attributes["error.type"] = error
        here = path in ("hit", "local")
        span = self._tracer.start_span(
            f"{name} {self._where}",
            kind=self._kinds.INTERNAL if here else self._kinds.CLIENT,
            start_time=sample.began,
            attributes=attributes,
        )
        if error:
            from opentelemetry.trace import StatusCode

            span.set_status(StatusCode.ERROR)
        span.end(time_ns())


class Sample:
    """A command that is traced, until it is answered."""

    __slots__ = ("_tracing", "began", "command", "commands", "database", "name", "space")

    def __init__(self, tracing: Tracing, session: Session, arguments: list[bytes], commands: int) -> None:
        self._tracing = tracing
        self.began = time_ns()
        self.command = session.clients.dispatcher.find(arguments)
        own = "SIDECAR" if arguments[0].lower() == b"sidecar" else OTHER
        self.name = self.command.name.replace("|", " ").upper() if self.command is not None else own
        self.commands = commands
        self.database = session.database
        self.space = session.space.name

    def end(self, path: str, error: str = "") -> None:
        """Hear how it was answered."""
        self._tracing.emit(self, path, error)


class _Watched(StandIn):
    """Stands in a FIFO for who asked, and hears of the end."""

    __slots__ = ("_error", "_sample")

    def __init__(self, caller: Caller, sample: Sample) -> None:
        super().__init__(caller)
        self._sample = sample
        self._error = ""

    @property
    def relay(self) -> Callable[[bytes], object]:
        """The caller's own, seen through."""
        return self._pass_on

    def _pass_on(self, data: bytes) -> None:
        found = _CODE.match(data)
        if found is not None and not self._error:
            self._error = found[1].decode()
        self.caller.relay(data)

    def ended(self) -> None:
        """Tell."""
        fetched = isinstance(itself(self.caller), Flight)
        self._sample.end(path_of(self._sample.command, fetched), self._error)

    def cut(self) -> None:
        """Tell, and tell the caller."""
        self._sample.end(path_of(self._sample.command, False), "cut")
        super().cut()


class TracedSession(Session):
    """A session that looks at what becomes of some commands."""

    __slots__ = ("_left", "_looking", "_tracing", "sample")

    def __init__(self, tracing: Tracing, clients: Clients, session_id: int, space: Space) -> None:
        super().__init__(clients, session_id, space)
        self._tracing = tracing
        self._left = tracing.gap()
        """Which of the next commands is to be traced."""
        self._looking = False
        self.sample: Sample | None = None
        """The command that is on its way over a link of the client's own, or being answered here."""

    def data_received(self, data: bytes) -> None:
        """Take a chunk, and look at what becomes of it if one of its commands is to be traced."""
        if self._looking or self.buffer or (self.pin is not None and not self.pin.link.idle):
            super().data_received(data)
            return
        self._left -= max(1, data.count(b"*"))
        sample = self._pick(data) if self._left <= 0 else None
        if sample is None:
            super().data_received(data)
            return
        self._left = self._tracing.gap()
        self._looking = True
        try:
            self._look(data, sample)
        finally:
            self._looking = False

    def _pick(self, data: bytes) -> Sample | None:
        """The first command of a chunk; None: it is not complete, or no command."""
        dispatcher = self.clients.dispatcher
        try:
            arguments = dispatcher.parse(data)
            commands = len(dispatcher.repeatable(data)) if arguments else 0
        except ProtocolError:
            return None
        return Sample(self._tracing, self, arguments, commands) if arguments else None

    def _look(self, data: bytes, sample: Sample) -> None:
        fifos = [(link.fifo, len(link.fifo)) for link in dict.fromkeys((self.home, self.link))]
        hits, pending = self.hits, self.pending
        self.sample = sample
        super().data_received(data)
        if any(self._stands(fifo, before, sample) for fifo, before in fifos):
            self.sample = None
        elif self.buffer or self.pending > pending:
            self.sample = None  # it has not been taken yet, or waits for what another client has asked
        elif self.hits > hits:
            self._end("hit")
        elif self.pin is None and self.task is None:
            self._end("local")

    def _stands(self, fifo: deque[Entry], before: int, sample: Sample) -> bool:
        """Stand in for the first of the client's new entries in a FIFO, if there is one."""
        for place in range(before, len(fifo)):
            caller, n, *rest = fifo[place]
            if self in caller.owners():
                watched = _Watched(caller, sample).expect(n)
                fifo[place] = cast("Entry", (watched, n, *rest))
                return True
        return False

    def pinned_answered(self) -> None:
        """Hear that a command has been answered on a link of the client's own."""
        self._end("pinned")

    def resume(self, reply: bytes) -> None:
        """Answer what was waited for, and go on."""
        if self.state is State.WAITING or (self.pin is not None and self.pin.answering is not None):
            found = _CODE.match(reply)
            self._end("local", found[1].decode() if found is not None else "")
        super().resume(reply)

    def _end(self, path: str, error: str = "") -> None:
        if self.sample is not None:
            self.sample.end(path, error)
            self.sample = None
