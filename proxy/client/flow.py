"""Flow control between a client and what serves it: who must wait, and why."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

_PIECE = 256 * 1024
"""Bytes: what is read from Redis at once, so that most replies are no longer."""


class Reason(enum.IntEnum):
    """Why no more commands are taken from a client for now: one bit each.

    No IntFlag: that combines them in Python, which would cost a wait half a microsecond.
    """

    OUTPUT = 1
    """The client does not read its replies."""
    LINK = 2
    """Redis does not keep up with the shared link."""
    PIN = 4
    """Redis does not keep up with the client's own link."""
    BUFFER = 8
    """Enough of the client's bytes wait for earlier commands."""
    PENDING = 16
    """Enough of the client's commands are in flight."""
    RATE = 32
    """The tenant has done all it may for now."""


class Flow:
    """Pauses the reading of one transport while any reason holds."""

    __slots__ = ("_transport", "reasons")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.reasons = 0

    def hold(self, reason: Reason) -> None:
        """Stop reading because of `reason`."""
        if not self.reasons and not self._transport.is_closing():
            self._transport.pause_reading()
        self.reasons |= reason

    def release(self, reason: Reason) -> bool:
        """Withdraw `reason`; True if reading goes on because of it."""
        if not self.reasons & reason:
            return False
        self.reasons &= ~reason
        if self.reasons or self._transport.is_closing():
            return False
        self._transport.resume_reading()
        return True


def in_pieces(write: Callable[[bytes | memoryview], object]) -> Callable[[bytes], object]:
    """A transport's `write` for what is sent with TLS.

    Of one call's bytes uvloop hands all on to the socket's own transport, where neither `pause_writing` nor
    `get_write_buffer_size` knows of them: a client that does not read would hold them uncounted. In pieces,
    only the first goes that way.
    """

    def write_pieces(data: bytes) -> None:
        if len(data) <= _PIECE:
            write(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _PIECE):
            write(view[start : start + _PIECE])

    return write_pieces
