"""Two sidecars that only the eviction bus keeps true: no tracking, every write told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis, ResponseError

from tests.harness import Process, pannier, wait_until

OPTIONS = ["--tracking", "off", "--broadcast", "writes", "--admit-after", "1"]


@pytest.fixture
def two(redis: Process, directory: Path) -> Iterator[tuple[Redis, Redis]]:
    url = f"redis://127.0.0.1:{redis.port}"
    with pannier(url, directory, *OPTIONS) as one, pannier(url, directory, *OPTIONS) as other:
        clients = Redis(port=one.port), Redis(port=other.port)
        for client in clients:
            wait_until(lambda client=client: client.info("sidecar")["pannier_bus_status"] == "up")
        yield clients


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
