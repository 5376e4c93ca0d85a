"""A client that keeps Redis' replies as the bytes they are, for comparing byte for byte.

It reads RESP on its own and shares nothing with the proxy's readers: a fault there cannot hide itself here.
"""

from __future__ import annotations

import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

Argument = bytes | str | int | float

_ELEMENTS = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}
_STRINGS = (b"$", b"=", b"!")


def request(*arguments: Argument) -> bytes:
    """A command as multibulk; text is UTF-8."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def words(line: str) -> list[bytes]:
    """A command written as in redis-cli: words, quoted where they hold spaces."""
    return [word.encode() for word in shlex.split(line)]


class Wire:
    """One connection to a server or to the sidecar; a context manager."""

    def __init__(self, port: int, protocol: int = 2, timeout: float = 10.0) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.sock.makefile("rb", 1 << 18)
        if protocol == 3:
            self.ask("HELLO", 3)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    # --- sending

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send(self, *arguments: Argument) -> None:
        self.raw(request(*arguments))

    def ask(self, *arguments: Argument) -> bytes:
        """Send a command; the bytes of its reply."""
        self.send(*arguments)
        return self.read()

    def line(self, text: str) -> bytes:
        """`ask` for a command written as in redis-cli."""
        return self.ask(*words(text))

    def pipeline(self, requests: Iterable[bytes], replies: int) -> list[bytes]:
        """Send all requests at once while reading the replies."""
        data = b"".join(requests)
        with in_background(lambda: self.sock.sendall(data)):
            return [self.read() for _ in range(replies)]

    # --- reading

    def read(self) -> bytes:
        """The bytes of the next reply or push. Raises EOFError if the connection ends first."""
        head = self._file.readline()
        if not head.endswith(b"\r\n"):
            raise EOFError(head)
        kind = head[:1]
        if kind in _STRINGS:
            size = int(head[1:-2])
            return head if size < 0 else head + self._exactly(size + 2)
        if kind not in _ELEMENTS:
            return head
        count = int(head[1:-2]) * _ELEMENTS[kind]
        parts = [head, *(self.read() for _ in range(count))]
        if kind == b"|":
            parts.append(self.read())
        return b"".join(parts)

    def reads(self, count: int) -> list[bytes]:
        return [self.read() for _ in range(count)]

    def rest(self) -> bytes:
        """Everything until the peer closes."""
        return self._file.read()

    def integer(self) -> int:
        reply = self.read()
        assert reply[:1] == b":", reply
        return int(reply[1:-2])

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError(f"{size - len(data)} bytes missing")
        return data


class in_background:
    """Run something in a thread while the context lasts; what it raises is raised at the end."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> in_background:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(30)
        if error is None and self._error is not None:
            raise self._error
        assert not self._thread.is_alive()


def until(condition: Callable[[], object], what: str, limit: float = 15.0) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit} s: {what}"
        time.sleep(0.005)


def text(reply: bytes) -> str:
    """What a bulk or verbatim string says."""
    head, _, rest = reply.partition(b"\r\n")
    assert head[:1] in (b"$", b"="), reply
    body = rest[:-2]
    return (body[4:] if head[:1] == b"=" else body).decode()


def bulk(reply: bytes) -> bytes:
    """The bytes in a bulk string."""
    head, _, rest = reply.partition(b"\r\n")
    assert head[:1] == b"$", reply
    return rest[:-2]


def blank(reply: bytes) -> bytes:
    """A reply with every number blanked: what remains where times and ids differ."""
    return re.sub(rb"\d+", b"#", reply)
