"""Every command family through the sidecar: the bytes are those that Redis sends itself.

Each script runs on one connection to Redis, then through the sidecar to the same, emptied Redis: command by
command, and all in one chunk.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.resp.commands import CommandTable
from tests.harness import Process, redis_server
from tests.integration.families import ALL_BYTES, ELSEWHERE, FAMILIES, NOT_EXERCISED, RESP_LIKE, Line
from tests.integration.wire import Argument, Wire, blank, bulk, in_background, request, until, words

MB = 1024 * 1024

both_protocols = pytest.mark.parametrize("protocol", [2, 3], ids=["RESP2", "RESP3"])


def split(line: Line) -> tuple[str, list[bytes]]:
    """A script's line: its mark and its arguments."""
    if isinstance(line, tuple):
        return "", [part if isinstance(part, bytes) else part.encode() for part in line]
    mark, _, rest = line.partition(" ")
    return (mark, words(rest)) if mark in ("~", "&", "?") else ("", words(line))


def comparable(mark: str, reply: bytes) -> object:
    """What of a reply must be the same both ways."""
    if reply[:1] == b"-":
        return reply
    if mark == "~":
        return blank(reply)
    if mark == "&":
        return sorted(reply.split(b"\r\n"))
    return reply[:1] if mark == "?" else reply


def prepare(redis: Process) -> None:
    """Bring Redis to where every script begins."""
    with Wire(redis.port) as wire:
        for line in ("FLUSHALL", "SCRIPT FLUSH", "FUNCTION FLUSH", "SLOWLOG RESET", "ACL LOG RESET", "CONFIG RESETSTAT"):
            wire.line(line)


def run(redis: Process, port: int, protocol: int, script: list[list[bytes]]) -> list[bytes]:
    prepare(redis)
    with Wire(port, protocol) as wire:
        return [wire.ask(*arguments) for arguments in script]


def run_at_once(redis: Process, port: int, protocol: int, script: list[list[bytes]]) -> list[bytes]:
    prepare(redis)
    with Wire(port, protocol) as wire:
        return wire.pipeline([request(*arguments) for arguments in script], len(script))


class TestEveryFamilyAnswersAsRedis:
    @both_protocols
    @pytest.mark.parametrize("family", FAMILIES)
    def test_byte_for_byte(self, redis: Process, proxy: Process, family: str, protocol: int) -> None:
        marks, script = zip(*(split(line) for line in FAMILIES[family]), strict=True)
        direct = run(redis, redis.port, protocol, list(script))
        for way in (run, run_at_once):
            through = way(redis, proxy.port, protocol, list(script))
            for mark, arguments, theirs, ours in zip(marks, script, direct, through, strict=True):
                assert comparable(mark, ours) == comparable(mark, theirs), (way.__name__, arguments)

    def test_every_command_of_the_table_is_exercised_or_listed(self) -> None:
        table = CommandTable.load()
        here = Path(__file__).parent
        sources = {name: (here / name).read_text() for name in set(ELSEWHERE.values())}
        seen = {name for lines in FAMILIES.values() for line in lines if (name := _name(table, split(line)[1]))}
        for name, file in ELSEWHERE.items():
            spelling = re.escape(name.upper()).replace(r"\|", r'(?:", "| )')
            assert re.search(rf"\b{spelling}\b", sources[file]), f"{file} does not send {name}"
        containers = {command.name for command in table if command.container}
        missing = {command.name for command in table} - seen - set(ELSEWHERE) - set(NOT_EXERCISED) - containers
        assert not missing
        assert not set(NOT_EXERCISED) & (seen | set(ELSEWHERE)), "listed though exercised"


def _name(table: CommandTable, arguments: list[bytes]) -> str:
    command = table.find(arguments[0], arguments[1] if len(arguments) > 1 else None)
    return command.name if command else ""


class TestScansAreWhole:
    SCANS = (("SCAN",), ("SSCAN", "set"), ("HSCAN", "hash"), ("ZSCAN", "zset"))

    @pytest.fixture
    def filled(self, redis: Process) -> Process:
        members = [b"member:%d" % n for n in range(3000)]
        with Wire(redis.port) as wire:
            wire.pipeline((request("SET", b"key:" + member, member) for member in members), len(members))
            wire.ask("SADD", "set", *members)
            wire.ask("HSET", "hash", *(part for member in members for part in (member, member)))
            wire.ask("ZADD", "zset", *(part for n, member in enumerate(members) for part in (n, member)))
            until(lambda: b"rehashing" not in wire.line("DEBUG HTSTATS 0"), "the keyspace has its final size")
        return redis

    @both_protocols
    @pytest.mark.parametrize("scan", SCANS, ids=[scan[0] for scan in SCANS])
    def test_full_iteration(self, filled: Process, proxy: Process, scan: tuple[str, ...], protocol: int) -> None:
        assert list(self.pages(proxy.port, scan, protocol)) == list(self.pages(filled.port, scan, protocol))

    def pages(self, port: int, scan: tuple[str, ...], protocol: int) -> Iterator[bytes]:
        with Wire(port, protocol) as wire:
            cursor = b"0"
            while True:
                page = wire.ask(*scan, cursor, "COUNT", 100)
                yield page
                cursor = page.split(b"\r\n", 3)[2]
                if cursor == b"0":
                    return


