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

from tests.harness import Process, pannier, read_exactly, redis_server, wait_until

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
    "other digits": "\u0661".encode(),
}

CASES: dict[str, bytes] = {
    **{f"multibulk length: {name}": b"*%b\r\n$4\r\nPING\r\n" % text for name, text in LENGTHS.items()},
    **{f"bulk length: {name}": b"*1\r\n$%b\r\nPING\r\n" % text for name, text in LENGTHS.items()},
    **{f"second bulk length: {name}": b"*2\r\n$4\r\nECHO\r\n$%b\r\nx\r\n" % text for name, text in LENGTHS.items()},
    "bulk length: 512 MB": b"*1\r\n$536870912\r\n",
    "bulk length: 512 MB and one": b"*1\r\n$536870913\r\n",
    "multibulk length: a million": b"*1048576\r\n",
    "multibulk length: a billion": b"*1000000000\r\n",
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
    "error after a blocking command": b"BLPOP nothing 0.05\r\n*x\r\n",
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

DIFFERENT: dict[str, tuple[str, tuple[bytes, bool]]] = {
    "multibulk length: a billion": ("Redis 6.2 allows 1,048,576 arguments, Redis 7 2,147,483,647: as Redis 7", (b"", False)),
}
"""By name: why the sidecar may answer otherwise than its Redis, and what: the bytes, whether it closes."""

LOCKED: dict[str, bytes] = {
    "a command": b"GET x\r\n",
    "a multibulk command": b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n",
    "an unknown command": b"NOSUCH\r\n",
    "a local command": b"CLIENT ID\r\nCLIENT LIST\r\nINFO\r\nSELECT 1\r\n",
    "a stateful command": b"MULTI\r\nSUBSCRIBE c\r\nBLPOP l 0\r\nEXEC\r\n",
    "10 elements": b"*10\r\n" + b"$1\r\nx\r\n" * 10,
    "11 elements": b"*11\r\n" + b"$1\r\nx\r\n" * 11,
    "11 elements claimed": b"*11\r\n",
    "a million elements claimed": b"*1000000\r\n",
    "11 elements inline": b"x " * 11 + b"\r\n",
    "an argument of 16 KB": b"*2\r\n$4\r\nAUTH\r\n$16384\r\n" + b"x" * 16384 + b"\r\n",
    "an argument over 16 KB": b"*2\r\n$4\r\nAUTH\r\n$16385\r\n" + b"x" * 16385 + b"\r\n",
    "an argument over 16 KB claimed": b"*1\r\n$16385\r\n",
    "an argument of 512 MB claimed": b"*2\r\n$4\r\nAUTH\r\n$536870912\r\n",
    "11 elements after a command": b"PING\r\n*11\r\n",
    "11 elements after a wrong password": b"AUTH wrong\r\n*11\r\n",
    "11 elements after the right password": b"AUTH secret\r\n*12\r\n$3\r\nDEL\r\n" + b"$1\r\nx\r\n" * 11,
    "over 16 KB after the right password": b"AUTH secret\r\n*2\r\n$4\r\nECHO\r\n$20000\r\n" + b"x" * 20000 + b"\r\n",
    "in one pipeline with AUTH": b"GET x\r\nAUTH secret\r\nGET x\r\nRESET\r\nGET x\r\n*11\r\n",
    "wrong passwords": b"AUTH wrong\r\nAUTH default wrong\r\nAUTH nobody secret\r\nAUTH\r\nAUTH a b c\r\nGET x\r\n",
    "HELLO without AUTH": b"HELLO 3\r\nGET x\r\n",
    "HELLO with a wrong password": b"HELLO 3 AUTH default wrong\r\nGET x\r\n",
    "QUIT": b"QUIT\r\n",
    "a protocol error": b"*1\r\n$x\r\n",
}  # fmt: skip
"""Sent without having authenticated to a server that wants the password `secret`."""


@dataclass
class Talk:
    """One connection: what came back so far."""

    sock: socket.socket
    heard: bytearray = field(default_factory=bytearray)
    closed: bool = False

    @property
    def outcome(self) -> tuple[bytes, bool]:
        return bytes(self.heard), self.closed


Outcomes = dict[str, dict[str, tuple[bytes, bool]]]


def talk(ports: Mapping[str, int], cases: Mapping[str, bytes], piece: int = 1 << 20) -> Outcomes:
    """Send every case to every port at once, in pieces; what each answered and whether it closed.

    Ends when all has been quiet; if answers differ by then, the slower side gets the whole `LIMIT`.
    """
    talks = {(case, who): Talk(socket.create_connection(("127.0.0.1", port), 10)) for case in cases for who, port in ports.items()}
    with selectors.DefaultSelector() as selector:
        for one in talks.values():
            selector.register(one.sock, selectors.EVENT_READ, one)
            one.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, max(map(len, cases.values())), piece):
            for (case, _), one in talks.items():
                with contextlib.suppress(ConnectionError):
                    one.sock.sendall(cases[case][at : at + piece])
            for key, _ in selector.select(0):  # once closed, a byte more has the kernel throw away what came before
                _hear(selector, key.data)
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


