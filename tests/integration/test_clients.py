"""The clients people use work through the proxy as they do against Redis.

redis-py (blocking and asyncio, RESP2 and RESP3), coredis, ioredis under Node, redis-cli and redis-benchmark.
What a client writes is checked on Redis directly, and the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis import Redis, ResponseError, WatchError
from redis.asyncio import Redis as AsyncRedis
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from tests.harness import Process, wait_until
from tests.integration.wire import Wire

REDIS_CLI = Path(sys.prefix) / "bin" / "redis-cli"
REDIS_BENCHMARK = shutil.which("redis-benchmark")
TIMEOUT = 15.0
WATCHERS, ROUNDS = 4, 10
ADD = "local sum = redis.call('get', KEYS[1]) + ARGV[1] redis.call('set', KEYS[1], sum) return sum"
MANY = {f"many:{number}": f"value {number}" for number in range(1000)}


@contextlib.contextmanager
def connected(process: Process, **options: Any) -> Iterator[Redis]:
    """A redis-py to it that speaks text, closed with all its connections."""
    client = Redis(port=process.port, socket_timeout=TIMEOUT, decode_responses=True, **options)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def direct(redis: Process) -> Iterator[Redis]:
    """A client of Redis itself, past the proxy."""
    with connected(redis) as client:
        yield client


@pytest.fixture
def client(proxy: Process, protocol: int) -> Iterator[Redis]:
    with connected(proxy, protocol=protocol) as client:
        yield client


@pytest_asyncio.fixture
async def aclient(proxy: Process, protocol: int) -> AsyncIterator[AsyncRedis]:
    async with AsyncRedis(port=proxy.port, socket_timeout=TIMEOUT, decode_responses=True, protocol=protocol) as client:
        yield client


def blocked(direct: Redis) -> bool:
    """Whether one client of Redis waits in a blocking command."""
    return direct.info("clients")["blocked_clients"] == 1


async def until(condition: Callable[[], object]) -> None:
    """Poll until `condition` holds, while other tasks go on."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


def entries(reply: Any) -> list[tuple[str, list[Any]]]:
    """The streams of an XREAD reply, which redis-py hands out as lists with RESP2 and as a dict with RESP3."""
    if isinstance(reply, dict):
        return [(name, list(found[0])) for name, found in reply.items()]
    return [(name, list(found)) for name, found in reply]


