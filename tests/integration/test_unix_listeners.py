"""Unix sockets of a running pannier: their files, and who is at the other end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.harness import Process, pannier, redis_server, wait_until
from tests.integration.test_lifecycle import fails


@pytest.fixture(scope="module")
def upstream(any_redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with redis_server(any_redis_binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_mode_group_and_peer(upstream: Process, directory: Path) -> None:
    path = directory / "p.sock"
    group = 54321 if os.getuid() == 0 else os.getgid()
    options = ("--listen", f"unix://{path}?mode=660&group={group}", "--log-level", "debug")
    with pannier(f"redis://127.0.0.1:{upstream.port}", directory, *options) as proxy:
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group)
        assert f"unix://{path}?mode=660&group={group}" in proxy.output
        with redis.Redis(unix_socket_path=str(path)) as client, redis.Redis(port=proxy.port) as other:
            assert other.ping() and client.ping()
            lines = client.client_list()
            over_unix = [line for line in lines if "pid" in line]
            assert len(lines) == 2 and len(over_unix) == 1
            names = ("pid", "uid", "gid")
            assert [over_unix[0][name] for name in names] == [str(os.getpid()), str(os.getuid()), str(os.getgid())]
        who = f"connected from process {os.getpid()}, user {os.getuid()}, group {os.getgid()}"
        wait_until(lambda: who in proxy.output)
        proxy.stop()
    assert not path.exists()


def test_an_unknown_group_ends_the_start(upstream: Process, directory: Path) -> None:
    said = fails(
        directory, "--upstream", f"redis://127.0.0.1:{upstream.port}", "--listen",
        f"unix://{directory}/p.sock?group=nobody-has-this",
    )  # fmt: skip
    assert f"pannier: cannot listen on unix://{directory}/p.sock?group=nobody-has-this: there is no group" in said
    assert not (directory / "p.sock").exists()
