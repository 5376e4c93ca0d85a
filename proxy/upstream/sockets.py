"""Socket options shared by both sides."""

from __future__ import annotations

import asyncio
import socket


def set_keepalive(transport: asyncio.BaseTransport, seconds: float) -> None:
    """Send TCP keep-alives after `seconds` of silence, then every third of it; 0 turns them off.

    Redis does the same with its tcp-keepalive (redis.conf), so a vanished peer is noticed after about twice
    that time. Does nothing on a unix socket.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX or seconds <= 0:
        return
    idle = max(1, int(seconds))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 3))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