class TestRedisPy:
    def test_commands_of_each_type_reach_redis(self, client: Redis, direct: Redis) -> None:
        assert client.set("text", "hé\r\n", ex=60) is True
        assert direct.get("text") == "hé\r\n"
        assert 0 < direct.ttl("text") <= 60
        assert client.hset("hash", mapping={"a": 1, "b": 2}) == 2
        assert client.hgetall("hash") == direct.hgetall("hash") == {"a": "1", "b": "2"}
        assert client.sadd("set", "x", "y") == 2
        assert client.smembers("set") == {"x", "y"}
        assert client.zadd("zset", {"one": 1, "half": 0.5}) == 2
        assert [tuple(pair) for pair in client.zrange("zset", 0, -1, withscores=True)] == [("half", 0.5), ("one", 1.0)]
        assert client.zscore("zset", "nobody") is None
        assert client.get("nobody") is None
        with pytest.raises(ResponseError, match=r"^WRONGTYPE Operation against a key"):
            client.incr("hash")

    def test_a_pipeline_keeps_order_and_places_errors(self, client: Redis) -> None:
        with client.pipeline(transaction=False) as pipe:
            pipe.set("a", "text").incr("a").rpush("l", 1, 2, 3)
            for number in range(200):
                pipe.echo(str(number))
            replies = pipe.execute(raise_on_error=False)
        assert replies[0] is True
        assert isinstance(replies[1], ResponseError)
        assert replies[2:] == [3, *map(str, range(200))]

    def test_a_transaction_is_carried_out_as_one(self, client: Redis, direct: Redis) -> None:
        with client.pipeline() as pipe:
            pipe.set("a", 1).incr("a").lpush("a", "x").get("a")
            replies = pipe.execute(raise_on_error=False)
        assert replies[:2] == [True, 2]
        assert str(replies[2]).endswith("WRONGTYPE Operation against a key holding the wrong kind of value")
        assert replies[3] == direct.get("a") == "2"

    def test_a_watched_key_that_changes_ends_the_transaction(self, client: Redis, direct: Redis) -> None:
        with client.pipeline() as pipe:
            pipe.watch("w")
            assert pipe.get("w") is None
            direct.set("w", "theirs")
            pipe.multi()
            pipe.set("w", "mine")
            with pytest.raises(WatchError):
                pipe.execute()
        assert direct.get("w") == "theirs"

    def test_contending_watch_loops_lose_no_update(self, client: Redis, direct: Redis) -> None:
        def add(pipe: Any) -> None:
            value = int(pipe.get("counter") or 0)
            pipe.multi()
            pipe.set("counter", value + 1)

        def work(_: int) -> None:
            for _ in range(ROUNDS):
                client.transaction(add, "counter")

        with ThreadPoolExecutor(WATCHERS) as threads:
            list(threads.map(work, range(WATCHERS), timeout=4 * TIMEOUT))
        assert direct.get("counter") == str(WATCHERS * ROUNDS)

    def test_pubsub_hears_channels_and_patterns(self, client: Redis, direct: Redis) -> None:
        before = direct.pubsub_numpat()  # the sidecar's own
        with client.pubsub() as pubsub:
            def message() -> tuple[str, str | None, str, Any]:
                found = pubsub.get_message(timeout=TIMEOUT)
                assert found is not None
                return found["type"], found["pattern"], found["channel"], found["data"]

            pubsub.subscribe("news")
            pubsub.psubscribe("n?ws*")
            assert message() == ("subscribe", None, "news", 1)
            assert message() == ("psubscribe", None, "n?ws*", 2)
            assert direct.publish("news", "from Redis") == 2
            assert client.publish("newspaper", "through the proxy") == 1
            assert {message(), message()} == {("message", None, "news", "from Redis"), ("pmessage", "n?ws*", "news", "from Redis")}
            assert message() == ("pmessage", "n?ws*", "newspaper", "through the proxy")
            pubsub.unsubscribe()
            pubsub.punsubscribe()
            assert message() == ("unsubscribe", None, "news", 1)
            assert message() == ("punsubscribe", None, "n?ws*", 0)
        assert direct.pubsub_numpat() == before

    def test_scripts_are_loaded_when_redis_lacks_them(self, client: Redis, direct: Redis) -> None:
        direct.set("n", 40)
        direct.script_flush()
        add = client.register_script(ADD)
        assert add(keys=["n"], args=[2]) == 42
        assert client.script_exists(add.sha) == [True]
        assert client.evalsha(add.sha, 1, "n", 8) == 50
        assert client.eval("return {1, 'two', {3, false}}", 0) == [1, "two", [3, None]]
        with pytest.raises(ResponseError, match="boom"):
            client.eval("return redis.error_reply('boom')", 0)

    def test_a_blocking_stream_read_wakes_up(self, client: Redis, direct: Redis) -> None:
        assert client.xgroup_create("s", "group", mkstream=True) is True
        with ThreadPoolExecutor(1) as threads:
            read = threads.submit(client.xread, {"s": "$"}, block=4000)
            wait_until(lambda: blocked(direct))
            first = direct.xadd("s", {"n": "1"})
            assert entries(read.result(TIMEOUT)) == [("s", [(first, {"n": "1"})])]
            assert entries(client.xreadgroup("group", "me", {"s": ">"})) == [("s", [(first, {"n": "1"})])]
            read = threads.submit(client.xreadgroup, "group", "me", {"s": ">"}, block=4000)
            wait_until(lambda: blocked(direct))
            second = client.xadd("s", {"n": "2"})
            assert entries(read.result(TIMEOUT)) == [("s", [(second, {"n": "2"})])]
        assert client.xack("s", "group", first, second) == 2
        assert not client.xread({"s": "$"}, block=10)

    def test_a_blocking_pop_wakes_up_and_holds_up_nobody(self, client: Redis, direct: Redis) -> None:
        with ThreadPoolExecutor(1) as threads:
            pop = threads.submit(client.blpop, ["jobs", "more"], timeout=4)
            wait_until(lambda: blocked(direct))
            assert client.ping() is True
            client.rpush("more", "job")
            assert list(pop.result(TIMEOUT)) == ["more", "job"]
            move = threads.submit(client.blmove, "jobs", "done", 4, "LEFT", "RIGHT")
            wait_until(lambda: blocked(direct))
            direct.rpush("jobs", "moved")
            assert move.result(TIMEOUT) == "moved"
        assert client.bzpopmin("scores", timeout=0.02) is None
        assert direct.lrange("done", 0, -1) == ["moved"]

    def test_scan_meets_every_key_once(self, client: Redis, direct: Redis) -> None:
        direct.mset(MANY)
        assert sorted(client.scan_iter(count=100)) == sorted(MANY)
        assert sorted(client.scan_iter("many:99?", count=500)) == [f"many:{number}" for number in range(990, 1000)]
        direct.hset("hash", mapping=MANY)
        assert dict(client.hscan_iter("hash", count=100)) == MANY

    def test_a_thousand_keys_at_once(self, client: Redis, direct: Redis) -> None:
        assert client.mset(MANY) is True
        assert direct.dbsize() == 1000
        assert client.mget([*MANY, "nobody"]) == [*MANY.values(), None]
        assert client.delete(*MANY) == 1000

    def test_a_client_of_another_database_is_apart(self, client: Redis, proxy: Process, protocol: int, direct: Redis) -> None:
        with connected(proxy, protocol=protocol, db=3, client_name="third") as third:
            assert third.set("k", "in 3") is True
            assert third.client_getname() == "third"
            assert third.get("k") == "in 3"
        assert client.get("k") is None
        assert "db3" in direct.info("keyspace")


