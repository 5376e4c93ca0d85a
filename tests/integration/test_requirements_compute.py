"""Computing and forgetting, end to end, as the caching layers that Pannier replaces did it (docs/leases.md).

C2: get_or_set: compute on a miss, once, even when many ask at the same time.
B4: memoising functions, with TTL, key prefix, optional caching of "no result".
E3: get_or_compute; invalidate a workspace by several patterns at once, or an agent by one; the count is returned.

An application with two processes, each with its own Pannier; redis-py, and what docs/leases.md shows.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from tests.harness import ROOT, Process, pannier, wait_until

EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "leases.md").read_text("utf-8"), re.DOTALL)
assert EXAMPLE is not None
DOCUMENTED: dict[str, Any] = {}
exec(EXAMPLE.group(1), DOCUMENTED)
get_or_compute: Callable[..., bytes | None] = DOCUMENTED["get_or_compute"]


@pytest.fixture(scope="module")
def shared_pods(shared_redis: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    url, directory = f"redis://127.0.0.1:{shared_redis.port}", tmp_path_factory.mktemp("pods")
    with pannier(url, directory, "--admit-after", "1", bus=True) as one, pannier(url, directory, "--admit-after", "1", bus=True) as other:
        yield one, other


@pytest.fixture
def pods(redis: Process, shared_pods: tuple[Process, Process]) -> Iterator[tuple[Redis, Redis]]:
    # With clients of both protocols each reply would be kept, and counted, for both.
    clients = Redis(port=shared_pods[0].port, protocol=2), Redis(port=shared_pods[1].port, protocol=2)
    for client in clients:
        client.execute_command("SIDECAR", "FLUSH")
        wait_until(lambda client=client: client.info("sidecar")["pannier_bus_status"] == "up")  # type: ignore[misc]
    yield clients
    for client in clients:
        client.close()


def memoised(client: Redis, prefix: str, ttl: int, none_ttl: int | None = None) -> Callable[..., Any]:
    """A decorator: a function's results are kept in Redis under its arguments.

    `none_ttl`: seconds for which None is kept; None: it is not.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: object) -> Any:
            def compute() -> bytes | None:
                result = function(*arguments)
                return None if result is None else json.dumps(result).encode()

            key = f"{prefix}:{':'.join(map(str, arguments))}"
            value = get_or_compute(client, key, ttl, compute)
            if value is None and none_ttl is None:
                client.delete(key)
            elif value is None:
                client.expire(key, none_ttl)
            return None if value is None else json.loads(value)

        return call

    return decorate


class TestC2ComputeOnAMissOnce:
    def test_when_many_ask_at_the_same_time_in_two_processes(self, pods: tuple[Redis, Redis]) -> None:
        loads: list[int] = []

        def load() -> bytes:
            loads.append(1)
            time.sleep(0.2)
            return b'{"name": "Ada"}'

        def ask(number: int) -> bytes | None:
            return get_or_compute(pods[number % 2], "user:1:profile", 3600, load)

        with ThreadPoolExecutor(40) as threads:
            assert set(threads.map(ask, range(40))) == {b'{"name": "Ada"}'}
        assert len(loads) == 1
        assert 3590 < pods[0].ttl("user:1:profile") <= 3600

    def test_again_after_an_update_dropped_it(self, pods: tuple[Redis, Redis]) -> None:
        versions = iter([b"1", b"2"])
        one, other = pods
        assert get_or_compute(one, "user:1", 60, lambda: next(versions)) == b"1"
        assert get_or_compute(other, "user:1", 60, lambda: next(versions)) == b"1"
        one.delete("user:1")
        assert get_or_compute(one, "user:1", 60, lambda: next(versions)) == b"2"
        wait_until(lambda: other.get("user:1") == b"2")

    def test_a_hit_comes_from_memory(self, pods: tuple[Redis, Redis]) -> None:
        one = pods[0]
        get_or_compute(one, "user:1", 60, lambda: b"v")
        wait_until(lambda: one.get("user:1") == b"v")
        before = one.info("sidecar")["pannier_tier_hits"]
        for _ in range(10):
            assert get_or_compute(one, "user:1", 60, lambda: b"other") == b"v"
        assert one.info("sidecar")["pannier_tier_hits"] >= before + 9

    def test_who_comes_while_somebody_fails_is_served_all_the_same(self, pods: tuple[Redis, Redis]) -> None:
        computing, fail = threading.Event(), threading.Event()

        def broken() -> bytes:
            computing.set()
            fail.wait(30)
            raise ConnectionError("the database is away")

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(get_or_compute, pods[0], "user:1", 60, broken)
            computing.wait(30)
            second = threads.submit(get_or_compute, pods[1], "user:1", 60, lambda: b"v")
            fail.set()
            assert isinstance(first.exception(30), ConnectionError)
            assert second.result(30) == b"v"


class TestB4Memoising:
    def test_by_prefix_and_arguments(self, pods: tuple[Redis, Redis]) -> None:
        calls: list[tuple[int, str]] = []

        def permissions(user: int, realm: str) -> list[str]:
            calls.append((user, realm))
            return [f"{realm}:read"]

        one, other = (memoised(client, "permissions", 300)(permissions) for client in pods)
        assert one(1, "a") == other(1, "a") == one(1, "a") == ["a:read"]
        assert one(1, "b") == ["b:read"]
        assert calls == [(1, "a"), (1, "b")]
        assert 290 < pods[0].ttl("permissions:1:a") <= 300

    def test_no_result_is_kept_for_a_shorter_time_if_wanted(self, pods: tuple[Redis, Redis]) -> None:
        calls: list[int] = []
        one, other = (memoised(client, "find", 300, none_ttl=30)(calls.append) for client in pods)
        assert one(1) is other(1) is one(1) is None
        assert calls == [1]
        assert 0 < pods[0].ttl("find:1") <= 30

    def test_and_not_otherwise(self, pods: tuple[Redis, Redis]) -> None:
        calls: list[int] = []
        one = memoised(pods[0], "find", 300)(calls.append)
        assert one(1) is one(1) is None
        assert calls == [1, 1]

    def test_an_empty_result_is_one(self, pods: tuple[Redis, Redis]) -> None:
        calls: list[int] = []

        def empty(number: int) -> list[int]:
            calls.append(number)
            return []

        one, other = (memoised(client, "empty", 300)(empty) for client in pods)
        assert one(1) == other(1) == []
        assert calls == [1]


