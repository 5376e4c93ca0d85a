"""What lives in a connection: through the sidecar it lives and ends as on a connection to Redis itself."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import Process, pannier, redis_server
from tests.integration.wire import Wire, in_background, request, text, until, words

END = request("RESET") + request("ECHO", "the end")
END_REPLY = b"$7\r\nthe end\r\n"
NULL = {2: b"$-1\r\n", 3: b"_\r\n"}
NULL_ARRAY = {2: b"*-1\r\n", 3: b"_\r\n"}
FIRST_ID = 1 << 40

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])


def flush(redis: Process) -> None:
    with Wire(redis.port) as wire:
        assert wire.ask("FLUSHALL") == b"+OK\r\n"


def without_ids(replies: bytes) -> bytes:
    """Replies with HELLO's client id, which is nobody else's, left out."""
    return re.sub(rb"(\$2\r\nid\r\n):\d+", rb"\1:ID", replies)


def transcript(port: int, protocol: int, pieces: Sequence[bytes]) -> bytes:
    """All that comes back for `pieces`, each sent by itself, up to the reply of a RESET and an ECHO after them."""
    with Wire(port, protocol) as wire, in_background(lambda: [wire.raw(piece) for piece in [*pieces, END]]):
        parts = []
        while not parts or parts[-1] != END_REPLY:
            parts.append(wire.read())
    return without_ids(b"".join(parts))


def farewell(port: int, protocol: int, data: bytes) -> bytes:
    """All that comes back for `data` and a QUIT after it, until the connection is closed."""
    with Wire(port, protocol) as wire, in_background(lambda: wire.raw(data + request("QUIT"))):
        return without_ids(wire.rest())


def encode(script: str) -> list[bytes]:
    return [request(*words(line)) for line in script.split("; ")]


def clients(redis: Process, field: str) -> int:
    """A number from Redis' INFO clients."""
    with Wire(redis.port) as wire:
        found = re.search(rf"{field}:(\d+)", text(wire.line("INFO clients")))
    return int(found.group(1)) if found else 0


def blocked(redis: Process, count: int) -> None:
    until(lambda: clients(redis, "blocked_clients") == count, f"{count} clients block")


@pytest.fixture
def impatient(redis: Process) -> Iterator[Process]:
    """`redis`, which says BUSY after 10 ms of a script; one still running at the end is killed."""
    with Wire(redis.port) as wire:
        wire.line("CONFIG SET lua-time-limit 10")
        yield redis
        if wire.line("PING").startswith(b"-BUSY"):
            wire.line("SCRIPT KILL")
            wire.line("FUNCTION KILL")
            until(lambda: wire.line("PING") == b"+PONG\r\n", "the script is dead")
        assert wire.line("CONFIG SET lua-time-limit 5000") == b"+OK\r\n"


@pytest.fixture
def unpaused(redis: Process) -> Iterator[Process]:
    """`redis`; clients that are still paused at the end are let go."""
    yield redis
    with Wire(redis.port) as wire:
        assert wire.line("CLIENT UNPAUSE") == b"+OK\r\n"