class TestRedisPyCache:
    """redis-py's own cache relies on the invalidations that come through the proxy."""

    @pytest.fixture
    def caching(self, proxy: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
        # redis-py refuses servers before 7.4, although these, too, have what it uses.
        monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "6.0.0")
        with connected(proxy, protocol=3, cache_config=CacheConfig()) as client:
            yield client

    def test_it_stays_coherent_with_a_direct_writer(self, caching: Redis, direct: Redis) -> None:
        for number in range(50):
            direct.set("k", number)
            wait_until(lambda number=number: caching.get("k") == str(number))
        cache = caching.get_cache()
        assert cache is not None and cache.size == 1

    def test_it_answers_hits_itself_and_forgets_what_changes(self, caching: Redis, direct: Redis) -> None:
        direct.mset({"a": "1", "b": "2"})
        assert caching.mget("a", "b") == ["1", "2"]
        assert caching.get("a") == "1"
        direct.config_resetstat()
        assert [caching.get("a") for _ in range(20)] == ["1"] * 20
        assert "cmdstat_get" not in direct.info("commandstats")
        direct.delete("a")
        wait_until(lambda: caching.get("a") is None)
        wait_until(lambda: caching.mget("a", "b") == [None, "2"])

    def test_flushing_redis_empties_it(self, caching: Redis, direct: Redis) -> None:
        direct.mset(MANY)
        for key, value in MANY.items():
            assert caching.get(key) == value
        direct.flushall()
        wait_until(lambda: caching.get("many:0") is None)
        assert caching.get("many:999") is None

    def test_it_reads_its_own_writes(self, caching: Redis) -> None:
        for number in range(50):
            caching.set("k", number)
            wait_until(lambda number=number: caching.get("k") == str(number))


class TestRedirectedInvalidations:
    """As coredis and others have it: the connection named in REDIRECT has said HELLO 3 and nothing else."""

    @pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
    def test_reach_a_client_that_has_only_said_hello(self, direct: Redis, proxy: Process, busy: bool) -> None:
        with Wire(proxy.port, protocol=3) as listener, Wire(proxy.port, protocol=3) as tracker:
            number = listener.ask("CLIENT", "ID")[1:-2]
            if busy:
                listener.send("EVAL", "for _ = 1, 2000000 do end return 'done'", 0)
            assert tracker.ask("CLIENT", "TRACKING", "ON", "REDIRECT", number) == b"+OK\r\n"
            if busy:
                assert listener.read() == b"$4\r\ndone\r\n"
            for value in range(20):
                tracker.ask("GET", "k")
                direct.set("k", value)
                assert listener.read() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
                assert listener.ask("ECHO", value) == b"$%d\r\n%d\r\n" % (len(str(value)), value)
            assert listener.ask("RESET") == b"+RESET\r\n"
            assert listener.ask("GET", "k") == b"$2\r\n19\r\n"


