"""Reads from memory are, byte for byte, the reads from Redis; what must not be kept never is.

Nothing is configured here but the upstream. What Redis is still asked shows in its MONITOR, which names the
keys, so that the sidecar's own questions (heartbeat, canary) do not count.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import pytest
from redis import Redis

from proxy.tier.rules import CACHEABLE
from tests.harness import Process, free_port, pannier, redis_server
from tests.integration.families import ALL_BYTES, RESP_LIKE
from tests.integration.wire import Wire, in_background, request, text, until, words

Command = str | tuple[bytes | str | int, ...]

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])


# --- for all tests of the tier


def arguments(command: Command) -> list[bytes]:
    """A command written as in redis-cli, or as a tuple with arbitrary bytes."""
    if isinstance(command, str):
        return words(command)
    return [part if isinstance(part, bytes) else str(part).encode() for part in command]


def encoded(command: Command) -> bytes:
    return request(*arguments(command))


def info(proxy: Process) -> dict[str, str]:
    """INFO's section `# Sidecar`."""
    with Wire(proxy.port) as wire:
        lines = text(wire.ask("INFO", "sidecar")).splitlines()
    return dict(line.split(":", 1) for line in lines[1:] if line)


def number(proxy: Process, name: str) -> int:
    """A number from INFO's section `# Sidecar`."""
    return int(info(proxy)[f"pannier_{name}"])


def hits(wire: Wire) -> int:
    """How many reads memory has answered, as a client of whatever tenant is told."""
    return int(text(wire.ask("INFO", "sidecar")).partition("pannier_tier_hits:")[2].split()[0])


def calls(redis: Process, name: str) -> int:
    """How often Redis has run a command since CONFIG RESETSTAT."""
    with Wire(redis.port) as wire:
        found = re.search(rf"cmdstat_{name}:calls=(\d+)", text(wire.line("INFO commandstats")))
    return int(found.group(1)) if found else 0


def ask_all(wire: Wire, commands: list[Command]) -> list[bytes]:
    """Send commands in one piece; their replies."""
    return wire.pipeline([encoded(command) for command in commands], len(commands))


def reply(wire: Wire) -> bytes:
    """The next reply, pushes left out."""
    while (found := wire.read()).startswith(b">"):
        pass
    return found


def set_up(proxy: Process, commands: list[Command]) -> None:
    """Begin with these data and nothing in memory."""
    with Wire(proxy.port) as wire:
        for found in ask_all(wire, ["FLUSHALL", *commands, "SIDECAR FLUSH"]):
            assert not found.startswith(b"-"), found


class Monitor:
    """What Redis is asked while the context lasts, as lists of words, the command in upper case."""

    def __init__(self, redis: Process) -> None:
        self._redis = redis
        self._wire = Wire(redis.port)
        self._marks = 0
        assert self._wire.line("MONITOR") == b"+OK\r\n"

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wire.close()

    def seen(self, key: bytes | None = None) -> list[list[bytes]]:
        """Commands since the last call; those that name `key`, if it is given."""
        self._marks += 1
        mark = f"monitor's mark {self._marks}".encode()
        with Wire(self._redis.port) as wire:
            wire.ask("ECHO", mark)
        found = []
        while True:
            parts = re.findall(rb'"((?:[^"\\]|\\.)*)"', self._wire.read().partition(b"] ")[2])
            if mark in parts:
                return found
            if key is None or key in parts:
                found.append([parts[0].upper(), *parts[1:]])


# --- what every test of the reads begins with

DATA: list[Command] = [
    "SET a 'hello world'", "SET n 5", "SET lo abc", "SET never x PX 100000000", "MSET t1 ohmytext t2 mynewtext", "SETBIT b 7 1",
    "HSET h f v g w n 1", "RPUSH l a b c a b", "SADD s x", "SADD u x y z 1", "SADD i 1 2 3", "SADD j 2 3 4", "ZADD z 1 a 2.5 b inf c -0 d", "ZADD y 0 a 0 b 0 c",
    "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania", "XADD x 1-1 f v g w", "XADD x 2-1 f v",
]  # fmt: skip

