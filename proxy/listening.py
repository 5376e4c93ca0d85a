"""Opening the sockets that Pannier listens on, for clients of Redis and for the administration alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterable, Sequence

from proxy.resp.errors import StartupError
from proxy.upstream.address import Listen, cannot_listen

_BACKLOG = 1024
_HANDSHAKE = 10.0
"""Seconds that TLS may take to begin."""


class Passed:
    """Listening sockets that this process was started with, each for who takes it first."""

    def __init__(self, sockets: Sequence[socket.socket] = ()) -> None:
        self._sockets = list(sockets)
        self.taken: set[Listen] = set()
        """The addresses of those that have been."""

    def take(self, listen: Listen) -> socket.socket | None:
        """The one that listens at an address."""
        found = next((sock for sock in self._sockets if _listens_at(sock, listen)), None)
        if found is not None:
            self._sockets.remove(found)
            self.taken.add(listen)
        return found

    def addresses(self, known: Iterable[Listen]) -> list[Listen]:
        """Where those listen that are at none of the addresses known."""
        known = list(known)
        new = [sock for sock in self._sockets if not any(_listens_at(sock, each) for each in known)]
        return [_as_listen(sock) for sock in new]


def _listens_at(sock: socket.socket, listen: Listen) -> bool:
    if sock.family == socket.AF_UNIX:
        return listen.path is not None and sock.getsockname() == listen.path
    if listen.path is not None:
        return False
    host, port = sock.getsockname()[:2]
    if listen.host is None:
        return port == listen.port and host in ("::", "0.0.0.0")
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return (host, port) in [address[:2] for *_, address in found]


def _as_listen(sock: socket.socket) -> Listen:
    name = sock.getsockname()
    return Listen(path=name) if sock.family == socket.AF_UNIX else Listen(name[0], name[1])


NONE_PASSED = Passed()


async def serve(
    make: Callable[[], asyncio.Protocol],
    listen: Listen,
    tls: ssl.SSLContext | None = None,
    option: str = "--listen",
    passed: Passed = NONE_PASSED,
) -> asyncio.Server:
    """Serve an address with the protocols that `make` makes. Raises StartupError if it cannot be had.

    `option`: which one gives the address. `passed`: it is served with one of these sockets, if it is theirs.
    """
    loop = asyncio.get_running_loop()
    patience = _HANDSHAKE if tls is not None else None
    try:
        if (sock := passed.take(listen)) is not None:
            create = loop.create_server if listen.path is None else loop.create_unix_server
            return await create(make, sock=sock, backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=patience)
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


def clear_away(listen: Listen, passed: Passed = NONE_PASSED) -> None:
    """Remove the file of a socket that is closed, unless it was passed: then it is not ours."""
    if listen.path is not None and listen not in passed.taken:
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
