"""The parent of the workers, in this process, with real workers; more of it in tests/integration/test_workers.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy import logs, workers
from proxy.observe.asking import ask
from proxy.places import Place
from proxy.resp.errors import StartupError
from proxy.settings import Settings, load
from proxy.workers import Parent, Worker


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Parent]:
    """The parents that are made."""
    found: list[Parent] = []

    def make(*arguments: object) -> Parent:
        found.append(Parent(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(workers, "Parent", make)
    for name in [name for name in os.environ if name.startswith("PANNIER_")]:
        monkeypatch.delenv(name)
    return found


@contextlib.asynccontextmanager
async def running(**flags: str) -> AsyncIterator[asyncio.Task[int]]:
    """A parent with two workers and the bundled redis-server."""
    given = {"workers": "2", "listen": "127.0.0.1:0", "admin_listen": "off", "drain_timeout": "1s"} | flags
    words = [word for name, text in given.items() for word in (f"--{name.replace('_', '-')}", text)]
    config = flags.get("config")
    given.pop("config", None)

    def again() -> object:
        return load(given, {}, config)[0]

    task = asyncio.create_task(workers.run(again(), again, config, words))  # type: ignore[arg-type]
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        for handler in [each for each in logging.getLogger().handlers if isinstance(each, logs.Output)]:
            logging.getLogger().removeHandler(handler)


async def test_the_life_of_workers(made: list[Parent], tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("")
    async with running(config=str(file)) as task:
        await until(lambda: both_run(made))
        parent = made[0]
        one, two = parent._workers
        assert one.addresses == two.addresses and (await ask(one.path, "GET", "/readyz")).status == 200
        assert two.process is not None

        os.kill(two.process.pid, signal.SIGKILL)
        await until(lambda: not two.running)
        await until(lambda: two.running)
        assert two.restarts == 1

        file.write_text('[[rules]]\nmatch = "a"\n')
        parent._asked.set()
        await until(lambda: len(parent._settings.rules) == 1)
        file.write_text("nonsense = 1")
        await until(lambda: one.reloaded is not None and one.reloaded.done() and one.reloaded.result())
        assert len(parent._settings.rules) == 1

        parent._signalled(signal.SIGTERM)
        assert await asyncio.wait_for(task, 20) == 0
        assert not Path(one.path).parent.exists()


def both_run(made: list[Parent]) -> bool:
    return bool(made) and len(made[0]._workers) == 2 and all(each.running for each in made[0]._workers)


async def rules_of(worker: Worker) -> int:
    return int(json.loads((await ask(worker.path, "GET", "/stats")).body)["rules"]["number"])


class Spawning:
    """Holds workers that are being spawned, once it is `held`: `before` their processes are there, or `after`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
        self.held = False
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        spawn = Parent._spawn

        async def slowly(parent: Parent, place: Place) -> asyncio.subprocess.Process:
            process = await spawn(parent, place) if when == "after" else None
            if self.held:
                self.reached.set()
                await self.go_on.wait()
            return process or await spawn(parent, place)

        monkeypatch.setattr(Parent, "_spawn", slowly)


ONE, TWO = '[[rules]]\nmatch = "a"\n', '[[rules]]\nmatch = "b"\n'