READS: dict[str, list[Command]] = {
    "get": ["GET a", "GET none"], "strlen": ["STRLEN a", "STRLEN none"], "getrange": ["GETRANGE a 1 -2", "GETRANGE none 0 1"], "substr": ["SUBSTR a 0 3"],
    "lcs": ["LCS t1 t2", "LCS t1 t2 LEN", "LCS t1 t2 IDX WITHMATCHLEN", "LCS none t2 IDX"], "exists": ["EXISTS a", "EXISTS none", "EXISTS a none a n"], "type": ["TYPE a", "TYPE none", "TYPE z", "TYPE x"],
    "expiretime": ["EXPIRETIME never", "EXPIRETIME a", "EXPIRETIME none"], "pexpiretime": ["PEXPIRETIME never", "PEXPIRETIME none"],
    "getbit": ["GETBIT b 7", "GETBIT none 1"], "bitcount": ["BITCOUNT a", "BITCOUNT a 0 3", "BITCOUNT none"], "bitpos": ["BITPOS b 1", "BITPOS b 0 0 -1", "BITPOS none 1"], "bitfield_ro": ["BITFIELD_RO a GET u8 0 GET i4 4"],
    "hget": ["HGET h f", "HGET h none", "HGET none f"], "hmget": ["HMGET h f none g", "HMGET none f"], "hgetall": ["HGETALL h", "HGETALL none"], "hkeys": ["HKEYS h", "HKEYS none"], "hvals": ["HVALS h"], "hlen": ["HLEN h", "HLEN none"],
    "hexists": ["HEXISTS h f", "HEXISTS h none"], "hstrlen": ["HSTRLEN h f", "HSTRLEN h none"],
    "lrange": ["LRANGE l 0 -1", "LRANGE l 1 2", "LRANGE none 0 -1"], "lindex": ["LINDEX l 0", "LINDEX l 99"], "llen": ["LLEN l", "LLEN none"], "lpos": ["LPOS l a", "LPOS l a COUNT 0", "LPOS l none", "LPOS l b RANK -1"],
    "smembers": ["SMEMBERS s", "SMEMBERS u", "SMEMBERS none"], "scard": ["SCARD s", "SCARD none"], "sismember": ["SISMEMBER s x", "SISMEMBER s none"], "smismember": ["SMISMEMBER s x none"],
    "sinter": ["SINTER i j", "SINTER i none"], "sintercard": ["SINTERCARD 2 i j", "SINTERCARD 2 i j LIMIT 1"], "sunion": ["SUNION i j none", "SUNION none"], "sdiff": ["SDIFF i j", "SDIFF none i"],
    "zscore": ["ZSCORE z b", "ZSCORE z c", "ZSCORE z none"], "zmscore": ["ZMSCORE z a none c"], "zcard": ["ZCARD z", "ZCARD none"], "zcount": ["ZCOUNT z -inf (2"], "zlexcount": ["ZLEXCOUNT y - +"],
    "zrank": ["ZRANK z b", "ZRANK z none"], "zrevrank": ["ZREVRANK z b", "ZREVRANK none b"],
    "zrange": ["ZRANGE z 0 -1", "ZRANGE z 0 -1 WITHSCORES", "ZRANGE z (1 +inf BYSCORE LIMIT 0 1 WITHSCORES", "ZRANGE y [b [a BYLEX REV", "ZRANGE none 0 -1 WITHSCORES"],
    "zrangebyscore": ["ZRANGEBYSCORE z -inf +inf", "ZRANGEBYSCORE z -inf 2.5 WITHSCORES LIMIT 1 2"], "zrangebylex": ["ZRANGEBYLEX y - (c"], "zrevrange": ["ZREVRANGE z 0 1", "ZREVRANGE z 0 1 WITHSCORES"],
    "zrevrangebyscore": ["ZREVRANGEBYSCORE z +inf 1 WITHSCORES"], "zrevrangebylex": ["ZREVRANGEBYLEX y + -"],
    "zdiff": ["ZDIFF 2 z y", "ZDIFF 2 z y WITHSCORES"], "zinter": ["ZINTER 2 z y WEIGHTS 2 1 AGGREGATE MAX WITHSCORES", "ZINTER 2 z none"], "zintercard": ["ZINTERCARD 2 z y"], "zunion": ["ZUNION 2 z y", "ZUNION 3 z y i WITHSCORES"],
    "geodist": ["GEODIST g Palermo Catania km", "GEODIST g Palermo none"], "geohash": ["GEOHASH g Palermo none"], "geopos": ["GEOPOS g Palermo none", "GEOPOS none x"],
    "geosearch": ["GEOSEARCH g FROMLONLAT 15 37 BYRADIUS 200 km ASC", "GEOSEARCH g FROMLONLAT 15 37 BYBOX 400 400 km ASC WITHCOORD WITHDIST WITHHASH", "GEOSEARCH g FROMMEMBER Palermo BYRADIUS 300 km DESC WITHDIST"],
    "georadius_ro": ["GEORADIUS_RO g 15 37 200 km ASC WITHDIST"], "georadiusbymember_ro": ["GEORADIUSBYMEMBER_RO g Palermo 200 km"],
    "xlen": ["XLEN x", "XLEN none"], "xrange": ["XRANGE x - +", "XRANGE x - + COUNT 1", "XRANGE none - +"], "xrevrange": ["XREVRANGE x + -", "XREVRANGE x + - COUNT 0"],
}  # fmt: skip
"""By command. In each the first argument that is a key of DATA, or `none`, names what MONITOR is searched for."""

WITHOUT_A_MODULE = {name for name in CACHEABLE if name.startswith("json.")}

KEPT_OUT: list[Command] = [
    "RANDOMKEY", "SRANDMEMBER s", "SRANDMEMBER u -3", "HRANDFIELD h", "HRANDFIELD h 2 WITHVALUES", "ZRANDMEMBER z", "ZRANDMEMBER z 2 WITHSCORES",
    "TTL never", "PTTL never", "TTL none", "OBJECT IDLETIME a", "OBJECT ENCODING a", "OBJECT FREQ a", "OBJECT REFCOUNT a", "XINFO STREAM x", "XPENDING x grp", "XINFO GROUPS x", "XINFO CONSUMERS x grp", "MEMORY USAGE a",
    "SCAN 0", "HSCAN h 0", "SSCAN u 0", "ZSCAN z 0", "KEYS *", "DBSIZE", "TIME", "LASTSAVE",
    "TOUCH a", "GETEX a", "PFCOUNT hll", "SORT_RO i", "SORT_RO i BY w_* GET v_*", "SORT i", "DUMP a", "EVAL_RO 'return redis.call(\"GET\", KEYS[1])' 1 a", "EVAL 'return redis.call(\"GET\", KEYS[1])' 1 a",
    "XREAD STREAMS x 0", "XREAD COUNT 1 BLOCK 1 STREAMS x 0", "XREADGROUP GROUP grp c STREAMS x 0", "BLPOP none 0.01", "BLMOVE none none2 LEFT LEFT 0.01",
]  # fmt: skip
"""Random, telling time, walking, blocking, touching, or of keys that nobody names."""

WRONG: list[Command] = ["GET l", "STRLEN l", "LRANGE a 0 -1", "HGET a f", "SMEMBERS a", "ZRANGE a 0 -1", "XRANGE a - +", "GETRANGE a x y", "LRANGE l x y", "SINTER u a", "GET", "GET a b", "HGET h", "GETBIT a -1", "ZRANGE z 0 -1 NOSUCH"]


@pytest.fixture
def filled(proxy: Process) -> Process:
    """`proxy`, Redis filled with DATA, nothing in memory."""
    set_up(proxy, DATA)
    return proxy


