"""The rows of the requirements that speak of Redis failing, as an application lives through them.

Each test is an application with an ordinary redis-py client. It knows nothing of Pannier but the address.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.harness import Process, free_port, pannier, redis_server
from tests.integration.wire import until

LONG = 4.0
"""Seconds that no request of these applications may take: Pannier's own time-outs are longer."""


class Service:
    """A Redis that comes and goes, with a Pannier in front of it."""

    def __init__(self, binary: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self._binary, self._directory, self._stack = binary, directory, stack
        self._port = free_port()
        self.start()

    def start(self) -> None:
        self.redis = self._stack.enter_context(redis_server(self._binary, self._directory, port=self._port))

    def pannier(self, *options: str) -> Process:
        proxy = self._stack.enter_context(pannier(f"redis://127.0.0.1:{self._port}", self._directory, "--reconnect-max", "100ms", *options))
        found = self.client(proxy)
        until(lambda: found.execute_command("SIDECAR", "STATS").get(b"bus_status", b"up") == b"up", "at rest")
        return proxy

    def client(self, proxy: Process) -> redis.Redis:
        found = redis.Redis(port=proxy.port, protocol=3, decode_responses=False, socket_timeout=20)
        self._stack.callback(found.close)
        return found


@pytest.fixture
def service(any_redis_binary: str, directory: Path) -> Iterator[Service]:
    with contextlib.ExitStack() as stack:
        yield Service(any_redis_binary, directory, stack)


def quickly(work: Callable[[], object]) -> object:
    """The result, or the error, of something that must not take long."""
    began = time.monotonic()
    try:
        return work()
    except redis.RedisError as error:
        return error
    finally:
        assert time.monotonic() - began < LONG


def health(client: redis.Redis) -> dict[bytes, bytes]:
    return client.execute_command("SIDECAR", "HEALTH")


def read_often(client: redis.Redis, *keys: str) -> None:
    """As a hot key is read: it is kept from the second read on."""
    for _ in range(4):
        for key in keys:
            client.get(key)


class TestA5:
    """Redis away: reads answer from L1 where allowed, nothing hangs, nothing crashes; a switch turns caching off."""

    def test_a_flow_is_read_on_while_redis_is_away(self, service: Service) -> None:
        proxy = service.pannier("--on-upstream-down", "stale", "--coherence-timeout", "1s")
        app = service.client(proxy)
        app.set("flow:acme:42", b"step 3", ex=3600)
        read_often(app, "flow:acme:42")
        service.redis.kill()
        until(lambda: health(app)[b"serving"] == b"stale", "noticed")
        for _ in range(10):
            assert quickly(lambda: app.get("flow:acme:42")) == b"step 3"
            assert isinstance(quickly(lambda: app.set("flow:acme:42", b"step 4")), redis.ResponseError)
            assert isinstance(quickly(lambda: app.get("flow:acme:43")), redis.ResponseError)
        assert proxy.popen.poll() is None
        service.start()
        until(lambda: quickly(lambda: app.get("flow:acme:42")) is None, "what is in Redis counts again")
        assert app.set("flow:acme:42", b"step 4")

    def test_nothing_hangs_on_a_redis_that_hangs(self, service: Service) -> None:
        proxy = service.pannier("--on-upstream-down", "stale", "--coherence-timeout", "1s")
        app = service.client(proxy)
        app.set("flow:acme:42", b"step 3")
        read_often(app, "flow:acme:42")
        service.redis.signal(signal.SIGSTOP)
        try:
            until(lambda: health(app)[b"serving"] == b"stale" and health(app)[b"upstream"] == b"silent", "noticed")
            for _ in range(5):
                assert quickly(lambda: app.get("flow:acme:42")) == b"step 3"
                assert isinstance(quickly(lambda: app.delete("flow:acme:42")), redis.ResponseError)
                assert isinstance(quickly(lambda: app.pipeline().set("a", 1).execute()), redis.RedisError)
        finally:
            service.redis.signal(signal.SIGCONT)
        until(lambda: quickly(lambda: app.delete("flow:acme:42")) == 1, "it goes on")
        assert app.get("flow:acme:42") is None

    def test_the_switch_turns_caching_off(self, service: Service) -> None:
        proxy = service.pannier("--tracking", "off", "--on-upstream-down", "stale")
        app = service.client(proxy)
        app.set("flow:acme:42", b"step 3")
        read_often(app, "flow:acme:42")
        assert health(app)[b"serving"] == b"nothing"
        service.redis.kill()
        until(lambda: health(app)[b"ready"] == b"no", "noticed")
        assert isinstance(quickly(lambda: app.get("flow:acme:42")), redis.ResponseError)
        service.start()
        until(lambda: quickly(lambda: app.set("flow:acme:42", b"x")) is True, "back")


class TestB2:
    """Redis tier plus in-memory tier with LRU eviction; when Redis is unreachable the memory tier goes on serving."""

    def test_what_was_read_last_survives_eviction_and_the_loss_of_redis(self, service: Service) -> None:
        proxy = service.pannier("--on-upstream-down", "stale", "--max-entries", "50", "--admit-after", "1")
        app = service.client(proxy)
        for n in range(100):
            app.set(f"users:{n}", b"%d" % n)
        read_often(app, *(f"users:{n}" for n in range(100)))
        hot = [f"users:{n}" for n in range(10)]
        for _ in range(20):
            read_often(app, *hot)
        service.redis.kill()
        until(lambda: health(app)[b"serving"] == b"stale", "noticed")
        assert [quickly(lambda key=key: app.get(key)) for key in hot] == [b"%d" % n for n in range(10)]
        stats = app.execute_command("SIDECAR", "STATS")
        assert stats[b"tier_entries"] <= 50 and stats[b"tier_evictions"] >= 50
        assert stats[b"tier_stale_hits"] >= 10

    def test_it_stops_when_the_values_are_too_old(self, service: Service) -> None:
        proxy = service.pannier("--on-upstream-down", "stale", "--stale-max", "1s")
        app = service.client(proxy)
        app.set("users:1", b"v")
        read_often(app, "users:1")
        service.redis.kill()
        until(lambda: isinstance(quickly(lambda: app.get("users:1")), redis.ResponseError), "over")
        assert health(app)[b"ready"] == b"no"


class TestD4:
    """Redis failing: no exception reaches the request; errors are counted."""

    def test_a_listing_is_shown_from_the_cache_and_falls_back_to_the_database(self, service: Service) -> None:
        proxy = service.pannier("--on-upstream-down", "stale")
        app = service.client(proxy)
        asked: list[str] = []
        errors = 0

        def database(name: str) -> bytes:
            asked.append(name)
            return b"row of " + name.encode()

        def agent(name: str) -> bytes:
            """A request of the application: cached, and never failing because of the cache."""
            nonlocal errors
            value = None
            try:
                value = app.get(f"reznet:agents:@{name}")
            except redis.RedisError:
                errors += 1
            if value is None:
                value = database(name)
                with contextlib.suppress(redis.RedisError):
                    app.set(f"reznet:agents:@{name}", value, ex=1800)
            return value

        for _ in range(5):
            assert quickly(lambda: agent("known")) == b"row of known"
        service.redis.kill()
        until(lambda: health(app)[b"serving"] == b"stale", "noticed")
        for _ in range(5):
            assert quickly(lambda: agent("known")) == b"row of known"
            assert quickly(lambda: agent("other")) == b"row of other"
        assert (asked, errors) == (["known"] + ["other"] * 5, 5)
        found = health(app)
        assert found[b"ready"] == b"yes" and found[b"why"].startswith(b"upstream redis://")
        assert app.execute_command("SIDECAR", "STATS")[b"breaker_failures"] > 0
        service.start()
        until(lambda: health(app)[b"upstream"] == b"up", "back")
        agent("other")
        assert quickly(lambda: agent("other")) == b"row of other" and errors == 5