class TestDumpAndRestore:
    VALUES: tuple[tuple[bytes | str, ...], ...] = (
        ("SET", "k", ALL_BYTES), ("SET", "k", "1"), ("SET", "k", ""), ("RPUSH", "k", "a", RESP_LIKE), ("SADD", "k", "1", "2"), ("SADD", "k", "a"), ("HSET", "k", "f", ALL_BYTES),
        ("ZADD", "k", "1.5", "m"), ("XADD", "k", "1-1", "f", "v"), ("PFADD", "k", "a", "b"), ("SETRANGE", "k", "100000", "x"),
    )  # fmt: skip

    @both_protocols
    @pytest.mark.parametrize("command", ["RESTORE", "RESTORE-ASKING"])
    def test_a_value_goes_out_and_in_again(self, redis: Process, proxy: Process, command: str, protocol: int) -> None:
        with Wire(redis.port, protocol) as direct, Wire(proxy.port, protocol) as through:
            for make in self.VALUES:
                through.ask(*make)
                dump = direct.ask("DUMP", "k")
                assert through.ask("DUMP", "k") == dump
                assert through.ask(command, "k", 0, bulk(dump)) == b"-BUSYKEY Target key name already exists.\r\n"
                assert through.ask("DEL", "k") == b":1\r\n"
                assert through.ask(command, "k", 0, bulk(dump)) == b"+OK\r\n"
                assert direct.ask("DUMP", "k") == dump
                assert through.ask(command, "k", 0, bulk(dump)[:-1] + b"!") == direct.ask(command, "k", 0, bulk(dump)[:-1] + b"!")
                assert through.ask("DEL", "k") == b":1\r\n"

    def test_migrate(self, redis: Process, proxy: Process, redis_binary: str, directory: Path) -> None:
        with redis_server(redis_binary, directory) as other, Wire(proxy.port) as through, Wire(other.port) as there:
            through.line("MSET a 1 b 2 c 3")
            assert through.line(f"MIGRATE 127.0.0.1 {other.port} a 0 5000") == b"+OK\r\n"
            assert through.line(f"MIGRATE 127.0.0.1 {other.port} '' 0 5000 COPY KEYS b c") == b"+OK\r\n"
            assert through.line(f"MIGRATE 127.0.0.1 {other.port} a 0 5000") == b"+NOKEY\r\n"
            assert there.line("MGET a b c") == b"*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n"
            assert through.line("EXISTS a b c") == b":2\r\n"


class TestSavingInTheBackground:
    @pytest.mark.parametrize(("command", "flag"), [("BGSAVE", "rdb_bgsave_in_progress"), ("BGREWRITEAOF", "aof_rewrite_in_progress")])
    def test_the_reply_is_the_same(self, redis: Process, proxy: Process, command: str, flag: str) -> None:
        with Wire(redis.port) as direct, Wire(proxy.port) as through:
            def idle() -> bool:
                return f"{flag}:0".encode() in direct.line("INFO persistence")

            theirs = direct.ask(command)
            until(idle, "saved")
            assert through.ask(command) == theirs
            until(idle, "saved")


class TestSizes:
    @both_protocols
    @pytest.mark.parametrize("megabytes", [1, 64, pytest.param(512, marks=pytest.mark.skipif(not os.environ.get("LONG_TESTS"), reason="set LONG_TESTS=1 (it takes 2.5 GB)"))])
    def test_large_values(self, redis: Process, proxy: Process, megabytes: int, protocol: int) -> None:
        size = megabytes * MB
        block = random.Random(megabytes).randbytes(MB)
        value = block * megabytes
        with Wire(proxy.port, protocol, timeout=60) as through, Wire(redis.port, protocol, timeout=60) as direct:
            assert through.ask("SET", "k", value) == b"+OK\r\n"
            assert through.ask("STRLEN", "k") == b":%d\r\n" % size
            theirs = direct.ask("GET", "k")
            assert through.ask("GET", "k") == theirs
            assert theirs == b"$%d\r\n" % size + value + b"\r\n"
            assert through.ask("DEL", "k") == b":1\r\n"

    @both_protocols
    def test_large_values_in_every_place(self, redis: Process, proxy: Process, protocol: int) -> None:
        big = b"\r\n" + ALL_BYTES * 4096  # 1 MB
        script: list[list[Argument]] = [
            ["MSET", "a", big, "b", "1", "c", big], ["MGET", "a", "b", "c"], ["MULTI"], ["SET", "d", big], ["GET", "d"], ["GET", "b"], ["EXEC"], ["RPUSH", "l", big, "x", big], ["BLPOP", "l", "0"],
            ["EVAL", "return #ARGV[1]", "0", big], ["PUBLISH", "c", big], ["NOSUCH", big], ["SELECT", big], ["GET", big], ["SET", "a", big, "NX"], ["HSET", "h", "f", big, "odd"], ["ECHO", big], ["GET", "b"],
        ]  # fmt: skip
        direct = run(redis, redis.port, protocol, script)  # type: ignore[arg-type]
        assert run(redis, proxy.port, protocol, script) == direct  # type: ignore[arg-type]
        assert run_at_once(redis, proxy.port, protocol, script) == direct  # type: ignore[arg-type]