def known(redis: Process, names: list[str]) -> set[str]:
    """Those of the commands that the server has."""
    with Wire(redis.port) as wire:
        return {name for name in names if not wire.ask("COMMAND", "INFO", name).startswith((b"*1\r\n*-1", b"*1\r\n$-1", b"*1\r\n_"))}


def settled(redis: Process, protocol: int, commands: list[Command]) -> list[bytes]:
    """Redis' own replies."""
    with Wire(redis.port, protocol) as wire:
        return [wire.ask(*arguments(command)) for command in commands]


class TestEveryCacheableReadIsServedFromMemory:
    def test_every_one_is_tried(self, redis: Process) -> None:
        assert set(READS) == CACHEABLE - WITHOUT_A_MODULE

    @both_protocols
    def test_from_the_third_identical_read_on(self, redis: Process, filled: Process, protocol: int) -> None:
        names = known(redis, list(READS))
        lines = [line for name in READS if name in names for line in READS[name]]
        theirs = settled(redis, protocol, lines)
        asked_again: list[Command] = []
        with Wire(filled.port, protocol) as wire, Monitor(redis) as monitor:
            for line, expected in zip(lines, theirs, strict=True):
                assert expected[:1] != b"-", line
                assert [wire.ask(*arguments(line)) for _ in range(2)] == [expected] * 2, line
                monitor.seen()
                hits = number(filled, "tier_hits")
                assert [wire.ask(*arguments(line)) for _ in range(3)] == [expected] * 3, line
                verb, key = arguments(line)[0].upper(), arguments(line)[-1]
                asked = [seen for seen in monitor.seen(key) if seen[0] == verb]
                if asked or number(filled, "tier_hits") - hits != 3:
                    asked_again.append(line)
        assert asked_again == []

    @both_protocols
    def test_redis_counts_no_further_reads(self, redis: Process, filled: Process, protocol: int) -> None:
        with Wire(filled.port, protocol) as wire, Wire(redis.port) as direct:
            for _ in range(3):  # one by one: in pipelines, what was often dropped before comes in later
                wire.line("GET a")
                wire.line("HGETALL h")
            direct.line("CONFIG RESETSTAT")
            for _ in range(50):
                wire.line("GET a")
                wire.line("HGETALL h")
            wire.pipeline([encoded("GET a"), encoded("HGETALL h")] * 50, 100)
            assert (calls(redis, "get"), calls(redis, "hgetall"), calls(redis, "pttl")) == (0, 0, 0)

    def test_one_fetch_serves_both_protocols(self, redis: Process, filled: Process) -> None:
        lines = ["GET none", "HGETALL h", "SMEMBERS u", "ZSCORE z b", "ZRANGE z 0 -1 WITHSCORES", "GEOPOS g none", "XRANGE none - +", "LPOS l a COUNT 0"]
        expected = {protocol: settled(redis, protocol, [*lines]) for protocol in (2, 3)}
        with Wire(filled.port, 2) as two, Wire(filled.port, 3) as three:
            for _ in range(3):
                assert [two.line(line) for line in lines] == expected[2]
            with Monitor(redis) as monitor:
                for _ in range(3):
                    assert [three.line(line) for line in lines] == expected[3]
                seen = [found for found in monitor.seen() if found[0] not in (b"PING", b"ECHO")]
            assert len(seen) <= 2 * len(lines)  # at most one fetch each, with its PTTL, where RESP3 came too late for it
            for _ in range(3):
                assert [two.line(line) for line in lines] == expected[2]
                assert [three.line(line) for line in lines] == expected[3]

    def test_a_read_of_many_keys_falls_with_each_of_them(self, redis: Process, filled: Process) -> None:
        lines = ["SUNION i j u none", "ZUNION 2 z y WITHSCORES", "EXISTS a n none", "SDIFF u i j"]
        for write in ("SADD none new", "SREM u x", "ZADD y 9 new", "DEL n", "SADD j 99", "SET a 1", "SADD i 77"):
            with Wire(filled.port, 3) as wire:
                for _ in range(3):
                    assert [wire.line(line) for line in lines] == settled(redis, 3, [*lines])
                with Wire(filled.port, 2) as writer:
                    assert writer.line(write) == b":1\r\n" or write.startswith("SET")
                assert [wire.line(line) for line in lines] == settled(redis, 3, [*lines]), write


class TestWhatIsNotKept:
    @both_protocols
    def test_random_timed_walking_blocking_touching(self, redis: Process, filled: Process, protocol: int) -> None:
        with Wire(filled.port, protocol) as wire, Monitor(redis) as monitor:
            wire.line("XGROUP CREATE x grp 0")
            wire.line("PFADD hll a b c")
            have = known(redis, [words(line)[0].decode() for line in KEPT_OUT if isinstance(line, str)])
            for line in KEPT_OUT:
                verb = arguments(line)[0]
                if verb.decode() not in have:
                    continue
                hits = number(filled, "tier_hits")
                monitor.seen()
                for _ in range(4):
                    wire.ask(*arguments(line))
                asked = [seen for seen in monitor.seen() if seen[0] == verb]
                assert len(asked) == 4, line
                assert number(filled, "tier_hits") == hits, line

    @both_protocols
    def test_errors(self, redis: Process, filled: Process, protocol: int) -> None:
        expected = settled(redis, protocol, WRONG)
        with Wire(filled.port, protocol) as wire:
            hits = number(filled, "tier_hits")
            for _ in range(4):
                assert [wire.ask(*arguments(line)) for line in WRONG] == expected
                assert ask_all(wire, WRONG) == expected
            assert number(filled, "tier_hits") == hits
            assert number(filled, "tier_entries") == 0
            assert all(found.startswith(b"-") for found in expected)

    def test_an_error_makes_room_for_a_value(self, redis: Process, filled: Process) -> None:
        with Wire(filled.port) as wire, Wire(redis.port) as direct:
            assert [wire.line("GET l")[:1] for _ in range(3)] == [b"-"] * 3
            direct.line("SET l text")
            assert wire.line("GET l") == b"$4\r\ntext\r\n"

    def test_a_user_is_not_served_what_only_another_may_read(self, redis: Process, filled: Process) -> None:
        with Wire(redis.port) as direct, Wire(filled.port) as mine, Wire(filled.port) as theirs:
            assert direct.line("ACL SETUSER narrow on >pw ~k* +@all") == b"+OK\r\n"
            try:
                assert theirs.line("AUTH narrow pw") == b"+OK\r\n"
                for _ in range(4):
                    assert mine.line("GET a") == b"$11\r\nhello world\r\n"
                    assert theirs.line("GET a").startswith(b"-NOPERM")
                    assert theirs.pipeline([encoded("GET a")] * 3, 3)[2].startswith(b"-NOPERM")
            finally:
                direct.line("ACL DELUSER narrow")