class TestB5ByPattern:
    """After a mutation, what was derived from it goes by wildcard; keys are found by pattern."""

    LISTINGS = ("agent_service:list:page:1", "agent_service:list:page:2", "agent_service:list:active")
    OTHER = "agent_service:agent:7"

    def filled(self, pods: tuple[Redis, Redis]) -> None:
        for key in (*self.LISTINGS, self.OTHER):
            pods[0].set(key, "old", ex=600)
        for pod in pods:
            for key in (*self.LISTINGS, self.OTHER):
                wait_until(lambda pod=pod, key=key: from_memory(pod, key))  # type: ignore[misc]

    def test_delete_by_pattern_leaves_redis_and_every_memory(self, pods: tuple[Redis, Redis]) -> None:
        self.filled(pods)
        assert pods[0].execute_command("SIDECAR", "DELETE", "MATCH", "agent_service:list:*") == 3
        for pod in pods:
            for key in self.LISTINGS:
                wait_until(lambda pod=pod, key=key: pod.get(key) is None)  # type: ignore[misc]
            assert pod.get(self.OTHER) == b"old"

    def test_invalidate_by_pattern_has_everybody_read_anew(self, pods: tuple[Redis, Redis]) -> None:
        self.filled(pods)
        one, other = pods
        assert one.execute_command("SIDECAR", "INVALIDATE", "MATCH", "agent_service:list:*") == 3
        wait_until(lambda: not from_memory(other, self.LISTINGS[0], once=True))
        assert [pod.get(self.LISTINGS[0]) for pod in pods] == [b"old", b"old"], "Redis still has it"
        assert from_memory(other, self.OTHER)

    def test_scan_keys(self, pods: tuple[Redis, Redis]) -> None:
        self.filled(pods)
        for pod in pods:
            assert sorted(pod.scan_iter(match="agent_service:list:*", count=2)) == sorted(key.encode() for key in self.LISTINGS)


def from_memory(pod: Redis, key: str, once: bool = False) -> bool:
    """Whether a read is answered from memory; unless `once`, after it has been read before."""
    if not once:
        pod.get(key)
    before = pod.info("sidecar")["pannier_tier_hits"]
    pod.get(key)
    return bool(pod.info("sidecar")["pannier_tier_hits"] > before)


class TestE3Forgetting:
    KEYS = (
        "workspace:7:members", "workspace:7:metrics:day", "report:7:1", "report:7:2", "agent:3:stats", "agent:3:runs",
        "workspace:8:members", "report:8:1", "agent:4:stats",
    )  # fmt: skip

    def fill(self, pods: tuple[Redis, Redis]) -> None:
        for client in pods:
            for key in self.KEYS:
                assert get_or_compute(client, key, 60, lambda: b"v") == b"v"
                wait_until(lambda client=client, key=key: from_memory(client, key, once=True))  # type: ignore[misc]

    def test_a_workspace_by_several_patterns_at_once(self, pods: tuple[Redis, Redis]) -> None:
        """What memory keeps, at both; Redis keeps the values."""
        self.fill(pods)
        one, other = pods
        assert one.execute_command("SIDECAR", "INVALIDATE", "MATCH", "workspace:7:*", "report:7:*") == 4
        entries = len(self.KEYS) - 4
        assert one.info("sidecar")["pannier_tier_entries"] == entries
        wait_until(lambda: other.info("sidecar")["pannier_tier_entries"] == entries)
        assert one.exists(*self.KEYS) == len(self.KEYS)

    def test_an_agent_by_one_pattern_for_good(self, pods: tuple[Redis, Redis]) -> None:
        """In Redis, and so in everybody's memory."""
        self.fill(pods)
        one, other = pods
        assert one.execute_command("SIDECAR", "DELETE", "MATCH", "agent:3:*") == 2
        assert one.mget("agent:3:stats", "agent:3:runs", "agent:4:stats") == [None, None, b"v"]
        wait_until(lambda: other.mget("agent:3:stats", "agent:3:runs", "agent:4:stats") == [None, None, b"v"])
        assert get_or_compute(other, "agent:3:stats", 60, lambda: b"new") == b"new"

    def test_what_matches_nothing_counts_as_nothing(self, pods: tuple[Redis, Redis]) -> None:
        self.fill(pods)
        assert pods[0].execute_command("SIDECAR", "INVALIDATE", "MATCH", "nosuch:*") == 0
        assert pods[0].execute_command("SIDECAR", "DELETE", "MATCH", "nosuch:*") == 0

    def test_leases_in_force_are_not_among_them(self, pods: tuple[Redis, Redis]) -> None:
        """Patterns of an application's keys do not match what leases are called."""
        word, _ = pods[0].execute_command("SIDECAR", "LEASE", "report:9:1", 60000)
        assert word == b"LEASE"
        assert pods[1].execute_command("SIDECAR", "DELETE", "MATCH", "report:9:*") == 0
        assert pods[1].execute_command("SIDECAR", "LEASE", "report:9:1", 60000, "WAIT", 0) == [b"WAIT", None]
