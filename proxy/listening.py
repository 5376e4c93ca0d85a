"""Opening the sockets that Pannier listens on, for clients of Redis and for the administration alike."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import grp
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy import systemd
from proxy.certificates import Certificates
from proxy.handshakes import Handshakes, TlsServer, show
from proxy.resp.errors import StartupError
from proxy.settings import Settings
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

    def __init__(
        self,
        sockets: Sequence[socket.socket] = (),
        by_address: Mapping[Listen, Sequence[socket.socket]] | None = None,
    ) -> None:
        self._sockets = list(sockets)
        self._by_address = dict(by_address or {})
        """Those of which it is known for which address they are."""
        self.taken: set[Listen] = set()
        """The addresses of those that have been."""

    def take(self, listen: Listen) -> Sequence[socket.socket]:
        """Those that listen at an address: none, or several, such as one for each family."""
        found = self._by_address.pop(listen, ())
        if not found:
            found = [sock for sock in self._sockets if _listens_at(sock, listen)]
            self._sockets = [sock for sock in self._sockets if sock not in found]
        if found:
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
        sockets = passed.take(listen)
        if listen.path is not None:
            sockets = sockets or [_open_unix(listen, listen.path)]
            return _Several(
                [await loop.create_unix_server(make, sock=sock, backlog=_BACKLOG) for sock in sockets]
            )
        if tls is not None:
            sockets = sockets or await _bind(listen)
            for sock in sockets:
                sock.listen(_BACKLOG)
            return TlsServer(make, sockets, tls.certificates, tls.handshakes)
        if sockets:
            return _Several([await loop.create_server(make, sock=sock, backlog=_BACKLOG) for sock in sockets])
        return await loop.create_server(
            make, listen.host, listen.port, backlog=_BACKLOG, reuse_address=True
        )
    except OSError as error:
        raise cannot_listen(listen, error, option) from None


async def open_for_all(
    listen: Listen, workers: int, passed: Passed = NONE_PASSED
) -> list[list[socket.socket]]:
    """The sockets that each of some processes is to serve an address with, listening already. Raises
    StartupError.

    At a TCP address each has some of its own, among which the system shares out who connects (SO_REUSEPORT).
    Passed ones, and those in the file system, are the same for all.
    """
    try:
        sockets = list(passed.take(listen))
        if sockets or listen.path is not None:
            sockets = sockets or [_open_unix(listen, listen.path or "")]
            for sock in sockets:
                sock.listen(_BACKLOG)
            return [sockets] * workers
        # Not with SO_REUSEPORT from the beginning: another Pannier's address is in use.
        sockets = await _bind(listen)
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found = [sockets, *[[_beside(sock) for sock in sockets] for _ in range(workers - 1)]]
        for sock in [sock for each in found for sock in each]:
            sock.listen(_BACKLOG)
        return found
    except OSError as error:
        raise cannot_listen(listen, error) from None


def anew(sockets: Sequence[socket.socket]) -> list[socket.socket]:
    """Sockets at the same addresses that do not listen yet, instead of these, which are closed.

    Whoever has come to them is refused; whoever comes from now on comes to those of the other processes.
    Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(_beside(sock)) for sock in sockets]
        stack.pop_all()
    for sock in sockets:
        sock.close()
    return found


def listens(sock: socket.socket) -> bool:
    """Whether somebody may connect to a socket."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _beside(other: socket.socket) -> socket.socket:
    """A socket at the same address as another."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(other.family, other.type, other.proto))
        for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            sock.setsockopt(socket.SOL_SOCKET, name, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(other.getsockname())
        sock.setblocking(False)
        stack.pop_all()
    return sock


class _Several:
    """Servers that are one."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The sockets of all."""
        return [sock for server in self._servers for sock in server.sockets]

    def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()


def addresses(server: Server, listen: Listen) -> list[str]:
    """Where a server listens, with the ports the system chose."""
    if listen.path is not None:
        return [str(listen)]
    return [show(sock.getsockname()) + ("?tls=true" if listen.tls else "") for sock in server.sockets]


_made: dict[str, tuple[int, int, int]] = {}
"""What tells the files of sockets that were made here, by their path, from others that take their place."""


def clear_away(listen: Listen, passed: Passed = NONE_PASSED) -> None:
    """Remove the file of a socket that is closed.

    One that was passed is not ours, nor is one that a successor has put in its place, as it may once nobody
    listens there.
    """
    if listen.path is None or listen in passed.taken:
        return
    made = _made.pop(listen.path, None)
    with contextlib.suppress(OSError):
        if _file(listen.path) == made:
            os.unlink(listen.path)


def _file(path: str) -> tuple[int, int, int]:
    """What tells a file from another. Its number alone does not: it is given again once the file is gone."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


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
    """Sockets bound to an address, one for each the name stands for, as asyncio makes them."""
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
            sock.setblocking(False)
            found.append(sock)
        stack.pop_all()
    return found


def _open_unix(listen: Listen, path: str) -> socket.socket:
    """A socket bound to a path, in the place of what was left there. Raises StartupError."""
    _remove_stale_socket(path)
    return _bind_unix(listen, path)


def _bind_unix(listen: Listen, path: str) -> socket.socket:
    """A socket bound to a path, with the mode and the group that are asked for.

    Its file is there for nobody until it has both. Raises StartupError.
    """
    group = -1 if listen.group is None else group_of(listen, listen.group)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        mask = os.umask(0o777)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        _made[path] = _file(path)
        stack.callback(clear_away, listen)
        if group >= 0:
            try:
                os.chown(path, -1, group)
            except PermissionError:
                raise StartupError(
                    f"cannot listen on {listen}: the user pannier runs as may not give the socket to group "
                    f"{listen.group}; make it a member of that group (systemd: SupplementaryGroups=, "
                    "in a pod: supplementalGroups)"
                ) from None
        os.chmod(path, listen.mode)
        stack.pop_all()
    return sock


def group_of(listen: Listen, name: str) -> int:
    """The number of the group that an address names. Raises StartupError."""
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


def with_passed(settings: Settings) -> tuple[Settings, Passed]:
    """Serve the sockets that systemd has passed, too; only these if nothing says where to listen.

    Raises StartupError if they are none.
    """
    try:
        sockets = systemd.inherited()
    except OSError as error:
        raise StartupError(f"LISTEN_FDS: {error}; pass sockets such as those of ListenStream=") from None
    passed = Passed(sockets)
    listen = settings.listen if settings.origins.get("listen", "default") != "default" else ()
    admin = () if settings.admin_listen is None else (settings.admin_listen,)
    if more := passed.addresses((*listen, *admin)):
        settings = dataclasses.replace(settings, listen=(*listen, *more))
    return settings, passed
