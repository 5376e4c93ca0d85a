"""Opening the sockets that Pannier listens on, for clients of Redis and for the administration alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable

from proxy.resp.errors import StartupError
from proxy.upstream.address import Listen, cannot_listen

_BACKLOG = 1024
_HANDSHAKE = 10.0
"""Seconds that TLS may take to begin."""


async def serve(
    make: Callable[[], asyncio.Protocol],
    listen: Listen,
    tls: ssl.SSLContext | None = None,
    option: str = "--listen",
) -> asyncio.Server:
    """Serve an address with the protocols that `make` makes. Raises StartupError if it cannot be had.

    `option`: which one gives the address.
    """
    loop = asyncio.get_running_loop()
    patience = _HANDSHAKE if tls is not None else None
    try:
        if listen.path is not None:
            _remove_stale_socket(listen.path)
            server = await loop.create_unix_server(
                make, listen.path, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=patience
            )
            os.chmod(listen.path, listen.mode)
            return server
        return await loop.create_server(
            make, listen.host, listen.port, backlog=_BACKLOG, reuse_address=True,
            ssl=tls, ssl_handshake_timeout=patience,
        )  # fmt: skip
    except OSError as error:
        raise cannot_listen(listen, error, option) from None


def addresses(server: asyncio.Server, listen: Listen) -> list[str]:
    """Where a server listens, with the ports the system chose."""
    if listen.path is not None:
        return [str(listen)]
    return [_address(sock.getsockname()) for sock in server.sockets]


def clear_away(listen: Listen) -> None:
    """Remove the file of a socket that is closed."""
    if listen.path is not None:
        with contextlib.suppress(OSError):
            os.unlink(listen.path)


def _address(name: tuple[str, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _remove_stale_socket(path: str) -> None:
    """Remove what a killed predecessor left; a live socket or another file stays and fails the bind."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return
        else:
            raise StartupError(f"unix://{path}: another process serves this socket already")
