"""After everything was dropped at once, Redis is asked for so much of a class at a time, and everybody is answered.

`SlowRedis` holds its replies until the test lets them go, so what it has been asked and not answered is all that
the sidecar lets be under way. A busy machine makes that less, never more.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest

from proxy.tier.governor import MANY
from tests.harness import Process, pannier
from tests.integration.test_tier_reads import info, number
from tests.integration.wire import Wire, in_background, request, until

CLIENTS = 200
LIMIT = 8
FAST = ["--admit-after", "1", "--reconnect-min", "10ms", "--reconnect-max", "50ms"]
HELLO = (
    b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:7\r\n"
    b"$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
)


class SlowRedis:
    """Every key's value is its name."""

    def __init__(self) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.most: Counter[bytes] = Counter()
        """By class: GETs that were under way at once."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}"
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> SlowRedis:
        self._threads[0].start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Break all connections."""
        for sock in list(self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                self._socks.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        reader, waiting = hiredis.Reader(), []
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(1 << 16):
                reader.feed(data)
                while (words := reader.gets()) is not False:
                    waiting.append(words)
                under_way = Counter(words[1].partition(b":")[0] for words in waiting if words[0] == b"GET")
                for label, count in under_way.items():
                    self.most[label] = max(self.most[label], count)
                if under_way:
                    self._hold(sock)
                if self._more(sock):
                    continue
                sock.sendall(b"".join(map(self._answer, waiting)))
                waiting = []

    def _hold(self, sock: socket.socket) -> None:
        """Until more has come or replies may go."""
        while not self.flowing.is_set() and not self._more(sock):
            self.flowing.wait(0.01)

    @staticmethod
    def _more(sock: socket.socket) -> bool:
        return bool(select.select([sock], [], [], 0.0)[0])

    @staticmethod
    def _answer(words: list[bytes]) -> bytes:
        name = words[0].upper()
        if name == b"HELLO":
            return HELLO
        if name == b"GET":
            return b"$%d\r\n%b\r\n" % (len(words[1]), words[1])
        return {b"PTTL": b":-1\r\n", b"COMMAND": b"*0\r\n", b"PING": b"+PONG\r\n"}.get(name, b"+OK\r\n")


@pytest.fixture
def slow() -> Iterator[SlowRedis]:
    with SlowRedis() as redis:
        yield redis


def warm(proxy: Process, n: int = MANY) -> None:
    """Have enough kept to be missed."""
    with Wire(proxy.port) as wire:
        for begin in range(0, n, 200):
            keys = [f"warm:{number}" for number in range(begin, begin + 200)]
            wire.pipeline([request("GET", key) for key in keys], len(keys))
    until(lambda: number(proxy, "tier_entries") >= n, "memory is warm")


def drop(proxy: Process, slow: SlowRedis, how: str) -> None:
    """Lose all that is kept, in one of the ways there are."""
    if how == "reconnect":
        slow.cut()
        until(lambda: number(proxy, "refill_engaged") == 1 or number(proxy, "tier_entries") == 0, "the link is lost")
        until(lambda: info(proxy)["pannier_tracking"] == "default", "there is a new one")
    else:
        with Wire(proxy.port) as wire:
            wire.line(how)


WAYS = [
    "FLUSHALL", "SIDECAR FLUSH", "reconnect", "SIDECAR INVALIDATE MATCH warm:*",
    "SIDECAR INVALIDATE " + " ".join([f"warm:{n}" for n in range(MANY)]), "DEL " + " ".join([f"warm:{n}" for n in range(MANY)]),
]  # fmt: skip


@pytest.mark.parametrize("how", WAYS, ids=[how[:24] for how in WAYS])
def test_so_many_of_a_class_are_under_way_and_no_more(slow: SlowRedis, directory: Path, how: str) -> None:
    with pannier(slow.url, directory, *FAST, "--refill-limit", str(LIMIT)) as proxy, contextlib.ExitStack() as stack:
        warm(proxy)
        drop(proxy, slow, how)
        assert number(proxy, "refill_engaged") == 1
        clients = [stack.enter_context(Wire(proxy.port)) for _ in range(CLIENTS)]
        with Wire(proxy.port) as wire:
            until(lambda: wire.line("GET probe:1") == b"$7\r\nprobe:1\r\n", "memory serves")
        slow.most.clear()
        slow.flowing.clear()
        for n, client in enumerate(clients):
            client.send("GET", f"{'ab'[n % 2]}:{n}")
        until(lambda: number(proxy, "refill_delayed") == CLIENTS - 2 * LIMIT, "all but a few wait")
        until(lambda: slow.most[b"a"] == slow.most[b"b"] == LIMIT, "these are under way")
        slow.flowing.set()
        for n, client in enumerate(clients):
            key = f"{'ab'[n % 2]}:{n}"
            assert client.read() == b"$%d\r\n%b\r\n" % (len(key), key.encode()), "nobody starves"
        assert {label: slow.most[label] for label in (b"a", b"b")} == {b"a": LIMIT, b"b": LIMIT}


def test_without_a_governor_all_are(slow: SlowRedis, directory: Path) -> None:
    with pannier(slow.url, directory, *FAST, "--refill-limit", "0") as proxy, contextlib.ExitStack() as stack:
        warm(proxy)
        drop(proxy, slow, "FLUSHALL")
        clients = [stack.enter_context(Wire(proxy.port)) for _ in range(CLIENTS)]
        slow.flowing.clear()
        for n, client in enumerate(clients):
            client.send("GET", f"a:{n}")
        until(lambda: slow.most[b"a"] == CLIENTS, "all are under way")
        slow.flowing.set()
        assert all(client.read().startswith(b"$") for client in clients)
        assert number(proxy, "refill_engaged") == 0


def test_a_rule_may_set_its_own_limit(slow: SlowRedis, directory: Path) -> None:
    rules = directory / "rules.toml"
    rules.write_text('[[rules]]\nmatch = ["a:*", "b:*"]\nclass = "dear"\nmax_fetches = 3\n')
    options = [*FAST, "--refill-limit", "50", "--rules-file", str(rules)]
    with pannier(slow.url, directory, *options) as proxy, contextlib.ExitStack() as stack:
        warm(proxy)
        drop(proxy, slow, "FLUSHALL")
        clients = [stack.enter_context(Wire(proxy.port)) for _ in range(30)]
        slow.most.clear()
        slow.flowing.clear()
        for n, client in enumerate(clients):
            client.send("GET", f"{'ab'[n % 2]}:{n}")
        until(lambda: number(proxy, "refill_delayed") == 27, "all but a few wait")
        slow.flowing.set()
        assert all(client.read().startswith(b"$") for client in clients)
        assert slow.most[b"a"] + slow.most[b"b"] <= 2 * 3


def test_before_a_real_redis_everybody_is_answered(redis: Process, directory: Path) -> None:
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, *FAST, "--refill-limit", "2") as proxy:
        with Wire(redis.port) as wire:
            wire.pipeline([request("SET", f"k:{n}", f"value{n}") for n in range(300)], 300)
        warm(proxy)
        with Wire(proxy.port) as wire:
            wire.line("SIDECAR FLUSH")

        def work() -> None:
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(Wire(proxy.port, 2 + n % 2)) for n in range(50)]
                for begin in range(20):
                    for at, client in enumerate(clients):
                        client.raw(request("GET", f"k:{(7 * begin + at) % 300}") + request("GET", "k:1"))
                    for at, client in enumerate(clients):
                        n = (7 * begin + at) % 300
                        assert client.reads(2) == [b"$%d\r\nvalue%d\r\n" % (5 + len(str(n)), n), b"$6\r\nvalue1\r\n"]
                for at, client in enumerate(clients):
                    client.raw(request("GET", f"late:{at}"))
                assert all(client.read() in (b"$-1\r\n", b"_\r\n") for client in clients)

        with in_background(work):
            pass
        assert number(proxy, "refill_engaged") == 1
