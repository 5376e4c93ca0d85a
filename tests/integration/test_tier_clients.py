"""Real clients over memory: what they read is right, their own caches included."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tests.harness import Process, wait_until
from tests.integration.test_tier_reads import number

TIMEOUT = 5.0


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def direct(redis: Process, proxy: Process) -> Iterator[Redis]:
    with Redis(port=redis.port, decode_responses=True, socket_timeout=TIMEOUT) as client:
        with Redis(port=proxy.port) as flusher:
            flusher.execute_command("SIDECAR FLUSH")
        yield client


class Model:
    """What one client's writes and reads of its own keys must amount to."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.prefix = f"client{seed}:"
        self.strings: dict[str, str] = {}
        self.hashes: dict[str, dict[str, str]] = {}

    def step(self) -> tuple[str, tuple[Any, ...], Any]:
        """A method of redis-py, its arguments, and what it has to return (None: nil, ...: anything)."""
        rng = self.rng
        key, field, value = self.prefix + str(rng.randrange(5)), f"f{rng.randrange(3)}", str(rng.randrange(1000))
        kind = rng.choice(["get"] * 6 + ["mget", "mget", "hget", "hget", "hgetall", "hgetall", "exists", "strlen", "set", "hset", "delete", "append", "getdel"])
        hash_key = "h" + key
        if kind == "get":
            return "get", (key,), self.strings.get(key)
        if kind == "mget":
            keys = [self.prefix + str(n) for n in range(5)]
            return "mget", (keys,), [self.strings.get(name) for name in keys]
        if kind == "hget":
            return "hget", (hash_key, field), self.hashes.get(hash_key, {}).get(field)
        if kind == "hgetall":
            return "hgetall", (hash_key,), dict(self.hashes.get(hash_key, {}))
        if kind == "exists":
            return "exists", (key, key), 2 * (key in self.strings)
        if kind == "strlen":
            return "strlen", (key,), len(self.strings.get(key, ""))
        if kind == "set":
            self.strings[key] = value
            return "set", (key, value), True
        if kind == "hset":
            self.hashes.setdefault(hash_key, {})[field] = value
            return "hset", (hash_key, field, value), ...
        if kind == "append":
            self.strings[key] = self.strings.get(key, "") + value
            return "append", (key, value), len(self.strings[key])
        found = self.strings.pop(key, None)
        return ("delete", (key,), int(found is not None)) if kind == "delete" else ("getdel", (key,), found)


class TestRedisPy:
    def test_sync(self, proxy: Process, direct: Redis, protocol: int) -> None:
        errors: list[Any] = []
        before = number(proxy, "tier_hits")

        def work(seed: int) -> None:
            model = Model(seed)
            with Redis(port=proxy.port, protocol=protocol, decode_responses=True, socket_timeout=TIMEOUT) as client:
                for _ in range(300):
                    name, arguments, expected = model.step()
                    got = getattr(client, name)(*arguments)
                    if expected is not ... and got != expected:
                        errors.append((name, arguments, got, expected))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert errors == []
        assert number(proxy, "tier_hits") > before

    async def test_asyncio(self, proxy: Process, direct: Redis, protocol: int) -> None:
        before = number(proxy, "tier_hits")

        async def work(seed: int) -> None:
            model = Model(seed)
            async with AsyncRedis(port=proxy.port, protocol=protocol, decode_responses=True, socket_timeout=TIMEOUT) as client:
                for _ in range(200):
                    steps = [model.step() for _ in range(model.rng.choice([1, 1, 1, 5]))]
                    async with client.pipeline(transaction=model.rng.random() < 0.2) as pipe:
                        for name, arguments, _ in steps:
                            getattr(pipe, name)(*arguments)
                        replies = await pipe.execute()
                    for (name, arguments, expected), got in zip(steps, replies, strict=True):
                        assert expected is ... or got == expected, (name, arguments)

        await asyncio.gather(*(work(seed) for seed in range(4)))
        assert number(proxy, "tier_hits") > before

    def test_soon_sees_what_others_write(self, proxy: Process, direct: Redis, protocol: int) -> None:
        with Redis(port=proxy.port, protocol=protocol, decode_responses=True, socket_timeout=TIMEOUT) as client:
            for turn in range(50):
                direct.set("k", turn)
                direct.hset("h", "f", turn)
                wait_until(lambda turn=turn: client.get("k") == str(turn) and client.hgetall("h") == {"f": str(turn)}, 2.0)
                assert [client.get("k") for _ in range(3)] == [str(turn)] * 3


class TestTheirOwnCaches:
    def test_redis_py(self, proxy: Process, direct: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = pytest.importorskip("redis.cache", reason="this redis-py has no cache")
        from redis.connection import CacheProxyConnection

        monkeypatch.setattr(CacheProxyConnection, "MIN_ALLOWED_VERSION", "6.0.0")  # they have what it uses
        with (
            Redis(port=proxy.port, protocol=3, decode_responses=True, socket_timeout=TIMEOUT, cache_config=cache.CacheConfig()) as caching,
            Redis(port=proxy.port, protocol=2, decode_responses=True, socket_timeout=TIMEOUT) as plain,
        ):
            for turn in range(50):
                for writer, value in ((direct, f"direct {turn}"), (plain, f"plain {turn}"), (caching, f"own {turn}")):
                    writer.set("k", value)
                    writer.hset("h", "f", value)
                    if writer is not direct:
                        assert plain.get("k") == value
                    for reader in (caching, plain):
                        wait_until(lambda reader=reader, value=value: reader.get("k") == value and reader.hget("h", "f") == value, 2.0)
            assert caching.get_cache().size >= 1
            direct.flushall()
            wait_until(lambda: caching.get("k") is None and plain.get("k") is None, 2.0)

    async def test_coredis(self, proxy: Process, direct: Redis) -> None:
        coredis = pytest.importorskip("coredis", reason="coredis is not installed")
        from coredis.patterns.cache import LRUCache

        async with coredis.Redis(port=proxy.port, decode_responses=True, stream_timeout=TIMEOUT, cache=LRUCache(max_keys=100)) as caching, coredis.Redis(port=proxy.port, decode_responses=True) as plain:
            for turn in range(30):
                for value in (f"direct {turn}", f"plain {turn}"):
                    if value.startswith("direct"):
                        direct.set("k", value)
                    else:
                        await plain.set("k", value)
                        assert await plain.get("k") == value
                    async with asyncio.timeout(2):
                        while await caching.get("k") != value or await plain.get("k") != value:
                            await asyncio.sleep(0.002)
