"""Every reply goes to whom it belongs, whatever else goes on; nobody waits for another's slow command.

Clients ask for values that name their key, in random pipelines, and vanish at random moments.
`LONG_TESTS=seconds` makes them do so for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator

import hiredis
import pytest
import redis.asyncio

from tests.harness import Process, pannier, redis_server

SECONDS = max(4.0, float(os.environ.get("LONG_TESTS") or 0))
CLIENTS = 40
KEYS = 50
SCRIPT = b"return {KEYS[1], redis.call('get', KEYS[1]), ARGV[1]}"
Question = tuple[bytes, list[object]]


@pytest.fixture(scope="module")
def upstream(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def proxied(upstream: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with pannier(f"redis://127.0.0.1:{upstream.port}", tmp_path_factory.mktemp("pannier"), "--reconnect-min", "5ms", "--reconnect-max", "20ms") as proxy:
        with proxy.connect() as sock:
            requests = []
            for number in range(KEYS):
                requests.append(request(b"SET", b"k%d" % number, value(number)))
                requests.append(request(b"HSET", b"h%d" % number, *(b"h%d-%d" % (number, part) for part in range(6))))
                requests.append(request(b"RPUSH", b"l%d" % number, *(b"l%d-%d" % (number, part) for part in range(5))))
            sock.sendall(b"".join(requests))
            reader = hiredis.Reader()
            replies: list[object] = []
            while len(replies) < len(requests):
                reader.feed(sock.recv(1 << 16))
                while (reply := reader.gets()) is not False:
                    replies.append(reply)
            assert not any(isinstance(reply, Exception) for reply in replies)
        yield proxy


def value(number: int) -> bytes:
    """A value that names its key; every tenth is long enough to arrive in pieces."""
    return b"value-of-k%d." % number * (20_000 if number % 10 == 0 else 1)


def request(*arguments: bytes) -> bytes:
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)


async def vanish(writer: asyncio.StreamWriter) -> None:
    """Close a connection without a word."""
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


class Client:
    """Asks random questions on connections it drops at random; remembers what it asked and checks each reply."""

    def __init__(self, port: int, name: int, killed: str) -> None:
        self.port = port
        self.name = name
        self.killed = killed
        """What is being killed meanwhile: with "links", errors that say so are right answers."""
        self.chance = random.Random(name)
        self.answers = 0
        self.serial = 0

    async def run(self, going: Callable[[], bool]) -> None:
        while going():
            with contextlib.suppress(ConnectionError):
                await self._connection(going)

    async def _connection(self, going: Callable[[], bool]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        parser = hiredis.Reader()
        try:
            while going():
                questions = [self._question() for _ in range(self.chance.choice([1, 1, 2, 7, 30]))]
                data = b"".join(question for question, _ in questions)
                fate = self.chance.random()
                if fate < 0.05:
                    writer.write(data[: self.chance.randrange(len(data))])  # vanish in the middle of a request
                    return
                writer.write(data)
                if fate < 0.10:
                    await reader.read(self.chance.randrange(1, 20_000))  # vanish in the middle of a reply
                    return
                if fate < 0.15:
                    return
                for question, replies in questions:
                    for expected in replies:
                        if not await self._answered(reader, parser, question, expected):
                            return
        finally:
            await vanish(writer)

    async def _answered(self, reader: asyncio.StreamReader, parser: hiredis.Reader, question: bytes, expected: object) -> bool:
        while (reply := parser.gets()) is False:
            async with asyncio.timeout(20):
                data = await reader.read(1 << 16)
            if not data:
                assert self.killed, question
                return False
            parser.feed(data)
        if isinstance(reply, hiredis.ReplyError) and self.killed == "links":
            assert "pannier: upstream" in str(reply) or "the connection to upstream was lost" in str(reply)
        else:
            assert reply == expected, question
        self.answers += 1
        return True

    def _question(self) -> Question:
        number = self.chance.randrange(KEYS)
        self.serial += 1
        own = b"own-%d-%d" % (self.name, self.serial)
        kinds: list[tuple[bytes, object]] = [
            (request(b"GET", b"k%d" % number), value(number)),
            (request(b"GET", b"k%d" % number), value(number)),
            (request(b"GET", b"nil%d" % number), None),
            (request(b"SET", b"k%d" % number, value(number)), b"OK"),
            (request(b"MGET", b"k%d" % number, b"nil", b"k1"), [value(number), None, value(1)]),
            (request(b"HGETALL", b"h%d" % number), [b"h%d-%d" % (number, part) for part in range(6)]),
            (request(b"LRANGE", b"l%d" % number, b"0", b"-1"), [b"l%d-%d" % (number, part) for part in range(5)]),
            (request(b"EVAL", SCRIPT, b"1", b"k%d" % number, own), [b"k%d" % number, value(number), own]),
            (request(b"ECHO", own), own),
            (b"ECHO %b\r\n" % own, own),
            (request(b"BLPOP", b"empty-%b" % own, b"0.01"), None),
        ]
        if self.chance.random() < 0.05:
            return request(b"MULTI") + request(b"ECHO", own) + request(b"EXEC"), [b"OK", b"QUEUED", [own]]
        question, expected = self.chance.choice(kinds)
        return question, [expected]


@pytest.mark.alone
@pytest.mark.parametrize("killed", ["", "clients", "links"])
class TestEveryReplyBelongsToItsRequest:
    async def test_under_random_disconnects(self, upstream: Process, proxied: Process, killed: str) -> None:
        clients = [Client(proxied.port, number, killed) for number in range(CLIENTS)]
        until = time.monotonic() + SECONDS / 2

        def enough() -> bool:
            return sum(client.answers for client in clients) > 500 * SECONDS / 2

        def going() -> bool:
            """Longer than that on a machine so busy that little has been tried."""
            left = until - time.monotonic()
            return left > 0 or (left > -30 and not enough())

        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run(going))
            if killed:
                group.create_task(kill_all(upstream.port if killed == "links" else proxied.port, going))
        assert enough()
        assert "internal error" not in proxied.output


async def kill_all(port: int, going: Callable[[], bool]) -> None:
    """Kill all connections of a server, again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while going():
        writer.write(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
        assert (await reader.readline())[:1] == b":"
        await asyncio.sleep(0.05)
    await vanish(writer)


class TestCancelledCallsHarmNobody:
    async def test_redis_py(self, proxied: Process) -> None:
        pool = redis.asyncio.Redis(port=proxied.port, max_connections=20)
        until = time.monotonic() + SECONDS / 4
        chance = random.Random(1)
        answers = 0

        async def ask(number: int) -> None:
            nonlocal answers
            assert await pool.get(f"k{number}") == value(number)
            answers += 1

        while time.monotonic() < until:
            tasks = [asyncio.create_task(ask(chance.randrange(KEYS))) for _ in range(15)]
            await asyncio.sleep(chance.random() * 0.005)
            for task in tasks:
                if chance.random() < 0.3:
                    task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError)
        await pool.aclose()
        assert answers > 100


