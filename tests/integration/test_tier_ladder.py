"""Whatever Redis grants, everything works; INFO and the log say what is in effect and why.

Servers that refuse are made of a real one by a shim that rewrites, byte by byte, the requests to be refused into
such as Redis itself refuses, so that replies keep their order.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, pannier, redis_server
from tests.integration.test_tier_coherence import DATA, Readers, carry_out
from tests.integration.test_tier_reads import Command, ask_all, info, number, set_up
from tests.integration.wire import Wire, until

DEFAULT = (b"$8\r\nTRACKING\r\n$2\r\nON\r\n", b"$8\r\nTRACKINX\r\n$2\r\nON\r\n")
BROADCAST = b"$5\r\nBCAST\r\n"
HELLO = (b"$5\r\nHELLO\r\n$1\r\n3\r\n", b"$5\r\nHELLX\r\n$1\r\n3\r\n")
NO_PROTO = (b"$5\r\nHELLO\r\n$1\r\n3\r\n", b"$5\r\nHELLO\r\n$1\r\n4\r\n")


class Shim:
    """A TCP relay to Redis that may rewrite requests, or stand still while both ends stay connected."""

    def __init__(self, redis: Process, *rewrites: tuple[bytes, bytes], spare: bytes = b"") -> None:
        self.redis = redis
        self.rewrites = rewrites
        self.spare = spare
        """Requests that continue with this are let through."""
        self.flowing = threading.Event()
        self.flowing.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Shim:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.flowing.set()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)
        for sock in self._socks:
            sock.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                redis = self.redis.connect()
                redis.settimeout(None)
                self._socks += [client, redis]
                for sock in (client, redis):  # else what is sent in parts waits for the other end's late ACK
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, changing in ((client, redis, True), (redis, client, False)):
                    thread = threading.Thread(target=self._relay, args=(source, sink, changing))
                    self._threads.append(thread)
                    thread.start()

    def _relay(self, source: socket.socket, sink: socket.socket, changing: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.flowing.wait()
                sink.sendall(self._rewritten(data) if changing else data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _rewritten(self, data: bytes) -> bytes:
        for before, after in self.rewrites:
            assert len(before) == len(after)
            pieces = data.split(before)
            data = pieces[0]
            for piece in pieces[1:]:
                data += (before if self.spare and piece.startswith(self.spare) else after) + piece
        return data


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def url(redis: Process) -> str:
    return f"redis://127.0.0.1:{redis.port}"


FEW: list[list[Command]] = [
    ["SET a 2"], ["INCR n"], ["MULTI", "SET a 3", "HSET h f 3", "EXEC"], ["EVAL 'return redis.call(\"SET\", \"a\", \"undeclared\")' 0"], ["RENAME a o"], ["BLPOP l 0"], ["SWAPDB 0 1"], ["FLUSHALL"], ["MOVE o 1"], ["SORT nums STORE l"],
    ["LPOP l 2"], ["COPY a n DB 1"], [("SET", "a", "v" * 300_000)], ["ZADD z INCR 4 a"], ["ZINCRBY z 1.5 a"], ["SPOP s"], ["GETDEL a"], ["XADD x * f v"], ["WATCH a", "GET a", "MULTI", "INCR a", "EXEC"], ["EXPIRE a -1"], ["DEL h z"],
]  # fmt: skip


def works(redis: Process, proxy: Process) -> None:
    """Reads are Redis' own, right after own writes and soon after those of others."""
    with Readers(redis, proxy) as readers, Wire(redis.port) as direct:
        for protocol in (2, 3):
            with Wire(proxy.port, protocol) as writer:
                for write in FEW:
                    set_up(proxy, DATA)
                    readers.warm()
                    carry_out(writer, write, at_once=False)
                    assert readers.stale() == [], (protocol, write)
        for write in FEW[:6]:
            set_up(proxy, DATA)
            readers.warm()
            carry_out(direct, write, at_once=False)
            until(lambda: not readers.stale(), "seen", limit=2.0)
    with Wire(proxy.port, 3) as subscriber, Wire(proxy.port) as publisher:
        subscriber.line("SUBSCRIBE c")
        publisher.line("PUBLISH c m")
        assert subscriber.read() == b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n"


def hits(proxy: Process) -> int:
    """Hits of a read that is repeated."""
    if "pannier_tier_hits" not in info(proxy):
        return 0
    set_up(proxy, DATA)
    before = number(proxy, "tier_hits")
    with Wire(proxy.port) as two, Wire(proxy.port, 3) as three:
        for wire in (two, three):
            for _ in range(6):
                assert ask_all(wire, ["GET a", "HGETALL h"])[0] == b"$1\r\n1\r\n"
    return number(proxy, "tier_hits") - before


def effect(proxy: Process) -> tuple[str, str]:
    until(lambda: info(proxy)["pannier_tracking_reason"] not in ("", "not connected yet"), "it is known what Redis grants")
    fields = info(proxy)
    return fields["pannier_tracking"], fields["pannier_tracking_reason"]