@pytest.fixture(scope="module")
def outcomes(shared_redis: Process, shared_proxy: Process) -> Outcomes:
    return talk({"redis": shared_redis.port, "pannier": shared_proxy.port}, CASES)


@pytest.fixture(scope="module")
def outcomes_in_pieces(shared_redis: Process, shared_proxy: Process) -> Outcomes:
    short = {case: data for case, data in CASES.items() if len(data) < 300}
    return talk({"redis": shared_redis.port, "pannier": shared_proxy.port}, short, piece=1)


@pytest.fixture(scope="module")
def locked_outcomes(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    home = tmp_path_factory.mktemp("locked")
    with (
        redis_server(redis_binary, home, "--requirepass", "secret") as redis,
        pannier(f"redis://127.0.0.1:{redis.port}", home) as proxy,
    ):
        yield talk({"redis": redis.port, "pannier": proxy.port}, LOCKED)


class TestProtocolErrorsAreRedisOwn:
    @pytest.mark.parametrize("case", [case for case in CASES if case not in DIFFERENT])
    def test_same_bytes_same_close(self, outcomes: Outcomes, case: str) -> None:
        assert outcomes[case]["pannier"] == outcomes[case]["redis"]

    @pytest.mark.parametrize("case", DIFFERENT)
    def test_differs_on_purpose(self, outcomes: Outcomes, case: str) -> None:
        assert outcomes[case]["pannier"] == DIFFERENT[case][1]

    def test_same_byte_by_byte(self, outcomes_in_pieces: Outcomes) -> None:
        wrong = {case: both for case, both in outcomes_in_pieces.items() if both["pannier"] != both["redis"] and case not in DIFFERENT}
        assert wrong == {}


class TestWhoHasNotAuthenticatedHasTighterLimits:
    @pytest.mark.parametrize("case", LOCKED)
    def test_same_bytes_same_close(self, locked_outcomes: Outcomes, case: str) -> None:
        assert locked_outcomes[case]["pannier"] == locked_outcomes[case]["redis"]


class TestALengthThatOnlyClaimsCostsNothing:
    @pytest.mark.parametrize(
        "claim",
        [
            b"*1000000000\r\n",
            b"*1\r\n$536870912\r\n",
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n",
            b"*1000000000\r\n$4\r\nMGET\r\n",
        ],
    )
    def test_memory_stays(self, any_redis_binary: str, directory: Path, claim: bytes) -> None:
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory) as proxy,
            contextlib.ExitStack() as stack,
        ):
            socks = [stack.enter_context(proxy.connect()) for _ in range(200)]
            for sock in socks:
                sock.sendall(b"PING\r\n")
                assert read_exactly(sock, 7) == b"+PONG\r\n"
            before = proxy.rss
            for sock in socks:
                sock.sendall(claim)
            wait_until(lambda: client_list(proxy).count(b" qbuf=%d " % len(claim)) == len(socks))
            assert proxy.rss - before < 3 << 20


def client_list(proxy: Process) -> bytes:
    with proxy.connect() as sock:
        sock.sendall(b"CLIENT LIST\r\nQUIT\r\n")
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))