@contextlib.asynccontextmanager
async def connected(process: Process) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    try:
        yield reader, writer
    finally:
        await vanish(writer)


class TestNobodyWaitsForAnother:
    @pytest.mark.parametrize(
        "command",
        [b"BLPOP never 0", b"BLMOVE never other LEFT LEFT 0", b"XREAD BLOCK 0 STREAMS never $", b"WAIT 5 0",
         b"SUBSCRIBE never", b"MULTI", b"WATCH k1", b"MONITOR", b"CLIENT PAUSE 0", b"BZPOPMIN never 0"],
    )  # fmt: skip
    async def test_blocking_commands_and_lasting_state(self, proxied: Process, command: bytes) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                _, writer = await stack.enter_async_context(connected(proxied))
                writer.write(command + b"\r\n")
            reader, writer = await stack.enter_async_context(connected(proxied))
            for _ in range(50):
                began = time.monotonic()
                writer.write(b"GET k1\r\n")
                assert await reader.readuntil(b"\r\n" + value(1) + b"\r\n")
                assert time.monotonic() - began < 0.5

    async def test_slow_commands_delay_but_break_nothing(self, proxied: Process) -> None:
        """What stops Redis itself stops everybody, as without the sidecar; nobody's reply is lost or mixed up."""
        slow = [b"DEBUG SLEEP 0.3\r\n", b'EVAL "for i = 1, 20000000 do end return 1" 0\r\n']
        async with contextlib.AsyncExitStack() as stack:
            for number, command in enumerate(slow * 2):
                slow_reader, slow_writer = await stack.enter_async_context(connected(proxied))
                slow_writer.write(command)
                others = [await stack.enter_async_context(connected(proxied)) for _ in range(10)]
                for place, (_, writer) in enumerate(others):
                    writer.write(b"ECHO %d-%d\r\nGET k2\r\n" % (number, place))
                for place, (reader, _) in enumerate(others):
                    assert await reader.readuntil(b"%d-%d\r\n" % (number, place)) == b"$3\r\n%d-%d\r\n" % (number, place)
                    assert await reader.readuntil(value(2) + b"\r\n")
                assert (await slow_reader.readline())[:1] in b"+:"

    async def test_a_lua_script_that_never_ends_is_killed_from_another_client(self, proxied: Process, upstream: Process) -> None:
        async with connected(proxied) as (slow_reader, slow_writer), connected(proxied) as (reader, writer):
            writer.write(b"CONFIG SET lua-time-limit 50\r\nMULTI\r\n")
            assert await reader.readline() == b"+OK\r\n"
            assert await reader.readline() == b"+OK\r\n"
            slow_writer.write(b'EVAL "while true do end" 0\r\n')
            async with asyncio.timeout(10), connected(upstream) as (direct_reader, direct_writer):
                while True:
                    direct_writer.write(b"SCRIPT KILL\r\n")
                    if await direct_reader.readline() == b"+OK\r\n":
                        break
            assert (await slow_reader.readline()).startswith(b"-ERR ")
            writer.write(b"ECHO fine\r\nEXEC\r\n")
            assert await reader.readline() == b"+QUEUED\r\n"
            assert await reader.readuntil(b"fine\r\n") == b"*1\r\n$4\r\nfine\r\n"