class TestRedisPyAsyncio:
    async def test_a_pipeline_keeps_order_and_places_errors(self, aclient: AsyncRedis) -> None:
        async with aclient.pipeline(transaction=False) as pipe:
            pipe.set("a", "text").incr("a").rpush("l", 1, 2, 3)
            for number in range(200):
                pipe.echo(str(number))
            replies = await pipe.execute(raise_on_error=False)
        assert replies[0] is True
        assert isinstance(replies[1], ResponseError)
        assert replies[2:] == [3, *map(str, range(200))]

    async def test_many_tasks_get_their_own_replies(self, aclient: AsyncRedis) -> None:
        async def work(task: int) -> None:
            for number in range(20):
                key = f"{task}:{number}"
                await aclient.set(key, f"value {key}")
                assert await aclient.get(key) == f"value {key}"

        async with asyncio.timeout(4 * TIMEOUT), asyncio.TaskGroup() as tasks:
            for task in range(30):
                tasks.create_task(work(task))

    async def test_a_transaction_is_carried_out_as_one(self, aclient: AsyncRedis, direct: Redis) -> None:
        async with aclient.pipeline() as pipe:
            assert await pipe.set("a", 1).incr("a").hset("h", "f", "v").hgetall("h").execute() == [True, 2, 1, {"f": "v"}]
        assert direct.get("a") == "2"

    async def test_contending_watch_loops_lose_no_update(self, aclient: AsyncRedis, direct: Redis) -> None:
        lost = 0

        async def work() -> None:
            nonlocal lost
            async with aclient.pipeline() as pipe:
                done = 0
                while done < ROUNDS:
                    await pipe.watch("counter")
                    value = int(await pipe.get("counter") or 0)
                    pipe.multi()
                    pipe.set("counter", value + 1)
                    try:
                        await pipe.execute()
                    except WatchError:
                        lost += 1
                    else:
                        done += 1

        async with asyncio.timeout(4 * TIMEOUT), asyncio.TaskGroup() as tasks:
            for _ in range(WATCHERS):
                tasks.create_task(work())
        assert direct.get("counter") == str(WATCHERS * ROUNDS)
        assert lost, "there was no contention"

    async def test_pubsub_hears_channels_and_patterns(self, aclient: AsyncRedis, direct: Redis) -> None:
        async with aclient.pubsub() as pubsub:
            async def message() -> tuple[str, str | None, str, Any]:
                found = await pubsub.get_message(timeout=TIMEOUT)
                assert found is not None
                return found["type"], found["pattern"], found["channel"], found["data"]

            await pubsub.subscribe("news")
            await pubsub.psubscribe("n?ws*")
            assert await message() == ("subscribe", None, "news", 1)
            assert await message() == ("psubscribe", None, "n?ws*", 2)
            assert direct.publish("news", "from Redis") == 2
            assert await aclient.publish("newspaper", "through the proxy") == 1
            assert {await message(), await message()} == {("message", None, "news", "from Redis"), ("pmessage", "n?ws*", "news", "from Redis")}
            assert await message() == ("pmessage", "n?ws*", "newspaper", "through the proxy")
            await pubsub.unsubscribe()
            await pubsub.punsubscribe()
            assert await message() == ("unsubscribe", None, "news", 1)
            assert await message() == ("punsubscribe", None, "n?ws*", 0)

    async def test_scripts_are_loaded_when_redis_lacks_them(self, aclient: AsyncRedis, direct: Redis) -> None:
        direct.set("n", 40)
        direct.script_flush()
        add = aclient.register_script(ADD)
        assert await add(keys=["n"], args=[2]) == 42
        assert await aclient.script_exists(add.sha) == [True]

    async def test_a_blocking_stream_read_wakes_up(self, aclient: AsyncRedis, direct: Redis) -> None:
        read = asyncio.ensure_future(aclient.xread({"s": "$"}, block=4000))
        await until(lambda: blocked(direct))
        name = direct.xadd("s", {"n": "1"})
        assert entries(await asyncio.wait_for(read, TIMEOUT)) == [("s", [(name, {"n": "1"})])]

    async def test_a_blocking_pop_wakes_up_and_holds_up_nobody(self, aclient: AsyncRedis, direct: Redis) -> None:
        pop = asyncio.ensure_future(aclient.blpop(["jobs"], timeout=4))
        await until(lambda: blocked(direct))
        assert await aclient.ping() is True
        await aclient.rpush("jobs", "job")
        assert list(await asyncio.wait_for(pop, TIMEOUT)) == ["jobs", "job"]

    async def test_a_cancelled_blocking_pop_takes_nothing(self, aclient: AsyncRedis, direct: Redis) -> None:
        pop = asyncio.ensure_future(aclient.blpop(["jobs"], timeout=30))
        await until(lambda: blocked(direct))
        pop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pop
        await until(lambda: not blocked(direct))
        await aclient.rpush("jobs", "job")
        assert await aclient.lpop("jobs") == "job"

    async def test_scan_meets_every_key_once(self, aclient: AsyncRedis, direct: Redis) -> None:
        direct.mset(MANY)
        assert sorted([key async for key in aclient.scan_iter(count=100)]) == sorted(MANY)

    async def test_a_thousand_keys_at_once(self, aclient: AsyncRedis) -> None:
        assert await aclient.mset(MANY) is True
        assert await aclient.mget([*MANY, "nobody"]) == [*MANY.values(), None]


