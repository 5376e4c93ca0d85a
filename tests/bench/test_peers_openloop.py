"""The open loop: what it charges to a stall, what it makes of replies, what it is when it falls behind."""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from bench.peers import openloop
from bench.peers.openloop import Blend, Connection, Latency, Load, Outcome, drive
from bench.servers import HOST, BenchError
from bench.traffic import COMMANDS

REPLY = COMMANDS["get"].reply
OK = COMMANDS["set"].reply
STALL = 0.2


class Server:
    """Answers every request that arrives, each with `reply`; stalls once, when the request `stall_at` is here."""

    def __init__(self, reply: bytes = REPLY, stall_at: int = 0) -> None:
        self.reply, self.stall_at = reply, stall_at
        self.asked = 0
        self.listener = socket.create_server((HOST, 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.ending, self.end = socket.socketpair()
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        with selectors.DefaultSelector() as links:
            for source in (self.listener, self.ending):
                links.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in links.select():
                    link = key.fileobj
                    assert isinstance(link, socket.socket)
                    if link is self.ending:
                        for each in list(links.get_map().values()):
                            each.fileobj.close()  # type: ignore[union-attr]
                        return
                    if link is self.listener:
                        links.register(link.accept()[0], selectors.EVENT_READ)
                    elif not self.answer(link):
                        links.unregister(link)
                        link.close()

    def answer(self, link: socket.socket) -> bool:
        with suppress(OSError):
            if data := link.recv(1 << 16):
                before, self.asked = self.asked, self.asked + data.count(b"*")
                if before < self.stall_at <= self.asked:
                    time.sleep(STALL)
                self.reply_to(link, data)
                return True
        return False

    def reply_to(self, link: socket.socket, data: bytes) -> None:
        for request in data.split(b"*")[1:]:
            link.sendall(OK if b"SET" in request else self.reply)


class InPieces(Server):
    """Every reply comes in three parts."""

    def reply_to(self, link: socket.socket, data: bytes) -> None:
        for piece in (self.reply[:1], self.reply[1:5], self.reply[5:]) * data.count(b"*"):
            link.sendall(piece)


class Together(Server):
    """Replies to requests that came together go together."""

    def reply_to(self, link: socket.socket, data: bytes) -> None:
        link.sendall(self.reply * data.count(b"*"))


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    server.thread.start()
    try:
        yield server
    finally:
        server.end.close()
        server.thread.join(10)
        assert not server.thread.is_alive()


class TestStall:
    """Nobody who would have asked during a stall is left out (coordinated omission)."""

    def test_all_that_were_due_meanwhile_are_charged(self) -> None:
        with serving(Server(stall_at=300)) as server:
            load = Load(server.port, 2_000, Blend(100), 1_000, connections=10)
            try:
                load.run()
            finally:
                load.close()
        took = load.latencies(0)
        # Requests up to number 499 were due 100 ms after the 300th or earlier, and at most 300 had an answer.
        assert sum(seconds >= STALL / 2 for seconds in took) >= 200
        assert max(took) >= STALL
        assert min(load.lateness(0)) >= 0

    def test_as_the_program_tells_it(self) -> None:
        with serving(Server(stall_at=300)) as server:
            found = openloop.run(server.port, 1_000, 0.8, Blend(100), connections=10)
        assert found.sent == found.answered == 1_000 == server.asked
        assert found.p90 >= 0.99e6 * STALL / 2 and found.most >= 1e6 * STALL
        assert found.p50 <= found.p90 <= found.p99 <= found.p999
        assert found.cpu_share > 0

    def test_the_warm_up_is_left_out(self) -> None:
        with serving(Server(stall_at=1)) as server:
            load = Load(server.port, 10_000, Blend(100), 100, connections=1)
            try:
                load.run()
            finally:
                load.close()
        assert len(load.latencies(20)) == len(load.lateness(20)) == 80


class TestReplies:
    """Every reply is counted and compared."""

    @pytest.mark.parametrize(("server", "connections"), [(Server, 3), (Server, 50), (InPieces, 7), (Together, 1)])
    def test_all_are_counted(self, server: type[Server], connections: int) -> None:
        with serving(server(stall_at=10)) as running:
            found = drive(running.port, 1_000, 0.4, Blend(100), connections)
        assert found.sent == found.answered == running.asked == 500

    def test_writes_are_answered_otherwise(self) -> None:
        with serving(Server()) as running:
            found = drive(running.port, 20_000, 0.1, Blend(1_000, 0.3, 0.99), 7)
        assert found.answered == running.asked == 2_500

    @pytest.mark.parametrize("reply", [b"$3\r\nVXX\r\n", b"-ERR no\r\n", b"$-1\r\n", OK, REPLY + b"$", REPLY * 2])
    def test_a_wrong_one_ends_it(self, reply: bytes) -> None:
        with serving(Server(reply)) as running, pytest.raises(BenchError, match=r"unexpected reply: b|not been sent"):
            drive(running.port, 1_000, 0.1, Blend(100), 2)

    def test_so_does_the_program(self) -> None:
        with serving(Server(b"-ERR oh dear\r\n")) as running, pytest.raises(BenchError, match="-ERR oh dear"):
            openloop.run(running.port, 1_000, 0.1, Blend(100), 2)

    def test_a_closed_connection_ends_it(self) -> None:
        with socket.create_server((HOST, 0)) as listener:
            port = listener.getsockname()[1]
            load = Load(port, 1_000, Blend(100), 100, 1)
            listener.accept()[0].close()
            with pytest.raises((BenchError, OSError)):
                load.run()
            load.close()

    def test_silence_ends_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openloop, "PATIENCE", 0.05)
        with socket.create_server((HOST, 0)) as listener:
            load = Load(listener.getsockname()[1], 1_000, Blend(100), 5, 1)
            with pytest.raises(BenchError, match=r"no reply for 0\.05 s"):
                load.run()
            load.close()


def test_what_a_socket_does_not_take_is_kept_in_order() -> None:
    with socket.create_server((HOST, 0)) as listener:
        connection = Connection(listener.getsockname()[1], 0, 1)
        server, _ = listener.accept()
        with server, connection.socket:
            first, second = b"a" * 30_000_000, b"b" * 10
            assert connection.send(first) and connection.send(second)
            server.settimeout(10.0)
            got = bytearray()
            while len(got) < len(first) + len(second):
                got += server.recv(1 << 20)
                if connection.unsent:
                    connection.retry()
            assert got == first + second


class TestBlend:
    def test_uniform_reads(self) -> None:
        requests, replies = Blend(10).draw(1_000)
        assert set(requests) == {COMMANDS["get"].request(number) for number in range(10)}
        assert replies == [REPLY] * 1_000

    def test_writes(self) -> None:
        requests, replies = Blend(10, 0.2).draw(10_000)
        assert 1_500 < replies.count(OK) < 2_500
        assert all((b"SET" in request) is (reply == OK) for request, reply in zip(requests, replies, strict=True))

    def test_zipf(self) -> None:
        counts = Counter(Blend(1_000, exponent=1.0).draw(20_000)[0])
        first, tenth = (counts[COMMANDS["get"].request(number)] for number in (0, 9))
        assert 5 < first / tenth < 20


class TestFigures:
    OUTCOME = Outcome(1_000.0, 990.0, 1_250, 1_250, 10.0, 20.0, 30.0, 40.0, 50.0, 5.0, 0.5)

    def test_percentiles(self) -> None:
        found = Latency.of(number / 1e6 for number in range(1, 1_001))
        assert (found.p50, found.p90, found.p99, found.p999, found.most) == (500, 900, 990, 999, 1_000)

    def test_three_digits(self) -> None:
        assert Latency.of([1.234567]).p50 == pytest.approx(1_234_567, rel=0.001)

    def test_json(self) -> None:
        told = json.loads(json.dumps(self.OUTCOME.to_json()))
        assert (told["p99.9"], told["max"], told["behind"]) == (40.0, 50.0, False)
        assert Outcome.from_json(told) == self.OUTCOME

    @pytest.mark.parametrize(
        ("achieved", "cpu_share", "behind"),
        [(970.0, 0.95, False), (969.0, 0.5, True), (1_000.0, 0.96, True)],
    )
    def test_behind(self, achieved: float, cpu_share: float, behind: bool) -> None:
        assert replace(self.OUTCOME, achieved=achieved, cpu_share=cpu_share).behind is behind

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
        with pytest.raises(BenchError, match="hdrhistogram"):
            Latency.of([0.1])
