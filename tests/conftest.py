"""Fixtures: one redis-server and one pannier per version for the whole run, flushed between tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Process, pannier, redis_server, servers, wait_until

os.environ.setdefault("PANNIER_LOG_FORMAT", "text")
"""Servers under test write to files, which by itself would mean JSON and no banner."""


@pytest.fixture(scope="session", params=["bundled", "system"])
def redis_binary(request: pytest.FixtureRequest) -> str:
    """Each redis-server at hand; the absent one is skipped by name."""
    found = servers().get(request.param)
    if found is None:
        pytest.skip(f"no {request.param} redis-server on this machine")
    return found


@pytest.fixture(scope="session")
def shared_redis(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(redis_binary, tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture(scope="session")
def shared_proxy(shared_redis: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("pannier")
    with pannier(f"redis://127.0.0.1:{shared_redis.port}", directory, bus=True) as process:
        with process.connect() as sock, sock.makefile("rb") as replies:

            def hears_the_bus() -> bool:
                sock.sendall(b"INFO sidecar\r\n")
                return b"bus_status:up" in replies.read(int(replies.readline()[1:]) + 2)

            wait_until(hears_the_bus)  # it forgets everything when it begins to
        yield process


@pytest.fixture
def redis(shared_redis: Process) -> Process:
    """A redis-server, emptied."""
    with shared_redis.connect() as sock:
        sock.sendall(b"FLUSHALL\r\n")
        assert sock.recv(16) == b"+OK\r\n"
    return shared_redis


@pytest.fixture
def proxy(redis: Process, shared_proxy: Process) -> Process:
    """A pannier in front of `redis`."""
    return shared_proxy


@pytest.fixture(scope="session")
def any_redis_binary() -> str:
    """One redis-server, the newest at hand: for tests in which the version plays no part."""
    found = servers()
    if not found:
        pytest.skip("no redis-server on this machine")
    return found.get("system") or found["bundled"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path
