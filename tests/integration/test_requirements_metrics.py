"""The rows of the requirements that speak of figures, as applications and operators live through them.

Each test is an application with an ordinary redis-py client, beside whoever watches it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.harness import Process, redis_server
from tests.integration.web import administered
from tests.integration.wire import until


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


def url(upstream: Process) -> str:
    return f"redis://127.0.0.1:{upstream.port}"


def read(client: redis.Redis, key: str, times: int) -> None:
    for _ in range(times):
        client.get(key)


def test_b6_each_namespace_has_its_own_hits_misses_and_hit_rate(upstream: Process, directory: Path) -> None:
    """Two services share a Redis; each sees its own figures, and the operator those of both."""
    config = directory / "pannier.toml"
    config.write_text(
        'admit_after = 1\n[tenants.agent_service]\npassword = "a"\n[tenants.billing]\npassword = "b"\n'
    )
    with administered(url(upstream), directory, "--config", str(config)) as (proxy, web):
        agents = redis.Redis(port=proxy.port, username="agent_service", password="a")
        billing = redis.Redis(port=proxy.port, username="billing", password="b")
        for client in (agents, billing):
            client.set("users:1", "Ada")
        read(agents, "users:1", 10)  # the first of them misses
        read(billing, "users:1", 4)
        read(billing, "users:2", 2)
        found = web.stats()["namespaces"]
        figures = {name: (found[name]["hits"], found[name]["misses"], found[name]["hit_rate_percent"]) for name in ("agent_service", "billing")}
        assert figures == {"agent_service": (9, 1, 90.0), "billing": (4, 2, 66.67)}
        metrics = web.metrics()
        assert [metrics("hits_total", namespace=name) for name in figures] == [9, 4]
        assert [metrics("misses_total", namespace=name) for name in figures] == [1, 2]
        assert web.stats()["hits"] == 13
        # Each of them may ask for its own, over the connection it has.
        told = agents.execute_command("SIDECAR", "STATS")
        assert told[b"tier_hits" if isinstance(told, dict) else told.index(b"tier_hits") + 1] == 9


@pytest.mark.parametrize("protocol", [2, 3])
def test_c8_prometheus_has_hits_and_misses_by_type_latency_and_size(upstream: Process, directory: Path, protocol: int) -> None:
    """A platform counts its caches by the first part of the key; Prometheus scrapes Pannier instead."""
    with administered(url(upstream), directory, "--admit-after", "1") as (proxy, web):
        client = redis.Redis(port=proxy.port, protocol=protocol)
        client.ping()
        before = web.metrics()("loop_lag_seconds_count")
        until(lambda: web.metrics()("loop_lag_seconds_count") > before + 2, "the clock of those who time has ticked")
        for key in ("user:1:profile", "user:2:profile", "org:7"):
            client.set(key, "x" * 1000)
        read(client, "user:1:profile", 8)
        read(client, "user:2:profile", 3)
        read(client, "org:7", 5)
        metrics = web.metrics()
        assert {name: metrics("class_hits_total", namespace="", class_=name) for name in ("user", "org")} == {"user": 9, "org": 4}
        assert {name: metrics("class_misses_total", namespace="", class_=name) for name in ("user", "org")} == {"user": 2, "org": 1}
        assert metrics("memory_bytes", namespace="") > 3000
        assert metrics("latency_seconds_count", path="hit") == 13, "all are timed while they are few"
        assert metrics("latency_seconds_count", path="miss") == metrics("latency_seconds_count", path="write") == 3
        assert metrics("command_latency_seconds_count", family="string") == 13 + 3 + 3
        assert metrics("latency_seconds_sum", path="hit") > 0 and metrics("latency_seconds_sum", path="miss") > 0


def test_d2_a_json_endpoint_tells_how_the_cache_performs(any_redis_binary: str, directory: Path) -> None:
    """What a service's own /cache/performance told, now told by its sidecar."""
    with (
        redis_server(any_redis_binary, directory) as upstream,
        administered(url(upstream), directory, "--admit-after", "1", "--reconnect-max", "100ms") as (proxy, web),
    ):
        client = redis.Redis(port=proxy.port, socket_timeout=20)
        client.set("reznet:agents:@ada", "{}")
        client.mset({"reznet:agents:@eve": "{}", "reznet:agents:@bob": "{}"})
        client.delete("reznet:agents:@bob", "reznet:agents:@nobody")
        read(client, "reznet:agents:@ada", 10)
        found = web.stats()
        wanted = ("hits", "misses", "sets", "deletes", "errors", "total_reads", "hit_rate_percent", "redis_connected")
        assert {name: found[name] for name in wanted} == {
            "hits": 9, "misses": 1, "sets": 3, "deletes": 2, "errors": 0, "total_reads": 10, "hit_rate_percent": 90.0, "redis_connected": True,
        }  # fmt: skip
        assert found["recommendation"] == "Wait: only 10 reads have been looked up, too few to say anything."
        read(client, "reznet:agents:@ada", 1000)
        assert web.stats()["recommendation"].startswith("Change nothing: 99.9 % of the reads are answered from memory")
        upstream.signal(signal.SIGKILL)
        upstream.popen.wait()
        until(lambda: not web.stats()["redis_connected"], "Redis is gone")
        with pytest.raises(redis.RedisError):
            client.get("reznet:agents:@ada")
        assert web.stats()["errors"] == 1
        assert re.match(r"Look after Redis: it cannot be reached \(.+\)\.", web.stats()["recommendation"])


def test_e5_statistics_have_memory_clients_commands_hits_evictions_and_expirations(upstream: Process, directory: Path) -> None:
    """What an analytics service read from INFO of its Redis, of the memory in front of it."""
    options = ("--admit-after", "1", "--max-memory", "1mb", "--rules-file", str(directory / "rules.toml"))
    (directory / "rules.toml").write_text('[[rules]]\nmatch = "short:*"\nl1_ttl = "50ms"\n')
    with administered(url(upstream), directory, *options) as (proxy, web):
        client = redis.Redis(port=proxy.port)
        client.set("short:1", "v")
        read(client, "short:1", 1)
        until(lambda: client.get("short:1") and web.stats()["memory"]["expired"], "an entry has expired")
        pipe = client.pipeline(transaction=False)
        for n in range(2000):
            pipe.set(f"workspace:{n}", "x" * 1000)
        pipe.execute()
        for n in range(2000):
            client.get(f"workspace:{n}")
        read(client, "workspace:1999", 5)
        found = web.stats()
        assert 0 < found["memory"]["bytes"] <= found["memory"]["max_bytes"] == 1 << 20
        assert found["memory"]["evicted"] > 500 and found["memory"]["expired"] > 0
        assert found["clients"]["connected"] == 1 and found["clients"]["commands"] >= 4000
        assert found["hits"] >= 5 and found["misses"] >= 2000
        assert found["hit_rate_percent"] == round(100 * found["hits"] / found["total_reads"], 2)
        assert found["recommendation"].startswith("Raise max_memory (1mb): it is full")
        told = client.info("sidecar")
        assert (told["pannier_tier_evictions"], told["pannier_connected_clients"]) == (found["memory"]["evicted"], 1)
        assert told["pannier_tier_hits"] == found["hits"]


