"""Traces: which commands get a span, what it says, what it never says, and that nothing is loaded without."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from proxy.client import tracing
from proxy.client.tracing import Tracing
from proxy.resp import encode
from proxy.resp.errors import SettingsError
from proxy.tier.policy import CacheRule, Defaults, Policy
from proxy.upstream.address import Upstream
from tests.client.linked import turn
from tests.tier.racing import Race

R = encode.request


class Traced(Race):
    """A race of whose commands a share is traced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float = 1.0, upstream: Upstream | None = None, **options: Any) -> None:
        super().__init__(monkeypatch, **options)
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.clients.make = Tracing(provider, share, upstream or Upstream("redis.example", 6379)).session

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those of last, and forget them."""
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return spans


@pytest.fixture
async def race(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    race = Traced(monkeypatch)
    yield race
    await race.close()


def said(spans: list[ReadableSpan]) -> list[tuple[object, object]]:
    return [(span.attributes["db.operation.name"], span.attributes["pannier.path"]) for span in spans if span.attributes]


class TestASpan:
    async def test_has_the_attributes_of_the_conventions(self, race: Traced) -> None:
        client = await race.ready(db=1)
        race.exporter.clear()
        await race.ask(client, "SET", "k", "s3cr3t")
        (span,) = race.spans
        assert span.name == "SET redis.example:6379" and span.kind is SpanKind.CLIENT and span.parent is None
        assert dict(span.attributes or {}) == {
            "db.system.name": "redis", "db.operation.name": "SET", "db.namespace": "1", "pannier.path": "write",
            "server.address": "redis.example", "server.port": 6379,
        }  # fmt: skip
        assert span.status.status_code is StatusCode.UNSET
        assert span.start_time and span.end_time and span.start_time <= span.end_time

    async def test_shows_no_key_and_no_value(self, race: Traced) -> None:
        client = await race.ready()
        for request in (["SET", "s3cr3t", "s3cr3t"], ["GET", "s3cr3t"], ["GET", "s3cr3t"], ["s3cr3t", "s3cr3t"], ["AUTH", "s3cr3t"]):
            await race.ask(client, *request)
        spans = race.spans
        assert len(spans) == 5 and "s3cr3t" not in "".join(span.to_json() for span in spans)
        assert ("_OTHER", "pinned") in said(spans)

    @pytest.mark.parametrize(
        ("request_", "path"),
        [
            (["GET", "a"], "miss"),
            (["MGET", "a", "b"], "miss"),
            (["DEL", "a"], "write"),
            (["PING"], "other"),
            (["SIDECAR", "STATS"], "local"),
            (["SIDECAR", "DELETE", "MATCH", "x*"], "local"),
            (["WATCH", "a"], "pinned"),
        ],
    )  # fmt: skip
    async def test_says_how_it_was_answered(self, race: Traced, request_: list[str], path: str) -> None:
        client = await race.ready()
        race.exporter.clear()
        await race.ask(client, *request_)
        (span,) = race.spans
        assert said([span]) == [(request_[0], path)]
        assert span.kind is (SpanKind.INTERNAL if path == "local" else SpanKind.CLIENT)

    @pytest.mark.parametrize("protocol", [2, 3])
    async def test_of_a_hit_ends_at_once(self, race: Traced, protocol: int) -> None:
        client = await race.ready(protocol=protocol)
        await race.ask(client, "GET", "k")
        race.exporter.clear()
        assert race.hit(client, "GET", "k")
        (span,) = race.spans
        assert said([span]) == [("GET", "hit")] and span.kind is SpanKind.INTERNAL

    async def test_of_what_is_fetched_anew_meanwhile_is_one_of_a_hit(self, race: Traced) -> None:
        rule = CacheRule((b"k*",), l1_ttl=1.0, stale_while_revalidate=60.0)
        race.clients.obey(Policy((rule,), Defaults(300.0, 1 << 20)))
        race.redis.direct("SET", "k", "v")
        client = await race.ready()
        await race.ask(client, "GET", "k")
        race.clock.now += 2
        race.vouch(client)
        race.exporter.clear()
        assert race.hit(client, "GET", "k") == encode.bulk(b"v") and len(client.session.home.fifo) == 1
        assert said(race.spans) == [("GET", "hit")]
        await race.settle()
        assert not race.spans

    async def test_stands_in_for_who_stands_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Traced(monkeypatch, slowlog_slower_than=0.00001)
        client = await race.ready()
        race.clients.latency.listen(client.session.home)
        race.exporter.clear()
        await race.ask(client, "GET", "k")
        assert said(race.spans) == [("GET", "miss")]
        assert [each.command for each in race.clients.slowlog.entries][-1] == "GET"
        await race.close()

    async def test_lasts_until_the_answer(self, race: Traced) -> None:
        client = await race.ready()
        race.exporter.clear()
        client.feed(R("INCR", "n"))
        await turn()
        assert not race.spans
        await race.settle()
        assert said(race.spans) == [("INCR", "write")] and client.take() == b":1\r\n"

    async def test_of_a_pipeline_counts_it(self, race: Traced) -> None:
        client = await race.ready()
        race.exporter.clear()
        client.feed(R("SET", "a", 1) + R("DEL", "b") + R("SET", "c", 1))
        await race.settle()
        (span,) = race.spans
        assert span.attributes is not None and span.attributes["db.operation.batch.size"] == 3
        assert said([span]) == [("PIPELINE SET", "write")]
        assert client.take() == b"+OK\r\n:0\r\n+OK\r\n"

    async def test_of_an_error_has_its_kind(self, race: Traced) -> None:
        race.redis.direct("SET", "h", "v")
        client = await race.ready()
        race.exporter.clear()
        await race.ask(client, "HGET", "h", "f")
        (span,) = race.spans
        assert span.attributes is not None and span.status.status_code is StatusCode.ERROR
        assert span.attributes["db.response.status_code"] == span.attributes["error.type"] == "WRONGTYPE"

    async def test_in_a_namespace_names_it(self, race: Traced) -> None:
        client = await race.ready(namespace="ns")
        race.exporter.clear()
        await race.ask(client, "SET", "k", 1)
        (span,) = race.spans
        assert span.attributes is not None and span.attributes["pannier.namespace"] == "ns"

    async def test_of_a_unix_socket_has_its_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Traced(monkeypatch, upstream=Upstream(path="/run/redis.sock"))
        client = await race.ready()
        race.exporter.clear()
        await race.ask(client, "SET", "k", 1)
        (span,) = race.spans
        assert span.name == "SET /run/redis.sock" and "server.port" not in (span.attributes or {})
        await race.close()


class TestOnALinkOfTheClientsOwn:
    async def test_each_command_has_one(self, race: Traced) -> None:
        client = await race.ready()
        race.exporter.clear()
        for request in (["MULTI"], ["SET", "k", "1"], ["EXEC"]):
            await race.ask(client, *request)
        assert said(race.spans) == [("MULTI", "pinned"), ("SET", "pinned"), ("EXEC", "pinned")]

    async def test_what_is_sent_behind_others_has_none(self, race: Traced) -> None:
        client = await race.ready()
        race.exporter.clear()
        client.feed(R("WATCH", "k"))
        await turn()
        client.feed(R("MULTI"), R("EXEC"))
        await race.settle()
        assert said(race.spans) == [("WATCH", "pinned")]


class TestWhatIsNotTraced:
    async def test_waits_for_another_clients_fetch(self, race: Traced) -> None:
        one, other = await race.ready(), await race.ready()
        race.exporter.clear()
        one.feed(R("GET", "k"))
        other.feed(R("GET", "k"))
        await race.settle()
        assert said(race.spans) == [("GET", "miss")] and one.take() == other.take() == b"$-1\r\n"

    async def test_comes_in_pieces(self, race: Traced) -> None:
        client = await race.ready()
        race.exporter.clear()
        request = R("SET", "k", "v")
        client.feed(request[:9], request[9:])
        await race.settle()
        assert not race.spans and client.take() == b"+OK\r\n"

    async def test_is_no_resp(self, race: Traced) -> None:
        client = await race.ready()
        race.exporter.clear()
        client.feed(b"*1\r\n$x\r\n")
        await race.settle()
        assert not race.spans and b"Protocol error" in client.take()

    async def test_is_passed_over_by_the_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        race = Traced(monkeypatch, share=0.25)
        client = await race.ready()
        race.exporter.clear()
        for _ in range(400):
            await race.ask(client, "SET", "k", 1)
        assert 50 <= len(race.spans) <= 150
        await race.close()


class TestTheSample:
    @pytest.mark.parametrize(
        ("share", "chance", "gap"), [(1.0, 0.999, 1), (0.5, 0.0, 1), (0.5, 0.6, 2), (0.01, 0.5, 69), (0.001, 0.999, 6905)]
    )
    def test_is_what_chance_says(self, share: float, chance: float, gap: int) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        assert Tracing(provider, share, Upstream(), lambda: chance).gap() == gap

    @pytest.mark.parametrize("share", [0.5, 0.05])
    def test_is_that_share(self, share: float) -> None:
        made = Tracing(TracerProvider(shutdown_on_exit=False), share, Upstream())
        gaps = [made.gap() for _ in range(4000)]
        assert len(gaps) / sum(gaps) == pytest.approx(share, rel=0.15)


class TestWithoutThePackages:
    def test_a_sample_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SettingsError, match=r"^trace_sample: OpenTelemetry is not installed \(no opentelemetry[.\w]*\); pip install 'pannier\[otel\]', or leave it out$"):
            tracing.provider()

    def test_nothing_is_loaded_unless_asked_for(self) -> None:
        code = "import sys, proxy.cli, proxy.sidecar; print([m for m in sys.modules if 'opentelemetry' in m or m == 'proxy.client.tracing'])"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class TestTheEnd:
    async def test_waits_for_spans_to_be_sent(self) -> None:
        done: list[str] = []
        await tracing.shut_down(SimpleNamespace(shutdown=lambda: done.append("sent")))  # type: ignore[arg-type]
        assert done == ["sent"]

    async def test_does_not_wait_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracing, "_PATIENCE", 0.01)
        hangs = threading.Event()
        await asyncio.wait_for(tracing.shut_down(SimpleNamespace(shutdown=hangs.wait)), 5)  # type: ignore[arg-type]
        hangs.set()
