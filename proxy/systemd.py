"""What systemd offers a service: to hear of its state (sd_notify(3)), and sockets (sd_listen_fds(3)).

Both are environment variables and plain sockets, so no library is needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

_FIRST = 3
"""The first file descriptor that is passed."""


def notify(*states: str) -> None:
    """Tell systemd of a change, such as READY=1, if it wants to know (NOTIFY_SOCKET)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
        sock.sendall("\n".join(states).encode())


def inherited(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that were passed to this process, once: they are not its children's.

    Raises OSError if what was passed is no listening stream socket, or it is not said how many there are.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count:
        return []
    if not (count.isascii() and count.isdigit()):
        raise OSError(f"{count!r} is no number of sockets")
    sockets = []
    for number in range(_FIRST, _FIRST + int(count)):
        try:
            os.set_inheritable(number, False)
            sock = socket.socket(fileno=number)
        except OSError as error:
            raise OSError(f"file descriptor {number} is no socket ({error.strerror})") from None
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.detach()
            raise OSError(f"file descriptor {number} is no listening stream socket")
        sock.setblocking(False)
        sockets.append(sock)
    return sockets
