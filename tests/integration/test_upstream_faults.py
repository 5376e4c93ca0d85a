"""Redis gone, silent, refusing or talking nonsense: clients stay connected and are told, at once, what is known."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_upstream import Cut, FakeUpstream, Hang
from tests.harness import (
    Process,
    free_port,
    pannier,
    read_exactly,
    redis_server,
    wait_until,
)

UNKNOWN = b"; outcome unknown: the command may or may not have been carried out\r\n"
FAST = ["--upstream-timeout", "500ms", "--connect-timeout", "500ms", "--reconnect-min", "10ms", "--reconnect-max", "50ms"]


def url(server: Process) -> str:
    return f"redis://127.0.0.1:{server.port}"


def line(sock: socket.socket) -> bytes:
    """The next line."""
    got = bytearray()
    while not got.endswith(b"\r\n"):
        got += read_exactly(sock, 1)
    return bytes(got)


def ask(sock: socket.socket, request: bytes) -> bytes:
    """The first line of the reply."""
    sock.sendall(request)
    return line(sock)


def timed(sock: socket.socket, request: bytes) -> tuple[bytes, float]:
    began = time.monotonic()
    return ask(sock, request), time.monotonic() - began


def kill_connections(redis: Process) -> None:
    """Have Redis close all its clients' connections."""
    with redis.connect() as sock:
        assert ask(sock, b"CLIENT KILL TYPE normal SKIPME yes\r\n").startswith(b":")
        assert ask(sock, b"CLIENT KILL TYPE pubsub SKIPME yes\r\n").startswith(b":")


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def proxied(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with pannier(url(upstream), tmp_path_factory.mktemp("pannier"), *FAST) as proxy:
        yield proxy


class TestWhileRedisIsDownEveryCommandGetsAnErrorAtOnce:
    def test_down_at_the_start(self, any_redis_binary: str, directory: Path) -> None:
        port = free_port()
        with pannier(f"redis://127.0.0.1:{port}", directory, *FAST) as proxy, proxy.connect() as sock:
            for command in (b"PING\r\n", b"SET k v\r\n", b"MULTI\r\n", b"BLPOP l 0\r\n", b"SELECT 1\r\n", b"SUBSCRIBE c\r\n", b"AUTH x\r\n", b"HELLO 3\r\n"):
                reply, seconds = timed(sock, command)
                said = b"-ERR pannier: upstream redis://127.0.0.1:%d/0 is unreachable: Connection refused" % port
                assert reply == said + b"\r\n" or reply.startswith(said + b" (circuit breaker open for ")
                assert seconds < 0.3
            assert ask(sock, b"CLIENT ID\r\n").startswith(b":")
            with redis_server(any_redis_binary, directory, port=port):
                wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")
                assert ask(sock, b"SELECT 1\r\n") == b"+OK\r\n"
                wait_until(lambda: "is back" in proxy.output)

    def test_killed_and_started_again(self, any_redis_binary: str, directory: Path) -> None:
        port = free_port()
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(redis_server(any_redis_binary, directory, port=port))
            proxy = stack.enter_context(pannier(url(redis), directory, *FAST))
            socks = [stack.enter_context(proxy.connect()) for _ in range(5)]
            for sock in socks:
                assert ask(sock, b"SET k v\r\n") == b"+OK\r\n"
            redis.kill()
            for sock in socks:
                reply, seconds = timed(sock, b"SET k v\r\n")
                assert reply.startswith(b"-ERR pannier: upstream ")
                assert seconds < 0.5
            with redis_server(any_redis_binary, directory, port=port):
                for sock in socks:
                    wait_until(lambda: ask(sock, b"SET k v\r\n") == b"+OK\r\n")  # noqa: B023
                assert ask(socks[0], b"INCR n\r\n") == b":1\r\n"

    def test_stopped_for_longer_than_the_timeout(self, any_redis_binary: str, directory: Path) -> None:
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(url(redis), directory, *FAST) as proxy,
            proxy.connect() as reader,
            proxy.connect() as writer,
            proxy.connect() as late,
        ):
            for sock in (reader, writer, late):
                assert ask(sock, b"PING\r\n") == b"+PONG\r\n"
            redis.signal(signal.SIGSTOP)
            began = time.monotonic()
            reader.sendall(b"GET k\r\n")
            writer.sendall(b"SET k v\r\n")
            assert line(reader).endswith(b" did not answer within 500ms\r\n".replace(b"500ms", b"0.5 s"))
            assert line(writer).endswith(b" did not answer within 0.5 s" + UNKNOWN)
            assert time.monotonic() - began < 1.5
            for _ in range(5):
                reply, seconds = timed(late, b"GET k\r\n")
                assert reply.startswith(b"-ERR pannier: upstream ")
                assert seconds < 1.0
            redis.signal(signal.SIGCONT)
            for sock in (reader, writer, late):
                wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")  # noqa: B023

    def test_connections_killed_by_redis(self, upstream: Process, proxied: Process) -> None:
        with proxied.connect() as sock:
            for number in range(10):
                assert ask(sock, b"SET k %d\r\n" % number) == b"+OK\r\n"
                kill_connections(upstream)
                wait_until(lambda: ask(sock, b"SET other 1\r\n") == b"+OK\r\n")
                assert ask(sock, b"GET k\r\n") == b"$1\r\n"
                assert line(sock) == b"%d\r\n" % number


