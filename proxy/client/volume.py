"""How many bytes clients have sent and been sent, as the kernel counts them (TCP_INFO of Linux).

To count them here would cost every hit. So each connection's are asked for when it ends, and of all that are
open when somebody wants to know. Clients that come over a unix socket are not among them: there the kernel
counts none.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.client.session import Session

_INFO = getattr(socket, "TCP_INFO", None)
_ACKED_AND_RECEIVED = struct.Struct("=QQ")
_AT = 120
"""Where tcpi_bytes_acked stands in struct tcp_info, with tcpi_bytes_received behind it (since Linux 4.1)."""
_SLICE = 64
"""Connections looked at without a pause: a third of a millisecond."""


class Volume:
    """Adds them up, since the start."""

    def __init__(self) -> None:
        self.sent = 0
        """Bytes that clients have acknowledged."""
        self.received = 0
        self._seen: dict[Session, tuple[int, int]] = {}
        """What has been counted of each open connection."""

    def look(self, session: Session) -> None:
        """Count what a connection has sent and been sent since it was last looked at."""
        found = _ask(session)
        if found is not None:
            sent, received = self._seen.get(session, (0, 0))
            self.sent += found[0] - sent
            self.received += found[1] - received
            self._seen[session] = found

    def leave(self, session: Session) -> None:
        """Count the last of a connection that has ended."""
        self.look(session)
        self._seen.pop(session, None)

    async def look_at(self, sessions: Iterable[Session]) -> None:
        """Count what these have sent and been sent, with pauses."""
        for n, session in enumerate(list(sessions), 1):
            if not session.gone:
                self.look(session)
            if n % _SLICE == 0:
                await asyncio.sleep(0)


def _ask(session: Session) -> tuple[int, int] | None:
    """What a connection has been sent and has sent; None: the kernel does not tell."""
    sock = session.transport.get_extra_info("socket")
    if sock is None or _INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _INFO, _AT + _ACKED_AND_RECEIVED.size)
        sent, received = _ACKED_AND_RECEIVED.unpack_from(info, _AT)
    except (OSError, struct.error):
        return None  # a unix socket, closed already, or an old kernel
    return sent, received
