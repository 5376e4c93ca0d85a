"""What memory answers is what Redis would answer: at once after own writes, soon after those of others.

Each write is made with everything in memory that it could make stale: all READS of the data it finds, in both
databases, for clients of both protocols. Afterwards every one is compared with Redis' own reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.harness import Process
from tests.integration.families import sha1
from tests.integration.test_tier_reads import (
    Command,
    Monitor,
    arguments,
    ask_all,
    encoded,
    known,
    reply,
    set_up,
)
from tests.integration.wire import Wire, bulk, request, until

DATA: list[Command] = [
    "SELECT 1", "SET a other", "SET n 50", "RPUSH l 1", "SET only1 x", "SELECT 0",
    "SET a 1", "SET n 5", "SET o old", "SET ttl x PX 100000000", "HSET h f 1 g 2", "RPUSH l c a b", "SADD s x y", "SADD t y z", "ZADD z 1 a 2 b 3 c", "ZADD y 9 a", "XADD x 1-1 f v", "XADD x 2-1 f v", "XGROUP CREATE x grp 0",
    "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania", "SETBIT b 7 1", "PFADD p a b", "RPUSH nums 3 1 2",
]  # fmt: skip
READS: list[Command] = [
    *(f"GET {key}" for key in ("a", "n", "o", "none", "b", "p", "ttl")), "STRLEN a", "GETRANGE a 0 0", "BITCOUNT a", "BITCOUNT b", *(f"EXISTS {key}" for key in ("a", "o", "none", "l", "z", "x", "ttl")), "EXISTS a n o",
    *(f"TYPE {key}" for key in ("a", "o", "none", "l")), "HGETALL h", "HGET h f", "HLEN h", "HMGET h f g", "LRANGE l 0 -1", "LLEN l", "LRANGE o 0 -1", "LINDEX l 0", "LRANGE nums 0 -1", "SMEMBERS s", "SCARD s", "SISMEMBER s x", "SUNION s t", "SINTER s t", "SCARD o", "SCARD t",
    "ZRANGE z 0 -1 WITHSCORES", "ZSCORE z a", "ZCARD z", "ZCARD y", "ZUNION 2 z y WITHSCORES", "ZRANGE o 0 -1 WITHSCORES", "XLEN x", "XRANGE x - +", "GEOPOS g Palermo", "ZCARD g", "MGET a n none o", "EXPIRETIME ttl",
]  # fmt: skip
READS_1: list[Command] = ["GET a", "GET n", "GET o", "GET none", "LRANGE l 0 -1", "EXISTS a", "EXISTS only1", "GET only1", "MGET a n o"]

SCRIPT = "return redis.call('INCR', 'n')"
LARGE = "v" * 300_000
WRITES: list[list[Command]] = [
    *([line] for line in (
        "SET a 2", "SET a 2 EX 100 XX GET", "SETEX a 100 7", "PSETEX a 100000 7", "SETNX none 1", "GETSET a 8", "GETDEL a", "MSET n 1 a 9", "MSETNX none 1 none2 2", "APPEND a x", "SETRANGE a 0 z", "INCR n", "INCRBY n 2", "INCRBYFLOAT n 0.5", "DECR n", "DECRBY n 2",
        "DEL a", "DEL none a z", "UNLINK a l", "RENAME a o", "RENAME a none", "RENAMENX a none", "COPY a o REPLACE", "COPY a none", "COPY a o DB 1", "MOVE o 1", "SWAPDB 0 1", "SWAPDB 1 0", "FLUSHDB", "FLUSHALL", "FLUSHDB ASYNC", "FLUSHALL SYNC",
        "EXPIRE a -1", "PEXPIRE a 0", "EXPIREAT a 1", "PEXPIREAT a 1", "SET a 1 PXAT 1",
        "SETBIT b 1 1", "BITOP NOT o a", "BITOP OR a a o", "BITFIELD b SET u8 0 255", "PFADD p c d e", "PFMERGE none p",
        "HSET h f 9", "HMSET h f 9", "HSETNX h new 1", "HINCRBY h f 1", "HINCRBYFLOAT h f 0.5", "HDEL h f", "HDEL h f g",
        "LPUSH l 0", "RPUSH l 0", "LPUSHX l 0", "RPUSHX l 0", "LPOP l", "RPOP l", "LPOP l 2", "LSET l 0 new", "LINSERT l BEFORE a n", "LREM l 0 a", "LTRIM l 0 0", "RPOPLPUSH l nums", "LMOVE l nums LEFT RIGHT", "LMPOP 1 l LEFT", "SORT nums STORE l", "SORT nums BY x* STORE l",
        "SADD s new", "SREM s x", "SPOP s", "SMOVE s t x", "SINTERSTORE o s t", "SUNIONSTORE s s t", "SDIFFSTORE s s t",
        "ZADD z 4 d", "ZADD z INCR 4 a", "ZINCRBY z 1 a", "ZREM z a", "ZPOPMIN z", "ZPOPMAX z 2", "ZREMRANGEBYRANK z 0 0", "ZREMRANGEBYSCORE z 1 1", "ZREMRANGEBYLEX z - +", "ZRANGESTORE o z 0 -1", "ZUNIONSTORE z 2 z y", "ZINTERSTORE y 2 z y", "ZDIFFSTORE y 2 z y", "ZMPOP 1 z MIN",
        "GEOADD g 0 0 Palermo", "GEOSEARCHSTORE o g FROMLONLAT 15 37 BYRADIUS 200 km", "GEORADIUS g 15 37 200 km STORE z", "GEORADIUSBYMEMBER g Palermo 200 km STOREDIST o",
        "XADD x 3-1 f v", "XADD none * f v", "XDEL x 1-1", "XTRIM x MAXLEN 0", "XGROUP CREATE none grp $ MKSTREAM", "XADD x MAXLEN 1 9-9 f v",
        "BLPOP l 0", "BRPOP none l 0", "BRPOPLPUSH l nums 0", "BLMOVE l nums LEFT LEFT 0", "BLMPOP 0 1 l LEFT", "BZPOPMIN z 0", "BZPOPMAX none z 0", "BZMPOP 0 1 z MIN",
        "EVAL 'return redis.call(\"SET\", \"a\", \"undeclared\")' 0", "EVAL 'return redis.call(\"SET\", KEYS[1], 9)' 1 a", "EVAL 'redis.call(\"SELECT\", 1) return redis.call(\"SET\", \"a\", \"undeclared\")' 0", "EVAL 'redis.call(\"INCR\", \"n\") redis.call(\"DEL\", KEYS[1]) return redis.call(\"RPUSH\", \"l\", 1)' 1 h",
        "EVAL 'redis.call(\"FLUSHDB\")' 0", "DEBUG FLUSHALL",
    )),
    [("SCRIPT", "LOAD", SCRIPT), ("EVALSHA", sha1(SCRIPT), "0")],
    [("FUNCTION", "LOAD", "REPLACE", "#!lua name=w\nredis.register_function('w', function(keys, args) return redis.call('SET', 'a', 'by function') end)"), "FCALL w 0"],
    ["MULTI", "SET a 3", "HSET h f 3", "EXEC"], ["MULTI", "EVAL 'return redis.call(\"SET\", \"a\", \"undeclared\")' 0", "EXEC"], ["MULTI", "FLUSHDB", "SET a 4", "EXEC"], ["MULTI", "SWAPDB 0 1", "EXEC"], ["MULTI", "SELECT 1", "SET a 5", "SELECT 0", "EXEC"], ["MULTI", "RENAME a o", "EXEC"],
    ["WATCH a", "GET a", "MULTI", "INCR a", "LPOP l", "EXEC"], ["WATCH a", "SET a 6", "UNWATCH"], ["WATCH a", "DEL l"], ["MULTI", "SET a 3", "NOSUCH", "EXEC"], ["MULTI", "INCR h", "INCR n", "EXEC"], ["MULTI", "BLPOP l 0", "EXEC"], ["MULTI", "MOVE o 1", "COPY a n DB 1", "EXEC"],
    ["SELECT 1", "SET a 7", "SELECT 0"], ["SELECT 1", "FLUSHDB", "SELECT 0"], ["SELECT 1", "MOVE only1 0", "SELECT 0"],
    ["XREADGROUP GROUP grp c COUNT 1 STREAMS x >", "XACK x grp 1-1", "XADD x * f v"], ["PERSIST ttl"], ["PEXPIREAT ttl 99999999999999"], ["GETEX ttl PERSIST"], ["EXPIRE ttl 1000"],
    [("SET", "a", LARGE)], [("APPEND", "a", LARGE)], [("MSET", "n", "1", "none", LARGE, "a", "3")], [("HSET", "h", "f", LARGE, "g", LARGE)], [("RPUSH", "l", LARGE)], [("EVAL", "redis.call('SET', 'a', #ARGV[1])", "0", LARGE)], ["MULTI", ("SET", "a", LARGE), "DEL l", "EXEC"],
    [("SETRANGE", "n", "0", LARGE)], [("GETSET", "a", LARGE)], [("XADD", "x", "*", "f", LARGE)], [("ZADD", "z", "5", LARGE)],
]  # fmt: skip
"""Commands of one client, after the last of which something has changed."""
UNSEEN_FROM_OUTSIDE = ("SWAPDB",)
"""Redis tells nobody of these."""


def names(write: list[Command]) -> list[str]:
    return [arguments(command)[0].decode() for command in write]


@pytest.fixture(scope="module")
def writes(redis_binary: str, shared_redis: Process) -> list[list[Command]]:
    """Those the server has the commands for."""
    have = known(shared_redis, list({name for write in WRITES for name in names(write) if name != "NOSUCH"}))
    return [write for write in WRITES if all(name in have or name == "NOSUCH" for name in names(write))]


class Readers:
    """Clients of the sidecar that have it keep all they read; what they read must be what Redis says."""

    def __init__(self, redis: Process, proxy: Process, user: str = "") -> None:
        self.redis = redis
        self.wires: list[tuple[Wire, list[Command], Wire]] = []
        have = known(redis, [arguments(command)[0].decode() for command in READS])
        reads = [command for command in READS if arguments(command)[0].decode() in have]
        for protocol in (2, 3):
            for database, commands in ((0, reads), (1, READS_1)):
                ours, theirs = Wire(proxy.port, protocol), Wire(redis.port, protocol)
                for wire in (ours, theirs):
                    assert not user or wire.ask("AUTH", user, "pw") == b"+OK\r\n"
                    assert wire.ask("SELECT", database) == b"+OK\r\n"
                self.wires.append((ours, commands, theirs))
        self.proxy = proxy

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *ignored: object) -> None:
        for ours, _, theirs in self.wires:
            ours.close()
            theirs.close()

    def warm(self) -> list[list[bytes]]:
        """Have everything in memory; the replies."""
        return [[ask_all(ours, commands) for _ in range(3)][-1] for ours, commands, _ in self.wires]

    def stale(self) -> list[object]:
        """What differs from Redis' own replies, one by one first, then as a pipeline."""
        found: list[object] = []
        for ours, commands, theirs in self.wires:
            one_by_one = [ours.ask(*arguments(command)) for command in commands]
            together = ask_all(ours, commands)
            expected = ask_all(theirs, commands)
            for replies in (one_by_one, together):
                found += [(command, got[:40], real[:40]) for command, got, real in zip(commands, replies, expected, strict=True) if got != real]
        return found