class TestStateLostWithItsConnectionIsNotPretended:
    def test_transaction(self, upstream: Process, proxied: Process) -> None:
        with proxied.connect() as sock:
            assert ask(sock, b"SET k before\r\n") == b"+OK\r\n"
            assert ask(sock, b"MULTI\r\n") == b"+OK\r\n"
            assert ask(sock, b"SET k after\r\n") == b"+QUEUED\r\n"
            kill_connections(upstream)
            assert ask(sock, b"GET k\r\n").startswith(b"-ERR pannier: ")  # whether or not the loss is known yet
            assert ask(sock, b"EXEC\r\n").startswith(b"-EXECABORT ")
            wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")
            assert (ask(sock, b"GET k\r\n"), line(sock)) == (b"$6\r\n", b"before\r\n")

    def test_commands_until_exec_are_refused(self, upstream: Process, proxied: Process) -> None:
        with proxied.connect() as sock:
            assert ask(sock, b"SET k before\r\n") == b"+OK\r\n"
            assert ask(sock, b"MULTI\r\n") == b"+OK\r\n"
            kill_connections(upstream)
            for _ in range(3):
                assert ask(sock, b"SET k after\r\n").startswith(b"-ERR pannier: ")
            assert ask(sock, b"EXEC\r\n").startswith(b"-EXECABORT ")
            wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")
            assert (ask(sock, b"GET k\r\n"), line(sock)) == (b"$6\r\n", b"before\r\n")

    @pytest.mark.parametrize(("end", "reply"), [(b"DISCARD", b"+OK\r\n"), (b"RESET", b"+RESET\r\n"), (b"QUIT", b"+OK\r\n")])
    def test_other_ends(self, upstream: Process, proxied: Process, end: bytes, reply: bytes) -> None:
        with proxied.connect() as sock:
            assert ask(sock, b"MULTI\r\n") == b"+OK\r\n"
            kill_connections(upstream)
            assert ask(sock, b"PING\r\n").startswith(b"-ERR pannier: ")
            assert ask(sock, end + b"\r\n") == reply
            if end == b"QUIT":
                assert sock.recv(1) == b""
            else:
                wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")

    def test_watched_keys(self, upstream: Process, proxied: Process) -> None:
        with proxied.connect() as sock:
            assert ask(sock, b"SET k before\r\n") == b"+OK\r\n"
            assert ask(sock, b"WATCH k\r\n") == b"+OK\r\n"
            kill_connections(upstream)
            replies = [ask(sock, b"MULTI\r\n"), ask(sock, b"SET k after\r\n"), ask(sock, b"EXEC\r\n")]
            assert [reply.startswith(b"-") for reply in replies] == [True] * 3
            assert replies[2].startswith(b"-EXECABORT ")
            wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")
            assert (ask(sock, b"GET k\r\n"), line(sock)) == (b"$6\r\n", b"before\r\n")

    @pytest.mark.parametrize("command", [b"SUBSCRIBE c\r\n", b"PSUBSCRIBE c*\r\n", b"MONITOR\r\n", b"CLIENT REPLY ON\r\n"])
    def test_lasting_state_is_lost_with_the_clients_connection(self, upstream: Process, proxied: Process, command: bytes) -> None:
        with proxied.connect() as sock, proxied.connect() as other:
            ask(sock, command)
            kill_connections(upstream)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass
            wait_until(lambda: ask(other, b"PING\r\n") == b"+PONG\r\n")

    def test_blocked_command(self, upstream: Process, proxied: Process) -> None:
        with proxied.connect() as sock, upstream.connect() as direct:
            sock.sendall(b"BLPOP nothing 0\r\n")
            wait_until(lambda: ask(direct, b"EVAL \"return redis.call('info','clients'):match('blocked_clients:(%d+)')\" 0\r\n") and line(direct) == b"1\r\n")
            kill_connections(upstream)
            assert line(sock).endswith(UNKNOWN)
            wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")


    def test_transaction_that_cannot_begin(self, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{free_port()}", directory, *FAST) as proxy, proxy.connect() as sock:
            sock.sendall(b"MULTI\r\nSET k v\r\nEXEC\r\nCLIENT ID\r\n")
            assert b" is unreachable" in line(sock)
            assert line(sock) == b"-ERR pannier: the connection to upstream was lost in this transaction\r\n"
            assert line(sock).startswith(b"-EXECABORT ")
            assert line(sock).startswith(b":")

    def test_second_transaction_of_a_pipeline(self, directory: Path) -> None:
        def script(request: list[bytes]) -> bytes:
            if request[0] == b"EXEC":
                raise Cut
            return b"+OK\r\n" if request[0] == b"MULTI" else b"+QUEUED\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
            sock.sendall(b"MULTI\r\nINCR a\r\nEXEC\r\nMULTI\r\nINCR b\r\n")
            replies = [line(sock) for _ in range(5)]
            assert all(reply.endswith(UNKNOWN) for reply in replies[2:])
            assert ask(sock, b"INCR c\r\n").startswith(b"-ERR pannier: ")
            assert ask(sock, b"EXEC\r\n").startswith(b"-EXECABORT ")
            assert fake.sent(b"INCR") in ([[b"INCR", b"a"]], [[b"INCR", b"a"], [b"INCR", b"b"]])


class TestRedisOwnRefusalsAreRelayed:
    def test_wrong_password_in_the_url(self, any_redis_binary: str, directory: Path) -> None:
        with (
            redis_server(any_redis_binary, directory, "--requirepass", "right") as redis,
            pannier(f"redis://:hidden@127.0.0.1:{redis.port}", directory, *FAST) as proxy,
            proxy.connect() as sock,
        ):
            for command in (b"GET k\r\n", b"MULTI\r\n", b"BLPOP k 1\r\n"):
                assert ask(sock, command) == b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
            assert re.search("WARNING upstream redis://.* refuses us: WRONGPASS invalid username-password pair", proxy.output)
            assert proxy.output.count("WRONGPASS") <= 2
            assert "hidden" not in proxy.output

    def test_unknown_database_in_the_url(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis, pannier(f"{url(redis)}/99", directory, *FAST) as proxy, proxy.connect() as sock:
            assert ask(sock, b"GET k\r\n") == b"-ERR DB index is out of range\r\n"

    def test_loading(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory) as redis, redis.connect() as direct:
            assert ask(direct, b"DEBUG POPULATE 6000 key 10\r\n") == b"+OK\r\n"
            assert ask(direct, b"SAVE\r\n") == b"+OK\r\n"
        slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
        with (
            redis_server(any_redis_binary, directory, *slow) as redis,
            pannier(url(redis), directory, *FAST) as proxy,
            proxy.connect() as sock,
        ):
            assert ask(sock, b"GET key:1\r\n") == b"-LOADING Redis is loading the dataset in memory\r\n"
            with redis.connect() as direct:
                assert ask(direct, b"CONFIG SET key-load-delay 0\r\n") == b"+OK\r\n"
            wait_until(lambda: ask(sock, b"EXISTS key:1\r\n") == b":1\r\n")

    def test_maxclients_of_redis(self, any_redis_binary: str, directory: Path) -> None:
        with redis_server(any_redis_binary, directory, "--maxclients", "1") as redis, contextlib.ExitStack() as stack:
            greedy = stack.enter_context(redis.connect())
            wait_until(lambda: ask(greedy, b"PING\r\n") == b"+PONG\r\n")
            with pannier(url(redis), directory, *FAST) as proxy, proxy.connect() as sock:
                wait_until(lambda: ask(sock, b"PING\r\n") == b"-ERR max number of clients reached\r\n")
                assert ask(sock, b"BLPOP k 1\r\n") == b"-ERR max number of clients reached\r\n"
                greedy.close()
                wait_until(lambda: ask(sock, b"PING\r\n") == b"+PONG\r\n")

    @pytest.mark.parametrize(
        ("options", "command", "code"),
        [
            (["--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no"], b"GET k\r\n", b"-MASTERDOWN "),
            (["--replicaof", "127.0.0.1 1"], b"SET k v\r\n", b"-READONLY "),
            (["--maxmemory", "1"], b"SET k v\r\n", b"-OOM "),
            (["--min-replicas-to-write", "1"], b"SET k v\r\n", b"-NOREPLICAS "),
            (["--cluster-enabled", "yes"], b"GET k\r\n", b"-CLUSTERDOWN "),
        ],
    )
    def test_code_is_kept(self, any_redis_binary: str, directory: Path, options: list[str], command: bytes, code: bytes) -> None:
        port = free_port(above=10_000)
        with redis_server(any_redis_binary, directory, *options, port=port) as redis, redis.connect() as direct:
            expected = ask(direct, command)
            assert expected.startswith(code)
            with pannier(url(redis), directory, *FAST) as proxy, proxy.connect() as sock:
                assert ask(sock, command) == expected
                assert ask(sock, b"PING\r\n") == ask(direct, b"PING\r\n")

    def test_moved_and_ask(self, directory: Path) -> None:
        script = {b"GET": b"-MOVED 1234 127.0.0.1:7001\r\n", b"SET": b"-ASK 1234 127.0.0.1:7001\r\n"}
        with FakeUpstream(lambda request: script.get(request[0], b"+PONG\r\n")) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
            assert ask(sock, b"GET k\r\n") == script[b"GET"]
            assert ask(sock, b"SET k v\r\n") == script[b"SET"]


class TestAnUpstreamThatIsNoRedis:
    @pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x14\x03\x01\x00\x02\x02F\r\n"])
    def test_says_so(self, directory: Path, greeting: bytes) -> None:
        with FakeUpstream(lambda _: b"") as fake:
            fake.greeting = greeting
            with pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
                wait_until(lambda: b" does not speak RESP " in ask(sock, b"PING\r\n"))

    def test_speaks_tls(self, directory: Path) -> None:
        with FakeUpstream(lambda _: b"") as fake:
            fake.greeting = b"\x15\x03\x01\x00\x02\x02F\r\n"
            with pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
                wait_until(lambda: b" speaks TLS there; write rediss:// instead of redis://" in ask(sock, b"PING\r\n"))

    def test_closes_at_once(self, directory: Path) -> None:
        with FakeUpstream(lambda _: b"") as fake:
            fake.greeting = b""
            with pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
                assert b" closed the connection" in ask(sock, b"PING\r\n")

    def test_never_answers(self, directory: Path) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            pannier(f"redis://127.0.0.1:{silent.getsockname()[1]}", directory, *FAST) as proxy,
            proxy.connect() as sock,
        ):
            for _ in range(3):
                reply, seconds = timed(sock, b"PING\r\n")
                assert reply.endswith(b" did not answer within 0.5 s\r\n")
                assert seconds < 1.2

    @pytest.mark.parametrize("nonsense", [b"hello\r\n", b"$x\r\n", b"*1\r\n?\r\n", b"$-7\r\n", b"\0\0\0\r\n"])
    def test_nonsense_instead_of_a_reply(self, directory: Path, nonsense: bytes) -> None:
        def script(request: list[bytes]) -> bytes:
            return nonsense if request[0] == b"SET" else b"+fine\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock, proxy.connect() as other:
            assert ask(other, b"GET k\r\n") == b"+fine\r\n"
            sock.sendall(b"SET k v\r\n")
            with contextlib.suppress(EOFError, ConnectionError):
                assert line(sock).endswith(UNKNOWN)
            wait_until(lambda: ask(other, b"GET k\r\n") == b"+fine\r\n")
            assert len(fake.sent(b"SET")) == 1

    def test_more_replies_than_requests(self, directory: Path) -> None:
        replies = iter([b"+one\r\n+two\r\n"])
        with (
            FakeUpstream(lambda request: next(replies, b"+fine\r\n") if request[0] == b"GET" else b"+PONG\r\n") as fake,
            # A reply too many is noticed while nothing else is asked, such as what CLIENT TRACKING is.
            pannier(fake.url, directory, *FAST, "--tracking", "off") as proxy,
            proxy.connect() as sock,
            proxy.connect() as other,
        ):
            assert ask(sock, b"GET k\r\n") == b"+one\r\n"
            for _ in range(5):
                assert ask(other, b"GET k\r\n") == b"+fine\r\n"


class TestABrokenReplyClosesOnlyWhoWasReadingIt:
    def test_others_are_answered(self, directory: Path) -> None:
        def script(request: list[bytes]) -> bytes:
            if request == [b"GET", b"broken"]:
                raise Cut(b"$10\r\nabc")
            return b"$%d\r\n%b\r\n" % (len(request[-1]), request[-1])

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, contextlib.ExitStack() as stack:
            others = [stack.enter_context(proxy.connect()) for _ in range(5)]
            for _ in range(10):
                with proxy.connect() as victim:
                    victim.sendall(b"GET broken\r\n")
                    for number, other in enumerate(others):
                        other.sendall(b"GET key-%d\r\n" % number)
                    got = b""
                    with contextlib.suppress(ConnectionError):
                        got = b"".join(iter(lambda: victim.recv(100), b""))
                    assert b"$10\r\nabc".startswith(got)
                for number, other in enumerate(others):
                    assert read_exactly(other, 11) == b"$5\r\nkey-%d\r\n" % number


class TestWhatWasUnderWayWhenTheConnectionBroke:
    def test_reads_are_sent_again_once(self, directory: Path) -> None:
        cuts = iter([True])

        def script(request: list[bytes]) -> bytes:
            if request[0] == b"GET" and next(cuts, False):
                raise Cut
            return b"+fine\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
            assert ask(sock, b"GET k\r\n") == b"+fine\r\n"
            assert len(fake.sent(b"GET")) == 2

    def test_but_no_third_time(self, directory: Path) -> None:
        def script(request: list[bytes]) -> bytes:
            if request[0] == b"GET":
                raise Cut
            return b"+fine\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
            assert ask(sock, b"GET k\r\n").endswith(b" closed the connection\r\n")
            assert len(fake.sent(b"GET")) == 2

    @pytest.mark.parametrize(
        "command",
        [b"SET k v", b"INCR n", b"EVAL x 0", b"NOSUCH x", b"BLPOP l 1", b"SPOP s", b"XREADGROUP GROUP g c COUNT 1 BLOCK 5 STREAMS s >", b"GETDEL k", b"PUBLISH c m", b"SET k " + b"v" * 60000],
    )  # fmt: skip
    def test_a_write_is_never_sent_again(self, directory: Path, command: bytes) -> None:
        name = command.split()[0]

        def script(request: list[bytes]) -> bytes:
            if request[0] == name:
                raise Cut
            return b"+fine\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock:
            assert ask(sock, command + b"\r\n").endswith(UNKNOWN)
            wait_until(lambda: ask(sock, b"PING\r\n") == b"+fine\r\n")
            assert len(fake.sent(name)) == 1

    def test_a_large_write_is_never_sent_again(self, directory: Path) -> None:
        def script(request: list[bytes]) -> bytes:
            if request[0] == b"SET":
                raise Cut
            return b"+fine\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as sock, proxy.connect() as other:
            sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3000000\r\n" + b"x" * 3_000_000 + b"\r\n")
            with contextlib.suppress(EOFError, ConnectionError):
                assert line(sock).endswith(UNKNOWN)
            wait_until(lambda: ask(other, b"PING\r\n") == b"+fine\r\n")
            assert len(fake.sent(b"SET")) == 1

    def test_no_request_is_lost_or_doubled_under_many_cuts(self, directory: Path) -> None:
        """Pipelines of numbered reads and writes; the upstream cuts at random, sometimes after answering."""
        chance = random.Random(7)

        def script(request: list[bytes]) -> bytes:
            if request[0] == b"PING":
                return b"+PONG\r\n"
            if chance.random() < 0.02:
                raise Cut(b"" if chance.random() < 0.5 else b"+%b\r\n" % request[1])
            return b"+%b\r\n" % request[1]

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(proxy.connect()) for _ in range(4)]
            number = 0
            for _ in range(40):
                asked = []
                for sock in socks:
                    names = [b"%s%d" % (chance.choice([b"r", b"w"]), number + place) for place in range(8)]
                    number += 8
                    sock.sendall(b"".join(b"GET %b\r\n" % name if name[:1] == b"r" else b"SET %b x\r\n" % name for name in names))
                    asked.append(names)
                for sock, names in zip(socks, asked, strict=True):
                    for name in names:
                        reply = line(sock)
                        lost = reply.startswith(b"-ERR pannier: upstream ")
                        assert reply == b"+%b\r\n" % name or lost
                        if lost and b"is unreachable" not in reply:
                            assert reply.endswith(UNKNOWN) == (name[:1] == b"w")
            writes = [request[1] for request in fake.sent(b"SET")]
            assert len(set(writes)) == len(writes)
            reads = [request[1] for request in fake.sent(b"GET")]
            assert all(reads.count(name) <= 2 for name in reads)

    def test_silence_is_no_reason_to_send_again(self, directory: Path) -> None:
        def script(request: list[bytes]) -> bytes:
            if request[0] != b"PING":
                raise Hang
            return b"+PONG\r\n"

        with FakeUpstream(script) as fake, pannier(fake.url, directory, *FAST) as proxy, proxy.connect() as reader, proxy.connect() as writer:
            reader.sendall(b"GET k\r\n")
            writer.sendall(b"SET k v\r\n")
            assert line(reader).endswith(b" did not answer within 0.5 s\r\n")
            assert line(writer).endswith(b" did not answer within 0.5 s" + UNKNOWN)
            assert len(fake.sent(b"SET")) == 1


