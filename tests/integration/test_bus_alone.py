"""Two sidecars that only the eviction bus keeps true: Redis does not track, every write is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis, ResponseError

from tests.harness import Process, pannier, wait_until
from tests.integration.test_tier_ladder import DEFAULT, HELLO, Shim
from tests.integration.wire import Wire

WAYS: dict[str, tuple[list[str], list[tuple[bytes, bytes]]]] = {
    "asked for": (["--tracking", "off", "--broadcast", "writes"], []),
    "refused": ([], [DEFAULT]),
    "no RESP3": ([], [HELLO]),
}
"""Why Redis does not track: the options, and what it does not understand."""


@pytest.fixture(params=WAYS)
def two(
    redis: Process, directory: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Redis, Redis]]:
    options, refused = WAYS[request.param]
    with contextlib.ExitStack() as stack:
        url = f"redis://127.0.0.1:{redis.port}"
        if refused:
            url = stack.enter_context(Shim(redis, *refused)).url
        clients = []
        for _ in range(2):
            proxy = stack.enter_context(pannier(url, directory, "--admit-after", "1", *options, bus=True))
            clients.append(Redis(port=proxy.port, protocol=2))
            wait_until(lambda: clients[-1].info("sidecar")["pannier_bus_status"] == "up")
        yield clients[0], clients[1]


def hits(client: Redis) -> int:
    return int(client.info("sidecar")["pannier_tier_hits"])


def kept(client: Redis, key: str) -> bool:
    """Whether reads of a key are answered from memory."""
    before = hits(client)
    client.get(key)
    client.get(key)
    return hits(client) > before


def transaction(client: Redis) -> None:
    pipeline = client.pipeline()
    pipeline.set("k", "new")
    pipeline.execute()


def script_in_a_transaction(client: Redis) -> None:
    pipeline = client.pipeline()
    pipeline.eval("redis.call('SET', 'k', 'new')", 0)
    pipeline.execute()


WRITES: dict[str, Callable[[Redis], object]] = {
    "SET": lambda client: client.set("k", "new"),
    "MSET": lambda client: client.mset({"other": 1, "k": "new"}),
    "RENAME": lambda client: client.set("from", "new") and client.rename("from", "k"),
    "a transaction": transaction,
    "a script": lambda client: client.eval("redis.call('SET', 'k', 'new')", 0),
    "a script in a transaction": script_in_a_transaction,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_through_one_is_seen_through_the_other(
    two: tuple[Redis, Redis], write: Callable[[Redis], object]
) -> None:
    one, other = two
    assert one.info("sidecar")["pannier_tracking"] == "bus"
    one.set("k", "old")
    wait_until(lambda: other.get("k") == b"old" and kept(other, "k"))
    assert one.get("k") == b"old"
    write(one)
    assert one.get("k") == b"new", "its own at once"
    wait_until(lambda: other.get("k") == b"new", 2)


def test_a_flush_is_seen(two: tuple[Redis, Redis]) -> None:
    one, other = two
    one.set("k", "old")
    wait_until(lambda: kept(other, "k"))
    one.flushall()
    wait_until(lambda: other.get("k") is None, 2)


def test_nothing_is_served_while_the_bus_is_not_heard(two: tuple[Redis, Redis], redis: Process) -> None:
    one, other = two
    one.set("k", "old")
    wait_until(lambda: other.info("sidecar")["pannier_bus_received"] == 1)
    wait_until(lambda: kept(other, "k"))
    direct = Redis(port=redis.port)
    direct.set("k", "past all Panniers")
    assert other.get("k") == b"old", "nobody told"
    buses = [client for client in direct.client_list() if client["name"] == "pannier-bus"]
    for client in buses:
        direct.client_kill_filter(_id=client["id"])
    wait_until(lambda: other.get("k") == b"past all Panniers", 2)
    wait_until(lambda: kept(other, "k"), 5)
    assert other.info("sidecar")["pannier_bus_subscriptions"] == 2


def test_what_a_client_says_of_itself_makes_nobody_forget(two: tuple[Redis, Redis]) -> None:
    """redis-py sends CLIENT SETINFO when it connects, which Redis before 7.2 does not know."""
    one, other = two
    wait_until(lambda: kept(other, "k"))
    published = one.info("sidecar")["pannier_bus_published"]
    one.execute_command("CLIENT", "SETNAME", "shop")
    with pytest.raises(ResponseError):
        one.execute_command("CLIENT", "NOSUCH", "a")
    with one.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("CLIENT", "NOSUCH", "b")
        pipeline.get("k")
        pipeline.execute(raise_on_error=False)
    one.set("other", "v")
    wait_until(lambda: one.info("sidecar")["pannier_bus_published"] > published)
    assert one.info("sidecar")["pannier_bus_published"] == published + 1
    assert kept(other, "k")


def test_it_says_so(two: tuple[Redis, Redis]) -> None:
    for client in two:
        facts = client.info("sidecar")
        assert facts["pannier_tracking"] == "bus"
        assert facts["pannier_bus_tells"] == "writes"
        wait_until(lambda client=client: b"fresh" in client.execute_command("SIDECAR", "HEALTH"))


def raw_hits(client: Redis) -> int:
    return int(client.execute_command("INFO", "sidecar").partition(b"tier_hits:")[2].split()[0])


READS: dict[str, tuple[object, ...]] = {
    "HGETALL": ("HGETALL", "h"), "ZRANGE": ("ZRANGE", "z", 0, -1, "WITHSCORES"), "nil": ("GET", "nosuch"),
    "SMEMBERS": ("SMEMBERS", "s"), "GET": ("GET", "k"), "MGET": ("MGET", "k", "nosuch"), "ZSCORE": ("ZSCORE", "z", "a"),
}  # fmt: skip


def test_replies_from_memory_are_redis_own(two: tuple[Redis, Redis], redis: Process) -> None:
    direct = Redis(port=redis.port, protocol=2)
    direct.set("k", "v")
    direct.hset("h", mapping={"f": "1", "g": "2"})
    direct.zadd("z", {"a": 1.5, "b": 2})
    direct.sadd("s", "m")
    wait_until(lambda: kept(two[0], "k"))  # the bus is up a moment before anything is kept by its word
    for client in (direct, *two):
        client.response_callbacks.clear()
    for name, read in READS.items():
        expected = direct.execute_command(*read)
        before = raw_hits(two[0])
        for _ in range(4):
            assert two[0].execute_command(*read) == expected, name
        assert raw_hits(two[0]) > before, name


class TestOneWithoutMemory:
    """`--tracking off` keeps nothing, and has others forget what they are to forget."""

    @pytest.fixture
    def peers(self, redis: Process, directory: Path) -> Iterator[tuple[Redis, Redis]]:
        """One that keeps nothing, and one that does."""
        url = f"redis://127.0.0.1:{redis.port}"
        with (
            pannier(url, directory, "--tracking", "off", bus=True) as off,
            pannier(url, directory, "--admit-after", "1", bus=True) as on,
        ):
            keeps = Redis(port=on.port)
            wait_until(lambda: keeps.info("sidecar")["pannier_bus_status"] == "up")
            yield Redis(port=off.port), keeps

    def test_says_so(self, peers: tuple[Redis, Redis]) -> None:
        facts = peers[0].info("sidecar")
        assert (facts["pannier_tracking"], facts["pannier_bus_status"]) == ("off", "publishing")
        assert (facts["pannier_bus_tells"], peers[1].info("sidecar")["pannier_bus_tells"]) == ("explicit",) * 2

    @pytest.mark.parametrize("words", [("INVALIDATE", "k"), ("INVALIDATE", "MATCH", "k*")], ids=" ".join)
    def test_invalidates_at_others(self, peers: tuple[Redis, Redis], words: tuple[str, ...]) -> None:
        without, keeps = peers
        keeps.set("k", "v")
        wait_until(lambda: kept(keeps, "k"))
        before = keeps.info("sidecar")["pannier_tier_entries"]
        assert without.execute_command("SIDECAR", *words) == 0
        wait_until(lambda: keeps.info("sidecar")["pannier_tier_entries"] < before, 2)

    @pytest.mark.parametrize("way", ["plain", "transaction", "subscriber"])
    def test_swaps_databases_for_others(self, peers: tuple[Redis, Redis], way: str) -> None:
        without, keeps = peers
        keeps.set("k", "v")
        wait_until(lambda: kept(keeps, "k"))
        if way == "transaction":
            with without.pipeline() as pipeline:
                pipeline.swapdb(0, 1)
                pipeline.execute()
        elif way == "subscriber":
            with Wire(without.connection_pool.connection_kwargs["port"], 3) as wire:
                wire.line("SUBSCRIBE c")
                assert wire.line("SWAPDB 0 1") == b"+OK\r\n"
                wait_until(lambda: keeps.get("k") is None, 2)
        else:
            without.swapdb(0, 1)
        wait_until(lambda: keeps.get("k") is None, 2)
