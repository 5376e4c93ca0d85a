"""Holding a tenant to its operations per second.

A `Meter` stands between the transport and a session whose tenant has a limit, so that sessions without one
pay nothing. Commands are charged as they are taken. Of a pipeline no more is looked up or sent at once than
may be done (`window`), what follows is refused one by one; so a limit is exceeded only by what a command
turns out to cost afterwards (SIDECAR WARM).

A refusal concerns one command and no other. Where it would change what later ones mean (`admission.waits`),
the client waits, in a line: what it waits for is charged at once, so those who are merely refused cannot
take it first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from proxy.client.flow import Reason

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.client.spaces import Bucket

_WINDOW = 64 * 1024
"""Bytes of a buffer in which commands are counted at once."""


class Meter(asyncio.Protocol):
    """Takes the transport's calls for a session."""

    def __init__(self, session: Session, bucket: Bucket) -> None:
        self._session = session
        self._bucket = bucket
        self._charged = session.served
        """Commands of the session that have been charged, one that is waited for included."""

    def data_received(self, data: bytes) -> None:
        """Take a chunk; one that may hold more commands than may be done is taken by and by."""
        session = self._session
        if data.count(b"*") > self.left:
            session.relaying = False
        session.data_received(data)
        if session.meter is self:
            self.charge()

    @property
    def left(self) -> int:
        """Commands that may be taken now."""
        self.charge()
        return max(0, self._bucket.left) + self._charged - self._session.served

    def window(self, buf: bytes, pos: int) -> bytes:
        """What begins at `pos` of a buffer, as far as it cannot hold more commands than may be taken now.

        Where it ends in the middle of a command, that one has to be parsed.
        """
        left = self.left
        if not left:
            return b""
        data = buf[pos : pos + _WINDOW]
        parts = data.split(b"*", left + 1)
        return data[: -len(parts[-1]) - 1] if len(parts) == left + 2 else data

    def wait(self) -> None:
        """Take no more of the client's commands until one may be done, which nobody else is then given."""
        session, bucket = self._session, self._bucket
        bucket.take(1)
        self._charged += 1
        session.hold(Reason.RATE)
        asyncio.get_running_loop().call_later(bucket.wait(0), session.release, Reason.RATE)

    def charge(self) -> None:
        """Charge what has been taken since the last time."""
        served = self._session.served
        if served > self._charged:
            self._bucket.take(served - self._charged)
            self._charged = served

    def settle(self) -> None:
        """Charge what has been taken, and give back what has not: the session is metered no more."""
        self._bucket.take(self._session.served - self._charged)
        self._charged = self._session.served

    def eof_received(self) -> bool:
        """Pass it on."""
        return self._session.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, and charge what was taken while the client waited."""
        self._session.connection_lost(exc)
        self.settle()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._session.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._session.resume_writing()


def limit(session: Session) -> None:
    """Put a meter before a session, or take it away, as its space demands."""
    bucket = session.space.bucket
    if session.meter is not None:
        session.meter.settle()
    session.meter = Meter(session, bucket) if bucket is not None else None
    protocol = session.meter or session
    if session.transport.get_protocol() is not protocol:
        session.transport.set_protocol(cast(asyncio.Protocol, protocol))
