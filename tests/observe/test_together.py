"""The administration of several workers: what is asked of whom, and what is said of who does not answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy.observe import together
from proxy.observe.admin import Admin
from proxy.observe.answers import Answer, Refused, report
from proxy.observe.asking import Absent, Silent, ask
from proxy.observe.http import Request, Server
from proxy.observe.together import Crew, Together
from proxy.settings import Settings
from proxy.upstream.address import Listen

READY = {"ready": True, "reasons": [], "draining": False, "alive": True, "why": ""}


@dataclass
class Fake:
    """A worker: what it answers by path, and what it was asked."""

    number: int
    path: str
    answers: dict[str, Callable[[Request], Answer]]
    restarts: int = 0
    running: bool = True
    silent: bool = False
    asked: list[Request] = field(default_factory=list)
    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def say(self, what: str, **more: object) -> None:
        self.told.append((what, more))

    async def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        if self.silent:
            await asyncio.sleep(60)
        if request.path not in self.answers:
            raise Refused(404, "there is no such path")
        return self.answers[request.path](request)


class Desk:
    """Two such workers, and the routes about both."""

    def __init__(self, directory: Path) -> None:
        self.fakes = [Fake(number, str(directory / str(number)), {}) for number in (1, 2)]
        self.servers = [Server(fake.answer, Listen(path=fake.path), None, "") for fake in self.fakes]
        self.crew = Crew(Settings(), {fake.number: fake for fake in self.fakes})
        self.admin = Admin(Settings())
        Together(self.crew).add_to(self.admin)

    def say(self, path: str, *found: Any, status: int = 200) -> None:
        """Have each worker answer a path with its part."""
        for fake, part in zip(self.fakes, found, strict=True):
            fake.answers[path] = lambda request, part=part: report(part, status)  # type: ignore[misc]

    async def get(self, path: str, *query: tuple[str, str]) -> tuple[int, Any]:
        answer = await self.admin.answer(Request("GET", path, query))
        return answer.status, json.loads(answer.body)

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        data = b"" if body is None else json.dumps(body).encode()
        fields = {"content-type": "application/json", "host": "127.0.0.1"}
        answer = await self.admin.answer(Request("POST", path, (), fields, data))
        return answer.status, json.loads(answer.body)


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(together, "PATIENCE", 0.05)
    monkeypatch.setattr(together, "_GLANCE", 0.05)
    found = Desk(tmp_path)
    for server in found.servers:
        await server.start()
    yield found
    for server in found.servers:
        server.close()
    await asyncio.sleep(0)


class TestAsking:
    async def test_an_answer(self, desk: Desk) -> None:
        desk.fakes[0].answers["/x"] = lambda request: Answer(request.body * 2, 201, "text/plain")
        answer = await ask(desk.fakes[0].path, "POST", "/x?a=b", b"y" * 100_000, {"X": "z"})
        assert (answer.body, answer.status, answer.kind) == (b"y" * 200_000, 201, "text/plain")
        assert desk.fakes[0].asked[0].query == (("a", "b"),)

    async def test_nobody_there_and_no_answer(self, desk: Desk, tmp_path: Path) -> None:
        with pytest.raises(Absent):
            await ask(str(tmp_path / "none"), "GET", "/")
        desk.fakes[0].silent = True
        with pytest.raises(Silent):
            await ask(desk.fakes[0].path, "GET", "/", patience=0.05)

    async def test_who_ends_before_he_has_answered_is_absent(self, tmp_path: Path) -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.close()

        server = await asyncio.start_unix_server(hang_up, tmp_path / "s")
        async with server:
            with pytest.raises(Absent):
                await ask(str(tmp_path / "s"), "GET", "/")


class TestHealth:
    async def test_ready_if_all_are(self, desk: Desk) -> None:
        desk.say("/readyz", READY, READY)
        status, found = await desk.get("/readyz")
        assert status == 200 and found["ready"] and found["workers"] == 2

    async def test_who_is_not_ready_is_named(self, desk: Desk) -> None:
        desk.say("/readyz", READY, READY | {"ready": False, "reasons": ["away"]}, status=503)
        status, found = await desk.get("/readyz")
        assert status == 503 and found["reasons"] == ["worker 2: away"]

    async def test_who_does_not_answer_or_run_is_named(self, desk: Desk) -> None:
        desk.say("/readyz", READY, READY)
        desk.say("/healthz", {"alive": True}, {"alive": True})
        desk.fakes[1].silent = True
        status, found = await desk.get("/readyz")
        assert status == 503 and found["why"] == "worker 2 does not answer"
        assert await desk.get("/healthz") == (503, {"alive": False, "reasons": ["worker 2 does not answer"]})
        desk.fakes[1].running = False
        status, found = await desk.get("/readyz")
        assert status == 503 and found["why"] == "worker 2 is being started"
        assert await desk.get("/healthz") == (200, {"alive": True}), "it is started again without any help"
        desk.fakes[0].running = False
        status, found = await desk.get("/readyz")
        assert status == 503 and found["alive"] is True and found["ready"] is False

    async def test_stopping_is_not_ready(self, desk: Desk) -> None:
        desk.say("/readyz", READY, READY)
        desk.crew.stopping = True
        status, found = await desk.get("/readyz")
        assert status == 503 and found["draining"] and found["why"].startswith("stopping")


class TestFigures:
    async def test_metrics(self, desk: Desk) -> None:
        def families(value: float) -> list[Any]:
            samples = [["x_total", {"a": "b"}, value]]
            return [{"name": "x", "kind": "counter", "help": "h", "merge": "sum", "samples": samples}]

        desk.say("/families", families(2), families(3))
        desk.fakes[1].restarts = 4
        answer = await desk.admin.answer(Request("GET", "/metrics"))
        text = answer.body.decode()
        assert 'x_total{a="b"} 5.0' in text and "# TYPE x_total counter" in text
        assert "pannier_workers 2.0" in text and 'pannier_worker_restarts_total{worker="2"} 4.0' in text
        desk.fakes[0].silent = True
        text = (await desk.admin.answer(Request("GET", "/metrics"))).body.decode()
        assert 'x_total{a="b"} 3.0' in text
        assert 'pannier_worker_up{worker="1"} 0.0' in text and 'pannier_worker_up{worker="2"} 1.0' in text
        accept = {"accept": "application/openmetrics-text"}
        text = (await desk.admin.answer(Request("GET", "/metrics", (), accept))).body.decode()
        assert text.count("# EOF") == 1 and text.endswith("# EOF\n")

    async def test_hot_keys_ask_for_more_than_is_shown(self, desk: Desk) -> None:
        empty: dict[str, Any] = {"by_reads": [], "by_bytes": [], "largest": [], "churning": []}
        desk.say("/hotkeys", empty, empty)
        assert await desk.get("/hotkeys", ("n", "3")) == (200, empty)
        assert desk.fakes[0].asked[0].query == (("n", "62"),)
        desk.fakes[1].running = False
        _, found = await desk.get("/hotkeys")
        assert found["silent_workers"] == ["worker 2 is being started"]

    async def test_one_alone(self, desk: Desk) -> None:
        desk.say("/stats", {"n": 1}, {"n": 2})
        for path in ("/stats", "/readyz", "/metrics", "/hotkeys", "/config"):
            desk.say(path, {"n": 1}, {"n": 2})
            assert await desk.get(path, ("worker", "2"), ("x", "y")) == (200, {"n": 2})
        assert desk.fakes[1].asked[-1].query == (("x", "y"),)
        for wrong in ("3", "0", "x", "99999"):
            with pytest.raises(Refused, match="there is no such worker; there are 1 to 2"):
                await desk.get("/stats", ("worker", wrong))
        desk.fakes[1].silent = True
        with pytest.raises(Refused, match="worker 2 does not answer"):
            await desk.get("/stats", ("worker", "2"))
        desk.fakes[1].running = False
        with pytest.raises(Refused, match="worker 2 is being started"):
            await desk.get("/stats", ("worker", "2"))

    async def test_what_workers_refuse_is_refused(self, desk: Desk) -> None:
        desk.say("/stats", *[{"reason": "unknown parameter"}] * 2, status=400)
        with pytest.raises(Refused, match="unknown parameter") as refused:
            await desk.get("/stats", ("x", "y"))
        assert refused.value.answer.status == 400

    async def test_nobody_answers(self, desk: Desk) -> None:
        for fake in desk.fakes:
            fake.running = False
        with pytest.raises(Refused, match="worker 1 is being started; worker 2 is being started"):
            await desk.get("/stats")

    async def test_settings_are_the_parents(self, desk: Desk) -> None:
        desk.crew.settings = Settings(origins=dict.fromkeys(Settings.__slots__, "default"))
        status, found = await desk.get("/config")
        assert status == 200 and found["max_memory"]["value"] == 64 << 20
        with pytest.raises(Refused, match="unknown parameter 'x'"):
            await desk.get("/config", ("x", "y"))


class TestChanges:
    async def test_the_first_is_asked_last_and_tells_others(self, desk: Desk) -> None:
        told = {"invalidated": 2, "keys": 1, "patterns": 0, "told_others": True}
        desk.fakes[0].answers["/invalidate"] = lambda request: report(told)
        desk.fakes[1].answers["/quiet/invalidate"] = lambda request: report(told | {"invalidated": 5})
        status, found = await desk.post("/invalidate", {"keys": ["a"]})
        assert status == 200 and found == told | {"invalidated": 7}
        assert [fake.asked[0].body for fake in desk.fakes] == [b'{"keys": ["a"]}'] * 2

    async def test_draining_is_remembered(self, desk: Desk) -> None:
        for fake, path in zip(desk.fakes, ("/drain", "/quiet/drain"), strict=True):
            fake.answers[path] = lambda request: report({"draining": True, "connected_clients": 3})
        assert await desk.post("/drain") == (200, {"draining": True, "connected_clients": 6})
        assert desk.crew.draining
        for fake in desk.fakes:
            assert fake.told == [("drain", {"draining": True})]

    async def test_one_that_cannot_makes_an_error(self, desk: Desk) -> None:
        desk.fakes[0].answers["/invalidate"] = lambda request: report({"reason": "pannier is stopping"}, 503)
        desk.fakes[1].answers["/quiet/invalidate"] = lambda request: report({"invalidated": 5})
        with pytest.raises(Refused, match="pannier is stopping"):
            await desk.post("/invalidate", {"keys": ["a"]})
        for fake in desk.fakes:
            fake.running = False
        with pytest.raises(Refused, match="no worker is running"):
            await desk.post("/invalidate", {"keys": ["a"]})

    async def test_what_is_no_json_is_refused(self, desk: Desk) -> None:
        request = Request("POST", "/drain", (), {"content-type": "text/plain", "host": "127.0.0.1"}, b"{}")
        with pytest.raises(Refused, match="has to be JSON"):
            await desk.admin.answer(request)
        with pytest.raises(Refused, match="unknown parameter 'worker'"):
            await desk.admin.answer(Request("POST", "/drain", (("worker", "1"),), {"host": "127.0.0.1"}))
