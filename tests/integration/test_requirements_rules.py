"""What applications asked of their caching layers, done by rules and invalidation: C1, C3, C10, A4, E6.

Written as an application would use it: redis-py over the sidecar's port. deploy/rules/platform.toml is what runs.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from proxy.rules_file import read_rules_file
from proxy.tier.policy import Defaults, Policy, Serve
from tests.harness import ROOT, Process, pannier, redis_server, wait_until

RULES = ROOT / "deploy" / "rules" / "platform.toml"
HOUR, MINUTE = 3600, 60


class Platform:
    """One Redis, and two processes of an application, each with a Pannier of its own."""

    def __init__(self, redis: Process, one: Process, other: Process) -> None:
        self.servers = (one, other)
        self.redis = Redis(port=redis.port, decode_responses=True)
        self.one, self.other = (Redis(port=server.port, decode_responses=True) for server in (one, other))

    def remember(self, *keys: str) -> None:
        """Have both Panniers keep keys in memory, and make sure that they do."""
        for client in (self.one, self.other):
            for key in keys:
                wait_until(lambda client=client, key=key: client.get(key) is not None and self.kept(client, key))  # type: ignore[misc]

    def kept(self, client: Redis, key: str) -> bool:
        """Whether a Pannier has a key in memory."""
        told = client.execute_command("SIDECAR", "EXPLAIN", key)
        fields = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
        return bool(fields["cached"] == "yes")

    def forgotten(self, *keys: str) -> bool:
        """Whether neither has any of them."""
        return not any(self.kept(client, key) for client in (self.one, self.other) for key in keys)


@pytest.fixture(scope="module")
def house(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("platform")
    options = ("--rules-file", str(RULES), "--admit-after", "1")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server(any_redis_binary, directory))
        url = f"redis://127.0.0.1:{redis.port}"
        platform = Platform(redis, *[stack.enter_context(pannier(url, directory, *options, bus=True)) for _ in range(2)])
        for client in (platform.redis, platform.one, platform.other):
            stack.callback(client.close)
        for client in (platform.one, platform.other):
            wait_until(lambda client=client: client.info("sidecar").get("pannier_bus_status") == "up")  # type: ignore[misc]
        yield platform


@pytest.fixture
def platform(house: Platform) -> Platform:
    house.redis.flushall()
    return house


class TestC1LifetimesByEntity:
    """Keys are named {entity}:{id}:{variant}; the entity says how long a value lives."""

    @pytest.mark.parametrize(
        ("key", "seconds"),
        [
            ("user:42", HOUR), ("user:42:profile", HOUR), ("user:42:permissions", 5 * MINUTE), ("permissions:42", 5 * MINUTE), ("agent:7", 30 * MINUTE), ("agent:7:config", 30 * MINUTE),
            ("organisation:3", HOUR), ("organization:3", HOUR), ("session:abc", 24 * HOUR), ("ratelimit:42", MINUTE), ("api:agents:list:1", MINUTE),
        ],
    )  # fmt: skip
    def test_a_value_without_a_time_to_live_gets_its_entitys(self, platform: Platform, key: str, seconds: int) -> None:
        assert platform.one.set(key, "v")
        assert seconds - 30 < platform.redis.ttl(key) <= seconds

    def test_what_the_application_says_holds(self, platform: Platform) -> None:
        platform.one.set("user:42", "v", ex=10)
        platform.one.execute_command("SETEX", "agent:7", 10, "v")
        assert all(0 < platform.redis.ttl(key) <= 10 for key in ("user:42", "agent:7"))

    def test_what_is_no_entity_of_the_platforms_keeps_its_own(self, platform: Platform) -> None:
        platform.one.set("report:2024", "v")
        assert platform.redis.ttl("report:2024") == -1


class TestC10WhatIsNotCached:
    """Not the sensitive, not the large, nothing for extreme times; and a failing cache falls back."""

    @pytest.mark.parametrize("key", ["user:42:token", "agent:7:secret:key", "apikey:42", "session:abc", "ratelimit:42", "lock:job"])
    def test_the_sensitive_and_what_changes_with_each_use(self, platform: Platform, key: str) -> None:
        platform.one.set(key, "v")
        for _ in range(5):
            assert platform.one.get(key) == "v"
        assert not platform.kept(platform.one, key)

    def test_the_large(self, platform: Platform) -> None:
        platform.one.set("api:agents:list:1", "x" * 100_000)
        platform.one.set("api:agents:list:2", "x" * 1000)
        for _ in range(5):
            assert len(platform.one.get("api:agents:list:1")) == 100_000
            assert len(platform.one.get("api:agents:list:2")) == 1000
        assert not platform.kept(platform.one, "api:agents:list:1")
        assert platform.kept(platform.one, "api:agents:list:2")

    def test_nothing_for_extreme_times(self) -> None:
        policy = Policy(read_rules_file(str(RULES), "--rules-file"), Defaults(300.0, 1 << 20))
        for ruling in policy.rulings:
            assert MINUTE / 2 <= ruling.l1_ttl <= 10 * MINUTE, ruling.rule.shown
            assert ruling.rule.expire is None or MINUTE <= ruling.rule.expire <= 24 * HOUR, ruling.rule.shown
            assert ruling.rule.expire is None or ruling.serve is Serve.OFF or ruling.l1_ttl < ruling.rule.expire, ruling.rule.shown

    def test_a_cache_that_is_off_falls_back_to_redis(self, platform: Platform, any_redis_binary: str, directory: Path) -> None:
        port = platform.redis.get_connection_kwargs()["port"]
        with pannier(f"redis://127.0.0.1:{port}", directory, "--rules-file", str(RULES), "--mode", "off") as proxy, Redis(port=proxy.port) as client:
            client.set("user:42", "v")
            assert client.get("user:42") == b"v" and platform.redis.ttl("user:42") > 0


class TestC3EventsInvalidate:
    """`user.updated` drops user:{id} and its permissions; `agent.updated` drops the lists of agents as well."""

    KEYS = ("user:42", "user:42:permissions", "user:43", "agent:7", "api:agents:list:1", "api:agents:list:2", "api:orgs:list:1")

    @pytest.fixture(autouse=True)
    def _remembered(self, platform: Platform) -> None:
        platform.redis.mset(dict.fromkeys(self.KEYS, "v"))
        platform.remember(*self.KEYS)

    def stays(self, platform: Platform, *keys: str) -> None:
        assert all(platform.kept(client, key) for client in (platform.one, platform.other) for key in keys)

    def test_user_updated_by_a_command(self, platform: Platform) -> None:
        assert platform.one.execute_command("SIDECAR", "INVALIDATE", "user:42", "user:42:permissions") >= 2
        wait_until(lambda: platform.forgotten("user:42", "user:42:permissions"))
        self.stays(platform, "user:43", "agent:7", "api:agents:list:1")

    def test_agent_updated_by_a_command(self, platform: Platform) -> None:
        platform.one.execute_command("SIDECAR", "INVALIDATE", "MATCH", "agent:7", "api:agents:list:*")
        wait_until(lambda: platform.forgotten("agent:7", "api:agents:list:1", "api:agents:list:2"))
        self.stays(platform, "user:42", "api:orgs:list:1")

    def test_by_a_message_of_the_applications_own(self, platform: Platform) -> None:
        """From a service that has no Pannier: one PUBLISH to Redis reaches all."""
        event = {"v": 1, "keys": ["agent:7"], "match": ["api:agents:list:*"], "why": "agent.updated"}
        assert platform.redis.publish("pannier:evict:", json.dumps(event)) >= 2
        wait_until(lambda: platform.forgotten("agent:7", "api:agents:list:1", "api:agents:list:2"))
        self.stays(platform, "user:42", "user:42:permissions", "api:orgs:list:1")

    def test_by_the_write_itself(self, platform: Platform) -> None:
        """Most events need no message: whoever writes the key, Redis tells."""
        platform.other.set("user:42", "renamed")
        assert platform.other.get("user:42") == "renamed", "at once where it was written"
        wait_until(lambda: platform.one.get("user:42") == "renamed")


class TestA4AFlowIsFinished:
    """Finishing or cancelling a flow invalidates it everywhere, in the memory of other processes, too."""

    @pytest.mark.parametrize("how", ["delete", "unlink", "set", "expire", "transaction", "script", "match"])
    def test_everywhere(self, platform: Platform, how: str) -> None:
        key = "flow:acme:s1"
        platform.redis.mset({key: "running", "flow:acme:s2": "running"})
        platform.remember(key, "flow:acme:s2")
        match how:
            case "delete":
                platform.one.delete(key)
            case "unlink":
                platform.one.unlink(key)
            case "set":
                platform.one.set(key, "done")
            case "expire":
                platform.one.pexpire(key, 0)
            case "transaction":
                platform.one.pipeline().delete(key).incr("finished").execute()
            case "script":
                platform.one.eval("return redis.call('DEL', KEYS[1])", 1, key)
            case "match":
                assert platform.one.execute_command("SIDECAR", "DELETE", "MATCH", "flow:acme:s1*") == 1
        left = "done" if how == "set" else None
        assert platform.one.get(key) == left, "the process that did it sees it at once"
        wait_until(lambda: platform.other.get(key) == left)
        assert [client.get(key) for client in (platform.one, platform.other)] == [left] * 2, "and never anything older again"
        assert platform.other.get("flow:acme:s2") == "running"


class TestE6Maintenance:
    """A scheduled job finds keys without a time to live under given prefixes and removes them."""

    def sweep(self, platform: Platform, *arguments: str) -> str:
        address = f"redis://127.0.0.1:{platform.servers[0].port}"
        command = [sys.executable, "-m", "proxy", "sweep", "--without-ttl", *arguments, "--to", address]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def test_removes_what_has_no_time_to_live_and_nothing_else(self, platform: Platform) -> None:
        platform.redis.mset({f"exec:{n}": "v" for n in range(50)})
        platform.redis.set("exec:kept", "v", ex=100)
        platform.redis.set("other", "v")
        platform.remember("exec:1")
        assert "50 keys" in self.sweep(platform, "exec:*", "--dry-run")
        assert platform.redis.dbsize() == 52
        assert "50 keys deleted" in self.sweep(platform, "exec:*")
        assert sorted(platform.redis.keys()) == ["exec:kept", "other"]
        wait_until(lambda: platform.other.get("exec:1") is None)

    def test_finds_nothing_where_rules_give_a_time_to_live(self, platform: Platform) -> None:
        platform.one.mset({"user:1": "v"})  # only SET is given one
        platform.one.set("user:2", "v")
        assert "1 keys deleted" in self.sweep(platform, "user:*") or not platform.redis.exists("user:1")
        assert platform.redis.exists("user:2")


class TestTheReadyFile:
    def test_is_read_and_names_each_entity_once(self) -> None:
        policy = Policy(read_rules_file(str(RULES), "--rules-file"), Defaults(300.0, 1 << 20))
        labels = [ruling.rule.label for ruling in policy.rulings if ruling.rule.label]
        assert len(labels) == len(set(labels))
        found = {key: policy.label(key.encode()) for key in ("user:1", "user:1:permissions", "org:1", "session:x", "api:x", "user:1:token")}
        assert found == {"user:1": "user", "user:1:permissions": "permissions", "org:1": "organisation", "session:x": "session", "api:x": "api", "user:1:token": "sensitive"}
