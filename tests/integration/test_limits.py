"""What one client may take, and that the others do not notice."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, pannier, read_exactly, redis_server, wait_until

MB = 1 << 20
QUESTION = b"*2\r\n$6\r\nEXISTS\r\n$200\r\n" + b"k" * 200 + b"\r\n"
"""A long request with a short reply."""


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


def ask(sock: socket.socket, request: bytes, reply: bytes) -> None:
    sock.sendall(request)
    assert read_exactly(sock, len(reply)) == reply


def ping(sock: socket.socket) -> None:
    ask(sock, b"PING\r\n", b"+PONG\r\n")


def is_closed(sock: socket.socket) -> bool:
    """Whether the peer has closed, or does within the socket's timeout; all that came before is dropped."""
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionError:
        pass
    return True


def small_window(process: Process) -> socket.socket:
    """A connection that takes few bytes unread."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", process.port))
    return sock


def clients(process: Process) -> list[dict[str, str]]:
    """CLIENT LIST, without the connection that asks."""
    with process.connect() as sock:
        sock.sendall(b"CLIENT LIST\r\nQUIT\r\n")
        text = b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()
    lines = [line for line in text.splitlines() if line.startswith("id=")]
    return [dict(word.split("=", 1) for word in line.split()) for line in lines[:-1]]


def sidecar_info(process: Process, name: str) -> int:
    with process.connect() as sock:
        sock.sendall(b"INFO sidecar\r\nQUIT\r\n")
        text = b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()
    return int(text.partition(f"{name}:")[2].split()[0])


class Pinger:
    """Another client that asks one thing at a time, and how long each answer took."""

    def __init__(self, process: Process) -> None:
        self.seconds: list[float] = []
        self._sock = process.connect()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pinger:
        ping(self._sock)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            began = time.monotonic()
            ping(self._sock)
            self.seconds.append(time.monotonic() - began)

    def assert_undisturbed(self) -> None:
        """Whoever waits behind another client waits again and again, or for as long as that one does: 20 s.

        One slow answer among many is the machine's doing.
        """
        assert max(self.seconds) < 5
        assert sum(taken > 0.5 for taken in self.seconds) <= 1 + len(self.seconds) // 100
        assert len(self.seconds) < 20 or statistics.median(self.seconds) < 0.03


class TestMaxClients:
    def test_the_next_one_gets_redis_own_error(self, upstream: Process, directory: Path, any_redis_binary: str) -> None:
        with redis_server(any_redis_binary, directory, "--maxclients", "1") as full, full.connect() as first:
            wait_until(lambda: _pings(first))
            with full.connect() as second:
                error = b"".join(iter(lambda: second.recv(100), b""))
        with pannier(url(upstream), directory, "--max-clients", "3") as proxy, contextlib.ExitStack() as stack:
            wait_until(lambda: not clients(proxy))
            socks = [stack.enter_context(proxy.connect()) for _ in range(3)]
            for sock in socks:
                ping(sock)
            for _ in range(20):
                with proxy.connect() as refused:
                    assert b"".join(iter(lambda: refused.recv(100), b"")) == error
            for sock in socks:
                ping(sock)
            socks.pop().close()
            wait_until(lambda: _served(proxy))
            wait_until(lambda: _served(proxy))
            for sock in socks:
                ping(sock)

    def test_a_refused_client_may_have_sent_something(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--max-clients", "1") as proxy:
            wait_until(lambda: _served(proxy))
            with proxy.connect() as first:
                wait_until(lambda: _pings(first))
                with proxy.connect() as refused:
                    with contextlib.suppress(ConnectionError):
                        refused.sendall(b"SET stolen 1\r\n" * 100)
                    assert is_closed(refused)
                ask(first, b"EXISTS stolen\r\n", b":0\r\n")


def _pings(sock: socket.socket) -> bool:
    sock.sendall(b"PING\r\n")
    return read_exactly(sock, 7) == b"+PONG\r\n"


def _served(process: Process) -> bool:
    with process.connect() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(b"PING\r\n")
        return sock.recv(100) == b"+PONG\r\n"
    return False


class TestClientTimeout:
    def test_only_the_idle_are_disconnected(self, upstream: Process, directory: Path) -> None:
        with (
            pannier(url(upstream), directory, "--client-timeout", "1s") as proxy,
            proxy.connect() as idle,
            proxy.connect() as never_spoke,
            proxy.connect() as half,
            proxy.connect() as active,
            proxy.connect() as subscriber,
            proxy.connect() as blocked,
            proxy.connect() as transaction,
        ):
            began = time.monotonic()
            ping(idle)
            half.sendall(b"*2\r\n$3\r\nGET")
            blocked.sendall(b"BLPOP timeout-list 0\r\n")
            ask(subscriber, b"SUBSCRIBE c\r\n", b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
            ask(transaction, b"MULTI\r\n", b"+OK\r\n")
            with Pinger(proxy) as other:
                for sock in (idle, never_spoke, half):
                    assert is_closed(sock)
                assert 1 <= time.monotonic() - began < 5
            assert len(other.seconds) > 100
            with proxy.connect() as helper:
                ask(helper, b"RPUSH timeout-list x\r\nPUBLISH c hi\r\n", b":1\r\n:1\r\n")
            assert read_exactly(blocked, 30) == b"*2\r\n$12\r\ntimeout-list\r\n$1\r\nx\r\n"
            assert read_exactly(subscriber, 32) == b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n"
            assert is_closed(active)


class TestQueryBufferLimit:
    def test_a_command_name_without_end(self, upstream: Process, directory: Path) -> None:
        with (
            pannier(url(upstream), directory, "--query-buffer-limit", "1mb") as proxy,
            proxy.connect() as greedy,
            Pinger(proxy) as other,
        ):
            with contextlib.suppress(ConnectionError):
                greedy.sendall(b"*1\r\n$536870912\r\n" + b"x" * (8 * MB))
            assert is_closed(greedy)
            wait_until(lambda: "query buffer over 1048576 bytes" in proxy.output)
        other.assert_undisturbed()

    def test_bytes_behind_a_blocking_command_wait_in_the_clients_own_socket(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory) as proxy, proxy.connect() as greedy, proxy.connect() as helper:
            ask(greedy, b"PING\r\n", b"+PONG\r\n")
            before = proxy.rss
            greedy.sendall(b"BLPOP limits-list 0\r\n")
            greedy.settimeout(0.3)
            sent, piece = 0, QUESTION * 4096
            with pytest.raises(TimeoutError):
                while sent < 64 * MB:
                    sent += greedy.send(piece[sent % len(QUESTION) :])
            assert proxy.rss - before < 8 * MB
            ask(helper, b"RPUSH limits-list x\r\n", b":1\r\n")
            greedy.settimeout(20)
            assert read_exactly(greedy, 29) == b"*2\r\n$11\r\nlimits-list\r\n$1\r\nx\r\n"
            replies = b":0\r\n" * (sent // len(QUESTION))
            assert read_exactly(greedy, len(replies)) == replies

    def test_a_large_argument_is_no_query_buffer(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--query-buffer-limit", "1mb") as proxy, proxy.connect() as sock:
            ask(sock, b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$5000000\r\n" + b"x" * 5_000_000 + b"\r\n", b"+OK\r\n")
            ask(sock, b"STRLEN big\r\nDEL big\r\n", b":5000000\r\n:1\r\n")

    def test_many_small_arguments_are_none_either(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--query-buffer-limit", "1mb") as proxy, proxy.connect() as sock:
            ask(sock, b"*300002\r\n$5\r\nRPUSH\r\n$4\r\nlist\r\n" + b"$10\r\n0123456789\r\n" * 300_000, b":300000\r\n")
            ask(sock, b"DEL list\r\n", b":1\r\n")


class TestAClientThatDoesNotRead:
    def test_is_disconnected_above_the_hard_limit(self, upstream: Process, directory: Path) -> None:
        value = b"v" * MB
        with (
            pannier(url(upstream), directory, "--output-buffer-limit", "16mb", "--output-buffer-soft-limit", "8mb") as proxy,
            small_window(proxy) as deaf,
        ):
            ask(deaf, b"*3\r\n$3\r\nSET\r\n$3\r\nval\r\n$%d\r\n%b\r\n" % (MB, value), b"+OK\r\n")
            before = proxy.rss
            with Pinger(proxy) as other:
                with contextlib.suppress(ConnectionError):
                    deaf.sendall(b"*2\r\n$3\r\nGET\r\n$3\r\nval\r\n" * 200)
                wait_until(lambda: "bytes of replies not read" in proxy.output)
                wait_until(lambda: len(clients(proxy)) == 1)
            other.assert_undisturbed()
            assert proxy.peak_rss - before < 250 * MB
            wait_until(lambda: proxy.rss - before < 60 * MB)
            assert sidecar_info(proxy, "pannier_killed_connections") == 1

    def test_is_disconnected_when_long_above_the_soft_limit(self, upstream: Process, directory: Path) -> None:
        limits = ["--output-buffer-soft-limit", "2mb", "--output-buffer-soft-seconds", "1s"]
        with (
            pannier(url(upstream), directory, *limits) as proxy,
            small_window(proxy) as deaf,
            small_window(proxy) as below,
        ):
            ask(deaf, b'EVAL "redis.call(\'set\', \'val\', string.rep(\'v\', 1048576)) return 1" 0\r\n', b":1\r\n")
            began = time.monotonic()
            deaf.sendall(b"GET val\r\n" * 16)
            below.sendall(b"GET val\r\n")
            wait_until(lambda: "bytes of replies not read for 1 s" in proxy.output)
            assert 1 <= time.monotonic() - began < 3
            assert is_closed(deaf)
            assert read_exactly(below, MB + 12).count(b"v") == MB

    def test_is_paused_before(self, upstream: Process, directory: Path) -> None:
        """Commands that come while replies wait are not taken: the client's own socket fills up."""
        with pannier(url(upstream), directory) as proxy, small_window(proxy) as deaf:
            ask(deaf, b'EVAL "redis.call(\'set\', \'val\', string.rep(\'v\', 1048576)) return 1" 0\r\n', b":1\r\n")
            before = proxy.rss
            deaf.sendall(b"GET val\r\n" * 16)
            wait_until(lambda: any(int(client["obl"]) > MB for client in clients(proxy)))
            deaf.settimeout(0.5)
            sent, piece = 0, QUESTION * 4096
            with pytest.raises(TimeoutError):
                while sent < 64 * MB:
                    sent += deaf.send(piece[sent % len(QUESTION) :])
            assert proxy.rss - before < 60 * MB
            deaf.settimeout(20)
            # It goes on as soon as the client reads: every command that got through is answered.
            assert read_exactly(deaf, (MB + 12) * 16).count(b"v") == 16 * MB
            replies = b":0\r\n" * (sent // len(QUESTION))
            assert read_exactly(deaf, len(replies)) == replies

    def test_slow_readers_get_everything(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory) as proxy, small_window(proxy) as slow, Pinger(proxy) as other:
            values = [hashlib.sha256(b"%d" % number).hexdigest().encode() * 8192 for number in range(24)]
            for number, value in enumerate(values):
                ask(slow, b"*3\r\n$3\r\nSET\r\n$3\r\ns%02d\r\n$%d\r\n%b\r\n" % (number, len(value), value), b"+OK\r\n")
            slow.sendall(b"".join(b"GET s%02d\r\n" % number for number in range(24)))
            wait_until(lambda: any(int(client["obl"]) > MB for client in clients(proxy)))
            expected = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
            got = bytearray()
            while len(got) < len(expected):
                got += slow.recv(4096)
            assert got == expected
            ping(slow)
        other.assert_undisturbed()


class TestLargeRequestsAndReplies:
    @pytest.mark.alone
    def test_pass_through_in_pieces(self, upstream: Process, directory: Path) -> None:
        size, piece = 100 * MB, bytes(range(256)) * 4096
        with pannier(url(upstream), directory) as proxy, proxy.connect() as sock:
            ping(sock)
            before = proxy.rss
            with Pinger(proxy) as other:
                sock.sendall(b"*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n$%d\r\n" % size)
                for _ in range(size // len(piece)):
                    sock.sendall(piece)
                ask(sock, b"\r\nSTRLEN large\r\n", b"+OK\r\n:%d\r\n" % size)
            other.assert_undisturbed()
            assert proxy.peak_rss - before < 25 * MB

            with Pinger(proxy) as other:
                sock.sendall(b"GET large\r\n")
                assert read_exactly(sock, 12) == b"$%d\r\n" % size
                # In one system call a piece: what a slow reader has not taken yet is kept for it in memory.
                sock.settimeout(None)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
                taken = bytearray(len(piece))
                for _ in range(size // len(piece)):
                    assert sock.recv_into(taken, 0, socket.MSG_WAITALL) == len(piece) and taken == piece
                sock.settimeout(10)
                ask(sock, b"DEL large\r\n", b"\r\n:1\r\n")
            other.assert_undisturbed()
            assert proxy.peak_rss - before < 60 * MB

    def test_a_client_gone_in_the_middle_harms_nobody(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory) as proxy, proxy.connect() as other:
            for _ in range(5):
                with proxy.connect() as sock:
                    sock.sendall(b"*3\r\n$3\r\nSET\r\n$4\r\ngone\r\n$%d\r\n" % (10 * MB) + b"x" * (3 * MB))
                ask(other, b"EXISTS gone\r\n", b":0\r\n")
            wait_until(lambda: sidecar_info(proxy, "pannier_pinned_links") <= 1)

    def test_too_large_an_argument(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--proto-max-bulk-len", "1mb") as proxy, proxy.connect() as sock:
            sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048577\r\n")
            assert sock.recv(100) == b"-ERR Protocol error: invalid bulk length\r\n"
            assert sock.recv(1) == b""


class TestKeepAlive:
    def test_is_on_towards_both_sides(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory) as proxy, proxy.connect() as sock:
            ping(sock)
            assert keepalive_timers(proxy.port, None) == {True}
            # Redis has its own timers on its side; the sidecar's end is the one with the remote port.
            assert keepalive_timers(None, upstream.port) == {True}

    def test_can_be_turned_off(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--tcp-keepalive", "0") as proxy, proxy.connect() as sock:
            ping(sock)
            assert keepalive_timers(proxy.port, None) == {False}


def keepalive_timers(local: int | None, remote: int | None) -> set[bool]:
    """Of the established connections with that port on that side: whether their keep-alive timers run."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        ports = int(words[1].rpartition(":")[2], 16), int(words[2].rpartition(":")[2], 16)
        if words[3] == "01" and ports[0] == (local or ports[0]) and ports[1] == (remote or ports[1]):
            found.add(words[5].startswith("02"))
    return found