class TestPipelines:
    DEPTH = 100_000

    def commands(self, count: int) -> list[bytes]:
        chance = random.Random(7)
        makers: list[Callable[[int], tuple[Argument, ...]]] = [
            lambda n: ("SET", f"key:{n % 997}", n), lambda n: ("GET", f"key:{n % 997}"), lambda n: ("INCR", "counter"), lambda n: ("LPUSH", f"l{n % 7}", n), lambda n: ("LRANGE", f"l{n % 7}", 0, 3),
            lambda n: ("GET", "none"), lambda n: ("NOSUCH", n), lambda n: ("HSET", "h", n % 50, "x" * (n % 300)), lambda n: ("HGET", "h", n % 50), lambda n: ("incr", "l1"),
        ]  # fmt: skip
        return [request(*chance.choice(makers)(n)) for n in range(count)]

    def test_100000_commands_in_one_send(self, redis: Process, proxy: Process) -> None:
        requests = self.commands(self.DEPTH)
        with Wire(redis.port) as wire:
            theirs = wire.pipeline(requests, self.DEPTH)
        prepare(redis)
        with Wire(proxy.port) as wire:
            ours = wire.pipeline(requests, self.DEPTH)
        assert ours == theirs

    @pytest.mark.parametrize("seed", range(3))
    def test_dribbled_in_random_pieces(self, redis: Process, proxy: Process, seed: int) -> None:
        requests = [*self.commands(3000), request("SET", "big", ALL_BYTES * 2000), request("GET", "big")]
        data = b"".join(requests)
        with Wire(redis.port) as wire:
            theirs = wire.pipeline(requests, len(requests))
        prepare(redis)
        chance = random.Random(seed)

        def dribble() -> None:
            pos = 0
            while pos < len(data):
                size = chance.choice((1, 2, 7, 50, 700, 9000, 70000))
                wire.raw(data[pos : pos + size])
                pos += size

        with Wire(proxy.port) as wire, in_background(dribble):
            ours = wire.reads(len(requests))
        assert ours == theirs

    def test_byte_by_byte(self, redis: Process, proxy: Process) -> None:
        requests = [request("SET", "k", RESP_LIKE), request("GET", "k"), b"ECHO 'a b'\r\n", request("MULTI"), request("GET", "k"), request("EXEC"), request("SELECT", 1), request("GET", "k"), request("BLPOP", "k", "0.01")]  # fmt: skip
        with Wire(redis.port) as wire:
            theirs = wire.pipeline(requests, len(requests))
        prepare(redis)
        with Wire(proxy.port) as wire:
            for byte in b"".join(requests):
                wire.raw(bytes([byte]))
            assert wire.reads(len(requests)) == theirs


class TestInlineCommands:
    LINES: tuple[tuple[bytes, int], ...] = (
        (b"PING\r\n", 1), (b"PING\n", 1), (b"  PING  \r\n", 1), (b"SET a 'one two'\r\nGET a\r\n", 2), (b'SET a "x\\ny\\x00\\xff\\"q\\""\r\nGET a\r\n', 2), (b"SET a 'it\\'s'\r\nGET a\r\n", 2), (b'SET "" ""\r\nGET ""\r\n', 2),
        (b"\r\n\r\nPING\r\n", 1), (b"*1\r\n$4\r\nPING\r\nPING\r\n*1\r\n$4\r\nPING\r\n", 3), (b"set a b\r\nget a\r\nselect 1\r\nget a\r\nmulti\r\nget a\r\nexec\r\n", 7), (b"NOSUCH 'x y'\r\n", 1),
        (b"\tSET\ta\tb\r\nGET a\r\n", 2), (b"BLPOP none 0.01\r\nPING\r\n", 2), (b"RPUSH l a\r\nBLPOP l 0\r\nQUIT\r\n", 3),
    )  # fmt: skip

    @pytest.mark.parametrize(("data", "replies"), LINES, ids=range(len(LINES)))
    def test_as_redis(self, redis: Process, proxy: Process, data: bytes, replies: int) -> None:
        with Wire(redis.port) as wire:
            wire.raw(data)
            theirs = wire.reads(replies)
        prepare(redis)
        with Wire(proxy.port) as wire:
            wire.raw(data)
            assert wire.reads(replies) == theirs