SCRIPTS = [
    # Transactions.
    "MULTI; SET a 1; GET a; INCR a; EXEC; GET a", "MULTI; SET a 1; DISCARD; GET a", "MULTI; EXEC", "EXEC", "DISCARD", "MULTI; MULTI; SET a 1; EXEC", "MULTI; WATCH a; EXEC",
    "MULTI; UNWATCH; EXEC", "MULTI; NOSUCH; SET a 1; EXEC; GET a", "MULTI; SET a; EXEC; GET a", "MULTI; LPUSH l x; INCR l; SET b 1; EXEC; GET b", "MULTI; BLPOP none 0; RPUSH l a; BLPOP l 0; EXEC",
    "MULTI; XREAD BLOCK 0 STREAMS s $; EXEC", "MULTI x; EXEC x; EXEC", "MULTI; SELECT 1; SET a 1; EXEC; GET a; SELECT 0; GET a", "MULTI; HELLO 3; EXEC; GET none", "MULTI; CLIENT SETNAME me; CLIENT GETNAME; EXEC; CLIENT GETNAME",
    "MULTI; AUTH x y; EXEC; PING", "MULTI; PING; ECHO x; TIME x; EXEC", "MULTI; INFO nosuch; EXEC", "MULTI; SUBSCRIBE c; EXEC; PING; UNSUBSCRIBE; PING", "MULTI; PUBLISH c m; EXEC", "MULTI; EVAL 'return 1' 0; EXEC",
    "MULTI; SCRIPT FLUSH; EXEC", "MULTI; RESET; EXEC", "MULTI; SET a 1; RESET; GET a; EXEC", "MULTI; WAIT 0 0; EXEC", "MULTI; CONFIG GET maxmemory; EXEC", "MULTI; FLUSHALL; EXEC", "MULTI; CLIENT REPLY OFF; EXEC; CLIENT REPLY ON; PING",
    "MULTI; MONITOR; EXEC", "MULTI; SHUTDOWN x; EXEC", "MULTI; CLIENT NO-EVICT on; EXEC", "MULTI; PING; EXEC; MULTI; PING; EXEC; MULTI; PING; DISCARD; PING", "SET a 1; MULTI; GET a; EXEC; INCR a; MULTI; INCR a; EXEC; GET a",
    "MULTI; CLIENT TRACKING on; EXEC; GET a; CLIENT TRACKING off", "MULTI; SELECT 1; DISCARD; SET a 1; SELECT 0; EXISTS a", "multi; set a 1; exec; Multi; Get a; Exec", "MULTI; CLIENT KILL ID 99999999; EXEC", "MULTI; CLIENT UNBLOCK 99999999; EXEC",
    # WATCH.
    "WATCH a; MULTI; SET a 1; EXEC", "WATCH a; SET a 1; MULTI; SET a 2; EXEC; GET a", "WATCH a; UNWATCH; SET a 1; MULTI; SET a 2; EXEC", "WATCH a b; GET a; EXEC; DISCARD; UNWATCH; GET b", "WATCH; WATCH a; MULTI; DISCARD; SET a 1; MULTI; GET a; EXEC",
    "WATCH a; SELECT 1; SET a x; MULTI; PING; EXEC", "WATCH a; RESET; SET a 1; MULTI; PING; EXEC", "WATCH a; SUBSCRIBE c; UNSUBSCRIBE c; SET a 1; MULTI; PING; EXEC", "WATCH a; BLPOP none 0.01; LPUSH a x; BLPOP a 0; MULTI; EXEC",
    "WATCH a; HELLO 3; MULTI; SET a 1; EXEC", "WATCH a; FLUSHALL; MULTI; PING; EXEC", "SET a 1; WATCH a; FLUSHALL; MULTI; PING; EXEC", "UNWATCH; PING; UNWATCH",
    # Blocking commands.
    "BLPOP none 0.01; PING; RPUSH l a b c; BLPOP l 0; BRPOP l 0; BLMOVE l m LEFT RIGHT 0; BZPOPMIN none 0.01; GET x", "BLPOP a b c 0.01; SET a x; BLPOP a 0; PING", "XREAD BLOCK 10 STREAMS s $; XADD s 1-1 a b; XREAD BLOCK 0 STREAMS s 0",
    "XGROUP CREATE s g $ MKSTREAM; XREADGROUP GROUP g c BLOCK 10 STREAMS s >; XADD s 1-1 a b; XREADGROUP GROUP g c BLOCK 0 STREAMS s >; XACK s g 1-1", "WAIT 0 100; SET a 1; WAIT 0 0; GET a", "SELECT 1; RPUSH l a; BLPOP l 0; SELECT 0; RPUSH l b; BLPOP l 0",
    # Subscriptions.
    "SUBSCRIBE a; SUBSCRIBE b a; PSUBSCRIBE p*; UNSUBSCRIBE a; PING; PING hi; UNSUBSCRIBE; PUNSUBSCRIBE; GET x", "UNSUBSCRIBE; PUNSUBSCRIBE; UNSUBSCRIBE a b; PING", "SUBSCRIBE a; GET x; SET x 1; NOSUCH; UNSUBSCRIBE; GET x", "SUBSCRIBE a; PUBLISH a m; UNSUBSCRIBE a; PUBLISH a m",
    "SSUBSCRIBE a; SPUBLISH a m; SUNSUBSCRIBE a; SUNSUBSCRIBE", "SUBSCRIBE a; MULTI; PING; EXEC; UNSUBSCRIBE", "SUBSCRIBE a; SELECT 1; UNSUBSCRIBE; SET x 1; SELECT 0; GET x", "SUBSCRIBE a; HELLO 3; PING; GET x; HELLO 2; GET x", "SUBSCRIBE a; SUBSCRIBE", "SUBSCRIBE a; RESET; SUBSCRIBE b; RESET; GET x",
    "HELLO 3; SUBSCRIBE a; GET x; PUBLISH a m; HELLO 2; RESET; PING", "SUBSCRIBE a; CLIENT SETNAME x; UNSUBSCRIBE; CLIENT GETNAME", "SUBSCRIBE a a a; PSUBSCRIBE * *; PUBLISH a m; UNSUBSCRIBE x; PING", "SUBSCRIBE a; BLPOP l 0.01; UNSUBSCRIBE; BLPOP l 0.01",
    # The client's own connection.
    "CLIENT SETNAME me; CLIENT GETNAME; CLIENT SETNAME ''; CLIENT GETNAME; CLIENT SETNAME 'a b'; CLIENT SETNAME a\tb; CLIENT GETNAME", "CLIENT SETNAME me; MULTI; CLIENT GETNAME; EXEC", "CLIENT SETNAME me; SUBSCRIBE c; UNSUBSCRIBE; CLIENT GETNAME", "CLIENT SETNAME me; RESET; CLIENT GETNAME",
    "CLIENT REPLY OFF; SET a 1; GET a; CLIENT REPLY ON; GET a", "CLIENT REPLY SKIP; GET a; GET a; CLIENT REPLY SKIP; CLIENT REPLY ON; PING", "CLIENT REPLY OFF; NOSUCH; SUBSCRIBE c; CLIENT REPLY ON; PING", "CLIENT REPLY OFF; CLIENT REPLY SKIP; PING; CLIENT REPLY ON; PING; CLIENT REPLY x",
    "CLIENT REPLY OFF; RESET; PING", "CLIENT REPLY SKIP; RESET; PING", "SUBSCRIBE c; CLIENT REPLY SKIP; RESET; PING", "MULTI; CLIENT REPLY SKIP; RESET; PING", "CLIENT REPLY OFF; CLIENT REPLY SKIP; RESET; PING", "CLIENT REPLY SKIP; PING; RESET; PING", "CLIENT REPLY SKIP; CLIENT REPLY SKIP; RESET; RESET; PING", "CLIENT REPLY SKIP; SELECT 1; SET a 1; GET a", "CLIENT TRACKING on; GET a; CLIENT TRACKINGINFO; CLIENT GETREDIR; CLIENT TRACKING off; CLIENT GETREDIR", "CLIENT TRACKING on BCAST PREFIX a PREFIX b; CLIENT TRACKINGINFO; SET z 1", "CLIENT TRACKING on OPTIN; CLIENT CACHING yes; GET a; SET a 1; CLIENT CACHING no",
    "CLIENT TRACKING on OPTOUT NOLOOP; GET a; SET a 1; CLIENT TRACKINGINFO", "CLIENT TRACKING on BCAST OPTIN; CLIENT TRACKING on PREFIX a; CLIENT TRACKING off; CLIENT CACHING yes", "HELLO 3; CLIENT TRACKING on; GET a; SET a 1; MULTI; GET a; SET a 2; EXEC; FLUSHALL; RESET; GET a", "CLIENT GETREDIR; CLIENT TRACKINGINFO; CLIENT NO-EVICT on; CLIENT NO-EVICT off",
    "CLIENT TRACKING on REDIRECT 99999999; PING", "READONLY; READWRITE; ASKING; PING",
    # Who and where.
    "HELLO; HELLO 2; GET none; HELLO 3; GET none; HELLO; HELLO 4; GET none; HELLO 2; GET none", "HELLO 3 SETNAME me; CLIENT GETNAME; HELLO 2 SETNAME 'a b'; CLIENT GETNAME; HELLO 3 SETNAME ''; CLIENT GETNAME", "HELLO 3 AUTH default x; GET none; HELLO 2 AUTH nobody x; GET none", "HELLO 3 AUTH default x SETNAME me; CLIENT GETNAME",
    "HELLO 3 AUTH nobody x SETNAME me; CLIENT GETNAME; GET none", "HELLO 5 AUTH default x; HELLO 3 NOSUCH; HELLO 3 SETNAME; GET none", "AUTH x; AUTH default x; AUTH nobody x; AUTH; PING", "SELECT 1; SET a 1; SELECT 0; GET a; SELECT 15; GET a; SELECT 16; SELECT -1; SELECT x; SELECT 1; GET a", "SELECT 1; SET a 1; RESET; GET a; SELECT 1; GET a",
    "SELECT 2; MULTI; SET a 1; EXEC; SELECT 0; GET a; SELECT 2; GET a", "SELECT 3; HELLO 3; SET a 1; HELLO 2; GET a; SELECT 0; GET a", "RESET; RESET; PING; RESET", "HELLO 3; RESET; GET none; HELLO 3; SUBSCRIBE c; RESET; GET none", "RESET x; PING", "QUIT x", "PING; QUIT",
]  # fmt: skip