class TestMgetByItsMembers:
    @both_protocols
    def test_only_the_missing_ones_are_fetched_in_one_mget(self, redis: Process, filled: Process, protocol: int) -> None:
        line = "MGET a n none lo l a never"
        (expected,) = settled(redis, protocol, [line])
        with Wire(filled.port, protocol) as wire:
            for _ in range(3):
                wire.line("GET a")
                wire.line("GET none")
            with Monitor(redis) as monitor:
                assert wire.line(line) == expected
                asked = [seen for seen in monitor.seen() if seen[0] in (b"GET", b"MGET")]
                assert asked == [[b"MGET", b"n", b"lo", b"l", b"never"]]
            for _ in range(2):
                assert wire.line(line) == expected
            with Monitor(redis) as monitor:
                for _ in range(3):
                    assert wire.line(line) == expected
                assert [seen for seen in monitor.seen() if seen[0] in (b"GET", b"MGET")] == [[b"MGET", b"l"]] * 3
                for _ in range(3):
                    assert wire.line("mget a n none lo a never") == settled(redis, protocol, ["MGET a n none lo a never"])[0]
                    assert wire.line("GET n") == b"$1\r\n5\r\n"
                assert [seen for seen in monitor.seen() if seen[0] == b"GET"] == []

    @both_protocols
    def test_nil_of_what_is_no_string_is_not_gets_nil(self, filled: Process, protocol: int) -> None:
        with Wire(filled.port, protocol) as wire:
            nil = b"*2\r\n_\r\n_\r\n" if protocol == 3 else b"*2\r\n$-1\r\n$-1\r\n"
            for _ in range(5):
                assert wire.line("MGET l h") == nil
                assert wire.line("GET l").startswith(b"-WRONGTYPE")
            for _ in range(3):
                replies = ask_all(wire, ["MGET l h", "GET h", "MGET h l", "GET l"])
                assert (replies[0], replies[2]) == (nil, nil)
                assert replies[1].startswith(b"-WRONGTYPE") and replies[3].startswith(b"-WRONGTYPE")

    @both_protocols
    def test_all_sorts_of_keys(self, redis: Process, proxy: Process, protocol: int) -> None:
        pairs = [(key, b"value of %d bytes" % len(key)) for key in ODD_KEYS]
        set_up(proxy, [("SET", key, value) for key, value in pairs])
        many: Command = ("MGET", *ODD_KEYS, "none", *reversed(ODD_KEYS))
        (expected,) = settled(redis, protocol, [many])
        with Wire(proxy.port, protocol) as wire:
            for _ in range(4):
                assert wire.ask(*arguments(many)) == expected
            for key, value in pairs:
                assert wire.ask("MGET", key, key) == b"*2\r\n" + (b"$%d\r\n%b\r\n" % (len(value), value)) * 2

    @both_protocols
    @pytest.mark.parametrize("keys", [5, 6, 9, 10, 99, 100, 1000])
    def test_any_number_of_keys_alone_and_in_pipelines(
        self, redis: Process, proxy: Process, protocol: int, keys: int
    ) -> None:
        """Once its members are in memory, nothing of it goes to Redis, however many there are."""
        names = [f"many{keys}:{n}" for n in range(keys)]
        set_up(proxy, [("SET", name, f"value of {name}") for name in names])
        line = "MGET " + " ".join(names)
        (expected,) = settled(redis, protocol, [line])
        with Wire(proxy.port, protocol) as wire:
            for _ in range(60):  # of many keys some make each other forgotten, once or twice
                assert wire.line(line) == expected
            with Monitor(redis) as monitor:
                assert wire.line(line) == wire.line(line.replace("MGET", "mget")) == expected
                assert ask_all(wire, [line] * 5) == [expected] * 5
                whole = ask_all(wire, [line, f"GET {names[0]}", line])
                assert whole == [expected, settled(redis, protocol, [f"GET {names[0]}"])[0], expected]
                assert [seen for seen in monitor.seen() if seen[0].upper() == b"MGET"] == []

    @pytest.mark.parametrize("before", ["", "GET a"])
    def test_that_comes_in_two_pieces(self, proxy: Process, before: str) -> None:
        """What has come of it may be all keys of a shorter one: it is another's beginning nevertheless."""
        set_up(proxy, ["SET a 1", "SET b 2", "SET c 3"])
        data = (request(*words(before)) if before else b"") + request("MGET", "a", "b", "c")
        expected = (b"$1\r\n1\r\n" if before else b"") + b"*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n"
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in [*range(1, len(data)), *range(1, len(data))]:
                link.sendall(data[:at])
                with Wire(proxy.port) as other:
                    other.line("PING")  # once this is answered, the first piece has been taken
                link.sendall(data[at:])
                got = b""
                while len(got) < len(expected):
                    got += link.recv(4096)
                assert got == expected, at

    def test_a_key_that_looks_like_the_cut_between_two(self, redis: Process, proxy: Process) -> None:
        """MGET's keys are told apart by where a length may begin: one that has such a place in it is one key."""
        keys = [b"a\r\n$1\r\nb", b"a", b"b", b"\r\n$", b"$1", b"2\r\n$3\r\nGET\r\n$1\r\na", b"a\r\n*2\r\n$3\r\nGET\r\n$1\r\nb"]
        set_up(proxy, [("SET", key, b"of " + key) for key in keys])
        for asked in [*itertools.permutations(keys, 2), keys, keys + keys[::-1]]:
            (expected,) = settled(redis, 2, [("MGET", *asked)])
            with Wire(proxy.port) as wire:
                for _ in range(3):
                    assert wire.ask("MGET", *asked) == expected

    def test_a_hundred_keys_half_of_them_written_meanwhile(self, redis: Process, proxy: Process) -> None:
        keys = [f"m{n}" for n in range(100)]
        set_up(proxy, [("SET", key, key) for key in keys])
        with Wire(proxy.port) as wire, Wire(proxy.port, 3) as writer:
            for turn in range(4):
                assert wire.ask("MGET", *keys) == settled(redis, 2, [("MGET", *keys)])[0]
                for key in keys[turn::2]:
                    writer.ask("SET", key, turn)
                writer.ask("DEL", keys[turn])


