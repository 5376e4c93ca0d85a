"""What a client waits for that takes long: it ends when the client leaves, and one sees how far it is."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, pannier, redis_server, wait_until
from tests.integration.wire import Wire, request, text

MANY = 60_000


@pytest.fixture(params=["tracking", "no memory"])
def proxy(redis: Process, directory: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    options = ["--tracking", "off"] if request.param == "no memory" else []
    with pannier(f"redis://127.0.0.1:{redis.port}", directory, *options) as process:
        yield process


def populate(redis: Process, count: int = MANY) -> None:
    with Wire(redis.port) as direct:
        direct.line("FLUSHALL")
        assert direct.line(f"DEBUG POPULATE {count} user") == b"+OK\r\n"


def left(redis: Process) -> int:
    with Wire(redis.port) as direct:
        return int(direct.line("DBSIZE")[1:])


def begin(proxy: Process, redis: Process, *words: str) -> socket.socket:
    """A connection on which a command is under way, slowly."""
    sock = proxy.connect()
    sock.sendall(request("SIDECAR", *words))
    with Wire(proxy.port) as other:
        wait_until(lambda: b"pannier_long_commands:1" in other.line("INFO sidecar"))
    return sock


def everything_from(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def test_deleting_ends_when_the_client_closes(proxy: Process, redis: Process) -> None:
    populate(redis)
    begin(proxy, redis, "DELETE", "MATCH", "user:*", "COUNT", "3").close()
    with Wire(proxy.port) as other:
        wait_until(lambda: b"pannier_long_commands:0" in other.line("INFO sidecar"), 2)
    found = left(redis)
    assert found > 1000, "it went on"
    with Wire(proxy.port) as other:
        other.line("PING")
        assert left(redis) == found


def test_deleting_ends_when_the_client_sends_no_more_and_says_how_far_it_was(proxy: Process, redis: Process) -> None:
    populate(redis)
    with begin(proxy, redis, "DELETE", "MATCH", "user:*", "COUNT", "3") as sock:
        sock.shutdown(socket.SHUT_WR)
        reply = everything_from(sock)
    said = re.fullmatch(rb"-ERR pannier: stopped before the end: deleted (\d+), looked_at \d+, of \d+\r\n", reply)
    assert said, reply
    found = left(redis)
    assert found > 1000
    assert MANY - found - int(said[1]) in range(0, 257), "but for what was under way"


def test_a_refusal_midway_says_how_much_is_gone(redis: Process, directory: Path) -> None:
    """The user may delete some of the keys, and of the first that he may not, Redis refuses the whole piece."""
    populate(redis)
    with Wire(redis.port) as direct:
        direct.line("SET priv:1 x")
        direct.line("ACL SETUSER some reset on >pw ~user:* +@all")
    try:
        with pannier(f"redis://some:pw@127.0.0.1:{redis.port}", directory) as proxy, Wire(proxy.port) as wire:
            reply = wire.ask("SIDECAR", "DELETE", "MATCH", "*")
    finally:
        with Wire(redis.port) as direct:
            direct.line("ACL DELUSER some")
    said = re.fullmatch(rb"-NOPERM .+; stopped before the end: deleted (\d+), looked_at \d+, of 60001\r\n", reply)
    assert said, reply
    assert int(said[1]) == MANY + 1 - left(redis)


@pytest.mark.parametrize("words", [("DELETE", "MATCH", "user:*", "COUNT", "3"), ("WARM", "MATCH", "user:*")], ids=["delete", "warm"])
def test_so_does_the_error_when_redis_dies(any_redis_binary: str, directory: Path, words: tuple[str, ...]) -> None:
    with redis_server(any_redis_binary, directory) as redis, pannier(f"redis://127.0.0.1:{redis.port}", directory) as proxy:
        populate(redis)
        with begin(proxy, redis, *words) as sock, sock.makefile("rb") as replies, Wire(proxy.port) as other:
            done = rb"(deleted|warmed)=[1-9]"
            wait_until(lambda: re.search(done, other.line("INFO sidecar")))
            redis.kill()
            reply = replies.readline()
    assert re.match(rb"-ERR pannier: upstream .+; stopped before the end: (deleted|warmed) [1-9]\d*, ", reply), reply


def test_a_namespace_s_flush_that_is_refused_midway_says_so_too(redis: Process, directory: Path) -> None:
    populate(redis)
    with Wire(redis.port) as direct:
        direct.line("SET user:priv x")
        direct.line("ACL SETUSER some reset on >pw ~user:[0-9]* +@all")
    options = ["--namespace", "user"]
    try:
        with pannier(f"redis://some:pw@127.0.0.1:{redis.port}", directory, *options) as proxy, Wire(proxy.port) as wire:
            reply = wire.line("FLUSHDB")
    finally:
        with Wire(redis.port) as direct:
            direct.line("ACL DELUSER some")
    said = re.fullmatch(rb"-NOPERM .+; stopped before the end: deleted (\d+)\r\n", reply)
    assert said, reply
    assert int(said[1]) == MANY + 1 - left(redis)


def test_what_was_sent_behind_it_is_answered(proxy: Process, redis: Process) -> None:
    populate(redis)
    with begin(proxy, redis, "DELETE", "MATCH", "user:*", "COUNT", "3") as sock:
        sock.sendall(request("ECHO", "behind"))
        sock.shutdown(socket.SHUT_WR)
        reply = everything_from(sock)
    assert reply.startswith(b"-ERR pannier: stopped") and reply.endswith(b"$6\r\nbehind\r\n")


def test_who_asks_and_sends_no_more_at_once_stops_it_too(proxy: Process, redis: Process) -> None:
    populate(redis)
    with proxy.connect() as sock:
        sock.sendall(request("SIDECAR", "DELETE", "MATCH", "user:*", "COUNT", "3"))
        sock.shutdown(socket.SHUT_WR)
        assert everything_from(sock).startswith(b"-ERR pannier: stopped")
    assert left(redis) > 1000


def test_warming_ends_so_too(redis: Process, directory: Path) -> None:
    populate(redis)
    with pannier(f"redis://127.0.0.1:{redis.port}", directory) as proxy:
        with begin(proxy, redis, "WARM", "MATCH", "user:*") as sock:
            sock.shutdown(socket.SHUT_WR)
            assert re.match(rb"-ERR pannier: stopped before the end: warmed \d+, wanted \d+", everything_from(sock))
        with Wire(proxy.port) as other:
            other.line("PING")
            kept = re.search(rb"tier_entries:(\d+)", other.line("INFO sidecar"))
            assert kept and int(kept[1]) < MANY


def test_ordinary_commands_are_answered_to_who_sends_no_more(proxy: Process, redis: Process) -> None:
    with Wire(redis.port) as direct:
        direct.line("SET k v")
    with proxy.connect() as sock:
        sock.sendall(request("GET", "k") + request("SIDECAR", "INVALIDATE", "MATCH", "nosuch*") + request("GET", "k") * 3)
        sock.shutdown(socket.SHUT_WR)
        assert everything_from(sock) == b"$1\r\nv\r\n:0\r\n" + b"$1\r\nv\r\n" * 3


def test_how_far_it_is_can_be_seen(proxy: Process, redis: Process) -> None:
    populate(redis)
    with begin(proxy, redis, "DELETE", "MATCH", "user:1*", "COUNT", "3") as sock, Wire(proxy.port) as other:
        seen: list[tuple[int, int]] = []

        def look() -> bool:
            line = re.search(
                r"pannier_long_command_\d+:cmd=sidecar\|delete,deleted=(\d+),looked_at=(\d+),of=(\d+),seconds=\d",
                text(other.line("INFO sidecar")),
            )
            assert line, "it is over"
            assert int(line[3]) in (0, MANY)
            if int(line[2]):
                seen.append((int(line[1]), int(line[2])))
            return len(seen) > 1 and seen[-1][1] > seen[0][1] and seen[-1][0] > 0

        wait_until(look)
        assert b"cmd=sidecar|delete" in other.line("CLIENT LIST")
        assert b"long_commands" in other.line("SIDECAR STATS")
        sock.shutdown(socket.SHUT_WR)
        everything_from(sock)
        assert b"cmd=sidecar|delete" not in other.line("CLIENT LIST")


def test_several_patterns_are_deleted_and_counted_once(proxy: Process, redis: Process) -> None:
    populate(redis, 3000)
    with Wire(proxy.port) as wire:
        assert wire.ask("SIDECAR", "DELETE", "MATCH", "user:1*", "user:10*", "user:2*") == b":2222\r\n"
        assert wire.ask("SIDECAR", "DELETE", "MATCH", "user:3*", "nosuch", "COUNT", "100") == b":111\r\n"
        assert wire.ask("SIDECAR", "DELETE", "MATCH", "user:*", "COUNT", "0").startswith(b"-ERR SIDECAR DELETE takes COUNT")
        assert wire.ask("SIDECAR", "DELETE", "KEYS", "user:*").startswith(b"-ERR SIDECAR DELETE takes MATCH")
        assert wire.ask("SIDECAR", "DELETE", "MATCH", "x" * 4097).startswith(b"-ERR SIDECAR DELETE MATCH takes patterns of")
    assert left(redis) == 3000 - 2222 - 111