class TestCoredis:
    """coredis sends all commands of all tasks down shared connections, and speaks RESP3 only."""

    @pytest.fixture
    def coredis(self) -> Any:
        return pytest.importorskip("coredis", reason="coredis is not installed")

    @pytest.fixture
    def make(self, coredis: Any, proxy: Process) -> Callable[..., Any]:
        def make(**options: Any) -> Any:
            return coredis.Redis(port=proxy.port, decode_responses=True, stream_timeout=TIMEOUT, **options)

        return make

    async def test_commands_pipelines_and_transactions(self, make: Any, direct: Redis) -> None:
        async with asyncio.timeout(TIMEOUT), make() as client:
            assert await client.set("a", "1") is True
            assert direct.get("a") == "1"
            assert await client.hset("h", {"f": "v"}) == 1
            assert await client.hgetall("h") == {"f": "v"}
            async with client.pipeline(transaction=False) as pipe:
                replies = [pipe.incr("a") for _ in range(100)]
            assert [await reply for reply in replies] == list(range(2, 102))
            async with client.pipeline(transaction=True) as pipe:
                first, second = pipe.set("t", "x"), pipe.get("t")
            assert (await first, await second) == (True, "x")
            assert await client.mset(MANY) is True
            assert list(await client.mget(list(MANY))) == list(MANY.values())
            assert {key async for key in client.scan_iter("many:*", 100)} == set(MANY)

    async def test_contending_tasks_share_its_connections(self, make: Any, direct: Redis) -> None:
        async with asyncio.timeout(4 * TIMEOUT), make() as client:
            async def work(task: int) -> None:
                for number in range(20):
                    assert await client.echo(f"{task}:{number}") == f"{task}:{number}"

            async def add(pipe: Any) -> None:
                value = int(await client.get("counter") or 0)
                pipe.set("counter", str(value + 1))

            async with asyncio.TaskGroup() as tasks:
                for task in range(20):
                    tasks.create_task(work(task))
                for _ in range(WATCHERS):
                    tasks.create_task(client.transaction(add, "counter", watch_delay=0.005))
        assert direct.get("counter") == str(WATCHERS)

    async def test_pubsub_blocking_pops_and_streams(self, make: Any, direct: Redis) -> None:
        async with asyncio.timeout(TIMEOUT), make() as client:
            async with client.pubsub(channels=["news"], patterns=["n?ws*"], ignore_subscribe_messages=True) as pubsub:
                await until(lambda: direct.publish("news", "hello") == 2)
                found = {(message["type"], message["data"]) for message in [await anext(pubsub), await anext(pubsub)]}
                assert found == {("message", "hello"), ("pmessage", "hello")}
            for waiting, wake, reply in (
                (client.blpop(["jobs"], 4), lambda: direct.rpush("jobs", "job"), ["jobs", "job"]),
                (client.xread({"s": "$"}, block=4000), lambda: direct.xadd("s", {"n": "1"}, id="5-1"), {"s": [("5-1", {"n": "1"})]}),
            ):
                task = asyncio.ensure_future(awaited(waiting))
                await until(lambda: blocked(direct))
                wake()
                found = await task
                if isinstance(found, dict):
                    found = {name: [entry[:2] for entry in entries] for name, entries in found.items()}
                assert found == reply

    async def test_its_cache_stays_coherent_with_a_direct_writer(self, coredis: Any, make: Any, direct: Redis) -> None:
        from coredis.patterns.cache import LRUCache

        async with asyncio.timeout(2 * TIMEOUT), make(cache=LRUCache()) as client:
            for number in range(50):
                direct.set("k", number)
                while await client.get("k") != str(number):
                    await asyncio.sleep(0.001)


