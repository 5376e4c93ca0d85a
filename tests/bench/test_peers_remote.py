"""The relay that stands for a distance, and the sections about latency: real servers, no figure is judged."""

from __future__ import annotations

import hashlib
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from bench.figures import Spread
from bench.load import BUILTIN
from bench.peers import latency, openloop, remote
from bench.peers.contenders import Contender, line_up
from bench.peers.openloop import Outcome
from bench.peers.setting import Bench
from bench.progress import Progress
from bench.servers import HOST, ROOT, BenchError, ProxyCommand, Server, Stable, free_port, redis_binary

DELAY = 0.005
BIG = 3_000_000


@contextmanager
def relaying(upstream: int, delay: float = DELAY) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A relay as a process of its own, and its port."""
    words = [sys.executable, "-m", "bench.peers.relay", "0", str(upstream), str(delay * 1000)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def pair(delay: float = DELAY) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and what the upstream has of it."""
    with (
        socket.create_server((HOST, 0)) as listener,
        relaying(listener.getsockname()[1], delay) as (port, _),
        socket.create_connection((HOST, port), timeout=20) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(20)
        yield client, server


def send_chunks(link: socket.socket, data: bytes, draws: random.Random) -> None:
    """Send all in pieces of any size, and say that it is all."""
    place = 0
    while place < len(data):
        size = draws.choice((1, 100, 10_000, 100_000))
        link.sendall(data[place : place + size])
        place += size
    link.shutdown(socket.SHUT_WR)


def read_all(link: socket.socket) -> bytes:
    """What comes until the end."""
    got = bytearray()
    while data := link.recv(1 << 16):
        got += data
    return bytes(got)


class TestRelay:
    def test_bytes_and_their_order_both_ways_at_once(self) -> None:
        draws = random.Random(7)
        there, back = draws.randbytes(BIG), draws.randbytes(BIG)
        with pair() as (client, server):
            ways = ((client, there, random.Random(1)), (server, back, random.Random(2)))
            threads = [threading.Thread(target=send_chunks, args=way) for way in ways]
            got: list[bytes] = []
            threads.append(threading.Thread(target=lambda: got.append(read_all(server))))
            for thread in threads:
                thread.start()
            came_back = read_all(client)
            for thread in threads:
                thread.join(20)
        assert [hashlib.sha256(data).digest() for data in (got[0], came_back)] == [
            hashlib.sha256(data).digest() for data in (there, back)
        ]

    @pytest.mark.parametrize("delay", [0.0005, 0.02])
    def test_each_way_takes_so_long(self, delay: float) -> None:
        with pair(delay) as (client, server):
            for _ in range(5):
                for sender, receiver in ((client, server), (server, client)):
                    began = time.perf_counter()
                    sender.sendall(b"ping")
                    assert receiver.recv(10) == b"ping"
                    assert time.perf_counter() - began >= delay

    def test_one_after_another_while_others_are_on_their_way(self) -> None:
        with pair(0.3) as (client, server):
            began = time.perf_counter()
            for number in range(20):
                client.sendall(bytes([number]))
                select.select([server], [], [], 0.001)  # apart, so that they are chunks
            assert b"".join(server.recv(1) for _ in range(20)) == bytes(range(20))
            assert time.perf_counter() - began >= 0.3

    @pytest.mark.parametrize("client_first", [True, False])
    def test_the_end_comes_after_the_rest(self, client_first: bool) -> None:
        with pair() as (client, server):
            one, other = (client, server) if client_first else (server, client)
            began = time.perf_counter()
            one.sendall(b"last words")
            one.close()
            assert read_all(other) == b"last words"
            assert time.perf_counter() - began >= DELAY

    def test_half_an_end(self) -> None:
        with pair() as (client, server):
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b""
            server.sendall(b"answer")
            server.close()
            assert read_all(client) == b"answer"

    def test_memory_is_bounded(self) -> None:
        most = 64 << 20
        with pair() as (client, server):
            client.setblocking(False)
            sent, piece = 0, bytes(1 << 16)
            while sent < most and select.select([], [client], [], 1.0)[1]:
                sent += client.send(piece)
            assert sent < most  # nobody has read anything yet
            client.shutdown(socket.SHUT_WR)
            assert len(read_all(server)) == sent

    def test_without_an_upstream_it_hangs_up(self) -> None:
        with relaying(free_port()) as (port, _), socket.create_connection((HOST, port), timeout=20) as client:
            assert client.recv(1) == b""

    def test_many_clients_and_a_clean_end(self) -> None:
        with socket.create_server((HOST, 0), backlog=64) as listener:
            with relaying(listener.getsockname()[1]) as (port, process):
                clients = [socket.create_connection((HOST, port), timeout=20) for _ in range(40)]
                servers = [listener.accept()[0] for _ in clients]
                for number, client in enumerate(clients):
                    client.sendall(bytes([number]))
                assert sorted(server.recv(1) for server in servers) == [bytes([number]) for number in range(40)]
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 0
            for link in (*clients, *servers):
                assert link.recv(1) == b""
                link.close()


# --- The sections


@pytest.fixture(scope="module")
def stable() -> Iterator[Stable]:
    try:
        binary = redis_binary()
    except BenchError as error:
        pytest.skip(str(error))
    with Stable(binary, ProxyCommand.pannier()) as found:
        yield found


def bench(stable: Stable, contenders: list[Contender], steps: int, seconds: float = 0.1) -> Bench:
    return Bench(stable, contenders, BUILTIN, 1, seconds, time.monotonic() + 120, Progress(steps))


def median(value: object) -> float:
    assert isinstance(value, Spread)
    return value.median


class TestLatency:
    def test_a_run(self, stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
        def cannot(_: Stable, __: Server) -> Server:
            raise BenchError("it will not")

        monkeypatch.setattr(latency, "SHARES", (50, 20))
        entries = line_up(stable, ["redis", "pannier"]).present
        lame = replace(entries[0], name="lame", start=cannot)
        run = bench(stable, [*entries, lame], latency.STEPS)
        section = latency.measure(run)
        assert run.failures == ["lame does not start: it will not"]
        assert [row.name for row in section.rows] == ["redis/50", "pannier/50", "redis/20", "pannier/20"]
        for row in section.rows:
            assert median(row.values["p99_ratio"]) >= 1
            assert median(row.values["server_cpu"]) >= 0
            assert median(row.values["achieved"]) > 0
        assert any(note.startswith("pannier/50: p99 is ") for note in section.notes)
        assert run.progress.done == 3
        assert stable.servers == []

    def test_who_fails_is_left_out_and_the_rest_goes_on(
        self, stable: Stable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter([TWICE, BenchError("unexpected reply"), TWICE, BenchError("again")])

        def outcome(*_: object) -> Outcome:
            found = next(answers)
            if isinstance(found, BenchError):
                raise found
            return found

        monkeypatch.setattr(openloop, "run", outcome)
        monkeypatch.setattr(latency, "SHARES", (50, 20))
        (redis,) = line_up(stable, ["redis"]).present
        run = bench(stable, [redis, replace(redis, name="pannier")], latency.STEPS)
        section = latency.measure(run)
        assert run.failures == ["latency: pannier/50: unexpected reply", "latency: pannier/20: again"]
        assert [row.name for row in section.rows] == ["redis/50", "redis/20"]
        assert "redis/50: behind in 1 of 1 rounds" in section.markdown()

    @pytest.mark.parametrize(
        ("ratio", "late", "verdict"),
        [
            (1.99, 10.0, "should be less than 2: met; that of Redis direct is 3.0 times"),
            (2.0, 10.0, "should be less than 2: missed; that of Redis direct is 3.0 times"),
            (2.0, 60.0, "3.0 times; much of p99 is how late the generator was: the machine had other things to do"),
        ],
    )
    def test_verdict(self, ratio: float, late: float, verdict: str) -> None:
        section = latency.Section("latency", "", "", latency.COLUMNS)
        for name, times in (("redis", 3.0), ("pannier", ratio)):
            values = {"p99_ratio": times, "p99": 200.0, "late_p99": late}
            section.add(f"{name}/50", **{key: Spread.of([value]) for key, value in values.items()})
        latency.judge(section)
        assert section.notes[0].endswith(verdict)


TWICE = Outcome(1_000.0, 900.0, 125, 125, 10.0, 15.0, 20.0, 40.0, 50.0, 5.0, 0.5)
"""Behind; its p99 is twice its p50."""


class TestRemote:
    def test_a_run(self, stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "DELAYS", (0.5,))
        run = bench(stable, [], remote.STEPS, seconds=0.2)
        section = remote.measure(run)
        assert run.failures == []
        rows = {row.name: row.values for row in section.rows}
        assert list(rows) == ["0.5ms/ping/redis"] + [
            f"0.5ms/{load.name}/{who}" for load in remote.LOADS for who in ("redis", "pannier")
        ]
        for load in remote.LOADS:
            direct, sidecar = (rows[f"0.5ms/{load.name}/{who}"] for who in ("redis", "pannier"))
            assert median(direct["p50"]) >= 1_000 and median(direct["redis_per_1000"]) == 1_000
            assert direct.get("hit_percent") is None
            hits = median(sidecar["hit_percent"])
            assert hits == 0 if load.name == "cold" else hits > 0
            assert (sidecar["times"] is None) is load.open_loop
        assert median(rows["0.5ms/cold/pannier"]["p50"]) >= 1_000
        assert section.notes[0].startswith("0.5ms: a PING takes ")
        assert run.progress.done == remote.STEPS // 2
        assert stable.servers == []

    def test_a_load_that_fails_is_told(self, stable: Stable, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> Outcome:
            raise BenchError("oh dear")

        monkeypatch.setattr(remote, "DELAYS", (0.5,))
        monkeypatch.setattr(openloop, "run", fail)
        run = bench(stable, [], remote.STEPS)
        section = remote.measure(run)
        assert run.failures == ["remote: 0.5 ms, 95-5-open: oh dear", "remote: 0.5 ms, 80-20-open: oh dear"]
        assert {row.name.split("/")[1] for row in section.rows} == {"ping", "95-5", "80-20", "cold"}

    def test_a_wrong_reply_is_an_error(self) -> None:
        with socket.create_server((HOST, 0)) as listener:
            thread = threading.Thread(target=self.answer, args=(listener, b"-ERR\r\n"))
            thread.start()
            with pytest.raises(BenchError, match="unexpected reply: b'-ERR"):
                remote.closed_loop(listener.getsockname()[1], [(b"PING\r\n", b"+PONG\r\n")])
            thread.join(10)

    @staticmethod
    def answer(listener: socket.socket, reply: bytes) -> None:
        with listener.accept()[0] as link:
            link.recv(100)
            link.sendall(reply)
