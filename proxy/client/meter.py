"""Holding a tenant to its operations per second.

A `Meter` stands between the transport and a session whose tenant has a limit, so that sessions without one
pay nothing. What has been done is charged chunk by chunk; so a tenant may exceed its limit by what one chunk
of a pipeline holds, and pays that back before anything else is done.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.client.flow import Reason

if TYPE_CHECKING:
    from proxy.client.session import Session
    from proxy.client.spaces import Bucket


class Meter(asyncio.Protocol):
    """Takes the transport's calls for a session."""

    def __init__(self, session: Session, bucket: Bucket) -> None:
        self._session = session
        self._bucket = bucket
        self._charged = session.served

    def data_received(self, data: bytes) -> None:
        """Take a chunk: commands that are too many are refused one by one, in their order."""
        session = self._session
        self.charge()
        if self._bucket.empty:
            session.relaying = False
        session.data_received(data)
        self.charge()
        if session.pin is not None and self._bucket.empty and not session.flow.reasons & Reason.RATE:
            # Inside a transaction an error would break it: the client waits.
            session.hold(Reason.RATE)
            wait = self._bucket.wait()
            asyncio.get_running_loop().call_later(wait, session.release, Reason.RATE)

    def charge(self) -> None:
        """Charge what has been taken since the last time."""
        served = self._session.served
        self._bucket.take(served - self._charged)
        self._charged = served

    def eof_received(self) -> bool:
        """Pass it on."""
        return self._session.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on, and charge what was taken while the client waited."""
        self._session.connection_lost(exc)
        self.charge()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._session.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._session.resume_writing()


def limit(session: Session) -> None:
    """Put a meter before a session, or take it away, as its space demands."""
    bucket, before = session.space.bucket, session.transport.get_protocol()
    if isinstance(before, Meter):
        before.charge()
    protocol = session if bucket is None else Meter(session, bucket)
    if before is not protocol:
        session.transport.set_protocol(protocol)
