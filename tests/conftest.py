"""Fixtures: one redis-server and one pannier per version for the whole run, flushed between tests.

`make test` runs several processes of tests at once (pytest-xdist); each has these servers of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests import harness
from tests.harness import Process, pannier, redis_server, servers, wait_until

os.environ.setdefault("PANNIER_LOG_FORMAT", "text")
"""Servers under test write to files, which by itself would mean JSON and no banner."""


MEASURED = frozenset(
    {
        "test_admin", "test_checking", "test_draining", "test_preflight", "test_probe", "test_tenants_reload",
        "test_tls_listeners", "test_warming", "test_workers",
    }
)  # fmt: skip
"""Files whose servers are measured for coverage as well. It makes them slower by half: so not those of all."""
_MEASURES = "COVERAGE_PROCESS_CONFIG"
"""By which coverage tells processes that are started that they are to be measured."""


class ByFileAndVersion(LoadScopeScheduling):
    """Gives a process all tests of a file for one version of Redis at once: they have servers in common."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        version = re.search(r"[\[-](bundled|system)[\]-]", test)
        return f"{file} {version[1]}" if version else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling | None:
    return ByFileAndVersion(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def measuring() -> str | None:
    """What processes need in their environment to be measured; None: nothing is."""
    return os.environ.pop(_MEASURES, None)


@pytest.fixture(scope="module", autouse=True)
def _measured(request: pytest.FixtureRequest, measuring: str | None) -> Iterator[None]:
    """Have the servers of some files measured."""
    if measuring is None or request.module.__name__.rpartition(".")[2] not in MEASURED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_MEASURES, measuring)
        yield


@pytest.fixture(scope="session", params=["bundled", "system"])
def redis_binary(request: pytest.FixtureRequest) -> str:
    """Each redis-server at hand; the absent one is skipped by name."""
    found = servers().get(request.param)
    if found is None:
        pytest.skip(f"no {request.param} redis-server on this machine")
    return found


@contextlib.contextmanager
def taking_turns(alone: bool) -> Iterator[None]:
    """Hold a place among those of all processes who run a test, or the only one.

    The first file is locked only to come to the second, so that who wants to be alone need not wait until nobody
    else comes.
    """
    with Path(__file__).open() as door, Path(harness.__file__).open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with taking_turns(alone=item.get_closest_marker("alone") is not None):
        return (yield)


class Kept:
    """Servers that are started when first asked for and serve until the end of the run.

    A fixture of session scope would end the server of one version whenever a test of the other comes, which is twice
    a file.
    """

    def __init__(self, stack: contextlib.ExitStack, factory: pytest.TempPathFactory) -> None:
        self._stack, self._factory = stack, factory
        self._redis: dict[str, Process] = {}
        self._proxies: dict[str, Process] = {}

    def redis(self, binary: str) -> Process:
        if binary not in self._redis:
            server = redis_server(binary, self._factory.mktemp("redis"))
            self._redis[binary] = self._stack.enter_context(server)
        return self._redis[binary]

    def proxy(self, binary: str) -> Process:
        """A pannier in front of it, with the eviction bus."""
        if binary not in self._proxies:
            upstream = f"redis://127.0.0.1:{self.redis(binary).port}"
            proxy = self._stack.enter_context(pannier(upstream, self._factory.mktemp("pannier"), bus=True))
            with proxy.connect() as sock, sock.makefile("rb") as replies:

                def hears_the_bus() -> bool:
                    sock.sendall(b"INFO sidecar\r\n")
                    return b"bus_status:up" in replies.read(int(replies.readline()[1:]) + 2)

                wait_until(hears_the_bus)  # it forgets everything when it begins to
            self._proxies[binary] = proxy
        return self._proxies[binary]


@pytest.fixture(scope="session")
def servers_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    with contextlib.ExitStack() as stack:
        yield Kept(stack, tmp_path_factory)


@pytest.fixture(scope="session")
def shared_redis(redis_binary: str, servers_kept: Kept) -> Process:
    return servers_kept.redis(redis_binary)


@pytest.fixture(scope="session")
def shared_proxy(redis_binary: str, servers_kept: Kept) -> Process:
    return servers_kept.proxy(redis_binary)


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