async def awaited(value: Awaitable[Any]) -> Any:
    return await value


def redis_cli(process: Process, *arguments: str, stdin: bytes | None = None) -> str:
    """What redis-cli prints, its two streams together."""
    if not REDIS_CLI.exists():
        pytest.skip(f"no redis-cli at {REDIS_CLI}")
    done = subprocess.run(
        [str(REDIS_CLI), "-p", str(process.port), *arguments],
        input=stdin or b"", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=4 * TIMEOUT, check=False,
    )  # fmt: skip
    return done.stdout.decode()


class TestRedisCli:
    @pytest.mark.parametrize(
        "line",
        [
            "PING", "SET k v", "GET nobody", "INCR n", "LRANGE nobody 0 -1", "GET", "NOSUCH command", "HELLO 9",
            "EVAL return{1,{'two',false}} 0", "CONFIG GET maxmemory-policy", "COMMAND COUNT", "ECHO {}",
        ],
    )  # fmt: skip
    def test_prints_what_it_prints_from_redis(self, redis: Process, proxy: Process, line: str) -> None:
        theirs = redis_cli(redis, *line.split())
        if line.startswith("INCR"):
            assert (theirs, redis_cli(proxy, *line.split())) == ("1\n", "2\n")
        else:
            assert redis_cli(proxy, *line.split()) == theirs

    def test_takes_lines_from_stdin(self, redis: Process, proxy: Process) -> None:
        lines = b"SET a 'two words'\nGET a\nSELECT 2\nGET a\nMULTI\nINCR n\nINCR n\nEXEC\nINCR n extra\nBLPOP nobody 0.01\n"
        printed = redis_cli(proxy, stdin=lines)
        assert printed.splitlines()[:8] == ["OK", "two words", "OK", "", "OK", "QUEUED", "QUEUED", "1"]
        with redis.connect() as sock:
            sock.sendall(b"FLUSHALL\r\n")
            assert sock.recv(16) == b"+OK\r\n"
        assert printed == redis_cli(redis, stdin=lines)

    def test_resp3(self, redis: Process, proxy: Process) -> None:
        lines = b"HSET h f v\nHGETALL h\nZADD z 1.5 m\nZSCORE z m\nSADD s x\nSMEMBERS s\nGET nobody\nDEBUG PROTOCOL true\nDEBUG PROTOCOL verbatim\n"
        printed = redis_cli(proxy, "-3", "--no-raw", stdin=lines)
        assert "1# \"f\" => \"v\"" in printed
        assert "(double) 1.5" in printed
        assert "1~ \"x\"" in printed
        redis_cli(redis, "FLUSHALL")
        assert printed == redis_cli(redis, "-3", "--no-raw", stdin=lines)

    def test_mass_insertion(self, direct: Redis, proxy: Process) -> None:
        commands = b"".join(b"*3\r\n$3\r\nSET\r\n$9\r\nkey:%05d\r\n$5\r\n%05d\r\n" % (number, number) for number in range(10_000))
        printed = redis_cli(proxy, "--pipe", stdin=commands)
        assert printed.splitlines()[-1] == "errors: 0, replies: 10000"
        assert direct.dbsize() == 10_000
        assert direct.mget("key:00000", "key:09999") == ["00000", "09999"]

    def test_mass_insertion_counts_errors(self, direct: Redis, proxy: Process) -> None:
        printed = redis_cli(proxy, "--pipe", stdin=b"SET a text\r\n" + b"INCR a\r\n" * 3 + b"SET b x\r\n")
        assert printed.splitlines()[-1] == "errors: 3, replies: 5"
        assert direct.get("b") == "x"

    def test_scan(self, direct: Redis, proxy: Process) -> None:
        direct.mset(MANY)
        assert sorted(redis_cli(proxy, "--scan", "--pattern", "many:*").split()) == sorted(MANY)

    def test_a_snapshot(self, direct: Redis, proxy: Process, directory: Path) -> None:
        """`--rdb` is replication: what Redis sends then is no RESP."""
        direct.set("key-in-the-snapshot", "v")
        delay = direct.config_get("repl-diskless-sync-delay")["repl-diskless-sync-delay"]
        direct.config_set("repl-diskless-sync-delay", 0)
        try:
            printed = redis_cli(proxy, "--rdb", str(directory / "dump.rdb"))
        finally:
            direct.config_set("repl-diskless-sync-delay", delay)
        snapshot = (directory / "dump.rdb").read_bytes()
        assert snapshot.startswith(b"REDIS00"), printed
        assert b"key-in-the-snapshot" in snapshot

    def test_listens_to_a_channel_until_it_is_ended(self, direct: Redis, proxy: Process, directory: Path) -> None:
        if not REDIS_CLI.exists():
            pytest.skip(f"no redis-cli at {REDIS_CLI}")
        log = directory / "heard"
        with log.open("wb") as out:
            listener = subprocess.Popen([str(REDIS_CLI), "-p", str(proxy.port), "SUBSCRIBE", "news"], stdin=subprocess.DEVNULL, stdout=out)
        try:
            wait_until(lambda: direct.publish("news", "hello") == 1)
            wait_until(lambda: log.read_text().endswith("message\nnews\nhello\n"))
        finally:
            listener.terminate()
            listener.wait(TIMEOUT)
        wait_until(lambda: direct.publish("news", "gone?") == 0)