@pytest.mark.parametrize("held", ["before", "after"])
async def test_one_that_is_being_spawned_during_a_reload_has_the_new_settings(
    made: list[Parent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """When it has been given the old ones and cannot be told yet: before its process is there, and after."""
    spawning = Spawning(monkeypatch, held)
    file = tmp_path / "p.toml"
    file.write_text("")
    async with running(config=str(file)):
        await until(lambda: both_run(made))
        spawning.held = True
        parent = made[0]
        one, two = parent._workers
        assert two.process is not None
        os.kill(two.process.pid, signal.SIGKILL)
        await spawning.reached.wait()
        again, read = parent._again, list[Settings]()

        def noted() -> Settings:
            read.append(again())
            return read[-1]

        parent._again = noted
        file.write_text(ONE)
        parent._asked.set()
        await until(lambda: read)
        spawning.go_on.set()
        await until(lambda: both_run(made) and len(parent._settings.rules) == 1)
        assert await rules_of(one) == await rules_of(two) == 1


async def drains(worker: Worker) -> bool:
    return bool(json.loads((await ask(worker.path, "GET", "/readyz")).body)["draining"])


@pytest.mark.parametrize("held", ["before", "after"])
async def test_one_that_is_being_spawned_while_all_are_to_drain_is_told(
    made: list[Parent], monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """And again when they are not to any more."""
    spawning = Spawning(monkeypatch, held)
    async with running(admin_listen="127.0.0.1:0"):
        await until(lambda: both_run(made))
        spawning.held = True
        one, two = made[0]._workers
        for draining in (True, False):
            spawning.reached.clear()
            spawning.go_on.clear()
            assert two.process is not None
            os.kill(two.process.pid, signal.SIGKILL)
            await spawning.reached.wait()
            body = json.dumps({"draining": draining}).encode()
            request = urllib.request.Request(
                f"{made[0]._admin.url}drain", body, {"Content-Type": "application/json"}, method="POST"
            )
            with await asyncio.to_thread(urllib.request.urlopen, request) as answer:
                assert json.load(answer)["draining"] is draining
            spawning.go_on.set()
            await until(lambda: both_run(made))
            deadline = time.monotonic() + 30
            while [await drains(one), await drains(two)] != [draining, draining]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)


async def test_what_changes_while_it_is_read_is_read_again(made: list[Parent], tmp_path: Path) -> None:
    """Also what changes once the workers have read it, or once the parent has."""
    file = tmp_path / "p.toml"
    file.write_text("")
    async with running(config=str(file)):
        await until(lambda: both_run(made))
        parent = made[0]
        tell, again = parent._tell, parent._again
        texts = [ONE + TWO + ONE, ONE + TWO + ONE + TWO]

        def read() -> Settings:
            if len(texts) == 1:
                file.write_text(texts.pop())
            return again()

        async def told(worker: Worker, why: str) -> str | None:
            trouble = await tell(worker, why)
            if len(texts) == 2:
                file.write_text(texts.pop(0))
            return trouble

        parent._again, parent._tell = read, told  # type: ignore[method-assign]
        file.write_text(ONE)
        parent._asked.set()
        await until(lambda: not texts)
        for worker in parent._workers:
            deadline = time.monotonic() + 30
            while await rules_of(worker) != 4:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        await until(lambda: len(parent._settings.rules) == 4)


async def test_the_second_signal_ends_it_now(made: list[Parent]) -> None:
    async with running(drain_delay="30s") as task:
        await until(lambda: made and made[0]._workers and made[0]._workers[0].running)
        processes = [each.process for each in made[0]._workers]
        made[0]._signalled(signal.SIGTERM)
        await until(lambda: made[0]._crew.stopping)
        made[0]._signalled(signal.SIGINT)
        assert await asyncio.wait_for(task, 20) == 128 + signal.SIGINT
        assert all(each is None or each.returncode is not None for each in processes)


async def test_what_keeps_the_first_from_starting_is_the_end(made: list[Parent], tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("none")
    async with running(listen="127.0.0.1:0?tls=true", tls_cert=str(tmp_path / "bad.pem")) as task:
        assert await asyncio.wait_for(task, 30) == 2
        assert made[0]._workers[1].process is None


def test_why_a_process_has_ended() -> None:
    assert workers._why(3) == "exit status 3"
    assert workers._why(-9) == "SIGKILL"
    assert workers._why(-63) == "signal 63"


def test_the_private_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = Path(workers._private_directory(2))
    assert home.stat().st_mode & 0o777 == 0o700
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    elsewhere = Path(workers._private_directory(2))
    assert elsewhere.parent == Path("/tmp") and not list(deep.iterdir()), "a socket's path has 107 bytes at most"
    elsewhere.rmdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StartupError, match="make /tmp or what TMPDIR names writable"):
        workers._private_directory(2)


def test_a_worker_that_ends_while_it_reloads_has_not_refused() -> None:
    loop = asyncio.new_event_loop()
    worker = Worker(1, "/d", ())
    worker.reloaded = loop.create_future()
    worker.ended()
    assert worker.reloaded.result() is None
    worker.hear({"what": "reloaded", "trouble": "late"})  # nobody waits for it any more
    worker.say("into the void")
    loop.close()
