"""Frames that the sidecar writes itself: requests to Redis, replies to clients (RESP2 and RESP3)."""

from __future__ import annotations

from collections.abc import Iterable

OK = b"+OK\r\n"


def request(*arguments: bytes | str | int) -> bytes:
    """Encode a request; text is UTF-8."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def bulk(data: bytes | str) -> bytes:
    """Encode a bulk string; text is UTF-8."""
    raw = data if isinstance(data, bytes) else data.encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def text(data: str, protocol: int) -> bytes:
    """Encode text to be read by people: a verbatim string in RESP3, a bulk string in RESP2."""
    raw = data.encode()
    return b"=%d\r\ntxt:%b\r\n" % (len(raw) + 4, raw) if protocol == 3 else bulk(raw)


def integer(value: int) -> bytes:
    """Encode an integer."""
    return b":%d\r\n" % value


def null(protocol: int) -> bytes:
    """Encode the null of the protocol: `_` in RESP3, the null bulk string in RESP2."""
    return b"_\r\n" if protocol == 3 else b"$-1\r\n"


def array(items: Iterable[bytes]) -> bytes:
    """Wrap encoded items into an array."""
    parts = list(items)
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


def error(message: str) -> bytes:
    """Encode an error; the message starts with its code (`ERR …`). Line ends become spaces."""
    return b"-%b\r\n" % message.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape")


def value(data: object, protocol: int) -> bytes:
    """Encode what hiredis decoded: maps become flat arrays in RESP2. Raises TypeError for other types."""
    if isinstance(data, dict):
        items = [value(item, protocol) for pair in data.items() for item in pair]
        return b"%%%d\r\n%b" % (len(data), b"".join(items)) if protocol == 3 else array(items)
    if isinstance(data, list):
        return array(value(item, protocol) for item in data)
    if isinstance(data, bytes | str):
        return bulk(data)
    if isinstance(data, int):
        return integer(data)
    if data is None:
        return null(protocol)
    raise TypeError(f"no RESP frame for {type(data).__name__}")
