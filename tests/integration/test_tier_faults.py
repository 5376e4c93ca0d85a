"""Redis gone, silent or emptied, and links cut, while others write on: nothing old is served afterwards."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, free_port, pannier, redis_server
from tests.integration.test_tier_ladder import Shim, url
from tests.integration.test_tier_reads import number, set_up
from tests.integration.wire import Wire, text, until

FAST = ["--upstream-timeout", "2s", "--connect-timeout", "1s", "--reconnect-min", "10ms", "--reconnect-max", "50ms"]
GATE = 0.5
GATED = [*FAST, "--coherence-timeout", "500ms"]
SLACK = 0.05
"""Seconds for what Redis sent before it stopped, and for the scheduler."""


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def value(reply: bytes) -> int | None:
    """The number in a bulk string; None for an error or nil."""
    return int(reply.split(b"\r\n")[1]) if reply[:1] == b"$" and reply[:2] != b"$-" else None


class DirectWriter:
    """Increments `k` on Redis itself, as fast as it can, while the context lasts."""

    def __init__(self, redis: Process) -> None:
        self._redis = redis
        self._end = threading.Event()
        self.last = 0
        self._named = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with Wire(self._redis.port) as wire:
            wire.line("CLIENT SETNAME writer")
            self._named.set()
            while not self._end.is_set():
                self.last = int(wire.line("INCR k")[1:-2])
                self._end.wait(0.0005)

    def __enter__(self) -> DirectWriter:
        self._thread.start()
        assert self._named.wait(10)
        return self

    def __exit__(self, *ignored: object) -> None:
        self._end.set()
        self._thread.join(10)


def links(redis: Process) -> list[bytes]:
    """Redis' ids of the sidecar's connections."""
    with Wire(redis.port) as wire:
        mine = wire.line("CLIENT ID")[1:-2]
        lines = text(wire.line("CLIENT LIST")).splitlines()
    found = [re.search(r"^id=(\d+) ", line) for line in lines if " name=writer " not in line]
    return [match.group(1).encode() for match in found if match and match.group(1).encode() != mine]


def cut(redis: Process, link: bytes) -> None:
    with Wire(redis.port) as wire:
        wire.ask("CLIENT", "KILL", "ID", link)


class TestCutLinks:
    def test_each_in_turn_while_others_write(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, *FAST) as proxy, contextlib.ExitStack() as stack:
            set_up(proxy, ["SET k 0"])
            readers = [stack.enter_context(Wire(proxy.port, protocol)) for protocol in (2, 3)]
            away = stack.enter_context(Wire(proxy.port))
            away.line("SELECT 1")
            pinned = stack.enter_context(Wire(proxy.port, 3))
            pinned.line("SUBSCRIBE c")
            seen = [0, 0]
            with DirectWriter(upstream):
                for _ in range(15):
                    for link in links(upstream):
                        for _ in range(5):
                            for place, reader in enumerate(readers):
                                got = value(reader.line("GET k"))
                                if got is not None:
                                    assert got >= seen[place], "went back in time"
                                    seen[place] = got
                            away.line("GET k")
                        cut(upstream, link)
            with Wire(upstream.port) as direct:
                expected = direct.line("GET k")
            until(lambda: [reader.line("GET k") for reader in readers] == [expected] * 2, "all see the last value", 2.0)
            assert number(proxy, "upstream_reconnects") >= 15
            hits = number(proxy, "tier_hits")
            until(lambda: readers[0].line("GET k") == expected and number(proxy, "tier_hits") > hits, "memory is in use again", 3.0)

    def test_a_write_that_nobody_can_tell_of_is_not_missed(self, upstream: Process, directory: Path) -> None:
        """Kept, then the link is cut, then written: once the loss is known, the old value is gone."""
        with pannier(url(upstream), directory, *FAST) as proxy, Wire(proxy.port) as reader, Wire(upstream.port) as direct:
            direct.line("CLIENT SETNAME writer")
            for turn in range(1, 30):
                direct.ask("SET", "k", turn)
                until(lambda turn=turn: value(reader.line("GET k")) == turn, "seen", 2.0)
                for _ in range(2):
                    reader.line("GET k")
                for link in links(upstream):
                    cut(upstream, link)
                direct.ask("SET", "k", turn + 1000)
                until(lambda turn=turn: value(reader.line("GET k")) == turn + 1000, "seen", 2.0)
                assert [value(reader.line("GET k")) for _ in range(3)] == [turn + 1000] * 3


class TestKilled:
    def test_restarted_empty(self, redis_binary: str, directory: Path) -> None:
        port = free_port()
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(redis_server(redis_binary, directory, port=port))
            proxy = stack.enter_context(pannier(url(redis), directory, *FAST))
            two, three = (stack.enter_context(Wire(proxy.port, protocol)) for protocol in (2, 3))
            for turn in range(3):
                set_up(proxy, ["SET k 1", "HSET h f v"])
                for wire in (two, three):
                    for _ in range(3):
                        assert wire.line("GET k") == b"$1\r\n1\r\n"
                        wire.line("HGETALL h")
                redis.kill()
                until(lambda: two.line("GET k").startswith(b"-") and three.line("GET k").startswith(b"-"), "nothing is served", 2.0)
                assert two.line("HGETALL h").startswith(b"-")
                assert number(proxy, "tier_entries") == 0
                redis = stack.enter_context(redis_server(redis_binary, directory, port=port))
                until(lambda: two.line("GET k") == b"$-1\r\n" and three.line("GET k") == b"_\r\n", "the new server answers", 3.0)
                assert (two.line("HGETALL h"), three.line("HGETALL h")) == (b"*0\r\n", b"%0\r\n")
                with Wire(port) as direct:
                    direct.ask("SET", "k", turn)
                until(lambda turn=turn: value(two.line("GET k")) == value(three.line("GET k")) == turn, "seen", 2.0)


def last_hit(wire: Wire) -> float:
    """Read until memory does not answer any more; when the last hit was asked for."""
    wire.sock.settimeout(0.2)
    last = 0.0
    while True:
        asked = time.monotonic()
        wire.send("GET", "k")
        try:
            if not wire.sock.recv(1 << 16).startswith(b"$"):
                return last
        except TimeoutError:
            return last
        last = asked


class TestSilence:
    @pytest.mark.parametrize("protocol", [2, 3])
    def test_nothing_from_memory_once_the_gate_is_shut(self, upstream: Process, directory: Path, protocol: int) -> None:
        with pannier(url(upstream), directory, *GATED) as proxy:
            for _ in range(2):
                set_up(proxy, ["SET k 1"])
                with Wire(proxy.port, protocol) as wire, Wire(proxy.port, protocol) as late, Wire(upstream.port) as direct:
                    for _ in range(3):
                        assert value(wire.line("GET k")) == 1
                    upstream.signal(signal.SIGSTOP)
                    stopped = time.monotonic()
                    try:
                        direct.send("SET", "k", 2)
                        last = last_hit(wire)
                        assert last <= stopped + GATE + SLACK
                        until(lambda stopped=stopped: time.monotonic() > stopped + GATE + SLACK, "shut")
                        late.send("GET", "k")
                        late.sock.settimeout(0.2)
                        with pytest.raises(TimeoutError):
                            late.sock.recv(1)
                    finally:
                        upstream.signal(signal.SIGCONT)
                    direct.read()
                    with Wire(proxy.port, protocol) as fresh:
                        until(lambda fresh=fresh: value(fresh.line("GET k")) == 2, "seen", 2.0)
                        assert [value(fresh.line("GET k")) for _ in range(3)] == [2] * 3

    def test_a_partition_during_which_others_write(self, upstream: Process, directory: Path) -> None:
        with Shim(upstream) as shim, pannier(shim.url, directory, *GATED) as proxy, Wire(proxy.port) as wire, DirectWriter(upstream) as writer:
            for _ in range(3):
                value(wire.line("GET k"))
            for _ in range(2):
                shim.flowing.clear()
                parted, then = time.monotonic(), writer.last
                # What is served is no older than the gate allows.
                while time.monotonic() < parted + 3 * GATE:
                    asked, before = time.monotonic(), writer.last
                    wire.send("GET", "k")
                    wire.sock.settimeout(0.2)
                    try:
                        wire.sock.recv(1 << 16)
                    except TimeoutError:
                        break
                    assert asked < parted + GATE + SLACK, before - then
                else:
                    raise AssertionError("the gate has not shut")
                shim.flowing.set()
                wire.sock.settimeout(5)
                assert (value(wire.read()) or 0) >= then
            last = writer.last
            until(lambda: (value(wire.line("GET k")) or 0) >= last, "caught up", 3.0)

    def test_an_idle_link_is_kept_alive(self, upstream: Process, directory: Path) -> None:
        with pannier(url(upstream), directory, *GATED) as proxy, Wire(proxy.port) as wire:
            set_up(proxy, ["SET k 1"])
            for _ in range(3):
                wire.line("GET k")
            before, began, count = number(proxy, "tier_hits"), time.monotonic(), 0
            while time.monotonic() < began + 4 * GATE:
                assert value(wire.line("GET k")) == 1
                count += 1
            assert number(proxy, "tier_hits") - before >= count * 0.9


def test_a_client_that_resets_its_connection_leaves_memory_in_use(redis: Process, proxy: Process) -> None:
    set_up(proxy, ["SET k 1"])
    with Wire(proxy.port) as wire:
        for _ in range(3):
            wire.line("GET k")
        for _ in range(20):
            other = proxy.connect()
            other.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n*2\r\n$3\r\nGET")
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            other.close()
        hits = number(proxy, "tier_hits")
        assert value(wire.line("GET k")) == 1
        assert number(proxy, "tier_hits") == hits + 1