def resp2(proxy: Process) -> Wire:
    return Wire(proxy.port)


def resp3(proxy: Process) -> Wire:
    return Wire(proxy.port, 3)


def subscribed(proxy: Process) -> Wire:
    wire = Wire(proxy.port, 3)
    wire.ask("SUBSCRIBE", "channel")
    return wire


def tracking(proxy: Process) -> Wire:
    wire = Wire(proxy.port, 3)
    assert wire.line("CLIENT TRACKING ON BCAST") == b"+OK\r\n"
    return wire


def other_user(proxy: Process) -> Wire:
    wire = Wire(proxy.port)
    assert wire.line("AUTH writer pw") == b"+OK\r\n"
    return wire


WRITERS = {make.__name__: make for make in (resp2, resp3, subscribed, tracking, other_user)}


@pytest.fixture(scope="module")
def users(shared_redis: Process) -> Iterator[None]:
    with Wire(shared_redis.port) as wire:
        assert wire.line("ACL SETUSER writer on >pw ~* &* +@all") == b"+OK\r\n"
        yield
        wire.line("ACL DELUSER writer")


def carry_out(wire: Wire, write: list[Command], at_once: bool) -> list[bytes]:
    """The replies, pushes left out."""
    if at_once:
        wire.raw(b"".join(map(encoded, write)))
        return [reply(wire) for _ in write]
    replies = []
    for command in write:
        wire.raw(encoded(command))
        replies.append(reply(wire))
    return replies