ODD_KEYS: list[bytes] = [
    b"", b"*", b"**", b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"\r\n", b"\r\n*1\r\n$4\r\nPING\r\n", b"$1\r\nx\r\n", RESP_LIKE, ALL_BYTES, b"\0", b"*3", b"a*b", b"2\r\n$3\r\nGET\r\n",
    b"k" * 254, b"k" * 255, b"k" * 256, b"k" * 999, b"k" * 1000, b"*" * 300, b"k" * 20000,
]  # fmt: skip


class TestForms:
    @both_protocols
    def test_keys_of_any_bytes(self, redis: Process, proxy: Process, protocol: int) -> None:
        set_up(proxy, [("SET", key, b"<%b>" % key) for key in ODD_KEYS] + [("HSET", b"h" + key, key, key + b"*") for key in ODD_KEYS])
        with Wire(proxy.port, protocol) as wire:
            for key in ODD_KEYS:
                reads: list[Command] = [("GET", key), ("HGET", b"h" + key, key), ("STRLEN", key), ("EXISTS", key, b"none"), ("HGETALL", b"h" + key)]
                expected = settled(redis, protocol, reads)
                for read, theirs in zip(reads, expected, strict=True):
                    assert [wire.ask(*arguments(read)) for _ in range(5)] == [theirs] * 5, read
                for _ in range(3):
                    assert ask_all(wire, reads) == expected

    @pytest.mark.parametrize("name", ["GET", "STRLEN", "HGETALL", "MGET"])
    def test_a_key_is_never_carried_out(self, redis: Process, proxy: Process, name: str) -> None:
        """What looks like a request within a key is data."""
        set_up(proxy, [])
        key = b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\nSET carried out\r\n"
        reconnects = number(proxy, "upstream_reconnects")
        with Wire(proxy.port) as wire, Wire(redis.port) as direct:
            for _ in range(4):
                wire.ask(name, key)
                wire.pipeline([request(name, key), request("GET", "a"), request(name, key)], 3)
            assert wire.line("PING") == b"+PONG\r\n"
            assert direct.line("GET carried") == b"$-1\r\n"
        assert number(proxy, "upstream_reconnects") == reconnects

    @both_protocols
    def test_keys_of_any_bytes_are_kept(self, proxy: Process, protocol: int) -> None:
        set_up(proxy, [("SET", key, b"<%b>" % key) for key in ODD_KEYS])
        missed = []
        with Wire(proxy.port, protocol) as wire:
            for key in ODD_KEYS:
                before = number(proxy, "tier_hits")
                for _ in range(5):
                    wire.ask("GET", key)
                if number(proxy, "tier_hits") - before < 3:
                    missed.append(key)
        assert missed == []

    @both_protocols
    def test_lower_case_and_inline(self, redis: Process, filled: Process, protocol: int) -> None:
        with Wire(filled.port, protocol) as wire:
            for form in (request("get", "a"), request("gEt", "a"), b"get a\r\n", b"  GET   a  \r\n", b"GET 'a'\n", request("exists", "a", "none"), request("hgetall", "h"), b"hgetall h\r\n", request("mget", "a", "n"), b"mget a n\r\n"):
                with Wire(redis.port, protocol) as direct:
                    direct.raw(form)
                    expected = direct.read()
                before = number(filled, "tier_hits")
                for _ in range(5):
                    wire.raw(form)
                    assert wire.read() == expected
                assert number(filled, "tier_hits") - before >= 3, form

    def test_leading_zeros_and_other_spellings_of_a_frame(self, filled: Process) -> None:
        with Wire(filled.port) as wire:
            for _ in range(4):
                for form in (b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", b"*2\r\n$03\r\nGET\r\n$1\r\na\r\n", b"*02\r\n$3\r\nGET\r\n$01\r\na\r\n"):
                    wire.raw(form)
                    found = wire.read()
                    if found.startswith(b"-"):  # as Redis has it; it then closes
                        pytest.skip("not taken")
                    assert found == b"$11\r\nhello world\r\n"

    @both_protocols
    def test_a_thousand_elements(self, redis: Process, proxy: Process, protocol: int) -> None:
        set_up(proxy, [("RPUSH", "long", *range(1000)), ("HSET", "wide", *range(1000)), ("ZADD", "tall", *range(1000))])
        lines = ["LRANGE long 0 -1", "HGETALL wide", "ZRANGE tall 0 -1 WITHSCORES"]
        expected = settled(redis, protocol, [*lines])
        with Wire(proxy.port, protocol) as wire:
            for _ in range(2):
                assert [wire.line(line) for line in lines] == expected
            before = number(proxy, "tier_hits")
            for _ in range(3):
                assert [wire.line(line) for line in lines] == expected
            assert number(proxy, "tier_hits") - before == 9


@pytest.fixture(scope="module")
def reference(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A second Redis, on which the same is done without a sidecar."""
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def mixture(rng: random.Random, size: int) -> list[Command]:
    """Hits, misses, writes and what the sidecar answers itself, in one pipeline."""
    kinds: list[Command] = [
        "GET a", "GET a", "GET n", "GET none", "get lo", "MGET a n none", "MGET n l", "HGET h f", "HGETALL h", "LRANGE l 0 -1", "SMEMBERS s", "ZRANGE z 0 -1 WITHSCORES", "ZSCORE z b", "EXISTS a none n", "STRLEN a", "GET l", "GEOPOS g none",
        "XRANGE x - +", "XRANGE none - +", ("GET", b"*2\r\n"), ("GET", b"k" * 300),
        "INCR n", "APPEND lo x", "SET a 1", "SET a 'hello world'", "HINCRBY h n 1", "RPUSH l q", "LPOP l", "DEL none", "SET none 1", "ZINCRBY z 0.5 b", "GETSET a 5", ("SET", b"*2\r\n", b"_\r\n"), ("SET", b"k" * 300, "long"), "GETDEL none", "EVAL 'return redis.call(\"INCR\",\"n\")' 0",
        "PING", "ECHO *1", "CLIENT GETNAME", "CLIENT SETNAME me", "SELECT 0", "SELECT 1", "MULTI", "EXEC", "DISCARD", "SET a 2 GET", "NOSUCH a", "LPOP l 1", "TTL a", "BLPOP l 0.01",
    ]  # fmt: skip
    weights = [10.0] * 21 + [1.0] * 14 + [0.3] * 15
    return rng.choices(kinds, weights[: len(kinds)], k=size)


class TestPipelines:
    @both_protocols
    def test_mixtures_read_as_on_redis_itself(self, proxy: Process, reference: Process, protocol: int) -> None:
        rng = random.Random(protocol)
        set_up(proxy, DATA)
        set_up_direct(reference)
        before = number(proxy, "tier_hits")
        with Wire(proxy.port, protocol) as ours, Wire(reference.port, protocol) as theirs:
            for _ in range(400):
                commands = mixture(rng, rng.choice([1, 1, 1, 2, 3, 8, 40, 120]))
                for wire in (ours, theirs):
                    ask_all(wire, ["DISCARD", "SELECT 0"])
                got, expected = ask_all(ours, commands), ask_all(theirs, commands)
                for place, command in enumerate(commands):
                    assert got[place] == expected[place], (place, command, commands)
        assert number(proxy, "tier_hits") - before > 20

    @both_protocols
    def test_split_at_every_byte(self, proxy: Process, reference: Process, protocol: int) -> None:
        set_up(proxy, DATA)
        set_up_direct(reference)
        commands: list[Command] = ["GET a", "get n", "GET none", "INCR n", "GET n", ("GET", b"*1\r\n$4\r\nPING\r\n"), "MGET a n none", "CLIENT GETNAME", "HGETALL h", ("SET", "lo", "*2\r\n$3\r\nGET"), "GET lo", "EXISTS a none", "ECHO x", "GET a"]
        data = b"".join(map(encoded, commands[:-1])) + b"get a\r\n"
        with Wire(proxy.port, protocol) as ours, Wire(reference.port, protocol) as theirs, Wire(proxy.port) as other:
            for at in range(1, len(data)):
                ours.raw(data[:at])
                other.line("CLIENT ID")  # answered by the sidecar, which has therefore seen the first piece
                ours.raw(data[at:])
                theirs.raw(data)
                assert ours.reads(len(commands)) == theirs.reads(len(commands)), at

    @both_protocols
    def test_nothing_but_hits_split_at_every_byte(self, redis: Process, filled: Process, protocol: int) -> None:
        commands: list[Command] = ["GET a", "GET n", "HGETALL h", "GET none", "EXISTS a none"]
        data = b"".join(map(encoded, commands))
        expected = settled(redis, protocol, commands)
        with Wire(filled.port, protocol) as wire, Wire(filled.port) as other:
            for _ in range(3):
                assert [ask_all(wire, [command])[0] for command in commands] == expected
            before = number(filled, "tier_hits")
            for at in range(1, len(data)):
                wire.raw(data[:at])
                other.line("CLIENT ID")
                wire.raw(data[at:])
                assert wire.reads(len(commands)) == expected, at
            assert number(filled, "tier_hits") - before == (len(data) - 1) * len(commands)

    @pytest.mark.parametrize("line", ["MGET a n", "MGET none n none a"])
    @both_protocols
    def test_mget_in_a_pipeline_is_served_by_its_members_too(self, redis: Process, filled: Process, protocol: int, line: str) -> None:
        commands: list[Command] = ["GET a", "GET n", line, "GET none", line]
        expected = settled(redis, protocol, commands)
        with Wire(filled.port, protocol) as wire:
            for _ in range(3):
                assert [ask_all(wire, [command])[0] for command in commands] == expected
            with Monitor(redis) as monitor:
                assert ask_all(wire, commands) == expected
                assert [seen for seen in monitor.seen() if seen[0] in (b"GET", b"MGET")] == []

    ODD: ClassVar = [b"plain", b"two\r\nlines", b"*11\r\n$4\r\nMGET\r\n$1\r\na\r\n", b"\r\n$3\r\nabc\r\n", b"s*t*a*r", b"x" * 300, b"", b"*3\r\n$4\r\nMGET\r\n"]
    """Keys that look like the requests around them."""

    @pytest.mark.parametrize("namespace", ["", "?namespace=odd"])
    @both_protocols
    def test_nothing_but_mgets(self, redis: Process, directory: Path, protocol: int, namespace: str) -> None:
        """Of few keys and of many, of as many each or not, in capitals or not, with keys that tear them apart."""
        port, rng = free_port(), random.Random(protocol)
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--listen", f"127.0.0.1:{port}{namespace}", "--admit-after", "1"), Wire(port, protocol) as wire:
            keys = [b"key:%d" % n for n in range(200)]
            values = {key: b"%d" % (n % 13) * (n % 5) for n, key in enumerate([*keys, *self.ODD])}
            for key, value in values.items():
                wire.ask("SET", key, value)
                wire.ask("GET", key)
            known = {key: b"$%d\r\n%b\r\n" % (len(value), value) for key, value in values.items()}
            nil = b"_\r\n" if protocol == 3 else b"$-1\r\n"
            for turn in range(300):
                n = rng.choice([1, 2, 3, 10, 64, 150])
                requests = []
                for _ in range(rng.choice([2, 3, 16])):
                    some = rng.choices(keys, k=n if turn % 3 else rng.choice([n, 1, 7]))
                    if turn % 4 == 1 and not rng.randrange(3):
                        some[rng.randrange(len(some))] = rng.choice(self.ODD)
                    if turn % 4 == 2 and not rng.randrange(3):
                        some[rng.randrange(len(some))] = b"none"
                    requests.append([rng.choice([b"MGET", b"MGET", b"mget", b"mGet"]) if turn % 4 == 3 else b"MGET", *some])
                got = wire.pipeline([encoded(tuple(request)) for request in requests], len(requests))
                assert got == [b"*%d\r\n" % (len(request) - 1) + b"".join([known.get(key, nil) for key in request[1:]]) for request in requests], turn

    def test_keys_of_mgets_do_not_change_places(self, filled: Process) -> None:
        """One has a key too few, the next one too many: together they are as many as they should be."""
        with Wire(filled.port) as wire:
            for _ in range(3):
                for key in ("a", "n", "lo", "none"):
                    wire.ask("GET", key)
            head, keys = b"*3\r\n$4\r\nMGET\r\n", [b"$%d\r\n%b\r\n" % (len(key), key) for key in (b"a", b"n", b"lo", b"none")]
            assert wire.pipeline([head + keys[0] + keys[1], head + keys[2] + keys[3]], 2)[1] == b"*2\r\n$3\r\nabc\r\n$-1\r\n"
            assert wire.pipeline([b"*1\r\n$4\r\nMGET\r\n"] * 2, 2) == [b"-ERR wrong number of arguments for 'mget' command\r\n"] * 2
        with Wire(filled.port) as wire:
            one = b"*2\r\n$4\r\nMGET\r\n"
            wire.raw(one + keys[0] + one + keys[0][:-1] + one + b"\n" + keys[1])
            *found, error = wire.reads(3)
            assert found == [b"*1\r\n$11\r\nhello world\r\n"] * 2
            assert error.startswith(b"-ERR unknown command"), "no key is made up from two requests"
        with Wire(filled.port) as wire:
            wire.raw(head + keys[0] + head + b"".join(keys[1:]))
            assert wire.rest() == b"-ERR Protocol error: expected '$', got '*'\r\n"

    def test_mgets_in_a_pipeline_count_by_their_members(self, redis: Process, directory: Path) -> None:
        with pannier(f"redis://127.0.0.1:{redis.port}", directory, "--admit-after", "1") as proxy, Redis(port=proxy.port) as client:
            client.mset({f"member:{n}": "v" for n in range(10)})
            keys = [f"member:{n}" for n in range(10)]
            client.mget(keys)
            for mixed in (False, True):
                before = client.info("sidecar")
                for _ in range(20):
                    with client.pipeline(transaction=False) as pipeline:
                        pipeline.mget(keys).mget(keys)
                        if mixed:
                            pipeline.get("member:1").mget("member:2", "member:3")
                        pipeline.execute()
                after = client.info("sidecar")
                assert after["pannier_tier_hits"] - before["pannier_tier_hits"] == 20 * (23 if mixed else 20)
                assert after["pannier_tier_misses"] == before["pannier_tier_misses"]
                assert after["pannier_total_commands_processed"] - before["pannier_total_commands_processed"] == 20 * (4 if mixed else 2) + 1
            hot = client.execute_command("SIDECAR", "HOTKEYS", 20)
            names = {(line if isinstance(line, dict) else dict(zip(line[::2], line[1::2], strict=True)))[b"key"] for line in hot}
            assert names == {key.encode() for key in keys}

    def test_byte_by_byte(self, redis: Process, filled: Process) -> None:
        commands: list[Command] = ["GET a", "HGETALL h", "MGET a none", "GET a"]
        data, expected = b"".join(map(encoded, commands)), settled(redis, 3, commands)
        with Wire(filled.port, 3) as wire:
            for _ in range(5):
                for at in range(len(data)):
                    wire.raw(data[at : at + 1])
                assert wire.reads(len(commands)) == expected

    def test_own_writes_within_a_pipeline(self, filled: Process) -> None:
        with Wire(filled.port) as wire:
            for _ in range(3):
                wire.line("GET n")
            for turn in range(20):
                commands: list[Command] = [("SET", "n", turn), "GET n", "INCR n", "GET n", "GET n", "DEL n", "GET n"]
                found = ask_all(wire, commands)
                assert found[1] == b"$%d\r\n%d\r\n" % (len(str(turn)), turn)
                assert found[3] == found[4] == b"$%d\r\n%d\r\n" % (len(str(turn + 1)), turn + 1)
                assert found[6] == b"$-1\r\n"

    def test_a_deep_pipeline_of_hits(self, filled: Process) -> None:
        with Wire(filled.port) as wire:
            for _ in range(3):
                wire.line("GET a")
            assert set(wire.pipeline([encoded("GET a")] * 20000, 20000)) == {b"$11\r\nhello world\r\n"}

    def test_a_client_that_half_closes_gets_its_hits(self, filled: Process) -> None:
        with Wire(filled.port) as wire:
            for _ in range(3):
                wire.line("GET a")
            wire.raw(encoded("GET a") * 3 + encoded("GET none") + encoded("GET a"))
            wire.sock.shutdown(socket.SHUT_WR)
            hello = b"$11\r\nhello world\r\n"
            assert wire.rest() == hello * 3 + b"$-1\r\n" + hello


def set_up_direct(redis: Process) -> None:
    with Wire(redis.port) as wire:
        ask_all(wire, ["FLUSHALL", *DATA])


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    """It does nothing while the context lasts."""
    process.signal(signal.SIGSTOP)
    until(lambda: " (stopped)" in Path(f"/proc/{process.pid}/status").read_text().replace("T (stopped)", " (stopped)"), "stopped")
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


LIMIT = 1 << 20


class TestLargeValues:
    @both_protocols
    @pytest.mark.parametrize("size, kept", [(LIMIT - 100, True), (LIMIT + 1, False), (2 * LIMIT, False)], ids=["below", "above", "twice"])
    def test_up_to_the_limit_they_are_kept(self, proxy: Process, protocol: int, size: int, kept: bool) -> None:
        set_up(proxy, [("SET", "big", b"v" * size)])
        expected = b"$%d\r\n%b\r\n" % (size, b"v" * size)
        with Wire(proxy.port, protocol) as wire:
            before = number(proxy, "tier_hits")
            assert all(wire.line("GET big") == expected for _ in range(5))
            assert wire.pipeline([encoded("GET big"), encoded("STRLEN big"), encoded("GET big")], 3) == [expected, b":%d\r\n" % size, expected]
            assert (number(proxy, "tier_hits") - before >= 3) is kept
            assert wire.line("MGET big none big") == b"*3\r\n" + expected + (b"_\r\n" if protocol == 3 else b"$-1\r\n") + expected
            assert wire.line("PING") == b"+PONG\r\n"

    @pytest.mark.parametrize("name", ["GET", "LRANGE", "HGETALL", "ZRANGE", "SMEMBERS"])
    @pytest.mark.parametrize("size", [1000, LIMIT // 2, 2 * LIMIT], ids=["1k", "512k", "2m"])
    def test_many_wait_for_one_fetch_at_once(self, redis: Process, proxy: Process, name: str, size: int) -> None:
        piece = b"_\r\n*2\r\n$-1\r\n,1\r\n%1\r\n#t\r\n" + ALL_BYTES
        value = (piece * (size // len(piece) + 1))[:size]
        values = [b"%d" % n + value[: size // 8] for n in range(8)]
        lines: dict[str, tuple[Command, Command]] = {
            "GET": (("SET", "big", value), "GET big"),
            "LRANGE": (("RPUSH", "big", *values), "LRANGE big 0 -1"),
            "HGETALL": (("HSET", "big", *values), "HGETALL big"),
            "ZRANGE": (("ZADD", "big", *(part for n, item in enumerate(values) for part in (n / 3, item))), "ZRANGE big 0 -1 WITHSCORES"),
            "SMEMBERS": (("SADD", "big", *values), "SMEMBERS big"),
        }
        write, read = lines[name]
        set_up(proxy, [write])
        expected = {protocol: settled(redis, protocol, [read])[0] for protocol in (2, 3)}
        with contextlib.ExitStack() as stack:
            wires = [(protocol, stack.enter_context(Wire(proxy.port, protocol))) for protocol in (2, 3, 3, 2, 2, 3)]
            for protocol, wire in wires[:1]:
                assert wire.ask(*arguments(read)) == expected[protocol]
            for _ in range(3):
                set_aside(proxy)
                before = number(proxy, "tier_coalesced")
                with stopped(redis):
                    for _, wire in wires:
                        wire.raw(encoded(read) + request("PING"))
                    until(lambda: number(proxy, "tier_coalesced") - before == len(wires) - 1, "all wait")  # noqa: B023
                for protocol, wire in wires:
                    assert wire.read() == expected[protocol]
                    assert wire.read() == b"+PONG\r\n"

    def test_who_leaves_while_waiting_harms_nobody(self, redis: Process, proxy: Process) -> None:
        for size in (10, 2 * LIMIT):
            set_up(proxy, [("SET", "big", b"v" * size)])
            with Wire(proxy.port, 3) as other, Wire(proxy.port, 2) as third:
                other.line("GET big")
                set_aside(proxy)
                before, misses = number(proxy, "tier_coalesced"), number(proxy, "tier_misses")
                leader = Wire(proxy.port)
                with stopped(redis):
                    leader.raw(encoded("GET big"))
                    until(lambda: number(proxy, "tier_misses") > misses, "the leader's fetch is under way")  # noqa: B023
                    other.raw(encoded("GET big"))
                    third.raw(encoded("GET big"))
                    until(lambda: number(proxy, "tier_coalesced") - before == 2, "others have joined")  # noqa: B023
                    clients = number(proxy, "connected_clients")
                    leader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it does not half-close, it is gone
                    leader.close()
                    until(lambda: number(proxy, "connected_clients") < clients, "the leader is gone")  # noqa: B023
                expected = b"$%d\r\n%b\r\n" % (size, b"v" * size)
                assert (other.read(), third.read()) == (expected, expected)
                assert other.line("GET big") == expected

    def test_a_slow_reader_of_hits_gets_them_all(self, proxy: Process) -> None:
        size, count = 500_000, 40
        set_up(proxy, [("SET", "big", b"v" * size)])
        with Wire(proxy.port) as wire:
            for _ in range(3):
                wire.line("GET big")
            with in_background(lambda: [wire.raw(encoded("GET big")) for _ in range(count)]):
                until(lambda: number(proxy, "connected_clients") > 0, "the sidecar still answers others")
                for _ in range(count):
                    assert len(wire.read()) == size + 11


def set_aside(proxy: Process) -> None:
    """Nothing in memory, but the doorkeeper remembers what was read."""
    with Wire(proxy.port) as wire:
        assert wire.line("SIDECAR FLUSH") == b"+OK\r\n"
