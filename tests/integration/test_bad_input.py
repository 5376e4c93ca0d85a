"""Bytes that are no RESP, or nearly none: the sidecar answers and closes exactly as Redis does.

Every input is sent to Redis and to the sidecar in front of it, each on a connection of its own, all at the
same time; what comes back, and whether the connection is closed, must be the same.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import Process, pannier, read_exactly, redis_server

QUIET = 0.3
"""Seconds without a byte on any connection after which nothing more is expected."""
LIMIT = 15.0
KB = 1024

LENGTHS = {
    "negative": b"-2",
    "very negative": b"-2147483649",
    "huge": b"2147483648",
    "beyond 64 bits": b"99999999999999999999",
    "most negative": b"-9223372036854775808",
    "beyond most negative": b"-9223372036854775809",
    "letters": b"abc",
    "empty": b"",
    "leading zero": b"01",
    "two zeros": b"00",
    "minus zero": b"-0",
    "plus": b"+1",
    "space before": b" 1",
    "space after": b"1 ",
    "hexadecimal": b"0x1",
    "decimal point": b"1.0",
    "exponent": b"1e1",
    "minus alone": b"-",
    "NUL": b"\0",
    "underscore": b"1_0",
    "other digits": "١".encode(),
}

CASES: dict[str, bytes] = {
    **{f"multibulk length: {name}": b"*%b\r\n$4\r\nPING\r\n" % text for name, text in LENGTHS.items()},
    **{f"bulk length: {name}": b"*1\r\n$%b\r\nPING\r\n" % text for name, text in LENGTHS.items()},
    **{f"second bulk length: {name}": b"*2\r\n$4\r\nECHO\r\n$%b\r\nx\r\n" % text for name, text in LENGTHS.items()},
    # What Redis skips without an answer.
    "*0": b"*0\r\n",
    "*-1": b"*-1\r\n",
    "*0 before a command": b"*0\r\n*1\r\n$4\r\nPING\r\n",
    "*-1 before a command": b"*-1\r\nPING\r\n",
    "empty lines": b"\r\n\n\r\n\nPING\r\n",
    "spaces only": b"   \t \r\nPING\r\n",
    "carriage returns": b"\r\r\r\nPING\r\n",
    # Wrong types.
    "argument without $": b"*1\r\nPING\r\n",
    "simple string as argument": b"*1\r\n+PING\r\n",
    "integer as argument": b"*1\r\n:1\r\n",
    "error as argument": b"*2\r\n$4\r\nECHO\r\n-x\r\n",
    "array as argument": b"*1\r\n*1\r\n$4\r\nPING\r\n",
    "array as second argument": b"*2\r\n$4\r\nECHO\r\n*1\r\n$1\r\nx\r\n",
    "map as argument": b"*1\r\n%1\r\n",
    "null as argument": b"*1\r\n_\r\n",
    "verbatim string as argument": b"*1\r\n=8\r\ntxt:PING\r\n",
    "NUL as type": b"*1\r\n\0\r\n",
    "byte 255 as type": b"*1\r\n\xff\r\n",
    "byte 255 inside": b"*2\r\n$4\r\nPING\r\n\xff4\r\n",
    "line end as type": b"*1\r\n\r\n$4\r\nPING\r\n",
    "newline as type": b"*1\r\n\n4\r\nPING\r\n",
    "null bulk string": b"*1\r\n$-1\r\n",
    "null bulk string inside": b"*2\r\n$4\r\nECHO\r\n$-1\r\n",
    "RESP3 map": b"%1\r\n$4\r\nPING\r\n$0\r\n\r\n",
    "RESP3 set": b"~1\r\n$4\r\nPING\r\n",
    "RESP3 push": b">1\r\n$4\r\nPING\r\n",
    "RESP3 boolean": b"#t\r\n",
    "RESP3 null": b"_\r\n",
    "simple string": b"+PING\r\n",
    "bulk string": b"$4\r\nPING\r\n",
    "integer": b":1\r\n",
    # Missing and odd line ends.
    "multibulk header, LF only": b"*1\n$4\nPING\n",
    "multibulk header, LF only, then more": b"*1\n$4\nPING\n\r\n",
    "bulk header, LF only": b"*1\r\n$4\nPING\r\n",
    "CR without LF after a header": b"*1\rX$4\r\nPING\r\n",
    "CR without LF after a bulk header": b"*1\r\n$4\rXPING\r\n",
    "CR without LF after data": b"*1\r\n$4\r\nPING\rX",
    "no line end after data": b"*1\r\n$4\r\nPINGXX*1\r\n$4\r\nPING\r\n",
    "no line end after data, then nothing": b"*1\r\n$4\r\nPING",
    "data longer than it says": b"*1\r\n$4\r\nPINGPONG\r\n",
    "data shorter than it says": b"*1\r\n$5\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
    "CR in the middle of a header": b"*1\r1\r\n$4\r\nPING\r\n",
    # Cut short: no answer, no close.
    **{
        f"cut after {cut} bytes": b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n"[:cut]
        for cut in (1, 2, 3, 4, 5, 7, 10, 13, 14, 18, 20, 21)
    },
    "inline without end": b"PING",
    # Inline.
    "unbalanced double quote": b'SET x "y\r\n',
    "unbalanced single quote": b"SET x 'y\r\n",
    "quote in the middle": b'SET x y"z"\r\nGET x\r\n',
    "text after a closing quote": b'SET x "y"z\r\n',
    "escaped closing quote": b'SET x "y\\"\r\n',
    "escapes": b'ECHO "\\x41\\n\\r\\t\\b\\a\\q\\x4"\r\n',
    "single quotes with an escape": b"ECHO 'a\\'b\\n'\r\n",
    "empty quotes": b"ECHO \"\"\r\nECHO ''\r\n",
    "empty quotes as command": b'""\r\nPING\r\n',
    "inline LF only": b"ECHO hi\nPING\n",
    "inline CR in the middle": b"ECHO a\rb\r\n",
    "inline two CRs": b"ECHO hi\r\r\n",
    "inline NUL": b"ECHO a\0b\r\n",
    "inline NUL, then more": b"ECHO a\0b\r\nPING\r\n",
    "inline NUL first": b"\0PING\r\n",
    "inline NUL after the end": b"PING\r\n\0",
    "inline high bytes": b"ECHO \xff\xfe\r\n",
    "inline vertical tab": b"ECHO\vhi\f\r\n",
    "inline of 64 KB, ended": b"ECHO " + b"x" * (64 * KB - 20) + b"\r\n",
    "inline over 64 KB, no end": b"x" * (64 * KB + 1),
    "inline of exactly 64 KB, no end": b"x" * (64 * KB),
    "inline far over 64 KB, ended": b"ECHO " + b"x" * (200 * KB) + b"\r\nPING\r\n",
    "inline NUL and far over 64 KB": b"ECHO \0\r\n" + b"x" * (100 * KB),
    # Header lines without end.
    "multibulk header of 64 KB, no end": b"*" + b"1" * (64 * KB - 1),
    "multibulk header over 64 KB, no end": b"*" + b"1" * (64 * KB),
    "multibulk header far over 64 KB": b"*" + b"1" * (200 * KB) + b"\r\n",
    "bulk header of 64 KB, no end": b"*1\r\n$" + b"1" * (64 * KB - 1),
    "bulk header over 64 KB, no end": b"*1\r\n$" + b"1" * (64 * KB),
    "bulk header far over 64 KB": b"*1\r\n$" + b"1" * (200 * KB) + b"\r\n",
    # Other protocols.
    "HTTP GET": b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n",
    "HTTP GET with Host": b"GET / HTTP/1.1\r\nHost: localhost:6379\r\nAccept: */*\r\n\r\nPING\r\n",
    "HTTP POST": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\nPING\r\n",
    "HTTP HEAD": b"HEAD / HTTP/1.0\r\n\r\n",
    "host: after commands": b"PING\r\nhost: x\r\nPING\r\n",
    "host: as multibulk": b"*1\r\n$5\r\nHost:\r\n*1\r\n$4\r\nPING\r\n",
    "post as multibulk": b"*1\r\n$4\r\npost\r\n*1\r\n$4\r\nPING\r\n",
    "HTTP2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS ClientHello": bytes.fromhex("1603010200010001fc0303") + bytes(range(32)) + bytes(200),
    "TLS ClientHello with a newline": bytes.fromhex("160301020a0100") + b"\n\r\n" + bytes(64) + b"\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "memcached": b"get foo\r\nversion\r\nquit\r\nPING\r\n",
    # After commands that are right.
    "error after one command": b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n*1\r\n$-5\r\n",
    "error after a pipeline": b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n" * 500 + b"*1\r\n:5\r\nPING\r\n",
    "error after an inline pipeline": b"ECHO hi\r\n" * 100 + b'ECHO "\r\nPING\r\n',
    "error after a local command": b"CLIENT SETNAME x\r\nCLIENT GETNAME\r\n*1\r\n$x\r\n",
    "error after SELECT": b"SELECT 1\r\nPING\r\n*x\r\n",
    "error after a slow command": b"EVAL \"for i=1,3000000 do end return 'slow'\" 0\r\nPING\r\n*1\r\nx\r\n",
    "error after a transaction": b"MULTI\r\nPING\r\nEXEC\r\n*x\r\n",
    "error in a transaction": b"MULTI\r\nPING\r\n*x\r\nEXEC\r\n",
    "error after a blocking command": b"RPUSH l x\r\nBLPOP l 1\r\n*x\r\n",
    "error while subscribed": b"SUBSCRIBE c\r\n*1\r\n$-4\r\nPING\r\n",
    "error after QUIT": b"PING\r\nQUIT\r\n*x\r\n",
    "error after an error reply": b"NOSUCH\r\n*1\r\n$a\r\n",
    "error after a big reply": b"EVAL \"return string.rep('x', 3000000)\" 0\r\n*1\r\n$a\r\n",
    "two errors": b"*x\r\n*y\r\n",
    # Right, if unusual.
    "empty argument": b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
    "empty command name": b"*1\r\n$0\r\n\r\nPING\r\n",
    "command name with line ends": b"*1\r\n$6\r\nA\r\nB\r\n\r\nPING\r\n",
    "binary command name": b"*1\r\n$3\r\n\0\xff\x01\r\n",
    "command name of 300 bytes": b"*1\r\n$300\r\n" + b"x" * 300 + b"\r\nPING\r\n",
    "unknown command with long arguments": b"*3\r\n$1\r\nx\r\n$200\r\n" + b"y" * 200 + b"\r\n$2\r\n\r\n\r\n",
    "many arguments": b"*2000\r\n$4\r\nPING\r\n" + b"$1\r\nx\r\n" * 1999,
    "unknown sub-command": b"CLIENT NOSUCH\r\nCONFIG NOSUCH\r\nPING\r\n",
    "too few arguments": b"GET\r\nSET a\r\nCLIENT\r\nSELECT\r\nAUTH\r\nPING\r\n",
    "mixed inline and multibulk": b"PING\r\n*1\r\n$4\r\nPING\r\nECHO hi\r\n*2\r\n$4\r\necho\r\n$1\r\nx\r\n",
}  # fmt: skip

DIFFERENT: dict[str, tuple[str, bytes, bool]] = {}
"""By name: why the sidecar answers otherwise on purpose, what it answers, whether it closes."""


@dataclass
class Talk:
    """One connection: what came back so far."""

    sock: socket.socket
    heard: bytearray = field(default_factory=bytearray)
    closed: bool = False

    @property
    def outcome(self) -> tuple[bytes, bool]:
        return bytes(self.heard), self.closed


def talk(ports: Mapping[str, int], cases: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, bool]]]:
    """Send every case to every port at once; what each answered and whether it closed, by case and port.

    Ends when all has been quiet; if answers differ by then, the slower side gets the whole `LIMIT`.
    """
    talks = {(case, who): Talk(socket.create_connection(("127.0.0.1", port), 10)) for case in cases for who, port in ports.items()}
    with selectors.DefaultSelector() as selector:
        for (case, _), one in talks.items():
            selector.register(one.sock, selectors.EVENT_READ, one)
            with contextlib.suppress(ConnectionError):
                one.sock.sendall(cases[case])
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and selector.get_map():
            ready = selector.select(QUIET)
            for key, _ in ready:
                _hear(selector, key.data)
            same = all(len({talks[case, who].outcome for who in ports}) == 1 for case in cases if case not in DIFFERENT)
            if not ready and same:
                break
    for one in talks.values():
        one.sock.close()
    return {case: {who: talks[case, who].outcome for who in ports} for case in cases}


def _hear(selector: selectors.BaseSelector, one: Talk) -> None:
    try:
        data = one.sock.recv(1 << 20)
    except ConnectionError:
        data = b""
    if data:
        one.heard += data
    else:
        one.closed = True
        selector.unregister(one.sock)


Outcomes = dict[str, dict[str, tuple[bytes, bool]]]


@pytest.fixture(scope="module")
def outcomes(shared_redis: Process, shared_proxy: Process) -> Outcomes:
    return talk({"redis": shared_redis.port, "pannier": shared_proxy.port}, CASES)


class TestProtocolErrorsAreRedisOwn:
    @pytest.mark.parametrize("case", [case for case in CASES if case not in DIFFERENT])
    def test_same_bytes_same_close(self, outcomes: Outcomes, case: str) -> None:
        assert outcomes[case]["pannier"] == outcomes[case]["redis"]