@pytest.mark.skipif(REDIS_BENCHMARK is None, reason="no redis-benchmark on the PATH")
class TestRedisBenchmark:
    @staticmethod
    def run(process: Process) -> tuple[list[str], str]:
        """The names of the tests it reported, and all it printed."""
        assert REDIS_BENCHMARK
        done = subprocess.run(
            [REDIS_BENCHMARK, "-p", str(process.port), "-q", "-n", "2000", "-c", "20", "-P", "4"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, check=False,
        )  # fmt: skip
        printed = done.stdout.decode()
        assert done.returncode == 0, printed
        # Progress ends in \r, and only a result says "requests per second".
        lines = [line.strip() for line in printed.replace("\r", "\n").splitlines()]
        return [line.rpartition(": ")[0] for line in lines if "requests per second" in line], printed

    def test_its_whole_list_runs(self, redis: Process, proxy: Process) -> None:
        names, printed = self.run(proxy)
        assert "error" not in printed.lower()
        assert {"PING_INLINE", "SET", "GET", "SPOP", "LRANGE_600 (first 600 elements)", "MSET (10 keys)"} <= set(names)
        assert names == self.run(redis)[0]


IOREDIS = r"""
const Redis = require("ioredis");
const port = Number(process.argv[2]);
const clients = [];
function connect() {
  const client = new Redis({ port, host: "127.0.0.1", retryStrategy: null, maxRetriesPerRequest: 0, commandTimeout: 5000 });
  client.on("error", (error) => { console.error(error); process.exit(1); });
  clients.push(client);
  return client;
}
const failure = (promise) => promise.then(() => "no error", (error) => error.message);
async function until(condition) {
  while (!(await condition())) await new Promise((done) => setTimeout(done, 5));
}
setTimeout(() => { console.error("ioredis: timed out"); process.exit(1); }, 15000).unref();

async function main() {
  const redis = connect(), out = {};
  out.values = [
    await redis.set("text", "hé\r\n"), await redis.get("text"), await redis.get("nobody"), await redis.incr("n"),
    await redis.hset("h", { a: 1, b: "two" }), await redis.hgetall("h"), await redis.rpush("l", 1, 2), await redis.lrange("l", 0, -1),
    await redis.lrange("nobody", 0, -1), await redis.zadd("z", 1.5, "m"), await redis.zscore("z", "m"),
    await redis.eval("return {1, 'two', {3, false}}", 0), (await redis.getBuffer("text")).toString("hex"), await redis.mget("text", "nobody"),
  ];
  out.errors = [await failure(redis.incr("h")), await failure(redis.call("NOSUCH", "x")), await failure(redis.call("GET"))];
  const pipeline = redis.pipeline();
  for (let i = 0; i < 300; i++) pipeline.echo(String(i));
  pipeline.incr("h");
  const replies = await pipeline.exec();
  out.pipeline = [replies.length, replies.slice(0, 300).every(([error, value], i) => !error && value === String(i)), replies[300][0].message];
  out.multi = await redis.multi().set("t", "1").incr("t").get("t").exec();
  await redis.watch("t");
  await connect().set("t", "changed");
  out.watched = await redis.multi().set("t", "mine").exec();

  const subscriber = connect(), heard = [];
  subscriber.on("message", (channel, message) => heard.push(["message", channel, message]));
  subscriber.on("pmessage", (pattern, channel, message) => heard.push(["pmessage", pattern, channel, message]));
  out.subscribed = [await subscriber.subscribe("news"), await subscriber.psubscribe("n?ws*")];
  out.published = await redis.publish("news", "hello");
  await until(() => heard.length === 2);
  out.heard = heard.sort();
  out.unsubscribed = [await subscriber.unsubscribe("news"), await subscriber.punsubscribe("n?ws*")];
  out.afterwards = await subscriber.ping();

  const blocking = connect();
  const popped = blocking.blpop("jobs", 4);
  await until(async () => (await redis.info("clients")).includes("blocked_clients:1"));
  await redis.rpush("jobs", "job");
  out.popped = await popped;
  redis.defineCommand("twice", { numberOfKeys: 1, lua: "return redis.call('incrby', KEYS[1], 2 * ARGV[1])" });
  out.script = [await redis.twice("m", 4), await redis.twice("m", 4)];
  const keys = [];
  for await (const batch of redis.scanStream({ match: "*", count: 3 })) keys.push(...batch);
  out.scanned = [...new Set(keys)].sort();
  for (const client of clients) await client.quit();
  console.log(JSON.stringify(out));
}
main().catch((error) => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="session")
def ioredis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ioredis and the script in it."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on the PATH")
    directory = tmp_path_factory.mktemp("ioredis")
    command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", str(directory), "ioredis@5"]
    try:
        subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not install ioredis within 20 s")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm cannot install ioredis: {error.stderr.decode(errors='replace').strip()[-200:]}")
    (directory / "script.js").write_text(IOREDIS)
    return directory


class TestIoredis:
    def test_pipelines_transactions_pubsub_and_blocking_pops(self, ioredis: Path, proxy: Process, direct: Redis) -> None:
        done = subprocess.run(["node", "script.js", str(proxy.port)], cwd=ioredis, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr.decode()
        wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value"
        out = json.loads(done.stdout)
        unknown = out["errors"].pop(1)
        assert unknown.startswith("ERR unknown command"), unknown
        assert out == {
            "values": [
                "OK", "hé\r\n", None, 1, 2, {"a": "1", "b": "two"}, 2, ["1", "2"], [], 1, "1.5", [1, "two", [3, None]],
                "hé\r\n".encode().hex(), ["hé\r\n", None],
            ],
            "errors": [wrong_type, "ERR wrong number of arguments for 'get' command"],
            "pipeline": [301, True, wrong_type],
            "multi": [[None, "OK"], [None, 2], [None, "2"]],
            "watched": None,
            "subscribed": [1, 2],
            "published": 2,
            "heard": [["message", "news", "hello"], ["pmessage", "n?ws*", "news", "hello"]],
            "unsubscribed": [1, 0],
            "afterwards": "PONG",
            "popped": ["jobs", "job"],
            "script": [8, 16],
            "scanned": ["h", "l", "m", "n", "t", "text", "z"],
        }  # fmt: skip
        assert direct.get("t") == "changed"