class TestOwnWritesAreSeenAtOnce:
    @pytest.mark.parametrize("kind", WRITERS)
    def test_on_every_other_connection(self, redis: Process, proxy: Process, users: None, writes: list[list[Command]], kind: str) -> None:
        stale, idle = [], []
        with Readers(redis, proxy) as readers:
            for place, write in enumerate(writes if kind.startswith("resp") else writes[len(kind) % 4 :: 4]):
                set_up(proxy, DATA)
                with WRITERS[kind](proxy) as writer:
                    before = readers.warm()
                    replies = carry_out(writer, write, at_once=place % 2 == 1)
                    found = readers.stale()
                if found:
                    stale.append((write, found))
                changed = [ask_all(theirs, commands) for _, commands, theirs in readers.wires] != before
                if not changed and "ttl" not in str(write) and not any(answer.startswith(b"-") for answer in replies):
                    idle.append(write)
        assert [(str(write)[:80], found[:2]) for write, found in stale] == []
        assert idle == [], "these change nothing that is read, and so try nothing"

    def test_by_readers_of_another_user(self, redis: Process, proxy: Process, users: None, writes: list[list[Command]]) -> None:
        with Readers(redis, proxy, "writer") as readers, Wire(proxy.port, 3) as writer:
            for write in writes[::4]:
                set_up(proxy, DATA)
                readers.warm()
                carry_out(writer, write, at_once=False)
                assert readers.stale() == [], write

    def test_by_the_writer_itself_in_one_pipeline(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as two, Wire(proxy.port, 3) as three:
            for wire in (two, three):
                for write, read, expected in (
                    ("INCR n", "GET n", b"$1\r\n6\r\n"), ("RENAME a o", "GET o", b"$1\r\n1\r\n"), ("EVAL 'return redis.call(\"SET\",\"a\",\"2\")' 0", "GET a", b"$1\r\n2\r\n"), ("SWAPDB 0 1", "GET a", b"$5\r\nother\r\n"),
                    ("LPOP l", "LLEN l", b":2\r\n"), ("BLPOP l 0", "LLEN l", b":2\r\n"), ("MOVE o 1", "EXISTS o", b":0\r\n"), ("FLUSHALL", "EXISTS a", b":0\r\n"),
                ):  # fmt: skip
                    set_up(proxy, DATA)
                    for _ in range(3):
                        wire.line(read)
                    assert ask_all(wire, [read, write, read, read])[2:] == [expected] * 2, (write, read)
                    assert wire.line(read) == expected

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_a_large_value_relayed_in_pieces_with_reads_in_between(self, redis: Process, proxy: Process, protocol: int) -> None:
        set_up(proxy, DATA)
        with Wire(proxy.port, protocol) as writer, Wire(proxy.port) as reader, Readers(redis, proxy) as readers:
            for command in (("SET", "a", LARGE + LARGE), ("MSET", "a", LARGE + LARGE, "n", "last"), ("APPEND", "a", LARGE * 2), ("RPUSH", "l", LARGE * 2)):
                data = request(*command)
                writer.raw(data[:-200_000])
                until(lambda: reader.line("EXISTS z") == b":1\r\n", "others are served")
                readers.warm()
                writer.raw(data[-200_000:])
                assert writer.read()[:1] in b"+:"
                assert readers.stale() == []

    def test_restore(self, redis: Process, proxy: Process) -> None:
        with Readers(redis, proxy) as readers, Wire(proxy.port) as writer:
            set_up(proxy, DATA)
            dump = bulk(writer.line("DUMP h"))
            for command in (("RESTORE", "none", 0, dump), ("RESTORE", "a", 0, dump, "REPLACE"), ("RESTORE", "h", 1, dump, "REPLACE", "ABSTTL")):
                readers.warm()
                assert writer.ask(*command) == b"+OK\r\n"
                assert readers.stale() == []

    def test_a_blocked_pop_that_another_client_serves(self, redis: Process, proxy: Process) -> None:
        """The pop is carried out behind the push, for a client that has been waiting."""
        with Wire(proxy.port) as popper, Wire(proxy.port, 3) as pusher, Wire(proxy.port) as reader, Wire(redis.port) as direct:
            for turn in range(20):
                set_up(proxy, [])
                popper.raw(encoded("BLPOP q 0"))
                until(lambda: b"blocked_clients:1\r" in direct.line("INFO clients"), "it blocks")
                for _ in range(3):
                    assert reader.line("LLEN q") == b":0\r\n"
                    assert reader.line("EXISTS q") == b":0\r\n"
                (pusher if turn % 2 else direct).line("RPUSH q 1 2")
                assert popper.read() == b"*2\r\n$1\r\nq\r\n$1\r\n1\r\n"
                assert reader.line("LLEN q") == b":1\r\n"
                assert reader.line("EXISTS q") == b":1\r\n"

    def test_what_another_link_has_shown_is_not_taken_back(self, redis: Process, proxy: Process) -> None:
        """A value that a transaction has read is not older in the next read from memory."""
        with Wire(proxy.port) as wire, Wire(redis.port) as direct:
            set_up(proxy, ["SET a 0"])
            for turn in range(1, 100):
                for _ in range(3):
                    wire.line("GET a")
                direct.ask("SET", "a", turn)
                shown = ask_all(wire, ["MULTI", "GET a", "EXEC"])[2]
                assert shown.endswith(b"$%d\r\n%d\r\n" % (len(str(turn)), turn))
                assert wire.line("GET a") in shown

    def test_reads_of_one_connection_do_not_go_back(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as wire, Wire(proxy.port, 3) as other, Wire(redis.port) as direct:
            set_up(proxy, ["SET a 0"])
            last = {id(wire): 0, id(other): 0}
            for turn in range(1, 300):
                direct.ask("SET", "a", turn)
                for reader in (wire, other):
                    for line in ("GET a", "MGET a none", "EVAL_RO 'return redis.call(\"GET\",KEYS[1])' 1 a" if turn % 2 else "GETRANGE a 0 -1", "GET a"):
                        got = reader.line(line)
                        if got.startswith(b"-"):
                            continue  # Redis 6 has no EVAL_RO
                        seen = int(got.split(b"\r\n")[2 if line[0] == "M" else 1])
                        assert last[id(reader)] <= seen <= turn, line
                        last[id(reader)] = seen


class TestWritesPastTheSidecar:
    def test_are_seen_soon(self, redis: Process, proxy: Process, writes: list[list[Command]]) -> None:
        late = []
        with Readers(redis, proxy) as readers, Wire(redis.port) as direct:
            for write in writes:
                if any(unseen in str(write) for unseen in UNSEEN_FROM_OUTSIDE):
                    continue
                set_up(proxy, DATA)
                readers.warm()
                carry_out(direct, write, at_once=False)
                try:
                    until(lambda: not readers.stale(), "seen", limit=2.0)
                except AssertionError:
                    late.append((write, readers.stale()))
        assert [(str(write)[:80], found[:2]) for write, found in late] == []

    def test_one_after_the_other(self, redis: Process, proxy: Process) -> None:
        with Wire(proxy.port) as reader, Wire(redis.port) as direct:
            for turn in range(200):
                direct.ask("SET", "k", turn)
                expected = b"$%d\r\n%d\r\n" % (len(str(turn)), turn)
                until(lambda expected=expected: reader.line("GET k") == expected, "seen", limit=2.0)
                assert [reader.line("GET k") for _ in range(3)] == [expected] * 3

    def test_of_databases_with_the_same_keys(self, redis: Process, proxy: Process) -> None:
        set_up(proxy, DATA)
        with Readers(redis, proxy) as readers, Wire(redis.port) as direct:
            direct.line("SELECT 1")
            for turn in range(50):
                readers.warm()
                direct.ask("SET", "a", turn)
                direct.ask("RPUSH", "l", turn)
                until(lambda: not readers.stale(), "seen", limit=2.0)

    def test_expiry(self, redis: Process, proxy: Process) -> None:
        set_up(proxy, DATA)
        with Readers(redis, proxy) as readers, Wire(redis.port) as direct:
            for key in ("a", "h", "l", "s", "z", "x"):
                readers.warm()
                direct.ask("PEXPIRE", key, 30)
                until(lambda key=key: direct.ask("EXISTS", key) == b":0\r\n", "gone")
                until(lambda: not readers.stale(), "seen", limit=2.0)


@pytest.fixture
def deceived(redis: Process, proxy: Process) -> Callable[[], Wire]:
    """A client that is served `old` for `a` from memory, where Redis has 100: SWAPDB is told to nobody."""
    set_up(proxy, ["SELECT 1", "SET a 100", "SELECT 0", "SET a 1"])

    def deceive() -> Wire:
        wire = Wire(proxy.port)
        assert [wire.line("GET a") for _ in range(4)] == [b"$1\r\n1\r\n"] * 4
        with Wire(redis.port) as direct:
            assert direct.line("SWAPDB 0 1") == b"+OK\r\n"
        assert wire.line("GET a") == b"$1\r\n1\r\n", "not from memory"
        return wire

    return deceive


class TestTransactionsDoNotReadFromMemory:
    def test_no_update_is_lost_to_a_stale_read(self, redis: Process, deceived: Callable[[], Wire]) -> None:
        with deceived() as wire, Wire(redis.port) as direct:
            assert wire.line("WATCH a") == b"+OK\r\n"
            value = int(bulk(wire.line("GET a")))
            assert value == 100
            assert ask_all(wire, ["MULTI", ("SET", "a", value + 1), "EXEC"])[2] == b"*1\r\n+OK\r\n"
            assert direct.line("GET a") == wire.line("GET a") == b"$3\r\n101\r\n"

    def test_all_in_one_pipeline(self, deceived: Callable[[], Wire]) -> None:
        with deceived() as wire:
            assert ask_all(wire, ["WATCH a", "GET a", "MGET a a", "MULTI", "GET a", "EXEC"])[1:] == [
                b"$3\r\n100\r\n", b"*2\r\n$3\r\n100\r\n$3\r\n100\r\n", b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n$3\r\n100\r\n",
            ]  # fmt: skip

    def test_once_shown_the_true_value_nobody_sees_the_stale_one(self, proxy: Process, deceived: Callable[[], Wire]) -> None:
        with deceived() as wire, Wire(proxy.port) as other:
            assert ask_all(wire, ["WATCH a", "GET a", "UNWATCH"])[1] == b"$3\r\n100\r\n"
            assert wire.line("GET a") == other.line("GET a") == b"$3\r\n100\r\n"

    def test_bypass_reads_the_true_value(self, proxy: Process, deceived: Callable[[], Wire]) -> None:
        with deceived() as wire, Wire(proxy.port) as other:
            assert wire.line("SIDECAR BYPASS ON") == b"+OK\r\n"
            assert wire.line("GET a") == b"$3\r\n100\r\n"
            other.close()

    def test_every_read_between_watch_and_exec_goes_to_redis(self, redis: Process, proxy: Process) -> None:
        set_up(proxy, DATA)
        with Wire(proxy.port) as wire, Monitor(redis) as monitor:
            for _ in range(3):
                wire.line("GET a")
                wire.line("HGETALL h")
            monitor.seen()
            ask_all(wire, ["WATCH o", "GET a", "HGETALL h", "GET a", "UNWATCH"])
            assert [seen[0] for seen in monitor.seen()][1:4] == [b"GET", b"HGETALL", b"GET"]