class TestScriptsOfState:
    @both_protocols
    @pytest.mark.parametrize("script", SCRIPTS)
    def test_as_on_a_connection_to_redis(self, redis: Process, proxy: Process, script: str, protocol: int) -> None:
        requests = encode(script)
        if "QUIT" in script:
            assert farewell(proxy.port, protocol, b"".join(requests)) == farewell(redis.port, protocol, b"".join(requests))
            return
        theirs = transcript(redis.port, protocol, [b"".join(requests)])
        flush(redis)
        assert transcript(proxy.port, protocol, [b"".join(requests)]) == theirs, "in one chunk"
        flush(redis)
        assert transcript(proxy.port, protocol, requests) == theirs, "command by command"


class TestQuitAndResetFromEveryState:
    STATES = (
        "PING", "MULTI", "MULTI; SET a 1", "MULTI; NOSUCH", "WATCH a", "WATCH a; MULTI; GET a", "SUBSCRIBE c", "PSUBSCRIBE *; SUBSCRIBE c", "CLIENT REPLY OFF", "CLIENT REPLY SKIP", "CLIENT TRACKING on", "SELECT 5",
        "HELLO 3", "HELLO 3; SUBSCRIBE c", "CLIENT SETNAME me", "BLPOP none 0.01", "GET a; SET b 1; LPUSH l x", "READONLY", "ASKING", "MULTI; SUBSCRIBE c; EXEC",
    )  # fmt: skip

    # A QUIT without a reply (CLIENT REPLY OFF or SKIP before it) does not close a connection to Redis at all.
    @both_protocols
    @pytest.mark.parametrize("state", [state for state in STATES if "REPLY" not in state])
    def test_quit(self, redis: Process, proxy: Process, state: str, protocol: int) -> None:
        data = b"".join(encode(state))
        theirs = farewell(redis.port, protocol, data)
        flush(redis)
        assert farewell(proxy.port, protocol, data) == theirs

    @both_protocols
    @pytest.mark.parametrize("state", STATES)
    def test_reset(self, redis: Process, proxy: Process, state: str, protocol: int) -> None:
        data = b"".join(encode(state + "; RESET; CLIENT GETNAME; GET none; SET mine 1; EXEC; SELECT 0; GET mine"))
        theirs = transcript(redis.port, protocol, [data])
        flush(redis)
        assert transcript(proxy.port, protocol, [data]) == theirs

    @both_protocols
    def test_reset_and_quit_of_a_monitor(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as wire:
            assert wire.ask("MONITOR") == b"+OK\r\n"
            wire.send("RESET")
            while (line := wire.read()) != b"+RESET\r\n":
                assert b'"RESET"' not in line and line[:1] == b"+"
            assert wire.ask("GET", "none") == NULL[2]
            assert wire.ask("MONITOR") == b"+OK\r\n"
            wire.send("QUIT")
            assert wire.rest().endswith(b"+OK\r\n")


class TestTransactionsSeeOtherClients:
    def test_a_conflicting_write_fails_the_watch(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as mine, Wire(proxy.port) as other:
            assert mine.line("WATCH a") == b"+OK\r\n"
            assert other.line("SET a theirs") == b"+OK\r\n"
            assert mine.line("MULTI") == b"+OK\r\n"
            assert mine.line("SET a mine") == b"+QUEUED\r\n"
            assert mine.line("EXEC") == NULL_ARRAY[2]
            assert mine.line("GET a") == b"$6\r\ntheirs\r\n"

    def test_unwatch_and_other_keys_do_not(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as mine, Wire(proxy.port) as other:
            assert mine.line("WATCH a") == b"+OK\r\n"
            assert other.line("SET b theirs") == b"+OK\r\n"
            assert [mine.line(line) for line in ("MULTI", "PING", "EXEC")] == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n+PONG\r\n"]
            assert mine.line("WATCH b") == b"+OK\r\n"
            assert other.line("SET b again") == b"+OK\r\n"
            assert mine.line("UNWATCH") == b"+OK\r\n"
            assert [mine.line(line) for line in ("MULTI", "PING", "EXEC")] == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n+PONG\r\n"]

    def test_an_earlier_write_of_ones_own_is_no_conflict(self, redis: Process, proxy: Process) -> None:
        data = request("SET", "a", 1) * 50 + request("WATCH", "a") + request("MULTI") + request("INCR", "a") + request("EXEC")
        with Wire(proxy.port) as wire:
            for _ in range(20):
                assert wire.pipeline([data], 54)[-1] == b"*1\r\n:2\r\n"

    def test_what_is_queued_is_not_done_before_exec(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as mine, Wire(proxy.port) as other:
            mine.line("MULTI")
            mine.line("SET a 1")
            assert other.line("GET a") == NULL[2]
            assert mine.line("EXEC") == b"*1\r\n+OK\r\n"
            assert other.line("GET a") == b"$1\r\n1\r\n"

    def test_leaving_in_multi_does_nothing(self, redis: Process, proxy: Process) -> None:
        before = clients(redis, "connected_clients")
        with Wire(proxy.port) as mine:
            mine.line("MULTI")
            mine.line("SET a 1")
        until(lambda: clients(redis, "connected_clients") <= before, "the link is closed")
        with Wire(proxy.port) as other:
            assert other.line("GET a") == NULL[2]
            assert other.line("EXEC") == b"-ERR EXEC without MULTI\r\n"


BLOCKING = [
    ("BLPOP k 0", "RPUSH k v", b"*2\r\n$1\r\nk\r\n$1\r\nv\r\n"),
    ("BRPOP x k 0", "RPUSH k v", b"*2\r\n$1\r\nk\r\n$1\r\nv\r\n"),
    ("BLMOVE k d LEFT RIGHT 0", "RPUSH k v", b"$1\r\nv\r\n"),
    ("BRPOPLPUSH k d 0", "RPUSH k v", b"$1\r\nv\r\n"),
    ("BZPOPMIN k 0", "ZADD k 1 v", None),
    ("XREAD BLOCK 0 STREAMS k $", "XADD k 1-1 f v", None),
    ("XREADGROUP GROUP g c BLOCK 0 STREAMS s >", "XADD s 1-1 f v", None),
]


class TestBlockedClients:
    @both_protocols
    @pytest.mark.parametrize(("command", "release", "reply"), BLOCKING, ids=[case[0].split()[0] for case in BLOCKING])
    def test_holds_up_nobody_and_gets_its_reply(
        self, redis: Process, proxy: Process, command: str, release: str, reply: bytes | None, protocol: int
    ) -> None:
        answers = []
        for port in (redis.port, proxy.port):
            flush(redis)
            with Wire(port, protocol) as waiting, Wire(port, protocol) as other:
                other.line("XGROUP CREATE s g $ MKSTREAM")
                waiting.raw(request(*words(command)) + request("ECHO", "after"))
                blocked(redis, 1)
                assert other.line("PING") == b"+PONG\r\n"
                assert other.line("SELECT 0") == b"+OK\r\n"
                assert other.line("BLPOP none 0.01") == NULL_ARRAY[protocol]
                other.line(release)
                answers.append(waiting.read())
                assert waiting.read() == b"$5\r\nafter\r\n"
        assert answers[1] == answers[0]
        assert reply is None or answers[1] == reply

    @pytest.mark.parametrize("half", [False, True], ids=["close", "shutdown"])
    def test_a_client_that_leaves_takes_nothing(self, redis: Process, proxy: Process, half: bool) -> None:
        with Wire(proxy.port) as waiting, Wire(proxy.port) as other:
            waiting.send("BLPOP", "k", 0)
            blocked(redis, 1)
            if half:
                waiting.sock.shutdown(socket.SHUT_WR)
            else:
                waiting.close()
            blocked(redis, 0)
            assert other.line("RPUSH k v") == b":1\r\n"
            assert other.line("LRANGE k 0 -1") == b"*1\r\n$1\r\nv\r\n"

    def test_many_block_at_once(self, redis: Process, proxy: Process) -> None:
        waiting = [Wire(proxy.port) for _ in range(40)]
        try:
            for n, wire in enumerate(waiting):
                wire.send("BLPOP", f"k{n}", 0)
            blocked(redis, len(waiting))
            with Wire(proxy.port) as other:
                for n in reversed(range(len(waiting))):
                    assert other.ask("RPUSH", f"k{n}", n) == b":1\r\n"
            for n, wire in enumerate(waiting):
                assert wire.read() == b"*2\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in (b"k%d" % n, b"%d" % n))
        finally:
            for wire in waiting:
                wire.close()

    @both_protocols
    def test_unblock(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as waiting, Wire(proxy.port, protocol) as other:
            number = int(waiting.ask("CLIENT", "ID")[1:-2])
            assert other.ask("CLIENT", "UNBLOCK", number) == b":0\r\n"
            for how, reply in (
                ([], NULL_ARRAY[protocol]),
                (["TIMEOUT"], NULL_ARRAY[protocol]),
                (["ERROR"], b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"),
            ):
                waiting.send("BLPOP", "none", 0)
                blocked(redis, 1)
                assert other.ask("CLIENT", "UNBLOCK", number, *how) == b":1\r\n"
                assert waiting.read() == reply
            assert waiting.line("PING") == b"+PONG\r\n"

    def test_kill_of_a_blocked_client(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as waiting, Wire(proxy.port) as other:
            number = int(waiting.ask("CLIENT", "ID")[1:-2])
            waiting.send("BLPOP", "k", 0)
            blocked(redis, 1)
            assert other.ask("CLIENT", "KILL", "ID", number) == b":1\r\n"
            with pytest.raises((EOFError, ConnectionError)):
                waiting.read()
            blocked(redis, 0)
            other.line("RPUSH k v")
            assert other.line("LLEN k") == b":1\r\n"

    def test_wait_counts_the_clients_own_writes(self, redis: Process, proxy: Process, redis_binary: str, directory: Path) -> None:
        """A replica that copies *through* the sidecar (PSYNC, SYNC and REPLCONF pass), and WAIT for it."""
        with Wire(proxy.port) as mine:
            mine.line("CONFIG SET repl-diskless-sync-delay 0")
            with redis_server(redis_binary, directory, "--replicaof", "127.0.0.1", str(proxy.port)) as replica, Wire(replica.port) as copy:
                until(lambda: b"master_link_status:up" in copy.line("INFO replication"), "the replica is in step", 30)
                for n in range(20):
                    assert mine.pipeline([request("SET", "k", n), request("WAIT", 1, 10000)], 2) == [b"+OK\r\n", b":1\r\n"]
                    assert copy.line("GET k") == b"$%d\r\n%d\r\n" % (len(str(n)), n)
                assert mine.line("WAIT 2 10") == b":1\r\n"


class TestPubSub:
    KINDS = (
        ("SUBSCRIBE", "PUBLISH", "message", ()),
        ("PSUBSCRIBE", "PUBLISH", "pmessage", ("ch*",)),
        ("SSUBSCRIBE", "SPUBLISH", "smessage", ()),
    )

    @both_protocols
    @pytest.mark.parametrize(("subscribe", "publish", "kind", "pattern"), KINDS, ids=[case[0] for case in KINDS])
    def test_messages(
        self, redis: Process, proxy: Process, subscribe: str, publish: str, kind: str, pattern: tuple[str, ...], protocol: int
    ) -> None:
        mark = b">" if protocol == 3 else b"*"
        message = b"\r\n\0\xff" * 100
        with Wire(proxy.port, protocol) as listener, Wire(proxy.port) as other, Wire(redis.port) as direct:
            reply = listener.ask(subscribe, *(pattern or ("chan",)))
            if reply[:1] == b"-":
                assert reply == direct.ask(subscribe, "chan"), "before Redis 7"
                return
            assert reply[:1] == mark
            for sender in (other, direct):
                assert sender.ask(publish, "chan", message) == b":1\r\n"
                assert listener.read() == mark + request(kind, *pattern, "chan", message)[1:]
            listener.line("PING hi")
            listener.line(subscribe.replace("SUB", "UNSUB"))
            assert other.ask(publish, "chan", message) == b":0\r\n"
            assert listener.ask("ECHO", "free") == b"$4\r\nfree\r\n"

    @both_protocols
    def test_a_thousand_messages_in_order(self, redis: Process, proxy: Process, protocol: int) -> None:
        mark = b">" if protocol == 3 else b"*"
        with Wire(proxy.port, protocol) as listener, Wire(proxy.port) as other:
            listener.line("SUBSCRIBE c")
            sizes = [n * 37 % 5000 for n in range(1000)]
            assert other.pipeline([request("PUBLISH", "c", "x" * size) for size in sizes], 1000) == [b":1\r\n"] * 1000
            for size in sizes:
                assert listener.read() == mark + request("message", "c", "x" * size)[1:]

    def test_a_resp3_subscriber_goes_on_asking(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port, 3) as wire:
            assert wire.line("SUBSCRIBE c") == b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
            assert wire.line("SET a 1") == b"+OK\r\n"
            assert wire.line("GET a") == b"$1\r\n1\r\n"
            assert wire.line("GET none") == b"_\r\n"

    def test_keyspace_notifications(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as listener, Wire(proxy.port) as other:
            assert other.line("CONFIG SET notify-keyspace-events KEA") == b"+OK\r\n"
            listener.line("PSUBSCRIBE __key*__:*")
            other.line("SET a 1")
            assert listener.read() == request("pmessage", "__key*__:*", "__keyspace@0__:a", "set")
            assert listener.read() == request("pmessage", "__key*__:*", "__keyevent@0__:set", "a")
            assert other.line("CONFIG SET notify-keyspace-events ''") == b"+OK\r\n"

    def test_leaving_ends_the_subscription(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as other:
            with Wire(proxy.port) as listener:
                listener.line("SUBSCRIBE c")
                assert other.line("PUBSUB NUMSUB c") == b"*2\r\n$1\r\nc\r\n:1\r\n"
            until(lambda: other.line("PUBSUB NUMSUB c") == b"*2\r\n$1\r\nc\r\n:0\r\n", "unsubscribed")

    @both_protocols
    def test_monitor(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as monitor, Wire(proxy.port) as other:
            assert monitor.ask("MONITOR") == b"+OK\r\n"
            other.line("SET seen 'a b'")
            while b'"seen"' not in (line := monitor.read()):
                assert line[:1] == b"+"
            assert re.fullmatch(rb'\+\d+\.\d+ \[0 127\.0\.0\.1:\d+\] "SET" "seen" "a b"\r\n', line)


INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
INVALIDATE_MESSAGE = b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$1\r\nk\r\n"


class TestTracking:
    @pytest.mark.parametrize("options", ["", "BCAST", "BCAST PREFIX k", "OPTIN", "OPTOUT", "NOLOOP"])
    def test_resp3_pushes(self, redis: Process, proxy: Process, options: str) -> None:
        with Wire(proxy.port, 3) as mine, Wire(proxy.port) as other:
            assert mine.line(f"CLIENT TRACKING on {options}") == b"+OK\r\n"
            if options == "OPTIN":
                assert mine.line("CLIENT CACHING yes") == b"+OK\r\n"
            assert mine.line("GET k") == b"_\r\n"
            assert other.line("SET k 1") == b"+OK\r\n"
            assert mine.read() == INVALIDATE
            mine.line("GET k")
            other.line("FLUSHALL")
            assert mine.read() == b">2\r\n$10\r\ninvalidate\r\n_\r\n"
            assert mine.line("CLIENT TRACKING off") == b"+OK\r\n"

    def test_nobody_else_hears_of_it(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port, 3) as mine, Wire(proxy.port, 3) as other:
            mine.line("CLIENT TRACKING on")
            mine.line("GET k")
            other.line("GET k")
            assert other.pipeline([request("SET", "k", 1), request("ECHO", "x")], 2) == [b"+OK\r\n", b"$1\r\nx\r\n"]
            assert mine.read() == INVALIDATE

    @pytest.mark.parametrize("bcast", ["", " BCAST"])
    @pytest.mark.parametrize("first", ["SUBSCRIBE", "TRACKING"])
    def test_resp2_redirects_to_another_client(self, redis: Process, proxy: Process, first: str, bcast: str) -> None:
        with Wire(proxy.port) as mine, Wire(proxy.port) as listener, Wire(proxy.port) as other:
            number = int(listener.ask("CLIENT", "ID")[1:-2])
            if first == "SUBSCRIBE":
                listener.line("SUBSCRIBE __redis__:invalidate")
            assert mine.line(f"CLIENT TRACKING on REDIRECT {number}{bcast}") == b"+OK\r\n"
            if first == "TRACKING":
                listener.line("SUBSCRIBE __redis__:invalidate")
            for n in range(3):
                mine.line("GET k")
                other.line(f"SET k {n}")
                assert listener.read() == INVALIDATE_MESSAGE
            assert mine.line("CLIENT GETREDIR")[:1] == b":"  # Redis' id of the listener's link: see docs/commands.md

    @pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])
    def test_to_a_client_that_was_in_a_transaction_then(self, redis: Process, proxy: Process, protocol: int) -> None:
        """The link that the redirection names must not go back to the pool with the transaction's end."""
        with Wire(proxy.port) as mine, Wire(proxy.port, protocol) as listener, Wire(proxy.port) as other:
            number = int(listener.ask("CLIENT", "ID")[1:-2])
            listener.line("MULTI")
            assert mine.line(f"CLIENT TRACKING on REDIRECT {number}") == b"+OK\r\n"
            listener.line("EXEC")
            with Wire(proxy.port) as stranger:
                stranger.line("WATCH a")
                if protocol == 2:
                    listener.line("SUBSCRIBE __redis__:invalidate")
                mine.line("GET k")
                other.line("SET k 1")
                assert b"k" in listener.read()
                assert stranger.line("UNWATCH") == b"+OK\r\n"

    def test_the_redirection_breaks_with_its_target(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port, 3) as mine, Wire(proxy.port) as other:
            with Wire(proxy.port) as listener:
                number = int(listener.ask("CLIENT", "ID")[1:-2])
                listener.line("SUBSCRIBE __redis__:invalidate")
                assert mine.line(f"CLIENT TRACKING on REDIRECT {number}") == b"+OK\r\n"
                mine.line("GET k")
            until(lambda: other.line("PUBSUB NUMSUB __redis__:invalidate").endswith(b":0\r\n"), "the listener is gone")
            other.line("SET k 1")
            assert mine.read().startswith(b">2\r\n$24\r\ntracking-redir-broken\r\n:".replace(b"24", b"21"))

    def test_of_a_client_that_is_not_there(self, redis: Process, proxy: Process) -> None:
        text_of_redis = b"-ERR The client ID you want redirect to does not exist\r\n"
        with Wire(proxy.port) as wire:
            assert wire.line(f"CLIENT TRACKING on REDIRECT {FIRST_ID + 10**9}") == text_of_redis
            assert wire.line("PING") == b"+PONG\r\n"


class TestReplySwitch:
    def test_script_debug(self, redis: Process, proxy: Process) -> None:
        """One by one: Redis refuses it in a pipeline, as far as it notices one."""
        with Wire(redis.port) as direct, Wire(proxy.port) as through:
            for line in ("SCRIPT DEBUG no", "SCRIPT DEBUG x", "PING"):
                assert through.line(line) == direct.line(line)

    @both_protocols
    def test_off_is_silent_and_commands_are_done(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as wire:
            wire.raw(request("CLIENT", "REPLY", "OFF") + request("INCR", "n") * 1000 + request("CLIENT", "REPLY", "ON") + request("GET", "n"))
            assert wire.reads(2) == [b"+OK\r\n", b"$4\r\n1000\r\n"]


class TestClientsOwnConnection:
    @both_protocols
    def test_ids_grow_and_stay(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as one, Wire(proxy.port, protocol) as two:
            first, second = (int(wire.ask("CLIENT", "ID")[1:-2]) for wire in (one, two))
            assert FIRST_ID < first < second
            assert one.ask("CLIENT", "ID") == b":%d\r\n" % first
            assert b"$2\r\nid\r\n:%d\r\n" % first in one.ask("HELLO")

    @both_protocols
    def test_list_and_info(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as one, Wire(proxy.port) as two, Wire(proxy.port) as three, Wire(proxy.port) as four, Wire(redis.port, protocol) as direct:
            assert one.line("CLIENT SETNAME first") == b"+OK\r\n"
            assert one.line("CLIENT SETINFO lib-name test") == b"+OK\r\n"
            assert one.line("CLIENT SETINFO LIB-VER 1.0") == b"+OK\r\n"
            two.line("SELECT 3")
            three.line("SUBSCRIBE c")
            four.line("MULTI")
            info = text(one.line("CLIENT INFO"))
            theirs = text(direct.line("CLIENT INFO"))
            assert one.line("CLIENT INFO")[:1] == direct.line("CLIENT INFO")[:1]
            assert {"id", "addr", "name", "age", "db", "sub", "multi", "user", "resp"} <= _fields(info).keys()
            assert info.endswith("\n") and theirs.endswith("\n")
            assert _fields(info)["name"] == "first" and _fields(info)["lib-name"] == "test" and _fields(info)["lib-ver"] == "1.0"
            assert _fields(info)["addr"] == "{}:{}".format(*one.sock.getsockname())
            assert _fields(info)["laddr"] == "{}:{}".format(*one.sock.getpeername())
            assert _fields(info)["resp"] == str(protocol)
            listed = {fields["addr"]: fields for fields in map(_fields, text(one.line("CLIENT LIST")).splitlines())}
            by = [listed["{}:{}".format(*wire.sock.getsockname())] for wire in (one, two, three, four)]
            assert [fields["db"] for fields in by] == ["0", "3", "0", "0"]
            assert [fields["flags"] for fields in by] == ["N", "N", "P", "x"]
            number = by[1]["id"]
            assert [fields["id"] for fields in map(_fields, text(one.line(f"CLIENT LIST ID {number} 1")).splitlines())] == [number]
            assert {fields["id"] for fields in map(_fields, text(one.line("CLIENT LIST TYPE pubsub")).splitlines())} == {by[2]["id"]}
            assert text(one.line("CLIENT LIST TYPE master")) == ""

    def test_kill(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as one, Wire(proxy.port) as two, Wire(proxy.port) as three, Wire(proxy.port) as four, Wire(proxy.port) as five:
            assert one.ask("CLIENT", "KILL", "ID", int(two.ask("CLIENT", "ID")[1:-2])) == b":1\r\n"
            assert one.ask("CLIENT", "KILL", "{}:{}".format(*three.sock.getsockname())) == b"+OK\r\n"
            assert one.ask("CLIENT", "KILL", "{}:{}".format(*three.sock.getsockname())) == b"-ERR No such client\r\n"
            four.line("SUBSCRIBE c")
            assert one.line("CLIENT KILL TYPE pubsub") == b":1\r\n"
            for wire in (two, three, four):
                with pytest.raises((EOFError, ConnectionError)):
                    wire.read()
            address = "{}:{}".format(*one.sock.getsockname())
            assert one.ask("CLIENT", "KILL", "ADDR", address) == b":0\r\n"
            assert one.ask("CLIENT", "KILL", "ADDR", address, "SKIPME", "no") == b":1\r\n"
            assert one.rest() == b""
            assert five.line("PING") == b"+PONG\r\n"

    def test_a_client_of_redis_itself_is_killed_by_its_id(self, redis: Process, proxy: Process) -> None:
        with Wire(redis.port) as theirs, Wire(proxy.port) as mine:
            number = int(theirs.ask("CLIENT", "ID")[1:-2])
            assert mine.ask("CLIENT", "KILL", "ID", number) == b":1\r\n"
            with pytest.raises((EOFError, ConnectionError)):
                theirs.read()

    def test_pause_and_unpause(self, unpaused: Process, proxy: Process) -> None:
        with Wire(proxy.port) as mine, Wire(proxy.port) as other, Wire(unpaused.port) as direct:
            assert mine.line("CLIENT PAUSE 60000 WRITE") == b"+OK\r\n"
            other.send("SET", "k", "v")
            blocked(unpaused, 1)
            assert direct.line("GET k") == NULL[2]
            assert mine.line("CLIENT UNPAUSE") == b"+OK\r\n"
            assert other.read() == b"+OK\r\n"
            assert mine.line("GET k") == b"$1\r\nv\r\n"

    @pytest.mark.parametrize("database", [0, 1])
    def test_script_kill_from_another_client(self, impatient: Process, proxy: Process, database: int) -> None:
        with Wire(proxy.port) as mine, Wire(proxy.port) as other, Wire(impatient.port) as direct:
            for wire in (mine, other):
                assert wire.line(f"SELECT {database}") == b"+OK\r\n"
            mine.send("EVAL", "while true do end", 0)
            until(lambda: direct.line("PING").startswith(b"-BUSY"), "Redis is busy")
            assert other.line("SCRIPT KILL") == b"+OK\r\n"
            assert b"killed" in mine.read().lower()
            assert mine.line("PING") == other.line("PING") == b"+PONG\r\n"

    def test_function_kill_from_another_client(self, impatient: Process, proxy: Process) -> None:
        library = "#!lua name=spinning\nredis.register_function('spin', function() while true do end end)"
        with Wire(proxy.port) as mine, Wire(proxy.port) as other, Wire(impatient.port) as direct:
            if mine.ask("FUNCTION", "LOAD", library)[:1] == b"-":
                pytest.skip("functions came with Redis 7")
            mine.send("FCALL", "spin", 0)
            until(lambda: direct.line("PING").startswith(b"-BUSY"), "Redis is busy")
            assert other.line("FUNCTION KILL") == b"+OK\r\n"
            assert b"killed" in mine.read().lower()
            assert other.line("FUNCTION DELETE spinning") == b"+OK\r\n"

    @both_protocols
    def test_info_has_a_section_of_the_sidecars(self, redis: Process, proxy: Process, protocol: int) -> None:
        with Wire(proxy.port, protocol) as wire, Wire(redis.port, protocol) as direct:
            for line in ("INFO", "INFO all", "INFO default", "INFO everything", "INFO sidecar", "info SIDECAR"):
                reply = wire.line(line)
                assert reply[:1] == direct.line("INFO")[:1]
                body = text(reply)
                assert len(re.findall(r"^# Sidecar\r$", body, re.M)) == 1
                assert re.search(r"^pannier_version:\S+\r$", body, re.M)
                assert ("redis_version:" in body) == ("sidecar" not in line.lower())
                assert reply.endswith(b"\r\n\r\n")
                blocks = [block for block in body.split("\r\n\r\n") if block.strip()]
                assert all(block.lstrip("\r\n").startswith("# ") for block in blocks)
            assert "# Sidecar" not in text(wire.line("INFO clients"))

    def test_shutdown_reaches_redis(self, redis_binary: str, directory: Path) -> None:
        with redis_server(redis_binary, directory) as server:
            upstream = f"redis://127.0.0.1:{server.port}"
            with pannier(upstream, directory) as sidecar, Wire(sidecar.port) as wire, Wire(sidecar.port) as other:
                wire.send("SHUTDOWN", "NOSAVE")
                assert server.popen.wait(10) == 0
                assert other.line("GET k").startswith(b"-ERR pannier: upstream ")


def _fields(line: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in line.split())


@pytest.fixture(scope="module")
def guarded(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A Redis with a password for the default user, and a user who may only read keys that begin with `r`."""
    directory = tmp_path_factory.mktemp("guarded")
    with redis_server(redis_binary, directory, "--requirepass", "secret") as process:
        with Wire(process.port) as wire:
            wire.line("AUTH secret")
            assert wire.line("ACL SETUSER reader on >reading ~r* +get +ping +multi +exec +hello +reset +acl|whoami") == b"+OK\r\n"
            assert wire.line("ACL SETUSER chooser on >choosing ~r* +get +select") == b"+OK\r\n"
        yield process


@pytest.fixture(scope="module")
def guarded_proxy(guarded: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with pannier(f"redis://127.0.0.1:{guarded.port}", tmp_path_factory.mktemp("guarded-pannier")) as process:
        yield process


AUTHENTICATION = [
    "GET r; PING; SET r 1; MULTI; EXEC; SUBSCRIBE c; BLPOP l 0; NOSUCH; INFO; CLIENT ID; SELECT 1; WATCH a; CLIENT SETNAME x", "HELLO; HELLO 3; HELLO 2; HELLO 9; HELLO x; PING", "HELLO 3 SETNAME me; PING", "PING; QUIT x", "AUTH; AUTH a b c; AUTH wrong; PING",
    "AUTH secret; PING; GET none; ACL WHOAMI", "AUTH default secret; SET r 1; GET r; AUTH wrong; GET r; ACL WHOAMI", "AUTH reader wrong; AUTH reader reading; PING; GET r; GET x; SET r 1; ACL WHOAMI; MULTI; GET r; GET x; EXEC; CONFIG GET *; NOSUCH; SUBSCRIBE c",
    "AUTH nobody x; HELLO 3 AUTH nobody x; HELLO 3 AUTH reader reading; GET none; GET x; ACL WHOAMI", "HELLO 2 AUTH reader reading; ACL WHOAMI; GET r; AUTH secret; ACL WHOAMI; RESET; PING; ACL WHOAMI", "HELLO 3 AUTH default secret SETNAME me; CLIENT GETNAME; GET none; HELLO 2; GET none",
    "AUTH secret; SELECT 2; SET r 1; AUTH chooser choosing; GET r; AUTH secret; DEL r", "AUTH secret; MULTI; GET r; AUTH reader reading; EXEC; ACL WHOAMI", "AUTH secret; SUBSCRIBE c; RESET; PING; AUTH secret; PING", "AUTH secret; HELLO 3; SUBSCRIBE c; AUTH reader reading; ACL WHOAMI",
    "AUTH reader reading; HELLO 3 AUTH default wrong; ACL WHOAMI; GET none; SELECT 1; PING", "get r; ping; auth secret; Ping", "AUTH secret; AUTH default ''; PING", "AUTH reader reading; BLPOP l 1; WATCH r; PING; SCAN 0; PUBLISH c m; CLIENT LIST; CLIENT INFO; INFO; CLIENT GETNAME; CLIENT SETNAME x",
]  # fmt: skip


class TestAuthentication:
    @both_protocols
    @pytest.mark.parametrize("script", AUTHENTICATION)
    def test_as_redis(self, guarded: Process, guarded_proxy: Process, script: str, protocol: int) -> None:
        requests = encode(f"AUTH secret; HELLO {protocol}; RESET; " + script)
        data = b"".join(requests)
        assert farewell(guarded_proxy.port, 2, data) == farewell(guarded.port, 2, data)

    def test_reset_before_authentication(self, guarded: Process, guarded_proxy: Process) -> None:
        """Redis 6.2 wants authentication for it, later ones do not; the sidecar does as later ones."""
        with Wire(guarded.port) as direct, Wire(guarded_proxy.port) as through:
            assert direct.line("RESET") in (b"+RESET\r\n", b"-NOAUTH Authentication required.\r\n")
            assert through.line("RESET") == b"+RESET\r\n"
            assert through.line("PING") == direct.line("PING") == b"-NOAUTH Authentication required.\r\n"

    def test_identities_are_not_mixed_up(self, guarded: Process, guarded_proxy: Process) -> None:
        port = guarded_proxy.port
        with Wire(port) as admin, Wire(port) as reader, Wire(port) as stranger:
            assert admin.line("AUTH secret") == b"+OK\r\n"
            assert reader.line("AUTH reader reading") == b"+OK\r\n"
            for _ in range(20):
                admin.send("ACL", "WHOAMI")
                reader.send("ACL", "WHOAMI")
                stranger.send("ACL", "WHOAMI")
                assert reader.read() == b"$6\r\nreader\r\n"
                assert admin.read() == b"$7\r\ndefault\r\n"
                assert stranger.read() == b"-NOAUTH Authentication required.\r\n"

    def test_a_sidecar_with_credentials_lets_clients_in(self, guarded: Process, directory: Path) -> None:
        with pannier(f"redis://reader:reading@127.0.0.1:{guarded.port}", directory) as sidecar, Wire(sidecar.port) as wire:
            assert wire.line("ACL WHOAMI") == b"$6\r\nreader\r\n"
            assert wire.line("AUTH secret") == b"+OK\r\n"
            assert wire.line("ACL WHOAMI") == b"$7\r\ndefault\r\n"
            assert wire.line("RESET") == b"+RESET\r\n"
            assert wire.line("ACL WHOAMI") == b"$6\r\nreader\r\n"


LOCAL = ["CLIENT SETNAME me", "CLIENT SETNAME ''", "CLIENT SETNAME 'a b'", "SELECT 0", "SELECT 1", "SELECT x", "SELECT 99", "HELLO 2", "HELLO 3", "HELLO", "HELLO 9", "RESET", "AUTH x y", "AUTH default y", "INFO nosuch", "CLIENT KILL ID 99999999", "CLIENT GETNAME"]  # fmt: skip
SHARED = ["SET k v", "GET k", "INCR n", "LPUSH l x", "LRANGE l 0 -1", "MGET k n none", "NOSUCH x", "GET", "HSET h f v", "HGETALL h", "EVAL 'return {1,2}' 0", "PING", "ECHO hi", "DEL l", "get n", "XADD s * a"]  # fmt: skip
PINNED = ["MULTI", "EXEC", "DISCARD", "WATCH k", "WATCH n", "UNWATCH", "BLPOP l 0.01", "BLPOP l none 0.02", "XREAD BLOCK 1 STREAMS s $", "WAIT 0 0", "CLIENT GETREDIR", "BLPOP l x", "CLIENT ID x", "MULTI; INCR n; GET k; EXEC", "WATCH n; INCR n; MULTI; EXEC"]  # fmt: skip
STREAM = ["SUBSCRIBE c", "SUBSCRIBE c d", "UNSUBSCRIBE c", "UNSUBSCRIBE", "PSUBSCRIBE c*", "PUNSUBSCRIBE", "PUBLISH c m", "CLIENT TRACKING on", "CLIENT TRACKING off", "READONLY", "CLIENT NO-EVICT off"]  # fmt: skip
BIG = request("SET", "k", b"\r\n" * 150_000)


def _one(line: str) -> bytes:
    return b"".join(encode(line))


def mixes(*more: str) -> st.SearchStrategy[list[bytes]]:
    one = st.one_of(
        st.sampled_from(SHARED).map(_one),
        st.sampled_from(LOCAL).map(_one),
        st.sampled_from(SHARED).map(lambda line: line.encode() + b"\r\n"),
        st.sampled_from(STREAM).map(_one),
        st.sampled_from(more).map(_one),
        st.just(BIG),
    )
    return st.lists(one, max_size=25)


# A CLIENT REPLY carried out by EXEC makes Redis send an array that lacks elements: never both in one mix.
MIXES = mixes(*PINNED) | mixes("CLIENT REPLY SKIP", "CLIENT REPLY OFF", "CLIENT REPLY ON", *(line for line in PINNED if "MULTI" not in line))


class TestOrderOfMixedPipelines:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(mix=MIXES, protocol=st.sampled_from([2, 3]), seed=st.none() | st.integers(0, 2**16))
    def test_replies_are_those_of_one_connection(self, redis: Process, proxy: Process, mix: list[bytes], protocol: int, seed: int | None) -> None:
        data = b"".join(mix)
        flush(redis)
        theirs = transcript(redis.port, protocol, [data])
        flush(redis)
        assert transcript(proxy.port, protocol, _pieces(data, seed)) == theirs


def _pieces(data: bytes, seed: int | None) -> list[bytes]:
    """Cut data at random places; None: nowhere."""
    if seed is None:
        return [data]
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(30)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class TestHalfClosedClients:
    @pytest.mark.parametrize(
        "script",
        ["GET a; " * 5000 + "PING", "MULTI; SET a 1; GET a; EXEC", "SELECT 1; SET a 1; GET a", "HELLO 3; GET a; SELECT 2; GET a; MULTI; PING; EXEC; INFO nosuch; GET b", "RPUSH l a; BLPOP l 0; GET a", "CLIENT GETNAME; PING; CLIENT SETNAME x; CLIENT GETNAME", "WATCH a; GET a; UNWATCH; GET a", "PING"],
        ids=range(8),
    )  # fmt: skip
    def test_still_get_their_replies(self, redis: Process, proxy: Process, script: str) -> None:
        requests = encode(script)
        with Wire(redis.port) as wire:
            theirs = without_ids(b"".join(wire.pipeline(requests, len(requests))))
        flush(redis)
        with Wire(proxy.port) as wire:
            def send() -> None:
                wire.raw(b"".join(requests))
                wire.sock.shutdown(socket.SHUT_WR)

            with in_background(send):
                assert without_ids(wire.rest()) == theirs

    def test_with_a_large_value(self, redis: Process, proxy: Process) -> None:
        value = bytes(range(256)) * 8192
        with Wire(proxy.port) as wire:
            wire.raw(request("SET", "k", value) + request("GET", "k"))
            wire.sock.shutdown(socket.SHUT_WR)
            assert wire.rest() == b"+OK\r\n$%d\r\n%b\r\n" % (len(value), value)


def test_a_reply_that_redis_announces_and_does_not_give_keeps_no_connection(redis: Process, directory: Path) -> None:
    """CLIENT REPLY SKIP within a transaction: EXEC's array has one element fewer than it says."""
    with (
        pannier(f"redis://127.0.0.1:{redis.port}", directory, "--upstream-timeout", "500ms") as proxy,
        Wire(proxy.port) as wire,
    ):
        wire.raw(request("MULTI") + request("SET", "k", "v") + request("CLIENT", "REPLY", "SKIP") + request("EXEC"))
        wire.raw(request("SIDECAR", "HELP"))
        wire.sock.shutdown(socket.SHUT_WR)
        wire.sock.settimeout(10)
        while wire.sock.recv(1 << 16):
            pass
        with Wire(proxy.port) as other:
            until(lambda: b"connected_clients:1\r\n" in other.line("INFO sidecar"), "gone")
