"""A scripted upstream, for faults whose bytes and moments a real server does not let us choose.

It reads requests as Redis does, answers the handshake by itself, and asks a function for everything else.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

import hiredis

HELLO = (
    b"*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:7\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
)


class Hang(Exception):
    """Raised by a script: answer nothing on this connection any more."""


class Cut(Exception):
    """Raised by a script: send these bytes, then close the connection."""

    def __init__(self, last: bytes = b"") -> None:
        super().__init__()
        self.last = last


Script = Callable[[list[bytes]], bytes]
"""Takes a request, returns its reply; raises Hang or Cut."""


class FakeUpstream:
    """Listens on `port` while the context lasts, even if the script fails."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[list[bytes]] = []
        """Everything received but the handshakes, in order."""
        self.connected: list[float] = []
        """When connections came (monotonic seconds)."""
        self.greeting: bytes | None = None
        """Sent to each connection, which is then closed; None: serve it."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> FakeUpstream:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join()

    def cut_all(self) -> None:
        """Close every connection."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def sent(self, *names: bytes) -> list[list[bytes]]:
        """The requests received whose command is one of `names`."""
        return [request for request in list(self.requests) if request[0].upper() in names]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connected.append(time.monotonic())
            if self.greeting is not None:
                with contextlib.suppress(OSError):
                    sock.sendall(self.greeting)
                sock.close()
                continue
            self._open.add(sock)
            thread = threading.Thread(target=self._serve, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        reader = hiredis.Reader()
        with sock, contextlib.suppress(OSError):
            try:
                while data := sock.recv(1 << 16):
                    reader.feed(data)
                    while (request := reader.gets()) is not False:
                        self._take(sock, request)
            except Hang:
                while data := sock.recv(1 << 16):
                    reader.feed(data)
                    while (request := reader.gets()) is not False:
                        self.requests.append(request)
            except Cut as cut:
                sock.sendall(cut.last)
        self._open.discard(sock)

    def _take(self, sock: socket.socket, request: list[bytes]) -> None:
        name = request[0].upper()
        if name == b"HELLO":
            sock.sendall(HELLO)
        elif name == b"COMMAND":
            sock.sendall(b"*0\r\n")
        else:
            self.requests.append(request)
            sock.sendall(self.script(request))