class TestReconnecting:
    def test_backs_off_with_jitter(self, directory: Path) -> None:
        with FakeUpstream(lambda _: b"") as fake:
            fake.greeting = b""
            options = ["--reconnect-min", "20ms", "--reconnect-max", "160ms", "--broadcast", "off"]
            with pannier(fake.url, directory, *options) as proxy, contextlib.ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(proxy.connect()).sendall(b"PING\r\n")  # clients cause no attempts
                wait_until(lambda: len(fake.connected) > 16, 20)
            gaps = [later - earlier for earlier, later in zip(fake.connected, fake.connected[1:], strict=False)]
            for gap, delay in zip(gaps, [0.02, 0.04, 0.08, *[0.16] * len(gaps)], strict=False):
                assert gap > delay / 2 - 0.002
            steady = gaps[3:]
            assert statistics.median(steady) < 0.17
            assert max(steady) - min(steady) > 0.01

    def test_a_connection_that_lasts_is_replaced_at_once(self, directory: Path) -> None:
        with FakeUpstream(lambda _: b"+fine\r\n") as fake, pannier(fake.url, directory, "--reconnect-min", "5s", "--reconnect-max", "5s") as proxy, proxy.connect() as sock:
            assert ask(sock, b"GET k\r\n") == b"+fine\r\n"
            wait_until(lambda: time.monotonic() - fake.connected[-1] > 1.1)
            fake.cut_all()
            wait_until(lambda: "reconnecting" in proxy.output)
            reply, seconds = timed(sock, b"GET k\r\n")
            assert reply == b"+fine\r\n"
            assert seconds < 1