class TestEachRung:
    @pytest.mark.parametrize("tracking", ["auto", "default"])
    def test_granted(self, upstream: Process, directory: Path, tracking: str) -> None:
        with pannier(url(upstream), directory, "--tracking", tracking) as proxy:
            assert effect(proxy) == ("default", "granted by the server")
            assert "tracking default" in proxy.output
            assert hits(proxy) > 10
            works(upstream, proxy)

    def test_broadcast_by_choice(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--tracking", "bcast") as proxy:
            assert effect(proxy) == ("bcast", "granted by the server")
            assert "tracking bcast" in proxy.output
            assert hits(proxy) > 10
            works(upstream, proxy)

    def test_off_by_choice(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, "--tracking", "off") as proxy:
            assert effect(proxy) == ("off", "switched off")
            assert "nothing is kept: tracking is off" in proxy.output
            assert hits(proxy) == 0
            works(upstream, proxy)

    @pytest.mark.parametrize("tracking, mode", [("auto", "bcast"), ("default", "off"), ("bcast", "bcast")])
    def test_a_server_without_the_default_mode(self, upstream: Process, directory: Path, tracking: str, mode: str) -> None:
        with Shim(upstream, DEFAULT, spare=BROADCAST) as shim, pannier(shim.url, directory, "--tracking", tracking) as proxy:
            found, reason = effect(proxy)
            assert found == mode
            assert ("default refused: ERR Unknown subcommand" in reason.replace("unknown", "Unknown")) is (tracking != "bcast"), reason
            until(lambda: f"tracking {mode}" in proxy.output or mode == "off", "the log says so")
            assert reason in proxy.output
            assert (hits(proxy) > 10) is (mode != "off")
            works(upstream, proxy)

    def test_a_server_without_tracking(self, upstream: Process, directory: Path) -> None:
        with Shim(upstream, DEFAULT) as shim, pannier(shim.url, directory) as proxy:
            mode, reason = effect(proxy)
            assert mode == "off"
            assert "default refused: " in reason and "bcast refused: " in reason
            assert reason in proxy.output and "nothing is served from memory" in proxy.output
            assert hits(proxy) == 0
            works(upstream, proxy)

    @pytest.mark.parametrize("refusal", [HELLO, NO_PROTO], ids=["unknown", "NOPROTO"])
    def test_a_server_without_resp3(self, upstream: Process, directory: Path, refusal: tuple[bytes, bytes]) -> None:
        with Shim(upstream, refusal) as shim, pannier(shim.url, directory) as proxy:
            mode, reason = effect(proxy)
            assert mode == "off"
            assert "does not speak RESP3" in reason
            assert reason in proxy.output
            with Wire(proxy.port) as wire:
                set_up(proxy, DATA)
                for _ in range(4):
                    assert ask_all(wire, ["GET a", "HGETALL h", "ZRANGE z 0 -1 WITHSCORES", "LPOP none 1", "MGET a none", "ZSCORE z a"]) == [
                        b"$1\r\n1\r\n", b"*4\r\n$1\r\nf\r\n$1\r\n1\r\n$1\r\ng\r\n$1\r\n2\r\n", b"*6\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n$1\r\nc\r\n$1\r\n3\r\n", b"*-1\r\n", b"*2\r\n$1\r\n1\r\n$-1\r\n", b"$1\r\n1\r\n",
                    ]  # fmt: skip
                assert ask_all(wire, ["MULTI", "INCR n", "EXEC", "BLPOP l 0", "EVAL 'return 1' 0"])[2:] == [b"*1\r\n:6\r\n", b"*2\r\n$1\r\nl\r\n$1\r\nc\r\n", b":1\r\n"]
                refused = wire.line("HELLO 3")
                assert refused.startswith(b"-"), refused
                assert wire.line("PING") == b"+PONG\r\n"
            assert number(proxy, "tier_hits") == 0

    def test_a_user_who_may_not(self, upstream: Process, directory: Path) -> None:
        with Wire(upstream.port) as direct:
            forbidden = "-client|tracking" if direct.line("ACL SETUSER u on >pw ~* &* +@all -client|tracking") == b"+OK\r\n" else "-client"
            assert direct.ask("ACL", "SETUSER", "u", "on", ">pw", "~*", "&*", "+@all", forbidden) == b"+OK\r\n"
        with pannier(f"redis://u:pw@127.0.0.1:{upstream.port}", directory) as proxy:
            mode, reason = effect(proxy)
            assert mode == "off"
            assert reason.count("NOPERM") >= 2
            assert reason in proxy.output
            assert hits(proxy) == 0
            if forbidden != "-client":  # who may not CLIENT at all is no match for the others' replies
                works(upstream, proxy)

    def test_a_client_who_may_not_beside_others_who_may(self, upstream: Process, directory: Path) -> None:
        with Wire(upstream.port) as direct:
            if direct.line("ACL SETUSER u on >pw ~* &* +@all -client|tracking") != b"+OK\r\n":
                assert direct.line("ACL SETUSER u on >pw ~* &* +@all -client") == b"+OK\r\n"
        with pannier(url(upstream), directory) as proxy, Wire(proxy.port) as may_not, Wire(proxy.port) as may, Wire(upstream.port) as direct:
            set_up(proxy, DATA)
            assert may_not.line("AUTH u pw") == b"+OK\r\n"
            for turn in range(20):
                assert [may.line("GET a") for _ in range(3)] == [may_not.line("GET a")] * 3
                writer, expected = (may, may_not)[turn % 2], b"$%d\r\n%d\r\n" % (len(str(turn)), turn)
                writer.ask("SET", "a", turn)
                assert may.line("GET a") == may_not.line("GET a") == expected
                direct.ask("SET", "a", -turn - 10)
                assert int(may_not.line("GET a").split(b"\r\n")[1]) == -turn - 10, "kept for one whom nobody tells"
                until(lambda turn=turn: int(may.line("GET a").split(b"\r\n")[1]) == -turn - 10, "seen")
            assert effect(proxy)[0] == "default"
            assert number(proxy, "tier_hits") > 20
