"""Opening the sockets that Pannier listens on, for clients of Redis and for the administration alike."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.certificates import Certificates
from proxy.handshakes import Handshakes, TlsServer, show
from proxy.resp.errors import StartupError
from proxy.upstream.address import Listen, cannot_listen

_BACKLOG = 1024
_PEER = struct.Struct("3i")
"""What Linux tells of who is at the other end of a unix socket: struct ucred of unix(7)."""


class Server(Protocol):
    """What listens: asyncio's own server, or one that speaks TLS."""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The sockets it listens on."""

    def close(self) -> None:
        """Listen no more."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What is needed to listen with TLS."""

    certificates: Certificates
    handshakes: Handshakes


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
    tls: Tls | None = None,
    option: str = "--listen",
    passed: Passed = NONE_PASSED,
) -> Server:
    """Serve an address with the protocols that `make` makes. Raises StartupError if it cannot be had.

    `tls`: None where it is not spoken; never on unix sockets. `option`: which one gives the address.
    `passed`: it is served with one of these sockets, if it is theirs.
    """
    loop = asyncio.get_running_loop()
    try:
        sock = passed.take(listen)
        if listen.path is not None:
            if sock is None:
                _remove_stale_socket(listen.path)
                sock = _bind_unix(listen, listen.path)
            return await loop.create_unix_server(make, sock=sock, backlog=_BACKLOG)
        if tls is not None:
            sockets = [sock] if sock is not None else await _bind(listen)
            return TlsServer(make, sockets, tls.certificates, tls.handshakes)
        if sock is not None:
            return await loop.create_server(make, sock=sock, backlog=_BACKLOG)
        return await loop.create_server(
            make, listen.host, listen.port, backlog=_BACKLOG, reuse_address=True
        )
    except OSError as error:
        raise cannot_listen(listen, error, option) from None


def addresses(server: Server, listen: Listen) -> list[str]:
    """Where a server listens, with the ports the system chose."""
    if listen.path is not None:
        return [str(listen)]
    return [show(sock.getsockname()) + ("?tls=true" if listen.tls else "") for sock in server.sockets]


def clear_away(listen: Listen, passed: Passed = NONE_PASSED) -> None:
    """Remove the file of a socket that is closed, unless it was passed: then it is not ours."""
    if listen.path is not None and listen not in passed.taken:
        with contextlib.suppress(OSError):
            os.unlink(listen.path)


def peer(sock: socket.socket | None) -> tuple[int, int, int] | None:
    """Process, user and group at the other end of a unix socket; None: the system does not tell.

    They are those of when it connected. The process is 0 if it is in a container that is not seen from here.
    """
    if sock is None or sock.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        pid, uid, gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    except OSError:
        return None
    return pid, uid, gid


async def _bind(listen: Listen) -> list[socket.socket]:
    """Sockets that listen at an address, one for each the name stands for, as asyncio makes them."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with contextlib.ExitStack() as stack:
        found = []
        for family, kind, protocol, _, name in dict.fromkeys(infos):
            sock = stack.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(name)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            found.append(sock)
        stack.pop_all()
    return found


def _bind_unix(listen: Listen, path: str) -> socket.socket:
    """A socket bound to a path, with the mode and the group that are asked for.

    Its file is there for nobody until it has both. Raises StartupError.
    """
    group = -1 if listen.group is None else _group(listen, listen.group)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        mask = os.umask(0o777)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        stack.callback(clear_away, listen)
        if group >= 0:
            try:
                os.chown(path, -1, group)
            except PermissionError:
                raise StartupError(
                    f"cannot listen on {listen}: the user pannier runs as may not give the socket to group "
                    f"{listen.group}; make it a member of that group (in a pod: supplementalGroups)"
                ) from None
        os.chmod(path, listen.mode)
        stack.pop_all()
    return sock


def _group(listen: Listen, name: str) -> int:
    """The number of a group. Raises StartupError."""
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartupError(
            f"cannot listen on {listen}: there is no group {name} on this machine; give one there is, or its "
            "number, as in ?group=1000"
        ) from None


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