class TestWhatFailsLeavesTheClientUsable:
    def test_a_large_command_while_redis_is_away(self, directory: Path) -> None:
        port = free_port()
        with pannier(f"redis://127.0.0.1:{port}", directory, *FAST) as proxy, proxy.connect() as sock:
            sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5000000\r\n" + b"x" * 5_000_000 + b"\r\nECHO a\r\n")
            for _ in range(2):
                assert line(sock).startswith(b"-ERR pannier: upstream ")

    @pytest.mark.parametrize("command", [b"MULTI\r\n", b"WATCH k\r\n"])
    def test_a_transaction_that_never_began(self, any_redis_binary: str, directory: Path, command: bytes) -> None:
        """Its opening command was answered with an error: the client will not end what it has not begun."""
        with (
            redis_server(any_redis_binary, directory) as redis,
            pannier(f"redis://127.0.0.1:{redis.port}", directory, *FAST, "--upstream-timeout", "300ms") as proxy,
            proxy.connect() as sock,
        ):
            assert ask(sock, b"WATCH k\r\n") == ask(sock, b"UNWATCH\r\n") == b"+OK\r\n"  # a link for the pool
            redis.signal(signal.SIGSTOP)
            assert b"outcome unknown" in ask(sock, command)
            redis.signal(signal.SIGCONT)
            wait_until(lambda: ask(sock, b"GET k\r\n") == b"$-1\r\n")
